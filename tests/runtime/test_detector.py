"""The detector around networks of a few lines: batches, settings, thresholds, refusals."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from fakes import FACTOR, FakeBackend, fake_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from berdiff.runtime.anomaly import image_score, otsu, segment, smooth
from berdiff.runtime.detector import Detection, Detector
from berdiff.runtime.errors import InputError
from berdiff.runtime.manifest import SamplingDefaults, Threshold
from berdiff.runtime.philox import CODE_STEP, PhiloxNoise
from berdiff.runtime.preprocessing import Preprocessing, foreground

FloatArray = NDArray[np.float32]
ARRAYS = ("anomaly_map", "flip_map", "reconstruction", "mask", "score")
COLOUR = Preprocessing(2, ("t1", "t2"), (32, 40))


def pictures(count: int = 5, channels: int = 1) -> FloatArray:
    """Random blocks on black, with a bright spot each."""
    rng = np.random.default_rng(7)
    coarse = rng.random((count, channels, 4, 5), dtype=np.float32)
    images = np.kron(coarse, np.ones((8, 8), np.float32))
    images[:, :, :6] = 0
    for number, image in enumerate(images):
        image[:, 10 + number : 18 + number, 8:20] = 1
    return images


def threshold(detector: Detector, value: float) -> Detector:
    """The detector, calibrated for its own default settings."""
    chosen = detector.settings()
    manifest = dataclasses.replace(
        detector.bundle.manifest,
        threshold=Threshold(
            value,
            "test",
            chosen.anomaly_map,
            chosen.noise_level,
            chosen.steps,
            chosen.flip_threshold,
        ),
    )
    bundle = dataclasses.replace(detector.bundle, manifest=manifest)
    return Detector(bundle, detector.backend)


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["squared", "absolute", "signed", "change", "flips"])
def test_shapes_ranges_and_what_belongs_together(kind: Any) -> None:
    detector, images = fake_detector(COLOUR), pictures(3, channels=2)
    found = detector.detect(images, [1, 2, 3], settings=detector.settings(anomaly_map=kind))
    assert found.anomaly_map.shape == found.flip_map.shape == found.mask.shape == (3, 32, 40)
    assert found.reconstruction.shape == images.shape
    for name in ("anomaly_map", "flip_map", "reconstruction"):
        values = getattr(found, name)
        assert values.dtype == np.float32
        assert values.min() >= 0
    assert found.flip_map.max() <= 1
    assert found.reconstruction.max() <= 1
    assert (found.mask.dtype, found.score.dtype) == (np.bool_, np.float64)
    inside = foreground(images)
    assert not found.mask[~inside].any()
    for item in range(3):
        assert found.score[item] == image_score(found.anomaly_map[item], inside[item])
    assert set(found.timings) == {"encode", "loop", "decode", "maps"}
    assert min(found.timings.values()) >= 0


@settings(deadline=None, max_examples=15)
@given(
    order=st.permutations(range(5)),
    cut=st.integers(1, 4),
    code=st.sampled_from(["threshold", "sample"]),
    kind=st.sampled_from(["squared", "change"]),
)
def test_a_result_does_not_depend_on_its_batch(
    order: list[int], cut: int, code: Any, kind: Any
) -> None:
    detector = fake_detector()
    chosen = dataclasses.replace(detector.settings(), code=code, anomaly_map=kind)
    images, ids = pictures(), np.array([5, 2**64 - 1, 3, 2**40, 1], np.uint64)
    whole = detector.detect(images, ids, seed=3, settings=chosen)
    for part in (order[:cut], order[cut:]):
        found = detector.detect(images[part], ids[part], seed=3, settings=chosen)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[part])


def reconstruction(detector: Detector, **arguments: Any) -> bytes:
    return detector.detect(pictures(1), **({"ids": [1]} | arguments)).reconstruction.tobytes()


def test_seed_id_and_settings_each_change_the_result() -> None:
    detector = fake_detector()
    sampled = dataclasses.replace(detector.settings(), code="sample")
    results = {
        reconstruction(detector),
        reconstruction(detector, seed=1),
        reconstruction(detector, ids=[2]),
        reconstruction(detector, settings=detector.settings(noise_level=700)),
        reconstruction(detector, settings=detector.settings(steps=3)),
        reconstruction(detector, settings=detector.settings(flip_threshold=1.0)),
        reconstruction(detector, settings=sampled),
    }
    assert len(results) == 7
    assert reconstruction(detector) in results


def test_a_sampled_code_is_drawn_under_its_own_step() -> None:
    """Bits whose probability is 0 or 1 are the same however they are made."""
    detector = fake_detector()
    images = np.zeros((1, 1, 32, 40), np.float32)
    images[:, :, 8:24, 8:24] = 1  # 0.8 of the second half of the bits; 1 of the first
    sampled = dataclasses.replace(detector.settings(anomaly_map="change"), code="sample")
    codes: list[FloatArray] = []
    decode = detector.backend.decode
    detector.backend.decode = lambda z: codes.append(z) or decode(z)  # type: ignore
    detector.detect(images, [1], settings=sampled)
    z_org = codes[1]  # "change" decodes the image's own code after the healthy one
    probability = detector.backend.encode(images)
    uniforms = PhiloxNoise(0, [1])(CODE_STEP, probability.shape)
    np.testing.assert_array_equal(z_org, uniforms < probability)
    set_bits = z_org[0, :, 2:6, 2:6]
    assert set_bits[0].all()
    assert 0 < set_bits[1].mean() < 1
    assert not z_org[0, :, :2].any()


def test_the_change_is_measured_from_the_decoded_code() -> None:
    """Not from the image: a decoder that loses detail leaves no trace in it."""
    detector, images = fake_detector(), pictures(1)
    blurred = images.reshape(1, 1, 8, 4, 10, 4).mean(axis=(3, 5)).repeat(4, 2).repeat(4, 3)
    keep = {"settings": detector.settings(anomaly_map="change")}
    sharp = detector.detect(images, [1], **keep).anomaly_map
    np.testing.assert_array_equal(detector.detect(blurred, [1], **keep).anomaly_map, sharp)


# --- settings ------------------------------------------------------------------------------------


def test_the_main_map_is_smoothed_inside_the_foreground() -> None:
    detector, images = fake_detector(), pictures()
    plain = detector.detect(images, range(5))
    chosen = dataclasses.replace(detector.settings(), smoothing=0.1)
    smoothed = detector.detect(images, range(5), settings=chosen)
    inside = foreground(images)
    expected = smooth(plain.anomaly_map, inside, 0.1 * images.shape[2])
    np.testing.assert_array_equal(smoothed.anomaly_map, expected)
    assert not np.allclose(expected[inside], plain.anomaly_map[inside])
    np.testing.assert_array_equal(smoothed.flip_map, plain.flip_map)
    with pytest.raises(ValueError, match="smoothing"):
        dataclasses.replace(chosen, smoothing=-0.1)


def test_settings_are_the_bundles_where_nothing_is_said() -> None:
    detector = fake_detector()
    assert detector.settings() == detector.bundle.manifest.sampling
    assert detector.settings(flip_threshold=0.0).flip_threshold == 0.0
    chosen = detector.settings(30, 4, 0.25, "flips")
    assert chosen == SamplingDefaults(30, 4, 0.25, "threshold", "flips")


@pytest.mark.parametrize(
    ("level", "steps", "expected"),
    [(500, None, 10), (10, None, 10), (6, None, 6), (1, None, 1), (6, 3, 3)],
)
def test_the_number_of_steps_is_lowered_to_the_noise_level(
    level: int, steps: int | None, expected: int
) -> None:
    detector = fake_detector()
    chosen = detector.settings(noise_level=level, steps=steps)
    assert (chosen.noise_level, chosen.steps) == (level, expected)
    assert len(detector.sampler(chosen).kept) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_level": 0}, "noise level must lie between 1 and 999, got 0"),
        ({"noise_level": 1000}, "noise level"),
        ({"steps": 1}, "steps must lie between 2 and 100, got 1"),
        ({"steps": 101}, "steps"),
        ({"flip_threshold": 2.0}, "flip threshold"),
        ({"anomaly_map": "sqared"}, "anomaly_map must be one of squared, .* got 'sqared'"),
    ],
)
def test_settings_out_of_range_are_input_errors(arguments: Any, message: str) -> None:
    detector = fake_detector()
    with pytest.raises(InputError, match=message):
        detector.detect(pictures(1), [1], settings=detector.settings(**arguments))


# --- thresholds ----------------------------------------------------------------------------------


def masks(detector: Detector, chosen: SamplingDefaults | None = None) -> Detection:
    return detector.detect(pictures(2), [1, 2], settings=chosen)


def test_without_calibration_each_image_has_otsus_threshold() -> None:
    detector, images = fake_detector(), pictures(2)
    found = masks(detector)
    assert detector.calibrated_threshold(detector.settings()) is None
    assert found.mask.any()
    for image, plane, mask in zip(images, found.anomaly_map, found.mask, strict=True):
        inside = foreground(image)
        np.testing.assert_array_equal(mask, segment(plane, otsu(plane[inside]), inside))


def test_a_calibrated_threshold_is_used_for_its_own_settings_only() -> None:
    plain, never = fake_detector(), threshold(fake_detector(), 1e9)
    assert never.calibrated_threshold(never.settings()) == 1e9
    assert not masks(never).mask.any()
    for change in (
        {"noise_level": 99},
        {"steps": 9},
        {"flip_threshold": 0.4},
        {"anomaly_map": "absolute"},
    ):
        other = never.settings(**change)  # type: ignore[arg-type]
        assert never.calibrated_threshold(other) is None
        np.testing.assert_array_equal(masks(never, other).mask, masks(plain, other).mask)


def test_a_mismatch_is_named() -> None:
    calibrated = Threshold(0.1, "test", "squared", 100, 10, 0.5)
    assert calibrated.mismatch(SamplingDefaults(100, 10)) is None
    assert calibrated.mismatch(SamplingDefaults(100, None)) == "steps"
    assert calibrated.mismatch(SamplingDefaults(200, 10)) == "noise_level"
    assert calibrated.mismatch(SamplingDefaults(100, 10, smoothing=0.02)) == "smoothing"


# --- images that show nothing --------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(
    empty=st.lists(st.booleans(), min_size=5, max_size=5),
    code=st.sampled_from(["threshold", "sample"]),
    kind=st.sampled_from(["signed", "change", "flips"]),
)
def test_images_without_foreground_get_zeros_and_change_nothing(
    empty: list[bool], code: Any, kind: Any
) -> None:
    detector, shown = fake_detector(COLOUR), ~np.array(empty)
    chosen = dataclasses.replace(detector.settings(), code=code, anomaly_map=kind, smoothing=0.05)
    images, ids = pictures(channels=2), np.arange(5, dtype=np.uint64)
    alone = detector.detect(images, ids, settings=chosen)
    images[empty] = 0
    found = detector.detect(images, ids, settings=chosen)
    for name in ARRAYS:
        values, expected = getattr(found, name), getattr(alone, name)
        assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(values[shown], expected[shown])
        assert not values[empty].any()
    assert set(found.timings) == set(alone.timings)


def test_no_network_runs_for_images_without_foreground() -> None:
    seen: list[int] = []

    class Counting(FakeBackend):
        def encode(self, images: FloatArray) -> FloatArray:
            assert foreground(images).any(axis=(1, 2)).all()
            seen.append(len(images))
            return super().encode(images)

        def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
            seen.append(len(code))
            return super().flip_probability(code, t)

        def decode(self, code: FloatArray) -> FloatArray:
            seen.append(len(code))
            return super().decode(code)

    detector, images = Detector(fake_detector().bundle, Counting(1)), pictures()
    images[[0, 3]] = 0
    detector.detect(images, range(5))
    assert set(seen) == {3}
    seen.clear()
    found = detector.detect(np.zeros_like(images), range(5))
    assert not seen
    assert not any(found.timings.values())
    assert not np.isnan(found.score).any()


def test_one_faint_pixel_is_something() -> None:
    """Only what is exactly empty is skipped: nothing is guessed."""
    images = np.zeros((1, 1, 32, 40), np.float32)
    images[0, 0, 16, 20] = np.nextafter(np.float32(0), np.float32(1))
    assert fake_detector().detect(images, [1]).reconstruction.any()


# --- networks that fail --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("network", ["encode", "flip_probability", "decode"])
@pytest.mark.parametrize("kind", ["squared", "change", "flips"])
def test_an_answer_that_is_no_number_shows_and_spoils_only_its_own_image(
    network: str, value: float, kind: Any
) -> None:
    """A single such bit or pixel, which a threshold or clipping would hide."""
    clean, broken = fake_detector(), fake_detector()
    answer = getattr(broken.backend, network)

    def spoilt(values: FloatArray, *rest: int) -> FloatArray:
        made = answer(values, *rest).copy()
        if rest in ((), (55,)):  # the loop asks often; once is enough
            made[1, 0, 3, 3] = value
        return made

    setattr(broken.backend, network, spoilt)
    chosen = broken.settings(anomaly_map=kind)
    assert 55 in broken.sampler(chosen).kept
    expected = clean.detect(pictures(3), [1, 2, 3], settings=chosen)
    with np.errstate(invalid="ignore"):
        found = broken.detect(pictures(3), [1, 2, 3], settings=chosen)
    for name in ("anomaly_map", "flip_map", "reconstruction", "score"):
        assert np.isnan(getattr(found, name)[1]).all(), name
    assert not found.mask[1].any()
    for name in ARRAYS:
        for item in (0, 2):
            np.testing.assert_array_equal(getattr(found, name)[item], getattr(expected, name)[item])


# --- refusals and life cycle ---------------------------------------------------------------------

GOOD = pictures(2)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (GOOD, {"ids": [1]}, "got 2 images and 1 ids"),
        (GOOD, {"ids": [1, 2, 3]}, "got 2 images and 3 ids"),
        (GOOD, {"ids": [-1, 2]}, "image ids must be 64-bit"),
        (GOOD, {"ids": [1, 2], "seed": -1}, "seed must be a 64-bit"),
        (GOOD[:0], {"ids": []}, r"shape \(0, 1, 32, 40\), expected \[N, 1, 32, 40\]"),
        (GOOD[0], {"ids": [1]}, r"shape \(1, 32, 40\)"),
        (GOOD[:, :, :31], {"ids": [1, 2]}, r"shape \(2, 1, 31, 40\)"),
        (np.repeat(GOOD, 2, axis=1), {"ids": [1, 2]}, r"shape \(2, 2, 32, 40\)"),
        (GOOD * np.float32(np.nan), {"ids": [1, 2]}, "NaN or infinite"),
        (GOOD * np.float32(255), {"ids": [1, 2]}, r"from 0 to 255, expected \[0, 1\]"),
        (GOOD - 1, {"ids": [1, 2]}, r"from -1 to 0, expected \[0, 1\]"),
    ],
)
def test_what_cannot_be_used_is_refused(images: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fake_detector().detect(images, **arguments)


def test_warming_up_runs_every_network_at_the_batch_size() -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    class Listening(FakeBackend):
        def encode(self, images: FloatArray) -> FloatArray:
            seen.append(("encode", images.shape))
            return super().encode(images)

        def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
            seen.append(("flip", code.shape))
            return super().flip_probability(code, t)

        def decode(self, code: FloatArray) -> FloatArray:
            seen.append(("decode", code.shape))
            return super().decode(code)

    Detector(fake_detector(COLOUR).bundle, Listening(2)).warm_up(3)
    code = (3, 4, 32 // FACTOR, 40 // FACTOR)
    assert seen == [("encode", (3, 2, 32, 40)), ("flip", code), ("flip", code), ("decode", code)]


def test_leaving_the_context_releases_the_engines() -> None:
    detector, closed = fake_detector(), []
    detector.backend.close = lambda: closed.append(True)  # type: ignore
    with detector as entered:
        assert entered is detector
        assert not closed
    assert closed == [True]
