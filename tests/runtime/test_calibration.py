"""The calibrated threshold: its false-positive rate on maps that are given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fakes import FloatArray, fake_detector
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from PIL import Image

from berdiff.runtime.batches import detect_slices, read_job
from berdiff.runtime.calibration import calibrate, threshold_for_rate
from berdiff.runtime.detector import Detection, Detector
from berdiff.runtime.errors import BerdiffError, InputError
from berdiff.runtime.image_features import describe
from berdiff.runtime.intake import fit
from berdiff.runtime.manifest import SamplingDefaults
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import file_source


class MapIsTheImage(Detector):
    """A detector whose anomaly map is the image it is given."""

    def detect(
        self,
        images: FloatArray,
        ids: ArrayLike,
        seed: int = 0,
        settings: SamplingDefaults | None = None,
    ) -> Detection:
        maps = images[:, 0]
        return Detection(maps, maps, images, maps > 2, maps.max(axis=(1, 2)), {})


def known(size: tuple[int, int] = (10, 10)) -> Detector:
    fake = fake_detector(Preprocessing(1, ("flair",), size))
    return MapIsTheImage(fake.bundle, fake.backend)


def ramp(path: Path, shape: tuple[int, int] = (10, 10)) -> Path:
    """Values 0..99, each once: normalised n / 99, and the pixel of value 0 is background."""
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    Image.fromarray(values).save(path)
    return path


values_of_a_map = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 7.0]), min_size=1, max_size=40)


@given(values_of_a_map, st.floats(0, 1, exclude_max=True))
def test_threshold_is_the_lowest_value_that_keeps_the_rate(
    values: list[float], rate: float
) -> None:
    given_values = np.array(values, np.float32)
    threshold = threshold_for_rate(given_values, rate)
    assert threshold in values
    assert np.mean(given_values > threshold) <= rate
    for lower in {value for value in values if value < threshold}:
        assert np.count_nonzero(given_values > lower) > int(rate * len(values))


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_rates_are_refused_before_anything_is_read(rate: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must lie in"):
        calibrate(known(), tmp_path / "nothing", rate)


def test_threshold_of_a_known_map(tmp_path: Path) -> None:
    result = calibrate(known(), ramp(tmp_path / "a.png"), rate=0.1)
    # 99 pixels of foreground; 9 of them may lie above: those of value 91 to 99.
    assert result.threshold.value == np.float32(90) / np.float32(99)
    assert (result.scans, result.pixels) == (1, 99)
    assert result.above == pytest.approx(9 / 99)
    assert result.masked == 0  # 9 pixels are a speck
    assert calibrate(known(), tmp_path / "a.png", rate=0.3).masked == 1
    assert calibrate(known(), tmp_path / "a.png", rate=0).threshold.value == 1


def test_scans_are_pooled_on_their_own_grids_without_empty_slices(tmp_path: Path) -> None:
    ramp(tmp_path / "a.png")
    volume = np.zeros((20, 20, 3), np.float32)
    volume[..., 1] = 1.0  # a slice of ones, once normalised by its own minimum and maximum
    volume[0, 0, 1] = 0.0
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])), tmp_path / "b.nii.gz")
    seen: list[tuple[int, int, int]] = []
    result = calibrate(
        known((20, 20)), tmp_path, 0.5, batch_size=2, progress=lambda *state: seen.append(state)
    )
    # More than half of the values are 1, so no lower threshold keeps the rate.
    assert (result.scans, result.pixels) == (2, 99 + 399)
    assert (result.threshold.value, result.above) == (1, 0)
    most = calibrate(known((20, 20)), tmp_path, 401 / 498).threshold.value
    assert most == np.float32(97) / np.float32(99)  # 399 ones, 99 / 99 and 98 / 99 lie above
    assert seen == [(1, 2, 1), (2, 2, 2)]


def test_threshold_names_its_source_and_the_settings_it_is_valid_for(tmp_path: Path) -> None:
    detector = known()
    settings = detector.settings(noise_level=50, steps=5, flip_threshold=0.25)
    threshold = calibrate(
        detector, ramp(tmp_path / "a.png"), 0.02, settings=settings, seed=3
    ).threshold
    assert threshold.mismatch(settings) is None
    assert threshold.mismatch(detector.settings()) == "noise_level"
    assert threshold.source == (
        "calibrated on 1 healthy scans (99 foreground pixels): at most 0.02 of the pixels lie "
        "above; seed 3"
    )


def test_batches_do_not_change_the_threshold(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in "abc":
        pixels = random.integers(0, 256, (32, 40), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    first, second = (calibrate(fake_detector(), tmp_path, batch_size=size) for size in (1, 3))
    assert first == second


def test_a_bundle_without_statistics_learns_what_healthy_input_looks_like(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pre = Preprocessing(
        1, ("flair",), (20, 20), normalisation="foreground-median", orientation="LPS"
    )
    kept = []
    for number in range(5):
        volume = random.integers(1, 256, (20, 20, 5)).astype(np.float32)
        volume[3:, :, 4] = 0  # shows 3 rows of 20: too little to count
        affine = np.diag([-1, -1, 1, 1])
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / f"{number}.nii.gz")
        kept += [pre.to_grid(volume[..., index][None]) for index in range(4)]
    found = calibrate(fake_detector(pre), tmp_path, batch_size=3).input_statistics
    assert found == fit(describe(np.stack(kept)), ("flair",))
    assert found is not None
    assert found.images == 20
    # What training has measured is not replaced, and few scans teach nothing.
    known = fake_detector(pre)
    known.bundle = dataclasses.replace(
        known.bundle,
        manifest=dataclasses.replace(known.bundle.manifest, input_statistics=found),
    )
    assert calibrate(known, tmp_path).input_statistics is None
    assert calibrate(fake_detector(pre), tmp_path / "0.nii.gz").input_statistics is None


def test_unusable_scan_is_named(tmp_path: Path) -> None:
    ramp(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.png: the file is empty"):
        calibrate(known(), tmp_path)


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    detector = known()
    with pytest.raises(InputError, match="noise level"):
        calibrate(detector, tmp_path, settings=detector.settings(noise_level=5000))
    with pytest.raises(InputError, match="batch size"):
        calibrate(detector, ramp(tmp_path / "a.png"), batch_size=0)


def test_a_model_that_answers_nan_stops_the_measurement(tmp_path: Path) -> None:
    Image.fromarray(np.arange(1280, dtype=np.uint8).reshape(32, 40)).save(tmp_path / "a.png")
    detector = fake_detector(answer_nan=True)
    source = file_source(tmp_path / "a.png")
    job = read_job(source, detector.bundle.manifest.preprocessing)
    with pytest.raises(BerdiffError, match=r"a\.png: the model answered with NaN"):
        list(detect_slices(detector, [job], detector.settings()))
