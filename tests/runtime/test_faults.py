"""What goes wrong around a run, done for real: full disks, inputs that vanish, signals.

Mounts are made in a mount namespace of the test's own and end with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_detector
from PIL import Image

from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.run_plan import RunOptions

HERE = Path(__file__).parent

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
from fakes import fake_detector
from berdiff.cli import infer
from berdiff.runtime.detector import Detector
from berdiff.cli.main import run
Detector.open = classmethod(lambda cls, *_: fake_detector(delay=float(sys.argv[2])))
run(["infer", "-m", "fake", "-i", sys.argv[3], "-o", sys.argv[4], "--no-report", *sys.argv[5:]])
"""


def command(scans: Path, out: Path, *options: str, delay: float = 0.0) -> list[str]:
    """`berdiff infer` with the fake detector, in a process of its own."""
    return [sys.executable, "-c", RUN, str(HERE), str(delay), str(scans), str(out), *options]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(1, 256, (30, 36), np.uint8)).save(folder / f"{seed:02}.png")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("maps", "overlays")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def records(out: Path) -> list[dict]:
    """The journal's lines; every file that one names is there as it says."""
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        for name, digest in line["outputs"].items():
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    return lines


@functools.cache
def may_mount() -> bool:
    """Whether this user may mount something where nobody else sees it."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not may_mount(), reason="may not mount file systems")


def on_disk(size: str, mode: str, out: Path, saved: Path, inner: list[str]):
    """Run a command while `out` is a small disk; what is on it afterwards is copied to `saved`."""
    script = (
        'mount -t tmpfs -o "$1" tmpfs "$3" && { [ "$2" = rw ] || mount -o remount,ro "$3"; } || '
        'exit 99; out="$3"; saved="$4"; shift 4; "$@"; code=$?; cp -a "$out" "$saved"; exit $code'
    )
    out.mkdir()
    before = ["unshare", "-m", "sh", "-c", script, "sh", f"size={size}", mode, out, saved]
    done = subprocess.run([*map(str, before), *inner], capture_output=True, text=True, check=False)
    assert done.returncode != 99, done.stderr
    return done


@needs_mount
@pytest.mark.parametrize("size", ["16k", "200k", "420k"])
def test_a_disk_that_is_full(size: str, scans: Path, tmp_path: Path):
    out, saved = tmp_path / "out", tmp_path / "saved"
    done = on_disk(size, "rw", out, saved, command(scans, out))
    assert done.returncode == 1, done.stderr
    assert "No space left on device; what is finished is kept" in done.stderr
    assert "--continue" in done.stderr
    assert not list(saved.rglob(".part-*"))
    finished = len(records(saved))
    assert finished < 12
    assert not (saved / "results.csv").exists()

    # On a larger disk it goes on from there, to what an undisturbed run would have given.
    summary = run_folder(fake_detector(), scans, saved, RunOptions(resume=True))
    run_folder(fake_detector(), scans, tmp_path / "undisturbed")
    assert (len(summary.ok), summary.reused) == (12, finished)
    assert digests(saved) == digests(tmp_path / "undisturbed")


@needs_mount
def test_a_read_only_output(scans: Path, tmp_path: Path):
    done = on_disk(
        "1m", "ro", tmp_path / "out", tmp_path / "saved", command(scans, tmp_path / "out")
    )
    assert done.returncode == 1
    assert "cannot write to" in done.stderr
    assert "Read-only file system" in done.stderr
    assert list((tmp_path / "saved").iterdir()) == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_an_unreadable_input_fails_alone(scans: Path, tmp_path: Path):
    (scans / "03.png").chmod(0)
    plain = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    prefix = plain if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, *command(scans, tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "03.png: cannot read the file: Permission denied" in done.stderr
    assert len(records(tmp_path / "out")) == 11


def test_inputs_that_vanish_or_change_while_it_runs(scans: Path, tmp_path: Path):
    def meddle(*_: int) -> None:  # first called after one batch; two scans are read ahead
        (scans / "10.png").unlink(missing_ok=True)
        (scans / "11.png").write_bytes(b"no picture any more")

    options = RunOptions(batch_size=1)
    summary = run_folder(fake_detector(delay=0.002), scans, tmp_path / "out", options, meddle)
    assert {result.input: result.reason.split(":")[0] for result in summary.failed} == {
        "10.png": "cannot read the file",
        "11.png": "cannot read it as PNG, JPEG or TIFF",
    }
    assert len(summary.ok) == 10


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_finishes_what_is_computed(
    number: signal.Signals, scans: Path, tmp_path: Path
):
    out = tmp_path / "out"
    child = subprocess.Popen(
        command(scans, out, "--batch-size", "1", delay=0.25),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = out / "journal.jsonl"
    while child.poll() is None and (not journal.exists() or journal.stat().st_size == 0):
        time.sleep(0.005)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130, said
    assert "Traceback" not in said
    finished = len(records(out))
    assert 1 <= finished < 12
    assert not list(out.rglob(".part-*"))
    assert len(digests(out)) == 5 * finished
    summary = run_folder(fake_detector(), scans, out, RunOptions(resume=True))
    assert (len(summary.ok), summary.reused) == (12, finished)


def test_a_defect_in_a_reader_fails_one_scan_and_tells_no_names(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import berdiff.runtime.scans.picture as picture

    first = np.asarray(Image.open(scans / "05.png"))[0, 0]

    def broken(stored: np.ndarray, _: object) -> np.ndarray:
        if stored[0, 0] == first:
            raise KeyError("DOE^JANE")
        return stored[None]

    monkeypatch.setattr(picture, "_channels", broken)
    summary = run_folder(fake_detector(), scans, tmp_path / "out")
    (failed,) = summary.failed
    assert failed.input == "05.png"
    assert failed.reason.startswith("unexpected KeyError (test_faults.py, line ")
    assert all("JANE" not in path.read_text() for path in (tmp_path / "out").glob("*.*"))
