"""The spool of a node: everything that is received and not yet done, on the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ...closing import Closing
from ..audit import AuditLog
from .arrivals import Arrivals
from .deliveries import Deliveries
from .jobs import Jobs
from .store import Store


class Spool(Closing):
    """A spool folder, opened by the one node that has it. Safe for threads.

    Parameters
    ----------
    folder : Path
        The folder.
    audit : AuditLog
        Told of every change.
    destinations : iterable of str
        Names of those that there are now.
    clock : callable
        Seconds since 1970.

    Attributes
    ----------
    arrivals : Arrivals
    jobs : Jobs
    deliveries : Deliveries

    Raises
    ------
    BerdiffError
        If another node has the folder, or its database is damaged.
    """

    def __init__(
        self,
        folder: Path,
        audit: AuditLog,
        destinations: Iterable[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._store = Store(folder, audit, clock)
        try:
            self.arrivals = Arrivals(self._store)
            self.jobs = Jobs(self._store)
            self.deliveries = Deliveries(self._store)
            self.arrivals.break_all()
            self.jobs.recover()
            self.deliveries.drop_unknown(destinations)
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        """Let another node have it."""
        self._store.close()

    def counts(self) -> dict[str, int]:
        """How many units are being received, and how many jobs are in each state."""
        with self._store.lock:
            (receiving,) = self._store.one("SELECT count(*) FROM units WHERE touched")
            rows = self._store.all("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        states = dict.fromkeys(("complete", "inferring", "inferred", "done", "failed"), 0)
        return {"receiving": receiving, **states, **{row["state"]: row["n"] for row in rows}}
