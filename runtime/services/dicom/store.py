"""The database of a spool: its tables, its transactions, and the lock that its users share."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...closing import Closing
from ...errors import BerdiffError
from ..audit import AuditLog

VERSION = 1

# A unit is what is examined as one: a series, or a study where the model takes several contrasts.
# `arrivals` holds the associations that have brought something of it and were not released: those
# that go on, and those that broke. A job is the examination of a unit as it was when it was
# complete; its name depends on what went in, so that what comes again is not done again.
_TABLES = """
CREATE TABLE units (
    unit TEXT PRIMARY KEY, touched INTEGER NOT NULL, last REAL NOT NULL, released REAL NOT NULL
);
CREATE TABLE objects (
    unit TEXT NOT NULL, sop TEXT NOT NULL, series TEXT NOT NULL, sha256 TEXT NOT NULL,
    path TEXT NOT NULL, slices INTEGER NOT NULL, stated INTEGER NOT NULL,
    PRIMARY KEY (unit, sop)
);
CREATE INDEX objects_by_path ON objects (path);
CREATE TABLE arrivals (
    unit TEXT NOT NULL, association INTEGER NOT NULL, broken INTEGER NOT NULL,
    PRIMARY KEY (unit, association)
);
CREATE TABLE jobs (
    job TEXT PRIMARY KEY, unit TEXT NOT NULL, state TEXT NOT NULL, outcome TEXT NOT NULL,
    reason TEXT NOT NULL, attempts INTEGER NOT NULL, released REAL NOT NULL,
    created REAL NOT NULL, changed REAL NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state, created);
CREATE INDEX jobs_by_unit ON jobs (unit);
CREATE TABLE job_objects (
    job TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (job, path)
);
CREATE INDEX jobs_by_object ON job_objects (path);
CREATE TABLE deliveries (
    job TEXT NOT NULL, kind TEXT NOT NULL, destination TEXT NOT NULL, path TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL, due REAL NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (job, kind, destination)
);
CREATE INDEX deliveries_by_state ON deliveries (state, destination, due);
"""


class Store(Closing):
    """What receiving, examining and sending write to; one process has it. Safe for threads.

    Parameters
    ----------
    folder : Path
        The spool folder; made private where it is not there.
    audit : AuditLog
        Told of every change of a job, before the change is committed: after a kill it may tell of
        a change twice, and never too little.
    clock : callable
        Seconds since 1970.

    Raises
    ------
    BerdiffError
        If another node has the folder, or its database is damaged.
    """

    def __init__(
        self, folder: Path, audit: AuditLog, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.audit = audit
        self.clock = clock
        self.lock = threading.RLock()
        self._held = _hold(folder / "lock")
        try:
            self._database = _open(folder / "spool.sqlite3")
        except BaseException:
            os.close(self._held)
            raise

    def close(self) -> None:
        """Let another node have it."""
        with self.lock:
            self._database.close()
            os.close(self._held)

    @contextlib.contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Make the block one transaction: all of it lies on the disk afterwards, or nothing."""
        with self.lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def one(self, query: str, *values: Any) -> Any:
        """The first row of an answer; None where there is none."""
        with self.lock:
            return self._database.execute(query, values).fetchone()

    def all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Every row of an answer."""
        with self.lock:
            return self._database.execute(query, values).fetchall()

    def place(self, path: Path) -> str:
        """How the database names a file of the folder."""
        return path.relative_to(self.folder).as_posix()


def _open(path: Path) -> sqlite3.Connection:
    try:
        # One connection for all threads; whoever uses it holds the lock.
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            database.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {VERSION};COMMIT;")
        elif version != VERSION:
            raise BerdiffError(
                f"{path} was written by another version of berdiff (format {version}, expected "
                f"{VERSION}); finish its series with that version, or choose another spool folder"
            )
        (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise BerdiffError(f"the database {path} is damaged: {sound}")
    except sqlite3.Error as error:
        raise BerdiffError(f"cannot use the database {path}: {error}") from error
    return database


def _hold(path: Path) -> int:
    """Keep other processes out; the system lets go when this one ends."""
    if os.name != "posix":
        raise BerdiffError("a DICOM node needs a POSIX system: its spool relies on file locks")
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise BerdiffError(
            f"another node uses the spool folder {path.parent}; choose another one"
        ) from error
    return descriptor
