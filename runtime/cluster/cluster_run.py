"""A run over a folder of scans on many machines: what `run_folder` does, with Ray's actors.

The machine that starts the run finds the scans, keeps the journal and gives out work; workers read,
detect and write. Since what a scan gets does not depend on where, when and beside what it is
processed, the results are those of a run on one machine, byte for byte, and either can continue
the other.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..bundle import Bundle
from ..detector import Detector
from ..detector_record import DetectorRecord
from ..errors import BackendError, BerdiffError, InputError
from ..files import write_atomic
from ..output_folder import clear_parts, writing
from ..results import RunSummary
from ..run_ledger import Assignment, RunLedger
from ..run_plan import RunOptions, RunPlan
from ..scan_work import failure
from .bundles import share
from .connection import Cluster
from .crew import Crew, Member, Need
from .ration import Ration
from .tally import Tally
from .worker import Group, Report

_WAIT = 1.0  # seconds for which nothing may happen before progress is told
_GRACE = 120.0  # seconds in which workers that were asked to stop finish their batch
# A scan that was with so many workers when they died, the last time alone, is not tried again.
FATAL_DEATHS = 2
# So many failures of networks, and not one success, end the run.
_HOPELESS = 4


class DetectorSource(Protocol):
    """What workers open, wherever they are."""

    @property
    def bundle(self) -> Bundle:
        """The bundle, opened on the machine that starts the run."""
        ...

    def share(self, cluster: Cluster) -> Callable[[], Detector]:
        """Return what a worker calls; it goes there by pickle."""
        ...


@dataclass(frozen=True)
class BundleEverywhere:
    """A bundle that every worker opens with the same backend on the same kind of device.

    Attributes
    ----------
    bundle : Bundle
        Opened, that is, checked.
    backend, device, threads
        As `Detector.open` takes them.
    """

    bundle: Bundle
    backend: str = "onnxruntime"
    device: str = "cpu"
    threads: int | None = None

    def share(self, cluster: Cluster) -> Callable[[], Detector]:
        """Make the bundle available to the nodes of a cluster."""
        shared, engine = share(self.bundle, cluster), (self.backend, self.device, self.threads)
        return lambda: Detector.open(shared.open(), *engine)


@dataclass(frozen=True)
class ClusterOptions:
    """How many detectors a run has, and what each takes.

    Attributes
    ----------
    need : Need
        What a detector takes of its node.
    detectors : int or None
        How many there are to be, even if the cluster has no room for all of them yet; None: as
        many as there is room for, and more when nodes join.
    progress : callable, optional
        Called with the `Tally` about once a second.
    """

    need: Need
    detectors: int | None = None
    progress: Callable[[Tally], None] | None = None


def run_on_cluster(
    cluster: Cluster,
    detector: DetectorSource,
    source: str | Path,
    output: str | Path,
    options: RunOptions | None = None,
    where: ClusterOptions | None = None,
) -> tuple[RunSummary, Tally]:
    """Run a detector over a folder of scans on the nodes of a cluster.

    A worker that sees the input's files reads them itself, and one that sees the output folder
    writes there; others are sent the files and send back the results. On a worker lie at most
    ``options.workers + 1`` groups of scans: a volume each, or ``options.batch_size`` pictures.

    Parameters
    ----------
    cluster : Cluster
        Connected.
    detector : DetectorSource
        What workers open.
    source, output, options
        As `run_folder` has them; ``options.memory`` is not used.
    where : ClusterOptions, optional
        Default: a detector for every CPU core.

    Returns
    -------
    RunSummary
        Every scan found, those that failed with their reason; among them scans that killed their
        workers twice.
    Tally
        What ran where, and what was lost.

    Raises
    ------
    InputError
        If there is no scan, or an option is out of range.
    BerdiffError
        If the output folder is in use, not empty, or cannot be written; if no node can run a
        detector.
    """
    options, where = options or RunOptions(), where or ClusterOptions(Need(0, 1))
    options.settings(detector.bundle)
    preprocessing = detector.bundle.manifest.preprocessing
    # Workers have working directories of their own.
    paths = Path(source).absolute(), Path(output).absolute()
    assignment = Assignment.make(preprocessing, *paths, options)
    depth = options.workers + 1
    crew = Crew(cluster, detector.share(cluster), where.need, where.detectors, depth)
    with contextlib.closing(crew):
        tally = Tally(cluster.address, len(assignment.found.sources))
        first = _first_worker(crew, tally, where.progress)
        record = DetectorRecord(detector.bundle, first.backend, first.device, first.engine)
        plan = RunPlan.make(record, options)
        with assignment.open_output(options.resume) as journal, _marker(assignment) as marker:
            ledger = RunLedger(record, plan, assignment, journal)
            run = _ClusterRun(crew, ledger, plan, marker, tally, where.progress)
            run.execute()
            return ledger.conclude(run.timings, tally.record()), tally


def _first_worker(
    crew: Crew, tally: Tally, progress: Callable[[Tally], None] | None
) -> DetectorRecord:
    """Wait for a worker, whose detector tells what the others' have to be."""
    while True:
        crew.fill(tally.total)
        ready, _ = crew.cluster.ray.wait(crew.greetings, timeout=_WAIT)
        for greeting in ready:
            member = crew.welcome(greeting, None)
            if member is not None and member.said is not None and member.said.detector:
                return member.said.detector
        if progress is not None:
            progress(tally)


