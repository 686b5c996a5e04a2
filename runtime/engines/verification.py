"""Whether an engine has computed what it should, on the GPU it is for: a record beside it.

The record is a file of its own: `engine.json` stays what every release of berdiff reads, and what
an engine is does not change when somebody checks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone

from ..bundle import Bundle
from ..environment import software
from ..errors import BackendError, BerdiffError
from ..strict import read_json, to_json
from .gpu import Gpu
from .store import StoredEngine, engine_folders, read_engine

VERIFICATION_NAME = "verification.json"
VERIFICATION_VERSION = 1


@dataclass(frozen=True)
class Figure:
    """One figure of the golden vectors, and the limit it kept."""

    name: str
    value: float
    limit: float


@dataclass(frozen=True)
class Verification:
    """The whole of ``verification.json``.

    Attributes
    ----------
    schema_version : int
        Raised when a key changes its meaning or a key is added.
    engine : str
        SHA-256 of the ``engine.json`` this is about.
    gpu : Gpu or None
        GPU on which the golden vectors were replayed; None: nothing was.
    figures : tuple of Figure
        What came out, every figure within its limit; empty where nothing was replayed.
    reason : str
        Why nothing was replayed; empty where it was.
    created : str
        When, in UTC.
    software : dict of str to str
        Versions at the time.
    """

    schema_version: int
    engine: str
    gpu: Gpu | None
    figures: tuple[Figure, ...]
    reason: str
    created: str
    software: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a record that says both or neither.

        Raises
        ------
        ValueError
            If figures, GPU and reason contradict each other.
        """
        replayed = bool(self.figures)
        if replayed != (self.gpu is not None) or replayed == bool(self.reason):
            raise ValueError("figures, gpu and reason: expected figures of a GPU, or a reason")

    @property
    def summary(self) -> str:
        """In a few words, for people."""
        if self.gpu is None:
            return f"not verified: {self.reason}"
        return f"verified on {self.gpu.name} ({self.gpu.architecture}), {self.created}"


def replayed(engine: StoredEngine, gpu: Gpu, figures: tuple[Figure, ...]) -> Verification:
    """Record that an engine kept all limits on a GPU."""
    return Verification(VERIFICATION_VERSION, engine.digest, gpu, figures, "", _now(), software())


def not_replayed(engine: StoredEngine, reason: str) -> Verification:
    """Record that an engine has not been run, and why."""
    return Verification(VERIFICATION_VERSION, engine.digest, None, (), reason, _now(), software())


def read_verification(engine: StoredEngine) -> Verification:
    """Read what is known about an engine; where there is no record, that says so.

    Raises
    ------
    BackendError
        If the record is damaged, was written by a newer berdiff, or is about another engine.
    """
    file = engine.folder / VERIFICATION_NAME
    if not file.is_file():
        return not_replayed(engine, "there is no record")
    try:
        found = read_json(Verification, file)
    except BerdiffError as error:
        raise BackendError(f"{error}; remove {file}") from error
    problem = None
    if found.schema_version != VERIFICATION_VERSION:
        problem = f"schema_version: got {found.schema_version}, expected {VERIFICATION_VERSION}"
    elif found.engine != engine.digest:
        problem = f"engine: got {found.engine}, but engine.json beside it is {engine.digest}"
    if problem:
        raise BackendError(f"{file}: {problem}; remove it")
    return found


def verified_in_words(engine: StoredEngine) -> str:
    """Say whether an engine was verified; a record that cannot be believed is none."""
    try:
        return read_verification(engine).summary
    except BackendError as error:
        return f"not verified: {error}"


def engines_in_words(bundle: Bundle) -> dict[str, str]:
    """Say of every engine in a bundle, by key, whether it was verified; or why it is of no use."""
    found = {}
    for folder in engine_folders(bundle):
        try:
            engine = read_engine(folder)
            engine.check()
            found[folder.name] = verified_in_words(engine)
        except BackendError as error:
            found[folder.name] = f"cannot be used: {error}"
    return found


def verification_text(verification: Verification) -> bytes:
    """A record as it is written."""
    return to_json(verification).encode()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
