"""The benchmark of the MRD server runs, and says what it is to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from berdiff.runtime.bundle import Bundle

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_mrd.py"


@pytest.mark.slow
def test_a_small_run(tiny_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    words = ["--minutes", "0.05", "--clients", "2", "--slices", "2", "-o", str(output)]
    done = subprocess.run(
        [sys.executable, SCRIPT, tiny_bundle.path, *words],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "latency p50 / p95 / p99 / max, s" in done.stdout
    measured = json.loads(output.read_text())
    assert measured["lost"] == []
    assert measured["sessions"]["sound"] == len(measured["seconds"]) > 0
    assert measured["memory_mib"][-1][1] > 0
