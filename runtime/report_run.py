"""What a report is made of: the tables of an output folder, read with room for gaps.

Folders of earlier versions lack columns and tables; only what every version wrote is demanded.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from .errors import BerdiffError

NEEDED = ("name", "input", "status", "reason", "score", "mask_pixels")
MAX_COMPONENTS = 12  # shown of a scan; the table has them all
LONGEST_TEXT = 1000

Row = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes
    ----------
    folder : Path
        The output folder.
    record : mapping
        ``run.json``.
    done : list of mapping
        Rows of ``results.csv`` that were processed, highest score first.
    failed : list of mapping
        The other rows.
    slices : mapping of str to mapping
        Of the scans asked for, score by slice index; None where a slice is empty.
    components : mapping of str to list
        Of the scans asked for, the first rows of ``components.csv``, which has the largest first.
    """

    folder: Path
    record: Mapping[str, Any]
    done: list[Row]
    failed: list[Row]
    slices: Mapping[str, Mapping[int, float | None]]
    components: Mapping[str, list[Row]]

    def count(self, verdict: str) -> int:
        """Scans with a verdict."""
        return sum(row.get("verdict") == verdict for row in (*self.done, *self.failed))

    @property
    def verdicts(self) -> list[str]:
        """Verdicts that occur, best first."""
        return [verdict for verdict in ("ok", "suspect", "rejected") if self.count(verdict)]


def read_run(folder: Path, detailed: int) -> Run:
    """Read the tables of a run.

    Parameters
    ----------
    folder : Path
        The output folder.
    detailed : int
        How many scans, highest scores first, are wanted with slices and components.

    Raises
    ------
    BerdiffError
        If a file of the run is missing or damaged.
    """
    for name in ("results.csv", "run.json"):
        if not (folder / name).is_file():
            raise BerdiffError(
                f"{folder} has no {name}: a report is made of a finished run of berdiff infer"
            )
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BerdiffError(f"{folder / 'run.json'} is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise BerdiffError(f"{folder / 'run.json'}: expected an object, got {type(record)}")
    rows = list(_rows(folder / "results.csv", NEEDED))
    done = sorted(
        (row for row in rows if row["status"] == "ok"),
        key=lambda row: (-number(row["score"]), row["name"]),
    )
    wanted = {row["name"] for row in done[:detailed]}
    return Run(
        folder=folder,
        record=record,
        done=done,
        failed=[row for row in rows if row["status"] != "ok"],
        slices=_slices(_parts(folder / "slices.csv", ("name", "index", "score"), wanted)),
        components=_components(_parts(folder / "components.csv", ("name", "number"), wanted)),
    )


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    with open(path, encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True, restval="")
        try:
            missing = set(needed) - set(reader.fieldnames or ())
            if missing:
                raise BerdiffError(f"{path}: missing column {', '.join(sorted(missing))}")
            yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise BerdiffError(f"{path} is damaged: {error}") from error


def _parts(path: Path, needed: tuple[str, ...], wanted: set[str]) -> Iterator[Row]:
    if path.is_file():
        yield from (row for row in _rows(path, needed) if row["name"] in wanted)


def _slices(rows: Iterable[Row]) -> dict[str, dict[int, float | None]]:
    found: dict[str, dict[int, float | None]] = {}
    for row in rows:
        if row["index"].isdecimal() and len(row["index"]) < 8:
            score = number(row["score"])
            known = found.setdefault(row["name"], {})
            known[int(row["index"])] = score if math.isfinite(score) else None
    return found


def _components(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        known = found.setdefault(row["name"], [])
        if len(known) < MAX_COMPONENTS:
            known.append(row)
    return found


def text(value: Any) -> str:
    """Escape a value for HTML, elements and attributes alike; cut what is endless."""
    shown = str(value)
    if len(shown) > LONGEST_TEXT:
        shown = shown[:LONGEST_TEXT] + "…"
    return escape(shown, quote=True)


def number(value: str | None) -> float:
    """Read a number; what is empty or none sorts last."""
    try:
        found = float(value or "")
    except ValueError:
        return -math.inf
    return found if math.isfinite(found) else -math.inf


def shown(value: str | None) -> str:
    """Four digits of a number, or "none"."""
    found = number(value)
    return f"{found:.4g}" if math.isfinite(found) else "none"
