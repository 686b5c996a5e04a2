"""Verdicts: healthy input passes, wrong input does not, and the reason names what is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from berdiff.phantoms import phantom_slice
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.image_features import describe, feature_names
from berdiff.runtime.intake import (
    MIN_IMAGES,
    InputStatistics,
    Intake,
    check_features,
    distances,
    fit,
    judge,
    scored,
)
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.strict import from_json, read_json, to_json

FLAIR = ("flair",)
MODEL = Preprocessing(1, FLAIR, (64, 64), normalisation="foreground-median")
Images = NDArray[np.float32]


def heads(first: int, count: int, lesions: bool = False) -> Images:
    """Synthetic heads on the model's grid."""
    seeds = range(first, first + count)
    slices = [phantom_slice(seed, size=(64, 64), lesion=lesions).image for seed in seeds]
    return np.stack([MODEL.to_grid(image) for image in slices])


@pytest.fixture(scope="module")
def statistics() -> InputStatistics:
    found = fit(describe(heads(0, 120)), FLAIR)
    assert found is not None
    return found


def suspects(statistics: InputStatistics, images: Images) -> float:
    """Share of images that are suspect, each by itself."""
    return float(np.mean([judge(statistics, image[None]).verdict != "ok" for image in images]))


# --- what passes, and what does not --------------------------------------------------------------


def test_new_heads_pass_with_and_without_lesions(statistics: InputStatistics) -> None:
    assert suspects(statistics, heads(500, 40)) <= 0.05
    assert suspects(statistics, heads(600, 40, lesions=True)) <= 0.05


def _inverted(image: Images) -> Images:
    return np.where(image > 0, 1 - 0.9 * image, 0).astype(np.float32)


def _shrunk(image: Images) -> Images:
    small = ndimage.zoom(image, (1, 0.66, 0.66), order=1)
    return np.pad(small, [(0, 0), (11, 11), (11, 11)])


