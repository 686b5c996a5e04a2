"""Pixels of DICOM objects: checked against what the header promises before a decoder sees them."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import optional
from .dicom_bytes import DicomError
from .scan import MAX_VOXELS

_RUN_LENGTH = "1.2.840.10008.1.2.5"
# JPEG start-of-frame markers, JPEG-LS's among them; C4, C8 and CC are others.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def frame_count(data: Any) -> int:
    """Frames of an object, at least 1.

    Raises
    ------
    DicomError
        If size or number make no sense, or are larger than is allowed.
    """
    rows, columns = whole(data, "Rows"), whole(data, "Columns")
    frames = whole(data, "NumberOfFrames", 1)
    if min(rows, columns, frames) < 1 or rows * columns * frames > MAX_VOXELS:
        raise DicomError(
            "size",
            f"it says {frames} frames of {rows} x {columns} pixels; the limit is {MAX_VOXELS} in "
            "all",
        )
    return frames


def whole(data: Any, keyword: str, default: int = 0) -> int:
    """Read an attribute that is a whole number."""
    value = data.get(keyword)
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError) as error:
        raise DicomError("damaged", f"its {keyword} is no whole number") from error


def stored_pixels(data: Any) -> NDArray[Any]:
    """Decode the stored values of all frames, ``[F, rows, columns]``, integers.

    Bits beyond BitsStored, where old objects keep overlays, are cleared.

    Raises
    ------
    DicomError
        "mosaic", "no-pixels", "colour", "truncated", "size" or "damaged".
    """
    if "MOSAIC" in [str(part).upper() for part in data.get("ImageType") or ()]:
        raise DicomError(
            "mosaic", "it is a mosaic of many slices in one image; convert it first (dcm2niix)"
        )
    if "PixelData" not in data:
        raise DicomError("no-pixels", "it has no pixels; send the series again")
    if whole(data, "SamplesPerPixel", 1) != 1:
        raise DicomError("colour", "it is in colour; expected one grey value per pixel")
    if str(data.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        raise DicomError("colour", "its grey values are inverted (MONOCHROME1); convert it first")
    if "ModalityLUTSequence" in data:
        raise DicomError("rescale", "its values go through a lookup table; convert it first")
    frames = frame_count(data)
    shape = frames, whole(data, "Rows"), whole(data, "Columns")
    allocated, stored = whole(data, "BitsAllocated"), whole(data, "BitsStored")
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated:
        raise DicomError("damaged", f"it says {stored} bits stored in {allocated}")
    if whole(data, "HighBit", stored - 1) != stored - 1:
        raise DicomError("damaged", "its bits are not stored from the lowest on (HighBit)")
    _check_size(data, shape, allocated)
    try:
        pixels = np.asarray(data.pixel_array).reshape(shape)
    except MemoryError as error:
        raise DicomError("size", "it does not fit into memory") from error
    except Exception as error:  # decoders fail in many ways on damaged data
        raise DicomError(
            "damaged", f"its pixels cannot be decoded ({type(error).__name__})"
        ) from error
    return _without_overlays(pixels, stored)


def _without_overlays(pixels: NDArray[Any], stored: int) -> NDArray[Any]:
    unused = pixels.dtype.itemsize * 8 - stored
    if unused <= 0:
        return pixels
    if pixels.dtype.kind == "u":
        return pixels & pixels.dtype.type((1 << stored) - 1)
    shifted: NDArray[Any] = (pixels << unused) >> unused
    return shifted


def _check_size(data: Any, shape: tuple[int, int, int], allocated: int) -> None:
    """Hold the header against the pixels that are there."""
    content = data["PixelData"].value
    if not isinstance(content, bytes):
        raise DicomError("no-pixels", "it has no pixels; send the series again")
    syntax = getattr(data, "file_meta", {}).get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed or syntax.is_deflated:
        expected = int(np.prod(shape)) * allocated // 8
        if len(content) < expected:
            raise DicomError(
                "truncated",
                f"its header promises {expected} bytes of pixels and it holds {len(content)}; send "
                "the series again",
            )
        return
    encaps = optional("pydicom.encaps", "dicom")
    try:
        frames = list(encaps.generate_frames(content, number_of_frames=shape[0]))
    except Exception as error:
        raise DicomError("truncated", "its compressed pixels are damaged or cut off") from error
    if len(frames) < shape[0]:
        raise DicomError(
            "truncated", f"its header promises {shape[0]} frames and it holds {len(frames)}"
        )
    run_length = str(syntax) == _RUN_LENGTH
    most = 2 * shape[1] * shape[2] * allocated // 8 + 2**12  # what run lengths can need at worst
    for frame in frames:
        if run_length:
            if len(frame) > most:
                raise DicomError("damaged", "its run-length data are longer than its pixels")
            continue
        own = _codestream_size(frame)
        if own != shape[1:]:
            raise DicomError(
                "damaged", f"its pixels are {own[0]} x {own[1]}, its header says {shape[1:]}"
            )


def _codestream_size(frame: bytes) -> tuple[int, int]:
    """Rows and columns that JPEG, JPEG-LS or JPEG 2000 data of one component state.

    Raises
    ------
    DicomError
        If they are none of these, or hold several components.
    """
    if frame.startswith(b"\xff\x4f\xff\x51") and len(frame) >= 42:
        width, height, left, top = struct.unpack_from(">4I", frame, 8)
        _check_components(struct.unpack_from(">H", frame, 40)[0])
        return height - top, width - left
    if not frame.startswith(b"\xff\xd8"):
        raise DicomError("damaged", "its compressed pixels are not of the kind its header says")
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _START_OF_FRAME:
            height, width, components = struct.unpack_from(">HHB", frame, at + 5)
            _check_components(components)
            return height, width
        else:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    raise DicomError("damaged", "its JPEG data do not say their size")


def _check_components(count: int) -> None:
    if count != 1:
        raise DicomError("colour", f"its compressed pixels have {count} components, expected 1")
