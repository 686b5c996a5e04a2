"""What comes in: objects, by associations that end well or break, until a series is complete."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .objects import Buffer, Header, digest_of, place_of, write_durably
from .store import Store

Stored = Literal["stored", "duplicate", "replaced"]

_MOST_REWRITES = 5


@dataclass(frozen=True)
class Unit:
    """What is examined as one, as far as it was received: a series, or a study.

    Attributes
    ----------
    unit : str
        Its name.
    last, released : float
        Times when the last object came, and when the last association that brought some was
        released; 0 for never.
    waiting : bool
        Whether an association that brought some still goes on, or broke.
    """

    unit: str
    last: float
    released: float
    waiting: bool


class Arrivals:
    """Keeps what is received."""

    def __init__(self, store: Store) -> None:
        self._store = store
        (highest,) = store.one("SELECT coalesce(max(association), 0) FROM arrivals")
        self._associations = int(highest)

    def begin(self) -> int:
        """Number an association."""
        with self._store.lock:
            self._associations += 1
            return self._associations

    def receive(self, header: Header, parts: Sequence[Buffer], association: int) -> Stored:
        """Keep an object; when this returns, nothing short of a lost disk takes it away.

        What is there already with the same content is not written again; with other content, it
        takes the place of the earlier one.

        Raises
        ------
        OSError, sqlite3.Error
            If it cannot be kept.
        """
        digest = digest_of(parts)
        path = place_of(self._store.folder, header, digest)
        for _ in range(_MOST_REWRITES):
            if not path.exists():
                with contextlib.suppress(FileNotFoundError):  # its folder was just removed
                    write_durably(path, parts)
            with self._store.change() as change:
                if path.exists():  # what has expired is removed under the same lock
                    place = self._store.place(path)
                    return self._record(change, header, digest, place, association)
        raise OSError("what was written vanishes")

    def _record(
        self, change: sqlite3.Connection, header: Header, digest: str, place: str, association: int
    ) -> Stored:
        there = self._store.one(
            "SELECT sha256 FROM objects WHERE unit = ? AND sop = ?", header.unit, header.sop
        )
        change.execute(
            "INSERT INTO units VALUES (?, 1, ?, 0) "
            "ON CONFLICT (unit) DO UPDATE SET touched = 1, last = excluded.last",
            (header.unit, self._store.clock()),
        )
        change.execute(
            "INSERT OR IGNORE INTO arrivals VALUES (?, ?, 0)", (header.unit, association)
        )
        row = (header.unit, header.sop, header.series, digest, place, header.slices, header.stated)
        change.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        if there is None:
            return "stored"
        return "duplicate" if there["sha256"] == digest else "replaced"

    def release(self, association: int, **facts: Any) -> None:
        """Note that an association ended well: what it brought may be complete.

        It speaks for the rest of those series too: what earlier associations that broke would have
        brought is no longer waited for.
        """
        with self._store.change() as change:
            units = self._brought(association)
            if units:
                self._store.audit.append("received", series=units, **facts)
            now = self._store.clock()
            for unit in units:
                change.execute("UPDATE units SET released = ? WHERE unit = ?", (now, unit))
                change.execute("DELETE FROM arrivals WHERE unit = ? AND broken", (unit,))
            change.execute("DELETE FROM arrivals WHERE association = ?", (association,))

    def break_off(self, association: int, **facts: Any) -> None:
        """Note that an association broke: what it brought waits for more."""
        with self._store.change() as change:
            units = self._brought(association)
            if units:
                self._store.audit.append("broken", series=units, **facts)
                change.execute(
                    "UPDATE arrivals SET broken = 1 WHERE association = ?", (association,)
                )

    def break_all(self) -> None:
        """Note that every association is gone: with the process that had them."""
        with self._store.change() as change:
            change.execute("UPDATE arrivals SET broken = 1")

    def _brought(self, association: int) -> list[str]:
        rows = self._store.all("SELECT unit FROM arrivals WHERE association = ?", association)
        return sorted(row["unit"] for row in rows)

    def touched(self) -> list[Unit]:
        """Units that something came for since they were last complete."""
        rows = self._store.all(
            "SELECT *, EXISTS (SELECT 1 FROM arrivals WHERE arrivals.unit = units.unit) AS waiting "
            "FROM units WHERE touched ORDER BY last"
        )
        return [
            Unit(row["unit"], row["last"], row["released"], bool(row["waiting"])) for row in rows
        ]

    def objects(self, unit: Unit) -> list[sqlite3.Row]:
        """What was received of a unit."""
        every = "SELECT * FROM objects WHERE unit = ? ORDER BY series, sop"
        return self._store.all(every, unit.unit)

    def full(self, queue: int) -> bool:
        """Whether no further unit is taken."""
        with self._store.lock:
            (units,) = self._store.one("SELECT count(*) FROM units WHERE touched")
            (jobs,) = self._store.one(
                "SELECT count(*) FROM jobs WHERE state IN ('complete', 'inferring', 'inferred')"
            )
            return bool(units + jobs >= queue)

    def has_room(self, unit: str, queue: int, objects: int) -> bool:
        """Whether another object is taken: of a unit that is being received, or of a new one."""
        with self._store.lock:
            (there,) = self._store.one("SELECT count(*) FROM objects WHERE unit = ?", unit)
            (known,) = self._store.one(
                "SELECT count(*) FROM units WHERE unit = ? AND touched", unit
            )
            return there < objects and (bool(known) or not self.full(queue))
