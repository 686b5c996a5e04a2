"""What a list of scans costs the machine that drives a run: time and memory, without a cluster.

`run_on_cluster` runs as it is, with its journal and its tables, on a stand-in for Ray whose workers
have finished what they are given before anybody asks. What is sent and returned goes through
pickle, as it does with Ray.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster_simulated import simulated_detector

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cluster.cluster_run import ClusterOptions, run_on_cluster
from berdiff.runtime.cluster.connection import Cluster
from berdiff.runtime.cluster.crew import Need
from berdiff.runtime.cluster.tally import Tally
from berdiff.runtime.cluster.worker import Group, Introduction, Report
from berdiff.runtime.detector import Detector
from berdiff.runtime.detector_record import DetectorRecord
from berdiff.runtime.journal import Journal, Record
from berdiff.runtime.results import ScanResult, SliceResult
from berdiff.runtime.run_ledger import Assignment
from berdiff.runtime.run_plan import RunOptions
from berdiff.runtime.scan_work import Outcome
from berdiff.runtime.scans import ScanSource, find_scans
from berdiff.runtime.writers import planned_files

SIZE = 32  # pixels of a side


@dataclass
class DriverFigures:
    """Of one run over so many scans; seconds in all, and resident MiB after each stage."""

    scans: int
    workers: int
    slices: int
    found_s: float = 0.0
    assigned_s: float = 0.0
    loop_s: float = 0.0
    loop_cpu_s: float = 0.0
    tables_s: float = 0.0
    append_s: float = 0.0
    read_s: float = 0.0
    mib_before: float = 0.0
    mib_found: float = 0.0
    mib_loop: float = 0.0
    mib_most: float = 0.0
    journal_mib: float = 0.0


class Answers:
    """In place of Ray: every call has been answered.

    Parameters
    ----------
    workers : int
        CPU cores of its only node.
    slices : int
        What workers find in each scan.
    at_once : bool
        All answers are seen at once, as from workers that finish together; or one after another.
    """

    exceptions = SimpleNamespace(RayActorError=ConnectionError, RayError=ConnectionError)

    def __init__(self, workers: int, slices: int, at_once: bool) -> None:
        self._slices, self._at_once = slices, at_once
        self._node = {
            "Alive": True,
            "NodeID": "0" * 56,
            "NodeManagerHostname": "here",
            "NodeManagerAddress": "",
            "Resources": {"CPU": float(workers)},
        }
        detector = DetectorRecord.of(simulated_detector(0.0, SIZE))
        self._said = Introduction("0" * 56, "here", detector=detector)
        # The clock and the CPU time when the first scan was given out.
        self.begun: tuple[float, float] | None = None

    def nodes(self) -> list[dict[str, Any]]:
        return [self._node]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        """Ray's decorator for actors."""
        return lambda kind: SimpleNamespace(
            options=lambda **more: SimpleNamespace(remote=lambda *given: self._actor())
        )

    def put(self, value: Any) -> Any:
        return value

    def kill(self, actor: Any) -> None: ...

    def wait(
        self, waiting: Sequence[Any], num_returns: int = 1, timeout: float = 0.0
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        introduced = isinstance(waiting[-1], Greeting)  # whoever is new is welcomed at once
        count = num_returns if self._at_once or introduced else 1
        return waiting[:count], waiting[count:]

    def get(self, call: Any) -> Introduction | Report:
        if isinstance(call, Greeting):
            return self._said
        outcomes = [_outcome(source, self._slices) for source in call.group.sources]
        report = Report(outcomes, slices=self._slices * len(outcomes), timings={"read": 0.0})
        return pickle.loads(pickle.dumps(report))  # type: ignore[no-any-return]

    def _actor(self) -> Any:
        return SimpleNamespace(
            introduce=SimpleNamespace(remote=Greeting),
            process=SimpleNamespace(remote=self._process),
        )

    def _process(self, plan: object, group: Group) -> Call:
        self.begun = self.begun or (time.perf_counter(), time.process_time())
        return Call(group)


class Greeting:
    """A reference to what a worker says of itself."""


class Call:
    """A reference to what a worker makes of a group."""

    def __init__(self, group: Group) -> None:
        self.group: Group = pickle.loads(pickle.dumps(group))


def _outcome(source: ScanSource, slices: int) -> Outcome:
    """What a worker would say of a scan: as long, and as full of strings, as the real thing."""
    digest = hashlib.sha256(source.key.encode()).hexdigest()
    result = ScanResult(
        source.name, source.key, "ok", format=source.format, verdict="ok", slices=slices,
        score=0.123456789, worst_slice=0, threshold=0.25, threshold_source="otsu",
        mask_pixels=123, full_scale=1.0, seconds=2.0, sha256=digest,
    )  # fmt: skip
    outputs = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in planned_files(source, ())
        if not name.startswith("volumes/")
    }
    parts = tuple(SliceResult(number, number + 0.125, number, None) for number in range(slices))
    return Outcome(result, Record(digest, "0" * 64, digest, outputs, result, parts))


