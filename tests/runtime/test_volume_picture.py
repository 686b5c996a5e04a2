"""The picture of a volume: every orientation, true proportions, the cross, the profile."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from berdiff.runtime.overlays import BACKGROUND, GAP, OUTLINE
from berdiff.runtime.volume_picture import (
    _BAR,
    _TITLE,
    _WORST,
    CELL,
    LEGEND,
    PROFILE,
    TALLEST,
    split_volume_picture,
    write_volume_picture,
)

AXES = ("LR", "PA", "IS")
ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(AXES) for codes in itertools.product(*order)
]
SIZE_MM = (1.0, 1.5, 4.0)  # of a voxel towards right, front, head
SHAPE = (60, 50, 12)


def head() -> tuple[np.ndarray, tuple[slice, ...]]:
    """Noise on patient axes (x, y, z), and a box in it at the right, the back and the top."""
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    return image, (slice(44, 54), slice(10, 20), slice(8, 10))


def as_slices(values: np.ndarray, orientation: str) -> np.ndarray:
    """(x, y, z) growing to the right, front and head -> (slice, row, column) of an orientation."""
    codes = orientation[2] + orientation[:2]
    order = [next(n for n, axis in enumerate(AXES) if code in axis) for code in codes]
    turned = values.transpose(order)
    for axis, code in enumerate(codes):
        if code in "LPI":
            turned = np.flip(turned, axis)
    return np.ascontiguousarray(turned)


def draw(path: Path, orientation: str = "PRS", **changes: Any) -> list[np.ndarray]:
    """Write the picture of `head` in an orientation; return its planes without titles."""
    image, box = head()
    anomaly = np.zeros(SHAPE, np.float32)
    anomaly[box] = 0.2
    anomaly[48, 14, 9] = 0.4
    image, anomaly = as_slices(image, orientation), as_slices(anomaly, orientation)
    focus = tuple(int(n) for n in np.unravel_index(anomaly.argmax(), anomaly.shape))
    codes = orientation[2] + orientation[:2]
    spacing = tuple(SIZE_MM[next(n for n in range(3) if code in AXES[n])] for code in codes)
    given = {
        "image": image,
        "anomaly": anomaly,
        "mask": anomaly > 0.1,
        "spacing_mm": spacing,
        "focus": focus,
        "scores": [float(plane.max()) for plane in anomaly],
        "orientation": orientation,
    }
    write_volume_picture(path, **(given | changes))
    with Image.open(path) as picture:
        assert picture.mode == "RGB"
        return [np.asarray(plane)[_TITLE:] for plane in split_volume_picture(picture)]


def box_of(plane: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row, first and last column of the outline."""
    rows, columns = np.nonzero((plane == OUTLINE).all(axis=2))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.slow
def test_every_orientation_gives_the_same_planes(tmp_path: Path) -> None:
    by_side = {"R": draw(tmp_path / "r.png", "PRS"), "L": draw(tmp_path / "l.png", "PLS")}
    for orientation in ORIENTATIONS:
        planes = draw(tmp_path / "x.png", orientation)
        expected = by_side["L" if "L" in orientation else "R"]
        for plane, wanted in zip(planes, expected, strict=True):
            np.testing.assert_array_equal(plane, wanted, err_msg=orientation)


def test_patient_is_the_right_way_round_in_true_proportions(tmp_path: Path) -> None:
    axial, coronal, sagittal = draw(tmp_path / "a.png", "PRS")
    # The widest plane, 75 mm from front to back, fills its cell; 60 mm are 416 pixels.
    zoom = CELL / 75
    left, tall = (CELL - 60 * zoom) / 2, axial.shape[0]
    assert tall == CELL

    def close(plane: np.ndarray, *edges: float) -> None:
        np.testing.assert_allclose(box_of(plane), edges, atol=1.5)

    x = left + 44 * zoom, left + 54 * zoom
    # From the front: 75 mm minus the end of the box; from the head: 48 mm minus its end.
    y = (75 - 20 * 1.5) * zoom, (75 - 10 * 1.5) * zoom
    margin = (tall - 48 * zoom) / 2
    z = margin + (48 - 10 * 4) * zoom, margin + (48 - 8 * 4) * zoom
    close(axial, *y, *x)
    close(coronal, *z, *x)
    close(sagittal, *z, *y)
    mirrored, *_ = draw(tmp_path / "b.png", "PLS")
    close(mirrored, *y, CELL - x[1], CELL - x[0])