WRONG = {
    "turned": lambda image: np.rot90(image, axes=(1, 2)),
    "inverted": _inverted,
    "smaller": _shrunk,
    "shifted": lambda image: np.roll(image, 4, axis=1),
    "noise": lambda image: np.random.default_rng(0).random(image.shape, np.float32),
    "half": lambda image: image * (np.arange(64) < 32),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_wrong_input_is_suspect(statistics: InputStatistics, change: Any) -> None:
    wrong = np.stack([change(image) for image in heads(500, 20)]).astype(np.float32)
    assert suspects(statistics, wrong) >= 0.9


def test_the_reason_names_what_is_wrong_with_the_training_images_range(
    statistics: InputStatistics,
) -> None:
    (image,) = heads(500, 1)
    found = judge(statistics, np.roll(image, 4, axis=1)[None])
    assert found.verdict == "suspect"
    (reason,) = found.reasons
    place = statistics.features.index("row centre")
    low, high = statistics.low[place], statistics.high[place]
    moved = describe(image[None])[0, place] + 4 / 64
    assert f"row centre {moved:.3g} (training {low:.3g} to {high:.3g})" in reason
    assert "coverage" not in reason  # it is what it was
    assert reason.startswith(f"unlike the training images ({found.ood:.1f} times as far")


def test_an_odd_combination_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two features that always agree, and an image where they do not, within both ranges."""
    images = heads(0, 1)
    rows = np.tile(describe(images), (200, 1))
    rows[:, 0] = rows[:, 3] = np.random.default_rng(0).uniform(0.2, 0.8, 200)
    made = fit(rows, FLAIR)
    assert made is not None
    odd = rows[:1].copy()
    odd[0, [0, 3]] = 0.25, 0.75
    far = float(distances(made, odd)[0])
    assert far > distances(made, rows).max()
    monkeypatch.setattr("berdiff.runtime.intake.describe", lambda _: odd)
    found = judge(dataclasses.replace(made, limit=0.9 * far), images)
    assert "their combination is not" in found.reasons[0]


# --- the distance --------------------------------------------------------------------------------


def test_distance_is_that_of_mahalanobis_with_shrinkage() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(0.5, 0.1, (60, 15)) @ rng.normal(0, 1, (15, 15))
    found = fit(rows, FLAIR)
    assert found is not None
    correlation = 0.9 * np.corrcoef(rows.T) + 0.1 * np.eye(15)
    z = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    expected = [np.sqrt(row @ np.linalg.solve(correlation, row) / 15) for row in z]
    assert distances(found, rows) == pytest.approx(expected, rel=1e-4)


def test_the_limit_is_not_of_images_measured_by_themselves() -> None:
    """Of noise, images lie farther from the others than from all, themselves among them."""
    rows = np.random.default_rng(2).normal(0.5, 0.1, (40, 15))
    found = fit(rows, FLAIR)
    assert found is not None
    assert found.limit > 1.1 * distances(found, rows).max()


def test_features_that_never_vary_do_not_blow_up() -> None:
    rows = np.tile(describe(heads(0, 1)), (30, 1))
    found = fit(rows, FLAIR)
    assert found is not None
    assert found.limit == 1
    assert set(found.scale) == {0.003}
    assert distances(found, rows) == pytest.approx(0, abs=1e-3)
    assert distances(found, rows + 1e-4).max() < 1


def test_too_few_images_teach_nothing() -> None:
    rows = describe(heads(0, MIN_IMAGES))
    assert fit(rows[1:], FLAIR) is None
    found = fit(rows, FLAIR)
    assert found is not None
    assert found.images == MIN_IMAGES


def test_the_same_images_give_the_same_statistics(statistics: InputStatistics) -> None:
    assert fit(describe(heads(0, 120)), FLAIR) == statistics


def test_several_channels() -> None:
    brains = heads(0, 60)
    images = np.concatenate([brains, np.sqrt(brains)], axis=1)
    found = fit(describe(images[:40]), ("flair", "t2"))
    assert found is not None
    assert suspects(found, images[40:]) <= 0.05
    assert suspects(found, images[40:, ::-1]) == 1  # channels exchanged


# --- the scan ------------------------------------------------------------------------------------


def test_a_scan_is_judged_by_the_median_of_slices_that_show_enough(
    statistics: InputStatistics,
) -> None:
    good, bad = heads(500, 3), np.roll(heads(503, 2), 4, axis=2)
    crumbs = np.zeros((4, 1, 64, 64), np.float32)
    crumbs[:, :, 30:33, 30:33] = 0.35
    scan = np.concatenate([crumbs, good, bad])
    found = judge(statistics, scan)
    assert found.verdict == "ok"
    assert all(value is not None and value > 1 for value in (*found.slices[:4], *found.slices[7:]))
    assert found.ood == sorted(found.slices[4:])[2]
    assert len(found.slices) == 9
    worse = judge(statistics, np.concatenate([good[:1], bad]))
    assert worse.verdict == "suspect"


def test_slices_that_count() -> None:
    assert scored(np.array([0, 19, 20, 100])).tolist() == [False, False, True, True]


def test_without_statistics_nothing_is_called_unusual() -> None:
    noise = np.random.default_rng(0).random((2, 1, 64, 64), np.float32)
    found = judge(None, noise)
    assert (found.verdict, found.reasons, found.ood) == ("ok", (), None)
    assert found.slices == (None, None)
    assert "berdiff calibrate" in found.notes[0]


def test_a_scan_that_shows_hardly_anything_is_suspect_all_the_same() -> None:
    images = np.zeros((2, 1, 64, 64), np.float32)
    images[0, 0, 0, :40] = 1
    found = judge(None, images)
    assert found.verdict == "suspect"
    (reason,) = found.reasons
    assert reason.startswith("hardly anything is shown: the foreground covers 0.98% of the model's")
    images[1, 0, 0, :41] = 1
    assert judge(None, images).verdict == "ok"


def test_doubts_make_it_suspect_and_come_first(statistics: InputStatistics) -> None:
    good = heads(500, 1)
    assert judge(None, good, ("truncated",)).reasons == ("truncated",)
    found = judge(statistics, good, ("truncated",))
    assert (found.verdict, found.reasons) == ("suspect", ("truncated",))
    assert found.ood is not None
    assert found.ood < 1


def test_nothing_found_yet_is_ok() -> None:
    assert Intake().verdict == "ok"


# --- statistics in a file ------------------------------------------------------------------------


def test_statistics_survive_json(statistics: InputStatistics, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(to_json(statistics))
    assert read_json(InputStatistics, tmp_path / "a.json") == statistics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.0,)}, "as many numbers in mean"),
        ({"precision": (1.0,)}, "need 120 of precision"),
        ({"limit": 0.0}, "must be positive"),
        ({"scale": (0.0,) * 15}, "must be positive"),
        ({"limit": 1e300}, "do not come from images"),
        ({"limit": "far"}, "limit: expected float"),
    ],
)
def test_numbers_that_do_not_belong_together(
    statistics: InputStatistics, change: dict[str, Any], message: str
) -> None:
    content = dataclasses.asdict(statistics) | change
    with pytest.raises(BerdiffError, match=message):
        from_json(InputStatistics, content, "bundle.json")


def test_statistics_of_other_channels_are_refused(statistics: InputStatistics) -> None:
    check_features(statistics, FLAIR)
    check_features(None, ("t1",))
    with pytest.raises(ValueError, match="input_statistics are of coverage"):
        check_features(statistics, ("t1",))
    with pytest.raises(ValueError, match="images of t1, t2 have"):
        check_features(statistics, ("t1", "t2"))
    assert statistics.features == feature_names(FLAIR)