@dataclass(frozen=True)
class OpenedNowhere:
    """What the stand-ins for workers do not open."""

    @property
    def bundle(self) -> Bundle:
        return simulated_detector(0.0, SIZE).bundle

    def share(self, cluster: Cluster) -> Callable[[], Detector]:
        return functools.partial(simulated_detector, 0.0, SIZE)


OPTIONS = RunOptions(batch_size=1)


def measure_driver(source: Path, output: Path, workers: int, slices: int) -> DriverFigures:
    """Run over a folder with stand-ins, in a process of its own: the memory is all its own."""
    preprocessing = OpenedNowhere().bundle.manifest.preprocessing
    figures = DriverFigures(0, workers, slices, mib_before=_resident_mib())
    start = time.perf_counter()
    found = find_scans(source, preprocessing)
    figures.found_s = time.perf_counter() - start
    figures.scans, figures.mib_found = len(found.sources), _resident_mib()
    del found
    start = time.perf_counter()
    Assignment.make(preprocessing, source, output, OPTIONS)
    figures.assigned_s = time.perf_counter() - start
    (figures.loop_s, figures.loop_cpu_s), figures.mib_loop, figures.tables_s = _run(
        source, output, Answers(workers, slices, at_once=True)
    )
    figures.mib_most = _resident_mib("VmHWM")
    figures.journal_mib = (output / "journal.jsonl").stat().st_size / 2**20
    start = time.perf_counter()
    with Journal(output) as journal:
        figures.read_s = time.perf_counter() - start
        assert len(journal.records) == figures.scans
        figures.append_s = _append(journal)
    return figures


def measure_one_by_one(source: Path, output: Path, workers: int) -> float:
    """CPU seconds of the loop per scan where workers answer one after another."""
    scans = len(find_scans(source, OpenedNowhere().bundle.manifest.preprocessing).sources)
    (_, cpu), _, _ = _run(source, output, Answers(workers, 1, at_once=False))
    return cpu / scans


def _run(source: Path, output: Path, ray: Any) -> tuple[tuple[float, float], float, float]:
    """Return seconds and CPU seconds of the loop, MiB at its end, and seconds of the tables."""
    ended: list[tuple[float, float, float]] = []

    def look(now: Tally) -> None:
        if now.done == now.total:
            ended.append((time.perf_counter(), time.process_time(), _resident_mib()))

    cluster = Cluster("stand-in", ray, owned=False)
    options = ClusterOptions(Need(0, 1), None, look)
    run_on_cluster(cluster, OpenedNowhere(), source, output, OPTIONS, options)
    (wall, cpu, mib), (began, cpu_began) = ended[0], ray.begun
    return (wall - began, cpu - cpu_began), mib, time.perf_counter() - wall


def _append(journal: Journal, times: int = 200) -> float:
    """Seconds for one more record in a journal of that size."""
    keys = list(journal.records)[:times]
    records = [journal.records[key] for key in keys]
    start = time.perf_counter()
    for record in records:
        journal.add(record)
    return (time.perf_counter() - start) / len(records)


def _resident_mib(what: str = "VmRSS") -> float:
    """Resident now; or at most so far (VmHWM), not counting what a parent had."""
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
    raise RuntimeError("this benchmark runs on Linux only")
