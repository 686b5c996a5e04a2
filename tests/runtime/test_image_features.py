"""What is measured of an image: values by hand, against scipy, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from berdiff.runtime.image_features import (
    CHANNEL_FEATURES,
    SHAPE_FEATURES,
    describe,
    feature_names,
)

ONE = ("flair",)


def named(image: NDArray[np.float32], modalities: tuple[str, ...] = ONE) -> dict[str, float]:
    """Features of one image ``[C, H, W]`` by name."""
    (row,) = describe(image[None])
    return dict(zip(feature_names(modalities), row, strict=True))


def blob(seed: int = 0, channels: int = 1) -> NDArray[np.float32]:
    """A textured ellipse off the centre of 48 x 40 pixels, with a hole."""
    y, x = np.mgrid[:48, :40]
    inside = ((y - 20) / 15) ** 2 + ((x - 22) / 11) ** 2 < 1
    inside[18:22, 20:23] = False
    texture = np.random.default_rng(seed).uniform(0.1, 0.9, (channels, 48, 40))
    smooth = ndimage.gaussian_filter(texture, (0, 1, 1))
    return (smooth * inside).astype(np.float32)


def test_names_say_which_channel() -> None:
    names = feature_names(("t1", "t2"))
    assert len(names) == len(set(names)) == len(SHAPE_FEATURES) + 2 * len(CHANNEL_FEATURES)
    assert names[0] == "coverage"
    assert names[6] == "t1 mean"
    assert names[15] == "t2 mean"
    assert describe(blob(channels=2)[None]).shape == (1, len(names))


def test_a_rectangle_by_hand() -> None:
    image = np.zeros((1, 10, 20), np.float32)
    image[0, 2:6, 4:14] = 0.5
    image[0, 2:6, 9:14] = 1.0
    values = named(image)
    expected = {
        "coverage": 40 / 200,
        "row centre": 3.5 / 10,
        "column centre": 8.5 / 20,
        "height": np.sqrt((4**2 - 1) / 12) / 10,
        "width": np.sqrt((10**2 - 1) / 12) / 20,
        "row skew": 0,
        "flair mean": 0.75,
        "flair 5 % level": 0.5,
        "flair 25 % level": 0.5,
        "flair 75 % level": 1.0,
        # 3 x 10 vertical pairs and 4 x 9 horizontal ones, of which 4 differ by one half.
        "flair sharpness": 4 * 0.5 / 66,
        # Two apart: 2 x 10 and 4 x 8 pairs, of which 8 differ.
        "flair fineness": (4 * 0.5 / 66) / (8 * 0.5 / 52),
        "flair row balance": 0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_against_other_libraries() -> None:
    image = blob()
    plane, inside = image[0], image[0] > 0
    values, seen = named(image), image[0][image[0] > 0].astype(np.float64)
    rows, columns = np.nonzero(inside)
    assert values["row centre"] * 48 == pytest.approx(rows.mean())
    assert values["height"] * 48 == pytest.approx(rows.std())
    assert values["width"] * 40 == pytest.approx(columns.std())
    assert values["row skew"] == pytest.approx(stats.skew(rows))
    assert values["flair mean"] == pytest.approx(seen.mean())
    parts = {"5 % level": 0.05, "25 % level": 0.25, "median": 0.5, "75 % level": 0.75}
    for name, part in parts.items():
        assert values[f"flair {name}"] == pytest.approx(np.quantile(seen, part), abs=0.004)
    centre = np.array(ndimage.center_of_mass(plane.astype(np.float64)))
    balance = (centre[0] - rows.mean()) / rows.std()
    assert values["flair row balance"] == pytest.approx(balance, abs=1e-6)
    off = ((rows - rows.mean()) / 48) ** 2 + ((columns - columns.mean()) / 40) ** 2
    ratio = (off * seen).sum() / seen.sum() / off.mean()
    assert values["flair concentration"] == pytest.approx(ratio, abs=1e-6)


def test_sharpness_falls_with_blur_and_fineness_tells_it_from_low_contrast() -> None:
    inside = blob() > 0
    image = np.random.default_rng(0).uniform(0.1, 0.9, inside.shape).astype(np.float32) * inside
    blurred = ndimage.gaussian_filter(image, (0, 1, 1)) * inside
    faint = (0.5 + 0.2 * (image - 0.5)) * inside
    sharp, blunt, low = named(image), named(blurred), named(faint.astype(np.float32))
    assert blunt["flair sharpness"] < 0.5 * sharp["flair sharpness"]
    assert sharp["flair fineness"] == pytest.approx(1, abs=0.05)  # noise: all pixels alike
    assert blunt["flair fineness"] < 0.8
    assert low["flair sharpness"] == pytest.approx(0.2 * sharp["flair sharpness"], rel=1e-4)
    assert low["flair fineness"] == pytest.approx(sharp["flair fineness"], rel=1e-4)


def test_channels_are_measured_inside_what_any_of_them_shows() -> None:
    image = blob(channels=2)
    image[1, :20] = 0
    values, alone = named(image, ("t1", "t2")), named(image[:1])
    assert values["coverage"] == alone["coverage"]
    assert values["t1 mean"] == alone["flair mean"]
    inside = image[0] > 0
    assert values["t2 mean"] == pytest.approx(image[1][inside].mean(dtype=np.float64))
    assert values["t2 mean"] < 0.8 * values["t1 mean"]


def test_other_images_and_their_number_do_not_matter() -> None:
    images = np.stack([blob(seed) for seed in range(4)])
    together = describe(images)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(together[number], describe(image[None])[0])


@pytest.mark.parametrize("shown", [0, 1, 2])
def test_next_to_nothing_gives_numbers(shown: int) -> None:
    image = np.zeros((1, 8, 8), np.float32)
    image[0, 0, :shown] = 1.0
    row = describe(image[None])[0]
    assert np.isfinite(row).all()
    assert row[0] == shown / 64
    if not shown:
        assert not row.any()
