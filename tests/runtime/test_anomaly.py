"""Maps, masks and scores, by hand and against slow ways to the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from berdiff.runtime.anomaly import (
    anomaly_map,
    flip_map,
    flip_mean,
    image_score,
    median_filter,
    otsu,
    segment,
    smooth,
)

FloatArray = NDArray[np.float32]
BYTES = arrays.arrays(np.uint8, st.integers(2, 60)).map(lambda a: np.append(a, [0, 255]))


def flat(*channels: float) -> FloatArray:
    """One image of constant channels, ``[1, C, 6, 7]``: the median leaves it as it is."""
    return np.broadcast_to(np.float32(channels)[None, :, None, None], (1, len(channels), 6, 7))


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("squared", 0.4**2 + 0.3**2),
        ("absolute", 0.4 + 0.3),
        ("signed", 0.4),  # the second channel became brighter, and does not make up for the first
        ("change", 0.5 + 0.1),
        ("flips", 0.25),
    ],
)
def test_every_kind_of_map_by_hand(kind: Any, expected: float) -> None:
    made = anomaly_map(
        kind,
        images=flat(0.6, 0.2),
        reconstruction=flat(0.2, 0.5),
        unchanged=flat(0.7, 0.6),
        flips=np.full((1, 6, 7), 0.25, np.float32),
    )
    assert made.dtype == np.float32
    assert made.shape == (1, 6, 7)
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_the_change_needs_the_decoded_code() -> None:
    with pytest.raises(ValueError, match="needs the decoded original code"):
        anomaly_map("change", flat(0.5), flat(0.2), None, flat(0.1)[:, 0])
    with pytest.raises(ValueError, match="needs the flip map"):
        anomaly_map("flips", flat(0.5), flat(0.2), None, None)


def test_an_unknown_kind_is_not_taken_for_another() -> None:
    with pytest.raises(ValueError, match="'signd'"):
        anomaly_map("signd", flat(0.5), flat(0.2), None, flat(0.1)[:, 0])  # type: ignore[arg-type]


@settings(deadline=None, max_examples=15)
@given(arrays.arrays(np.float32, (2, 6, 9), elements=st.floats(0, 1, width=32)))
def test_the_median_is_that_of_five_by_five(maps: FloatArray) -> None:
    padded = np.pad(maps, ((0, 0), (2, 2), (2, 2)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    np.testing.assert_array_equal(median_filter(maps), np.median(windows, axis=(-2, -1)))


# --- flip map ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    flips=arrays.arrays(
        np.float32,
        st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 5)] * 2),
        elements=st.floats(0, 1, width=32),
    ),
    factors=st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8])),
)
def test_the_flip_map_keeps_mean_and_range(flips: FloatArray, factors: tuple[int, int]) -> None:
    size = flips.shape[2] * factors[0], flips.shape[3] * factors[1]
    made = flip_map(flip_mean(flips), size)
    assert made.shape == (len(flips), *size)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made.mean(axis=(1, 2)), flips.mean(axis=(1, 2, 3)), atol=1e-5)
    assert made.min() >= flips.mean(axis=1).min() - 1e-6
    assert made.max() <= flips.mean(axis=1).max() + 1e-6


@settings(deadline=None, max_examples=40)
@given(
    row=st.integers(0, 5),
    column=st.integers(0, 4),
    factor=st.sampled_from([1, 2, 4, 8]),
    bit=st.integers(0, 2),
)
def test_a_code_position_lights_up_its_own_pixels(
    row: int, column: int, factor: int, bit: int
) -> None:
    flips = np.zeros((2, 3, 6, 5), np.float32)
    flips[1, bit, row, column] = 0.9
    made = flip_map(flip_mean(flips), (6 * factor, 5 * factor))
    assert not made[0].any()
    block = (slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor))
    inside, brightest = made[1][block], made[1].max()
    assert inside.max() == brightest
    assert inside.sum() >= 0.5 * made[1].sum()
    outside = made[1].copy()
    outside[block] = 0
    assert outside.max() < brightest or factor == 1
    if 0 < row < 5 and 0 < column < 4:  # bilinear on all sides: symmetric about the block's centre
        np.testing.assert_allclose(made[1], _turned(made[1], block), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1), (8, 8)),
        ((3, 5), (3, 10)),
        ((1, 7), (4, 28)),
        ((10, 8), (80, 64)),
        ((7, 9), (56, 36)),
    ],
)
def test_the_flip_map_is_scipys(shape: tuple[int, int], size: tuple[int, int]) -> None:
    flips = np.random.default_rng(0).random((3, *shape), np.float32)
    factors = 1, size[0] / shape[0], size[1] / shape[1]
    expected = ndimage.zoom(flips, factors, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_array_equal(flip_map(flips, size), expected)


def _turned(plane: FloatArray, block: tuple[slice, slice]) -> FloatArray:
    """The plane turned by 180 degrees about the centre of a block, zero beyond its border."""
    turned = np.zeros_like(plane)
    for row, column in np.argwhere(plane):
        mirrored = [b.start + b.stop - 1 - i for b, i in zip(block, (row, column), strict=True)]
        turned[tuple(mirrored)] = plane[row, column]
    return turned


# --- smoothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.8, 4.0])
@pytest.mark.parametrize("leading", [(), (4,), (2, 2)])
def test_smoothing_is_a_weighted_mean_of_the_foreground(
    leading: tuple[int, ...], sigma: float
) -> None:
    """With weights that fall off as a Gaussian does, over every pair of pixels."""
    rng = np.random.default_rng(0)
    planes = rng.random((*leading, 24, 20), np.float32)
    inside = rng.random(planes.shape) < 0.6
    inside[..., :5, :] = inside[..., :, 16:] = False
    planes[~inside] = 1e6  # must not bleed in
    made = smooth(planes, inside, sigma)
    assert made.dtype == np.float32
    radius = int(4 * sigma + 0.5)
    down, across = (np.subtract.outer(np.arange(n), np.arange(n)) for n in (24, 20))
    down, across = (np.exp(-(d**2) / 2 / sigma**2) * (abs(d) <= radius) for d in (down, across))
    total = down @ np.where(inside, planes, 0).astype(np.float64) @ across
    expected = np.where(inside, total / np.maximum(down @ inside @ across, 1e-9), 0)
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def test_smoothing_does_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    planes = rng.random((3, 30, 30), np.float32)
    inside = np.zeros(planes.shape, bool)
    inside[0, 3:20, 8:12] = inside[1, 1:29, 2:28] = True  # and nothing in the last
    made = smooth(planes, inside, 2.0)
    for index in range(3):
        np.testing.assert_array_equal(
            smooth(planes[index], inside[index], 2.0).view(np.uint32),
            made[index].view(np.uint32),
        )
    assert not made[2].any()


def test_no_smoothing_leaves_the_foreground_as_it_is() -> None:
    planes = np.random.default_rng(0).random((2, 6, 7), np.float32)
    inside = planes > 0.5
    np.testing.assert_array_equal(smooth(planes, inside, 0.0), np.where(inside, planes, 0))


# --- threshold -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(values=BYTES, gain=st.floats(1e-3, 1e3), offset=st.floats(-10, 10))
def test_otsu_finds_the_best_of_all_splits(
    values: NDArray[np.uint8], gain: float, offset: float
) -> None:
    """With 256 grey values each has its own bin; a change of scale moves the threshold along."""
    grey = values.astype(np.float64)

    def between(upper: NDArray[np.bool_]) -> float:
        gap = grey[upper].mean() - grey[~upper].mean()
        return float(upper.sum() * (~upper).sum() * gap**2)

    best = max(between(grey > level) for level in range(255))
    scaled = grey * gain + offset
    split = scaled > otsu(scaled)
    assert between(split) >= best * (1 - 1e-9)


def test_otsu_parts_two_heaps() -> None:
    rng = np.random.default_rng(0)
    heaps = np.concatenate([rng.normal(0.1, 0.02, 900), rng.normal(0.8, 0.05, 100)])
    heaps = heaps.astype(np.float32)
    assert np.flatnonzero(heaps > otsu(heaps)).tolist() == list(range(900, 1000))


def test_otsu_of_equal_values_marks_nothing() -> None:
    values = np.full((3, 4), 0.3, np.float32)
    assert otsu(values) == np.float32(0.3)
    assert not np.any(values > otsu(values))


@pytest.mark.parametrize("value", [1.0, 0.25, 0.0])
def test_otsu_of_nearly_equal_values(value: float) -> None:
    """Neighbouring floats leave no room for 256 bins between them, in their own precision."""
    pair = np.array([value, np.nextafter(np.float32(value), np.float32(2))], np.float32)
    assert pair[0] <= otsu(pair) <= pair[1]


# --- mask ----------------------------------------------------------------------------------------


def test_specks_are_dropped() -> None:
    """Components of 15 pixels go, of 16 stay; corners connect; other sizes can be asked for."""
    anomaly = np.zeros((30, 30), np.float32)
    anomaly[1:4, 1:6] = 1  # 15 pixels
    anomaly[1:5, 10:14] = 1  # 16
    anomaly[10:13, 1:6] = 1  # 15, and one more at the corner
    anomaly[13, 6] = 1
    anomaly[20:24, 20:24] = 0.5  # as large, and at the threshold
    kept = np.zeros((30, 30), bool)
    kept[1:5, 10:14] = kept[10:13, 1:6] = kept[13, 6] = True
    everywhere = np.ones((30, 30), bool)
    made = segment(anomaly, 0.5, everywhere)
    assert made.dtype == np.bool_
    np.testing.assert_array_equal(made, kept)
    np.testing.assert_array_equal(segment(anomaly, 0.5, everywhere, min_pixels=1), anomaly > 0.5)


def test_the_mask_stays_inside_the_foreground() -> None:
    """What lies outside does not help a component to reach its size."""
    anomaly = np.zeros((20, 20), np.float32)
    anomaly[2:6, 2:7] = 1  # 20 pixels, 15 of them in the foreground
    anomaly[10:14, 2:7] = 1  # 20, all of them
    inside = np.ones((20, 20), bool)
    inside[2:6, 2:7].flat[:5] = False
    expected = np.zeros((20, 20), bool)
    expected[10:14, 2:7] = True
    np.testing.assert_array_equal(segment(anomaly, 0.5, inside), expected)


def test_nothing_above_the_threshold_is_an_empty_mask() -> None:
    assert not segment(np.zeros((5, 5), np.float32), 0.0, np.ones((5, 5), bool), 1).any()


# --- score ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(0, 0.0), (1, 0.0), (40, 39.0), (149, 148.0), (200, 198.5), (400, 397.5)],
)
def test_the_score_is_the_mean_of_the_highest_hundredth(pixels: int, expected: float) -> None:
    """Of the foreground, rounded, at least one pixel; what is outside plays no part."""
    anomaly = np.full((20, 21), 1e6, np.float32)
    inside = np.zeros((20, 21), bool)
    chosen = np.random.default_rng(0).permutation(anomaly.size)[:pixels]
    anomaly.flat[chosen] = np.arange(pixels)
    inside.flat[chosen] = True
    assert image_score(anomaly, inside) == expected
