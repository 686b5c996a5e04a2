"""Is a series complete? Counts and released associations say so, and never a timer alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from ...preprocessing import Preprocessing
from ...scans.dicom_source import dicom_sources
from .arrivals import Unit
from .config import SeriesRules


def not_yet(
    unit: Unit,
    objects: Sequence[sqlite3.Row],
    rules: SeriesRules,
    preprocessing: Preprocessing,
    folder: Path,
) -> tuple[list[sqlite3.Row], str]:
    """The objects of a complete unit; or none, and why it is not complete.

    A series is complete when every association that brought some of it was released, and it has the
    minimum of slices and as many as its headers state. A model of several contrasts takes a study
    as soon as it has one complete series of each.

    Parameters
    ----------
    unit : Unit
        What is to be examined.
    objects : sequence of sqlite3.Row
        What was received of it.
    rules : SeriesRules
        The counts.
    preprocessing : Preprocessing
        Which contrasts the model takes.
    folder : Path
        The spool folder.
    """
    if unit.waiting:
        return [], "an association that brought some of it goes on, or broke"
    if not unit.released:
        return [], "no association that brought some of it was released"
    series: dict[str, list[sqlite3.Row]] = {}
    for item in objects:
        series.setdefault(item["series"], []).append(item)
    shortages = {name: _shortage(items, rules) for name, items in series.items()}
    complete = [item for item in objects if not shortages[item["series"]]]
    if not complete:
        return [], "; ".join(sorted(set(shortages.values())))
    if preprocessing.channels == 1:
        return complete, ""
    paths = {folder / item["path"]: item for item in complete}
    sources, ignored, _ = dicom_sources(list(paths), preprocessing, forced=False)
    if len(sources) != 1:
        return [], "; ".join(sorted({reason for _, reason in ignored})) or "it holds no images"
    if sources[0].problem:
        return [], sources[0].problem
    return [paths[file.path] for file in sources[0].files], ""


def _shortage(items: Sequence[sqlite3.Row], rules: SeriesRules) -> str:
    slices = sum(item["slices"] for item in items)
    stated = max(item["stated"] for item in items) if rules.stated_count else 0
    if slices < rules.minimum_slices:
        return f"it has {slices} slices, expected {rules.minimum_slices} at least"
    if slices < stated:
        return f"it has {slices} slices, and its headers state {stated}"
    return ""
