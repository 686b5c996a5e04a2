"""What is done with a scan: read, detected, written; the same on one machine and on many."""

from __future__ import annotations

import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .batches import Slice, detect_batch
from .detector import Detector
from .detector_record import DetectorRecord
from .errors import BerdiffError, InputError
from .files import sha256_file
from .journal import Record
from .output_folder import check_name, writing
from .results import ScanResult
from .run_plan import RunPlan
from .scan_job import ScanJob
from .scans import ScanSource
from .writers import FOLDERS, check_origin, planned_files, write_results_of


@dataclass(frozen=True)
class Outcome:
    """What came of a scan.

    Attributes
    ----------
    result : ScanResult
        Its row of ``results.csv``.
    record : Record or None
        What the journal keeps of it; None where it failed.
    """

    result: ScanResult
    record: Record | None = None


class ScanWork:
    """Takes scans from their files to their results.

    Several threads may read and write while one detects.

    Parameters
    ----------
    detector : Detector
        An opened detector.
    plan : RunPlan
        The resolved options.
    output : Path
        Where results are written.

    Attributes
    ----------
    timings : dict of str to float
        Seconds spent so far, by stage.
    """

    def __init__(self, detector: Detector, plan: RunPlan, output: Path) -> None:
        self.detector = detector
        self.plan = plan
        self.output = output
        self.made_by = DetectorRecord.of(detector)
        self.timings: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def read(self, source: ScanSource) -> ScanJob | Outcome:
        """Read a scan, or say why it cannot be used: no scan ends the run for the others."""
        start = time.perf_counter()
        manifest, options = self.detector.bundle.manifest, self.plan.options
        try:
            check_name(planned_files(source, options.output_types))
            job = ScanJob.read(source, manifest.preprocessing, options.accept_contrast)
            check_origin(job, options.output_types)
            count = len(job.scores)
            if job.scan.kind in ("volume", "frames") and count < options.min_slices:
                raise InputError(
                    f"it has {count} slices, expected {options.min_slices} at least "
                    "(--min-slices); is the series complete?"
                )
            job.look(manifest.input_statistics, job.scan.doubts)
        except Exception as error:
            reason, seconds = reason_of(error), time.perf_counter() - start
            return failure(source, reason, seconds, source.digest(), rejected=True)
        job.seconds = time.perf_counter() - start
        self._spend("read", job.seconds)
        return job

    def detect(self, batch: list[Slice]) -> list[ScanJob]:
        """Process a batch; return the scans whose last slice was in it."""
        start = time.perf_counter()
        detection = detect_batch(self.detector, batch, self.plan.settings, self.plan.options.seed)
        seconds = time.perf_counter() - start
        for stage, spent in detection.timings.items():
            self._spend(stage, spent)
        done = []
        for item, (job, number) in enumerate(batch):
            job.seconds += seconds / len(batch)
            job.accept(number, detection, item)
            if job.pending == 0:
                done.append(job)
        self._spend("restore", time.perf_counter() - start - seconds)
        return done

    def finish(self, job: ScanJob) -> Outcome:
        """Write what a scan led to."""
        source = job.scan.source
        if job.trouble:
            return failure(source, job.trouble, job.seconds, job.scan.sha256)
        start = time.perf_counter()
        threshold = job.threshold(self.plan.threshold)
        made_by = self.plan.provenance(self.made_by, threshold, job.scan.sha256)
        types = self.plan.options.output_types
        try:
            with writing(self.output):
                mask = job.segment(threshold[0])
                components = job.components(mask)
                names = write_results_of(self.output, job, mask, made_by, types)
                outputs = {name: sha256_file(self.output / name) for name in names}
        except InputError as error:
            remove_results(self.output, planned_files(source, types))
            return failure(source, str(error), job.seconds, job.scan.sha256)
        seconds = time.perf_counter() - start
        job.seconds += seconds
        self._spend("write", seconds)
        result = job.result(mask, threshold, components)
        record = Record(
            sha256=job.scan.sha256,
            bundle=self.detector.bundle.digest,
            options=self.plan.digest,
            outputs=outputs,
            result=result,
            slices=job.slice_results(mask),
            components=components,
        )
        return Outcome(result, record)

    def _spend(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.timings[stage] += seconds


def failure(
    source: ScanSource, reason: str, seconds: float = 0.0, sha256: str = "", rejected: bool = False
) -> Outcome:
    """Say that a scan has failed; rejected where that says something about the input."""
    result = ScanResult(
        name=source.name,
        input=source.key,
        format=source.format,
        status="failed",
        reason=reason,
        verdict="rejected" if rejected else "",
        verdict_reason=reason if rejected else "",
        seconds=round(seconds, 3),
        sha256=sha256,
    )
    return Outcome(result)


def remove_results(output: Path, names: Iterable[str]) -> None:
    """Remove files of results, and no other, below an output folder."""
    for name in names:
        parts = PurePosixPath(name).parts
        if parts[0] in FOLDERS and ".." not in parts:
            (output / name).unlink(missing_ok=True)


def reason_of(error: Exception) -> str:
    """Why a scan failed. Of an error nobody foresaw the place: its text may hold names."""
    if isinstance(error, BerdiffError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the scan does not fit into memory"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    return f"unexpected {type(error).__name__} ({place}); the file is damaged, or this is a defect"
