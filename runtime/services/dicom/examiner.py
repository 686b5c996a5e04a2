"""From the objects of a complete series to the objects that are sent."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...batches import in_batches, slices_of
from ...detector import Detector
from ...detector_record import DetectorRecord
from ...errors import InputError
from ...provenance import Provenance
from ...run_plan import RunPlan
from ...scan_work import Outcome as Worked
from ...scan_work import ScanWork
from ...scans.dicom_bytes import parse
from ...scans.dicom_source import dicom_sources
from ...scans.source import FileRef, ScanSource
from ...writers.dicom_capture import Headers, write_status
from .config import NodeConfig, ObjectKind
from .jobs import Job, Outcome
from .objects import sync_folder

# Of an object that is only referred to.
_REFERENCE = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]


@dataclass(frozen=True)
class Examined:
    """What came of a job.

    Attributes
    ----------
    outcome : str
        See `Outcome`.
    reason : str
        Why it is suspect, or nothing was computed.
    files : dict of str to Path
        Objects to be sent, by kind.
    """

    outcome: Outcome
    reason: str
    files: dict[ObjectKind, Path]


class Examiner:
    """Runs the detector over jobs, one at a time.

    Parameters
    ----------
    detector : Detector
        An opened, proven detector.
    plan : RunPlan
        The resolved options.
    config : NodeConfig
        Which objects are wanted.
    """

    def __init__(self, detector: Detector, plan: RunPlan, config: NodeConfig) -> None:
        self._detector = detector
        self._plan = plan
        self._config = config

    @property
    def context(self) -> str:
        """What results depend on besides the series: the model and its settings."""
        return f"{self._detector.bundle.digest} {self._plan.digest}"

    def examine(self, job: Job, stop: threading.Event) -> Examined | None:
        """Examine a series and write its results; None where it was stopped on the way.

        The same job gives the same objects, with the same UIDs.

        Raises
        ------
        BerdiffError
            If nothing can be written, or the detector fails.
        """
        shutil.rmtree(job.results, ignore_errors=True)
        (job.results / "dicom").mkdir(parents=True)
        work = ScanWork(self._detector, self._plan, job.results)
        found = self._found(job)
        examined = self._nothing(job, found) if isinstance(found, str) else None
        if examined is None and isinstance(found, ScanSource):
            examined = self._examine(work, job, found, stop)
        for folder in (job.results / "dicom", job.results, job.results.parent):
            sync_folder(folder)
        return examined

    def _found(self, job: Job) -> ScanSource | str:
        """The scan that the objects are, or why they are none."""
        preprocessing = self._detector.bundle.manifest.preprocessing
        sources, ignored, _ = dicom_sources(job.paths, preprocessing, forced=False)
        if len(sources) == 1:
            return sources[0].problem or sources[0]
        reasons = sorted({reason for _, reason in ignored})
        return "; ".join(reasons) or f"it holds {len(sources)} scans, expected one"

    def _examine(
        self, work: ScanWork, job: Job, source: ScanSource, stop: threading.Event
    ) -> Examined | None:
        if source.mismatch and self._config.series.other_contrast != "accept":
            if self._config.series.other_contrast == "ignore":
                return Examined("ignored", source.mismatch, {})
            return self._nothing(job, source.mismatch)
        scan = work.read(source)
        if isinstance(scan, Worked):
            return self._nothing(job, scan.result.reason)
        for batch in in_batches(slices_of([scan]), self._plan.options.batch_size):
            if stop.is_set():
                return None
            work.detect(batch)
        result = work.finish(scan).result
        if result.status == "failed":
            return self._nothing(job, result.reason, "failed")
        files = {kind: job.results / "dicom" / f"{source.name}_{kind}.dcm" for kind in self._kinds}
        outcome: Outcome = "suspect" if result.verdict == "suspect" else "ok"
        return Examined(outcome, result.verdict_reason, files)

    @property
    def _kinds(self) -> Sequence[ObjectKind]:
        return self._config.kinds

    def _nothing(self, job: Job, reason: str, outcome: Outcome = "rejected") -> Examined:
        """Say that nothing was computed, in an object that is sent like a result."""
        if "sc" not in self._kinds:
            return Examined(outcome, reason, {})
        path = job.results / "dicom" / "status_sc.dcm"
        write_status(path, _headers(job.paths), reason, self._made_by(job))
        return Examined(outcome, reason, {"sc": path})

    def _made_by(self, job: Job) -> Provenance:
        threshold = self._plan.threshold or (0.0, "otsu")
        return self._plan.provenance(DetectorRecord.of(self._detector), threshold, job.job)


def _headers(paths: Sequence[Path]) -> Headers:
    """Headers of objects that could not be read as a scan; the first one's holds the patient."""
    headers: list[Any] = []
    for path in paths:
        content = FileRef(path).read()
        try:
            headers.append(parse(content, header_only=True, tags=_REFERENCE if headers else None))
        except InputError:
            continue  # it was readable when it came
    if not headers:
        raise InputError("none of its objects can be read any more")
    return Headers(tuple(headers))
