r"""How well a run spreads over workers, and what a long list costs the machine that drives it.

Run it as::

    python benchmarks/cluster.py                        # a quarter of an hour on two cores
    python benchmarks/cluster.py --workers 1 4 --lists  # fewer workers, no long lists

**Workers.** A local Ray cluster runs over PNG files of 256 x 256 pixels with a simulated detector,
which sleeps so many seconds per scan; reading, maps and writing are the real thing. Many workers
then need few cores: the table says how many. Every worker has the same number of scans (weak
scaling). The clock starts when all workers are ready, with libraries loaded, and stops when
the last scan is in the journal, so that the tail counts. Start-up is given apart. Efficiency is the
throughput over that of one worker times their number. Overhead is what a scan takes a worker beyond
its cost; beside it stands that of `run_folder`, in one process, on files like those.

**Driver.** Where scans cost nothing at all, on as many workers as there are cores: what a scan
takes of whom.

**Lists.** So many small scans, in a process of its own: they are found, given out, taken in,
written into journal and tables, and read back from the journal, by the code of a real run. Only
workers and Ray are stand-ins, which answer at once.

Other work on the machine is in every figure of wall-clock time: compare within one run. CPU time is
that of processes: the driver (with Ray's threads in it), Ray's daemons, and workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster_driver import DriverFigures, measure_driver, measure_one_by_one
from cluster_simulated import Together, load_libraries, make_pictures, simulated_detector

from berdiff.runtime.cluster.cluster_run import ClusterOptions, run_on_cluster
from berdiff.runtime.cluster.connection import Cluster
from berdiff.runtime.cluster.crew import Need
from berdiff.runtime.cluster.tally import Tally
from berdiff.runtime.files import write_atomic
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.run_plan import RunOptions

TICK = os.sysconf("SC_CLK_TCK")
PAGE = resource.getpagesize()
OPTIONS = RunOptions(batch_size=1)


@dataclass
class Usage:
    """The clock, and CPU seconds that processes have taken so far."""

    wall: float = field(default_factory=time.perf_counter)
    driver: float = field(default_factory=time.process_time)
    ray: float = 0.0
    workers: float = 0.0
    worker_mib: float = 0.0  # of the largest of them, now

    @classmethod
    def now(cls) -> Usage:
        """Look at this process and everything below it."""
        usage, parents, found = cls(), {}, []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name, numbers = (folder / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue  # ended meanwhile
            values = numbers.split()
            parents[int(folder.name)] = int(values[1])
            cpu = (int(values[11]) + int(values[12])) / TICK
            found.append((int(folder.name), name, cpu, int(values[21]) * PAGE / 2**20))
        for pid, name, cpu, mib in found:
            if not _below(pid, parents):
                continue
            if name.startswith("ray::Worker"):
                usage.workers += cpu
                usage.worker_mib = max(usage.worker_mib, mib)
            else:
                usage.ray += cpu
        return usage


def _below(pid: int, parents: dict[int, int]) -> bool:
    """Whether a process descends from this one."""
    here = os.getpid()
    while pid > 1 and pid != here:
        pid = parents.get(pid, 0)
        if pid == here:
            return True
    return False


@dataclass
class Row:
    """One run; seconds in all, CPU seconds per scan."""

    workers: int
    scans: int
    start_s: float
    run_s: float
    tables_s: float
    driver_cpu: float
    ray_cpu: float
    workers_cpu: float
    driver_mib: float
    worker_mib: float

    @property
    def rate(self) -> float:
        """Scans per second."""
        return self.scans / self.run_s

    @property
    def busy(self) -> float:
        """Cores that were busy for it."""
        return (self.driver_cpu + self.ray_cpu + self.workers_cpu) * self.rate

    def overhead(self, cost: float) -> float:
        """Seconds that a scan takes a worker beyond its cost."""
        return self.run_s * self.workers / self.scans - cost


class Watch:
    """Notes what was used when all workers were ready, and when the last scan was done."""

    def __init__(self, source: Together) -> None:
        self.source = source
        self.start: Usage | None = None
        self.end: Usage | None = None
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        while not self.source.is_open():
            time.sleep(0.01)
        self.start = Usage.now()

    def __call__(self, now: Tally) -> None:
        if now.done == now.total and self.end is None:
            self.end = Usage.now()


def run_cluster(
    cluster: Cluster, workers: int, scans: int, cost: float, size: int, work: Path
) -> Row:
    """One run on a cluster, over pictures made for it."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        make_pictures(folder / "in", scans, size)
        (folder / "gate").mkdir()
        source = Together(cost, size, workers, folder / "gate")
        watch, begun = Watch(source), time.perf_counter()
        options = ClusterOptions(Need(0, 1), workers, watch)
        summary, tally = run_on_cluster(
            cluster, source, folder / "in", folder / "out", OPTIONS, options
        )
        done = time.perf_counter()
        if summary.failed or tally.lost_workers:
            raise SystemExit(f"{len(summary.failed)} scans failed, {tally.lost_workers} workers")
    start, end = watch.start, watch.end
    assert start is not None
    assert end is not None
    return Row(
        workers, scans, start.wall - begun, end.wall - start.wall, done - end.wall,
        (end.driver - start.driver) / scans, (end.ray - start.ray) / scans,
        (end.workers - start.workers) / scans, _peak_mib(), end.worker_mib,
    )  # fmt: skip


