"""The bytes of a NIfTI or MGH file: what the header promises is held against what is there."""

from __future__ import annotations

import gzip
import io
import math
from typing import Any

from ..errors import InputError
from .scan import MAX_VOXELS

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MAX_RATIO = 1032  # what deflate can reach at best
_MAX_BYTES_BESIDE_VOXELS = 2**26
_MGH_HEADER = 284


def parse(content: bytes) -> Any:
    """Check a file, compressed or not, and hand it to nibabel.

    Never more is decompressed than the header asks for, and never more asked for than is allowed.

    Returns
    -------
    nibabel image
        Nifti1Image, Nifti2Image or MGHImage.

    Raises
    ------
    InputError
        If it is no such file, is truncated, or holds too much or what are no intensities.
    """
    packed = content.startswith(_GZIP_MAGIC)
    stream: Any = gzip.GzipFile(fileobj=io.BytesIO(content)) if packed else io.BytesIO(content)
    head = stream.read(540)
    image_class, header, start = _header(head)
    shape, dtype = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
    if not shape or min(shape) < 1:
        raise InputError(f"the scan is empty: its header says shape {shape}")
    if dtype.kind not in "iuf":
        raise InputError(f"got voxels of type {dtype}; expected integer or floating-point numbers")
    voxels = math.prod(shape)
    offset = int(header.get_data_offset()) or start  # 0 means: right after the header
    if voxels > MAX_VOXELS:
        raise InputError(f"its header says shape {shape}; the limit is {MAX_VOXELS} voxels")
    if not start <= offset <= _MAX_BYTES_BESIDE_VOXELS:
        raise InputError(f"its header says that voxels start at byte {offset}")
    expected = offset + voxels * dtype.itemsize
    if expected > len(content) * (_GZIP_MAX_RATIO if packed else 1):
        raise InputError(_truncated(expected, len(content)))
    data = head + stream.read(expected - len(head))
    if len(data) < expected:
        raise InputError(_truncated(expected, len(data)))
    beyond = 0
    while block := stream.read(2**20):  # to the end, so that gzip checks its sum
        beyond += len(block)
        if beyond > _MAX_BYTES_BESIDE_VOXELS:
            raise InputError("the file goes on long after its voxels; its header is damaged")
        if start == _MGH_HEADER:
            data += block  # an MGH file may end with times of the sequence
    return image_class.from_bytes(data)


def _header(head: bytes) -> tuple[Any, Any, int]:
    """Class of the image, its header, and the first byte that may hold a voxel."""
    import nibabel

    for size, image, header_class in (
        (348, nibabel.Nifti1Image, nibabel.Nifti1Header),
        (540, nibabel.Nifti2Image, nibabel.Nifti2Header),
    ):
        if head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            if len(head) < size:
                raise InputError(_truncated(size, len(head)))
            # nibabel checks it when the image is made, and says so once
            return image, header_class(head[:size], check=False), size + 4
    if head[:4] == b"\x00\x00\x00\x01" and len(head) > _MGH_HEADER:
        mgh = nibabel.freesurfer.mghformat
        return mgh.MGHImage, mgh.MGHHeader(head[:_MGH_HEADER], check=False), _MGH_HEADER
    raise InputError("this is no NIfTI or MGH file: it does not start with such a header")


def _truncated(expected: int, got: int) -> str:
    return f"its header promises {expected} bytes and the file holds {got}: truncated or damaged"
