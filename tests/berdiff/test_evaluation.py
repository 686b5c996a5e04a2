"""Evaluation of detectors whose answer is known, and of masks that do not fit."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fakes import FakeBackend, FloatArray, fake_detector
from numpy.typing import NDArray
from PIL import Image

from berdiff.evaluation import Evaluation, Figures, evaluate
from berdiff.evaluation_cases import INTENSITY, NO_ZSCORE, SMOOTHED, ZSCORE, EvaluationOptions
from berdiff.evaluation_report import table, write_evaluation
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BerdiffError, InputError
from berdiff.runtime.manifest import Threshold
from berdiff.runtime.scans import read_scan

ROWS, COLUMNS = 32, 40
LESION_ROWS = 10
# Tissue is stored as 128 of 255; what the detector takes for healthy is slightly brighter, so that
# the signed map of tissue is exactly 0.
HEALTHY_LEVEL = 0.51


class GreyBackend(FakeBackend):
    """Decodes every code to the same grey image."""

    def decode(self, code: FloatArray) -> FloatArray:
        return np.full((len(code), 1, ROWS, COLUMNS), HEALTHY_LEVEL, np.float32)


def grey_detector(threshold: Threshold | None = None) -> Detector:
    bundle = fake_detector(threshold=threshold).bundle
    sampling = dataclasses.replace(bundle.manifest.sampling, anomaly_map="signed")
    manifest = dataclasses.replace(bundle.manifest, sampling=sampling)
    return Detector(dataclasses.replace(bundle, manifest=manifest), GreyBackend(1))


def tissue() -> NDArray[np.uint8]:
    """Grey all over, apart from one black pixel (which is background)."""
    image = np.full((ROWS, COLUMNS), 128, np.uint8)
    image[-1, -1] = 0
    return image


def save(path: Path, pixels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images with a bright band and a mask of it, two healthy ones with one bright pixel.

    The edges of a band are straight, so the 5 x 5 median of the maps leaves them where they are.
    """
    lesion = tissue()
    lesion[:LESION_ROWS] = 255
    for number in range(3):
        lesion[-1, number] = 127  # other pixels, other identity
        save(tmp_path / f"images/sub/{number}.png", lesion)
        save(tmp_path / f"masks/sub/{number}.png", (lesion == 255).astype(np.uint8))
    for number in range(2):
        healthy = tissue()
        healthy[5, number] = 255
        save(tmp_path / f"healthy/{number}.png", healthy)
    return tmp_path


def run(data: Path, detector: Detector | None = None, **more: object) -> Evaluation:
    folders = (data / name for name in ("images", "masks", "healthy"))
    return evaluate(detector or grey_detector(), *folders, **more)  # type: ignore[arg-type]


def figures(evaluation: Evaluation, name: str) -> Figures:
    (found,) = (figures for figures in evaluation.figures if figures.map == name)
    return found


def test_a_perfect_map_gets_perfect_figures(data: Path) -> None:
    evaluation = run(data)
    perfect = figures(evaluation, "signed")
    for name in ("pixel_ap", "pixel_auroc", "best_dice", "healthy_dice", "image_auroc"):
        assert getattr(perfect, name) == pytest.approx(1), name
    assert perfect.healthy_threshold == 0
    assert perfect.pixel_ap_interval == pytest.approx((1, 1))
    assert perfect.image_auroc_interval == pytest.approx((1, 1))
    assert evaluation.counts == {
        "images_with_masks": 3,
        "of_them_without_lesion": 0,
        "healthy_images": 2,
        "foreground_pixels": 3 * (ROWS * COLUMNS - 1),
        "lesion_pixels": 3 * LESION_ROWS * COLUMNS,
        "train_images": 0,
    }
    assert [case.name for case in evaluation.cases] == ["sub/0", "sub/1", "sub/2", "0", "1"]


def test_a_map_without_information_gets_the_figures_of_a_guess(data: Path) -> None:
    # The decoder ignores the code, so the loop changes nothing.
    guess = figures(run(data), "change")
    prevalence = LESION_ROWS * COLUMNS / (ROWS * COLUMNS - 1)
    assert guess.pixel_ap == pytest.approx(prevalence)
    assert guess.pixel_auroc == pytest.approx(0.5)
    assert guess.best_dice == pytest.approx(2 * prevalence / (1 + prevalence))
    assert guess.healthy_dice == 0
    assert guess.image_auroc == pytest.approx(0.5)