@contextlib.contextmanager
def _marker(assignment: Assignment) -> Iterator[Path]:
    """A file that shows a worker that it sees this very output folder."""
    path = assignment.output / f".part-cluster-{secrets.token_hex(8)}"
    with writing(assignment.output):
        path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class _ClusterRun:
    """One run: gives out groups of scans and takes in what comes back."""

    def __init__(
        self,
        crew: Crew,
        ledger: RunLedger,
        plan: RunPlan,
        marker: Path,
        tally: Tally,
        progress: Callable[[Tally], None] | None,
    ) -> None:
        self.crew, self.ledger, self.tally = crew, ledger, tally
        self.ray = crew.cluster.ray
        self.plan = self.ray.put(plan)
        self.ration = Ration(ledger, plan.options, marker)
        self.timings: defaultdict[str, float] = defaultdict(float)
        self.progress = progress
        self.fruitless = 0

    def execute(self) -> None:
        """Work until no scan is left."""
        try:
            for member in self.crew.members:
                self.tally.joined(member)
            while self.ration.left or any(member.groups for member in self.crew.members):
                self.crew.fill(self.ration.left)
                self._give_out()
                self._take_in(_WAIT)
                self._tell()
            self.tally.ended()
            if self.tally.lost_workers:
                with writing(self.ledger.output):
                    clear_parts(self.ledger.output)  # what those were writing
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            self.ration.close()

    def _tell(self) -> None:
        self.tally.done, self.tally.reused = len(self.ledger.results), self.ledger.reused
        if self.progress is not None:
            self.progress(self.tally)

    def _give_out(self) -> None:
        """Give every worker what it has room for; scans under suspicion to one that is empty."""
        for level in range(self.crew.depth):
            # Towards the end nobody gets more than one, so that none waits behind another.
            if level and self.ration.left <= self.crew.size:
                return
            for member in self.crew.members:
                if len(member.groups) == level and not member.alone:
                    self._give(member)

    def _give(self, member: Member) -> None:
        if not member.groups:
            suspect = self.ration.suspect()
            if suspect is not None:
                member.alone = True
                self._send(member, suspect)
                return
        elif self.ration.suspects and min(len(m.groups) for m in self.crew.members) > 0:
            return  # let somebody become empty
        group = self.ration.group(self.crew.size)
        if group is not None:
            self._send(member, group)

    def _send(self, member: Member, group: Group) -> None:
        if member.blind:
            group = self.ration.with_contents(group, self.ray.put)
        member.groups[member.actor.process.remote(self.plan, group)] = group

    def _take_in(self, seconds: float) -> None:
        """Wait for something to come back, and take in all that has."""
        owners = {ref: member for member in self.crew.members for ref in member.groups}
        waiting = [*owners, *self.crew.greetings]
        if not waiting:
            time.sleep(seconds)
            return
        ready, _ = self.ray.wait(waiting, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for reference in ready:
            if reference not in owners:
                member = self.crew.welcome(reference, self.ledger.detector)
                if member is not None:
                    self.tally.joined(member)
            elif reference in owners[reference].groups:  # not given up meanwhile
                self._receive(owners[reference], reference)

    def _receive(self, member: Member, reference: Any) -> None:
        group = member.groups[reference]
        try:
            report = self.ray.get(reference)
        except self.ray.exceptions.RayActorError:
            self._lost(member)
            return
        except BackendError as error:
            self._failed(member, reference, error)
            return
        del member.groups[reference]
        member.alone = False
        self._accept(member, group, report)

    def _accept(self, member: Member, group: Group, report: Report) -> None:
        """Keep what a worker has finished; what it has not is given out again."""
        member.blind = member.blind or report.blind
        self._write(report)
        for outcome in report.outcomes:
            self.ledger.accept(outcome)
        finished = {outcome.result.input for outcome in report.outcomes}
        self.ration.again([source for source in group.sources if source.key not in finished])
        for stage, seconds in report.timings.items():
            self.timings[stage] += seconds
        self.ledger.report(report.slices)
        self.tally.count(member, report)
        self.fruitless = 0 if report.outcomes else self.fruitless

    def _write(self, report: Report) -> None:
        """Write results that a worker could not write itself."""
        asked = {
            name: outcome.result.input
            for outcome in report.outcomes
            if outcome.record
            for name in outcome.record.outputs
        }
        for name, content in report.files.items():
            owner = self.ledger.assignment.owners.get(name)
            if owner is None or owner != asked.get(name):
                raise BerdiffError(f"a worker returned a file that was not asked for: {name}")
            with writing(self.ledger.output):
                write_atomic(self.ledger.output / name, content)

    def _lost(self, member: Member) -> None:
        """A worker is gone: what it had is done again, and suspected if the worker died alone."""
        groups, member.groups = member.groups, {}
        died = self.crew.lose(member)
        self.tally.lost(member, died)
        for reference, group in groups.items():
            with contextlib.suppress(self.ray.exceptions.RayError, BerdiffError):
                # Finished before it was gone.
                self._accept(member, group, self.ray.get(reference, timeout=_WAIT))
                continue
            self._retry(group, died, "its worker died, each time it was processed")

    def _failed(self, member: Member, reference: Any, error: BackendError) -> None:
        """The networks failed: tried once more, unless nothing else happens at all."""
        group = member.groups.pop(reference)
        member.alone = False
        self.fruitless += 1
        if self.fruitless >= _HOPELESS:
            raise error
        self._retry(group, True, f"the networks failed each time: {error}")

    def _retry(self, group: Group, suspected: bool, reason: str) -> None:
        self.tally.retried += len(group.sources)
        if not suspected:
            self.ration.again(group.sources)
            return
        for source in group.sources:
            if self.ration.blame(source) < FATAL_DEATHS:
                self.ration.again([source])
            else:
                self.tally.quarantined.append(source.key)
                self.ledger.accept(failure(source, f"set aside: {reason}"))

    def _stop(self) -> None:
        """Let workers finish what is computed, and keep that."""
        for member in self.crew.members:
            member.actor.stop.remote()
        until = time.monotonic() + _GRACE
        while any(m.groups for m in self.crew.members) and time.monotonic() < until:
            self._take_in(_WAIT)
        self._tell()


def cpu_need(cluster: Cluster, threads: int | None) -> Need:
    """What a detector on the CPU takes: its threads; 4, or all of the smallest node, by default.

    Raises
    ------
    InputError
        If no node has as many cores.
    """
    cores = [int(node.resources.get("CPU", 0)) for node in cluster.nodes()]
    cores = [count for count in cores if count] or [1]
    if threads is not None and threads > max(cores):
        raise InputError(f"got {threads} threads per detector; no node has over {max(cores)} cores")
    return Need(0, threads or min(4, *cores))
