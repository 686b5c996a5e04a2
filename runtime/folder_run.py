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

import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from .batches import Progress, Slice, detect_batch, in_batches
from .components import Component
from .detector import Detector
from .errors import BerdiffError, InputError
from .files import sha256_file
from .flow import Flow
from .journal import Journal, Record
from .output_folder import check_apart, check_name, open_output, writing
from .preprocessing import Preprocessing
from .results import RunSummary, ScanResult, SliceResult, write_json, write_parts, write_results
from .run_plan import RunOptions, RunPlan
from .run_record import write_run_record
from .scan_job import ScanJob
from .scans import Found, ScanSource, find_scans
from .writers import FOLDERS, OutputType, check_origin, check_types, planned_files, write_results_of


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
    source, output, options = Path(source), Path(output), options or RunOptions()
    plan = RunPlan.make(detector, options)
    preprocessing = detector.bundle.manifest.preprocessing
    found = find_for(preprocessing, source, options)
    for scan in found.sources:
        check_types(scan, options.output_types, preprocessing.modalities)
    owners = _owners(found, options.output_types)
    check_apart(source, output)
    if options.num_parts > 1:
        output = output / f"part-{options.part_id}-of-{options.num_parts}"
    with open_output(output, options.resume) as journal:
        return _Run(detector, plan, journal, source, found, owners, progress).execute()


def find_for(preprocessing: Preprocessing, source: Path, options: RunOptions) -> Found:
    """Find the scans of a run: its part of what lies in the input.

    Raises
    ------
    InputError
        If there is none.
    """
    found = find_scans(source, preprocessing, options.input_format)
    part = found.part(options.num_parts, options.part_id)
    if not part.sources:
        raise InputError(
            f"part {options.part_id} of {options.num_parts} is empty: {source} holds "
            f"{len(found.sources)} scans"
        )
    return part


