"""The measurement of runs on clusters: a small one for real, and its arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "cluster.py"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cluster

    return cluster


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_run(tmp_path: Path) -> None:
    words = ["--workers", "1", "2", "--scans", "2", "--cost", "0.2", "--size", "32", "--free", "4"]
    words += ["--lists", "60", "--volumes", "3", "--list-workers", "5"]
    words += ["--work", str(tmp_path), "-o", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [sys.executable, SCRIPT, *words], check=True, capture_output=True, text=True
    )
    measured = json.loads((tmp_path / "figures.json").read_text())
    assert [(row["workers"], row["scans"]) for row in measured["workers"]] == [(1, 2), (2, 4)]
    # Nobody is faster than the detector sleeps.
    assert all(row["run_s"] > 2 * 0.2 for row in measured["workers"])
    assert all(row["workers_cpu"] > 0 and row["driver_cpu"] > 0 for row in measured["workers"])
    lists = {(row["scans"], row["slices"]): row for row in measured["lists"]}
    assert lists.keys() == {(3, 155), (60, 1)}
    assert all(0 < row["mib_before"] <= row["mib_most"] for row in lists.values())
    assert measured["one_by_one_cpu_s"]["5"] > 0
    for line in ("efficiency", "one process (run_folder)", "CPU per scan: driver", "lists:"):
        assert line in done.stdout
    assert "memory of the driver for 60 scans" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_efficiency_and_overhead(cluster: ModuleType) -> None:
    def row(workers: int, run_s: float) -> Any:
        return cluster.Row(workers, 10 * workers, 5.0, run_s, 1.0, 0.001, 0.002, 0.017, 90.0, 150.0)

    text = cluster.workers_table([row(1, 20.5), row(4, 25.0)], row(1, 21.0), 2.0)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:4]}
    assert rows["1"] == ["0.49", "1.000", "50", "ms", "0.01", "5.0"]
    assert rows["4"] == ["1.60", "0.820", "500", "ms", "0.03", "5.0"]
    assert "overhead 100 ms per scan" in text
    assert f"can feed {cluster._cores() * 100} workers" in text
