"""Scans on their way through a run: read ahead and written behind, with a bound on memory.

Reading (decoding, preprocessing) and writing (compressing, pictures) run in threads of their own
beside the networks, since what they spend their time in lets go of Python's lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, Protocol, TypeVar


class Held(Protocol):
    """Something that takes memory until it is written."""

    @property
    def nbytes(self) -> int:
        """How much it takes."""
        ...


Item = TypeVar("Item")
Job = TypeVar("Job", bound=Held)


class Flow(Generic[Item, Job]):
    """Reads ahead and writes behind the thread that computes.

    Between reading and the end of writing, scans hold at most `memory` bytes and, beyond that,
    what `workers` readers were busy with when it was reached: never more than `memory` plus
    `workers` times the largest scan. A scan that is larger than all that is taken alone.

    Parameters
    ----------
    workers : int
        Threads that read, and as many that write.
    memory : int
        Bytes of scans above which no further one is read.

    Attributes
    ----------
    starved : float
        Seconds the computing thread has waited for a scan to be read.
    """

    def __init__(self, workers: int, memory: int) -> None:
        self.memory = memory
        self.starved = 0.0
        self._workers = workers
        self._readers = ThreadPoolExecutor(workers, "berdiff-read")
        self._writers = ThreadPoolExecutor(workers, "berdiff-write")
        self._reading: deque[Future[Job | None]] = deque()
        self._writing: set[Future[None]] = set()
        self._held = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Flow[Item, Job]:
        """Return it itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read nothing more, and finish what is computed already, however the block ends."""
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._writers.shutdown(wait=True)
        if error is None:
            self._check()

    def read(self, items: Iterable[Item], function: Callable[[Item], Job | None]) -> Iterator[Job]:
        """Apply a function to items in threads, and yield the scans it returns, in order."""
        waiting = iter(items)
        more = True
        while more or self._reading:
            while more and len(self._reading) < self._workers and self._has_room():
                try:
                    item = next(waiting)
                except StopIteration:
                    more = False
                else:
                    self._reading.append(self._readers.submit(self._read, function, item))
            if self._reading:
                start = time.perf_counter()
                job = self._reading.popleft().result()
                self.starved += time.perf_counter() - start
                if job is not None:
                    yield job
            elif more:
                wait(self._writing, return_when=FIRST_COMPLETED)
                self._check()

    def write(self, function: Callable[[Job], None], job: Job) -> None:
        """Apply a function to a scan in a thread, and let go of the scan.

        Raises
        ------
        Exception
            What an earlier call has raised in its thread.
        """
        self._writing.add(self._writers.submit(self._write, function, job))
        self._check()

    def drop(self, job: Job) -> None:
        """Let go of a scan that will not be written."""
        self._hold(-job.nbytes)

    def _has_room(self) -> bool:
        """Whether one more scan may be read; always, where nothing else could make room."""
        self._check()
        return self._held < self.memory or not (self._reading or self._writing)

    def _read(self, function: Callable[[Item], Job | None], item: Item) -> Job | None:
        job = function(item)
        if job is not None:
            self._hold(job.nbytes)
        return job

    def _write(self, function: Callable[[Job], None], job: Job) -> None:
        try:
            function(job)
        finally:
            self.drop(job)

    def _hold(self, count: int) -> None:
        with self._lock:
            self._held += count

    def _check(self) -> None:
        """Raise what a writer has raised, and forget those that are done."""
        for future in [future for future in self._writing if future.done()]:
            self._writing.discard(future)
            future.result()