def run_alone(scans: int, cost: float, size: int, work: Path) -> Row:
    """The same in one process."""
    ended: list[float] = []

    def look(done: int, total: int, slices: int) -> None:
        if done == total and not ended:
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory(dir=work) as name, simulated_detector(cost, size) as detector:
        make_pictures(Path(name, "in"), scans, size)
        load_libraries()
        wall, cpu = time.perf_counter(), time.process_time()
        run_folder(detector, Path(name, "in"), Path(name, "out"), OPTIONS, look)
        cpu = time.process_time() - cpu
    return Row(
        1, scans, 0.0, ended[0] - wall, time.perf_counter() - ended[0], 0.0, 0.0, cpu / scans,
        _peak_mib(), _peak_mib(),
    )  # fmt: skip


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def workers_table(rows: list[Row], alone: Row, cost: float) -> str:
    """The figures of simulated workers, for people."""
    one = rows[0].rate / rows[0].workers
    text = f"workers: {cost:g} s per scan, {alone.scans} scans per worker, {_cores()} cores\n"
    text += f"{'workers':>9}{'scans/s':>9}{'efficiency':>12}{'overhead/scan':>15}"
    text += f"{'cores busy':>12}{'start s':>9}\n"
    for row in rows:
        text += f"{row.workers:9}{row.rate:9.2f}{row.rate / one / row.workers:12.3f}"
        text += f"{1000 * row.overhead(cost):12.0f} ms{row.busy:12.2f}{row.start_s:9.1f}\n"
    text += f"one process (run_folder): {alone.rate:.2f} scans/s, "
    text += f"overhead {1000 * alone.overhead(cost):.0f} ms per scan\n"
    cpu = max(row.workers_cpu + row.driver_cpu + row.ray_cpu for row in rows)
    text += f"CPU per scan {1000 * cpu:.0f} ms at most: {_cores()} cores can feed "
    text += f"{_cores() * cost / cpu:.0f} workers\n"
    text += f"memory of a worker: {max(row.worker_mib for row in rows):.0f} MiB at most"
    return text


def driver_lines(row: Row, alone: Row) -> str:
    """What a scan costs when it costs nothing."""
    text = f"scans that cost nothing: {row.scans} on {row.workers} workers, {row.rate:.1f} scans/s "
    text += f"(one process: {alone.rate:.1f})\n"
    text += (
        f"CPU per scan: driver {1000 * row.driver_cpu:.2f} ms, Ray {1000 * row.ray_cpu:.2f} ms, "
    )
    text += f"worker {1000 * row.workers_cpu:.1f} ms "
    return text + f"(one process: {1000 * alone.workers_cpu:.1f} ms)"


LIST_COLUMNS = {
    "scans": 8, "workers": 8, "slices": 7, "find": 7, "assign": 7, "loop": 8, "CPU": 7, "tables": 8,
    "read": 7, "append ms": 10, "before": 8, "found": 7, "end": 7, "most": 7, "journal": 8,
}  # fmt: skip


