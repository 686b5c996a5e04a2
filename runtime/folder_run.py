"""Inference over a folder of scans: batches across scans, results per scan, resumable.

Layout of an output folder::

    maps/<name>_{anomaly,flips,mask,reconstruction}.{nii.gz,png}
    overlays/<name>.png      the most anomalous slice of each scan
    results.csv  slices.csv  one row per scan, one per slice; there once the run has ended
    run.json                 versions, device, options, bundle digest, timings, counts
    journal.jsonl            one line per finished scan, with the digests of what was read and
                             written: what ``--continue`` trusts
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .batches import Progress, Slice, detect_batch, in_batches
from .detector import Detector
from .errors import BerdiffError, InputError
from .files import sha256_file
from .journal import JOURNAL_NAME, Journal, Record
from .results import RunSummary, ScanResult, write_results, write_slices
from .run_plan import RunOptions, RunPlan
from .run_record import write_run_record
from .scan_job import ScanJob, output_files
from .scans import find_scans, result_suffix, scan_names

RESULT_FILES = ("results.csv", "slices.csv", "run.json", "report.html")

_LONGEST_NAME = 240  # bytes; file systems allow 255, and temporary names need a few


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
        Folder for the results; new or empty unless ``options.resume``.
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
    source, output, options = Path(source), Path(output), options or RunOptions()
    plan = RunPlan.make(detector, options)
    paths = find_scans(source)
    _check_folders(source, output)
    with _open_output(output, options.resume) as journal:
        return _Run(detector, plan, journal, source, paths, progress).execute()


class _Run:
    """One run: from paths to results."""

    def __init__(
        self,
        detector: Detector,
        plan: RunPlan,
        journal: Journal,
        source: Path,
        paths: list[Path],
        progress: Progress | None,
    ) -> None:
        self.detector = detector
        self.plan = plan
        self.journal = journal
        self.output = journal.folder
        self.source = source
        self.paths = paths
        self.names = scan_names(paths, source)
        self.owners = {
            file: self._relative(path)
            for path, name in self.names.items()
            for file in output_files(name, result_suffix(path))
        }
        self.results: dict[Path, ScanResult] = {}
        self.reused = 0
        self.slices_done = 0
        self.timings: defaultdict[str, float] = defaultdict(float)
        self.progress = progress

    def execute(self) -> RunSummary:
        started = time.time()
        for batch in in_batches(self._slices(), self.plan.options.batch_size):
            self._detect(batch)
            self._report()
        summary = RunSummary(
            self.output,
            tuple(self.results[path] for path in self.paths),
            self.reused,
            self.plan.warnings,
        )
        with _writing(self.output):
            self._write_summary(summary, started)
        return summary

    def _slices(self) -> Iterator[Slice]:
        """Every slice to process, scan after scan; unusable scans are recorded and left out."""
        for path in self.paths:
            record = self._finished(path)
            if record is not None:
                self.results[path] = record.result
                self.reused += 1
                self._report()
                continue
            job = self._read(path)
            if job is not None:
                for number in range(len(job.images)):
                    yield job, number

    def _finished(self, path: Path) -> Record | None:
        """The journal's record of a scan, if nothing it depends on or led to has changed."""
        record = self.journal.records.get(self._relative(path))
        if record is None or record.result.name != self.names[path]:
            return None
        if (record.bundle, record.options) != (self.detector.bundle.digest, self.plan.digest):
            return None
        same = _digest(path) == record.sha256
        return record if same and self.journal.intact(record) else None

    def _read(self, path: Path) -> ScanJob | None:
        start = time.perf_counter()
        try:
            _check_name(self.names[path])
            job = ScanJob.read(path, self.names[path], self.detector.bundle.manifest.preprocessing)
        except InputError as error:
            self._fail(path, str(error), time.perf_counter() - start, _digest(path))
            return None
        job.seconds = time.perf_counter() - start
        self.timings["read"] += job.seconds
        return job

    def _detect(self, batch: list[Slice]) -> None:
        """Process a batch, and finish every scan whose last slice was in it."""
        start = time.perf_counter()
        detection = detect_batch(self.detector, batch, self.plan.settings, self.plan.options.seed)
        seconds = time.perf_counter() - start
        for stage, spent in detection.timings.items():
            self.timings[stage] += spent
        self.slices_done += len(batch)
        for item, (job, number) in enumerate(batch):
            job.seconds += seconds / len(batch)
            job.accept(number, detection, item)
            if job.pending == 0 and job.trouble:
                self._fail(job.scan.path, job.trouble, job.seconds, job.scan.sha256)
            elif job.pending == 0:
                with _writing(self.output):
                    self._finish(job)

    def _finish(self, job: ScanJob) -> None:
        """Write what a scan led to, then record it: a scan without a record is done again."""
        path, start = job.scan.path, time.perf_counter()
        relative = self._relative(path)
        threshold = job.threshold(self.plan.threshold)
        mask = job.segment(threshold[0])
        outputs, full_scale = job.write(self.output, mask, threshold[0])
        seconds = time.perf_counter() - start
        self.timings["write"] += seconds
        job.seconds += seconds
        result = job.result(relative, mask, threshold, full_scale)
        self._remove_stale(relative, outputs)
        self.journal.add(
            Record(
                sha256=job.scan.sha256,
                bundle=self.detector.bundle.digest,
                options=self.plan.digest,
                outputs=outputs,
                result=result,
                slices=job.slice_results(mask),
            )
        )
        self.results[path] = result
        self._report()

    def _fail(self, path: Path, reason: str, seconds: float, sha256: str) -> None:
        self._remove_stale(self._relative(path), {})
        self.results[path] = ScanResult(
            name=self.names[path],
            input=self._relative(path),
            status="failed",
            reason=reason,
            seconds=round(seconds, 3),
            sha256=sha256,
        )
        self._report()

    def _remove_stale(self, relative: str, outputs: Iterable[str]) -> None:
        """Remove what an earlier run wrote for this scan and this one did not."""
        record = self.journal.records.get(relative)
        for name in set(record.outputs if record else ()) - set(outputs):
            parts = PurePosixPath(name).parts
            below = parts[:1] in (("maps",), ("overlays",)) and ".." not in parts
            if below and self.owners.get(name, relative) == relative:
                (self.output / name).unlink(missing_ok=True)

    def _write_summary(self, summary: RunSummary, started: float) -> None:
        write_results(self.output, summary.results)
        write_slices(
            self.output,
            [(result.name, self.journal.records[result.input].slices) for result in summary.ok],
        )
        write_run_record(
            self.output,
            detector=self.detector,
            plan=self.plan,
            summary=summary,
            source=self.source,
            started=started,
            timings=dict(self.timings),
        )

    def _relative(self, path: Path) -> str:
        return path.name if path == self.source else path.relative_to(self.source).as_posix()

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(len(self.results), len(self.paths), self.slices_done)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn what the system says about an output folder into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise BerdiffError(
            f"cannot write to {folder}: {error.strerror or error}; what is finished is kept, and "
            "the same command with --continue goes on from there"
        ) from error


