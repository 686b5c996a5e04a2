"""What is to be sent, to whom, and how often that was tried."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .jobs import settle
from .store import Store


@dataclass(frozen=True)
class Delivery:
    """An object that a destination is to get.

    Attributes
    ----------
    job, kind, destination : str
        Which.
    path : Path
        The object.
    attempts : int
        How often it was tried.
    inferred : float
        When it was made.
    """

    job: str
    kind: str
    destination: str
    path: Path
    attempts: int
    inferred: float


class Deliveries:
    """Keeps what is to be sent."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def due(self, destination: str, limit: int = 12) -> list[Delivery]:
        """What a destination is to get now, the oldest first."""
        rows = self._store.all(
            "SELECT deliveries.*, jobs.changed FROM deliveries JOIN jobs USING (job) "
            "WHERE deliveries.state = 'waiting' AND destination = ? AND due <= ? "
            "ORDER BY jobs.created, job, kind LIMIT ?",
            destination,
            self._store.clock(),
            limit,
        )
        folder = self._store.folder
        return [
            Delivery(
                row["job"],
                row["kind"],
                destination,
                folder / row["path"],
                row["attempts"],
                row["changed"],
            )
            for row in rows
        ]

    def next_due(self, destination: str) -> float | None:
        """When the next delivery is due; None where none waits."""
        (due,) = self._store.one(
            "SELECT min(due) FROM deliveries WHERE state = 'waiting' AND destination = ?",
            destination,
        )
        return None if due is None else float(due)

    def sent(self, delivery: Delivery, status: str) -> float | None:
        """Note that a destination has an object.

        Returns
        -------
        float or None
            When the series was released, if that was the last of its results to be sent.
        """
        with self._store.change() as change:
            self._note("sent", delivery, status=status)
            self._update(change, delivery, "sent", 0.0, "")
            return settle(self._store, change, delivery.job)

    def retry(self, delivery: Delivery, reason: str, seconds: float) -> None:
        """Try again after a while."""
        with self._store.change() as change:
            self._update(change, delivery, "waiting", self._store.clock() + seconds, reason)

    def give_up(self, delivery: Delivery, reason: str) -> None:
        """Try no more."""
        with self._store.change() as change:
            self._note("undelivered", delivery, reason=reason)
            self._update(change, delivery, "failed", 0.0, reason)
            settle(self._store, change, delivery.job)

    def drop_unknown(self, destinations: Iterable[str]) -> None:
        """Give up what was for destinations that there are no more."""
        waiting = "SELECT DISTINCT destination FROM deliveries WHERE state = 'waiting'"
        known = set(destinations)
        gone = {row["destination"] for row in self._store.all(waiting)} - known
        for destination in sorted(gone):
            every = "SELECT job, kind FROM deliveries WHERE state = 'waiting' AND destination = ?"
            for row in self._store.all(every, destination):
                delivery = Delivery(
                    row["job"], row["kind"], destination, self._store.folder, 0, 0.0
                )
                self.give_up(delivery, "the destination is no longer configured")

    def _note(self, event: str, delivery: Delivery, **facts: str) -> None:
        self._store.audit.append(
            event,
            job=delivery.job,
            kind=delivery.kind,
            destination=delivery.destination,
            **facts,
        )

    def _update(
        self, change: sqlite3.Connection, delivery: Delivery, state: str, due: float, reason: str
    ) -> None:
        change.execute(
            "UPDATE deliveries SET state = ?, due = ?, reason = ?, attempts = attempts + 1 "
            "WHERE job = ? AND kind = ? AND destination = ?",
            (state, due, reason, delivery.job, delivery.kind, delivery.destination),
        )
