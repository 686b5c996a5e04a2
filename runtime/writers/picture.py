"""Results as PNG: of a picture its maps, of a volume a picture of every slice for people.

Maps are 16-bit grey. A stored value is ``value * 65535 / full_scale``; full_scale is 1, or the next
power of two that holds the map's largest value, and stands in the PNG's text under
``berdiff:full-scale``. Masks are 0 and 255.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import optional
from ..files import write_atomic
from ..provenance import Provenance
from ..scans import ScanSource
from ..scans.picture import full_scale

if TYPE_CHECKING:
    from ..scan_job import ScanJob

SUFFIX = ".png"
PARTS = ("anomaly", "flips", "mask", "reconstruction")

_FULL_SCALE_KEY = "berdiff:full-scale"

FloatArray = NDArray[np.float32]


def files(source: ScanSource) -> list[str]:
    """Paths of a picture's maps below the output folder."""
    return [f"maps/{source.name}_{part}{SUFFIX}" for part in PARTS]


def write(folder: Path, job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance) -> list[str]:
    """Write the four maps of a picture, or one overlay for each slice of a volume.

    Returns
    -------
    list of str
        What was written, below `folder`.
    """
    if job.scan.kind != "picture":
        return _write_slices(folder, job, mask, made_by.threshold)
    names = files(job.scan.source)
    anomaly, flips, mask_file, reconstruction = (folder / name for name in names)
    write_map(anomaly, job.anomaly[0])
    write_map(flips, job.flips[0])
    write_mask(mask_file, mask[0])
    write_image(reconstruction, job.reconstruction[0])
    return names


def _write_slices(
    folder: Path, job: ScanJob, mask: NDArray[np.bool_], threshold: float
) -> list[str]:
    """Overlays of all slices that show something, named after their place in the file."""
    names = []
    digits = len(str(len(job.scores) - 1))
    for position in job.positions:
        index = job.scan.grid.file_index(position)
        names.append(f"slices/{job.name}/{index:0{digits}d}.png")
        job.write_overlay(folder / names[-1], position, mask, threshold)
    return names


def write_map(path: Path, values: FloatArray) -> None:
    """Write a map ``[H0, W0]``, at least 0."""
    scale = full_scale(values)
    _write_png(path, _sixteen_bit(values, scale), scale)


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a mask ``[H0, W0]``."""
    _write_png(path, mask.astype(np.uint8) * np.uint8(255))


def write_image(path: Path, image: FloatArray) -> None:
    """Write an image ``[C, H0, W0]`` in [0, 1]: 16-bit grey, or 8-bit RGB."""
    if image.shape[0] == 1:
        _write_png(path, _sixteen_bit(image[0], 1.0), 1.0)
    else:
        _write_png(path, np.rint(np.moveaxis(image, 0, -1) * 255).astype(np.uint8), 1.0)


def _sixteen_bit(values: FloatArray, scale: float) -> NDArray[np.uint16]:
    return np.rint(np.clip(values / scale, 0, 1).astype(np.float64) * 65535).astype(np.uint16)


def _write_png(path: Path, pixels: NDArray[Any], scale: float | None = None) -> None:
    pillow = optional("PIL.Image", "images")
    text = optional("PIL.PngImagePlugin", "images").PngInfo()
    if scale is not None:
        text.add_text(_FULL_SCALE_KEY, repr(scale))
    buffer = io.BytesIO()
    pillow.fromarray(pixels).save(buffer, "PNG", pnginfo=text)
    write_atomic(path, buffer.getvalue())
