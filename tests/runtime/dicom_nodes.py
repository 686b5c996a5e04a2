"""DICOM nodes with a fake detector in this process, and peers that send and receive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicom_sources import MR, classic
from fakes import fake_detector
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from berdiff.runtime.run_plan import RunOptions
from berdiff.runtime.services.audit import AuditLog
from berdiff.runtime.services.dicom.config import NodeConfig
from berdiff.runtime.services.dicom.node import Node
from berdiff.runtime.services.health import Health
from berdiff.runtime.strict import from_json

SHAPE = (40, 32, 5)  # columns, rows, slices: what the fake detector takes
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
PMAP = "1.2.840.10008.5.1.4.1.1.30"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
PATIENCE = 60.0


def wait_for(condition: Callable[[], Any], what: str = "it") -> Any:
    """Wait until a condition holds, and return what it says."""
    limit = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < limit, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


def series(number: int, slices: int = SHAPE[2], **tags: Any) -> list[Dataset]:
    """A series with UIDs of its own, its slices in order."""
    made = classic(shape=(*SHAPE[:2], slices))
    made.sort(key=lambda data: float(data.ImagePositionPatient[2]))
    for index, data in enumerate(made):
        data.StudyInstanceUID = f"1.2.3.{number}.1"
        data.SeriesInstanceUID = f"1.2.3.{number}.2"
        data.SOPInstanceUID = f"1.2.3.{number}.3.{index}"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        for name, value in tags.items():
            setattr(data, name, value)
    return made


def empty_series(number: int) -> list[Dataset]:
    """One in which nothing is to be seen."""
    made = series(number)
    for data in made:
        data.PixelData = bytes(len(data.PixelData))
    return made


@contextlib.contextmanager
def association(
    port: int, calling: str = "SCANNER", called: str = "BERDIFF", **options: Any
) -> Iterator[Any]:
    """An association with a node; not established where it was rejected."""
    entity = AE(ae_title=calling)
    entity.add_requested_context(options.pop("context", MR))
    entity.dimse_timeout = options.pop("patience", PATIENCE)
    opened = entity.associate("127.0.0.1", port, ae_title=called, **options)
    try:
        yield opened
    finally:
        if opened.is_established:
            opened.release()


def send(port: int, datasets: list[Dataset], **options: Any) -> list[int]:
    """Send objects over one association and release it; returns their status."""
    with association(port, **options) as opened:
        assert opened.is_established
        return [opened.send_c_store(data).Status for data in datasets]


@dataclass
class Peer:
    """Receives what a node sends.

    Attributes
    ----------
    port : int
    received : list of Dataset
        In the order in which they came, repeated ones too.
    answer : callable
        Status by dataset.
    """

    port: int = 0
    received: list[Dataset] = field(default_factory=list)
    answer: Callable[[Dataset], int] = lambda _: 0

    @property
    def kinds(self) -> list[str]:
        """Classes of what was received."""
        return sorted(str(data.SOPClassUID) for data in self.received)

    def of(self, sop_class: str) -> list[Dataset]:
        return [data for data in self.received if data.SOPClassUID == sop_class]


@contextlib.contextmanager
def peer(port: int = 0, ssl_context: Any = None) -> Iterator[Peer]:
    """Run a peer, on a free port or this one."""
    here = Peer()

    def store(event: Any) -> int:
        data = event.dataset
        status = here.answer(data)
        if status == 0:
            here.received.append(data)
        return status

    entity = AE(ae_title="PEER")
    entity.require_called_aet = True
    for uid in (SEG, PMAP, CAPTURE):
        entity.add_supported_context(uid)
    handlers = [(evt.EVT_C_STORE, store)]
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=handlers, ssl_context=ssl_context
    )
    here.port = server.server_address[1]
    try:
        yield here
    finally:
        server.shutdown()


def configured(folder: Path, peer_port: int, **changes: Any) -> NodeConfig:
    """What a node is told; `changes` go into sections, or replace `destinations`."""
    content: dict[str, Any] = {
        "listen": {"title": "BERDIFF", "callers": ["SCANNER", "ORTHANC"], "port": 0},
        "series": {"minimum_slices": 5, "settle_seconds": 0.0},
        "spool": {"folder": str(folder / "spool"), "minimum_free_mib": 1},
        "health_port": 0,
    }
    for section in ("listen", "series", "spool"):
        content[section].update(changes.pop(section, {}))
    archive = {"name": "archive", "host": "127.0.0.1", "port": peer_port, "title": "PEER"}
    archive.update(first_retry_seconds=0.1, last_retry_seconds=0.2, timeout_seconds=10.0)
    content["destinations"] = changes.pop("destinations", [archive | changes.pop("archive", {})])
    return from_json(NodeConfig, content | changes, "node.yaml")


@dataclass
class Running:
    """A node that runs."""

    node: Node
    port: int
    health: Health

    def metric(self, name: str, **labels: str) -> float:
        return self.health.registry.get_sample_value(f"berdiff_dicom_{name}", labels) or 0.0

    def count(self, state: str) -> float:
        """How many series are in a state."""
        return self.metric("series", state=state)


@contextlib.contextmanager
def running(config: NodeConfig, detector: Any = None) -> Iterator[Running]:
    """Run a node until the block ends."""
    health = Health("dicom")
    with AuditLog.open(config.audit_path) as audit:
        node = Node(detector or fake_detector(), RunOptions(threshold=0.03), config, health, audit)
        with node.serving() as port:
            wait_for(lambda: health.obstacle is None, "the node")
            yield Running(node, port, health)


def check_results(received: list[Dataset], source: list[Dataset]) -> None:
    """One segmentation, one map and one summary that belong to a series, and nothing else."""
    assert sorted(str(data.SOPClassUID) for data in received) == sorted((SEG, PMAP, CAPTURE))
    for data in received:
        assert data.StudyInstanceUID == source[0].StudyInstanceUID
        assert data.PatientName == source[0].PatientName
        (referenced,) = {one.SeriesInstanceUID for one in data.ReferencedSeriesSequence}
        assert referenced == source[0].SeriesInstanceUID
