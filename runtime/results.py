"""What a run over a folder reports: one record per scan, ``results.csv`` and ``slices.csv``."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .files import write_atomic


@dataclass(frozen=True)
class SliceResult:
    """One slice of a scan.

    Attributes
    ----------
    index : int
        Position in the file, counted from 0 along the scan's `slice_axis`.
    score : float or None
        Image score; None where the slice is empty and was not processed.
    mask_pixels : int
        Pixels of the mask.
    """

    index: int
    score: float | None
    mask_pixels: int


@dataclass(frozen=True)
class ScanResult:
    """One scan of a run: a row of ``results.csv``.

    Attributes
    ----------
    name : str
        Name of its results: ``maps/<name>_anomaly...``, ``overlays/<name>.png``.
    input : str
        Path below the input folder.
    status : {"ok", "failed"}
        Whether it was processed.
    reason : str
        Why it failed; empty where it did not.
    slices, empty_slices : int
        Slices in the scan; those among them that show nothing and were skipped.
    score : float or None
        Highest image score of its slices.
    worst_slice : int or None
        Where that slice lies in the file, counted from 0 along `slice_axis`.
    slice_axis : int or None
        Array axis of the file along which it was cut; None where it is one image.
    threshold : float or None
        Threshold of the mask.
    threshold_source : {"option", "bundle", "otsu", ""}
        Given by the caller, calibrated, or chosen for this scan by Otsu's method.
    mask_pixels : int
        Pixels (voxels) of the mask.
    volume_ml : float or None
        Volume of the mask in ml, for volumes.
    full_scale : float or None
        Value that the brightest grey of ``_anomaly.png`` stands for; 1 in NIfTI maps.
    seconds : float
        Time spent on this scan.
    sha256 : str
        SHA-256 of the input file.
    notes : str
        What was assumed about the file.
    """

    name: str
    input: str
    status: Literal["ok", "failed"]
    reason: str = ""
    slices: int = 0
    empty_slices: int = 0
    score: float | None = None
    worst_slice: int | None = None
    slice_axis: int | None = None
    threshold: float | None = None
    threshold_source: Literal["option", "bundle", "otsu", ""] = ""
    mask_pixels: int = 0
    volume_ml: float | None = None
    full_scale: float | None = None
    seconds: float = 0.0
    sha256: str = ""
    notes: str = ""


@dataclass(frozen=True)
class RunSummary:
    """Outcome of a run over a folder.

    Attributes
    ----------
    output : Path
        The folder of results.
    results : tuple of ScanResult
        One per scan found, sorted by input path.
    reused : int
        Scans whose results an earlier run had finished (``--continue``).
    warnings : tuple of str
        What the user should know before relying on the results.
    """

    output: Path
    results: tuple[ScanResult, ...]
    reused: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> list[ScanResult]:
        """Scans that were processed."""
        return [result for result in self.results if result.status == "ok"]

    @property
    def failed(self) -> list[ScanResult]:
        """Scans that were not, each with its reason."""
        return [result for result in self.results if result.status == "failed"]


def write_results(folder: Path, results: Sequence[ScanResult]) -> None:
    """Write ``results.csv``: one row per scan."""
    header = [field.name for field in dataclasses.fields(ScanResult)]
    rows = (dataclasses.astuple(result) for result in results)
    _write_csv(folder / "results.csv", header, rows)


def write_slices(folder: Path, slices: Iterable[tuple[str, Sequence[SliceResult]]]) -> None:
    """Write ``slices.csv``: one row per slice, with the name of its scan."""
    header = ["name", *(field.name for field in dataclasses.fields(SliceResult))]
    rows = ((name, *dataclasses.astuple(item)) for name, items in slices for item in items)
    _write_csv(folder / "slices.csv", header, rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    # File names need not be valid Unicode; what is not is shown escaped.
    write_atomic(path, text.getvalue().encode("utf-8", errors="backslashreplace"))
