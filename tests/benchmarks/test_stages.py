"""The measurement of stages: a small run for real, and the figures it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from berdiff.runtime.detector import Detector

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "stages.py"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import stages

    return stages


def test_a_small_run(tmp_path: Path) -> None:
    figures = tmp_path / "stages.json"
    words = ["--cases", "5", "--shape", "40", "48", "6", "--work", tmp_path, "-o", figures]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], check=True, capture_output=True, text=True
    )
    measured = json.loads(figures.read_text())
    assert (measured["cases"], measured["slices"]) == (5, 20)  # of six, two lie beyond the egg
    assert {"read", "encode", "loop", "decode", "maps", "write"} <= set(measured["timings"])
    assert measured["mib_at_most"] > measured["mib_before"] > 0
    assert done.stdout.startswith("5 case(s), 20 slices that show something")
    assert [path.name for path in tmp_path.iterdir()] == ["stages.json"]


def test_what_lies_outside_the_networks(stages: ModuleType) -> None:
    measured: dict[str, Any] = {
        "cases": 4,
        "slices": 400,
        "batch_size": 8,
        "backend": "stand-in",
        "device": "cpu",
        "steps": 2,
        "cpus": 2,
        "timings": {"read": 3.0, "encode": 1.0, "loop": 20.0, "decode": 0.5, "maps": 2.0},
        "wall_s": 25.0,
        "cpu_s": 40.0,
        "mib_before": 100,
        "mib_at_most": 900,
        "written_mib": 80,
    }
    rows = {line[:32].strip(): line[32:].split() for line in stages.table(measured).splitlines()}
    assert rows["the run but for the networks"] == ["3.50", "0.875"]
    assert rows["maps"] == ["2.00", "0.500"]


def test_the_stand_in_has_the_shapes_of_the_published_model(stages: ModuleType) -> None:
    detector: Detector = stages.stand_in()
    detector.warm_up(2)
    manifest = detector.bundle.manifest
    images = np.full((2, 4, 256, 256), 0.25, np.float32)
    code = detector.backend.encode(images)
    assert code.shape == (2, manifest.code.channels, manifest.code.height, manifest.code.width)
    np.testing.assert_allclose(detector.backend.decode(code), images)
