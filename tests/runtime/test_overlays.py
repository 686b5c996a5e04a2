"""The overlay picture: its layout, its colours, and that outlines lie where the mask ends."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from berdiff.runtime.overlays import GAP, heat_colours, split_overlay, write_overlay

OUTLINE = np.array([0, 230, 210])


def planes(rows: int = 32, columns: int = 40) -> dict[str, np.ndarray]:
    image = np.random.default_rng(0).random((rows, columns)).astype(np.float32)
    anomaly = np.zeros_like(image)
    anomaly[8:20, 10:22] = 0.25
    return {
        "image": image,
        "anomaly": anomaly,
        "mask": anomaly > 0.1,
        "reconstruction": image * np.float32(0.5),
    }


def panels(path: Path) -> list[np.ndarray]:
    """The four panels without their headers' titles."""
    with Image.open(path) as picture:
        return [np.asarray(panel).astype(int) for panel in split_overlay(picture)]


def body(panel: np.ndarray, rows: int) -> np.ndarray:
    return panel[-rows:]


def test_four_panels_of_at_least_256_pixels(tmp_path: Path) -> None:
    write_overlay(tmp_path / "a.png", **planes())
    with Image.open(tmp_path / "a.png") as picture:
        # 32 x 40 pixels are enlarged 7 times.
        assert picture.size == (4 * 280 + 3 * GAP, 7 * 32 + 28)
        assert picture.mode == "RGB"
    found = panels(tmp_path / "a.png")
    assert [panel.shape[1] for panel in found] == [280] * 4


def test_outline_covers_the_outermost_pixels_of_the_mask_and_nothing_else(tmp_path: Path) -> None:
    write_overlay(tmp_path / "a.png", **planes())
    *others, last = [body(panel, 7 * 32) for panel in panels(tmp_path / "a.png")]
    drawn = (last == OUTLINE).all(axis=2)
    expected = np.zeros_like(drawn)
    expected[7 * 8 : 7 * 20, 7 * 10 : 7 * 22] = True
    expected[7 * 8 + 2 : 7 * 20 - 2, 7 * 10 + 2 : 7 * 22 - 2] = False
    np.testing.assert_array_equal(drawn, expected)
    assert not any((other == OUTLINE).all(axis=2).any() for other in others)


def test_empty_mask_and_empty_map_leave_the_picture_grey(tmp_path: Path) -> None:
    given = planes()
    given["mask"][:] = False
    given["anomaly"][:] = 0
    write_overlay(tmp_path / "a.png", **given)
    for panel in panels(tmp_path / "a.png"):
        shown = body(panel, 7 * 32)
        assert (shown == shown[..., :1]).all()


def test_scale_maps_its_value_to_the_brightest_colour(tmp_path: Path) -> None:
    write_overlay(tmp_path / "a.png", **planes(), scale=0.25)
    write_overlay(tmp_path / "b.png", **planes(), scale=0.5)
    middle = 7 * 14, 7 * 16
    full, half = (body(panels(tmp_path / f"{n}.png")[2], 7 * 32)[middle] for n in "ab")
    np.testing.assert_array_equal(full, heat_colours()[255])
    np.testing.assert_array_equal(half, heat_colours()[128])


def test_reconstruction_is_shown_with_the_window_of_the_image(tmp_path: Path) -> None:
    flat = np.full((64, 64), 0.4, np.float32)
    write_overlay(tmp_path / "a.png", flat, flat, flat > 1, flat / 2)
    image, reconstruction = (body(p, 256) for p in panels(tmp_path / "a.png")[:2])
    assert np.unique(image).tolist() == [255]
    assert np.unique(reconstruction).tolist() == [128]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_overlay(tmp_path / name, **planes())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (700, 900)])
def test_any_shape_keeps_titles_inside_their_panels(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_overlay(tmp_path / "a.png", **planes(*shape), scale=1.234e-5)
    background = np.array([17, 17, 20])
    found = panels(tmp_path / "a.png")
    assert len({panel.shape for panel in found}) == 1
    for panel in found:
        header = panel[: panel.shape[0] - shape[0]]
        edge = header[:, -2:]
        assert (header != background).any()
        assert (edge == background).all()


def test_planes_of_other_shapes_are_refused(tmp_path: Path) -> None:
    given = planes()
    given["mask"] = given["mask"][:-1]
    with pytest.raises(ValueError, match=r"\(32, 40\) and \(31, 40\)"):
        write_overlay(tmp_path / "a.png", **given)
    assert not list(tmp_path.iterdir())


def test_lightness_of_the_colours_grows_evenly() -> None:
    colours = heat_colours(64) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(
        luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27
    )
    steps = np.diff(lightness)
    assert lightness[0] < 5
    assert lightness[-1] > 90
    assert (steps > 0).all()
    assert steps.max() < 2.5 * steps.mean()
