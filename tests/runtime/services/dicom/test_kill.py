"""kill -9 between any two steps: every series gets one set of results, whatever was killed."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dicom_node_driver
import pytest
from dicom_nodes import Peer, association, check_results, peer, series, wait_for

from berdiff.runtime.services.audit import check

# In the order in which a series comes to them. While it is not released, the sender is told that
# something went wrong, and sends again; after that, nobody knows.
RECEIVING = (
    "arrivals:write_durably:after",
    "arrivals:Arrivals.receive:after 3",
    "arrivals:Arrivals.release:before",
)
AFTERWARDS = (
    "jobs:Jobs.complete:before",
    "jobs:Jobs.complete:after",
    "jobs:Jobs.claim:after",
    "examiner:Examiner.examine:after",
    "jobs:Jobs.inferred:after",
    "deliveries:Deliveries.sent:before",
    "deliveries:Deliveries.sent:after",
    "deliveries:Deliveries.sent:after 2",
)


@contextlib.contextmanager
def driver(folder: Path, archive: Peer, *place: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a node that dies at a place; yields it, and its port (0 if it died before it said it)."""
    command = [sys.executable, dicom_node_driver.__file__, str(folder), str(archive.port), *place]
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline() or 0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def send_somehow(port: int, number: int) -> None:
    """Send a series to a node that may be gone at any time."""
    with association(port, patience=3.0) as opened, contextlib.suppress(RuntimeError):
        for data in series(number):
            opened.send_c_store(data)


def died(process: subprocess.Popen[str]) -> bool:
    return process.wait(60) == -9


@pytest.mark.parametrize("place", RECEIVING)
def test_while_a_series_is_received(place: str, tmp_path: Path) -> None:
    with peer() as archive:
        with driver(tmp_path, archive, place) as (process, port):
            send_somehow(port, 1)
            assert died(process)
        with driver(tmp_path, archive) as (process, port):
            send_somehow(port, 1)
            wait_for(lambda: len(archive.received) >= 3)
        check_results(archive.received, series(1))
    assert len(list((tmp_path / "spool" / "objects").rglob("*"))) == 6  # a folder; no half files


def test_from_its_release_to_its_last_result(tmp_path: Path) -> None:
    """One series, killed at every step; nobody sends it again."""
    with peer() as archive:
        with driver(tmp_path, archive, "arrivals:Arrivals.release:after") as (process, port):
            send_somehow(port, 1)
            assert died(process)
        for place in AFTERWARDS:
            with driver(tmp_path, archive, place) as (process, _):
                assert died(process), place
            assert_sound(tmp_path)
        with driver(tmp_path, archive) as (process, _):
            wait_for(lambda: state(tmp_path) == ["done"])
        # What a peer had when the node was killed before it noted so came a second time.
        assert len(archive.received) == 4
        unique = {str(data.SOPInstanceUID): data for data in archive.received}
        check_results(list(unique.values()), series(1))


def state(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "spool" / "spool.sqlite3")) as database:
        return [row[0] for row in database.execute("SELECT state FROM jobs")]


def assert_sound(folder: Path) -> None:
    """At most one job; and the audit log holds what the database does."""
    states = state(folder)
    assert len(states) <= 1
    log = folder / "spool" / "audit.jsonl"
    check(log)
    events = [json.loads(line)["event"] for line in log.open()]
    assert "received" in events
    if states == ["inferred"]:
        assert "inferred" in events
