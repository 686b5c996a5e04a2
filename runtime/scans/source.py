"""What was found and is not read yet: the files of a scan, on the disk or inside zip archives."""

from __future__ import annotations

import functools
import hashlib
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import InputError

# What a file may hold, whatever its name, its header or its archive promise.
MAX_FILE_BYTES = 2**32
# What unpacks to more than this many bytes, and to so many times its packed size, is no image.
_UNPACKED, _UNPACKED_TIMES = 2**26, 200

Format = Literal["picture", "nifti", "brats", "nnunet", "bids", "dicom"]


@dataclass(frozen=True, order=True)
class FileRef:
    """A file of the input: on the disk, or a member of a zip archive.

    Attributes
    ----------
    path : Path
        The file, or the archive.
    member : str
        Name inside the archive; empty for a file on the disk. Never used as a path.
    """

    path: Path
    member: str = ""

    @property
    def label(self) -> str:
        """How messages name it: without folders, which may be named after a patient."""
        return f"{self.path.name}:{self.member}" if self.member else self.path.name

    def read(self, limit: int = MAX_FILE_BYTES) -> bytes:
        """Read it whole.

        Raises
        ------
        InputError
            If it is no regular file, empty, larger than `limit`, damaged or not readable.
        """
        try:
            return self._read_member(limit) if self.member else self._read_file(limit)
        except OSError as error:
            raise InputError(f"cannot read the file: {error.strerror or error}") from error

    def read_start(self, count: int) -> bytes:
        """Read the first `count` bytes at most; empty where it is empty.

        Raises
        ------
        InputError
            If it is no regular file, damaged or not readable.
        """
        try:
            if self.member:
                return self._read_member(count, whole=False)
            _check_regular(self.path)
            with open(self.path, "rb") as stream:
                return stream.read(count)
        except OSError as error:
            raise InputError(f"cannot read the file: {error.strerror or error}") from error

    def _read_file(self, limit: int) -> bytes:
        _check_regular(self.path)
        with open(self.path, "rb") as stream:
            content = stream.read(limit + 1)
        if not content:
            raise InputError("the file is empty (0 bytes)")
        if len(content) > limit:
            raise InputError(f"the file has more than {limit} bytes, which is the limit")
        return content

    def _read_member(self, limit: int, whole: bool = True) -> bytes:
        try:
            status = self.path.stat()
            archive = _opened(self.path, status.st_mtime_ns, status.st_size)
            with archive.open(self.member) as stream:
                packed = archive.getinfo(self.member).compress_size
                limit = min(limit, max(_UNPACKED, _UNPACKED_TIMES * packed))
                # An archive's directory may promise less than is inside.
                content = stream.read(limit + 1 if whole else limit)
        except OSError:
            raise
        except (zipfile.BadZipFile, KeyError, ValueError, RuntimeError, NotImplementedError) as e:
            raise InputError(f"cannot read it from the archive {self.path.name}: {e}") from e
        except (
            Exception
        ) as error:  # the decompressors of zlib, bz2 and lzma have errors of their own
            raise InputError(f"damaged in the archive {self.path.name}: {error}") from error
        if whole and not content:
            raise InputError("the file is empty (0 bytes)")
        if len(content) > limit:
            raise InputError(f"it unpacks to more than {limit} bytes, which is the limit")
        return content


@functools.lru_cache(maxsize=4)
def _opened(path: Path, modified: int, size: int) -> zipfile.ZipFile:
    """Open an archive once for all of its members, as long as it does not change.

    Reading from one is safe in several threads; it is closed when it falls out of the cache.
    """
    return zipfile.ZipFile(path)


def _check_regular(path: Path) -> None:
    """Refuse folders, pipes and devices, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError("this is not a regular file")


@dataclass(frozen=True)
class ScanSource:
    """One scan that was found.

    Attributes
    ----------
    key : str
        What it is called in tables and in the journal: its path below the input, or, for a DICOM
        series, ``dicom:`` and its SeriesInstanceUID. Unique in a run.
    name : str
        Name of its results: a relative POSIX path without suffix, safe to write to. Unique.
    format : str
        How it is read.
    files : tuple of FileRef
        Its files, in a fixed order.
    modalities : tuple of str
        Where each channel has a file of its own (brats, nnunet, bids): which of the model's
        modalities each of `files` holds. Empty otherwise.
    entities : tuple of (str, str)
        BIDS entities of the first file, in order, suffix last: ``(("sub", "01"), ...,
        ("suffix", "FLAIR"))``; empty outside BIDS.
    problem : str
        Why it cannot be used, where that is known already; empty otherwise.
    mismatch : str
        What in its header contradicts the model's intended input; empty otherwise.
    summary : str
        A few words on what it is, for the list of ``--dry-run``.
    """

    key: str
    name: str
    format: Format
    files: tuple[FileRef, ...]
    modalities: tuple[str, ...] = ()
    entities: tuple[tuple[str, str], ...] = ()
    problem: str = ""
    mismatch: str = ""
    summary: str = ""

    def digest(self) -> str:
        """SHA-256 of its content; see `combined_digest`. Empty where it cannot be read."""
        try:
            return combined_digest([hashlib.sha256(file.read()).hexdigest() for file in self.files])
        except InputError:
            return ""


def combined_digest(digests: Sequence[str]) -> str:
    """Digest of a scan from the SHA-256 of its files in order.

    One file has its own; of several it is the SHA-256 of their hexadecimal digests, joined by
    newlines.
    """
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
