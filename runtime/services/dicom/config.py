"""What a node is told: one YAML file, strictly read, every path absolute or beside the file."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import BerdiffError, optional
from ...strict import from_json

ObjectKind = Literal["seg", "pmap", "sc"]

_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


def _title(value: str, what: str) -> None:
    if not _TITLE.fullmatch(value):
        raise ValueError(
            f"{what} must be 1 to 16 printable ASCII characters without a backslash, got {value!r}"
        )


def _within(value: float, what: str, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{what} must lie between {low:g} and {high:g}, got {value:g}")


@dataclass(frozen=True)
class Tls:
    """Who we are, and whom we believe.

    Attributes
    ----------
    certificate, key : str
        PEM files: our certificate (with those above it), and its private key.
    authorities : str
        PEM file of the certificates that the other side's must descend from. A node that listens
        accepts nobody without one; a destination is checked against it, name included.
    """

    certificate: str
    key: str
    authorities: str


@dataclass(frozen=True)
class Listen:
    """Who may send, and how much at once.

    Attributes
    ----------
    title : str
        Our AE title; requests that call another one are rejected.
    callers : tuple of str
        AE titles that may send.
    host : str
        Address to listen on.
    port : int
        0 takes a free one.
    tls : Tls or None
        Listen for TLS, and for nothing else.
    maximum_pdu : int
        Bytes of a PDU that we accept.
    associations : int
        Connections at a time, of those that have not said who they are too.
    object_mib : int
        MiB of the largest object.
    idle_seconds : float
        A peer that sends nothing for so long is let go.
    """

    title: str
    callers: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 11112
    tls: Tls | None = None
    maximum_pdu: int = 131072
    associations: int = 16
    object_mib: int = 256
    idle_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _title(self.title, "title")
        if not self.callers:
            raise ValueError("callers is empty; name the AE titles that may send")
        for title in self.callers:
            _title(title, "callers")
        _within(self.port, "port", 0, 65535)
        _within(self.maximum_pdu, "maximum_pdu", 4096, 2**22)
        _within(self.associations, "associations", 1, 256)
        _within(self.object_mib, "object_mib", 1, 2048)
        _within(self.idle_seconds, "idle_seconds", 0.1, 3600)


@dataclass(frozen=True)
class SeriesRules:
    """When a series is complete, and what is done with one that does not fit.

    Attributes
    ----------
    minimum_slices : int
        A series with fewer is not complete.
    stated_count : bool
        Wait for as many as a header states in ImagesInAcquisition or NumberOfSlices. Switch it off
        for scanners that count several series together.
    settle_seconds : float
        Time after the last release, in which an association that brings more of the series may
        begin. It adds to the other conditions and replaces none.
    other_contrast : {"ignore", "reject", "accept"}
        A series whose header names another contrast than the model takes: pass it over in silence,
        send word that it was not examined, or examine it as suspect.
    maximum_objects : int
        Objects of one series (or study, where the model takes several contrasts).
    """

    minimum_slices: int = 10
    stated_count: bool = True
    settle_seconds: float = 5.0
    other_contrast: Literal["ignore", "reject", "accept"] = "ignore"
    maximum_objects: int = 10000

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _within(self.minimum_slices, "minimum_slices", 1, 10000)
        _within(self.settle_seconds, "settle_seconds", 0, 3600)
        _within(self.maximum_objects, "maximum_objects", 1, 10**6)


@dataclass(frozen=True)
class SpoolRules:
    """Where everything lies until it is done, and how much of it.

    Attributes
    ----------
    folder : str
        Holds received objects, results, the database, and the audit log. One node has it.
    queue : int
        Series that are not done yet; above it, no new one is accepted.
    minimum_free_mib : int
        Free MiB of the disk below which nothing is accepted.
    keep_done_hours, keep_failed_hours : float
        How long a series is kept after it was done, or has failed.
    give_up_hours : float
        After which a series that never became complete, or an object that no destination took,
        counts as failed.
    """

    folder: str
    queue: int = 200
    minimum_free_mib: int = 2048
    keep_done_hours: float = 24.0
    keep_failed_hours: float = 168.0
    give_up_hours: float = 72.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _within(self.queue, "queue", 1, 10**5)
        _within(self.minimum_free_mib, "minimum_free_mib", 0, 2**30)
        for name in ("keep_done_hours", "keep_failed_hours", "give_up_hours"):
            _within(getattr(self, name), name, 0, 10**5)


@dataclass(frozen=True)
class Destination:
    """Who gets results.

    Attributes
    ----------
    name : str
        What logs and metrics call it.
    host : str
        Its address.
    port : int
        Its port.
    title : str
        Its AE title.
    calling : str
        Ours, as it knows us; empty: as we listen.
    objects : tuple of str
        What it gets, of "seg", "pmap" and "sc".
    tls : Tls or None
        Speak TLS.
    first_retry_seconds, last_retry_seconds : float
        After a failure it is tried again after the first, then after twice as long, and so on up to
        the last.
    timeout_seconds : float
        Until a peer that does not answer counts as failed.
    """

    name: str
    host: str
    port: int
    title: str
    calling: str = ""
    objects: tuple[ObjectKind, ...] = ("seg", "pmap", "sc")
    tls: Tls | None = None
    first_retry_seconds: float = 5.0
    last_retry_seconds: float = 600.0
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits, '-', '_', '.', got {self.name!r}")
        _within(self.port, "port", 1, 65535)
        _title(self.title, "title")
        if self.calling:
            _title(self.calling, "calling")
        if not self.objects or len(set(self.objects)) < len(self.objects):
            raise ValueError("objects must name each of seg, pmap, sc once at most, one at least")
        _within(self.first_retry_seconds, "first_retry_seconds", 0.1, 86400)
        _within(self.last_retry_seconds, "last_retry_seconds", self.first_retry_seconds, 86400)
        _within(self.timeout_seconds, "timeout_seconds", 1, 3600)


@dataclass(frozen=True)
class NodeConfig:
    """Everything a node is told; see docs/dicom-node.md.

    Attributes
    ----------
    listen : Listen
    spool : SpoolRules
    destinations : tuple of Destination
        At least one.
    series : SeriesRules
    health_port : int
        Of ``/live``, ``/ready`` and ``/metrics`` on loopback; 0 takes a free one.
    audit : str
        The audit log; empty: ``audit.jsonl`` in the spool folder.
    """

    listen: Listen
    spool: SpoolRules
    destinations: tuple[Destination, ...]
    series: SeriesRules = field(default_factory=SeriesRules)
    health_port: int = 11180
    audit: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _within(self.health_port, "health_port", 0, 65535)
        if not self.destinations:
            raise ValueError("destinations is empty; results have to go somewhere")
        names = [destination.name for destination in self.destinations]
        if len(set(names)) < len(names):
            raise ValueError("two destinations have one name")

    @property
    def folder(self) -> Path:
        """The spool folder."""
        return Path(self.spool.folder)

    @property
    def audit_path(self) -> Path:
        """Where the audit log lies."""
        return Path(self.audit) if self.audit else self.folder / "audit.jsonl"

    @property
    def kinds(self) -> tuple[ObjectKind, ...]:
        """Objects that any destination gets."""
        wanted = {kind for destination in self.destinations for kind in destination.objects}
        kinds: tuple[ObjectKind, ...] = ("seg", "pmap", "sc")
        return tuple(kind for kind in kinds if kind in wanted)


def read_config(path: Path) -> NodeConfig:
    """Read the file of a node; relative paths in it start where it lies.

    Raises
    ------
    BerdiffError
        Naming the file and the key that is unknown, missing or makes no sense.
    """
    yaml = optional("yaml", "dicom")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BerdiffError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BerdiffError(f"{path} is not valid YAML: {error}") from error
    config = from_json(NodeConfig, content, str(path))
    base = path.resolve().parent
    return dataclasses.replace(
        config,
        listen=dataclasses.replace(config.listen, tls=_placed(config.listen.tls, base)),
        spool=dataclasses.replace(config.spool, folder=str(base / config.spool.folder)),
        audit=str(base / config.audit) if config.audit else "",
        destinations=tuple(
            dataclasses.replace(one, tls=_placed(one.tls, base)) for one in config.destinations
        ),
    )


def _placed(tls: Tls | None, base: Path) -> Tls | None:
    if tls is None:
        return None
    paths: dict[str, Any] = {
        name: str(base / getattr(tls, name)) for name in ("certificate", "key", "authorities")
    }
    return Tls(**paths)
