"""The output folder of a run: taken over, locked, and never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from .errors import BerdiffError, InputError
from .journal import JOURNAL_NAME, Journal

RESULT_FILES = (
    "results.csv",
    "slices.csv",
    "components.csv",
    "results.json",
    "run.json",
    "report.html",
)

_LONGEST_NAME = 240  # bytes; file systems allow 255, and temporary names need a few


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the system says about an output folder into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise BerdiffError(
            f"cannot write to {folder}: {error.strerror or error}; what is finished is kept, and "
            "the same command with --continue goes on from there"
        ) from error


def check_apart(source: Path, output: Path) -> None:
    """Refuse folders inside one another: results must not be found, or written over, as input.

    Raises
    ------
    InputError
        If they are.
    """
    read, written = source.resolve(), output.resolve()
    overlap = read == written or written in read.parents
    if overlap or (source.is_dir() and read in written.parents):
        raise InputError(
            f"input {source} and output {output} lie in one another; choose an output folder "
            "outside the input"
        )


def check_name(files: Iterable[str]) -> None:
    """Refuse names that no file system takes.

    Raises
    ------
    InputError
        If a result's name would be too long.
    """
    longest = max(len(os.fsencode(PurePosixPath(file).name)) for file in files)
    if longest > _LONGEST_NAME:
        raise InputError(f"its name is too long: results would need names of {longest} bytes")


def open_output(output: Path, resume: bool) -> Journal:
    """Create or take over an output folder and lock it.

    Raises
    ------
    BerdiffError
        If it is in use, holds something else, or cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise BerdiffError(f"{output} is a file; choose a folder for the results")
    begun = (output / JOURNAL_NAME).exists()
    if not begun and output.exists() and any(output.iterdir()):
        raise BerdiffError(
            f"{output} is not empty and holds no results of berdiff infer; choose a new folder"
        )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        journal = Journal(output)
        try:
            if resume:
                _clear_unfinished(output)
            elif journal.records or len(list(output.iterdir())) > 1:
                raise BerdiffError(
                    f"{output} holds results already; add --continue to go on with that run, or "
                    "choose a new folder"
                )
        except BaseException:
            journal.close()
            raise
    return journal


def _clear_unfinished(output: Path) -> None:
    """Remove half-written files of a killed run, and summaries that will be written anew."""
    for name in RESULT_FILES:
        (output / name).unlink(missing_ok=True)
    clear_parts(output)


def clear_parts(output: Path) -> None:
    """Remove half-written files, which nobody may be writing any more."""
    for part in output.rglob(".part-*"):
        part.unlink(missing_ok=True)
