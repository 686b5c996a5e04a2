"""The codes that int8 is calibrated on are those of the loop, at steps all over its range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from berdiff.export.calibration_set import BATCH, calibration_images, calibration_set
from berdiff.export.golden import example_images
from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.batches import read_job
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import InputError
from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.sampler import FloatArray, Sampler
from berdiff.runtime.scans import file_source


@pytest.fixture(scope="module")
def backend(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def images(tiny_bundle: Bundle) -> FloatArray:
    return example_images(tiny_bundle.manifest.preprocessing, BATCH + 1)


def test_codes_are_those_of_the_bundles_own_loop(
    tiny_bundle: Bundle, backend: Backend, images: FloatArray
) -> None:
    found = calibration_set(tiny_bundle, backend, images, seed=7)
    sampler = Sampler(tiny_bundle.schedule, noise_level=50, steps=5)
    code = (backend.encode(images[:BATCH]) > 0.5).astype(np.float32)
    noise = PhiloxNoise(7, np.arange(BATCH))
    state = sampler.init(code, noise)
    for step in range(5):
        assert found.timesteps[step] == sampler.kept[-1 - step]
        np.testing.assert_array_equal(found.codes[step], state.z[step] > 0.5)
        state = sampler.step(state, backend.flip_probability, noise)


def test_steps_lie_all_over_the_range(
    tiny_bundle: Bundle, backend: Backend, images: FloatArray
) -> None:
    found = calibration_set(tiny_bundle, backend, images)
    # Two batches with the bundle's 5 steps, then 25 steps from each of four noise levels.
    assert len(found.codes) == len(found.timesteps) == 2 * 5 + 4 * 25
    assert {0, 49, 74, 149, 224, 299} <= set(found.timesteps.tolist())
    assert np.diff(np.unique(found.timesteps)).max() <= 13  # 25 steps over 300
    assert found.codes.shape[1:] == (8, 16, 16)


def test_one_image_is_walked_from_every_level(
    tiny_bundle: Bundle, backend: Backend, images: FloatArray
) -> None:
    found = calibration_set(tiny_bundle, backend, images[:1])
    assert len(found.codes) == 5 + 4 * 25
    assert {74, 149, 224, 299} <= set(found.timesteps.tolist())


def test_the_seed_decides(tiny_bundle: Bundle, backend: Backend, images: FloatArray) -> None:
    first, again, other = (
        calibration_set(tiny_bundle, backend, images[:2], seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.timesteps, again.timesteps)
    assert (first.codes != other.codes).any()


def test_feeds_are_what_the_denoiser_takes(
    tiny_bundle: Bundle, backend: Backend, images: FloatArray
) -> None:
    found = calibration_set(tiny_bundle, backend, images[:1])
    feeds = list(found.feeds())
    assert len(feeds) == len(found.codes)
    assert {name: (array.shape, array.dtype) for name, array in feeds[3].items()} == {
        "code": ((1, 8, 16, 16), np.float32),
        "t": ((1,), np.int64),
    }
    np.testing.assert_array_equal(feeds[3]["code"][0], found.codes[3])
    assert feeds[3]["t"] == found.timesteps[3]


@pytest.mark.parametrize("shape", [(0, 1, 32, 32), (2, 1, 32, 16), (2, 3, 32, 32)])
def test_no_images_or_images_of_another_size_are_refused(
    tiny_bundle: Bundle, backend: Backend, shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match=r"expected at least one, \[M, 1, 32, 32\]"):
        calibration_set(tiny_bundle, backend, np.zeros(shape, np.float32))


def test_images_are_spread_over_the_scans(tiny_bundle: Bundle, tiny_scans: Path) -> None:
    pre = tiny_bundle.manifest.preprocessing
    images = calibration_images(tiny_scans, pre, 3)
    scans = sorted(tiny_scans.iterdir())
    assert len(scans) == 12
    for image, path in zip(images, scans[::4], strict=True):
        np.testing.assert_array_equal(image, read_job(file_source(path), pre).images[0])
    assert len(calibration_images(tiny_scans, pre, 100)) == 12


def test_slices_are_spread_over_a_volume(tiny_bundle: Bundle, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    pre = tiny_bundle.manifest.preprocessing
    values = np.random.default_rng(0).random((32, 32, 10), np.float32)
    path = tmp_path / "head.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    slices = read_job(file_source(path), pre).images
    images = calibration_images(tmp_path, pre, 5)
    np.testing.assert_array_equal(images, slices[::2])


def test_a_folder_without_scans_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no scan"):
        calibration_images(tmp_path, tiny_bundle.manifest.preprocessing)
