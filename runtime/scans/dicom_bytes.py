"""The bytes of a DICOM file: opened with bounds that the format itself does not set."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from ..errors import InputError, optional

PREAMBLE = 132  # 128 bytes of anything, then "DICM"

_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAX_INFLATED = 2**29
_MAX_READS = 2_000_000
# Value representations with a length of four bytes after two reserved ones.
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


class DicomError(InputError):
    """A DICOM object or series that breaks a rule.

    Attributes
    ----------
    rule : str
        Which: a word that programs can rely on.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def is_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM files do."""
    return len(start) >= PREAMBLE and start[128:PREAMBLE] == b"DICM"


class _Counted(io.BytesIO):
    """A file that can be read from so many times, and not more.

    A few bytes can make a parser build an object; what holds millions of them holds no image.
    """

    left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, as often as is allowed."""
        self.left -= 1
        if self.left < 0:
            raise DicomError("size", "its header holds too many elements")
        return super().read(size)


def parse(content: bytes, *, header_only: bool = False, tags: list[str] | None = None) -> Any:
    """Read a dataset.

    Parameters
    ----------
    content : bytes
        The file, or as much of its beginning as holds the header.
    header_only : bool
        Stop before the pixels.
    tags : list of str, optional
        Keywords to read; None reads all.

    Returns
    -------
    pydicom.Dataset

    Raises
    ------
    DicomError
        If it is damaged, or unpacks to more than is allowed.
    """
    pydicom = optional("pydicom", "dicom")
    _check_deflated(content)
    try:
        return pydicom.dcmread(
            _Counted(content),
            stop_before_pixels=header_only,
            specific_tags=tags,
            force=not is_dicom(content),
        )
    except DicomError:
        raise
    except RecursionError as error:
        raise DicomError("damaged", "its sequences lie too deep in one another") from error
    except MemoryError as error:
        raise DicomError("size", "it does not fit into memory") from error
    except Exception as error:  # damaged files fail in many ways; what they say may be a name
        raise DicomError(
            "damaged", f"it cannot be read as DICOM: damaged or cut off ({type(error).__name__})"
        ) from error


def _check_deflated(content: bytes) -> None:
    """Refuse a deflated dataset that unpacks to more than is allowed: pydicom has no limit."""
    syntax, end = _transfer_syntax(content)
    if syntax != _DEFLATED:
        return
    unpacker, left, total = zlib.decompressobj(-zlib.MAX_WBITS), content[end:], 0
    try:
        while left and not unpacker.eof:
            total += len(unpacker.decompress(left, 2**20))
            left = unpacker.unconsumed_tail
            if total > _MAX_INFLATED:
                raise DicomError("size", f"it unpacks to more than {_MAX_INFLATED} bytes")
    except zlib.error as error:
        raise DicomError("damaged", "its deflated dataset is damaged") from error


def _transfer_syntax(content: bytes) -> tuple[str, int]:
    """Transfer syntax and end of the file meta information; "" where there is none."""
    at, syntax = PREAMBLE, ""
    while is_dicom(content) and at + 8 <= len(content):
        group, element = struct.unpack_from("<HH", content, at)
        if group != 2:
            break
        if content[at + 4 : at + 6] in _LONG:
            if at + 12 > len(content):
                break
            (length,), start = struct.unpack_from("<I", content, at + 8), at + 12
        else:
            (length,), start = struct.unpack_from("<H", content, at + 6), at + 8
        if element == 0x10:
            syntax = content[start : start + length].rstrip(b"\0 ").decode("ascii", "replace")
        at = start + length
    return syntax, at
