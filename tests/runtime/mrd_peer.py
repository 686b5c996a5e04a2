"""A client after the public FIRE client's behaviour, with the structures of `ismrmrd`."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.detector import Detector
from berdiff.runtime.services.audit import AuditLog
from berdiff.runtime.services.health import Health
from berdiff.runtime.services.mrd.image import Limits
from berdiff.runtime.services.mrd.parameters import Request
from berdiff.runtime.services.mrd.server import Manners, Server, Stopping
from berdiff.runtime.services.mrd.session import Work

PATIENCE = 60.0  # seconds after which a test has failed


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.01)


def raw(number: int, data: bytes = b"") -> bytes:
    return struct.pack("<H", number) + data


@dataclass
class Answer:
    """What a server sent until it closed."""

    images: list[ismrmrd.Image] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    closed: bool = False  # by message 4, as clients wait for

    @property
    def error(self) -> str:
        (error,) = [text for text in self.texts if text.startswith("ERROR")]
        return error

    def series(self, kind: str) -> list[ismrmrd.Image]:
        suffix = f"_berdiff_{kind}"
        return [i for i in self.images if i.meta.get("SeriesDescriptionAdditional") == suffix]

    def originals(self) -> list[ismrmrd.Image]:
        return [i for i in self.images if "BerdiffBundle" not in i.meta]


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def begin(self, config: str = "berdiff", header: str = "Dummy XML header") -> Client:
        self.socket.sendall(struct.pack("<H1024s", 1, config.encode()))
        self.text(3, header)
        return self

    def text(self, number: int, text: str) -> None:
        data = text.encode() + b"\0"
        self.socket.sendall(struct.pack("<HI", number, len(data)) + data)

    def parameters(self, **parameters: Any) -> Client:
        self.text(5, json.dumps({"parameters": parameters}))
        return self

    def image(self, image: ismrmrd.Image) -> None:
        self.socket.sendall(struct.pack("<H", 1022))
        image.serialize_into(self.socket.sendall)

    def close(self) -> None:
        self.socket.sendall(struct.pack("<H", 4))

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def answer(self) -> Answer:
        answer = Answer()
        while True:
            try:
                (number,) = struct.unpack("<H", self.read(2))
            except (EOFError, ConnectionError):
                return answer
            if number == 4:
                answer.closed = True
                return answer
            if number == 5:
                (length,) = struct.unpack("<I", self.read(4))
                answer.texts.append(self.read(length).rstrip(b"\0").decode())
            else:
                assert number == 1022
                answer.images.append(ismrmrd.Image.deserialize_from(self.read))


def exchange(port: int, images: Sequence[ismrmrd.Image], **parameters: Any) -> Answer:
    with Client(port) as client:
        client.begin()
        if parameters:
            client.parameters(**parameters)
        for image in images:
            client.image(image)
        client.close()
        return client.answer()


@dataclass(frozen=True)
class Lie:
    """How a volume lies: directions of columns, rows and slices (LPS), pixel sizes in mm."""

    across: tuple[float, float, float] = (1, 0, 0)
    down: tuple[float, float, float] = (0, 1, 0)
    through: tuple[float, float, float] = (0, 0, 1)
    sizes: tuple[float, float, float] = (1.0, 1.0, 4.0)

    def affine(self) -> NDArray[np.float64]:
        """To RAS, as NIfTI has it."""
        axes = np.array([self.across, self.down, self.through], float).T * self.sizes
        affine = np.eye(4)
        affine[:3, :3] = np.diag([-1, -1, 1]) @ axes
        return affine


AXIAL = Lie()


def heads(
    shape: tuple[int, int, int] = (3, 32, 40), dtype: str = "uint16", seed: int = 0
) -> NDArray[Any]:
    """Something round that differs from slice to slice, ``[z, y, x]``."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    inside = np.hypot((y - shape[1] / 2) / shape[1], (x - shape[2] / 2) / shape[2]) < 0.4
    values = inside * (100 + 40 * z + rng.integers(0, 400, shape))
    return values.astype(dtype)


def images_of(
    values: NDArray[Any], lie: Lie = AXIAL, meta: dict[str, Any] | None = None, **header: Any
) -> list[ismrmrd.Image]:
    """One image for each slice of ``[z, y, x]``."""
    depth, rows, columns = values.shape
    size = lie.sizes
    made = []
    for z in range(depth):
        fields = {
            "image_type": ismrmrd.IMTYPE_MAGNITUDE,
            "image_series_index": 1,
            "image_index": z + 1,
            "slice": z,
            "field_of_view": (size[0] * columns, size[1] * rows, size[2]),
            "position": tuple(np.array(lie.through) * size[2] * z),
            "read_dir": lie.across,
            "phase_dir": lie.down,
            "slice_dir": lie.through,
            **header,
        }
        image = ismrmrd.Image.from_array(values[z], **fields)
        image.attribute_string = ismrmrd.Meta(meta or {}).serialize()
        made.append(image)
    return made


@contextmanager
def serving(
    detector: Detector,
    *,
    limits: Limits | None = None,
    request: Request | None = None,
    audit: Path | None = None,
    timeout: float = PATIENCE,
    **manners: Any,
) -> Iterator[Served]:
    """A server in this process, on a free port."""
    stopping, health = Stopping(), Health("mrd")
    work = Work(detector, request or Request(), limits or Limits(), 4, timeout, stopping.now)
    # Places enough for clients that have gone, and whose session has not been put away yet.
    treated = Manners(
        **{"port": 0, "clients": 32, "idle": PATIENCE, "patience": PATIENCE, **manners}
    )
    log = AuditLog.open(audit) if audit else None
    try:
        server = Server(work, treated, health, log, stopping)
        with server.serving() as port:
            yield Served(port, health, stopping)
    finally:
        if log:
            log.close()


@dataclass(frozen=True)
class Served:
    port: int
    health: Health
    stopping: Stopping

    def metric(self, name: str, **labels: str) -> float:
        return self.health.registry.get_sample_value(f"berdiff_mrd_{name}", labels) or 0.0
