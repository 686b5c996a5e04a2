"""The demo: the whole road, as a stranger runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from berdiff.cli.main import app


@pytest.mark.slow
def test_the_demo_finds_lesions_and_leaves_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "-o", str(folder), "--count", "8"])
    assert result.exit_code == 0, result.output
    report = folder / "results" / "report.html"
    assert str(report) in result.output
    assert report.read_text(encoding="utf-8").count("data:image/") >= 8
    rows = (folder / "results" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 8
    assert all(",ok," in row for row in rows[1:])

    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    main = summary["figures"][0]
    guess = summary["counts"]["lesion_pixels"] / summary["counts"]["foreground_pixels"]
    # Measured 0.6 on 24 heads against 0.03 for a guess; a detector that does nothing stays there.
    assert main["pixel_ap"] > 5 * guess
    assert main["map"] == "signed"


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert result.exit_code != 0
    assert "exists already" in str(result.exception)
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]
