"""The 5x5 median by comparisons, against scipy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from berdiff.runtime.median import _CANDIDATES, _SORT_FIVE, _select, _sort, median_5x5


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    levels=st.sampled_from([2, 3, 10, 2**20]),
)
def test_it_is_the_median(seed: int, shape: tuple[int, int], levels: int):
    rng = np.random.default_rng(seed)
    plane = (rng.integers(0, levels, shape) / 7 - 1).astype(np.float32)
    kept = plane.copy()
    expected = ndimage.median_filter(plane, size=5)
    np.testing.assert_array_equal(median_5x5(plane), expected)
    np.testing.assert_array_equal(plane, kept)


def test_the_network_sorts():
    """A network that sorts every sequence of zeros and ones sorts everything (Knuth)."""
    inputs = np.array(list(itertools.product((0, 1), repeat=5)), np.float32)
    planes = [inputs[:, column].copy() for column in range(5)]
    _sort(planes, _SORT_FIVE)
    np.testing.assert_array_equal(np.stack(planes, axis=1), np.sort(inputs, axis=1))


def test_the_selection_takes_the_median():
    """Minimum and maximum commute with thresholds, so zeros and ones prove this, too."""
    inputs = np.array(list(itertools.product((0, 1), repeat=13)), np.float32)
    chosen = _select([inputs[:, column].copy() for column in range(13)])
    np.testing.assert_array_equal(chosen, np.median(inputs, axis=1))


def test_only_what_cannot_be_the_median_is_left_out():
    """Every 5x5 matrix of zeros and ones whose rows and columns are sorted: 252 of them."""
    assert len(_CANDIDATES) == 13
    seen = 0
    for ones in itertools.product(range(6), repeat=5):  # ones at the end of each row
        if list(ones) != sorted(ones):
            continue
        seen += 1
        matrix = np.array([[column >= 5 - count for column in range(5)] for count in ones])
        kept = [matrix[place] for place in _CANDIDATES]
        assert np.median(kept) == np.median(matrix)
    assert seen == 252


def test_infinity_is_a_value_like_others():
    plane = np.random.default_rng(0).random((9, 9), np.float32)
    plane[2:5, 2:7] = np.inf
    plane[7, 7] = -np.inf
    np.testing.assert_array_equal(median_5x5(plane), ndimage.median_filter(plane, size=5))


@pytest.mark.parametrize("shape", [(256, 256), (80, 64)])
def test_real_sizes(shape: tuple[int, int]):
    plane = np.random.default_rng(1).random(shape, np.float32)
    np.testing.assert_array_equal(median_5x5(plane), ndimage.median_filter(plane, size=5))
