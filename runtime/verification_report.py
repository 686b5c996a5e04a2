"""``berdiff verify --report``: what an integrator files as evidence for one installation.

Which software and machine, whether every file of the bundle is the approved one, whether the golden
vectors come out right, and how long detections take. The report is written whether it went well
or not; that it holds only what is listed here, `from_json` checks when it is read.
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .backends import open_backend
from .bundle import MANIFEST_NAME, Bundle, record_files
from .detector import Detector
from .environment import machine, software
from .errors import BackendError, BerdiffError
from .files import sha256_file
from .manifest import FileRecord, Manifest, SamplingDefaults
from .nvidia import Driver, driver
from .strict import read_json
from .verify import Check, Golden, refuse_failed, verify

SCHEMA_VERSION = 1
MIN_RUNS = 200
WARM_UP_RUNS = 3

# Variables that change how fast or on what an engine computes, where they are set.
_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("CUDA_DEVICE_MAX_CONNECTIONS", "NVIDIA_TF32_OVERRIDE", "LD_LIBRARY_PATH", "LD_PRELOAD"),
)


@dataclass(frozen=True)
class FileState:
    """One file of the bundle.

    Attributes
    ----------
    state : str
        "ok", "altered", "missing", or "unlisted": there, but not named in ``bundle.json``, as
        engines that were built later are.
    found : FileRecord or None
        Digest and size as found; None for a missing file.
    expected : FileRecord or None
        As ``bundle.json`` says; None for an unlisted file.
    """

    state: str
    found: FileRecord | None
    expected: FileRecord | None


@dataclass(frozen=True)
class BundleState:
    """The bundle as it lies there.

    Attributes
    ----------
    name, precision : str or None
        From ``bundle.json``; None where that cannot be read.
    digest : str or None
        SHA-256 of ``bundle.json``, which identifies the detector.
    files : dict of str to FileState
        Every file but ``bundle.json``, by its path in the bundle.
    """

    name: str | None
    precision: str | None
    digest: str | None
    files: dict[str, FileState]


@dataclass(frozen=True)
class GoldenResult:
    """One figure of the golden vectors.

    Attributes
    ----------
    name, meaning : str
        What was compared.
    value : float or None
        How far it was off; None if that is no number.
    limit : float
        How far it may be off.
    passed : bool
        Whether the value keeps the limit.
    """

    name: str
    meaning: str
    value: float | None
    limit: float
    passed: bool


@dataclass(frozen=True)
class Distribution:
    """Milliseconds over all runs; percentiles by nearest rank, so each is a time that occurred.

    Attributes
    ----------
    p50, p95, p99 : float
        The smallest time that so many per cent of the runs did not exceed.
    min, max : float
        Fastest and slowest run.
    mean : float
        Arithmetic mean.
    """

    min: float
    p50: float
    p95: float
    p99: float
    max: float
    mean: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Distribution:
        """Summarise times in any unit; none is left out."""
        ordered = sorted(times)
        p50, p95, p99 = (ordered[math.ceil(p * len(ordered) / 100) - 1] for p in (50, 95, 99))
        return cls(ordered[0], p50, p95, p99, ordered[-1], sum(ordered) / len(ordered))


@dataclass(frozen=True)
class Latency:
    """How long detections took, one image at a time.

    Attributes
    ----------
    runs : int
        Detections that were timed.
    warm_up_runs : int
        Detections before them that were not.
    batch_size : int
        Images at a time: 1.
    settings : SamplingDefaults
        Of the loop.
    network_calls : int
        Times the denoiser ran for one image.
    seconds : float
        What all timed runs took together.
    total : Distribution
        The whole call of `Detector.detect`, from an image on the model's grid to map, mask and
        score, in ms.
    stages : dict of str to Distribution
        Its parts "encode", "loop", "decode", "maps", in ms. What is missing to the total are the
        checks of the input.
    total_ms : tuple of float
        Every run, in order.
    """

    runs: int
    warm_up_runs: int
    batch_size: int
    settings: SamplingDefaults
    network_calls: int
    seconds: float
    total: Distribution
    stages: dict[str, Distribution]
    total_ms: tuple[float, ...]


@dataclass(frozen=True)
class Conditions:
    """Under what the figures came about.

    Attributes
    ----------
    threads : int or None
        CPU threads asked for; None leaves it to the backend: one per physical core.
    usable_processors : int
        Logical processors this process may use.
    load_before, load_after : float or None
        Processes that ran or waited, averaged over a minute; None where the system does not tell.
    variables : dict of str to str
        Variables of the environment that change how engines run, where they are set.
    """

    threads: int | None
    usable_processors: int
    load_before: float | None
    load_after: float | None
    variables: dict[str, str]


@dataclass(frozen=True)
class VerificationReport:
    """Everything of one verification; see docs/evidence.md.

    Attributes
    ----------
    schema_version : int
        Of this file.
    passed : bool
        True if every file, every golden vector and every run was right.
    failures : tuple of str
        Why not; empty if it passed.
    created : str
        When it began, ISO 8601 in UTC.
    software : dict of str to str
        Versions of berdiff, Python and the libraries that can change a result or a timing.
    machine : dict of str to str
        Operating system, architecture, processor.
    gpu : Driver
        NVIDIA's driver and GPUs, or why there are none.
    conditions : Conditions
        Threads, load, environment.
    bundle : BundleState
        Digests.
    engine : dict of str to str
        What ran: backend, device, versions. Empty if none could be opened.
    golden : tuple of GoldenResult
        Empty if it did not come to that.
    latency : Latency or None
        None if something failed before.
    """

    schema_version: int
    passed: bool
    failures: tuple[str, ...]
    created: str
    software: dict[str, str]
    machine: dict[str, str]
    gpu: Driver
    conditions: Conditions
    bundle: BundleState
    engine: dict[str, str]
    golden: tuple[GoldenResult, ...]
    latency: Latency | None


def verification_report(
    model: str | Path,
    backend: str = "onnxruntime",
    device: str = "cpu",
    threads: int | None = None,
    steps: int | None = None,
    runs: int = MIN_RUNS,
    progress: Callable[[int, int], None] | None = None,
) -> VerificationReport:
    """Check a bundle on this machine and time it.

    Parameters
    ----------
    model : str or Path
        The bundle.
    backend, device, threads
        As for `Detector.open`.
    steps : int, optional
        Reverse steps of the timed detections; None takes the bundle's.
    runs : int
        Detections to time, at least `MIN_RUNS`.
    progress : callable, optional
        Called with the number of timed detections, and of all.

    Returns
    -------
    VerificationReport
        Also where something failed: an expected error is one of its `failures`.

    Raises
    ------
    ValueError
        If `runs` is too small for a p99 that means something.
    """
    if runs < MIN_RUNS:
        raise ValueError(f"got {runs} runs, expected at least {MIN_RUNS}")
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    found: dict[str, Any] = {"engine": {}, "golden": (), "latency": None}
    failures: tuple[str, ...] = ()
    before = _load()
    try:
        bundle = Bundle.open(model)
        with Detector(bundle, open_backend(bundle, backend, device, threads)) as detector:
            found["engine"] = detector.backend.describe()
            checks = verify(bundle, detector.backend)
            found["golden"] = tuple(map(_result, checks))
            refuse_failed(checks, found["engine"], model)
            found["latency"] = _latency(detector, steps, runs, progress)
    except BerdiffError as error:
        failures = (str(error),)
    return VerificationReport(
        schema_version=SCHEMA_VERSION,
        passed=not failures,
        failures=failures,
        created=created,
        software=software(),
        machine=machine(),
        gpu=driver(),
        conditions=_conditions(threads, before),
        bundle=_bundle_state(Path(model)),
        **found,
    )


def _result(check: Check) -> GoldenResult:
    value = float(check.value) if math.isfinite(check.value) else None
    return GoldenResult(check.name, check.meaning, value, check.limit, check.passed)


def _latency(
    detector: Detector, steps: int | None, runs: int, progress: Callable[[int, int], None] | None
) -> Latency:
    """Time whole detections of the golden images, in turns."""
    settings = detector.settings(steps=steps)
    images = Golden.load(detector.bundle).image

    def detect(number: int) -> tuple[float, Mapping[str, float]]:
        image = images[number % len(images)][None]
        start = time.perf_counter()
        detection = detector.detect(image, ids=[number], settings=settings)
        elapsed = time.perf_counter() - start
        if not np.isfinite(detection.score).all():
            raise BackendError(f"detection {number + 1} gave a score that is no number")
        return elapsed, detection.timings

    for number in range(WARM_UP_RUNS):
        detect(number)
    began = time.perf_counter()
    timed: list[tuple[float, Mapping[str, float]]] = []
    for number in range(runs):
        timed.append(detect(number))
        if progress is not None:
            progress(number + 1, runs)
    seconds = time.perf_counter() - began
    milliseconds = [round(1000 * elapsed, 3) for elapsed, _ in timed]
    stages = {
        name: Distribution.of([round(1000 * parts[name], 3) for _, parts in timed])
        for name in timed[0][1]
    }
    return Latency(
        runs=runs,
        warm_up_runs=WARM_UP_RUNS,
        batch_size=1,
        settings=settings,
        network_calls=len(detector.sampler(settings).kept),
        seconds=round(seconds, 3),
        total=Distribution.of(milliseconds),
        stages=stages,
        total_ms=tuple(milliseconds),
    )


def _bundle_state(path: Path) -> BundleState:
    """What lies there, whether `Bundle.open` takes it or not."""
    source = path / MANIFEST_NAME
    if not source.is_file():
        return BundleState(None, None, None, {})
    try:
        manifest = read_json(Manifest, source)
    except (BerdiffError, UnicodeDecodeError, RecursionError):  # says so among the failures
        manifest = None
    found = record_files(path)
    expected = {} if manifest is None else manifest.files
    files = {
        name: _file_state(found.get(name), expected.get(name)) for name in sorted(found | expected)
    }
    return BundleState(
        name=None if manifest is None else manifest.name,
        precision=None if manifest is None else manifest.precision,
        digest=sha256_file(source),
        files=files,
    )


def _file_state(found: FileRecord | None, expected: FileRecord | None) -> FileState:
    if found is None:
        state = "missing"
    elif expected is None:
        state = "unlisted"
    else:
        state = "ok" if found == expected else "altered"
    return FileState(state, found, expected)


def _conditions(threads: int | None, load_before: float | None) -> Conditions:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return Conditions(threads, usable or 1, load_before, _load(), variables)


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # AttributeError: Windows
        return None
