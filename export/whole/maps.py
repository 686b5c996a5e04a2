"""Maps and score inside a graph, as `berdiff.runtime.anomaly` makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from berdiff.runtime.anomaly import TOP_FRACTION
from berdiff.runtime.manifest import AnomalyMapKind
from berdiff.runtime.median import SIZE, median_of_columns

from .builder import DOUBLE, FLOAT, Builder, Type


def difference(
    graph: Builder,
    kind: AnomalyMapKind,
    image: str,
    reconstruction: str,
    unchanged: str,
    channels: int,
) -> str:
    """Compare images ``[N, C, H, W]`` into one plane each, ``[N, H, W]``."""
    g, zero = graph, graph.constant(0, np.float32)
    if kind == "squared":
        gap = g.op("Sub", reconstruction, image)
        values = g.op("Mul", gap, gap)
    elif kind == "absolute":
        values = g.op("Abs", g.op("Sub", image, reconstruction))
    else:
        more = unchanged if kind == "change" else image
        values = g.op("Max", g.op("Sub", more, reconstruction), zero)
    # Channel after channel: the order in which the runtime adds them.
    planes = [
        g.op("Gather", values, g.constant(channel, np.int64), axis=1) for channel in range(channels)
    ]
    total = planes[0]
    for plane in planes[1:]:
        total = g.op("Add", total, plane)
    return str(total)


def median(graph: Builder, planes: str, size: tuple[int, int]) -> str:
    """Median of each 5x5 neighbourhood of planes ``[N, H, W]``, edges mirrored."""
    g, reach = graph, SIZE // 2
    padded = planes
    for axis, length in ((1, size[0]), (2, size[1])):
        order = np.pad(np.arange(length), reach, mode="symmetric")
        padded = g.op("Gather", padded, g.constant(order, np.int64), axis=axis)
    padded = g.op("Add", padded, g.constant(0, np.float32))  # a zero has no sign

    def shifted(value: str, axis: int) -> list[str]:
        return [g.cut(value, axis, k, k + size[axis - 1]) for k in range(SIZE)]

    def compare(larger: bool, one: str, other: str) -> str:
        return str(g.op("Max" if larger else "Min", one, other))

    return median_of_columns(shifted(padded, 1), lambda rank: shifted(rank, 2), compare)


def mean_of_bits(graph: Builder, flips: str, bits: int) -> str:
    """Mean over the K bits of each position, ``[N, K, h, w] -> [N, h, w]``.

    Halves are added to each other: the sum of an operator that reduces depends on how it shares its
    work among threads, and so on the batch.
    """
    g, total, left = graph, flips, bits
    while left > 1:
        half = left // 2
        added = g.op("Add", g.cut(total, 1, 0, half), g.cut(total, 1, half, 2 * half))
        if left % 2:
            added = g.op("Concat", added, g.cut(total, 1, left - 1, left), axis=1)
        total, left = added, half + left % 2
    whole = g.op("Gather", total, g.constant(0, np.int64), axis=1)
    return str(g.op("Div", whole, g.constant(bits, np.float32)))


def stretched(
    graph: Builder, values: str, code: Sequence[int], size: Sequence[int], real: Type
) -> str:
    """Bring ``[N, h, w]`` to ``[N, H, W]``, linear between the centres; columns first."""
    g = graph
    dtype = np.float64 if real == DOUBLE else np.float32
    values = g.cast(values, real)
    for axis in (2, 1):
        count, length = code[axis - 1], size[axis - 1]
        place = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
        below = place.astype(np.int64)
        shape = [1, 1, 1]
        shape[axis] = length
        weight = (place - below).reshape(shape)
        parts = [
            g.op("Mul", g.op("Gather", values, g.constant(index, np.int64), axis=axis),
                 g.constant(share, dtype))
            for index, share in ((below, 1 - weight), (np.minimum(below + 1, count - 1), weight))
        ]  # fmt: skip
        values = g.op("Add", *parts)
    return g.cast(values, FLOAT)


def smoothed(
    graph: Builder, planes: str, inside: str, sigma: float, size: tuple[int, int], real: Type
) -> str:
    """Gaussian smoothing within the foreground, ``[N, H, W]``; 0 outside."""
    g, zero = graph, graph.constant(0, np.float32)
    dtype = np.float64 if real == DOUBLE else np.float32
    rows, columns = (g.constant(_band(length, sigma), dtype) for length in size)

    def blur(value: str) -> str:
        # Each axis is rounded to float32, as filters do that work axis by axis.
        along = g.cast(g.op("MatMul", rows, g.cast(value, real)), FLOAT)
        return g.cast(g.op("MatMul", g.cast(along, real), columns), FLOAT)

    weight = blur(g.cast(inside, FLOAT))
    blurred = blur(g.op("Where", inside, planes, zero))
    share = g.op("Div", blurred, g.op("Max", weight, g.constant(1e-6, np.float32)))
    return str(g.op("Where", inside, share, zero))


def _band(length: int, sigma: float) -> np.ndarray:
    """Matrix that convolves with a Gaussian cut off at four sigmas, zeros beyond the edges."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    band = np.zeros((length, length))
    for offset, weight in zip(range(-radius, radius + 1), kernel, strict=True):
        if abs(offset) < length:
            band += np.diag(np.full(length - abs(offset), weight), offset)
    return band


def score(graph: Builder, planes: str, inside: str, size: tuple[int, int], real: Type) -> str:
    """Mean of the highest 1 % inside the foreground, ``[N]``; means nothing without foreground."""
    g, pixels = graph, size[0] * size[1]
    outside = g.constant(-1, np.float32)  # below every map
    values = g.op("Reshape", g.op("Where", inside, planes, outside), g.ints(-1, pixels))
    # All sorted, of which each image takes its own number.
    most = max(1, round(TOP_FRACTION * pixels))
    highest, _ = g.op("TopK", values, g.ints(most), axis=1, outputs=2)
    flat = g.op("Reshape", inside, g.ints(-1, pixels))
    shown = g.op("ReduceSum", g.cast(flat, real), g.ints(1), keepdims=1)
    dtype = np.float64 if real == DOUBLE else np.float32
    share = g.op("Round", g.op("Mul", shown, g.constant(TOP_FRACTION, dtype)))
    count = g.op("Max", share, g.constant(1, dtype))
    taken = g.op("Less", g.constant(np.arange(most)[None], dtype), count)
    kept = g.op("Where", taken, g.cast(highest, real), g.constant(0, dtype))
    total = g.op("ReduceSum", kept, g.ints(1), keepdims=1)
    return str(g.op("Reshape", g.op("Div", total, count), g.ints(-1)))


def finite(graph: Builder, value: str) -> str:
    """Whether each image's values are all numbers: bool ``[N]``."""
    g, zero = graph, graph.constant(0, np.float32)
    numbers = g.op("Equal", g.op("Mul", value, zero), zero)
    flat = g.op("Reshape", g.cast(numbers, FLOAT), g.ints(0, -1))
    least = g.op("ReduceMin", flat, g.ints(1), keepdims=0)
    return str(g.op("Greater", least, g.constant(0.5, np.float32)))
