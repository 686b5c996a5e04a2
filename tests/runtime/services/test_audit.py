import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from berdiff.runtime.services.audit import GENESIS, AuditError, AuditLog, check


def written(path: Path, count: int = 3) -> list[bytes]:
    with AuditLog.open(path) as log:
        for number in range(count):
            log.append("session", images=number, outcome="ok", device="cpu", seconds=0.25)
    return path.read_bytes().splitlines(keepends=True)


def test_an_empty_log_has_the_first_head(tmp_path: Path) -> None:
    with AuditLog.open(tmp_path / "new" / "audit.log") as log:
        assert log.head == GENESIS
    summary = check(tmp_path / "new" / "audit.log")
    assert (summary.entries, summary.head, summary.first) == (0, GENESIS, None)


def test_it_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    written(path, 2)
    first = check(path)
    with AuditLog.open(path) as log:
        assert log.head == first.head
        log.append("stop")
        head = log.head
    summary = check(path)
    assert (summary.entries, summary.head, summary.first) == (3, head, first.first)
    last = json.loads(path.read_bytes().splitlines()[-1])
    assert (last["previous"], last["event"], last["number"]) == (first.head, "stop", 3)


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    lines = written(path)
    data, starts = b"".join(lines), []
    for line in lines:
        starts.append(sum(map(len, lines[: len(starts)])))
        assert line.endswith(b"\n")
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(AuditError, match=r"audit\.log, line \d") as caught:
            check(path)
        line = sum(start <= place for start in starts)
        assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize(
    ("order", "bad"),
    [((0, 2), 2), ((1, 2), 1), ((0, 2, 1), 2), ((0, 0, 1, 2), 2), ((0, 1, 2, 2), 4)],
    ids=["removed", "first removed", "moved", "repeated", "last repeated"],
)
def test_lines_stay_where_they_are(tmp_path: Path, order: tuple[int, ...], bad: int) -> None:
    path = tmp_path / "audit.log"
    lines = written(path)
    path.write_bytes(b"".join(lines[number] for number in order))
    with pytest.raises(AuditError, match=f"line {bad}.*(removed, inserted or moved)"):
        check(path)
    with pytest.raises(AuditError):
        AuditLog.open(path)


def test_a_line_that_vouches_for_itself_is_found_by_the_next(tmp_path: Path) -> None:
    """Somebody who knows the rule rewrites one line, with the right hash."""
    path, forged = tmp_path / "audit.log", tmp_path / "forged.log"
    lines = written(path)
    with AuditLog.open(forged) as log:
        log.append("session", images=99, outcome="ok", device="cpu", seconds=0.25)
    path.write_bytes(forged.read_bytes() + b"".join(lines[1:]))
    with pytest.raises(AuditError, match="line 2 does not follow"):
        check(path)


def test_lines_cut_off_leave_another_head(tmp_path: Path) -> None:
    """What the log alone cannot show: its head, kept elsewhere, does."""
    path = tmp_path / "audit.log"
    lines = written(path)
    whole = check(path)
    path.write_bytes(b"".join(lines[:2]))
    cut = check(path)
    assert (cut.entries, whole.entries) == (2, 3)
    assert cut.head != whole.head


def test_a_line_that_a_power_cut_left_half_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    lines = written(path)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:-5])
    with pytest.raises(AuditError, match=r"line 3.*no end"):
        check(path)
    with AuditLog.open(path) as log:
        log.append("start")
    assert check(path).entries == 3


def test_a_full_disk_leaves_the_log_sound(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    before = written(path)
    # A real limit: the process may not write more than a few bytes beyond what is there.
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from berdiff.runtime.services.audit import AuditLog\n"
        "path = Path(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "size = path.stat().st_size + 40\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "with AuditLog.open(path) as log:\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            log.append('session')\n"
        "        except OSError:\n"
        "            print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused", "refused"]
    assert path.read_bytes() == b"".join(before)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with (
        AuditLog.open(path) as log,
        pytest.raises(AuditError, match="another process writes"),
    ):
        AuditLog.open(path)
    with AuditLog.open(path) as log:
        log.append("start")


def test_threads_append_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with AuditLog.open(path) as log:
        threads = [
            threading.Thread(target=lambda: [log.append("session") for _ in range(20)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert check(path).entries == 80


@pytest.mark.parametrize(
    "content", [b"[1]\n", b"{}\n", b"\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"x" * 2**21]
)
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "audit.log"
    path.write_bytes(content)
    with pytest.raises(AuditError, match="line 1"):
        check(path)
    with pytest.raises(AuditError, match="line 1"):
        AuditLog.open(path)
    assert path.read_bytes() == content


def test_facts_that_json_does_not_know_are_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    with AuditLog.open(path) as log:
        with pytest.raises(ValueError, match="JSON"):
            log.append("session", seconds=float("nan"))
        log.append("stop")
    assert check(path).entries == 1


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=f"{os.sep}none.log"):
        check(tmp_path / "none.log")