class _Run:
    """One run: from what was found to results."""

    def __init__(
        self,
        detector: Detector,
        plan: RunPlan,
        journal: Journal,
        source: Path,
        found: Found,
        owners: dict[str, str],
        progress: Progress | None,
    ) -> None:
        self.detector = detector
        self.plan = plan
        self.journal = journal
        self.output = journal.folder
        self.source = source
        self.found = found
        self.owners = owners
        self.results: dict[str, ScanResult] = {}
        self.reused = 0
        self.slices_done = 0
        self.timings: defaultdict[str, float] = defaultdict(float)
        self.progress = progress
        self.lock = threading.RLock()  # what readers and writers share with the computing thread

    def execute(self) -> RunSummary:
        started = time.time()
        options = self.plan.options
        with Flow[ScanSource, ScanJob](options.workers, options.memory) as flow:
            for batch in in_batches(self._slices(flow), options.batch_size):
                for job in self._detect(batch):
                    if job.trouble:
                        self._fail(job.scan.source, job.trouble, job.seconds, job.scan.sha256)
                        flow.drop(job)
                    else:
                        flow.write(self._finish, job)
                self._report()
        self.timings["starved"] = flow.starved
        summary = RunSummary(
            self.output,
            tuple(self.results[scan.key] for scan in self.found.sources),
            self.reused,
            self.plan.warnings,
        )
        with writing(self.output):
            self._write_summary(summary, started)
        return summary

    def _slices(self, flow: Flow[ScanSource, ScanJob]) -> Iterator[Slice]:
        """Every slice to process, scan after scan; unusable scans are recorded and left out."""
        for job in flow.read(self.found.sources, self._take):
            for number in range(len(job.images)):
                yield job, number

    def _take(self, source: ScanSource) -> ScanJob | None:
        """Read a scan, unless it is finished already or cannot be used."""
        record = self._finished(source)
        if record is None:
            return self._read(source)
        with self.lock:
            self.results[source.key] = record.result
            self.reused += 1
            self._report()
        return None

    def _finished(self, source: ScanSource) -> Record | None:
        """The journal's record of a scan, if nothing it depends on or led to has changed."""
        record = self.journal.records.get(source.key)
        if record is None or record.result.name != source.name:
            return None
        if (record.bundle, record.options) != (self.detector.bundle.digest, self.plan.digest):
            return None
        same = source.digest() == record.sha256
        return record if same and self.journal.intact(record) else None

    def _read(self, source: ScanSource) -> ScanJob | None:
        start = time.perf_counter()
        manifest = self.detector.bundle.manifest
        try:
            check_name(planned_files(source, self.plan.options.output_types))
            job = ScanJob.read(source, manifest.preprocessing, self.plan.options.accept_contrast)
            check_origin(job, self.plan.options.output_types)
            count = len(job.scores)
            if job.scan.kind in ("volume", "frames") and count < self.plan.options.min_slices:
                raise InputError(
                    f"it has {count} slices, expected {self.plan.options.min_slices} at least "
                    "(--min-slices); is the series complete?"
                )
            job.look(manifest.input_statistics)
        except Exception as error:  # no scan ends the run for the others
            reason, seconds = _reason(error), time.perf_counter() - start
            self._fail(source, reason, seconds, source.digest(), rejected=True)
            return None
        job.seconds = time.perf_counter() - start
        self._spend("read", job.seconds)
        return job

    def _detect(self, batch: list[Slice]) -> list[ScanJob]:
        """Process a batch; return the scans whose last slice was in it."""
        start = time.perf_counter()
        detection = detect_batch(self.detector, batch, self.plan.settings, self.plan.options.seed)
        seconds = time.perf_counter() - start
        for stage, spent in detection.timings.items():
            self._spend(stage, spent)
        self.slices_done += len(batch)
        done = []
        for item, (job, number) in enumerate(batch):
            job.seconds += seconds / len(batch)
            job.accept(number, detection, item)
            if job.pending == 0:
                done.append(job)
        self._spend("restore", time.perf_counter() - start - seconds)
        return done

    def _finish(self, job: ScanJob) -> None:
        """Write what a scan led to, then record it: a scan without a record is done again."""
        start = time.perf_counter()
        source = job.scan.source
        threshold = job.threshold(self.plan.threshold)
        made_by = self.plan.provenance(self.detector, threshold, job.scan.sha256)
        types = self.plan.options.output_types
        try:
            with writing(self.output):
                mask = job.segment(threshold[0])
                components = job.components(mask)
                names = write_results_of(self.output, job, mask, made_by, types)
                outputs = {name: sha256_file(self.output / name) for name in names}
        except InputError as error:
            self._remove(planned_files(source, types))
            self._fail(source, str(error), job.seconds, job.scan.sha256)
            return
        seconds = time.perf_counter() - start
        job.seconds += seconds
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
        with self.lock, writing(self.output):
            self._remove_stale(source.key, outputs)
            self.journal.add(record)
            self.results[source.key] = result
            self._spend("write", seconds)
            self._report()

    def _fail(
        self, source: ScanSource, reason: str, seconds: float, sha256: str, rejected: bool = False
    ) -> None:
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
        with self.lock:
            self._remove_stale(source.key, {})
            self.results[source.key] = result
            self._report()

    def _remove_stale(self, key: str, outputs: Iterable[str]) -> None:
        """Remove what an earlier run wrote for this scan and this one did not."""
        record = self.journal.records.get(key)
        stale = set(record.outputs if record else ()) - set(outputs)
        self._remove(name for name in stale if self.owners.get(name, key) == key)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            parts = PurePosixPath(name).parts
            if parts[0] in FOLDERS and ".." not in parts:
                (self.output / name).unlink(missing_ok=True)

    def _write_summary(self, summary: RunSummary, started: float) -> None:
        records = [self.journal.records[result.input] for result in summary.ok]
        write_results(self.output, summary.results)
        write_parts(
            self.output, "slices.csv", SliceResult, [(r.result.name, r.slices) for r in records]
        )
        write_parts(
            self.output,
            "components.csv",
            Component,
            [(r.result.name, r.components) for r in records],
        )
        parts = {r.result.input: (r.slices, r.components) for r in records}
        write_json(self.output, [(r, *parts.get(r.input, ((), ()))) for r in summary.results])
        write_run_record(
            self.output,
            detector=self.detector,
            plan=self.plan,
            summary=summary,
            source=self.source,
            ignored=self.found.ignored,
            started=started,
            timings=dict(self.timings),
        )

    def _spend(self, stage: str, seconds: float) -> None:
        with self.lock:
            self.timings[stage] += seconds

    def _report(self) -> None:
        if self.progress is not None:
            with self.lock:
                self.progress(len(self.results), len(self.found.sources), self.slices_done)


def _owners(found: Found, types: tuple[OutputType, ...]) -> dict[str, str]:
    """Which scan each file below the output folder may be written for: one at most."""
    owners: dict[str, str] = {}
    for scan in found.sources:
        for file in planned_files(scan, types):
            other = owners.setdefault(file, scan.key)
            if other != scan.key:
                raise InputError(
                    f"results of {other} and {scan.key} would both be written to {file}; rename "
                    "one, or run them into different folders"
                )
    return owners


def _reason(error: Exception) -> str:
    """Why a scan failed. Of an error nobody foresaw the place: its text may hold names."""
    if isinstance(error, BerdiffError):
        return str(error)
    if isinstance(error, MemoryError):
        return "the scan does not fit into memory"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    return f"unexpected {type(error).__name__} ({place}); the file is damaged, or this is a defect"
