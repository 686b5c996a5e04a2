"""What a run was to do and what it has done: the journal and the tables, wherever scans are run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .batches import Progress
from .components import Component
from .detector_record import DetectorRecord
from .errors import InputError
from .journal import Journal, Record
from .output_folder import check_apart, open_output, writing
from .preprocessing import Preprocessing
from .results import RunSummary, ScanResult, SliceResult, write_tables
from .run_plan import RunOptions, RunPlan
from .run_record import write_run_record
from .scan_work import Outcome, remove_results
from .scans import Found, ScanSource, find_scans
from .writers import OutputType, check_types, describe_results, planned_files

Slices = tuple[SliceResult, ...]
Components = tuple[Component, ...]


@dataclass(frozen=True)
class Assignment:
    """The scans of a run, and where their results go.

    Attributes
    ----------
    source : Path
        The input.
    output : Path
        The output folder; of a run of several parts, the part's own.
    found : Found
        The scans.
    owners : dict of str to str
        Every path that may be written below `output`, and the key of its scan.
    """

    source: Path
    output: Path
    found: Found
    owners: dict[str, str]

    @classmethod
    def make(
        cls, preprocessing: Preprocessing, source: Path, output: Path, options: RunOptions
    ) -> Assignment:
        """Find the scans of a run and refuse what could not be written.

        Raises
        ------
        InputError
            If there is no scan, two would be written to one place, an output type does not suit
            one, or input and output lie in one another.
        """
        found = find_for(preprocessing, source, options)
        for scan in found.sources:
            check_types(scan, options.output_types, preprocessing.modalities)
        owners = _owners(found, options.output_types)
        check_apart(source, output)
        if options.num_parts > 1:
            output = output / f"part-{options.part_id}-of-{options.num_parts}"
        return cls(source, output, found, owners)

    def open_output(self, resume: bool) -> Journal:
        """Take over the output folder; see `berdiff.runtime.output_folder.open_output`."""
        return open_output(self.output, resume)


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


class RunLedger:
    """Keeps what is done: in the journal at once, in the tables at the end.

    Readers' and writers' threads may call it.

    Parameters
    ----------
    detector : DetectorRecord
        What runs.
    plan : RunPlan
        The resolved options.
    assignment : Assignment
        The scans.
    journal : Journal
        Of the output folder.
    progress : callable, optional
        Called with (scans done, scans in all, slices done).
    """

    def __init__(
        self,
        detector: DetectorRecord,
        plan: RunPlan,
        assignment: Assignment,
        journal: Journal,
        progress: Progress | None = None,
    ) -> None:
        self.detector = detector
        self.plan = plan
        self.assignment = assignment
        self.journal = journal
        self.output = assignment.output
        self.results: dict[str, ScanResult] = {}
        self.reused = 0
        self.slices_done = 0
        self._sources = {scan.key: scan for scan in assignment.found.sources}
        self._progress = progress
        self._started = time.time()
        self._lock = threading.RLock()

    def finished(self, source: ScanSource) -> bool:
        """Whether an earlier run finished a scan and nothing it depends on or led to has changed.

        Its results then count as this run's.
        """
        record = self._trusted(source)
        if record is None:
            return False
        with self._lock, writing(self.output):
            self._describe(source.key)
            self.results[source.key] = record.result
            self.reused += 1
            self.report()
        return True

    def accept(self, outcome: Outcome) -> None:
        """Keep what came of a scan: a scan without a record is done again by the next run."""
        result, record = outcome.result, outcome.record
        with self._lock, writing(self.output):
            self._remove_stale(result.input, record.outputs if record else ())
            if record:
                self._describe(result.input)
                self.journal.add(record)
            self.results[result.input] = result
            self.report()

    def report(self, slices: int = 0) -> None:
        """Tell how far the run is, after so many slices more."""
        with self._lock:
            self.slices_done += slices
            if self._progress is not None:
                total = len(self.assignment.found.sources)
                self._progress(len(self.results), total, self.slices_done)

    def conclude(
        self, timings: Mapping[str, float], cluster: Mapping[str, object] | None = None
    ) -> RunSummary:
        """Write the tables and ``run.json``."""
        summary = RunSummary(
            self.output,
            tuple(self.results[scan.key] for scan in self.assignment.found.sources),
            self.reused,
            self.plan.warnings,
        )
        with writing(self.output):
            write_tables(self.output, map(self._whole, summary.results))
            write_run_record(
                self.output,
                detector=self.detector,
                plan=self.plan,
                summary=summary,
                source=self.assignment.source,
                ignored=self.assignment.found.ignored,
                started=self._started,
                timings=timings,
                cluster=cluster,
            )
        return summary

    def _describe(self, key: str) -> None:
        model = self.detector.bundle.manifest.name
        describe_results(self.output, self._sources[key], self.plan.options.output_types, model)

    def _trusted(self, source: ScanSource) -> Record | None:
        record = self.journal.records.get(source.key)
        if record is None or record.result.name != source.name:
            return None
        if (record.bundle, record.options) != (self.detector.bundle.digest, self.plan.digest):
            return None
        same = source.digest() == record.sha256
        return record if same and self.journal.intact(record) else None

    def _remove_stale(self, key: str, outputs: Iterable[str]) -> None:
        """Remove what an earlier run wrote for this scan and this one did not."""
        record = self.journal.records.get(key)
        stale = set(record.outputs if record else ()) - set(outputs)
        owners = self.assignment.owners
        remove_results(self.output, (name for name in stale if owners.get(name, key) == key))

    def _whole(self, result: ScanResult) -> tuple[ScanResult, Slices, Components]:
        """A scan with its parts, which the journal keeps: all at once may not fit into memory."""
        if result.status != "ok":
            return result, (), ()
        record = self.journal.records[result.input]
        return result, record.slices, record.components


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
