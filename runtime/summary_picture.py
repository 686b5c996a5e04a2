"""Pages for people who look at an archive, not into a folder: what was found, or why nothing was.

A page says first that it is research. It names no patient: the archive shows whose it is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import optional
from .overlays import (
    BACKGROUND,
    GAP,
    OUTLINE,
    PANEL_SIZE,
    TEXT,
    BoolArray,
    ByteArray,
    FloatArray,
    as_rgb,
    heat,
    outermost,
    resize,
    white_level,
)
from .provenance import NOTICE

COLUMNS = 4
WIDTH = COLUMNS * (PANEL_SIZE + GAP) - GAP

_TITLE, _LINE, _LABEL = 34, 24, 26
_FONT_SIZE, _SMALL = 20, 16
_WARNING = (255, 176, 64)
_QUIET = (168, 171, 178)
_CHARACTERS = 118  # of a small line that fits the width


def tile(
    image: FloatArray,
    anomaly: FloatArray,
    mask: BoolArray,
    scale: float,
    spacing: tuple[float, float] | None = None,
) -> ByteArray:
    """One slice with its anomaly map laid over it and its mask outlined.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W)
        What was examined, in [0, 1].
    anomaly : ndarray of float32, shape (H, W)
        Anomaly map, at least 0.
    mask : ndarray of bool, shape (H, W)
        Segmentation.
    scale : float
        Anomaly value shown in the brightest colour.
    spacing : tuple of float, optional
        Distance between rows and between columns, so that shapes are true; None: as far as pixels.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        Neither side longer than `PANEL_SIZE`.
    """
    rows, columns = _size(image, spacing)
    grey = resize(image / white_level(image), (rows, columns))
    drawn = heat(grey, resize(anomaly / np.float32(scale), (rows, columns)))
    shown = optional("PIL.Image", "images")
    enlarged = shown.fromarray(mask.astype(np.uint8) * 255).resize(
        (columns, rows), shown.Resampling.BOX
    )
    drawn[outermost(np.asarray(enlarged) > 0, 1)] = OUTLINE
    return drawn


def page(
    title: str,
    lines: Sequence[str],
    tiles: Sequence[tuple[str, ByteArray]] = (),
    notice: str = NOTICE,
) -> NDArray[np.uint8]:
    """A page: a title, the notice, lines of text, and labelled tiles, `COLUMNS` in a row.

    Equal input gives equal pixels (with one version of Pillow).

    Parameters
    ----------
    title : str
        Its first line.
    lines : sequence of str
        What stands below; long ones are broken.
    tiles : sequence of (str, ndarray of uint8)
        Labels and pictures, see `tile`.
    notice : str
        Written beside the title.

    Returns
    -------
    ndarray of uint8, shape (rows, WIDTH, 3)
    """
    pillow = optional("PIL.Image", "images")
    text = [part for line in lines for part in textwrap.wrap(line, _CHARACTERS) or [""]]
    top = _TITLE + len(text) * _LINE + GAP
    height = top + -(-len(tiles) // COLUMNS) * (_LABEL + PANEL_SIZE + GAP)
    picture = pillow.new("RGB", (WIDTH, height), BACKGROUND)
    draw = optional("PIL.ImageDraw", "images").Draw(picture)
    large, small = (
        optional("PIL.ImageFont", "images").load_default(size) for size in (_FONT_SIZE, _SMALL)
    )
    draw.text((6, _TITLE // 2), title, fill=TEXT, font=large, anchor="lm")
    draw.text((WIDTH - 6, _TITLE // 2), notice, fill=_WARNING, font=large, anchor="rm")
    for number, line in enumerate(text):
        draw.text((6, _TITLE + number * _LINE), line, fill=_QUIET, font=small)
    for number, (label, drawn) in enumerate(tiles):
        left = number % COLUMNS * (PANEL_SIZE + GAP)
        above = top + number // COLUMNS * (_LABEL + PANEL_SIZE + GAP)
        draw.text((left + 4, above + _LABEL // 2), label, fill=TEXT, font=small, anchor="lm")
        place = left + (PANEL_SIZE - drawn.shape[1]) // 2
        picture.paste(pillow.fromarray(drawn), (place, above + _LABEL))
    return as_bytes(picture)


def as_bytes(picture: Any) -> NDArray[np.uint8]:
    """Pixels of a Pillow image, ``[rows, columns, 3]``."""
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), dtype=np.uint8))


def grey_tile(
    plane: FloatArray, white: float, spacing: tuple[float, float] | None = None
) -> ByteArray:
    """One slice in grey, as large as `tile` makes it."""
    return as_rgb(resize(plane / np.float32(white), _size(plane, spacing)))


def _size(plane: FloatArray, spacing: tuple[float, float] | None) -> tuple[int, int]:
    """Rows and columns of a tile."""
    extents = [side * step for side, step in zip(plane.shape, spacing or (1, 1), strict=True)]
    rows, columns = (max(1, round(PANEL_SIZE * extent / max(extents))) for extent in extents)
    return rows, columns
