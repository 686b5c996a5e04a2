"""Parts of the graph alone, on ONNX Runtime, beside what they are to be equal to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from berdiff.export.whole.builder import DOUBLE, FLOAT, INT64, UINT64, Builder
from berdiff.export.whole.loop import plan_in_graph
from berdiff.export.whole.maps import difference, median, score, smoothed, stretched
from berdiff.export.whole.noise import Philox
from berdiff.runtime import anomaly
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.manifest import CodeShape
from berdiff.runtime.philox import CODE_STEP, PhiloxNoise
from berdiff.runtime.sampling_settings import fill_settings, make_sampler

Values = Sequence[tuple[str, int, Sequence[int | str]]]


def computed(
    inputs: Values, outputs: Values, write: Callable[[Builder], Sequence[str]]
) -> Callable[..., list[NDArray[Any]]]:
    """A function of a graph that `write` makes; it returns the values of the outputs."""
    graph = Builder("test")
    for value, (name, _, _) in zip(write(graph), outputs, strict=True):
        graph.alias(value, name)
    model = helper.make_model(
        graph.graph(inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def call(**feeds: Any) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = session.run(None, feeds)
        return found

    return call


@pytest.mark.parametrize(
    "code", [CodeShape(4, 5, 3), CodeShape(1, 1, 1), CodeShape(3, 3, 3), CodeShape(16, 8, 8)],
    ids=str,
)  # fmt: skip
def test_draws_are_those_of_the_runtime(code: CodeShape) -> None:
    def write(graph: Builder) -> list[str]:
        noise = Philox(graph, "seed", "image_id", code)
        step = graph.op("Identity", "step")
        return [
            noise.forward(graph, step), noise.reverse(graph, step, step), noise.for_code(graph)
        ]  # fmt: skip

    shape = ("N", code.channels, code.height, code.width)
    draw = computed(
        [("seed", UINT64, ()), ("image_id", UINT64, ("N",)), ("step", INT64, ())],
        [(name, FLOAT, shape) for name in ("forward", "reverse", "code")],
        write,
    )
    largest = 2**64 - 1
    for seed, ids in (
        (0, [0]), (largest, [largest, 1]), (0x299F31D0A4093822, [0x0370734413198A2E, 2**32, 5])
    ):  # fmt: skip
        noise, full = PhiloxNoise(seed, ids), (len(ids), *shape[1:])
        for step in (0, 1, 199, 999):
            forward, reverse, sampled = draw(
                seed=np.array(seed, np.uint64),
                image_id=np.array(ids, np.uint64),
                step=np.array(step, np.int64),
            )
            np.testing.assert_array_equal(forward, noise(step, full))
            np.testing.assert_array_equal(reverse, forward)
            np.testing.assert_array_equal(sampled, noise(CODE_STEP, full))


@pytest.fixture(scope="module")
def plan(tiny_bundle: Bundle) -> Callable[..., list[NDArray[Any]]]:
    def write(graph: Builder) -> list[str]:
        made = plan_in_graph(graph, "noise_level", "steps", tiny_bundle)
        return [made.count, made.level, made.keep, made.floor, made.timesteps, *made.coefficients]

    scalars = [
        ("count", INT64, ()),
        ("level", INT64, ()),
        ("keep", FLOAT, ()),
        ("floor", FLOAT, ()),
    ]
    tables = [(name, FLOAT, ("S",)) for name in ("a", "a_rest", "b", "b_rest")]
    return computed(
        [("noise_level", INT64, ()), ("steps", INT64, ())],
        [*scalars, ("timesteps", INT64, ("S",)), *tables],
        write,
    )


def test_steps_and_coefficients_are_those_of_the_sampler(
    plan: Callable[..., list[NDArray[Any]]], tiny_bundle: Bundle
) -> None:
    cases = [(1, 0), (2, 2), (200, 0), (999, 20)]  # 0: every step
    cases += [(level, steps) for level in (3, 50, 137, 200, 640) for steps in (2, 3, 17, 41, 50)]
    for level, steps in cases:
        if steps > level:
            continue
        sampler = make_sampler(tiny_bundle, fill_settings(tiny_bundle, level, steps or level))
        count, at, keep, floor, timesteps, *tables = plan(
            noise_level=np.array(level, np.int64), steps=np.array(steps, np.int64)
        )
        assert (int(at), keep, floor) == sampler.forward()
        reverse = [sampler.reverse(index) for index in reversed(range(int(count)))]
        assert timesteps.tolist() == [timestep for timestep, _ in reverse]
        for place, (_, coefficients) in enumerate(reverse[:-1]):
            assert tuple(table[place] for table in tables) == coefficients


@pytest.mark.parametrize(
    ("level", "steps"), [(0, 0), (-1, 0), (1000, 0), (2000, 0), (20, 1), (20, 21), (20, -3)]
)
def test_settings_that_the_runtime_refuses_end_the_run(
    plan: Callable[..., list[NDArray[Any]]], tiny_bundle: Bundle, level: int, steps: int
) -> None:
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        plan(noise_level=np.array(level, np.int64), steps=np.array(steps, np.int64))


def test_medians_are_those_of_the_runtime() -> None:
    size = 13, 17
    make = computed(
        [("planes", FLOAT, ("N", *size))],
        [("medians", FLOAT, ("N", *size))],
        lambda graph: [median(graph, "planes", size)],
    )
    random = np.random.default_rng(0)
    ties = random.integers(-2, 3, (2, *size)).astype(np.float32)
    for values in (random.random((3, *size), np.float32), ties):
        np.testing.assert_array_equal(make(planes=values)[0], anomaly.median_filter(values))


@pytest.mark.parametrize("kind", ["squared", "signed", "absolute", "change"])
def test_differences_are_those_of_the_runtime(kind: Any) -> None:
    shape = (4, 12, 10)
    names = ("image", "reconstruction", "unchanged")
    make = computed(
        [(name, FLOAT, ("N", *shape)) for name in names],
        [("map", FLOAT, ("N", *shape[1:]))],
        lambda graph: [median(graph, difference(graph, kind, *names, 4), (12, 10))],
    )
    random = np.random.default_rng(1)
    values = {name: random.random((2, *shape), np.float32) for name in names}
    np.testing.assert_array_equal(
        make(**values)[0], anomaly.anomaly_map(kind, *values.values(), flips=None)
    )


def test_the_flip_map_is_that_of_the_runtime() -> None:
    make = computed(
        [("flips", FLOAT, ("N", 5, 4))],
        [("double", FLOAT, ("N", 20, 32)), ("single", FLOAT, ("N", 20, 32))],
        lambda graph: [
            stretched(graph, "flips", (5, 4), (20, 32), real) for real in (DOUBLE, FLOAT)
        ],
    )
    flips = np.random.default_rng(2).random((3, 5, 4), np.float32)
    double, single = make(flips=flips)
    expected = anomaly.flip_map(flips, (20, 32))
    np.testing.assert_array_equal(double, expected)
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("sigma", [0.4, 1.5, 30.0])
def test_smoothing_and_score_are_those_of_the_runtime(sigma: float) -> None:
    size = 24, 20

    def write(graph: Builder) -> list[str]:
        inside = graph.op("Greater", "shown", graph.constant(0.5, np.float32))
        planes = smoothed(graph, "planes", inside, sigma, size, DOUBLE)
        return [planes, score(graph, planes, inside, size, DOUBLE)]

    make = computed(
        [("planes", FLOAT, ("N", *size)), ("shown", FLOAT, ("N", *size))],
        [("smooth", FLOAT, ("N", *size)), ("score", DOUBLE, ("N",))],
        write,
    )
    random = np.random.default_rng(3)
    planes, inside = random.random((3, *size), np.float32), random.random((3, *size)) > 0.3
    inside[1, 4:] = False  # few pixels: the highest 1 % is one
    inside[2] = False
    inside[2, 5, 5:7] = True
    smooth, scores = make(planes=planes, shown=inside.astype(np.float32))
    expected = anomaly.smooth(planes, inside, sigma)
    np.testing.assert_allclose(smooth, expected, rtol=0, atol=2e-7)
    for plane, area, found in zip(smooth, inside, scores, strict=True):
        assert found == pytest.approx(anomaly.image_score(plane, area), rel=1e-12)
