"""The scans that are still to be done, in the groups in which workers get them."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..run_ledger import RunLedger
from ..run_plan import RunOptions
from ..scans import FileRef, ScanSource
from .worker import Group

_AHEAD = 64  # scans whose journal entries are compared with the files ahead of need


class Ration:
    """Gives out scans: in their order, then again those that came back undone.

    Parameters
    ----------
    ledger : RunLedger
        Knows which are finished already.
    options : RunOptions
        Batch size and threads.
    marker : Path
        The marker in the output folder.

    Attributes
    ----------
    left : int
        Scans that nobody has; an upper bound while a run is continued.
    suspects : deque of ScanSource
        Scans that were with a worker when it died. Each is given out alone.
    """

    def __init__(self, ledger: RunLedger, options: RunOptions, marker: Path) -> None:
        self._ledger, self._options, self._marker = ledger, options, marker
        self._readers = ThreadPoolExecutor(options.workers, "berdiff-compare")
        self._fresh = self._unfinished(ledger.assignment.found.sources)
        self._returned: deque[ScanSource] = deque()
        self.suspects: deque[ScanSource] = deque()
        self._blame: Counter[str] = Counter()
        self._not_taken = len(ledger.assignment.found.sources)
        self._held: ScanSource | None = None

    @property
    def left(self) -> int:
        """Scans that nobody has."""
        held = self._held is not None
        return self._not_taken + len(self._returned) + len(self.suspects) + held

    def group(self, workers: int) -> Group | None:
        """Return the next scans for one worker; None where there are none.

        Pictures go in groups that fill a batch, but not so few that workers stay idle.
        """
        size = max(1, min(self._options.batch_size, self.left // (2 * max(1, workers))))
        sources: list[ScanSource] = []
        while len(sources) < size and (source := self._next()) is not None:
            if sources and source.format != "picture":
                self._held = source
                break
            sources.append(source)
            if source.format != "picture":
                break
        return Group.of(tuple(sources), self._marker) if sources else None

    def suspect(self) -> Group | None:
        """Return a scan under suspicion; None where there is none."""
        return Group.of((self.suspects.popleft(),), self._marker) if self.suspects else None

    def again(self, sources: Iterable[ScanSource]) -> None:
        """Take back scans that were not done; those that were blamed are under suspicion."""
        for source in sources:
            (self.suspects if self._blame[source.key] else self._returned).append(source)

    def blame(self, source: ScanSource) -> int:
        """Note that a worker died while it had a scan; return how often that was so."""
        self._blame[source.key] += 1
        return self._blame[source.key]

    def with_contents(self, group: Group, put: Callable[[bytes], Any]) -> Group:
        """Add the files themselves to a group; those that cannot be read stay away."""
        contents = {}
        for path in group.stamps:
            try:
                contents[path] = put(FileRef(path).read())
            except InputError:
                continue  # the worker then misses the file, and says so
        return dataclasses.replace(group, contents=contents)

    def close(self) -> None:
        """Read nothing more."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _next(self) -> ScanSource | None:
        if self._held is not None:
            source, self._held = self._held, None
            return source
        if self._returned:
            return self._returned.popleft()
        return next(self._fresh, None)

    def _unfinished(self, sources: tuple[ScanSource, ...]) -> Iterator[ScanSource]:
        """Scans that no earlier run has finished; files are compared in threads, ahead of need."""
        comparing: deque[tuple[ScanSource, Future[bool] | None]] = deque()
        waiting = iter(sources)
        while True:
            while len(comparing) < _AHEAD and (source := next(waiting, None)) is not None:
                known = source.key in self._ledger.journal.records
                future = self._readers.submit(self._ledger.finished, source) if known else None
                comparing.append((source, future))
            if not comparing:
                return
            source, future = comparing.popleft()
            self._not_taken -= 1
            if future is None or not future.result():
                yield source
