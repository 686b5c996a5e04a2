"""One detector on one node: takes groups of scans, returns what came of each.

Ray runs `Worker` as an actor with several threads: while one group is at the networks, others are
read and written.
"""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from berdiff import __version__

from ..batches import in_batches, slices_of
from ..detector import Detector
from ..detector_record import DetectorRecord
from ..errors import BerdiffError, optional
from ..run_plan import RunPlan
from ..scan_job import ScanJob
from ..scan_work import Outcome, ScanWork
from ..scans import ScanSource, hide_names
from ..scans.source import FileRef
from .metrics import Metrics


@dataclass(frozen=True)
class Introduction:
    """What a worker says of itself before it gets work.

    Attributes
    ----------
    node : str
        Ray's identity of its node.
    host : str
        Name of that machine.
    version : str
        Its version of berdiff.
    detector : DetectorRecord
        What it has opened.
    problem : str
        Why it has opened nothing; empty where it has.
    """

    node: str
    host: str
    version: str = __version__
    detector: DetectorRecord | None = None
    problem: str = ""


@dataclass(frozen=True)
class Group:
    """Scans that a worker processes together.

    Attributes
    ----------
    sources : tuple of ScanSource
        The scans; several only where they are pictures, which share batches.
    stamps : dict of Path to (int, int)
        Size and time of change, in nanoseconds, of every file as the sender sees it: a worker
        reads a file that looks the same to it.
    contents : dict of Path to ObjectRef, or None
        Content of every file that can be read, for a worker that does not see them; None: it is to
        look itself.
    marker : Path
        A file in the output folder: a worker that sees it writes there, others send results back.
    """

    sources: tuple[ScanSource, ...]
    stamps: dict[Path, tuple[int, int]]
    contents: dict[Path, Any] | None
    marker: Path

    @classmethod
    def of(cls, sources: tuple[ScanSource, ...], marker: Path) -> Group:
        """Describe the files of scans as they are seen here; those that are gone have no stamp."""
        paths = {file.path for source in sources for file in source.files}
        stamps = {path: stamp for path in paths if (stamp := stamp_of(path)) is not None}
        return cls(sources, stamps, None, marker)


@dataclass(frozen=True)
class Report:
    """What a worker returns for a group.

    Attributes
    ----------
    outcomes : list of Outcome
        Of the scans that were finished; when asked to stop, or blind, not of all.
    files : dict of str to bytes
        Results by path below the output folder, where the worker could not write them there.
    blind : bool
        The worker does not see the files as the sender does: they have to be sent.
    slices : int
        Slices that went through the networks.
    busy : float
        Seconds for which they kept the networks busy.
    timings : dict of str to float
        Seconds by stage.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    blind: bool = False
    slices: int = 0
    busy: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)


class Worker:
    """A detector and the threads around it.

    Parameters
    ----------
    open_detector : callable
        Returns the opened detector.
    """

    def __init__(self, open_detector: Callable[[], Detector]) -> None:
        hide_names()
        self._open_detector = open_detector
        self._detector: Detector | None = None
        self._networks = threading.Lock()
        self._stopped = threading.Event()

    def introduce(self) -> Introduction:
        """Open the detector, and say where this is and what was opened."""
        node = optional("ray", "cluster").get_runtime_context().get_node_id()
        here = (node, platform.node())
        try:
            self._detector = self._open_detector()
            self._detector.warm_up()
        except BerdiffError as error:
            return Introduction(*here, problem=str(error))
        self._metrics = Metrics(self._detector)
        return Introduction(*here, detector=DetectorRecord.of(self._detector))

    def stop(self) -> None:
        """Finish what is computed, and compute nothing more."""
        self._stopped.set()

    def process(self, plan: RunPlan, group: Group) -> Report:
        """Process a group of scans.

        Raises
        ------
        BerdiffError
            If the networks fail, or results cannot be written.
        """
        if self._detector is None:
            raise BerdiffError("the worker has opened no detector")
        if group.contents is None and any(
            stamp_of(path) != stamp for path, stamp in group.stamps.items()
        ):
            return Report(blind=True)
        with _results(group.marker) as (output, shared), _inputs(group) as sources:
            work = ScanWork(self._detector, plan, output)
            outcomes, slices, busy = self._work(work, sources)
            files = {} if shared else _collect(output, outcomes)
            self._metrics.count(outcomes, slices, work.timings)
            return Report(outcomes, files, False, slices, busy, dict(work.timings))

    def _work(
        self, work: ScanWork, sources: tuple[ScanSource, ...]
    ) -> tuple[list[Outcome], int, float]:
        """Read, detect and write; return outcomes, slices and the seconds they took to detect."""
        read = [work.read(source) for source in sources if not self._stopped.is_set()]
        outcomes = [item for item in read if isinstance(item, Outcome)]
        jobs = [item for item in read if isinstance(item, ScanJob)]
        done: list[ScanJob] = []
        slices, busy = 0, 0.0
        for batch in in_batches(slices_of(jobs), work.plan.options.batch_size):
            with self._networks:
                if self._stopped.is_set():
                    break
                start = time.perf_counter()
                done += work.detect(batch)
                busy += time.perf_counter() - start
            slices += len(batch)
        outcomes += [work.finish(job) for job in done]
        return outcomes, slices, busy


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


@contextmanager
def _results(marker: Path) -> Iterator[tuple[Path, bool]]:
    """The folder to write to, and whether it is the run's own."""
    if marker.is_file():
        yield marker.parent, True
        return
    with tempfile.TemporaryDirectory(prefix="berdiff-results-") as folder:
        yield Path(folder), False


@contextmanager
def _inputs(group: Group) -> Iterator[tuple[ScanSource, ...]]:
    """The scans, as files that can be read here."""
    if group.contents is None:
        yield group.sources
        return
    ray = optional("ray", "cluster")
    with tempfile.TemporaryDirectory(prefix="berdiff-scans-") as name:
        moved = {}
        for path, reference in group.contents.items():
            # Writers look at the folders above a file: they stay what they were.
            absolute = Path(os.path.abspath(path))
            moved[path] = Path(name, *absolute.parts[1:])
            moved[path].parent.mkdir(parents=True, exist_ok=True)
            moved[path].write_bytes(ray.get(reference))
        yield tuple(_moved(source, moved) for source in group.sources)


def _moved(source: ScanSource, moved: Mapping[Path, Path]) -> ScanSource:
    # A file that its sender could not read stays where it was: the error then names it.
    files = (FileRef(moved.get(file.path, file.path), file.member) for file in source.files)
    return replace(source, files=tuple(files))


def _collect(output: Path, outcomes: list[Outcome]) -> dict[str, bytes]:
    names = [name for outcome in outcomes if outcome.record for name in outcome.record.outputs]
    return {name: (output / name).read_bytes() for name in names}


def misfit(said: Introduction, expected: DetectorRecord) -> str:
    """Why a worker must not work on a run, since its results could be others; or empty."""
    if said.problem or said.detector is None:
        return said.problem
    if said.version != __version__:
        return f"it has berdiff {said.version}, expected {__version__}"
    for name in ("backend", "device"):
        got, wanted = getattr(said.detector, name), getattr(expected, name)
        if got != wanted:
            return f"its {name} is '{got}', expected '{wanted}'"
    if said.detector.bundle.digest != expected.bundle.digest:
        return "it has opened another bundle"
    return ""
