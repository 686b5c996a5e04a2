"""Reading ahead and writing behind: order, memory, and how it ends."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from berdiff.runtime.flow import Flow


@dataclass(eq=False)
class Job:
    """What `Flow` knows of a scan."""

    number: int
    nbytes: int = 100


@dataclass
class Meter:
    """Counts the bytes that are between reading and writing."""

    held: int = 0
    peak: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        with self.lock:
            self.held += count
            self.peak = max(self.peak, self.held)


def run(count: int, workers: int, memory: int, meter: Meter, slow: float, size: int = 100):
    written: list[int] = []
    seen: list[int] = []

    def read(number: int) -> Job | None:
        time.sleep(0.001 * (number % 3))  # later ones are often done first
        if number % 5 == 4:
            return None
        meter.add(size)
        return Job(number, size)

    def write(job: Job) -> None:
        time.sleep(slow)
        written.append(job.number)
        meter.add(-job.nbytes)

    with Flow[int, Job](workers, memory) as flow:
        for job in flow.read(range(count), read):
            seen.append(job.number)
            flow.write(write, job)
    return seen, written


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_scan_comes_in_order_and_is_written_once(workers: int):
    seen, written = run(40, workers, 10_000, Meter(), 0.0)
    expected = [number for number in range(40) if number % 5 != 4]
    assert seen == expected
    assert sorted(written) == expected


@pytest.mark.parametrize("workers", [1, 3])
def test_slow_writing_holds_reading_back(workers: int):
    meter = Meter()
    run(30, workers, 250, meter, 0.01)
    assert meter.held == 0
    assert meter.peak <= 250 + workers * 100


def test_a_scan_larger_than_all_memory_is_taken_alone():
    meter = Meter()
    seen, _ = run(6, 2, 50, meter, 0.002, size=1000)
    assert len(seen) == 5
    assert meter.peak <= 50 + 2 * 1000


def test_without_memory_nothing_waits_forever():
    seen, _ = run(12, 3, 0, Meter(), 0.001)
    assert len(seen) == 10


def test_an_error_of_a_writer_ends_the_run_and_nothing_new_is_read():
    read: list[int] = []

    def reader(number: int) -> Job:
        read.append(number)
        return Job(number)

    def writer(job: Job) -> None:
        raise OSError("disk full")

    def run() -> None:
        with Flow[int, Job](2, 150) as flow:
            for job in flow.read(range(1000), reader):
                flow.write(writer, job)

    with pytest.raises(OSError, match="disk full"):
        run()
    assert len(read) < 20


def test_an_error_in_the_last_scan_is_not_lost():
    def writer(job: Job) -> None:
        time.sleep(0.01)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Flow[int, Job](1, 1000) as flow:
        flow.write(writer, Job(0))


def test_interrupted_it_writes_what_was_handed_over_and_reads_no_more():
    written: list[int] = []

    def writer(job: Job) -> None:
        time.sleep(0.005)
        written.append(job.number)

    handed: list[int] = []

    def run() -> None:
        with Flow[int, Job](2, 10_000) as flow:
            for job in flow.read(range(1000), Job):
                handed.append(job.number)
                flow.write(writer, job)
                if len(handed) == 7:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert sorted(written) == handed == list(range(7))
