"""The measurement of a DICOM node under load: a short one for real, and its arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from berdiff.runtime.bundle import Bundle

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_dicom.py"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_load(tiny_bundle: Bundle, tmp_path: Path) -> None:
    words = [str(tiny_bundle.path), "--minutes", "0.01", "--clients", "2", "--slices", "3"]
    words += ["--steps", "2", "-o", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["series"] >= 2
    assert figures["refused"] == figures["without_results"] == figures["not_exactly_once"] == 0
    assert 0 < figures["store_ms"]["p50"] <= figures["store_ms"]["max"]
    assert figures["resident_mib"]["late"] > 10


def test_growth_is_told_from_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import serve_dicom

    assert serve_dicom.growth([10, *[100] * 18, 100]) == (100, 100)
    assert serve_dicom.growth([10, *range(100, 119)])[1] > 115
    assert serve_dicom.percentiles([0.001] * 99 + [1.0])["p95"] == 1.0
