"""A detector of fixed cost, for benchmarks of clusters: it sleeps; all around it is real."""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BackendError
from berdiff.runtime.manifest import (
    SCHEMA_VERSION,
    CodeShape,
    Manifest,
    SamplingDefaults,
    ScheduleSpec,
)
from berdiff.runtime.preprocessing import Preprocessing

FloatArray = NDArray[np.float32]
FACTOR = 8
LIBRARIES = ("scipy.ndimage", "PIL.Image", "PIL.ImageDraw", "PIL.ImageFont")
GATE_OPENS_WITHIN = 300.0  # seconds in which all workers are up, or something is wrong


class SleepingBackend:
    """Networks of a few lines of NumPy that hold a slice for a fixed time, without the CPU."""

    name = "simulated"
    device = "cpu"

    def __init__(self, cost: float) -> None:
        self.cost = cost

    def encode(self, images: FloatArray) -> FloatArray:
        # Warming up runs on zeros and is free.
        time.sleep(self.cost * int(images.any(axis=(1, 2, 3)).sum()))
        n, c, h, w = images.shape
        blocks = images.reshape(n, c, h // FACTOR, FACTOR, w // FACTOR, FACTOR)
        return blocks.mean(axis=(3, 5), dtype=np.float32)

    def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
        return np.float32(0.1) + np.float32(0.2) * code.astype(np.float32)

    def decode(self, code: FloatArray) -> FloatArray:
        return code.astype(np.float32).repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)

    def describe(self) -> dict[str, str]:
        return {"backend": self.name, "device": self.device}

    def close(self) -> None: ...

    def __enter__(self) -> SleepingBackend:
        return self

    def __exit__(self, *_: object) -> None: ...


def simulated_detector(cost: float, size: int) -> Detector:
    """A detector that takes `cost` seconds for a slice of `size` x `size`."""
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="simulated",
        preprocessing=Preprocessing(1, ("flair",), (size, size)),
        code=CodeShape(1, size // FACTOR, size // FACTOR),
        schedule=ScheduleSpec(),
        forward_noise="bernoulli",
        sampling=SamplingDefaults(noise_level=200, steps=2),
        files={},
    )
    return Detector(Bundle(Path("simulated"), manifest, "0" * 64), SleepingBackend(cost))


@dataclass(frozen=True)
class Together:
    """The simulated detector on a cluster, whose workers become ready all at once.

    Without that, those that are up first would do the work of the others before the clock starts.

    Attributes
    ----------
    cost : float
        Seconds per slice.
    size : int
        Pixels of a side.
    workers : int
        How many there will be.
    gate : Path
        An empty folder: each worker leaves a file there and waits for the others'.
    """

    cost: float
    size: int
    workers: int
    gate: Path

    @property
    def bundle(self) -> Bundle:
        return simulated_detector(self.cost, self.size).bundle

    def share(self, cluster: object) -> Callable[[], Detector]:
        return functools.partial(_open_together, self)

    def is_open(self) -> bool:
        """Whether all workers are up."""
        return len(os.listdir(self.gate)) >= self.workers


def load_libraries() -> None:
    """Load what reading and writing pictures need, which is else part of the first scan."""
    for library in LIBRARIES:
        importlib.import_module(library)


def _open_together(what: Together) -> Detector:
    detector = simulated_detector(what.cost, what.size)
    load_libraries()
    (what.gate / str(os.getpid())).touch()
    until = time.monotonic() + GATE_OPENS_WITHIN
    while not what.is_open():
        if time.monotonic() > until:
            raise BackendError(f"not all of {what.workers} workers came up")
        time.sleep(0.01)
    return detector


def make_pictures(folder: Path, count: int, size: int, distinct: int = 64) -> None:
    """Write PNG files: an egg with noise; beyond the first `distinct`, they are links to those.

    No folder has more than a thousand, as in a data set of that size.
    """
    from PIL import Image

    y, x = np.ogrid[-1 : 1 : 1j * size, -1 : 1 : 1j * size]
    inside = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    files: list[Path] = []
    for number in range(count):
        file = folder / f"{number // 1000:03}" / f"{number:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < distinct:
            noise = np.random.default_rng(number).normal(140, 25, (size, size))
            stored = np.where(inside, np.clip(noise, 1, 255), 0).astype(np.uint8)
            Image.fromarray(stored).save(file)
            files.append(file)
        else:
            os.link(files[number % distinct], file)
