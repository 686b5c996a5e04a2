"""`berdiff serve mrd` as a process: what it checks, says, and does when it is told to end."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mrd_peer import PATIENCE, Client, exchange, heads, images_of

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.services.audit import check


@contextmanager
def started(bundle: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "berdiff.cli", "serve", "mrd", "-m", str(bundle)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def port_after(process: subprocess.Popen[str], words: str) -> int:
    assert process.stderr
    for line in process.stderr:
        if line.startswith(words):
            return int(line.rsplit(":", 1)[1])
    raise AssertionError("it has ended")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(
    tiny_bundle: Bundle, tmp_path: Path, number: signal.Signals
) -> None:
    audit = tmp_path / "audit.log"
    options = ("--audit", str(audit), "--health-port", "0", "--seed", "5", "--no-originals")
    with started(tiny_bundle.path, *options) as process:
        health = port_after(process, "health on 127.0.0.1:")
        port = port_after(process, "listening on 127.0.0.1:")
        answer = exchange(port, images_of(heads((2, 32, 32))))
        assert len(answer.images) == len(answer.series("anomaly")) == 2
        assert answer.images[0].meta["BerdiffSeed"] == "5"
        assert answer.images[0].meta["BerdiffBundle"] == tiny_bundle.digest
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/ready", timeout=PATIENCE) as got:
            assert json.load(got)["ready"]
        with Client(port) as client:
            process.send_signal(number)
            assert "the server stops" in client.answer().error
        assert process.wait(PATIENCE) == 0
    assert check(audit).entries >= 3
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [e["event"] for e in (events[0], events[1], events[-1])] == ["start", "session", "stop"]
    assert events[0]["facts"]["bundle"] == tiny_bundle.digest


@pytest.mark.slow
def test_an_altered_bundle_is_not_served(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    weights = bundle / "onnx" / "denoiser.onnx"
    data = np.fromfile(weights, np.uint8)
    data[-100] ^= 1
    data.tofile(weights)
    with started(bundle, "--audit", str(tmp_path / "audit.log")) as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "denoiser.onnx was altered" in said
    assert "listening" not in said
    assert check(tmp_path / "audit.log").entries == 0


@pytest.mark.slow
def test_settings_out_of_range_are_refused_before_anything_is_served(tiny_bundle: Bundle) -> None:
    with started(tiny_bundle.path, "--noise-level", "100000") as process:
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "100000" in said
    assert "listening" not in said