def test_letters_stand_at_the_edges_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageDraw

    written: list[tuple[str, tuple[int, int]]] = []
    real = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, value: str, *rest: Any, **named: Any) -> None:
        if len(value) == 1:
            written.append((value, xy))
        real(self, xy, value, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    draw(tmp_path / "a.png", "IPL")
    letters = [written[start : start + 4] for start in (0, 4, 8)]
    for found, expected in zip(letters, ("APRL", "SIRL", "SIAP"), strict=True):
        by_place = {
            "top": min(found, key=lambda item: item[1][1]),
            "bottom": max(found, key=lambda item: item[1][1]),
            "left": min(found, key=lambda item: item[1][0]),
            "right": max(found, key=lambda item: item[1][0]),
        }
        assert "".join(letter for letter, _ in by_place.values()) == expected


def test_the_cross_meets_in_the_focus_and_leaves_it_visible(tmp_path: Path) -> None:
    volume = np.zeros((20, 100, 100), np.float32)
    plain = {"image": volume, "anomaly": volume, "mask": volume > 0, "scores": [0.0] * 20}
    planes = draw(tmp_path / "a.png", spacing_mm=(5, 1, 1), focus=(4, 30, 70), **plain)
    scale = CELL / 100
    # Slice 4 of 20 is low, row 30 of 100 near the front, column 70 to the right.
    places = ((30.5, 70.5), ((19 - 4 + 0.5) * 5, 70.5), ((19 - 4 + 0.5) * 5, 30.5))
    for plane, (row, column) in zip(planes, places, strict=True):
        row, column = int(row * scale), int(column * scale)
        line = np.rint(255 * 0.45)
        assert (plane[row, 200:330] == line).all()
        assert (plane[40:120, column] == line).all()
        assert (plane[row - 14 : row + 15, column - 14 : column + 15] == 0).all()
        assert (plane[row + 2, 200:330] == 0).all()


def profile(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)[-PROFILE:]


def test_profile_has_a_bar_for_each_slice_and_gaps_for_empty_ones(tmp_path: Path) -> None:
    scores: list[float | None] = [0.1 + 0.05 * n for n in range(12)]
    scores[0] = scores[5] = None
    draw(tmp_path / "a.png", scores=scores, focus=(9, 14, 48))
    strip = profile(tmp_path / "a.png")
    bottom = strip.shape[0] - 28
    row = strip[bottom - 2, 70 : strip.shape[1] - 16]
    step = len(row) / 12
    for index, score in enumerate(scores):
        colour = row[round((index + 0.5) * step)]
        expected = BACKGROUND if score is None else _WORST if index == 9 else _BAR
        assert tuple(colour) == expected, index
    column = strip[34:bottom, 70 + round(3.5 * step)]
    tall = (column == _BAR).all(axis=1).sum()
    assert tall == pytest.approx((0.1 + 0.15) / (0.1 + 0.55) * len(column), abs=1)


def test_scores_without_any_value_leave_the_profile_empty(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", scores=[None] * 12)
    strip = profile(tmp_path / "a.png").reshape(-1, 3)
    assert not (strip == _BAR).all(axis=1).any()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((300, 512, 512), (0.6, 0.45, 0.45)),
        ((30, 512, 512), (5.0, 0.45, 0.45)),
        ((2, 40, 40), (0.1, 10.0, 10.0)),
        ((900, 16, 16), (2.0, 0.2, 0.2)),
        ((1, 20, 30), (1.0, 1.0, 1.0)),
        ((4, 16, 300), (1e-3, 1e-3, 1e-3)),
    ],
)
def test_pictures_of_any_volume_have_a_sane_size(
    tmp_path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    volume = np.zeros(shape, np.float32)
    focus = (shape[0] - 1, 0, shape[2] - 1)
    mask = np.zeros(shape, bool)
    mask[focus] = True  # one voxel stays visible however small it is drawn
    draw(
        tmp_path / "a.png", image=volume, anomaly=volume, mask=mask, spacing_mm=spacing,
        focus=focus, scores=[0.5] * shape[0], ends=(shape[0] - 1, 0),
    )  # fmt: skip
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 3 * CELL + 2 * GAP <= 1600
        assert picture.height <= _TITLE + TALLEST + LEGEND + PROFILE
        for plane in split_volume_picture(picture):
            assert (np.asarray(plane) == OUTLINE).all(axis=2).any()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros((2, 2, 2), bool)}, r"one shape, got \(12, 50, 60\) and \(2, 2, 2\)"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing must be positive"),
        ({"focus": (12, 0, 0)}, r"focus \(12, 0, 0\) lies outside"),
        ({"scores": [0.5]}, "expected 12 scores, one for each slice, got 1"),
        ({"orientation": "PRR"}, "three axis codes like PRS"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    image = as_slices(head()[0], "PRS")
    given = {
        "image": image, "anomaly": image, "mask": image > 1, "spacing_mm": (1.0, 1.0, 1.0),
        "focus": (0, 0, 0), "scores": [None] * 12, "orientation": "PRS",
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        write_volume_picture(tmp_path / "a.png", **(given | changes))
    assert not list(tmp_path.iterdir())