def list_row(f: DriverFigures) -> str:
    """The figures of a long list, for people."""
    text = f"{f.scans:8}{f.workers:8}{f.slices:7}{f.found_s:7.1f}{f.assigned_s:7.1f}"
    text += f"{f.loop_s:8.1f}{f.loop_cpu_s:7.1f}{f.tables_s:8.1f}{f.read_s:7.1f}"
    text += f"{1000 * f.append_s:10.2f}{f.mib_before:8.0f}{f.mib_found:7.0f}"
    return text + f"{f.mib_loop:7.0f}{f.mib_most:7.0f}{f.journal_mib:8.0f}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def measure_workers(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The runs with Ray."""
    each, cost, size = options.scans, options.cost, options.size
    alone = run_alone(each, cost, size, work)
    free_alone = run_alone(options.free, 0.0, size, work)
    began = time.perf_counter()
    with Cluster.open("local", cpus=max(*options.workers, _cores())) as cluster:
        seconds = time.perf_counter() - began
        print(f"Ray {cluster.ray.__version__} started in {seconds:.1f} s", flush=True)
        rows = []
        for count in options.workers:
            rows.append(run_cluster(cluster, count, count * each, cost, size, work))
        print(workers_table(rows, alone, cost), flush=True)
        free = run_cluster(
            cluster, min(_cores(), max(options.workers)), options.free, 0, size, work
        )
    print(driver_lines(free, free_alone), flush=True)
    named = {"alone": alone, "free": free, "free_alone": free_alone}
    return {
        "workers": [dataclasses.asdict(row) for row in rows],
        **{name: dataclasses.asdict(row) for name, row in named.items()},
    }


def measure_lists(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The long lists, each in a process of its own."""
    longest, first = max(options.lists), options.list_workers[0]
    cases = [(count, first, 1) for count in options.lists]
    cases += [(min(10_000, longest), count, 1) for count in options.list_workers[1:]]
    cases += [(min(options.volumes, longest), first, 155)]
    print("lists: seconds for all of it, MiB of the driver (before, found, end, most) and of files")
    print("".join(f"{name:>{width}}" for name, width in LIST_COLUMNS.items()), flush=True)
    figures = []
    for scans, workers, slices in sorted(cases):
        with tempfile.TemporaryDirectory(dir=work) as name:
            folder = Path(name)
            make_pictures(folder / "in", scans, 32)
            figures.append(_apart(measure_driver, folder / "in", folder / "out", workers, slices))
            print(list_row(figures[-1]), flush=True)
    most = max(f.mib_most for f in figures if f.scans == longest)
    print(f"memory of the driver for {longest} scans: {most:.0f} MiB")
    single = {}
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        make_pictures(folder / "in", min(longest, 5 * max(options.list_workers)), 32)
        for workers in options.list_workers:
            answers = folder / "in", folder / f"out-{workers}", workers
            single[workers] = _apart(measure_one_by_one, *answers)
            spent = f"{1000 * single[workers]:.2f} ms of CPU per scan"
            print(f"loop, answers one by one, {workers} workers: {spent}", flush=True)
    return {"lists": [dataclasses.asdict(f) for f in figures], "one_by_one_cpu_s": single}


def _apart(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--workers", type=int, nargs="*", default=(1, 2, 4, 8, 16), help="Default: 1 2 4 8 16.")
    add("--scans", type=int, default=15, help="Per worker.")
    add("--cost", type=float, default=2.0, help="Seconds per scan.")
    add("--size", type=int, default=256, help="Pixels of a side.")
    add("--free", type=int, default=500, help="Scans that cost nothing.")
    add("--lists", type=int, nargs="*", default=(1000, 10_000, 100_000), help="Scans of a list.")
    add("--volumes", type=int, default=2000, help="Scans of a list of volumes of 155 slices.")
    add("--list-workers", type=int, nargs="+", default=(16, 1000), help="Stand-ins for them.")
    add("--work", type=Path, help="Where scans and results go, and are deleted. Default: /tmp.")
    add("--output", "-o", type=Path, help="JSON file for the figures.")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    options = arguments(words)
    measured: dict[str, Any] = {"cores": _cores(), "cost": options.cost, "scans": options.scans}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        if options.workers:
            measured |= measure_workers(options, Path(work))
        if options.lists:
            measured |= measure_lists(options, Path(work))
    if options.output:
        write_atomic(options.output, (json.dumps(measured, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
