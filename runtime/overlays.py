"""A picture of one slice for people: input, reconstruction, anomaly map and mask side by side."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import optional
from .files import write_atomic

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

TITLES = ("input", "healthy reconstruction", "anomaly map", "mask")
PANEL_SIZE = 256
GAP = 8

# Header at up to 320 pixels of panel; larger panels get larger letters.
_PLAIN_SIZE = 320
_HEADER, _FONT_SIZE, _BAR_WIDTH, _BAR_HEIGHT = 28, 18, 44, 12
_NARROWEST = 256
BACKGROUND = (17, 17, 20)
TEXT = (236, 236, 236)
OUTLINE = (0, 230, 210)


def heat_colours(count: int = 256) -> ByteArray:
    """Colours from near black over purple and orange to pale yellow, ``[count, 3]``, sRGB.

    Lightness (Oklab, Ottosson 2020) grows evenly, so that equal steps of a value look equal, on a
    grey print too.
    """
    x = np.linspace(0.0, 1.0, count)
    lightness = 0.12 + 0.84 * x
    chroma = np.interp(x, [0, 0.35, 0.65, 1], [0.02, 0.17, 0.16, 0.09])
    hue = np.deg2rad(np.interp(x, [0, 0.35, 0.65, 1], [-75, -10, 45, 105]))
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    linear = (
        np.array(
            [
                [4.0767416621, -3.3077115913, 0.2309699292],
                [-1.2684380046, 2.6097574011, -0.3413193965],
                [-0.0041960863, -0.7034186147, 1.7076147010],
            ]
        )
        @ cones**3
    )
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded.T * 255).astype(np.uint8)


def write_overlay(
    path: Path,
    image: FloatArray,
    anomaly: FloatArray,
    mask: BoolArray,
    reconstruction: FloatArray,
    *,
    scale: float | None = None,
) -> None:
    """Write one PNG with four labelled panels side by side.

    Equal input gives equal bytes (with one version of Pillow).

    Parameters
    ----------
    path : Path
        The PNG to write, whole or not at all.
    image : ndarray of float32, shape (H, W)
        What was examined, in [0, 1].
    anomaly : ndarray of float32, shape (H, W)
        Anomaly map, at least 0.
    mask : ndarray of bool, shape (H, W)
        Segmentation; drawn as an outline along its outermost pixels.
    reconstruction : ndarray of float32, shape (H, W)
        The healthy counterpart, in [0, 1], shown with the window of `image`.
    scale : float, optional
        Anomaly value shown in the brightest colour, and written beside the colour bar. None takes
        the map's own maximum; a fixed value makes the pictures of several scans comparable.

    Raises
    ------
    ValueError
        If the arrays are not planes of one shape.
    MissingDependency
        If Pillow is not installed.
    """
    for other in (anomaly, mask, reconstruction):
        if image.ndim != 2 or other.shape != image.shape:
            raise ValueError(f"expected planes of one shape, got {image.shape} and {other.shape}")
    if scale is None or not scale > 0:
        scale = float(anomaly.max()) or 1.0
    factor = max(1, math.ceil(PANEL_SIZE / max(image.shape)))
    brightest = white_level(image)
    size = image.shape[0] * factor, image.shape[1] * factor
    grey = resize(image / brightest, size)
    outlined = as_rgb(grey)
    enlarged = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    outlined[outermost(enlarged, min(factor, 2))] = OUTLINE
    panels = (
        as_rgb(grey),
        as_rgb(resize(reconstruction / brightest, size)),
        heat(grey, resize(anomaly / np.float32(scale), size)),
        outlined,
    )
    write_png(path, _compose(panels, scale))


def split_overlay(picture: Any) -> list[Any]:
    """Cut a picture made by `write_overlay` (a Pillow image) into its panels, headers included."""
    width = (picture.width - GAP * (len(TITLES) - 1)) // len(TITLES)
    return [
        picture.crop((left, 0, left + width, picture.height))
        for left in range(0, len(TITLES) * (width + GAP), width + GAP)
    ]


def write_png(path: Path, picture: Any) -> None:
    """Write a Pillow image, whole or not at all."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    write_atomic(path, buffer.getvalue())


