"""The masked loop inside a graph, operation for operation that of `berdiff.runtime.sampler`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from berdiff.runtime.bundle import Bundle

from .builder import BOOL, DOUBLE, FLOAT, INT64, Builder
from .noise import Noise


@dataclass(frozen=True)
class Plan:
    """Tables of a graph, one entry per reverse step, the last step first.

    Attributes
    ----------
    count : str
        int64 scalar: reverse steps.
    level : str
        int64 scalar: the step noised to.
    keep, floor : str
        float32 scalars of q(z_L = 1 | z) = keep z + floor.
    timesteps : str
        int64 ``[count]``.
    coefficients : tuple of str
        alpha, its rest, abar, its rest: float32 ``[count]`` each.
    """

    count: str
    level: str
    keep: str
    floor: str
    timesteps: str
    coefficients: tuple[str, str, str, str]


def plan_in_graph(graph: Builder, noise_level: str, steps: str, bundle: Bundle) -> Plan:
    """Choose steps and coefficients from values that are known when the graph runs.

    What the runtime refuses makes the graph fail: a noise level outside ``[1, T)`` and steps that
    do not fit it are turned into a step that the table does not have. Both are int64 scalars;
    `steps` of 0 takes every one.
    """
    g, abar = graph, bundle.schedule.abar
    one, two, total = (g.constant(value, np.int64) for value in (1, 2, len(abar)))
    table = g.constant(abar, np.float64)
    level = noise_level
    asked = g.op("Where", g.op("Equal", steps, g.constant(0, np.int64)), level,
                 steps)  # fmt: skip
    fits = g.op("And", g.op("GreaterOrEqual", asked, g.op("Min", two, level)),
                g.op("LessOrEqual", asked, level))  # fmt: skip
    fits = g.op("And", fits, g.op("GreaterOrEqual", level, one))
    level = g.op("Where", fits, level, total)
    forward = g.op("Gather", table, level)
    # round(i (L - 1) / (count - 1)), halves to even as Python rounds them
    index = g.op("Range", g.constant(0, np.int64), asked, one)
    product = g.op("Mul", index, g.op("Sub", level, one))
    divisor = g.op("Max", g.op("Sub", asked, one), one)
    place = g.op("Div", g.cast(product, DOUBLE), g.cast(divisor, DOUBLE))
    kept = g.cast(g.op("Round", place), INT64)
    before = g.op(
        "Concat", g.ints(0), g.op("Slice", kept, g.ints(0), g.ints(-1), g.ints(0)), axis=0
    )
    here, previous = g.op("Gather", table, kept), g.op("Gather", table, before)
    alpha = g.op("Div", here, previous)
    coefficients = [g.cast(value, FLOAT) for value in (alpha, _rest(g, alpha), previous,
                                                       _rest(g, previous))]  # fmt: skip
    a, a_rest, b, b_rest = (_reversed(g, value) for value in coefficients)
    upstream = bundle.manifest.forward_noise == "upstream"
    floor = g.constant(0, np.float32) if upstream else g.cast(_rest(g, forward), FLOAT)
    return Plan(
        asked, level, g.cast(forward, FLOAT), floor, _reversed(g, kept), (a, a_rest, b, b_rest)
    )


def _rest(graph: Builder, value: str) -> str:
    """(1 - value) / 2, in float64."""
    one, two = graph.constant(1, np.float64), graph.constant(2, np.float64)
    name: str = graph.op("Div", graph.op("Sub", one, value), two)
    return name


def _reversed(graph: Builder, value: str) -> str:
    smallest = -(2**62)
    name: str = graph.op(
        "Slice", value, graph.ints(-1), graph.ints(smallest), graph.ints(0), graph.ints(-1)
    )
    return name


def walk(
    graph: Builder,
    denoiser: onnx.ModelProto,
    z_org: str,
    plan: Plan,
    flip_threshold: str,
    noise: Noise,
    bundle: Bundle,
) -> tuple[str, str, str]:
    """Noise a code and walk it back.

    Returns
    -------
    code : str
        The soft healthy code, float32 ``[N, K, h, w]``.
    mask : str
        Bits that any step wanted to flip, bool ``[N, K, h, w]``.
    flips : str
        Mean over the steps of the probability that the healthy bit differs, float32.
    """
    g = graph
    probability = g.op("Add", g.op("Mul", plan.keep, z_org), plan.floor)
    z = g.cast(g.op("Less", noise.forward(g, plan.level), probability), FLOAT)
    # Of the code's own shape, whatever the batch.
    never = g.op("Less", z_org, g.constant(-1, np.float32))
    zeros = g.op("Mul", z_org, g.constant(0, np.float32))
    body = _body(denoiser, z_org, plan, flip_threshold, noise, bundle)
    code, mask, flips = g.op(
        "Loop", plan.count, g.constant(True, np.bool_), z, never, zeros, outputs=3, body=body
    )
    return code, mask, g.op("Div", flips, g.cast(plan.count, FLOAT))


def _body(
    denoiser: onnx.ModelProto,
    z_org: str,
    plan: Plan,
    flip_threshold: str,
    noise: Noise,
    bundle: Bundle,
) -> onnx.GraphProto:
    """One reverse step; it reads tables and the image's own code of the graph around it."""
    g = Builder("step")
    taken, going, z, mask, flips = (f"step/in_{n}" for n in ("taken", "on", "z", "mask", "flips"))
    timestep = g.op("Gather", plan.timesteps, taken)
    eps = g.network(denoiser, {"code": z, "t": g.op("Reshape", timestep, g.ints(1))})
    healthy = g.op("Abs", g.op("Sub", z, eps))  # what the denoiser takes for the healthy code
    flips_after = g.op("Add", flips, g.op("Abs", g.op("Sub", healthy, z_org)))
    # The last step draws nothing: its result is the soft code, and the mask stays.
    last = g.op("Equal", g.op("Add", taken, g.constant(1, np.int64)), plan.count)
    wanted = g.op("And", g.op("Greater", eps, flip_threshold), g.op("Not", last))
    mask_after = g.op("Or", mask, wanted)
    z0 = g.op("Where", mask_after, healthy, z_org)
    chance = _posterior(g, z, z0, plan.coefficients, taken)
    drawn = g.op("Less", noise.reverse(g, timestep, taken), chance)
    z_after = g.op("Where", last, healthy, g.cast(drawn, FLOAT))
    named = (going, z_after, mask_after, flips_after)
    for value, name in zip(named, ("on", "z", "mask", "flips"), strict=True):
        g.alias(value, f"step/out_{name}")
    code = bundle.manifest.code
    shape = ("N", code.channels, code.height, code.width)
    carried = [("z", FLOAT, shape), ("mask", BOOL, shape), ("flips", FLOAT, shape)]
    return g.graph(
        [(taken, INT64, ()), (going, BOOL, ()), *((f"step/in_{n}", t, s) for n, t, s in carried)],
        [("step/out_on", BOOL, ()), *((f"step/out_{n}", t, s) for n, t, s in carried)],
    )


def _posterior(
    graph: Builder, z: str, z0: str, tables: tuple[str, str, str, str], taken: str
) -> str:
    """q(z_{t-1} = 1 | z_t, z_0); see `berdiff.runtime.sampler.posterior`."""
    g = graph
    a, a_rest, b, b_rest = (g.op("Gather", table, taken) for table in tables)
    unit = g.constant(1, np.float32)

    def product(of_z: str, of_z0: str) -> str:
        one = g.op("Add", g.op("Mul", a, of_z), a_rest)
        other = g.op("Add", g.op("Mul", b, of_z0), b_rest)
        name: str = g.op("Mul", one, other)
        return name

    one = product(z, z0)
    zero = product(g.op("Sub", unit, z), g.op("Sub", unit, z0))
    name: str = g.op("Div", one, g.op("Add", one, zero))
    return name
