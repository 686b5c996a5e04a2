"""Median of every 5x5 neighbourhood, exactly, by comparisons of whole planes.

The 25 values of a window are five columns of five. Each column is sorted once and serves five
windows. Sorting the five columns of a window against each other, rank by rank, leaves a 5x5 matrix
whose rows and columns are both sorted: the entry in row r, column c (from 1) has at least r c - 1
entries that are not larger, and (6 - r)(6 - c) - 1 that are not smaller. Entries that have 13 or
more on one side cannot be the median, which has 12 on both; six fall out at either end, and the
median of the 13 that remain is the median of all. Smallest and largest of eight of them, one more
coming in for each pair that goes, lead to it.

Comparing planes of a few hundred kilobytes stays in the processor's cache, where NumPy's minimum
and maximum take several values per instruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

SIZE = 5
# Comparisons that sort five values.
_SORT_FIVE = ((0, 1), (3, 4), (2, 4), (2, 3), (0, 3), (0, 2), (1, 4), (1, 3), (1, 2))
_HALF = (SIZE * SIZE + 1) // 2
_CANDIDATES = tuple(
    (rank, column)
    for rank in range(SIZE)
    for column in range(SIZE)
    if (rank + 1) * (column + 1) <= _HALF and (SIZE - rank) * (SIZE - column) <= _HALF
)


def median_5x5(plane: FloatArray) -> FloatArray:
    """Median of each 5x5 neighbourhood of a plane ``[H, W]``, edges mirrored (d c b a | a b c d).

    Planes that hold NaN have no defined result.
    """
    height, width = plane.shape
    padded = np.pad(plane, SIZE // 2, mode="symmetric")
    columns = [padded[row : row + height].copy() for row in range(SIZE)]
    _sort(columns, _SORT_FIVE)
    ranks = []
    for sorted_rank in columns:
        row = [sorted_rank[:, column : column + width].copy() for column in range(SIZE)]
        _sort(row, _SORT_FIVE)
        ranks.append(row)
    return _select([ranks[rank][column] for rank, column in _CANDIDATES])


def _sort(planes: list[FloatArray], comparisons: Sequence[tuple[int, int]]) -> None:
    """Order planes element by element, in place, by a network of comparisons."""
    spare = np.empty_like(planes[0])
    for low, high in comparisons:
        spare = _compare(planes, low, high, spare)


def _compare(planes: list[FloatArray], low: int, high: int, spare: FloatArray) -> FloatArray:
    """Put the smaller values into `low` and the larger into `high`; return what became free."""
    np.minimum(planes[low], planes[high], out=spare)
    np.maximum(planes[low], planes[high], out=planes[high])
    planes[low], spare = spare, planes[low]
    return spare


def _select(values: list[FloatArray]) -> FloatArray:
    """Median of an odd number of planes; changes them.

    Of n + 2 values, n of them still to come, neither the smallest nor the largest can be the
    median: both are dropped, and one more comes in.
    """
    middle = len(values) // 2
    held, coming = values[: middle + 2], values[middle + 2 :]
    spare = np.empty_like(values[0])
    while len(held) > 2:
        for index in range(1, len(held)):  # the smallest to the front
            spare = _compare(held, 0, index, spare)
        for index in range(1, len(held) - 1):  # the largest to the end
            spare = _compare(held, index, len(held) - 1, spare)
        held = held[1:-1]
        if coming:
            held.append(coming.pop())
    return held[0]
