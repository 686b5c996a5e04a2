"""The journal of a run: which scans are finished, from which bytes and into which bytes.

One JSON object per line, on the disk before the next scan is finished. It is also the lock of the
output folder: two runs never write to one folder at the same time.
"""

from __future__ import annotations

import dataclasses
import json
import os
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


class Journal(Closing):
    """The open, locked journal of an output folder.

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
            self.records = self._read()
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        """Give up the folder."""
        self._stream.close()

    def add(self, record: Record) -> None:
        """Append a record: it is on the disk when this returns, and not begun if this raises."""
        line = memoryview((json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n").encode())
        before = self._stream.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._stream.write(line) :]
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(before)
            raise
        self.records[record.result.input] = record

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

    def _read(self) -> dict[str, Record]:
        """Read the whole lines, the last of each input counting; cut off a torn last line."""
        self._stream.seek(0)
        data = self._stream.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._stream.truncate(whole)
        records = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = from_json(Record, json.loads(line), f"{JOURNAL_NAME}, line {number}")
            except (ValueError, BerdiffError):
                continue  # damaged, or of another version: that scan is done again
            records[record.result.input] = record
        return records
