"""The side that sends: each destination has a thread, and its own patience."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from ...errors import optional
from .config import Destination
from .deliveries import Deliveries, Delivery
from .figures import Figures
from .listener import client_context

_LOG = logging.getLogger("berdiff.dicom")

_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
_LONGEST_WAIT = 60.0


class Sender:
    """Sends to one destination what it is to get, until all of it is there.

    Parameters
    ----------
    destination : Destination
        Who gets it.
    calling : str
        Our AE title, where the destination names none.
    deliveries : Deliveries
        What is to be sent.
    figures : Figures
        Counts what happens.
    patience : float
        Seconds after which an object that was not taken counts as failed.
    """

    def __init__(
        self,
        destination: Destination,
        calling: str,
        deliveries: Deliveries,
        figures: Figures,
        patience: float,
        clock: Any,
    ) -> None:
        self.destination = destination
        self.wake = threading.Event()
        self._deliveries = deliveries
        self._figures = figures
        self._patience = patience
        self._clock = clock
        pynetdicom = optional("pynetdicom", "dicom")
        self._entity = pynetdicom.AE(ae_title=destination.calling or calling)
        timeout = destination.timeout_seconds
        self._entity.acse_timeout = self._entity.dimse_timeout = timeout
        self._entity.network_timeout = self._entity.connection_timeout = timeout
        tls = destination.tls
        context = tls and client_context(tls.certificate, tls.key, tls.authorities)
        self._tls = (context, destination.host) if context else None

    def step(self, stop: threading.Event) -> None:
        """Send what is due, or wait for something."""
        due = self._deliveries.due(self.destination.name)
        if due:
            self._send(due, stop)
        else:
            self.wake.wait(self._pause())
            self.wake.clear()

    def _pause(self) -> float:
        due = self._deliveries.next_due(self.destination.name)
        if due is None:
            return _LONGEST_WAIT
        return min(_LONGEST_WAIT, max(0.05, due - self._clock()))

    def _send(self, due: Sequence[Delivery], stop: threading.Event) -> None:
        """Send objects over one association."""
        read = optional("pydicom", "dicom").dcmread
        objects = []
        for delivery in due:
            try:
                objects.append((delivery, read(delivery.path)))
            except (OSError, ValueError):
                self._failed(delivery, "its file cannot be read")
        classes = sorted({str(data.SOPClassUID) for _, data in objects})
        if not classes:
            return
        pynetdicom = optional("pynetdicom", "dicom")
        contexts = [pynetdicom.build_context(uid, list(_SYNTAXES)) for uid in classes]
        destination = self.destination
        options: dict[str, Any] = {"tls_args": self._tls} if self._tls else {}
        association = self._entity.associate(
            destination.host,
            destination.port,
            contexts=contexts,
            ae_title=destination.title,
            **options,
        )
        try:
            for delivery, data in objects:
                if stop.is_set():
                    return
                if not association.is_established:
                    self._failed(delivery, "no association: it does not answer, or rejects us")
                    continue
                self._send_one(association, delivery, data)
        finally:
            if association.is_established:
                association.release()

    def _send_one(self, association: Any, delivery: Delivery, data: Any) -> None:
        try:
            answer = association.send_c_store(data)
        except (ValueError, RuntimeError, AttributeError) as error:
            # Without a context, or without an association any more.
            self._failed(delivery, f"it cannot be sent ({type(error).__name__})")
            return
        status = getattr(answer, "Status", None)
        if status is None:
            self._failed(delivery, "no answer")
        elif status == 0 or status >> 12 == 0xB:  # stored, maybe with a warning
            released = self._deliveries.sent(delivery, f"0x{status:04X}")
            self._figures.deliveries.labels(self.destination.name, "sent").inc()
            if released is not None:
                self._figures.turnaround_seconds.observe(max(0.0, self._clock() - released))
        else:
            self._failed(delivery, f"status 0x{status:04X}")

    def _failed(self, delivery: Delivery, reason: str) -> None:
        destination = self.destination
        name = destination.name
        _LOG.warning("%s: %s of %s: %s", name, delivery.kind, delivery.job[:16], reason)
        if self._clock() - delivery.inferred > self._patience:
            self._deliveries.give_up(delivery, reason)
            self._figures.deliveries.labels(name, "given up").inc()
            return
        # Not 2.0 ** attempts: there is no limit to those.
        doublings = min(delivery.attempts, 30)
        seconds = min(
            destination.last_retry_seconds, destination.first_retry_seconds * 2**doublings
        )
        self._deliveries.retry(delivery, reason, seconds)
        self._figures.deliveries.labels(name, "failed").inc()
