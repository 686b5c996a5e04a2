"""What real images judge a precision by: nothing where nothing differs, and NaN is no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from berdiff.export.agreement import STEPS, differences, flip_errors, outcomes
from berdiff.export.parity import ParityError, check_calibration
from berdiff.export.reference import JUDGED, Reference, read_healthy
from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import GRAPHS, Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.precision import CALIBRATION_FIGURES, FIGURES, LOOP_FIGURES, Precision, limits
from berdiff.runtime.preprocessing import foreground

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def backend(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def images(tiny_bundle: Bundle, tiny_scans: Path) -> Array:
    return read_healthy(tiny_scans, tiny_bundle.manifest.preprocessing)


class Altered:
    """A backend whose flip probabilities are changed on the way out."""

    def __init__(self, backend: Backend, change: Callable[[Array], Array]) -> None:
        self._backend = backend
        self._change = change
        self.encode, self.decode = backend.encode, backend.decode

    def flip_probability(self, code: Array, t: int) -> Array:
        return self._change(self._backend.flip_probability(code, t))


def test_the_same_networks_agree(tiny_bundle: Bundle, backend: Backend, images: Array) -> None:
    one, again = (outcomes(tiny_bundle, backend, images) for _ in range(2))
    figures = differences(one, again) | flip_errors(backend, backend, one)
    assert figures.keys() == CALIBRATION_FIGURES.keys() | LOOP_FIGURES.keys()
    assert set(figures.values()) == {0.0}


def test_outcomes_are_what_the_detector_finds(
    tiny_bundle: Bundle, backend: Backend, images: Array
) -> None:
    first = outcomes(tiny_bundle, backend, images, seed=3)[0]
    part = images[: len(first.own)]
    found = Detector(tiny_bundle, backend).detect(part, np.arange(len(part)), seed=3)
    np.testing.assert_array_equal(first.map, found.anomaly_map[foreground(part)])
    kept = Detector(tiny_bundle, backend).sampler(tiny_bundle.manifest.sampling).kept
    assert len(first.codes) == min(STEPS, len(kept))
    assert {0, max(kept)} <= first.codes.keys()


def test_another_seed_differs(tiny_bundle: Bundle, backend: Backend, images: Array) -> None:
    one, other = (outcomes(tiny_bundle, backend, images, seed) for seed in (0, 1))
    figures = differences(one, other)
    assert figures.pop("calibration_code_rate") == 0
    assert all(value > 0.01 for value in figures.values())


def test_an_error_is_measured_on_the_codes_of_the_reference(
    tiny_bundle: Bundle, backend: Backend, images: Array
) -> None:
    def late(flips: Array) -> Array:
        flips = flips.copy()
        flips.flat[0] += np.float32(0.25)
        return flips

    expected = outcomes(tiny_bundle, backend, images)
    figures = flip_errors(backend, Altered(backend, late), expected)  # type: ignore[arg-type]
    assert figures["calibration_flip_error"] == pytest.approx(0.25)
    assert figures["calibration_flip_p999"] == 0


@pytest.mark.parametrize("flaw", [np.nan, 0.2])
def test_the_gate_refuses_what_disagrees(
    tiny_bundle_at: Callable[[Precision], Bundle], backend: Backend, images: Array, flaw: float
) -> None:
    altered = Altered(backend, lambda flips: flips + np.float32(flaw))
    bundle = tiny_bundle_at("fp16")
    with pytest.raises(ParityError, match=r"fp16 does not find .*calibration_flip_error is"):
        check_calibration(bundle, backend, altered, images[:JUDGED])  # type: ignore[arg-type]


def test_a_loop_may_differ_by_a_share_of_what_chance_makes_of_it(
    tiny_bundle_at: Callable[[Precision], Bundle], backend: Backend, images: Array
) -> None:
    bundle = tiny_bundle_at("fp16")
    with open_backend(bundle, threads=1) as half:
        checks = check_calibration(bundle, backend, half, images[:JUDGED])
    seeds = (outcomes(bundle, backend, images[:JUDGED], seed) for seed in (0, 1))
    by_chance = differences(*seeds)
    for check in checks:
        share = LOOP_FIGURES.get(check.name)
        if share is None:
            assert check.limit == CALIBRATION_FIGURES[check.name].fp16
        else:
            assert check.limit == share.fp16 * by_chance[check.name]
        assert check.value <= check.limit
    assert any(check.value > 0 for check in checks)


def test_int8_is_written_with_what_was_measured(
    tiny_bundle_at: Callable[[Precision], Bundle],
) -> None:
    manifest = tiny_bundle_at("int8").manifest
    names = [*FIGURES, *CALIBRATION_FIGURES, *LOOP_FIGURES]
    assert list(manifest.parity) == list(manifest.parity_limits) == names
    assert limits("int8").items() <= manifest.parity_limits.items()
    assert all(manifest.parity[name] <= limit for name, limit in manifest.parity_limits.items())
    assert set(manifest.files) == {*GRAPHS, "golden/vectors.npz"}  # nothing of the images


@pytest.mark.parametrize(("count", "judged", "ranged"), [(40, 8, 32), (16, 8, 8), (15, 8, 15)])
def test_who_judges_does_not_calibrate(
    tiny_bundle: Bundle, count: int, judged: int, ranged: int
) -> None:
    images = np.arange(count, dtype=np.float32)[:, None, None, None]
    reference = Reference(tiny_bundle, images)
    assert (len(reference.judged), len(reference.ranged)) == (judged, ranged)
    both = set(reference.judged.ravel()) & set(reference.ranged.ravel())
    assert bool(both) == (count < 16)
    assert Reference(tiny_bundle, images[:3]).judged.ravel().tolist() == [0, 1, 2]
