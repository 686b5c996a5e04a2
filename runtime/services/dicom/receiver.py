"""The side that receives: C-ECHO and C-STORE, from those who may send."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ...closing import Closing
from ...errors import BerdiffError, optional
from ...preprocessing import Preprocessing
from ...scans.dicom_bytes import DicomError
from .config import NodeConfig
from .figures import Figures
from .listener import Bounds, Limits, server_context, start_listener
from .objects import free_mib, read_header
from .spool import Spool

_LOG = logging.getLogger("berdiff.dicom")

# Storage classes that hold images of scans, and how their pixels may be packed: all of it readable.
_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT, and enhanced, and enhanced from classic
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4",  # MR, the same
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
    "1.2.840.10008.5.1.4.1.1.77.1.5.4",  # ophthalmic tomography
)
_SYNTAXES = (
    "1.2.840.10008.1.2.1",  # explicit, and implicit, little endian
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.57",  # JPEG, lossless
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS, lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless
)
_VERIFICATION = "1.2.840.10008.1.1"
# Of every file that is written, so that equal objects are equal files, whatever receives them.
_IMPLEMENTATION = "2.25.162041153017573265262443370311926829337"

_GREETING = 15.0  # seconds in which a peer must say who it is

SUCCESS, OUT_OF_RESOURCES, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000


class Receiver(Closing):
    """Listens, and keeps in the spool what comes.

    Parameters
    ----------
    config : NodeConfig
        Who may send, and how much.
    preprocessing : Preprocessing
        Says whether series or studies are examined.
    spool : Spool
        Where objects are kept.
    figures : Figures
        Counts what happens.
    wake : callable
        Called when a series may have become complete.
    """

    def __init__(
        self,
        config: NodeConfig,
        preprocessing: Preprocessing,
        spool: Spool,
        figures: Figures,
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._preprocessing = preprocessing
        self._spool = spool
        self._figures = figures
        self._wake = wake
        self._lock = threading.Lock()
        self._numbers: dict[Any, int] = {}  # of associations that have brought something
        self._released: set[Any] = set()
        self._bounds = Bounds(
            pdu=config.listen.maximum_pdu,
            message=config.listen.object_mib * 2**20,
            seconds=config.listen.idle_seconds,
        )
        self._server = self._start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Listen no more; associations that go on are aborted."""
        self._server.shutdown()

    def full(self) -> str:
        """Why no new series is taken; empty where one is."""
        rules = self._config.spool
        if free_mib(self._config.folder) < rules.minimum_free_mib:
            return f"the disk of the spool has less than {rules.minimum_free_mib} MiB free"
        if self._spool.arrivals.full(rules.queue):
            return f"the queue is full: {rules.queue} series"
        return ""

    def reap(self) -> None:
        """Note which associations have ended without a release."""
        with self._lock:
            ended = [association for association in self._numbers if not association.is_alive()]
        for association in ended:
            if association not in self._released:
                self._spool.arrivals.break_off(
                    self._numbers[association], caller=_caller(association)
                )
                self._figures.associations.labels("broken").inc()
                _LOG.warning("an association of %s broke", _caller(association))
            with self._lock:
                del self._numbers[association]
                self._released.discard(association)

    def _start(self) -> Any:
        pynetdicom = optional("pynetdicom", "dicom")
        events = pynetdicom.evt
        listen = self._config.listen
        entity = pynetdicom.AE(ae_title=listen.title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(listen.callers)
        entity.maximum_pdu_size = listen.maximum_pdu
        entity.maximum_associations = listen.associations
        entity.network_timeout = entity.dimse_timeout = listen.idle_seconds
        entity.acse_timeout = min(_GREETING, listen.idle_seconds)
        entity.add_supported_context(_VERIFICATION)
        for uid in _CLASSES:
            entity.add_supported_context(uid, list(_SYNTAXES))
        tls = listen.tls
        try:
            return start_listener(
                entity,
                (listen.host, listen.port),
                self._bounds,
                ssl_context=tls and server_context(tls.certificate, tls.key, tls.authorities),
                evt_handlers=[
                    (events.EVT_CONN_OPEN, self._opened),
                    (events.EVT_CONN_CLOSE, self._closed),
                    (events.EVT_REJECTED, self._rejected),
                    (events.EVT_PDU_RECV, self._fragment),
                    (events.EVT_C_ECHO, self._echo),
                    (events.EVT_C_STORE, self._store),
                    (events.EVT_ACSE_RECV, self._ending),
                ],
            )
        except OSError as error:
            raise BerdiffError(
                f"cannot listen on {listen.host}:{listen.port}: {error.strerror or error}; check "
                "the address, and that the port is free"
            ) from error

    def _opened(self, event: Any) -> None:
        Limits(event.assoc.dul.socket, self._bounds)

    def _closed(self, event: Any) -> None:
        # Who only looks whether somebody listens would else take a place until the timeout.
        if event.assoc.requestor.primitive is None:
            event.assoc.dul.to_user_queue.put(None)

    def _rejected(self, event: Any) -> None:
        self._figures.associations.labels("rejected").inc()
        _LOG.warning("rejected an association of %s", _caller(event.assoc))

    def _fragment(self, event: Any) -> None:
        fragments = getattr(event.pdu, "presentation_data_value_items", None)
        if fragments:
            Limits.of(event.assoc).count(fragments)

    def _echo(self, event: Any) -> int:
        self._take_up(event.assoc)
        return SUCCESS

    def _take_up(self, association: Any) -> None:
        # What a peer sends on without waiting for answers still counts.
        if association.dimse.msg_queue.empty():
            Limits.of(association).taken_up()

    def _store(self, event: Any) -> Any:
        start = time.perf_counter()
        outcome, answer = self._keep(event)
        self._take_up(event.assoc)
        self._figures.objects.labels(outcome).inc()
        self._figures.store_seconds.observe(time.perf_counter() - start)
        return answer

    def _keep(self, event: Any) -> tuple[str, Any]:
        """Keep an object: it lies on the disk before success is said."""
        rules, request = self._config.spool, event.request
        if free_mib(self._config.folder) < rules.minimum_free_mib:
            return "refused", _status(OUT_OF_RESOURCES, "not enough space on the disk")
        try:
            content = request.DataSet.getbuffer()
            start = _file_start(request, event.context.transfer_syntax)
            header = read_header(
                b"".join((start, content)),
                str(request.AffectedSOPClassUID),
                str(request.AffectedSOPInstanceUID),
                self._preprocessing,
            )
        except (DicomError, AttributeError, ValueError) as error:
            _LOG.warning("refused an object of %s: %s", _caller(event.assoc), _shown(error))
            return "refused", _status(CANNOT_UNDERSTAND, _shown(error))
        most = self._config.series.maximum_objects
        if not self._spool.arrivals.has_room(header.unit, rules.queue, most):
            return "refused", _status(OUT_OF_RESOURCES, "the queue is full, or the series is")
        try:
            number = self._number(event.assoc)
            stored = self._spool.arrivals.receive(header, (start, content), number)
        except Exception as error:  # of the disk or the database: the peer keeps the object
            _LOG.error("cannot keep an object: %s", type(error).__name__)
            return "refused", _status(OUT_OF_RESOURCES, "it cannot be written")
        return stored, SUCCESS

    def _number(self, association: Any) -> int:
        with self._lock:
            if association not in self._numbers:
                self._numbers[association] = self._spool.arrivals.begin()
            return self._numbers[association]

    def _ending(self, event: Any) -> None:
        """Note a release before it is confirmed: what is confirmed must not depend on luck."""
        primitive, association = event.primitive, event.assoc
        if type(primitive).__name__ != "A_RELEASE" or primitive.result is not None:
            return
        try:
            if association in self._numbers:
                self._spool.arrivals.release(
                    self._numbers[association], caller=_caller(association)
                )
                self._released.add(association)
        except Exception as error:  # of the disk or the database
            _LOG.error("cannot note a release: %s", type(error).__name__)
            association.abort()
            return
        self._figures.associations.labels("released").inc()
        self._wake()


def _caller(association: Any) -> str:
    """AE title of a peer, in characters that every terminal takes."""
    title = str(association.requestor.ae_title or "")
    return "".join(char if " " < char <= "~" else "?" for char in title.strip())[:16] or "nobody"


def _shown(error: Exception) -> str:
    return str(error) if isinstance(error, DicomError) else "it is damaged"


def _status(code: int, comment: str) -> Any:
    status = optional("pydicom", "dicom").Dataset()
    status.Status, status.ErrorComment = code, comment[:64]
    return status


def _file_start(request: Any, syntax: str) -> bytes:
    """What a file of the object begins with: preamble and file meta information."""
    meta = optional("pydicom.dataset", "dicom").FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = request.AffectedSOPClassUID
    meta.MediaStorageSOPInstanceUID = request.AffectedSOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = _IMPLEMENTATION
    encoded: bytes = optional("pynetdicom.dsutils", "dicom").encode_file_meta(meta)
    return b"\0" * 128 + b"DICM" + encoded