def white_level(image: FloatArray) -> np.float32:
    """Intensity shown as white: one in 200 pixels of the foreground is brighter."""
    positive = image[image > 0]
    return np.float32(np.percentile(positive, 99.5)) if positive.size else np.float32(1)


def resize(plane: NDArray[np.floating], size: tuple[int, int]) -> FloatArray:
    """Clip a plane to [0, 1] and bring it to (rows, columns), bicubic."""
    shown = np.ascontiguousarray(np.clip(plane, 0, 1), dtype=np.float32)
    if shown.shape == size:
        return shown
    pillow = optional("PIL.Image", "images")
    scaled = pillow.fromarray(shown).resize((size[1], size[0]), pillow.Resampling.BICUBIC)
    return np.clip(np.asarray(scaled), 0, 1)


def as_rgb(grey: FloatArray) -> ByteArray:
    """Grey in [0, 1], ``[H, W]``, as bytes ``[H, W, 3]``."""
    return np.rint(grey[..., None].repeat(3, axis=2) * 255).astype(np.uint8)


def heat(grey: FloatArray, values: FloatArray) -> ByteArray:
    """Lay the colours of values in [0, 1] over a dimmed image; 0 is transparent."""
    colours = heat_colours()[np.rint(values * 255).astype(np.intp)].astype(np.float32)
    weight = np.minimum(values * np.float32(2.5), np.float32(1))[..., None] ** np.float32(1.5)
    return np.rint((1 - weight) * grey[..., None] * 140 + weight * colours).astype(np.uint8)


def outermost(mask: BoolArray, width: int) -> BoolArray:
    """Pixels of a mask at most `width` from its edge (4 neighbours): the line to draw around it."""
    inside = mask
    for _ in range(width):
        padded = np.pad(inside, 1)
        rows, columns = padded[:, 1:-1], padded[1:-1]
        inside = inside & rows[:-2] & rows[2:] & columns[:, :-2] & columns[:, 2:]
    return mask & ~inside


def _compose(panels: tuple[ByteArray, ...], scale: float) -> Any:
    """Place the panels side by side under their titles."""
    pillow = optional("PIL.Image", "images")
    height, width = panels[0].shape[:2]
    zoom = max(1.0, width / _PLAIN_SIZE)
    header, panel_width = round(_HEADER * zoom), max(width, _NARROWEST)
    size = len(panels) * (panel_width + GAP) - GAP, height + header
    picture = pillow.new("RGB", size, BACKGROUND)
    for index, (title, panel) in enumerate(zip(TITLES, panels, strict=True)):
        left = index * (panel_width + GAP)
        picture.paste(pillow.fromarray(panel), (left + (panel_width - width) // 2, header))
        strip = _header(title, (panel_width, header), zoom, scale)
        picture.paste(strip, (left, 0))
    return picture


def _header(title: str, size: tuple[int, int], zoom: float, scale: float) -> Any:
    """Draw a panel's title; for the anomaly map, the colour bar and its ends beside it."""
    pillow = optional("PIL.Image", "images")
    font = optional("PIL.ImageFont", "images").load_default(_FONT_SIZE * zoom)
    strip = pillow.new("RGB", size, BACKGROUND)
    draw = optional("PIL.ImageDraw", "images").Draw(strip)
    middle, gap = size[1] // 2, round(4 * zoom)

    def write(x: int, text: str, anchor: str) -> None:
        draw.text((x, middle), text, fill=TEXT, font=font, anchor=anchor)

    write(gap, title, "lm")
    if title == "anomaly map":
        highest, width, height = f"{scale:.2g}", round(_BAR_WIDTH * zoom), round(_BAR_HEIGHT * zoom)
        write(size[0] - gap, highest, "rm")
        left = size[0] - 2 * gap - math.ceil(draw.textlength(highest, font=font)) - width
        bar = pillow.fromarray(heat_colours(width)[None].repeat(height, axis=0))
        strip.paste(bar, (left, middle - height // 2))
        write(left - gap, "0", "rm")
    return strip
