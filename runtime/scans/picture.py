"""PNG, JPEG and TIFF: one image per file, without geometry (through Pillow)."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDependency, optional
from ..preprocessing import Preprocessing
from .geometry import FloatArray, Grid
from .scan import MAX_VOXELS, Scan, image_ids, little_endian
from .source import ScanSource

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

_FORMATS = ("PNG", "JPEG", "TIFF")
_GREY_MODES = ("L", "I;16", "I;16L", "I;16B", "I", "F")
_EXIF_ORIENTATION = 0x0112


def read_picture(source: ScanSource, preprocessing: Preprocessing) -> Scan:
    """Read a picture as one slice, rows and columns as stored.

    Grey of 8, 16 or 32 bits is read as it is. For a model of one channel, a colour picture whose
    channels are equal counts as grey; a model of three takes RGB. A palette is resolved first. An
    alpha channel is ignored where it is fully opaque.

    Raises
    ------
    InputError
        If it cannot be read, has several pages, a rotation in its EXIF, real transparency, or
        colours the model cannot take.
    """
    content = source.files[0].read()
    try:
        stored = _decode(content)
    except (InputError, MissingDependency):
        raise
    except MemoryError as error:
        raise InputError("the picture does not fit into memory") from error
    except Exception as error:  # decoders fail in many ways on damaged files
        raise InputError(f"cannot read it as PNG, JPEG or TIFF: {error}") from error
    planes = np.ascontiguousarray(_channels(stored, preprocessing))
    return Scan(
        source=source,
        kind="picture",
        slices=planes.astype(np.float32)[None],
        spacing=None,
        image_ids=image_ids([little_endian(planes).tobytes()], 1),
        sha256=hashlib.sha256(content).hexdigest(),
        grid=Grid("picture", planes.shape[1:]),
    )


def _decode(content: bytes) -> NDArray[Any]:
    """Decode to ``[H, W]`` grey or ``[H, W, 3]`` RGB."""
    pillow = optional("PIL.Image", "images")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        try:
            opened = pillow.open(io.BytesIO(content), formats=_FORMATS)
        except pillow.UnidentifiedImageError as error:
            raise InputError(
                "cannot read it as PNG, JPEG or TIFF: it is none, or it is cut off"
            ) from error
        with opened as image:
            _check_header(image)
            image.load()
            return _pixels(image)


def _check_header(image: Any) -> None:
    if math.prod(image.size) > MAX_VOXELS or min(image.size) < 2:
        raise InputError(f"got a picture of {image.size[0]} x {image.size[1]} pixels")
    # Before anything below loads the pixels, which forgets how they were stored.
    raw_mode = str(image.tile[0][3]) if image.tile else ""
    if image.mode in ("RGB", "RGBA", "LA") and ";16" in raw_mode:
        raise InputError(
            "16-bit colour would be cut to 8 bits; save it as 16-bit grey or 8-bit colour"
        )
    pages = getattr(image, "n_frames", 1)
    if pages != 1:
        raise InputError(
            f"the file holds {pages} pages or frames, expected one image per file; "
            "save them as separate files, or as a NIfTI volume"
        )
    turned = image.getexif().get(_EXIF_ORIENTATION, 1)
    if turned != 1:
        raise InputError(
            f"its EXIF data ask viewers to turn it (orientation {turned}), so pixels and picture "
            "disagree; save it turned, without that entry"
        )


def _pixels(image: Any) -> NDArray[Any]:
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise InputError("parts of the picture are transparent; save it without transparency")
        image = image.convert(image.mode[:-1])
    if image.mode == "RGB":
        return np.asarray(image)
    if image.mode not in _GREY_MODES:
        raise InputError(f"got a picture of mode {image.mode}; expected grey or RGB")
    return np.asarray(image)


def _channels(stored: NDArray[Any], preprocessing: Preprocessing) -> NDArray[Any]:
    """Arrange as ``[C, H, W]`` for the model."""
    names = ", ".join(preprocessing.modalities)
    if preprocessing.channels == 3 and stored.ndim == 3:
        return np.moveaxis(stored, -1, 0)
    if preprocessing.channels != 1:
        got = "a grey" if stored.ndim == 2 else "a colour"
        raise InputError(
            f"got {got} picture; the model takes {preprocessing.channels} channels ({names}): "
            "give a NIfTI file of shape [channel, row, column]"
        )
    if stored.ndim == 2:
        return stored[None]
    if (stored != stored[..., :1]).any():
        raise InputError(f"got a colour picture; the model takes one channel ({names})")
    return stored[None, ..., 0]


def full_scale(values: FloatArray) -> float:
    """Value that 65535 stands for in a PNG map: 1, or a power of two above its largest."""
    largest = float(values.max())
    return 1.0 if largest <= 1 else 2.0 ** math.ceil(math.log2(largest))
