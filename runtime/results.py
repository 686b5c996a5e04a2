"""What a run over a folder reports: records of scans, slices and components, as CSV and JSON.

Tables are written row by row: those of a hundred thousand scans would not fit into memory.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .components import Component
from .files import atomic_file


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
    ood : float or None
        How far the slice is from the training images, over the limit: above 1 it is out of
        distribution. None where the slice is empty or the bundle has no statistics.
    """

    index: int
    score: float | None
    mask_pixels: int
    ood: float | None = None


@dataclass(frozen=True)
class ScanResult:
    """One scan of a run: a row of ``results.csv``.

    Attributes
    ----------
    name : str
        Name of its results: ``maps/<name>_anomaly...``, ``overlays/<name>.png``.
    input : str
        Path below the input folder, or ``dicom:`` and the UID of a series.
    format : str
        How it was read: "picture", "nifti", "brats", "nnunet", "bids" or "dicom".
    status : {"ok", "failed"}
        Whether it was processed.
    reason : str
        Why it failed; empty where it did not.
    verdict : {"ok", "suspect", "rejected", ""}
        Of the input: what the model was trained for; processed, but to be doubted; not usable.
        Empty where a failure says nothing about the input.
    verdict_reason : str
        Why it is suspect or rejected.
    ood : float or None
        How far the scan is from the training images, over the limit: above 1 it is out of
        distribution. None where the bundle has no statistics.
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
    components : int
        Connected parts of the mask, over all slices.
    largest_ml : float or None
        Volume of the largest of them in ml, for volumes.
    full_scale : float or None
        Value that the brightest grey of ``_anomaly.png`` stands for; 1 for all but pictures.
    seconds : float
        Time spent on this scan.
    sha256 : str
        Digest of the input: SHA-256 of its file; of several, that of their digests.
    notes : str
        What was assumed about the file.
    """

    name: str
    input: str
    status: Literal["ok", "failed"]
    reason: str = ""
    format: str = ""
    verdict: Literal["ok", "suspect", "rejected", ""] = ""
    verdict_reason: str = ""
    ood: float | None = None
    slices: int = 0
    empty_slices: int = 0
    score: float | None = None
    worst_slice: int | None = None
    slice_axis: int | None = None
    threshold: float | None = None
    threshold_source: Literal["option", "bundle", "otsu", ""] = ""
    mask_pixels: int = 0
    volume_ml: float | None = None
    components: int = 0
    largest_ml: float | None = None
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

    @property
    def suspect(self) -> list[ScanResult]:
        """Scans that were processed, and whose results are to be doubted."""
        return [result for result in self.ok if result.verdict == "suspect"]


def write_tables(
    folder: Path,
    scans: Iterable[tuple[ScanResult, Sequence[SliceResult], Sequence[Component]]],
) -> None:
    """Write every table of a run: each scan with its slices and the components of its mask.

    In ``results.csv`` there is a row per scan, in ``slices.csv`` and ``components.csv`` one per
    part, with the name of its scan, and ``results.json`` has all of it, parts inside their scan.
    Scans are taken one after another, and none is kept.
    """
    with contextlib.ExitStack() as files:
        add = {
            name: files.enter_context(_csv(folder / f"{name}.csv", kind, extra))
            for name, kind, extra in (
                ("results", ScanResult, ()),
                ("slices", SliceResult, ("name",)),
                ("components", Component, ("name",)),
            )
        }
        add_json = files.enter_context(_json(folder / "results.json"))
        for result, slices, components in scans:
            add["results"]([_flat(result)])
            for name, parts in (("slices", slices), ("components", components)):
                add[name]({"name": result.name, **_flat(part)} for part in parts)
            add_json(result, slices, components)


def write_results(folder: Path, results: Sequence[ScanResult]) -> None:
    """Write ``results.csv`` alone."""
    with _csv(folder / "results.csv", ScanResult) as add:
        add(map(_flat, results))


def write_parts(
    folder: Path, name: str, kind: type, parts: Iterable[tuple[str, Sequence[Any]]]
) -> None:
    """Write a table of parts alone: one row per part, with the name of its scan.

    Parameters
    ----------
    folder : Path
        The output folder.
    name : str
        Name of the file.
    kind : type
        Dataclass of the parts: `SliceResult` or `Component`.
    parts : iterable of (str, sequence)
        Name of each scan, and its parts.
    """
    with _csv(folder / name, kind, ("name",)) as add:
        add({"name": scan, **_flat(item)} for scan, items in parts for item in items)


def _flat(row: Any) -> dict[str, Any]:
    """Fields of a row by name. Rows are flat: `dataclasses.asdict` would copy each value."""
    return vars(row)


@contextlib.contextmanager
def _csv(
    path: Path, kind: type, extra: tuple[str, ...] = ()
) -> Iterator[Callable[[Iterable[dict[str, Any]]], None]]:
    """Yield what adds rows to a table; it is there, whole, when the block ends."""
    # File names need not be valid Unicode; what is not is shown escaped.
    escaped: Any = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with atomic_file(path) as part, open(part, "w", **escaped) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*extra, *(field.name for field in dataclasses.fields(kind))])

        def add(rows: Iterable[dict[str, Any]]) -> None:
            for row in rows:
                # A place in the world is three numbers in one cell.
                writer.writerow(
                    [" ".join(map(str, v)) if isinstance(v, tuple) else v for v in row.values()]
                )

        yield add


@contextlib.contextmanager
def _json(
    path: Path,
) -> Iterator[Callable[[ScanResult, Sequence[SliceResult], Sequence[Component]], None]]:
    """Yield what adds a scan to ``results.json``, whose text is that of one object."""
    plain: Any = {"newline": "\n", "encoding": "ascii"}
    with atomic_file(path) as part, open(part, "w", **plain) as stream:
        before = '{\n "scans": ['

        def add(
            result: ScanResult, slices: Sequence[SliceResult], components: Sequence[Component]
        ) -> None:
            nonlocal before
            scan = {
                **_flat(result),
                "slice_results": [_flat(item) for item in slices],
                "component_results": [_flat(item) for item in components],
            }
            text = json.dumps(scan, indent=1, allow_nan=False).replace("\n", "\n  ")
            stream.write(f"{before}\n  {text}")
            before = ","

        yield add
        stream.write("\n ]\n}\n")
