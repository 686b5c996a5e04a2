"""A threshold for the mask, from healthy images only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .anomaly import segment
from .batches import Progress, detect_slices, read_job
from .detector import Detector
from .errors import InputError
from .image_features import describe
from .intake import InputStatistics, fit, scored
from .manifest import SamplingDefaults, Threshold
from .scan_job import ScanJob
from .scans import find_scans

DEFAULT_RATE = 0.01


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it does to the healthy images it comes from.

    Attributes
    ----------
    threshold : Threshold
        For `Bundle.with_threshold`.
    scans, pixels : int
        Healthy scans, and foreground pixels in them.
    above : float
        Share of those pixels whose anomaly lies above the threshold.
    masked : int
        Scans that still get a mask: those with a component too large to be dropped as a speck.
    input_statistics : InputStatistics or None
        What these scans look like, where the bundle has no such statistics and their slices are
        enough of them.
    """

    threshold: Threshold
    scans: int
    pixels: int
    above: float
    masked: int
    input_statistics: InputStatistics | None = None


def threshold_for_rate(values: NDArray[np.floating], rate: float) -> float:
    """Lowest of the given values that at most a share `rate` of them exceeds.

    Parameters
    ----------
    values : ndarray
        Anomaly of healthy pixels, any shape, not empty.
    rate : float
        In [0, 1); 0 gives the maximum.
    """
    if not 0 <= rate < 1:
        raise InputError(f"the false-positive rate must lie in [0, 1), got {rate}")
    count = values.size
    rank = count - 1 - min(int(rate * count), count - 1)
    return float(np.partition(values, rank, axis=None)[rank])


def calibrate(
    detector: Detector,
    source: str | Path,
    rate: float = DEFAULT_RATE,
    settings: SamplingDefaults | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Calibration:
    """Choose the threshold that at most a share `rate` of healthy foreground pixels exceeds.

    Pixels of all scans are pooled, on the scans' own grids, before specks are dropped: the share
    of pixels that end up in a mask is smaller still.

    Parameters
    ----------
    detector : Detector
        An opened detector.
    source : str or Path
        A healthy scan, or a folder of them. Scans the model was not trained on: on its training
        images the error is smaller and the threshold comes out too low.
    rate : float
        Accepted share of false-positive pixels, in [0, 1).
    settings : SamplingDefaults, optional
        Settings of the loop, which the threshold is valid for; None takes the bundle's.
    seed, batch_size
        As for `detect_slices`.
    progress : callable, optional
        Called with (scans done, scans in all, slices done).

    Raises
    ------
    InputError
        If a scan cannot be used, or `rate` is out of range.
    """
    settings = settings or detector.settings()
    detector.sampler(settings)  # refuses what is out of range before anything is read
    threshold_for_rate(np.zeros(1), rate)
    source = Path(source)
    pre = detector.bundle.manifest.preprocessing
    sources = find_scans(source, pre).sources
    jobs = (read_job(scan, pre) for scan in sources)
    planes: list[list[tuple[NDArray[np.float32], NDArray[np.bool_]]]] = []
    looks: list[NDArray[np.float64]] = []
    for number, job in enumerate(_finished(detector, jobs, settings, seed, batch_size), start=1):
        planes.append([(job.anomaly[i], job.inside[i]) for i in job.positions])
        if detector.bundle.manifest.input_statistics is None:
            look = describe(job.images)
            looks.append(look[scored(look[:, 0])])
        if progress is not None:
            progress(number, len(sources), sum(map(len, planes)))
    values = np.concatenate([plane[inside] for scan in planes for plane, inside in scan])
    value = threshold_for_rate(values, rate)
    source_text = (
        f"calibrated on {len(sources)} healthy scans ({values.size} foreground pixels): at most "
        f"{rate:g} of the pixels lie above; seed {seed}"
    )
    return Calibration(
        threshold=Threshold(
            value=value,
            source=source_text,
            anomaly_map=settings.anomaly_map,
            noise_level=settings.noise_level,
            steps=settings.steps,
            flip_threshold=settings.flip_threshold,
            smoothing=settings.smoothing,
        ),
        scans=len(sources),
        pixels=int(values.size),
        above=float(np.count_nonzero(values > value) / values.size),
        masked=sum(
            any(segment(plane, value, inside).any() for plane, inside in scan) for scan in planes
        ),
        input_statistics=fit(np.concatenate(looks), pre.modalities) if looks else None,
    )


def _finished(
    detector: Detector,
    jobs: Iterator[ScanJob],
    settings: SamplingDefaults,
    seed: int,
    batch_size: int,
) -> Iterator[ScanJob]:
    for job, _, _, _ in detect_slices(detector, jobs, settings, seed, batch_size):
        if job.pending == 0:
            yield job
