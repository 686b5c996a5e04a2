"""Median of every 5x5 neighbourhood, exactly, by comparisons of whole rows of pixels at a time.

The 25 values of a window are five columns of five. Each column is sorted once and serves five
windows; so does the first comparison of each pair of neighbours, along columns and along rows.
Sorting the five columns of a window against each other, rank by rank, leaves a 5x5 matrix whose
rows and columns are both sorted: the entry in row r, column c (from 1) has at least r c - 1 entries
that are not larger, and (6 - r)(6 - c) - 1 that are not smaller. Entries that have 13 or more on
one side cannot be the median, which has 12 on both; six fall out at either end, and the median of
the 13 that remain is the median of all. `_SELECT` finds it among them by 20 minima and maxima,
knowing what the matrix says of their order. Of each comparison only what leads to a result is
computed: 92 minima and maxima a pixel in all.

Comparisons of some thousand values at a time stay in the processor's cache, where NumPy's minimum
and maximum take several values per instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
T = TypeVar("T")
# A comparison puts the smaller value on the first wire and the larger on the second.
Comparison = tuple[int, int]

SIZE = 5
_RADIUS = SIZE // 2
_CHUNK = 16384  # places; of fewer, calling NumPy costs more than the cache saves

# Two sorted pairs, on wires (0, 1) and (2, 3), become four; a fifth value, on wire 4, finds its
# place from below (sorted wires then are 0 1 2 3 4) or from above (4 0 1 2 3).
_MERGE = ((0, 2), (1, 3), (1, 2))
_FROM_BELOW = (*_MERGE, (0, 4), (1, 4), (2, 4), (3, 4))
_FROM_ABOVE = (*_MERGE, (4, 3), (4, 2), (4, 1), (4, 0))
# Wires of the candidates of each rank, and how they are found: row r, column c of the matrix is
# one where r c <= 13 and (6 - r)(6 - c) <= 13.
_RANKS: tuple[tuple[tuple[Comparison, ...], tuple[int, ...]], ...] = (
    (_FROM_ABOVE, (2, 3)),
    (_FROM_ABOVE, (1, 2, 3)),
    (_FROM_BELOW, (1, 2, 3)),
    (_FROM_BELOW, (0, 1, 2)),
    (_FROM_BELOW, (0, 1)),
)
# Found by a search over networks that hold for all 252 matrices of zeros and ones (see the tests,
# which go through them); the median ends on wire 12.
_SELECT = (
    *((0, 5), (1, 10), (3, 8), (4, 9), (12, 8), (2, 11), (7, 11), (6, 12)),
    *((5, 6), (4, 6), (1, 4), (7, 4), (12, 4), (6, 12), (7, 6), (12, 6)),
)
_MEDIAN_WIRE = 12


@dataclass(frozen=True)
class Program:
    """A network of comparisons without what leads to no result, its values given places.

    Attributes
    ----------
    inputs : int
        Number of inputs; they have the first places and are only read.
    steps : tuple of (bool, int, int, int)
        Whether to take the maximum (else the minimum), two places to read, one to write.
    places : int
        Places in all.
    results : tuple of int
        Places of the results.
    """

    inputs: int
    steps: tuple[tuple[bool, int, int, int], ...]
    places: int
    results: tuple[int, ...]

    @classmethod
    def make(cls, inputs: int, network: Sequence[Comparison], wanted: Sequence[int]) -> Program:
        """Compile a network: `inputs` wires, of which those `wanted` hold the results."""
        wires = list(range(inputs))  # which value each wire holds
        values: list[tuple[bool, int, int]] = []
        for low, high in network:
            one, other = wires[low], wires[high]
            values += [(False, one, other), (True, one, other)]
            wires[low], wires[high] = inputs + len(values) - 2, inputs + len(values) - 1
        results = [wires[wire] for wire in wanted]
        last_use = dict.fromkeys(results, len(values))
        for number in reversed(range(len(values))):
            if inputs + number in last_use:
                for read in values[number][1:]:
                    last_use.setdefault(read, number)
        place = {value: value for value in range(inputs)}
        free: list[int] = []
        places, steps = inputs, []
        for number, (larger, one, other) in enumerate(values):
            if inputs + number not in last_use:
                continue
            # A place may be read for the last time and written in one step.
            free += [place[v] for v in (one, other) if v >= inputs and last_use[v] == number]
            if not free:
                free.append(places)
                places += 1
            place[inputs + number] = free.pop()
            steps.append((larger, place[one], place[other], place[inputs + number]))
        return cls(inputs, tuple(steps), places, tuple(place[value] for value in results))

    def run(self, inputs: Sequence[FloatArray], scratch: Sequence[FloatArray]) -> list[FloatArray]:
        """Apply it to arrays of one shape; results lie in `scratch`, of ``places - inputs``."""
        held = [*inputs, *scratch]
        for larger, one, other, target in self.steps:
            (np.maximum if larger else np.minimum)(held[one], held[other], out=held[target])
        return [held[place] for place in self.results]


_SORT = Program.make(SIZE, _FROM_BELOW, range(SIZE))
_SORT_RANK = tuple(Program.make(SIZE, *rank) for rank in _RANKS)
_CHOOSE = Program.make(sum(len(wires) for _, wires in _RANKS), _SELECT, [_MEDIAN_WIRE])


def median_of_columns(
    rows: Sequence[T], beside: Callable[[T], Sequence[T]], compare: Callable[[bool, T, T], T]
) -> T:
    """Describe the medians in terms of something else than arrays, such as nodes of a graph.

    Parameters
    ----------
    rows : sequence
        Planes of the values one row apart, five of them, from the first of each window on.
    beside : callable
        Returns five planes of one plane's values, one column apart.
    compare : callable
        The larger (True) or the smaller (False) of two planes, element by element.

    Returns
    -------
    object
        The plane of the medians.
    """

    def apply(program: Program, inputs: Sequence[T]) -> list[T]:
        held = dict(enumerate(inputs))
        for larger, one, other, target in program.steps:
            held[target] = compare(larger, held[one], held[other])
        return [held[place] for place in program.results]

    def paired(values: Sequence[T]) -> list[T]:
        a, b, c, d, e = values
        return [compare(False, a, b), compare(True, a, b), compare(False, c, d),
                compare(True, c, d), e]  # fmt: skip

    candidates: list[T] = []
    for program, rank in zip(_SORT_RANK, apply(_SORT, paired(rows)), strict=True):
        candidates += apply(program, paired(beside(rank)))
    return apply(_CHOOSE, candidates)[0]


def median_5x5(planes: FloatArray) -> FloatArray:
    """Median of each 5x5 neighbourhood of planes, edges mirrored (d c b a | a b c d).

    Parameters
    ----------
    planes : ndarray of float32, shape (N, H, W)
        Planes that hold NaN have no defined result; infinity is a value like others.

    Returns
    -------
    ndarray of float32, shape (N, H, W)
        One of the 25 values of each window; a zero has no sign.
    """
    height, width = planes.shape[1:]
    margins = ((0, 0), (_RADIUS, _RADIUS), (_RADIUS, _RADIUS))
    padded = np.pad(planes, margins, mode="symmetric")
    # Which of 0 and -0 a minimum takes differs between processors.
    padded += np.float32(0)
    # Windows are taken at every place of the padded planes in a row, across their edges too: those
    # at the lower and right margins mean nothing and are cut off.
    stride, total = padded.shape[2], padded.size
    chunk = max(1, min(_CHUNK, total))
    reach = (SIZE - 1) * (stride + 1)
    flat = np.zeros(-(-total // chunk) * chunk + reach, np.float32)
    flat[:total] = padded.ravel()
    medians = np.empty(flat.size - reach, np.float32)
    windows = _Windows(chunk, stride)
    for start in range(0, medians.size, chunk):
        windows.take(flat[start : start + chunk + reach], medians[start : start + chunk])
    return medians[:total].reshape(padded.shape)[:, :height, :width].copy()


class _Windows:
    """Medians of windows whose upper left corners lie side by side, `chunk` at a time.

    Parameters
    ----------
    chunk : int
        How many.
    stride : int
        From one row to the next.
    """

    def __init__(self, chunk: int, stride: int) -> None:
        self.chunk = chunk
        self.stride = stride
        columns = chunk + SIZE - 1
        self._vertical = _rows(2, columns + 2 * stride)
        self._sort = _rows(_SORT.places - SIZE, columns)
        self._horizontal = _rows(2, chunk + 2)
        self._ranks = [_rows(program.places - SIZE, chunk) for program in _SORT_RANK]
        self._choose = _rows(_CHOOSE.places - _CHOOSE.inputs, chunk)

    def take(self, values: FloatArray, medians: FloatArray) -> None:
        """Write the medians of the windows that begin at ``values[: chunk]``."""
        columns = _SORT.run(
            _pairs(values, self._vertical, self.stride, self.chunk + SIZE - 1), self._sort
        )
        candidates = []
        for program, rank, scratch in zip(_SORT_RANK, columns, self._ranks, strict=True):
            candidates += program.run(_pairs(rank, self._horizontal, 1, self.chunk), scratch)
        (chosen,) = _CHOOSE.run(candidates, self._choose)
        medians[:] = chosen


def _pairs(
    values: FloatArray, pair: Sequence[FloatArray], step: int, count: int
) -> list[FloatArray]:
    """Five values `step` apart, the first four as two sorted pairs, for `count` places.

    The pair that is second for one place is the first of the place two steps further.
    """
    low, high = pair
    one, other = values[: low.size], values[step : step + low.size]
    np.minimum(one, other, out=low)
    np.maximum(one, other, out=high)
    second, last = slice(2 * step, 2 * step + count), slice(4 * step, 4 * step + count)
    return [low[:count], high[:count], low[second], high[second], values[last]]


def _rows(number: int, length: int) -> list[FloatArray]:
    return list(np.empty((number, length), np.float32))
