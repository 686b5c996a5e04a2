"""Inference over a folder of scans: batches across scans, results per scan, resumable.

Layout of an output folder::

    maps/<name>_{anomaly,flips,mask,reconstruction}.{nii.gz,png}
    bids/  dicom/  slices/   other output types, where they were asked for
    overlays/<name>.png      the most anomalous slice of each scan
    volumes/<name>.png       of a volume, three planes through the worst place
    results.csv  slices.csv  components.csv  results.json
                             what was found; there once the run has ended
    run.json                 versions, device, options, bundle digest, timings, counts
    journal.jsonl            one line per finished scan, with the digests of what was read and
                             written: what ``--continue`` trusts
"""

from __future__ import annotations

from pathlib import Path

from .batches import Progress, in_batches, slices_of
from .detector import Detector
from .detector_record import DetectorRecord
from .flow import Flow
from .results import RunSummary
from .run_ledger import Assignment, RunLedger
from .run_plan import RunOptions, RunPlan
from .scan_job import ScanJob
from .scan_work import Outcome, ScanWork
from .scans import ScanSource


def run_folder(
    detector: Detector,
    source: str | Path,
    output: str | Path,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> RunSummary:
    """Run a detector over a folder of scans, or over one file.

    Parameters
    ----------
    detector : Detector
        An opened detector.
    source : str or Path
        A scan, or a folder searched with its subfolders. Never written to.
    output : str or Path
        Folder for the results; new or empty unless ``options.resume``. Of several parts, each has
        a folder inside it: ``part-0-of-4``.
    options : RunOptions, optional
        Options of the run.
    progress : callable, optional
        Called with (scans done, scans in all, slices done) after each batch and scan.

    Returns
    -------
    RunSummary
        Every scan found, those that failed with their reason.

    Raises
    ------
    InputError
        If there is no scan, or an option is out of range.
    BerdiffError
        If the output folder is in use, not empty, or cannot be written.
    """
    options = options or RunOptions()
    record = DetectorRecord.of(detector)
    plan = RunPlan.make(record, options)
    preprocessing = detector.bundle.manifest.preprocessing
    assignment = Assignment.make(preprocessing, Path(source), Path(output), options)
    with assignment.open_output(options.resume) as journal:
        ledger = RunLedger(record, plan, assignment, journal, progress)
        return _Run(ScanWork(detector, plan, assignment.output), ledger).execute()


class _Run:
    """One run in this process: readers and writers beside the networks."""

    def __init__(self, work: ScanWork, ledger: RunLedger) -> None:
        self.work = work
        self.ledger = ledger

    def execute(self) -> RunSummary:
        options = self.work.plan.options
        with Flow[ScanSource, ScanJob](options.workers, options.memory) as flow:
            jobs = flow.read(self.ledger.assignment.found.sources, self._take)
            for batch in in_batches(slices_of(jobs), options.batch_size):
                for job in self.work.detect(batch):
                    flow.write(self._finish, job)
                self.ledger.report(len(batch))
        return self.ledger.conclude(self.work.timings | {"starved": flow.starved})

    def _take(self, source: ScanSource) -> ScanJob | None:
        """Read a scan; None where it is finished already, or cannot be used, which is recorded."""
        if self.ledger.finished(source):
            return None
        read = self.work.read(source)
        if isinstance(read, Outcome):
            self.ledger.accept(read)
            return None
        return read

    def _finish(self, job: ScanJob) -> None:
        self.ledger.accept(self.work.finish(job))
