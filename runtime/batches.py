"""Slices of many scans through a detector, in batches that reach across scans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .detector import Detection, Detector
from .errors import BerdiffError, InputError
from .manifest import SamplingDefaults
from .preprocessing import Preprocessing
from .scan_job import ScanJob
from .scans import ScanSource

Progress = Callable[[int, int, int], None]

# A scan and which of its images.
Slice = tuple[ScanJob, int]


def read_job(source: ScanSource, preprocessing: Preprocessing) -> ScanJob:
    """Read a scan that must be usable; an error names it.

    Raises
    ------
    InputError
        If the scan cannot be used.
    """
    try:
        return ScanJob.read(source, preprocessing)
    except InputError as error:
        raise InputError(f"{source.key}: {error}") from error


def slices_of(jobs: Iterable[ScanJob]) -> Iterator[Slice]:
    """Every slice of every scan, scan after scan; scans are taken as they are needed."""
    return ((job, number) for job in jobs for number in range(len(job.images)))


def in_batches(slices: Iterator[Slice], size: int) -> Iterator[list[Slice]]:
    """Group slices as they come, `size` at a time; the last group may be smaller."""
    while batch := list(itertools.islice(slices, size)):
        yield batch


def detect_batch(
    detector: Detector, batch: list[Slice], settings: SamplingDefaults, seed: int
) -> Detection:
    """Detect slices of any scans together; each draws the noise of its own identity."""
    return detector.detect(
        np.stack([job.images[number] for job, number in batch]),
        np.array([job.image_id(number) for job, number in batch], dtype=np.uint64),
        seed=seed,
        settings=settings,
    )


def detect_slices(
    detector: Detector,
    jobs: Iterable[ScanJob],
    settings: SamplingDefaults,
    seed: int = 0,
    batch_size: int = 8,
) -> Iterator[tuple[ScanJob, int, Detection, int]]:
    """Detect every slice that shows something, in batches that reach across scans.

    Empty slices are in no job's images and take no place in a batch. The maps of a scan are in its
    job, on the scan's own grid, once its last slice was yielded.

    Parameters
    ----------
    detector : Detector
        An opened detector.
    jobs : iterable of ScanJob
        Read one after another, as they are needed.
    settings : SamplingDefaults
        Settings of the loop.
    seed : int
        64-bit seed.
    batch_size : int
        Slices per batch; changes no result.

    Yields
    ------
    job : ScanJob
        The scan.
    number : int
        Which of ``job.images``.
    detection : Detection
        Result of the batch, on the model's grid.
    item : int
        Which entry of `detection`.

    Raises
    ------
    BerdiffError
        If the model answers with NaN or infinity.
    """
    if batch_size < 1:
        raise InputError(f"batch size must be 1 or more, got {batch_size}")
    for batch in in_batches(slices_of(jobs), batch_size):
        detection = detect_batch(detector, batch, settings, seed)
        for item, (job, number) in enumerate(batch):
            job.accept(number, detection, item)
            if job.trouble:
                raise BerdiffError(f"{job.scan.source.key}: {job.trouble}")
            yield job, number, detection, item
