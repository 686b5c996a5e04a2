"""What `berdiff bench` reports, with a rival whose speed is known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fakes import fake_detector
from numpy.typing import NDArray

from berdiff.runtime.bench import Bench, Timing, run_bench
from berdiff.runtime.manifest import Manifest, SamplingDefaults


class Rival:
    """Claims a fixed time per image and counts its runs."""

    name = "rival"

    def __init__(self, calls: list[int]) -> None:
        self.calls = calls

    def run(self, images: NDArray[np.float32]) -> dict[str, float]:
        self.calls.append(len(images))
        return {"encode": 1.0 * len(images), "loop": 2.0 * len(images), "decode": 3.0}


def test_contenders_are_timed_in_turns_by_batch_size() -> None:
    calls: list[int] = []
    settings: list[SamplingDefaults] = []

    def rival(manifest: Manifest, given: SamplingDefaults) -> Rival:
        assert manifest == detector.bundle.manifest
        settings.append(given)
        return Rival(calls)

    detector = fake_detector()
    result = run_bench(lambda: detector, [3, 1], steps=4, repeats=2, rival=rival)

    assert [(timing.name, timing.batch_size) for timing in result.timings] == [
        ("fake", 1),
        ("rival", 1),
        ("fake", 3),
        ("rival", 3),
    ]
    assert calls == [1, 1, 1, 3, 3, 3]  # the first of each size warms up
    assert settings[0].steps == result.steps == 4
    rivals = result.timings[1], result.timings[3]
    assert [timing.step_ms for timing in rivals] == [500.0, 1500.0]
    assert [timing.image_ms for timing in rivals] == [6000.0, 4000.0]
    assert all(len(timing.runs_ms) == 2 for timing in result.timings)
    assert rivals[1].images_per_second == 0.25
    assert result.speedups().keys() == {1, 3}
    assert result.speedups()[1] == 6000.0 / result.timings[0].image_ms


def test_start_up_memory_and_engine_are_reported() -> None:
    result = run_bench(fake_detector, [2], repeats=1)
    assert result.engine == {"backend": "fake", "device": "cpu"}
    assert result.open_s >= 0
    assert result.warm_up_s > 0
    assert result.peak_memory_mib is not None
    assert 10 < result.peak_memory_mib < 1e6  # MiB, not KiB or bytes
    assert result.speedups() == {}
    assert result.timings[0].image_ms > 0


def test_the_median_counts() -> None:
    runs = iter([9.0, 1.0, 5.0, 2.0])

    class Uneven:
        name = "uneven"

        def run(self, images: NDArray[np.float32]) -> dict[str, float]:
            return {"encode": 0.0, "loop": next(runs), "decode": 0.0}

    result = run_bench(fake_detector, [1], steps=2, repeats=3, rival=lambda *_: Uneven())
    assert result.timings[1].image_ms == 2000.0  # of 1, 5, 2: the 9 was the warm-up
    assert result.timings[1].step_ms == 1000.0


@pytest.mark.parametrize(("wanted", "taken"), [(None, 20), (25, 25), (3, 3)])
def test_a_long_loop_is_cut_short_unless_asked_for(wanted: int | None, taken: int) -> None:
    detector = fake_detector()
    sampling = dataclasses.replace(detector.bundle.manifest.sampling, steps=None)
    manifest = dataclasses.replace(detector.bundle.manifest, sampling=sampling)
    detector.bundle = dataclasses.replace(detector.bundle, manifest=manifest)
    result = run_bench(lambda: detector, [1], steps=wanted, repeats=1)
    assert (result.noise_level, result.steps) == (100, taken)


def test_json_holds_everything() -> None:
    timings = (Timing("a", 4, 1.0, 50.0, (50.0,)), Timing("b", 4, 2.0, 100.0, (100.0,)))
    result = Bench({"backend": "a"}, 200, 20, 0.1, 0.2, None, timings)
    content = json.loads(json.dumps(result.as_json()))
    assert content["speedup"] == {"4": 2.0}
    assert content["timings"][0]["images_per_second"] == pytest.approx(20.0)
    assert content["peak_memory_mib"] is None