def _digest(path: Path) -> str:
    """SHA-256 of an input; empty where it cannot be read."""
    try:
        return sha256_file(path) if path.is_file() else ""
    except OSError:
        return ""


def _check_folders(source: Path, output: Path) -> None:
    """Refuse folders inside one another: results must not be found, or written over, as input."""
    read, written = source.resolve(), output.resolve()
    overlap = read == written or written in read.parents
    if overlap or (source.is_dir() and read in written.parents):
        raise InputError(
            f"input {source} and output {output} lie in one another; choose an output folder "
            "outside the input"
        )


def _check_name(name: str) -> None:
    longest = max(
        len(os.fsencode(PurePosixPath(file).name)) for file in output_files(name, ".nii.gz")
    )
    if longest > _LONGEST_NAME:
        raise InputError(f"its name is too long: results would need names of {longest} bytes")


def _open_output(output: Path, resume: bool) -> Journal:
    """Create or take over an output folder and lock it."""
    if output.exists() and not output.is_dir():
        raise BerdiffError(f"{output} is a file; choose a folder for the results")
    begun = (output / JOURNAL_NAME).exists()
    if not begun and output.exists() and any(output.iterdir()):
        raise BerdiffError(
            f"{output} is not empty and holds no results of berdiff infer; choose a new folder"
        )
    with _writing(output):
        output.mkdir(parents=True, exist_ok=True)
        journal = Journal(output)
        try:
            if resume:
                _clear_unfinished(output)
            elif journal.records or len(list(output.iterdir())) > 1:
                raise BerdiffError(
                    f"{output} holds results already; add --continue to go on with that run, or "
                    "choose a new folder"
                )
        except BaseException:
            journal.close()
            raise
    return journal


def _clear_unfinished(output: Path) -> None:
    """Remove half-written files of a killed run, and summaries that will be written anew."""
    for name in RESULT_FILES:
        (output / name).unlink(missing_ok=True)
    for part in output.rglob(".part-*"):
        part.unlink(missing_ok=True)
