"""Where the noise of a graph comes from: drawn in it, or given to it.

Drawn, it is Philox4x32-10, with the draws of `berdiff.runtime.philox`, bit for bit. That takes
64-bit integers, which engines for GPUs do not know: for those it is an input.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from berdiff.runtime.manifest import CodeShape
from berdiff.runtime.philox import CODE_STEP

from .builder import FLOAT, UINT64, Builder


class Noise(Protocol):
    """Uniforms ``[N, K, h, w]`` in [0, 1) for each draw of the method."""

    def for_code(self, graph: Builder) -> str:
        """For a sampled code."""
        ...

    def forward(self, graph: Builder, step: str) -> str:
        """For the noising to a step, an int64 scalar."""
        ...

    def reverse(self, graph: Builder, step: str, taken: str) -> str:
        """For the reverse step at a step, after some were `taken`; both int64 scalars."""
        ...


_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Philox:
    """Uniforms for codes, drawn in a graph with 64-bit integers.

    Parameters
    ----------
    outer : Builder
        The graph that holds what does not change from step to step.
    seed, image_id : str
        Values there: uint64 scalar, and uint64 ``[N]``.
    code : CodeShape
        Of the codes.
    """

    def __init__(self, outer: Builder, seed: str, image_id: str, code: CodeShape) -> None:
        self._code = code
        self._count = code.channels * code.height * code.width
        low, high = _halves(outer, seed)
        self._keys = []
        for number in range(_ROUNDS):
            steps = [outer.constant(number * step & 0xFFFFFFFF, np.uint64) for step in _KEY_STEPS]
            self._keys.append(
                [
                    _low(outer, outer.op("Add", half, step))
                    for half, step in zip((low, high), steps, strict=True)
                ]
            )
        columns = outer.op("Unsqueeze", image_id, outer.ints(1))
        self._ids = _halves(outer, columns)  # [N, 1]
        blocks = -(-self._count // 4)
        self._blocks = outer.constant(np.arange(blocks)[None], np.uint64)  # [1, B]

    def for_code(self, graph: Builder) -> str:
        """For a sampled code."""
        return self._draw(graph, graph.constant(CODE_STEP, np.uint64))

    def forward(self, graph: Builder, step: str) -> str:
        """For the noising to a step."""
        return self._draw(graph, graph.cast(step, UINT64))

    def reverse(self, graph: Builder, step: str, taken: str) -> str:
        """For the reverse step at a step."""
        return self._draw(graph, graph.cast(step, UINT64))

    def _draw(self, graph: Builder, step: str) -> str:
        """Uniforms of a step, a uint64 scalar.

        Element e of an image is lane e % 4 of counter (e // 4, step, id low, id high).
        """
        words = [self._blocks, step, *self._ids]
        multipliers = [graph.constant(value, np.uint64) for value in _MULTIPLIERS]
        for key in self._keys:
            products = [
                graph.op("Mul", word, factor)
                for word, factor in zip((words[0], words[2]), multipliers, strict=True)
            ]
            (low0, high0), (low1, high1) = (_halves(graph, product) for product in products)
            words = [
                graph.op("BitwiseXor", graph.op("BitwiseXor", high1, words[1]), key[0]),
                low1,
                graph.op("BitwiseXor", graph.op("BitwiseXor", high0, words[3]), key[1]),
                low0,
            ]
        lanes = [graph.op("Unsqueeze", word, graph.ints(2)) for word in words]
        mixed = graph.op("Concat", *lanes, axis=2)  # [N, B, 4]
        bits = graph.op("BitShift", mixed, graph.constant(8, np.uint64), direction="RIGHT")
        uniforms = graph.op("Mul", graph.cast(bits, FLOAT), graph.constant(2.0**-24, np.float32))
        flat = graph.op("Reshape", uniforms, graph.ints(0, -1))
        code = self._code
        shape = graph.ints(-1, code.channels, code.height, code.width)
        name: str = graph.op("Reshape", graph.cut(flat, 1, 0, self._count), shape)
        return name


class Given:
    """Uniforms that the caller hands over.

    Parameters
    ----------
    noise : str
        Value float32 ``[draws, N, K, h, w]``: for the noising, then for each reverse step but the
        last, and, where codes are sampled, for the code at the end.
    draws : int
        How many.
    """

    def __init__(self, noise: str, draws: int) -> None:
        self._noise = noise
        self._last = draws - 1

    def for_code(self, graph: Builder) -> str:
        """For a sampled code."""
        return self._take(graph, graph.constant(self._last, np.int64))

    def forward(self, graph: Builder, step: str) -> str:
        """For the noising."""
        return self._take(graph, graph.constant(0, np.int64))

    def reverse(self, graph: Builder, step: str, taken: str) -> str:
        """For the next reverse step; the last has none of its own, and its bits are not used."""
        following = graph.op("Add", taken, graph.constant(1, np.int64))
        return self._take(graph, graph.op("Min", following, graph.constant(self._last, np.int64)))

    def _take(self, graph: Builder, number: str) -> str:
        name: str = graph.op("Gather", self._noise, number, axis=0)
        return name


def _low(graph: Builder, value: str) -> str:
    name: str = graph.op("BitwiseAnd", value, graph.constant(0xFFFFFFFF, np.uint64))
    return name


def _halves(graph: Builder, value: str) -> tuple[str, str]:
    """Lower and upper 32 bits of 64."""
    high = graph.op("BitShift", value, graph.constant(32, np.uint64), direction="RIGHT")
    return _low(graph, value), high
