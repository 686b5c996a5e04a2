"""How fast a detector is on this machine, alone or beside another implementation of the loop."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .detector import Detector
from .manifest import Manifest, SamplingDefaults

FloatArray = NDArray[np.float32]

STAGES = ("encode", "loop", "decode")

# Every step takes the same time, so that a long loop tells no more than a short one.
DEFAULT_STEPS = 20


class Contender(Protocol):
    """An implementation of encode, loop and decode that times itself."""

    name: str

    def run(self, images: FloatArray) -> dict[str, float]:
        """Process ``[N, C, H, W]``; return the seconds each of `STAGES` took."""
        ...


class DetectorContender:
    """A detector with fixed settings.

    Parameters
    ----------
    detector : Detector
        Opened.
    settings : SamplingDefaults
        Of the loop.
    """

    def __init__(self, detector: Detector, settings: SamplingDefaults) -> None:
        self.name = detector.backend.name
        self._detector = detector
        self._settings = settings

    def run(self, images: FloatArray) -> dict[str, float]:
        """Detect anomalies; see `Contender.run`."""
        ids = np.arange(len(images), dtype=np.uint64)
        timings = self._detector.detect(images, ids, settings=self._settings).timings
        return {stage: timings[stage] for stage in STAGES}


@dataclass(frozen=True)
class Timing:
    """Timings of one contender at one batch size.

    Attributes
    ----------
    name : str
        Of the contender.
    batch_size : int
        Images at a time.
    step_ms : float
        Milliseconds per reverse step of the whole batch, noise and masking included.
    image_ms : float
        Milliseconds per image for encoding, loop and decoding.
    runs_ms : tuple of float
        The same, for every run; `image_ms` is their median.
    """

    name: str
    batch_size: int
    step_ms: float
    image_ms: float
    runs_ms: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return 1000 / self.image_ms


@dataclass(frozen=True)
class Bench:
    """Result of `berdiff bench`.

    Attributes
    ----------
    engine : dict of str to str
        What ran; see `Backend.describe`.
    noise_level, steps : int
        L, and the number of reverse steps.
    open_s, warm_up_s : float
        Start-up: seconds to check the bundle and load the networks, and to run each once.
    peak_memory_mib : float or None
        Highest resident memory of this process after the largest batch, before any rival was
        loaded; None where the system does not tell.
    timings : tuple of Timing
        By batch size, contenders side by side.
    """

    engine: dict[str, str]
    noise_level: int
    steps: int
    open_s: float
    warm_up_s: float
    peak_memory_mib: float | None
    timings: tuple[Timing, ...]

    def speedups(self) -> dict[int, float]:
        """How many times as fast the first contender is as the second, by batch size."""
        by_size: dict[int, list[float]] = {}
        for timing in self.timings:
            by_size.setdefault(timing.batch_size, []).append(timing.image_ms)
        return {size: ms[1] / ms[0] for size, ms in by_size.items() if len(ms) > 1}

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for ``json.dumps``."""
        timings = [
            {**asdict(timing), "images_per_second": timing.images_per_second}
            for timing in self.timings
        ]
        speedups = {str(size): ratio for size, ratio in self.speedups().items()}
        return {**asdict(self), "timings": timings, "speedup": speedups}


def run_bench(
    open_detector: Callable[[], Detector],
    batch_sizes: Sequence[int],
    steps: int | None = None,
    repeats: int = 3,
    rival: Callable[[Manifest, SamplingDefaults], Contender] | None = None,
) -> Bench:
    """Time a detector, and a rival in turns with it, so that both meet the same disturbances.

    Parameters
    ----------
    open_detector : callable
        Opens the detector; how long that takes is part of the result.
    batch_sizes : sequence of int
        Batch sizes to time.
    steps : int, optional
        Reverse steps; None takes the bundle's, or `DEFAULT_STEPS` where that is fewer.
    repeats : int
        Timed runs per contender and batch size.
    rival : callable, optional
        Makes the other contender, given the bundle's manifest and the settings; called after
        memory was measured.
    """
    start = time.perf_counter()
    with open_detector() as detector:
        opened = time.perf_counter()
        detector.warm_up(1)
        warm = time.perf_counter()

        settings = detector.settings(steps=steps)
        kept = len(detector.sampler(settings).kept)
        if steps is None and kept > DEFAULT_STEPS:
            kept = DEFAULT_STEPS
            settings = detector.settings(steps=kept)
        images = _images(detector, max(batch_sizes))
        contenders: list[Contender] = [DetectorContender(detector, settings)]
        contenders[0].run(images)
        memory = peak_memory_mib()
        if rival is not None:
            contenders.append(rival(detector.bundle.manifest, settings))
        timings: list[Timing] = []
        for size in sorted(set(batch_sizes)):
            timings += _take_turns(contenders, images[:size], kept, repeats)
        return Bench(
            engine=detector.backend.describe(),
            noise_level=settings.noise_level,
            steps=kept,
            open_s=opened - start,
            warm_up_s=warm - opened,
            peak_memory_mib=memory,
            timings=tuple(timings),
        )


def _take_turns(
    contenders: Sequence[Contender], images: FloatArray, steps: int, repeats: int
) -> list[Timing]:
    """Time contenders A B A B ... on one batch, after one run of each that does not count."""
    for contender in contenders:
        contender.run(images)
    rounds = [[contender.run(images) for contender in contenders] for _ in range(repeats)]
    timings = []
    for contender, runs in zip(contenders, zip(*rounds, strict=True), strict=True):
        loops = [run["loop"] for run in runs]
        totals = [1000 * sum(run.values()) / len(images) for run in runs]
        timings.append(
            Timing(
                name=contender.name,
                batch_size=len(images),
                step_ms=1000 * statistics.median(loops) / steps,
                image_ms=statistics.median(totals),
                runs_ms=tuple(totals),
            )
        )
    return timings


def _images(detector: Detector, count: int) -> FloatArray:
    pre = detector.bundle.manifest.preprocessing
    random = np.random.Generator(np.random.Philox(key=0))
    return random.random((count, pre.channels, *pre.size), np.float32)


def peak_memory_mib() -> float | None:
    """Highest resident memory of this process so far, in MiB; None where it is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
