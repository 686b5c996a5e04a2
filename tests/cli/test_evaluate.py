"""``berdiff evaluate`` and ``berdiff calibrate`` with a real, tiny bundle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from berdiff.cli import main
from berdiff.runtime.bundle import Bundle as OpenedBundle

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise; in `images`, a corner brighter than that and a mask of it."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for group in ("images", "masks", "healthy", "train"):
        (folder / group).mkdir()
    for number in range(3):
        for group in ("images", "healthy", "train"):
            pixels = random.integers(1, 200, (32, 32), np.uint8)
            if group == "images":
                pixels[:10, :10] = 255
            Image.fromarray(pixels).save(folder / group / f"{number}.png")
        mask = np.zeros((32, 32), np.uint8)
        mask[:10, :10] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def evaluation(bundle: Path, data: Path, *more: object) -> int:
    masks, healthy = data / "masks", data / "healthy"
    return end(
        "evaluate", "-m", bundle, "-i", data / "images", "--masks", masks, "--healthy", healthy,
        "--steps", 2, "--noise-level", 20, *more,
    )  # fmt: skip


def rows(printed: str) -> list[str]:
    return re.findall(r"^\| ([^|]*?) +\|", printed, re.MULTILINE)


def test_evaluate_prints_a_table_of_maps_and_baselines(
    bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation(bundle, data, "--train", data / "train") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    names = rows(printed.out)
    assert names[:3] == ["map", "squared", "squared, smoothed"]
    assert names[-2:] == ["z-score baseline", "intensity baseline"]
    assert len(names) == 1 + 2 * 5 + 2
    assert "3 images with masks, 3 healthy" in printed.out
    assert "Noise level 20, 2 steps" in printed.out


def test_evaluate_writes_what_was_asked_for(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    maps = ("--anomaly-map", "signed", "--anomaly-map", "flips")
    assert evaluation(bundle, data, "-o", out, *maps, "--seed", 7, "--batch-size", 2) == 0
    printed = capsys.readouterr().out
    assert rows(printed)[1:5] == ["signed", "signed, smoothed", "flips", "flips, smoothed"]
    assert "the z-score baseline was left out" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["options"]["seed"] == 7
    assert summary["settings"]["anomaly_map"] == "signed"
    assert (out / "cases.png").is_file()
    assert evaluation(bundle, data, "-o", out) == 1
    assert "exists already" in capsys.readouterr().err


def test_evaluate_says_what_is_missing(
    bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("evaluate", "-m", bundle, "-i", data / "train", "--healthy", data / "healthy")
    assert end(*arguments, "--masks", data / "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert end(*arguments) == 2


def test_calibrate_writes_the_threshold_into_the_bundle(
    bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = OpenedBundle.open(bundle)
    assert before.manifest.threshold is None
    code = end("calibrate", "-m", bundle, "-i", data / "healthy", "--false-positive-rate", 0.05)
    assert code == 0
    printed = capsys.readouterr()
    after = OpenedBundle.open(bundle)
    threshold = after.manifest.threshold
    assert threshold is not None
    assert threshold.mismatch(after.manifest.sampling) is None
    assert "at most 0.05 of the pixels lie above" in threshold.source
    assert f"threshold {threshold.value:.6g} for the map 'squared'" in printed.out
    assert printed.err == ""
    # The threshold is what infer takes, and what evaluate judges.
    assert evaluation(bundle, data, "--noise-level", 50, "--steps", 5) == 0
    assert "Dice of the map 'squared' at the bundle's own threshold" in capsys.readouterr().out


def test_calibrate_warns_where_infer_will_not_use_the_threshold(
    bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("calibrate", "-m", bundle, "-i", data / "healthy", "--steps", 2) == 0
    assert "only where infer gets the same options" in capsys.readouterr().err
    threshold = OpenedBundle.open(bundle).manifest.threshold
    assert threshold is not None
    assert threshold.steps == 2


def test_calibrate_leaves_the_bundle_alone_when_it_fails(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"")
    assert end("calibrate", "-m", bundle, "-i", tmp_path / "bad") == 1
    assert "x.png: the file is empty" in capsys.readouterr().err
    assert (bundle / "bundle.json").read_bytes() == before
