"""The simple opponents: small cases by hand, and their figures on real images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from berdiff.baseline import PRIOR_IMAGES, ZScore, intensity, smooth
from berdiff.runtime import metrics
from berdiff.runtime.anomaly import image_score
from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing, foreground


def test_smoothing_keeps_a_constant_inside_and_nothing_outside() -> None:
    inside = np.zeros((20, 24), bool)
    inside[4:15, 5:20] = True
    planes = np.where(inside, np.float32(0.7), np.float32(9))
    smoothed = smooth(planes, inside, 3.0)
    np.testing.assert_allclose(smoothed[inside], 0.7, rtol=1e-5)
    assert not smoothed[~inside].any()
    np.testing.assert_array_equal(smooth(planes, inside, 0)[inside], planes[inside])


def test_smoothing_of_a_stack_does_not_mix_its_planes() -> None:
    random = np.random.default_rng(0)
    planes = random.random((3, 16, 16)).astype(np.float32)
    inside = np.ones((3, 16, 16), bool)
    alone = np.stack([smooth(plane, area, 2.0) for plane, area in zip(planes, inside, strict=True)])
    np.testing.assert_allclose(smooth(planes, inside, 2.0), alone, rtol=1e-6)


def test_z_score_by_hand() -> None:
    # Two images of two pixels; the second pixel shows something in the first image only.
    images = [np.array([[[0.2, 0.6]]], np.float32), np.array([[[0.4, 0.0]]], np.float32)]
    model = ZScore.fit(images, smoothing=0)
    k, overall = PRIOR_IMAGES, (0.2 + 0.4 + 0.6) / 3
    mean = [(0.6 + k * overall) / (2 + k), (0.6 + k * overall) / (1 + k)]
    squares = [(0.2 - mean[0]) ** 2 + (0.4 - mean[0]) ** 2, (0.6 - mean[1]) ** 2]
    usual = sum(squares) / 3
    std = [((squares[i] + k * usual) / (shown + k)) ** 0.5 for i, shown in ((0, 2), (1, 1))]
    np.testing.assert_allclose(model.mean[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(model.std[0, 0], std, rtol=1e-5)
    assert model.images == 2

    image = np.array([[[[0.5, 0.3]]]], np.float32)
    z = [(0.5 - mean[0]) / std[0], (0.3 - mean[1]) / std[1]]
    np.testing.assert_allclose(model.anomaly_map(image)[0, 0], z, rtol=1e-4)
    both = ZScore.fit(images, smoothing=0, side="both")
    np.testing.assert_allclose(both.anomaly_map(image)[0, 0], np.abs(z), rtol=1e-4)


def test_z_score_is_0_outside_and_a_mean_over_channels() -> None:
    random = np.random.default_rng(1)
    images = random.random((6, 2, 12, 12)).astype(np.float32)
    images[:, :, :3] = 0
    model = ZScore.fit(list(images), smoothing=0)
    maps = model.anomaly_map(images)
    assert maps.shape == (6, 12, 12)
    assert not maps[:, :3].any()
    expected = ((images - model.mean) / model.std).mean(axis=1)
    np.testing.assert_allclose(maps[:, 3:], expected[:, 3:], rtol=1e-4, atol=1e-5)


def test_too_few_or_equal_images_are_refused() -> None:
    image = np.full((1, 4, 4), 0.5, np.float32)
    with pytest.raises(InputError, match="at least 2 healthy images, got 1"):
        ZScore.fit([image])
    with pytest.raises(InputError, match="all the same"):
        ZScore.fit([image, image], smoothing=0)


def test_intensity_is_the_smoothed_mean_of_the_channels() -> None:
    images = np.random.default_rng(2).random((2, 3, 48, 48)).astype(np.float32)
    np.testing.assert_allclose(intensity(images, 0), images.mean(axis=1), rtol=1e-6)
    assert intensity(images).std() < images.mean(axis=1).std() / 2


def _load(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))])


@pytest.mark.slow
def test_figures_on_real_flair_slices(shared_data: Path) -> None:
    folder = shared_data / "data" / "flair_axial"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    pre = Preprocessing(1, ("flair",), (192, 160), normalisation="foreground-median")
    train, healthy, lesion = (
        np.stack([pre.to_grid(image[None]) for image in _load(folder / group)])
        for group in ("train", "healthy", "lesion")
    )
    # 189 x 157 pixels about the centre of 192 x 160.
    truth = np.pad(_load(folder / "lesion_masks") > 0, ((0, 0), (1, 2), (1, 2)))
    model = ZScore.fit(list(train))
    inside = foreground(lesion)
    maps = model.anomaly_map(lesion)
    precision = metrics.average_precision(maps[inside], truth[inside])
    scores = [
        image_score(*pair)
        for group in (lesion, healthy)
        for pair in zip(model.anomaly_map(group), foreground(group), strict=True)
    ]
    detection = metrics.auroc(np.array(scores), np.arange(len(scores)) < len(lesion))
    assert precision == pytest.approx(0.623, abs=0.01)
    assert detection == pytest.approx(0.934, abs=0.01)
    bright = metrics.average_precision(intensity(lesion)[inside], truth[inside])
    assert bright == pytest.approx(0.588, abs=0.01)
