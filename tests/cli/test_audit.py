"""``berdiff audit check``: every edit of a log is found, and the first edited line named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from berdiff.cli import main
from berdiff.runtime.services.audit import GENESIS, AuditLog

Capture = pytest.CaptureFixture[str]


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.log"
    with AuditLog.open(path) as opened:
        opened.append("start", bundle="d" * 64)
        for number in range(3):
            opened.append("session", images=number, outcome="ok")
        opened.append("stop")
    return path


def shown(capsys: Capture) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_a_sound_log(log: Path, capsys: Capture) -> None:
    assert end("audit", "check", log) == 0
    found = shown(capsys)
    assert found["entries"] == "5"
    assert found["first"] < found["last"]
    assert f'"hash":"{found["head"]}"' in log.read_text().splitlines()[-1]
    assert end("audit", "check", log, "--head", found["head"]) == 0


def test_an_empty_log(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "audit.log").touch()
    assert end("audit", "check", tmp_path / "audit.log", "--head", GENESIS) == 0
    assert shown(capsys) == {"entries": "0", "first": "none", "last": "none", "head": GENESIS}


EDITS: dict[str, tuple[Callable[[list[str]], list[str]], int]] = {
    "a figure changed": (lambda L: [*L[:2], L[2].replace('"images":1', '"images":7'), *L[3:]], 3),
    "a line deleted": (lambda L: [*L[:1], *L[2:]], 2),
    "the first deleted": (lambda L: L[1:], 1),
    "a line inserted": (lambda L: [*L[:3], L[1], *L[3:]], 4),
    "two lines exchanged": (lambda L: [L[0], L[2], L[1], *L[3:]], 2),
    "the end cut inside a line": (lambda L: [*L[:4], L[4][:40]], 5),
    "an empty line": (lambda L: [*L[:2], "\n", *L[2:]], 3),
    "Windows line ends": (lambda L: [line.replace("\n", "\r\n") for line in L], 1),
    "a space added": (lambda L: [L[0].replace(",", ", ", 1), *L[1:]], 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_the_first_edited_line_is_named(log: Path, capsys: Capture, edit: str) -> None:
    change, line = EDITS[edit]
    log.write_bytes("".join(change(log.read_text().splitlines(keepends=True))).encode())
    assert end("audit", "check", log) == 1
    streams = capsys.readouterr()
    assert re.match(rf"error: \S+audit\.log, line {line}\b", streams.err)
    assert streams.out == ""


def test_whole_lines_cut_off_show_only_with_a_head_kept_elsewhere(
    log: Path, capsys: Capture
) -> None:
    assert end("audit", "check", log) == 0
    head = shown(capsys)["head"]
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]))
    assert end("audit", "check", log) == 0
    assert end("audit", "check", log, "--head", head) == 1
    assert "none of its 3 lines has the hash" in capsys.readouterr().err

    with AuditLog.open(log) as opened:  # and filled up again, by whoever can write the file
        opened.append("session", images=9, outcome="ok")
        opened.append("stop")
    assert end("audit", "check", log) == 0
    assert end("audit", "check", log, "--head", head) == 1


def test_a_log_that_went_on_since_the_head_was_kept(log: Path, capsys: Capture) -> None:
    assert end("audit", "check", log) == 0
    head = shown(capsys)["head"]
    with AuditLog.open(log) as opened:
        opened.append("start")
    assert end("audit", "check", log, "--head", head) == 0
    found = shown(capsys)
    assert found["entries"] == "6"
    assert found["head"] != head


def test_what_is_no_hash(log: Path, capsys: Capture) -> None:
    assert end("audit", "check", log, "--head", "abc") == 2
    assert "64 hexadecimal digits, got 'abc'" in capsys.readouterr().err


def test_no_log(tmp_path: Path, capsys: Capture) -> None:
    assert end("audit", "check", tmp_path / "none.log") == 1
    assert "cannot read the audit log" in capsys.readouterr().err
