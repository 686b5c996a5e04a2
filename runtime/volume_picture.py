"""A picture of a volume for people: three planes through its worst place, and every slice's score.

Layout, from top to bottom: the axial, coronal and sagittal plane side by side in cells of one
width, each under its title; one line that says how to read them; the scores of the slices. Planes
share one scale, so that voxels have their true proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import optional
from .overlays import (
    BACKGROUND,
    GAP,
    OUTLINE,
    TEXT,
    BoolArray,
    ByteArray,
    FloatArray,
    heat,
    heat_colours,
    outermost,
    resize,
    white_level,
    write_png,
)

CELL = 520
TALLEST = 760  # of a plane; what is taller is shown smaller
LEGEND, PROFILE = 34, 176
_TITLE = 30
_FONT_SIZE, _SMALL = 19, 16

# Enlarging further shows nothing more.
_MAX_ENLARGEMENT = 8

_QUIET = (150, 153, 160)
_BAR = (122, 130, 143)
_TRACK = (58, 61, 68)
_WORST = (255, 176, 64)
_CROSS_WEIGHT, _CROSS_GAP = np.float32(0.45), 14

_AXES = ("LR", "PA", "IS")  # patient axes; each grows towards its second letter
_PLANES = (("axial", 1, 0), ("coronal", 2, 0), ("sagittal", 2, 1))  # title, vertical, horizontal
_WORDS = dict(zip("LRPAIS", "left right back front feet head".split(), strict=True))
_SCALE_BARS = (1, 2, 5, 10, 20, 50, 100)  # mm


@dataclass(frozen=True, eq=False)
class _Volume:
    """Arrays with patient axes [x, y, z] that grow to the right, front and head."""

    image: FloatArray
    anomaly: FloatArray
    mask: BoolArray
    size_mm: tuple[float, ...]
    focus: tuple[int, ...]
    radiological: bool
    white: np.float32
    scale: float


def write_volume_picture(
    path: Path,
    image: FloatArray,
    anomaly: FloatArray,
    mask: BoolArray,
    *,
    spacing_mm: tuple[float, float, float],
    focus: tuple[int, int, int],
    scores: Sequence[float | None],
    scale: float | None = None,
    orientation: str = "PRS",
    ends: tuple[int, int] | None = None,
) -> None:
    """Write one PNG: three orthogonal planes through a place, and the score of every slice.

    The planes are axial, coronal and sagittal, whichever of them the slices are, with the head or
    the front at the top and the front at the left; the patient's left is at the left, as in slices
    whose columns grow to the right, unless columns, rows or slices of this model grow to the left
    (the radiological convention). Letters at the edges say so. Equal input gives equal bytes (with
    one version of Pillow).

    Parameters
    ----------
    path : Path
        The PNG to write, whole or not at all.
    image : ndarray of float32, shape (S, H, W)
        What was examined, in [0, 1], as the model sees it.
    anomaly : ndarray of float32, shape (S, H, W)
        Anomaly map, at least 0.
    mask : ndarray of bool, shape (S, H, W)
        Segmentation; drawn as an outline.
    spacing_mm : tuple of float
        Distance of slices, rows and columns in mm.
    focus : tuple of int
        Slice, row and column the planes pass through; its slice is marked among the scores.
    scores : sequence of float or None
        Score of each slice; None where it is empty, which leaves a gap.
    scale : float, optional
        Anomaly value shown in the brightest colour. None takes the highest.
    orientation : str
        Axis codes towards which rows, columns and slices grow.
    ends : tuple of int, optional
        Numbers of the first and the last slice in the file, written beside the scores.

    Raises
    ------
    ValueError
        If the arrays are not volumes of one shape, or the other arguments do not fit them.
    MissingDependency
        If Pillow is not installed.
    """
    _check(image, (anomaly, mask), spacing_mm, focus, scores, orientation)
    highest = float(anomaly.max())
    if scale is None or not scale > 0:
        scale = highest or 1.0
    volume = _patient(image, anomaly, mask, spacing_mm, focus, orientation, scale)
    zoom = _zoom(volume)
    planes = [_plane(volume, zoom, up, across) for _, up, across in _PLANES]
    tallest = max(plane.shape[0] for plane in planes)
    pillow = optional("PIL.Image", "images")
    top = _TITLE + tallest
    size = 3 * CELL + 2 * GAP, top + LEGEND + PROFILE
    picture = pillow.new("RGB", size, BACKGROUND)
    for index, (plane, (title, up, across)) in enumerate(zip(planes, _PLANES, strict=True)):
        if _axis(orientation[2]) not in (up, across):
            title += " (plane of the slices)"
        cell = _cell(plane, title, _edges(volume, up, across), top)
        picture.paste(cell, (index * (CELL + GAP), 0))
    picture.paste(_legend(volume, zoom, size[0]), (0, top))
    picture.paste(_profile(scores, focus[0], orientation[2], ends, size[0]), (0, top + LEGEND))
    write_png(path, picture)


def split_volume_picture(picture: Any) -> list[Any]:
    """Cut the planes, titles included, out of a picture (a Pillow image) made by the above."""
    height = picture.height - LEGEND - PROFILE
    return [
        picture.crop((left, 0, left + CELL, height))
        for left in range(0, 3 * (CELL + GAP), CELL + GAP)
    ]


def _check(
    image: FloatArray,
    others: tuple[NDArray[Any], ...],
    spacing_mm: tuple[float, float, float],
    focus: tuple[int, int, int],
    scores: Sequence[float | None],
    orientation: str,
) -> None:
    for other in others:
        if image.ndim != 3 or other.shape != image.shape:
            raise ValueError(f"expected volumes of one shape, got {image.shape} and {other.shape}")
    if not all(0 < size < math.inf for size in spacing_mm):
        raise ValueError(f"spacing must be positive and finite, got {spacing_mm}")
    if not all(0 <= place < size for place, size in zip(focus, image.shape, strict=True)):
        raise ValueError(f"focus {focus} lies outside of the volume {image.shape}")
    if len(scores) != len(image):
        raise ValueError(f"expected {len(image)} scores, one for each slice, got {len(scores)}")
    if sorted(_axis(code) for code in orientation) != [0, 1, 2]:
        raise ValueError(f"orientation must be three axis codes like PRS, got {orientation!r}")


def _axis(code: str) -> int:
    """Which patient axis a letter belongs to; -1 for none."""
    return next((number for number, axis in enumerate(_AXES) if code in axis), -1)


def _patient(
    image: FloatArray,
    anomaly: FloatArray,
    mask: BoolArray,
    spacing_mm: tuple[float, float, float],
    focus: tuple[int, int, int],
    orientation: str,
    scale: float,
) -> _Volume:
    """Turn (slice, row, column) into patient axes, by views."""
    codes = orientation[2] + orientation[:2]  # in the order of the arrays' axes
    source = [next(n for n, code in enumerate(codes) if code in axis) for axis in _AXES]
    backwards = [codes[n] == axis[0] for n, axis in zip(source, _AXES, strict=True)]
    steps = tuple(slice(None, None, -1 if back else None) for back in backwards)
    planes = image[focus[0]], image[:, focus[1]], image[:, :, focus[2]]
    return _Volume(
        image=image.transpose(source)[steps],
        anomaly=anomaly.transpose(source)[steps],
        mask=mask.transpose(source)[steps],
        size_mm=tuple(float(spacing_mm[n]) for n in source),
        focus=tuple(
            image.shape[n] - 1 - focus[n] if back else focus[n]
            for n, back in zip(source, backwards, strict=True)
        ),
        radiological="L" in orientation,
        white=white_level(np.concatenate([plane.ravel() for plane in planes])),
        scale=scale,
    )


def _extents(volume: _Volume) -> tuple[float, ...]:
    return tuple(n * mm for n, mm in zip(volume.image.shape, volume.size_mm, strict=True))


def _zoom(volume: _Volume) -> float:
    """Pixels per mm with which every plane fits its cell."""
    x, y, z = _extents(volume)
    return min(CELL / max(x, y), TALLEST / max(y, z), _MAX_ENLARGEMENT / min(volume.size_mm))


def _plane(volume: _Volume, zoom: float, up: int, across: int) -> ByteArray:
    """One plane through the focus, head or front at the top, ``[h, w, 3]``."""
    through = 3 - up - across
    mirrored = _mirrored(volume, across)

    def cut(values: NDArray[Any]) -> NDArray[Any]:
        # What is left has the axes in the order x, y, z, so `across` comes before `up`.
        turned = np.moveaxis(values, through, 0)[volume.focus[through]].T[::-1]
        return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)

    extents = _extents(volume)
    size = max(1, round(extents[up] * zoom)), max(1, round(extents[across] * zoom))
    size = min(size[0], TALLEST), min(size[1], CELL)
    grey = resize(cut(volume.image) / volume.white, size)
    drawn = heat(grey, resize(cut(volume.anomaly) / np.float32(volume.scale), size))
    drawn[outermost(_enlarged(cut(volume.mask), size), 2)] = OUTLINE
    rows, columns = volume.image.shape[up], volume.image.shape[across]
    row = rows - 1 - volume.focus[up]
    column = columns - 1 - volume.focus[across] if mirrored else volume.focus[across]
    _cross(drawn, int((row + 0.5) / rows * size[0]), int((column + 0.5) / columns * size[1]))
    return drawn


def _mirrored(volume: _Volume, across: int) -> bool:
    """Whether the horizontal axis grows to the left of the picture: the front is at the left."""
    return volume.radiological if across == 0 else True


def _enlarged(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """Pixels that show any of a mask: no part is lost where it is made smaller."""
    pillow = optional("PIL.Image", "images")
    grey = pillow.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((size[1], size[0]), pillow.Resampling.BOX)) > 0


def _cross(drawn: ByteArray, row: int, column: int) -> None:
    """Draw lines that end beside the place, so as not to hide it."""
    height, width = drawn.shape[:2]
    lines = np.zeros((height, width), bool)
    lines[row] = lines[:, column] = True
    lines[
        max(0, row - _CROSS_GAP) : row + _CROSS_GAP + 1,
        max(0, column - _CROSS_GAP) : column + _CROSS_GAP + 1,
    ] = False
    mixed = drawn[lines] * (1 - _CROSS_WEIGHT) + 255 * _CROSS_WEIGHT
    drawn[lines] = np.rint(mixed).astype(np.uint8)


def _edges(volume: _Volume, up: int, across: int) -> tuple[str, str, str, str]:
    """Letters of the top, bottom, left and right edge."""
    axis = _AXES[across][::-1] if _mirrored(volume, across) else _AXES[across]
    return _AXES[up][1], _AXES[up][0], axis[0], axis[1]


def _font(size: int) -> Any:
    return optional("PIL.ImageFont", "images").load_default(size)


def _draw(picture: Any) -> Any:
    return optional("PIL.ImageDraw", "images").Draw(picture)


def _cell(plane: ByteArray, title: str, edges: tuple[str, str, str, str], height: int) -> Any:
    """One plane in the middle of its cell, under its title, letters at its edges."""
    pillow = optional("PIL.Image", "images")
    cell = pillow.new("RGB", (CELL, height), BACKGROUND)
    rows, columns = plane.shape[:2]
    left, top = (CELL - columns) // 2, _TITLE + (height - _TITLE - rows) // 2
    cell.paste(pillow.fromarray(plane), (left, top))
    draw = _draw(cell)
    draw.text((4, _TITLE // 2), title, fill=TEXT, font=_font(_FONT_SIZE), anchor="lm")
    # Letters of a plane too small to hold them stand beside it, inside the cell.
    low, high = max(_TITLE, min(top, height - 60)), min(height, max(top + rows, _TITLE + 60))
    start, end = max(0, min(left, CELL // 2 - 30)), min(CELL, max(left + columns, CELL // 2 + 30))
    middle, centre = (low + high) // 2, (start + end) // 2
    for text, place, anchor in zip(
        edges,
        ((centre, low + 3), (centre, high - 4), (start + 5, middle), (end - 5, middle)),
        ("mt", "mb", "lm", "rm"),
        strict=True,
    ):
        draw.text(
            place, text, fill=TEXT, font=_font(_FONT_SIZE), anchor=anchor, stroke_width=2,
            stroke_fill=BACKGROUND,
        )  # fmt: skip
    return cell


def _legend(volume: _Volume, zoom: float, width: int) -> Any:
    """One line: the convention, the length of a bar in mm, what the colours stand for."""
    pillow = optional("PIL.Image", "images")
    strip = pillow.new("RGB", (width, LEGEND), BACKGROUND)
    draw, font, middle = _draw(strip), _font(_SMALL), LEGEND // 2
    convention = (
        "Radiological: the patient's right is on the left"
        if volume.radiological
        else "Neurological: the patient's left is on the left"
    )
    text = f"{convention}.  Cross: highest value of the most anomalous slice.  Outline: mask."
    draw.text((4, middle), text, fill=_QUIET, font=font, anchor="lm")
    highest = f"{volume.scale:.2g}"
    draw.text((width - 4, middle), highest, fill=_QUIET, font=font, anchor="rm")
    left = width - 12 - math.ceil(draw.textlength(highest, font=font)) - 90
    bar = pillow.fromarray(heat_colours(90)[None].repeat(12, axis=0))
    strip.paste(bar, (left, middle - 6))
    draw.text((left - 6, middle), "anomaly  0", fill=_QUIET, font=font, anchor="rm")
    lengths = [mm for mm in _SCALE_BARS if 30 <= mm * zoom <= 220]
    if lengths:
        mm = lengths[-1]
        end = left - 140
        label = f"{mm} mm"
        draw.text((end, middle), label, fill=_QUIET, font=font, anchor="rm")
        end -= math.ceil(draw.textlength(label, font=font)) + 8
        start = end - round(mm * zoom)
        draw.line((start, middle, end, middle), fill=TEXT, width=2)
        for x in (start, end):
            draw.line((x, middle - 4, x, middle + 4), fill=TEXT, width=2)
    return strip


def _profile(
    scores: Sequence[float | None],
    worst: int,
    towards: str,
    ends: tuple[int, int] | None,
    width: int,
) -> Any:
    """Bars of the scores, from the first slice to the last; nothing where a slice is empty."""
    pillow = optional("PIL.Image", "images")
    strip = pillow.new("RGB", (width, PROFILE), BACKGROUND)
    draw, font = _draw(strip), _font(_SMALL)
    known = [score for score in scores if score is not None and math.isfinite(score)]
    highest = max([score for score in known if score > 0], default=1.0)
    left, right, top, bottom = 70, width - 16, 34, PROFILE - 28
    empty = len(scores) - len(known)
    title = "Score of each slice" + (f" (gaps: {empty} empty)" if empty else "")
    draw.text((4, 12), title, fill=TEXT, font=_font(_FONT_SIZE), anchor="lm")
    for value, y in ((highest, top), (0.0, bottom)):
        draw.text((left - 8, y), f"{value:.2g}", fill=_QUIET, font=font, anchor="rm")
    step = (right - left) / len(scores)
    for index, score in enumerate(scores):
        first, last = round(left + index * step), round(left + (index + 1) * step)
        last = max(first, last - (2 if step >= 4 else 1))
        if score is None or not math.isfinite(score):
            continue
        colour = _WORST if index == worst else _BAR
        tall = round(max(0.0, score) / highest * (bottom - top))
        draw.rectangle((first, bottom - tall, last, bottom), fill=colour)
        draw.rectangle((first, bottom + 1, last, bottom + 2), fill=_TRACK)
    x = round(left + (worst + 0.5) * step)
    draw.polygon(((x, bottom + 4), (x - 6, bottom + 13), (x + 6, bottom + 13)), fill=_WORST)
    start, end = _ends(towards, ends)
    draw.text((left, PROFILE - 4), start, fill=_QUIET, font=font, anchor="lb")
    draw.text((right, PROFILE - 4), end, fill=_QUIET, font=font, anchor="rb")
    if scores[worst] is not None:
        number = _number(worst, len(scores), ends)
        label = f"most anomalous{number}: {scores[worst]:.4g}"
        draw.text((right, 12), label, fill=_WORST, font=font, anchor="rm")
    return strip


def _ends(towards: str, ends: tuple[int, int] | None) -> tuple[str, str]:
    """What stands below the first and the last slice."""
    first = _WORDS[_AXES[_axis(towards)].replace(towards, "")]
    last = _WORDS[towards]
    return (first, last) if ends is None else (f"{ends[0]}, {first}", f"{ends[1]}, {last}")


def _number(index: int, count: int, ends: tuple[int, int] | None) -> str:
    if ends is None:
        return ""
    return f", slice {ends[0] + index * (1 if ends[1] >= ends[0] else -1)} of {count}"
