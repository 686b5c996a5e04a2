"""``berdiff infer --cluster local``: a private cluster on this machine, interrupted and killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle

SCANS = 24


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(SCANS):
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(1, 256, (30, 28), np.uint8)).save(folder / f"{seed:02}.png")
    return folder


def command(bundle: Bundle, scans: Path, out: Path, *options: str) -> list[str]:
    """`berdiff infer`, slow enough to be interrupted."""
    paths = ["-m", str(bundle.path), "-i", str(scans), "-o", str(out)]
    slow = ["--noise-level", "60", "--steps", "60", "--batch-size", "1", "--threads", "1"]
    start = "from berdiff.cli.main import run; run()"
    return [sys.executable, "-c", start, "infer", *paths, *slow, "--no-report", *options]


def end(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def digests(out: Path) -> dict[str, str]:
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("maps", "overlays")
        for path in sorted((out / part).rglob("*.*"))
    }


def finished(out: Path) -> int:
    """Scans in the journal, each once and with its files."""
    path = out / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        for name, digest in line["outputs"].items():
            assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert len({line["result"]["input"] for line in lines}) == len(lines)
    return len(lines)


def ray_processes(session: int) -> list[str]:
    """Command lines of what is left of a session and is Ray's."""
    listed = subprocess.run(
        ["ps", "-o", "args=", "-s", str(session)], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if "ray" in line]


def interrupt(command: list[str], out: Path, number: signal.Signals) -> tuple[int, str, int]:
    """Run until three scans are finished, send a signal; return status, messages and session."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    journal = out / "journal.jsonl"
    while child.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.01)
    assert child.poll() is None, child.communicate()[1]
    if number == signal.SIGINT:
        os.killpg(child.pid, number)  # as a terminal sends it: to everything in the foreground
    else:
        child.send_signal(number)
    _, said = child.communicate(timeout=120)
    return child.returncode, said, child.pid


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_interrupted_killed_and_continued(tiny_bundle: Bundle, scans: Path, tmp_path: Path):
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert end(command(tiny_bundle, scans, alone)).returncode == 0
    local = command(tiny_bundle, scans, out, "--cluster", "local")

    code, said, session = interrupt(local, out, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in said
    first = finished(out)
    assert 3 <= first < SCANS
    assert not list(out.rglob(".part-*"))
    assert len(digests(out)) == 5 * first

    code, _, session = interrupt([*local, "--continue"], out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while left := ray_processes(session):  # nothing goes on in secret
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    second = finished(out)
    assert first <= second < SCANS

    done = end([*local, "--continue", "--detectors", "2"])
    assert done.returncode == 0, done.stderr
    assert f"{SCANS} of {SCANS} scans processed, {second} of them by an earlier run" in done.stdout
    assert f"{SCANS - second} scans, {SCANS - second} slices, networks busy" in done.stderr
    assert finished(out) == SCANS
    assert digests(out) == digests(alone)
    assert not list(out.rglob(".part-*"))
    record = json.loads((out / "run.json").read_text())
    assert record["cluster"]["address"] == "local"
    assert record["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--detectors", "2"], "needs --cluster or --devices"),
        (["--cluster", "local", "-d", "cuda:1"], "Ray chooses the GPUs"),
        (["--devices", "0,0"], "each once, as 0,1"),
        (["--devices", "a"], "each once, as 0,1"),
        (["--cluster", "local", "--gpus-per-detector", "1.5"], "a share of one GPU"),
    ],
)
def test_options_that_contradict_each_other(
    options: list[str], message: str, tiny_bundle: Bundle, scans: Path, tmp_path: Path
):
    done = end(command(tiny_bundle, scans, tmp_path / "out", *options))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_no_cluster_there(address: str, tiny_bundle: Bundle, scans: Path, tmp_path: Path):
    done = end(command(tiny_bundle, scans, tmp_path / "out", "--cluster", address))
    assert done.returncode == 1
    assert f"no connection to the Ray cluster '{address}'" in done.stderr
    assert not (tmp_path / "out").exists()
