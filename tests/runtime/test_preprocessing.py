"""From a slice to the model's grid and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import MEDIAN_LEVEL, Preprocessing, foreground

FloatArray = NDArray[np.float32]
PLAIN = Preprocessing(channels=1, modalities=("flair",), size=(24, 32), normalisation="none")


def model(**changes: Any) -> Preprocessing:
    return dataclasses.replace(PLAIN, **changes)


def blob(shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]) -> Any:
    """A Gaussian bump of height 1, ``[1, H0, W0]``."""
    rows, columns = np.indices(shape)
    distance = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2
    return np.exp(-distance / 2).astype(np.float32)[None]


def centroid(image: FloatArray) -> NDArray[np.float64]:
    """Centre of mass (row, column) of a plane."""
    weights = image.astype(np.float64) / image.sum(dtype=np.float64)
    return np.array([float((weights * index).sum()) for index in np.indices(image.shape)])


# --- what comes out, whatever goes in ------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    image=arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.int16, np.uint8]),
        st.tuples(st.integers(1, 2), st.integers(0, 12), st.integers(0, 12)),
    ),
    normalisation=st.sampled_from(["minmax", "foreground-median", "none"]),
    fit=st.sampled_from(["pad", "resize"]),
    spacing=st.sampled_from([None, (1.0, 1.0), (0.4, 3.0), (25.0, 0.01)]),
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_slice_is_refused_or_comes_out_in_range(
    image: NDArray[Any], normalisation: Any, fit: Any, spacing: tuple[float, float] | None
) -> None:
    pre = model(size=(8, 6), normalisation=normalisation, fit=fit, spacing=1.5)
    try:
        grid = pre.to_grid(image, spacing)
    except InputError:
        return
    assert grid.shape == (1, 8, 6)
    assert grid.dtype == np.float32
    assert grid.min() >= 0
    assert grid.max() <= 1


def test_the_input_is_left_alone() -> None:
    image = np.random.default_rng(0).random((1, 24, 32)).astype(np.float32)
    image.flags.writeable = False
    grid = PLAIN.to_grid(image)
    np.testing.assert_array_equal(grid, image)
    assert not np.shares_memory(grid, image)


# --- there and back ------------------------------------------------------------------------------

SIDES = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 9))
def test_pixels_taken_one_for_one_come_back_unchanged(rows: int, columns: int, seed: int) -> None:
    """Padded about the centre, or cropped: what is inside the field of view is exactly itself."""
    height, width = PLAIN.size
    top, left = max(rows - height, 0) // 2, max(columns - width, 0) // 2
    image = np.zeros((1, rows, columns), np.float32)
    inner = image[:, top : top + height, left : left + width]
    inner[:] = 0.1 + 0.8 * np.random.default_rng(seed).random(inner.shape)
    inner[:, 0, 0] = 1  # never constant, but for a single pixel
    if rows * columns == 1:
        return
    grid = PLAIN.to_grid(image)
    assert np.count_nonzero(grid) == inner.size
    np.testing.assert_array_equal(PLAIN.from_grid(grid, (rows, columns)), image)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(40, 90), st.integers(40, 90)),
    spacing=st.tuples(st.floats(0.5, 3), st.floats(0.5, 3)),
    fit=st.sampled_from(["pad", "resize"]),
)
def test_a_smooth_image_survives_the_round_trip(
    shape: tuple[int, int], spacing: tuple[float, float], fit: Any
) -> None:
    """Finer or coarser than the model, and with other spacings along rows and columns."""
    pre = model(size=(128, 128), spacing=2.0, fit=fit)
    extent = np.multiply(shape, spacing)
    if extent.max() > 240:
        return
    # A bump eight model pixels wide, in the middle but for a whim.
    pixel = np.array([2.0, 2.0]) if fit == "pad" else extent / 128
    centre = np.array(shape) * (0.45, 0.53)
    image = blob(shape, tuple(centre), tuple(np.maximum(8 * pixel / spacing, 4)))
    back = pre.from_grid(pre.to_grid(image, spacing), shape, spacing)
    assert back.shape == image.shape
    assert np.abs(back - image)[:, 2:-2, 2:-2].max() < 0.05
    # Model pixels are not whole fractions of the slice: the geometry must still agree.
    moved = np.abs(centroid(back[0]) - centroid(image[0])) * spacing
    assert np.all(moved < 0.1 * pixel)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(30, 80), st.integers(30, 80)),
    spacing=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    where=st.tuples(st.floats(0.25, 0.75), st.floats(0.25, 0.75)),
)
def test_a_marked_pixel_comes_back_within_half_a_model_pixel(
    shape: tuple[int, int], spacing: tuple[float, float], where: tuple[float, float]
) -> None:
    pre = model(size=(80, 88), spacing=2.0)
    place = tuple(int(w * n) for w, n in zip(where, shape, strict=True))
    image = np.zeros((1, *shape), np.float32)
    image[0][place] = 1
    grid = pre.to_grid(image, spacing)[0]
    mark = np.zeros(pre.size, np.float32)
    mark[np.unravel_index(int(grid.argmax()), grid.shape)] = 1
    back = centroid(pre.from_grid(mark, shape, spacing))
    # The mark's own centre, sampled on whole pixels, is known to a fraction of one only.
    assert np.all(np.abs(back - place) * spacing <= 0.5 * 2.0 + 0.2 * np.array(spacing))


def test_a_circle_in_the_patient_is_a_circle_for_the_model() -> None:
    """Rows of 1 mm and columns of 3 mm."""
    image = blob((90, 30), (44.5, 14.5), (12, 4))
    grid = model(size=(64, 64), spacing=1.5).to_grid(image, (1.0, 3.0))[0]
    np.testing.assert_allclose(centroid(grid), 31.5, atol=0.01)
    rows, columns = (grid.sum(axis=axis) for axis in (1, 0))
    np.testing.assert_allclose(rows, columns, atol=0.15)
    assert np.count_nonzero(rows > rows.max() / 2) == pytest.approx(12 / 1.5 * 2.355, abs=1)


def test_placing_to_the_pixel() -> None:
    """Sizes are rounded; of an odd number of pixels to add or cut, the last side has one more."""
    image = np.full((1, 29, 21), 0.5, np.float32)
    image[0, 0, 0] = 0.6
    shown = np.argwhere(model(spacing=2.0).to_grid(image, (1.3, 1.0))[0])  # 18.85 x 10.5 pixels
    assert (shown.min(axis=0).tolist(), shown.max(axis=0).tolist()) == ([2, 11], [20, 20])
    narrow = model(size=(24, 20)).to_grid(image[:, :24])
    np.testing.assert_array_equal(narrow, image[:, :24, :20])


def test_resizing_ignores_spacing_and_fills_the_grid() -> None:
    pre = model(fit="resize", spacing=7.0)
    image = np.linspace(0, 1, 12 * 10, dtype=np.float32).reshape(1, 12, 10)
    grid = pre.to_grid(image)
    assert np.count_nonzero(grid) > 0.9 * grid.size
    np.testing.assert_array_equal(grid, pre.to_grid(image, (0.1, 9.0)))


def test_shrinking_averages_instead_of_skipping() -> None:
    """Every fourth column bright: a model pixel of four columns shows a quarter."""
    image = np.zeros((1, 24, 128), np.float32)
    image[:, :, ::4] = 1
    grid = model(fit="resize").to_grid(image)
    np.testing.assert_allclose(grid[:, :, 1:-1], 0.25, atol=0.01)


def test_every_channel_goes_the_same_way() -> None:
    pre = model(channels=3, modalities=("a", "b", "c"), spacing=2.0)
    one = blob((30, 40), (12, 22), (5, 6))
    grid = pre.to_grid(np.concatenate([one, one / 2, one / 4]), (1.5, 1.5))
    np.testing.assert_allclose(grid[1:], grid[:1] / np.float32([[[2]], [[4]]]), atol=1e-6)
    np.testing.assert_allclose(grid[:1], model(spacing=2.0).to_grid(one, (1.5, 1.5)), atol=1e-6)


def test_maps_keep_their_leading_axes() -> None:
    values = np.random.default_rng(0).random((2, 3, *PLAIN.size))  # float64
    back = PLAIN.from_grid(values, (20, 50))
    assert back.shape == (2, 3, 20, 50)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[1, 2], PLAIN.from_grid(values[1, 2], (20, 50)))
    assert not back[..., :9].any()  # beyond the model's field of view


def test_a_file_without_spacing_is_taken_to_have_the_default() -> None:
    pre = model(spacing=2.0, default_spacing=1.25)
    image = blob((24, 30), (11, 14), (4, 4))
    grid = pre.to_grid(image)
    np.testing.assert_array_equal(grid, pre.to_grid(image, (1.25, 1.25)))
    np.testing.assert_array_equal(
        pre.from_grid(grid[0], (24, 30)), pre.from_grid(grid[0], (24, 30), (1.25, 1.25))
    )


# --- normalisation -------------------------------------------------------------------------------


def test_minmax_spans_slice_and_channels_together() -> None:
    pre = model(channels=2, modalities=("t1", "t2"), normalisation="minmax")
    image = np.array([[[-100, 0]], [[100, 300]]], np.int16)
    np.testing.assert_array_equal(pre.normalise(image), np.float32([[[0, 0.25]], [[0.5, 1]]]))


def test_foreground_median_by_hand() -> None:
    """Per channel; the median of what is positive becomes 0.35, above 1 and below 0 is clipped."""
    pre = model(channels=2, modalities=("t1", "t2"), normalisation="foreground-median")
    image = np.array([[[0, 0, -5, 10, 20, 70]], [[0, 0, 0, 0, 0, 4]]], np.float64)
    level = MEDIAN_LEVEL
    expected = [[[0, 0, 0, level / 2, level, 1]], [[0, 0, 0, 0, 0, level]]]
    np.testing.assert_allclose(pre.normalise(image), expected, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(gain=st.floats(1e-3, 1e6), offset=st.floats(-1000, 1000))
def test_scanner_gain_plays_no_part(gain: float, offset: float) -> None:
    image = np.random.default_rng(1).integers(0, 500, (1, 9, 9)).astype(np.float64)
    median = model(normalisation="foreground-median")
    np.testing.assert_allclose(
        median.normalise(image * gain), median.normalise(image), rtol=1e-5, atol=1e-6
    )
    minmax = model(normalisation="minmax")
    moved = minmax.normalise(image * max(gain, 1) + offset)
    np.testing.assert_allclose(moved, minmax.normalise(image), atol=1e-3)


def test_background_stays_0() -> None:
    """Air around the head, and what is padded to it, is foreground nowhere."""
    image = np.zeros((1, 10, 10), np.float32)
    image[0, 3:7, 3:7] = np.arange(16).reshape(4, 4) + 100
    for normalisation in ("minmax", "foreground-median"):
        grid = model(normalisation=normalisation).to_grid(image)
        assert np.count_nonzero(foreground(grid)) == 16


# --- refusals ------------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).random((1, 20, 20)).astype(np.float32)


def spoilt(value: float) -> FloatArray:
    image = GOOD.copy()
    image[0, 3, 4:6] = value
    return image


@pytest.mark.parametrize(
    ("changes", "image", "spacing", "message"),
    [
        ({}, spoilt(np.nan), None, r"2 of 400 values are NaN or infinite"),
        ({}, spoilt(-np.inf), None, r"2 of 400 values are NaN or infinite"),
        ({}, np.full((1, 5, 5), 3), None, r"constant \(every value is 3\)"),
        ({}, np.ones((2, 20, 20)), None, r"\(2, 20, 20\); the model takes 1 channel.*\(flair\)"),
        ({}, GOOD[0], None, r"shape \(20, 20\)"),
        ({}, np.zeros((1, 0, 7)), None, r"empty: shape \(1, 0, 7\)"),
        ({}, spoilt(1.5), None, r"takes intensities in \[0, 1\], got .* to 1\.5"),
        (
            {"normalisation": "foreground-median"},
            -GOOD - 1,
            None,
            r"channel 0 \(flair\) has no pos",
        ),
        ({"normalisation": "minmax"}, np.array([[[-3e38, 3e38]]]), None, "too large or too small"),
        ({"spacing": 2.5}, GOOD, None, "carries no pixel spacing and the model works at 2.5 mm"),
        ({"spacing": 1.0}, GOOD, (8, 1), r"measures 160 x 20 mm; .* view is 24 x 32 mm"),
        ({"spacing": 1.0}, GOOD, (3, 3), r"of the image \(by intensity\) lies outside"),
    ],
)
def test_what_cannot_be_used_is_refused(
    changes: dict[str, Any], image: NDArray[Any], spacing: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model(**changes).to_grid(image, spacing)


@pytest.mark.parametrize(("outside", "refused"), [(0.04, False), (0.06, True)])
def test_a_sliver_may_be_cropped(outside: float, refused: bool) -> None:
    """Weighed by intensity, up to a twentieth."""
    image = np.zeros((1, 24, 40), np.float32)
    image[0, 5, 20] = image[0, 6, 20] = (1 - outside) / 2
    image[0, 5, 1] = outside  # four columns are cut off on either side
    if refused:
        with pytest.raises(InputError, match="6% of the image"):
            PLAIN.to_grid(image)
    else:
        assert PLAIN.to_grid(image).sum() == pytest.approx(1 - outside)


def test_noise_in_the_air_is_no_reason_to_refuse() -> None:
    """Most of the pixels are cropped; what they show is next to nothing."""
    image = np.random.default_rng(0).random((1, 60, 60)).astype(np.float32) * np.float32(0.002)
    image[0, 20:40, 20:40] = 0.8
    assert PLAIN.to_grid(image).max() == np.float32(0.8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 2}, "2 channels need as many modality names"),
        ({"channels": 0, "modalities": ()}, "0 channels"),
        ({"size": (0, 8)}, r"size must be positive, got \(0, 8\)"),
        ({"spacing": 0.0}, "spacing must be positive, got 0"),
        ({"spacing": float("inf")}, "spacing must be positive"),
        ({"default_spacing": float("nan")}, "default_spacing must be positive, got nan"),
        ({"orientation": "PR"}, "axis codes like PRS, got 'PR'"),
        ({"orientation": "PRL"}, "axis codes"),
        ({"orientation": "prs"}, "axis codes"),
        ({"fit": "crop"}, "fit must be one of pad, resize, got 'crop'"),
        ({"normalisation": "z-score"}, "normalisation must be one of .* got 'z-score'"),
    ],
)
def test_settings_that_contradict_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_foreground_is_where_any_channel_shows_something() -> None:
    images = np.zeros((2, 3, 4, 5), np.float32)
    images[0, 1, 2, 3] = 1e-6
    images[1, :, 0, 0] = -1
    shown = foreground(images)
    assert shown.shape == (2, 4, 5)
    assert np.argwhere(shown).tolist() == [[0, 2, 3]]
    np.testing.assert_array_equal(foreground(images[0]), shown[0])


# --- background ----------------------------------------------------------------------------------


def test_background_is_judged_over_the_whole_scan() -> None:
    """Ripples in a slice that shows nothing else are as much background as elsewhere."""
    rng = np.random.default_rng(0)
    slices = np.zeros((4, 1, 32, 40), np.float32)
    slices[1:3, 0, 8:24, 8:30] = rng.uniform(80, 120, (2, 16, 22))
    ripples = rng.normal(0, 0.5, slices.shape).astype(np.float32)
    pre = Preprocessing(1, ("flair",), (32, 40), background=0.02)
    cleared = pre.clear_background(slices + ripples)
    np.testing.assert_array_equal(cleared != 0, slices != 0)
    shown = slices != 0
    np.testing.assert_array_equal(cleared[shown], (slices + ripples)[shown])


def test_background_is_judged_channel_by_channel() -> None:
    slices = np.ones((1, 2, 32, 40), np.float32)
    slices[:, 0, :16] = 100
    slices[:, 1, :16] = 10
    cleared = Preprocessing(2, ("t1", "t2"), (32, 40), background=0.05).clear_background(slices)
    assert not cleared[:, 0, 16:].any()
    np.testing.assert_array_equal(cleared[:, 1], slices[:, 1])


def test_clearing_takes_away_what_is_negative_and_hides_no_damage() -> None:
    """A channel without anything positive has no bright level: all of it is background."""
    slices = np.full((2, 2, 32, 40), -3, np.float32)
    slices[:, 0, 4:20] = 50
    slices[1, 0, 30, 30] = np.nan
    kept = slices.copy()
    pre = Preprocessing(2, ("t1", "t2"), (32, 40), background=0.1)
    cleared = pre.clear_background(slices)
    np.testing.assert_array_equal(slices, kept)
    expected = np.zeros_like(slices)
    expected[:, 0, 4:20] = 50
    expected[1, 0, 30, 30] = np.nan
    np.testing.assert_array_equal(cleared, expected)
    with pytest.raises(InputError, match="1 of 2560 values are NaN"):
        pre.to_grid(cleared[1])


def test_without_a_background_nothing_is_changed() -> None:
    slices = np.random.default_rng(0).normal(size=(2, 1, 32, 40)).astype(np.float32)
    assert Preprocessing(1, ("t1",), (32, 40)).clear_background(slices) is slices
    dark = np.zeros((1, 1, 32, 40), np.float32)
    pre = Preprocessing(1, ("t1",), (32, 40), background=0.1)
    np.testing.assert_array_equal(pre.clear_background(dark), dark)
    with pytest.raises(ValueError, match=r"background must lie in \[0, 1\)"):
        Preprocessing(1, ("t1",), (32, 40), background=1.0)


def test_to_grid_is_normalising_and_placing() -> None:
    image = np.random.default_rng(0).random((1, 30, 50), np.float32)
    pre = Preprocessing(1, ("t1",), (32, 40), spacing=1.2)
    placed = pre.place(pre.normalise(image), (1.0, 0.9))
    np.testing.assert_array_equal(pre.to_grid(image, (1.0, 0.9)), placed)
