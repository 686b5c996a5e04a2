"""Jobs: units that were complete, on their way through the detector.

States::

    complete -> inferring -> inferred -> done | failed

What is received and not complete has no job yet. Each delivery of an inferred job is ``waiting``,
``sent`` or ``failed`` by itself; the job ends when none waits.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...files import sha256_file
from ...scans.source import combined_digest
from .arrivals import Unit
from .objects import hashed, sweep
from .store import Store

Outcome = Literal["ok", "suspect", "rejected", "ignored", "failed", "incomplete"]

MOST_ATTEMPTS = 3  # of a job during which the process ended


@dataclass(frozen=True)
class Job:
    """An examination to be done.

    Attributes
    ----------
    job : str
        Its name.
    paths : tuple of Path
        The objects.
    results : Path
        Folder for what comes of it.
    """

    job: str
    paths: tuple[Path, ...]
    results: Path


class Jobs:
    """Keeps what is to be examined, and what came of it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def complete(self, unit: Unit, objects: Sequence[sqlite3.Row], context: str) -> bool:
        """Make a job of a unit; of what was a job before, only if that has failed.

        Parameters
        ----------
        unit : Unit
            If something came for it since it was looked at, nothing is done.
        objects : sequence of sqlite3.Row
            Those of it that are to be examined.
        context : str
            What else the results depend on: the model and its settings.

        Returns
        -------
        bool
            Whether there is something to do.
        """
        digests = sorted(item["sha256"] for item in objects)
        job = hashed(unit.unit, context, *digests)
        with self._store.change() as change:
            if not self._untouch(change, unit):
                return False
            row = self._store.one("SELECT state FROM jobs WHERE job = ?", job)
            if row is not None and row["state"] != "failed":
                return False
            self._store.audit.append(
                "complete",
                job=job,
                series=unit.unit,
                objects=len(objects),
                digest=combined_digest(digests),
            )
            # What was begun goes on; what was not is part of this, or was never complete.
            old = self._store.all(
                "SELECT job FROM jobs WHERE job = ? OR "
                "unit = ? AND (state = 'complete' OR outcome = 'incomplete')",
                job,
                unit.unit,
            )
            for item in old:
                self._forget(change, item["job"])
            self._add(change, job, unit, objects, ("complete", "", ""))
        return True

    def give_up(self, unit: Unit, objects: Sequence[sqlite3.Row], reason: str) -> bool:
        """Set a unit aside that never became complete; say whether that was done."""
        job = hashed(unit.unit, *sorted(item["sha256"] for item in objects))
        with self._store.change() as change:
            if not self._untouch(change, unit):
                return False
            self._store.audit.append("failed", job=job, series=unit.unit, reason=reason)
            self._forget(change, job)
            self._add(change, job, unit, objects, ("failed", "incomplete", reason))
            change.execute("DELETE FROM arrivals WHERE unit = ? AND broken", (unit.unit,))
        return True

    def _untouch(self, change: sqlite3.Connection, unit: Unit) -> bool:
        """Take a unit's mark away, unless something came since it was looked at."""
        done = change.execute(
            "UPDATE units SET touched = 0 WHERE unit = ? AND touched AND last = ? AND released = ?",
            (unit.unit, unit.last, unit.released),
        )
        return done.rowcount == 1

    def _add(
        self,
        change: sqlite3.Connection,
        job: str,
        unit: Unit,
        objects: Sequence[sqlite3.Row],
        state: tuple[str, str, str],
    ) -> None:
        now = self._store.clock()
        row = (job, unit.unit, *state, 0, unit.released, now, now)
        change.execute("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        change.executemany(
            "INSERT INTO job_objects VALUES (?, ?)", [(job, item["path"]) for item in objects]
        )

    def claim(self) -> Job | None:
        """Begin the oldest job."""
        with self._store.change() as change:
            row = self._store.one(
                "SELECT job FROM jobs WHERE state = 'complete' ORDER BY created, job LIMIT 1"
            )
            if row is None:
                return None
            name = row["job"]
            change.execute(
                "UPDATE jobs SET state = 'inferring', attempts = attempts + 1 WHERE job = ?",
                (name,),
            )
            paths = self._store.all(
                "SELECT path FROM job_objects WHERE job = ? ORDER BY path", name
            )
            folder = self._store.folder
            return Job(name, tuple(folder / item["path"] for item in paths), _results(folder, name))

    def put_back(self, job: Job) -> None:
        """Leave a job for later: it was interrupted, or nothing can be written now."""
        with self._store.change() as change:
            change.execute(
                "UPDATE jobs SET state = 'complete', attempts = attempts - 1 WHERE job = ?",
                (job.job,),
            )

    def inferred(
        self, job: Job, outcome: Outcome, reason: str, deliveries: Iterable[tuple[str, str, Path]]
    ) -> None:
        """Note what came of a job, and what is to be sent: kind, destination and file."""
        now = self._store.clock()
        rows = [
            (job.job, kind, destination, self._store.place(path), now)
            for kind, destination, path in deliveries
        ]
        digests = {row[1]: sha256_file(self._store.folder / row[3]) for row in rows}
        with self._store.change() as change:
            self._store.audit.append(
                "inferred", job=job.job, outcome=outcome, reason=reason, results=digests
            )
            change.execute(
                "UPDATE jobs SET state = 'inferred', outcome = ?, reason = ?, changed = ? "
                "WHERE job = ?",
                (outcome, reason, now, job.job),
            )
            change.executemany(
                "INSERT INTO deliveries VALUES (?, ?, ?, ?, 'waiting', 0, ?, '')", rows
            )
            settle(self._store, change, job.job)

    def fail(self, job: Job, reason: str) -> None:
        """Note that nothing came of a job; what was received is kept to be looked at."""
        with self._store.change() as change:
            self._fail(change, job.job, reason)

    def _fail(self, change: sqlite3.Connection, job: str, reason: str) -> None:
        self._store.audit.append("failed", job=job, reason=reason)
        change.execute(
            "UPDATE jobs SET state = 'failed', outcome = 'failed', reason = ?, changed = ? "
            "WHERE job = ?",
            (reason, self._store.clock(), job),
        )

    def recover(self) -> None:
        """Take up what a process left that ended; not while one of them is being done.

        Raises
        ------
        OSError
            If what it left cannot be removed.
        """
        with self._store.change() as change:
            worn = "SELECT job FROM jobs WHERE state = 'inferring' AND attempts >= ?"
            for row in self._store.all(worn, MOST_ATTEMPTS):
                reason = f"the process ended {MOST_ATTEMPTS} times while this was examined"
                self._fail(change, row["job"], reason)
            change.execute("UPDATE jobs SET state = 'complete' WHERE state = 'inferring'")
        both = "SELECT path FROM objects UNION SELECT path FROM job_objects"
        kept = {row["path"] for row in self._store.all(both)}
        folder = self._store.folder
        names = {
            _results(folder, row["job"]).name for row in self._store.all("SELECT job FROM jobs")
        }
        sweep(folder, kept, names)

    def expire(self, keep_done: float, keep_failed: float) -> int:
        """Remove what ended so many seconds ago; return how many jobs."""
        now = self._store.clock()
        old = self._store.all(
            "SELECT job, unit FROM jobs WHERE state = 'done' AND changed < ? "
            "OR state = 'failed' AND changed < ?",
            now - keep_done,
            now - keep_failed,
        )
        for row in old:
            self._remove(row["job"], row["unit"])
        return len(old)

    def _remove(self, job: str, unit: str) -> None:
        with self._store.lock:  # until the files are gone too
            with self._store.change() as change:
                paths = self._paths("job_objects", "job", job)
                self._forget(change, job)
                (others,) = self._store.one("SELECT count(*) FROM jobs WHERE unit = ?", unit)
                (touched,) = self._store.one(
                    "SELECT count(*) FROM units WHERE unit = ? AND touched", unit
                )
                if not others and not touched:
                    paths |= self._paths("objects", "unit", unit)
                    for table in ("objects", "arrivals", "units"):
                        change.execute(f"DELETE FROM {table} WHERE unit = ?", (unit,))
            for path in paths:
                if not self._named(path):
                    (self._store.folder / path).unlink(missing_ok=True)
            shutil.rmtree(_results(self._store.folder, job), ignore_errors=True)

    def _paths(self, table: str, column: str, value: str) -> set[str]:
        rows = self._store.all(f"SELECT path FROM {table} WHERE {column} = ?", value)
        return {row["path"] for row in rows}

    def _named(self, path: str) -> bool:
        return bool(
            self._paths("objects", "path", path) or self._paths("job_objects", "path", path)
        )

    def _forget(self, change: sqlite3.Connection, job: str) -> None:
        for table in ("jobs", "job_objects", "deliveries"):
            change.execute(f"DELETE FROM {table} WHERE job = ?", (job,))


def settle(store: Store, change: sqlite3.Connection, job: str) -> float | None:
    """End a job of which nothing waits to be sent; return when its series was released, if so."""
    row = store.one(
        "SELECT coalesce(sum(state = 'waiting'), 0) AS waiting, "
        "coalesce(sum(state = 'failed'), 0) AS failed FROM deliveries WHERE job = ?",
        job,
    )
    if row["waiting"]:
        return None
    state = "failed" if row["failed"] else "done"
    store.audit.append(state, job=job, undelivered=int(row["failed"]))
    change.execute(
        "UPDATE jobs SET state = ?, changed = ? WHERE job = ?", (state, store.clock(), job)
    )
    return float(store.one("SELECT released FROM jobs WHERE job = ?", job)["released"])


def _results(folder: Path, job: str) -> Path:
    return folder / "results" / job[:32]
