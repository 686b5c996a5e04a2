"""The journal of a run: which scans are finished, from which bytes and into which bytes.

One JSON object per line, on the disk before the next scan is finished. It is also the lock of the
output folder: two runs never write to one folder at the same time. Records stay on the disk: those
of a hundred thousand volumes, slice by slice, would take gigabytes of memory.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .closing import Closing
from .components import Component
from .errors import BerdiffError
from .files import sha256_file
from .results import ScanResult, SliceResult
from .strict import from_json

JOURNAL_NAME = "journal.jsonl"


@dataclass(frozen=True)
class Record:
    """One finished scan.

    Attributes
    ----------
    sha256 : str
        Digest of the input; see `combined_digest`.
    bundle : str
        Digest of the bundle.
    options : str
        Digest of every option that can change a result.
    outputs : dict of str to str
        SHA-256 of each file written, by path below the output folder.
    result : ScanResult
        Its row of ``results.csv``.
    slices : tuple of SliceResult
        Its rows of ``slices.csv``.
    components : tuple of Component
        Its rows of ``components.csv``.
    """

    sha256: str
    bundle: str
    options: str
    outputs: dict[str, str]
    result: ScanResult
    slices: tuple[SliceResult, ...]
    components: tuple[Component, ...] = ()


class Records(Mapping[str, Record]):
    """Records of an open journal, by input; each is read when it is asked for.

    Several threads may ask.

    Parameters
    ----------
    stream : io.FileIO
        The journal. It is read here and nowhere else: where locks are those of a network file
        system, closing a second handle could give up the lock of the first.
    """

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._places: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        end = self._scan()
        if end < stream.seek(0, os.SEEK_END):
            stream.truncate(end)

    def __getitem__(self, key: str) -> Record:
        start, length = self._places[key]
        with self._lock:
            self._stream.seek(start)
            line = self._stream.read(length)
        try:
            return _parse(line, f"byte {start}")
        except ValueError as error:
            raise BerdiffError(f"{JOURNAL_NAME} was altered while a run was using it") from error

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, record: Record) -> None:
        """Append a record: it is on the disk when this returns, and not begun if this raises."""
        text = json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n"
        line = memoryview(text.encode())
        length = len(line)
        with self._lock:
            before = self._stream.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[self._stream.write(line) :]
                os.fsync(self._stream.fileno())
            except OSError:
                self._stream.truncate(before)
                raise
        self._places[record.result.input] = before, length

    def _scan(self) -> int:
        """Find the records, the last of each input counting; return where the whole lines end."""
        self._stream.seek(0)
        reader, end = io.BufferedReader(self._stream), 0
        for number, line in enumerate(reader, 1):
            if not line.endswith(b"\n"):
                break
            try:
                key = _parse(line, f"line {number}").result.input
                self._places[key] = end, len(line)
            except (ValueError, BerdiffError):
                pass  # damaged, or of another version: that scan is done again
            end += len(line)
        reader.detach()
        return end


def _parse(line: bytes, where: str) -> Record:
    return from_json(Record, json.loads(line), f"{JOURNAL_NAME}, {where}")


class Journal(Closing):
    """The open, locked journal of an output folder.

    Attributes
    ----------
    records : Records
        What is in it.

    Raises
    ------
    BerdiffError
        If another run holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Unbuffered: what a full disk refused must not wait to be written after a later line.
        self._stream = open(folder / JOURNAL_NAME, "a+b", buffering=0)  # noqa: SIM115
        try:
            self._lock()
            self.records = Records(self._stream)
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Give up the folder."""
        self._stream.close()

    def add(self, record: Record) -> None:
        """Append a record: it is on the disk when this returns, and not begun if this raises."""
        self.records.add(record)

    def intact(self, record: Record) -> bool:
        """Whether a record's files are still there, byte for byte."""
        return all(
            (self.folder / name).is_file() and sha256_file(self.folder / name) == digest
            for name, digest in record.outputs.items()
        )

    def _lock(self) -> None:
        """Hold the folder; the system releases it when this process ends, however it ends."""
        if os.name != "posix":
            return
        import fcntl

        try:
            fcntl.flock(self._stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BerdiffError(
                f"another run is writing to {self.folder}; wait for its end or choose another "
                "output folder"
            ) from error