def test_a_map_twice_as_large_as_the_masks(data: Path) -> None:
    for file in (data / "masks").rglob("*.png"):
        mask = np.zeros((ROWS, COLUMNS), np.uint8)
        mask[: LESION_ROWS // 2] = 1
        save(file, mask)
    half = figures(run(data), "signed")
    assert half.pixel_ap == pytest.approx(0.5)
    assert half.best_dice == pytest.approx(2 / 3)
    assert half.healthy_dice == pytest.approx(2 / 3)
    lesion, rest = LESION_ROWS * COLUMNS // 2, ROWS * COLUMNS - 1 - LESION_ROWS * COLUMNS // 2
    wrong = lesion / 2  # healthy pixels at the lesion's value: tied, counted half
    assert half.pixel_auroc == pytest.approx(1 - wrong / rest)


def test_every_map_is_measured_in_one_pass(data: Path) -> None:
    detector = grey_detector()
    evaluation = run(data, detector)
    kinds = ["signed", "squared", "absolute", "change", "flips"]
    expected = [name for kind in kinds for name in (kind, kind + SMOOTHED)]
    assert [f.map for f in evaluation.figures] == [*expected, INTENSITY]
    assert sum(detector.backend.batches) == 5  # type: ignore[attr-defined]
    assert evaluation.settings.anomaly_map == "signed"
    assert NO_ZSCORE in evaluation.notes


def test_maps_are_those_of_the_detector(data: Path) -> None:
    detector = fake_detector()
    evaluation = run(data, detector, options=EvaluationOptions(("flips", "squared", "change")))
    case = evaluation.cases[0]
    image = np.asarray(Image.open(data / "images/sub/0.png")).astype(np.float32)[None]
    grid = detector.bundle.manifest.preprocessing.to_grid(image)
    scan = read_scan(data / "images/sub/0.png", detector.bundle.manifest.preprocessing)
    for kind in ("flips", "squared", "change"):
        settings = detector.settings(anomaly_map=kind)  # type: ignore[arg-type]
        alone = detector.detect(grid[None], scan.image_ids, settings=settings)
        np.testing.assert_array_equal(case.volume(kind)[0][case.inside[0]],
                                      alone.anomaly_map[0][case.inside[0]])  # fmt: skip
        assert case.scores[kind] == alone.score[0]
    assert evaluation.settings.anomaly_map == "flips"


def test_batches_do_not_change_the_figures(data: Path) -> None:
    first, second = (
        run(data, fake_detector(), options=EvaluationOptions(batch_size=size)) for size in (1, 4)
    )
    assert first.figures == second.figures


def test_z_score_beside_the_detector(data: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(6):
        healthy = random.integers(100, 140, (ROWS, COLUMNS)).astype(np.uint8)
        healthy[-1, -1], healthy[-1, -2] = 0, 255
        save(data / f"train/{number}.png", healthy)
    evaluation = run(data, train=data / "train")
    assert evaluation.counts["train_images"] == 6
    assert evaluation.notes == (
        "the bundle has no calibrated threshold: berdiff calibrate makes one",
    )
    assert (figures(evaluation, ZSCORE).pixel_ap or 0) > 0.95
    again = run(data, train=data / "healthy")
    assert any("2 of the evaluated scans are also in --train" in note for note in again.notes)


def calibrated(value: float, **other: object) -> Threshold:
    threshold = Threshold(value, "test", "signed", 100, 10, 0.5)
    return dataclasses.replace(threshold, **other)


def test_dice_at_the_bundles_threshold(data: Path) -> None:
    assert run(data, grey_detector(calibrated(0.2))).calibrated_dice == pytest.approx(1)
    assert run(data, grey_detector(calibrated(0.9))).calibrated_dice == 0
    other = run(data, grey_detector(calibrated(0.2, noise_level=50)))
    assert other.calibrated_dice is None
    assert "the bundle's threshold is for noise_level 50, evaluated was 100" in other.notes


def test_a_mask_that_shows_nothing_makes_its_image_a_healthy_one(data: Path) -> None:
    save(data / "masks/sub/2.png", np.zeros((ROWS, COLUMNS), np.uint8))
    evaluation = run(data)
    assert evaluation.counts["of_them_without_lesion"] == 1
    # Its band now counts as false: a third of what the map finds.
    assert figures(evaluation, "signed").pixel_ap == pytest.approx(2 / 3)
    assert figures(evaluation, "signed").image_auroc == pytest.approx((2 + 0.5) / 3)


def test_masks_that_show_nothing_at_all_are_refused(data: Path) -> None:
    for file in (data / "masks").rglob("*.png"):
        save(file, np.zeros((ROWS, COLUMNS), np.uint8))
    with pytest.raises(InputError, match="no mask shows anything"):
        run(data)


def test_missing_masks_are_named(data: Path) -> None:
    (data / "masks/sub/1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 scans have no mask in .*masks: sub/1;"):
        run(data)


def test_a_mask_of_another_shape_is_named(data: Path) -> None:
    save(data / "masks/sub/1.png", np.ones((ROWS, COLUMNS + 1), np.uint8))
    with pytest.raises(
        InputError, match=r"1\.png: the mask is a picture of 32 x 41 pixels, its .* of 32 x 40"
    ):
        run(data)


def test_a_jpeg_mask_is_refused(data: Path) -> None:
    (data / "masks/sub/1.png").unlink()
    save(data / "masks/sub/1.jpg", np.zeros((ROWS, COLUMNS), np.uint8))
    with pytest.raises(InputError, match=r"1\.jpg: JPEG blurs"):
        run(data)


def test_volumes_and_masks_stored_the_other_way_round(data: Path) -> None:
    # Slices as the model sees them: rows to posterior, columns to the right, upwards.
    volume = np.stack([np.asarray(Image.open(data / f"images/sub/{n}.png")) for n in range(3)])
    mask = volume == 255
    volume[1, :LESION_ROWS], mask[1] = 128, False
    volume[1, 20, 20] = 255
    lps = np.diag([-1.0, -1, 1, 1])
    array = volume.transpose(2, 1, 0)  # columns, rows, slices
    for folder in ("v", "vm"):
        (data / folder).mkdir()
    nibabel.save(
        nibabel.Nifti1Image(array[::-1].copy(), np.diag([1.0, -1, 1, 1])), data / "v/a.nii.gz"
    )
    flipped = mask.transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.uint8)
    nibabel.save(
        nibabel.Nifti1Image(flipped.copy(), lps * np.array([1, -1, -1, 1])), data / "vm/a.nii"
    )
    evaluation = evaluate(grey_detector(), data / "v", data / "vm", data / "healthy")
    assert figures(evaluation, "signed").pixel_ap == pytest.approx(1)
    assert evaluation.counts["lesion_pixels"] == 2 * LESION_ROWS * COLUMNS
    # A mask of one slice is no mask of this volume.
    save(data / "vm2/a.png", mask[0].astype(np.uint8))
    with pytest.raises(InputError, match=r"the mask is a picture of .* is a volume of"):
        evaluate(grey_detector(), data / "v", data / "vm2", data / "healthy")


def test_written_evaluation(data: Path, tmp_path: Path) -> None:
    detector = grey_detector(calibrated(0.2))
    evaluation = run(data, detector)
    out = tmp_path / "out"
    write_evaluation(out, evaluation, detector)
    assert sorted(file.name for file in out.iterdir()) == [
        "cases.png", "images.csv", "images.png", "precision_recall.png", "summary.json",
        "summary.md",
    ]  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["calibrated_dice"] == 1
    assert summary["bundle"]["digest"] == detector.bundle.digest
    signed = next(row for row in summary["figures"] if row["map"] == "signed")
    assert signed["pixel_ap"] == pytest.approx(1)
    with open(out / "images.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["name"], row["group"]) for row in rows[2:4]] == [
        ("sub/2", "with mask"), ("0", "healthy")
    ]  # fmt: skip
    assert float(rows[0]["AP: signed"]) == pytest.approx(1)
    assert rows[3]["AP: signed"] == ""
    assert float(rows[3]["score: signed"]) == 0
    for name in ("cases", "images", "precision_recall"):
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 300
    with pytest.raises(BerdiffError, match="exists already"):
        write_evaluation(out, evaluation, detector)


def test_table_aligns_its_columns_and_states_what_was_left_out(data: Path) -> None:
    lines = table(run(data)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    assert rows[2].startswith("| signed ")
    assert "| 1.000 [1.000, 1.000] |" in rows[2]
    assert any(NO_ZSCORE in line for line in lines)


def test_evaluation_does_not_load_torch() -> None:
    code = "import sys, berdiff.evaluation_report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
