"""A detector whose networks are a few lines of NumPy; everything around them is the real thing."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    Threshold,
)
from berdiff.runtime.preprocessing import Preprocessing

FloatArray = NDArray[np.float32]
FACTOR = 4


class FakeBackend:
    """Encodes by 4x4 means, doubts every bit that is set, decodes by repetition."""

    name = "fake"
    device = "cpu"

    def __init__(
        self,
        channels: int,
        delay: float = 0.0,
        answer_nan: bool = False,
        deadly_above: float = np.inf,
        broken_above: float = np.inf,
        hold: str = "",
    ) -> None:
        self.channels = channels
        self.delay = delay
        self.answer_nan = answer_nan
        self.deadly_above = deadly_above
        self.broken_above = broken_above
        self.hold = hold
        self.batches: list[int] = []

    def encode(self, images: FloatArray) -> FloatArray:
        time.sleep(self.delay * len(images))
        # Whoever removes the file lets go. Warming up, with zeros, goes on.
        while self.hold and images.any() and os.path.exists(self.hold):
            time.sleep(0.01)
        brightest = images.mean(axis=(1, 2, 3)).max()
        if brightest > self.deadly_above:
            os.kill(os.getpid(), signal.SIGKILL)
        if brightest > self.broken_above:
            raise BackendError("the fake network is broken")
        self.batches.append(len(images))
        n, c, h, w = images.shape
        blocks = images.reshape(n, c, h // FACTOR, FACTOR, w // FACTOR, FACTOR)
        means = blocks.mean(axis=(3, 5), dtype=np.float32)
        return np.clip(np.concatenate([means * 1.5, means * 0.8], axis=1), 0, 1)

    def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
        return np.float32(0.1) + np.float32(0.6) * code.astype(np.float32)

    def decode(self, code: FloatArray) -> FloatArray:
        if self.answer_nan:
            code = code * np.float32(np.nan)
        mean = (code[:, : self.channels] + code[:, self.channels :]) / np.float32(2)
        return mean.repeat(FACTOR, axis=2).repeat(FACTOR, axis=3).astype(np.float32)

    def describe(self) -> dict[str, str]:
        return {"backend": self.name, "device": self.device}

    def close(self) -> None: ...

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(self, *_: object) -> None: ...


def fake_detector(
    preprocessing: Preprocessing | None = None,
    threshold: Threshold | None = None,
    digest: str = "d" * 64,
    **behaviour: Any,
) -> Detector:
    """A detector with `FakeBackend`; 10 reverse steps from L=100 by default."""
    pre = preprocessing or Preprocessing(1, ("flair",), (32, 40))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="fake",
        preprocessing=pre,
        code=CodeShape(2 * pre.channels, pre.size[0] // FACTOR, pre.size[1] // FACTOR),
        schedule=ScheduleSpec(),
        forward_noise="bernoulli",
        sampling=SamplingDefaults(noise_level=100, steps=10),
        files={},
        threshold=threshold,
    )
    backend = FakeBackend(pre.channels, **behaviour)
    return Detector(Bundle(Path("fake"), manifest, digest), backend)


@dataclass
class FakeEverywhere:
    """The fake detector on the nodes of a cluster; behaviour as `FakeBackend` takes it."""

    preprocessing: Preprocessing | None = None
    behaviour: dict[str, Any] = field(default_factory=dict)

    @property
    def bundle(self) -> Bundle:
        return fake_detector(self.preprocessing).bundle

    def share(self, cluster: object) -> Callable[[], Detector]:
        return functools.partial(fake_detector, self.preprocessing, **self.behaviour)
