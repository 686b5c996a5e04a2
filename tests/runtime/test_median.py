"""The 5x5 median by comparisons, against scipy's, and its networks against every case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from berdiff.runtime import median
from berdiff.runtime.median import _CHOOSE, _RANKS, _SORT, _SORT_RANK, Program, median_5x5

FloatArray = NDArray[np.float32]


def expected(planes: FloatArray) -> FloatArray:
    # A zero has no sign in ours; scipy takes either.
    return ndimage.median_filter(planes, size=(1, 5, 5), mode="reflect") + np.float32(0)


def assert_same_bits(made: FloatArray, wanted: FloatArray) -> None:
    assert (made.shape, made.dtype) == (wanted.shape, np.float32)
    np.testing.assert_array_equal(made.view(np.uint32), wanted.view(np.uint32))


def run(program: Program, inputs: list[FloatArray]) -> list[FloatArray]:
    scratch = np.full((program.places - program.inputs, inputs[0].size), np.nan, np.float32)
    return program.run(inputs, list(scratch))


# --- against scipy -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)),
    levels=st.sampled_from([2, 3, 10, 2**20]),
    chunk=st.sampled_from([1, 7, 64, 16384]),
)
def test_it_is_the_median(seed: int, shape: tuple[int, int, int], levels: int, chunk: int) -> None:
    """Planes smaller than the window among them; wherever the work is cut into pieces."""
    rng = np.random.default_rng(seed)
    planes = (rng.integers(0, levels, shape) / 7 - 1).astype(np.float32)
    kept = planes.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(median, "_CHUNK", chunk)
        assert_same_bits(median_5x5(planes), expected(planes))
    np.testing.assert_array_equal(planes, kept)


@pytest.mark.parametrize("shape", [(3, 256, 256), (5, 80, 64), (1, 240, 155)])
def test_real_sizes(shape: tuple[int, int, int]) -> None:
    planes = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert_same_bits(median_5x5(planes), expected(planes))
    planes[:, :, :60] = 0  # background
    assert_same_bits(median_5x5(planes), expected(planes))


def test_infinity_is_a_value_like_others() -> None:
    planes = np.random.default_rng(0).random((1, 9, 9), np.float32)
    planes[0, 2:5, 2:7] = np.inf
    planes[0, 7, 7] = -np.inf
    assert_same_bits(median_5x5(planes), expected(planes))


def test_a_zero_has_no_sign() -> None:
    """Else it would depend on the processor."""
    planes = np.random.default_rng(0).choice(np.float32([-1, -0.0, 0, 1]), (2, 40, 40))
    made = median_5x5(planes)
    assert np.count_nonzero(made == 0) > 100
    assert not np.signbit(made[made == 0]).any()
    assert_same_bits(made, expected(planes))


def test_a_plane_does_not_touch_its_neighbours() -> None:
    """An image whose map is NaN leaves those of its batch alone."""
    planes = np.random.default_rng(0).random((3, 20, 12), np.float32)
    alone = median_5x5(planes[[0, 2]])
    planes[1] = np.nan
    made = median_5x5(planes)
    assert_same_bits(made[[0, 2]], alone)
    assert np.isnan(made[1]).all()


def test_no_planes_have_no_medians() -> None:
    assert median_5x5(np.zeros((0, 6, 7), np.float32)).shape == (0, 6, 7)


# --- the networks --------------------------------------------------------------------------------
# Minimum and maximum commute with thresholds: what holds for zeros and ones holds for all values
# (the 0-1 principle, Knuth). Together, the tests below prove the network right.


def pairs(inputs: NDArray[np.float32]) -> list[FloatArray]:
    """Five values as `_pairs` hands them on: two sorted pairs and the last."""
    a, b, c, d, e = inputs.T
    return [np.minimum(a, b), np.maximum(a, b), np.minimum(c, d), np.maximum(c, d), e.copy()]


FIVE = np.array(list(itertools.product((0, 1), repeat=5)), np.float32)


def test_columns_are_sorted() -> None:
    np.testing.assert_array_equal(np.stack(run(_SORT, pairs(FIVE)), axis=1), np.sort(FIVE, axis=1))


@pytest.mark.parametrize("rank", range(5))
def test_of_each_rank_the_candidates_are_kept_in_order(rank: int) -> None:
    kept = [
        column
        for column in range(5)
        if (rank + 1) * (column + 1) <= 13 and (5 - rank) * (5 - column) <= 13
    ]
    made = np.stack(run(_SORT_RANK[rank], pairs(FIVE)), axis=1)
    np.testing.assert_array_equal(made, np.sort(FIVE, axis=1)[:, kept])


def test_the_median_is_chosen_for_every_matrix() -> None:
    """Every 5x5 matrix of zeros and ones whose rows and columns are sorted: 252 of them."""
    matrices = np.array(
        [
            [[column >= 5 - count for column in range(5)] for count in ones]
            for ones in itertools.product(range(6), repeat=5)  # ones at the end of each row
            if list(ones) == sorted(ones)
        ],
        np.float32,
    )
    assert len(matrices) == 252
    candidates = [
        np.ascontiguousarray(matrices[:, rank, column])
        for rank in range(5)
        for column in range(5)
        if (rank + 1) * (column + 1) <= 13 and (5 - rank) * (5 - column) <= 13
    ]
    assert len(candidates) == sum(len(wires) for _, wires in _RANKS) == 13
    (chosen,) = run(_CHOOSE, candidates)
    np.testing.assert_array_equal(chosen, np.median(matrices.reshape(252, 25), axis=1))


def test_sorting_ranks_keeps_columns_sorted() -> None:
    """What `_SELECT` relies on, for every five sorted columns of zeros and ones."""
    ones = np.array(list(itertools.product(range(6), repeat=5)))
    columns = np.arange(5)[None, :, None] >= 5 - ones[:, None, :]  # [case, rank, column]
    matrices = np.sort(columns, axis=2)
    np.testing.assert_array_equal(matrices, np.sort(matrices, axis=1))


def test_it_is_as_short_as_it_says() -> None:
    """Minima and maxima a pixel: a pair along columns, five along rows, and the programs."""
    steps = len(_SORT.steps) + sum(len(p.steps) for p in _SORT_RANK) + len(_CHOOSE.steps)
    assert 2 * (1 + 5) + steps == 92


@settings(max_examples=60, deadline=None)
@given(
    network=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(lambda c: c[0] != c[1]), max_size=25
    ),
    wanted=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True),
    seed=st.integers(0, 99),
)
def test_a_program_does_what_its_network_says(
    network: list[tuple[int, int]], wanted: list[int], seed: int
) -> None:
    """Leaving out what leads nowhere and using places again changes no result and no input."""
    inputs = list(np.random.default_rng(seed).random((6, 4), np.float32))
    for array in inputs:
        array.flags.writeable = False
    wires = list(inputs)
    for low, high in network:
        wires[low], wires[high] = (
            np.minimum(wires[low], wires[high]),
            np.maximum(wires[low], wires[high]),
        )
    made = run(Program.make(6, network, wanted), inputs)
    np.testing.assert_array_equal(made, [wires[wire] for wire in wanted])
