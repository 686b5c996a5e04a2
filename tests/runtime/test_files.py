"""Files and folders that are whole or not there, however the writer ends."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import atomic_file, atomic_folder, sha256_file, write_atomic

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and signals are POSIX's")


class Interrupted(Exception):
    """Stands for whatever may end a writer."""


@pytest.fixture
def umask() -> Iterator[None]:
    """The usual one: others may read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def write_half(path: Path) -> None:
    path.write_bytes(b"half")
    raise Interrupted


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "map.nii.gz"
    with atomic_file(target) as part:
        part.write_bytes(b"half")
        assert not target.exists()
        part.write_bytes(b"whole")
        # Writers choose the format by the suffix, and readers of folders pass over dotted names.
        assert part.name.endswith(".nii.gz")
        assert part.name.startswith(".part-")
        assert part.parent == target.parent
    assert target.read_bytes() == b"whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("earlier", [None, b"earlier"])
def test_a_block_that_raises_changes_nothing(tmp_path: Path, earlier: bytes | None) -> None:
    target = tmp_path / "a.json"
    if earlier is not None:
        target.write_bytes(earlier)
    with pytest.raises(Interrupted), atomic_file(target) as part:
        write_half(part)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([earlier] if earlier else [])


def test_a_file_is_replaced(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old and longer")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


@POSIX
def test_others_may_read_what_they_could_read_of_any_new_file(tmp_path: Path, umask: None) -> None:
    """Temporary files are private; results must not stay so."""
    write_atomic(tmp_path / "a", b"")
    with atomic_folder(tmp_path / "b") as part:
        (part / "c").touch()
    assert mode(tmp_path / "a") == 0o644
    assert mode(tmp_path / "b") == 0o755
    assert os.umask(0o022) == 0o022  # and the mask is as it was


def test_a_folder_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "bundle"
    with atomic_folder(target) as part:
        (part / "onnx").mkdir()
        (part / "onnx" / "a.onnx").write_bytes(b"a")
        assert not target.exists()
        assert part.name.startswith(".part-")
    assert (target / "onnx" / "a.onnx").read_bytes() == b"a"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_whose_block_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), atomic_folder(tmp_path / "bundle") as part:
        write_half(part / "a")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with atomic_folder(tmp_path / "bundle") as part:
        (part / "a").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["bundle", "a"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_never_replaced_by_a_folder(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "bundle"
    mine = target / "mine.txt" if kind == "folder" else target
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(BerdiffError, match="exists already"), atomic_folder(target):
        pytest.fail("the work must not begin")
    assert mine.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


KILLED = """
import os, signal, sys
from pathlib import Path
from berdiff.runtime.files import atomic_file, atomic_folder
target = Path(sys.argv[2])
with (atomic_file if sys.argv[1] == "file" else atomic_folder)(target) as part:
    (part if part.is_file() else part / "a").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@POSIX
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_writer_leaves_only_a_dotted_name(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "result.png"
    if kind == "file":
        target.write_bytes(b"earlier")
    done = subprocess.run([sys.executable, "-c", KILLED, kind, target], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path != target)
    assert left.name.startswith(".part-")
    if kind == "file":
        assert target.read_bytes() == b"earlier"
    else:
        assert not target.exists()
        with atomic_folder(target) as part:  # and the next attempt succeeds beside it
            (part / "a").write_bytes(b"whole")
        assert (target / "a").read_bytes() == b"whole"


def test_the_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    """Larger than one block, by a part of one."""
    content = bytes(range(256)) * (1 << 13) + b"end"
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
