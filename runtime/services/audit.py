"""An append-only log in which every line vouches for the one before it.

A line is one JSON object: its number from 1, the time in UTC, the event, its facts, the hash of the
line before and its own. The hash is SHA-256 over the canonical JSON of everything else in the line,
so a change, a missing line or another order is found by reading the log. Lines cut off at the end
leave a sound shorter log: to notice that, keep the last hash (the head) elsewhere.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..closing import Closing
from ..errors import BerdiffError

GENESIS = "0" * 64  # what the first line names as the hash before it

_KEYS = ("number", "time", "event", "facts", "previous", "hash")
_MAX_LINE = 2**20


class AuditError(BerdiffError):
    """An audit log that was edited or damaged, or is in use."""


@dataclass(frozen=True)
class AuditSummary:
    """What a sound log holds.

    Attributes
    ----------
    entries : int
        Number of lines.
    head : str
        Hash of the last line, 64 hexadecimal digits; zeros for an empty log.
    first, last : str or None
        Times of the first and the last line, ISO 8601 in UTC.
    """

    entries: int
    head: str
    first: str | None = None
    last: str | None = None


class AuditLog(Closing):
    """A log opened to be continued. Several threads may append; one process holds it at a time."""

    def __init__(self, path: Path, stream: BinaryIO, summary: AuditSummary) -> None:
        self.path = path
        self._stream = stream
        self._summary = summary
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> AuditLog:
        """Open a log, or begin one; the whole of it is checked first.

        A last line without its end, which a power cut leaves, was never reported as written: it
        is taken away.

        Raises
        ------
        AuditError
            If the log was edited, or another process holds it. A broken log is left as it is.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "ab+", buffering=0)  # noqa: SIM115 - lives as long as the log
        try:
            _hold(stream, path)
            stream.seek(0)
            summary, end = _read(stream, path, unfinished_is_cut=True)
            stream.truncate(end)
            return cls(path, stream, summary)
        except BaseException:
            stream.close()
            raise

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self._summary.head

    def append(self, event: str, **facts: Any) -> None:
        """Add a line; it lies on the disk when this returns.

        Parameters
        ----------
        event : str
            What happened, for example "start".
        **facts
            What a reader needs to know of it: text, numbers, booleans, None, and lists or objects
            of them. No names, no pixels.

        Raises
        ------
        OSError
            If it cannot be written; the log is as it was.
        """
        with self._lock:
            line: dict[str, Any] = {
                "number": self._summary.entries + 1,
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
                "event": event,
                "facts": facts,
                "previous": self._summary.head,
            }
            line["hash"] = _digest(line)
            self._write(_canonical(line) + b"\n")
            first = self._summary.first or line["time"]
            self._summary = AuditSummary(line["number"], line["hash"], first, line["time"])

    def close(self) -> None:
        """Let another process have it."""
        self._stream.close()

    def _write(self, data: bytes) -> None:
        end = os.fstat(self._stream.fileno()).st_size
        try:
            written = self._stream.write(data)
            if written != len(data):
                raise OSError(f"{self.path}: the disk took {written} of {len(data)} bytes")
            os.fsync(self._stream.fileno())
        except OSError:
            self._stream.truncate(end)
            raise


def check(path: Path, head: str | None = None) -> AuditSummary:
    """Read a whole log and recompute every hash.

    Parameters
    ----------
    path : Path
        The log.
    head : str, optional
        Hash of a line that was once the last. The log may have been continued since.

    Raises
    ------
    AuditError
        Naming the first line that was edited, and how that shows; or because no line has the hash
        `head`.
    """
    try:
        with open(path, "rb") as stream:
            summary, _ = _read(stream, Path(path), unfinished_is_cut=False, head=head)
    except OSError as error:
        raise AuditError(f"cannot read the audit log {path}: {error.strerror}") from error
    return summary


def _read(
    stream: BinaryIO, path: Path, unfinished_is_cut: bool, head: str | None = None
) -> tuple[AuditSummary, int]:
    """Check line after line; also say where the last whole line ends."""
    summary, end = AuditSummary(0, GENESIS), 0
    met = head in (None, GENESIS)
    while data := stream.readline(_MAX_LINE):
        where = f"{path}, line {summary.entries + 1}"
        if not data.endswith(b"\n"):
            if unfinished_is_cut and len(data) < _MAX_LINE:
                break
            raise AuditError(f"{where}: it has no end; the log was cut or the line is too long")
        summary = _next(summary, data, where)
        met = met or summary.head == head
        end += len(data)
    if not met:
        raise AuditError(
            f"{path}: none of its {summary.entries} lines has the hash {head}: lines were cut off, "
            "or this is another log"
        )
    return summary, end


def _next(before: AuditSummary, data: bytes, where: str) -> AuditSummary:
    try:
        line = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AuditError(f"{where} is not valid JSON: it was edited or damaged") from error
    if not isinstance(line, dict) or tuple(line) != tuple(sorted(_KEYS)):
        raise AuditError(f"{where} does not hold {', '.join(sorted(_KEYS))}: it was edited")
    if line["previous"] != before.head or line["number"] != before.entries + 1:
        raise AuditError(
            f"{where} does not follow the line before: lines were removed, inserted or moved"
        )
    rest = {key: value for key, value in line.items() if key != "hash"}
    try:
        sound = line["hash"] == _digest(rest) and data == _canonical(line) + b"\n"
    except (ValueError, RecursionError):
        sound = False
    if not sound:
        raise AuditError(f"{where} does not have the hash it names: it was edited")
    return AuditSummary(line["number"], line["hash"], before.first or line["time"], line["time"])


def _digest(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(line)).hexdigest()


def _canonical(line: Mapping[str, Any]) -> bytes:
    """The one way in which a line is written: keys in order, ASCII, nothing that can vary."""
    text = json.dumps(
        line, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode("ascii")


def _hold(stream: BinaryIO, path: Path) -> None:
    """Keep other processes from writing; the system lets go when this one ends."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise AuditError(f"another process writes the audit log {path}") from error
