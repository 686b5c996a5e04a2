"""The journal: what survives a kill, a torn line and a second run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.journal import JOURNAL_NAME, Journal, Record
from berdiff.runtime.results import ScanResult, SliceResult


def record(name: str) -> Record:
    return Record(
        sha256="1" * 64,
        bundle="2" * 64,
        options="3" * 64,
        outputs={f"maps/{name}_mask.png": "4" * 64},
        result=ScanResult(name=name, input=f"{name}.png", status="ok", score=0.5, slices=2),
        slices=(SliceResult(0, 0.5, 3), SliceResult(1, None, 0)),
    )


def test_records_come_back(tmp_path: Path):
    with Journal(tmp_path) as journal:
        journal.add(record("a"))
        journal.add(record("b\udcff\n"))
        newer = dataclasses.replace(record("a"), sha256="5" * 64)
        journal.add(newer)
    with Journal(tmp_path) as journal:
        assert journal.records == {"a.png": newer, "b\udcff\n.png": record("b\udcff\n")}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lost=st.integers(1, 400))
def test_a_torn_last_line_is_dropped_and_never_glued_to_the_next(lost: int, tmp_path: Path):
    path = tmp_path / JOURNAL_NAME
    path.unlink(missing_ok=True)
    with Journal(tmp_path) as journal:
        journal.add(record("a"))
        length = path.stat().st_size
        journal.add(record("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[: max(len(whole) - lost, length)])
    with Journal(tmp_path) as journal:
        assert journal.records == {"a.png": record("a")}
        journal.add(record("c"))
    with Journal(tmp_path) as journal:
        assert journal.records == {"a.png": record("a"), "c.png": record("c")}


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("room", [0, 1, 200])
def test_what_does_not_fit_is_not_begun(room: int, tmp_path: Path):
    """On a disk with some room left, a line must not stay half written for the next to follow."""
    import resource

    with Journal(tmp_path) as journal:
        journal.add(record("a"))
        whole = (tmp_path / JOURNAL_NAME).read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                journal.add(record("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (tmp_path / JOURNAL_NAME).read_bytes() == whole
        assert "b.png" not in journal.records
        journal.add(record("c"))
    with Journal(tmp_path) as journal:
        assert journal.records == {"a.png": record("a"), "c.png": record("c")}


def test_damaged_lines_are_passed_over(tmp_path: Path):
    with Journal(tmp_path) as journal:
        journal.add(record("a"))
        journal.add(record("b"))
    path = tmp_path / JOURNAL_NAME
    first, second = path.read_bytes().splitlines(keepends=True)
    other = first.replace(b'"sha256"', b'"sha1"')
    path.write_bytes(b"\xff\xfe\n[1]\n" + other + second)
    with Journal(tmp_path) as journal:
        assert journal.records == {"b.png": record("b")}


def test_outputs_are_compared_byte_for_byte(tmp_path: Path):
    with Journal(tmp_path) as journal:
        assert not journal.intact(record("a"))
        (tmp_path / "maps").mkdir()
        (tmp_path / "maps" / "a_mask.png").touch()
        assert not journal.intact(record("a"))


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path):
    with Journal(tmp_path), pytest.raises(BerdiffError, match="another run is writing"):
        Journal(tmp_path)
    Journal(tmp_path).close()
