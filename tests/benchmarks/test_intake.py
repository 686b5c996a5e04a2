"""The measurement of the input checks, on phantoms."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from berdiff.phantoms import write_phantoms

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "intake.py"


def test_it_tells_turned_heads_from_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count, seed in (("train", 60, 0), ("healthy", 8, 1)):
        write_phantoms(tmp_path / name, count, seed=seed)
    write_phantoms(tmp_path / "pair", 1, seed=2, contrasts=("flair", "t1", "t2", "t1ce"),
                   file_format="nifti")  # fmt: skip
    images = [str(tmp_path / name / "images") for name in ("train", "healthy", "pair")]
    arguments = ["--train", images[0], "--preset", "phantom", "--right", images[1]]
    out = ["--wrong", images[2], "-o", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments, *out])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    record = json.loads((tmp_path / "out" / "intake.json").read_text())
    rows = {row["input"]: row for row in record["rows"]}
    assert record["statistics"]["images"] == 60
    first = record["rows"][0]
    assert (first["input"], first["scans"], first["suspect"], first["rejected"]) == (
        "images", 8, 0, 0)  # fmt: skip
    assert rows["turned by 90 degrees"]["suspect"] == 8
    assert rows["pixel size 1.5 times too small"]["suspect"] == 8
    assert rows["mirrored, left to right"]["suspect"] == 0
    assert record["rows"][-2]["scans"] == 4  # channels one by one
    table = (tmp_path / "out" / "table.md").read_text()
    assert len(table.splitlines()) == 2 + len(record["rows"])
