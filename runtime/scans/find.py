"""Finding scans: which files of a folder belong together, and what they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ..errors import InputError
from ..preprocessing import Preprocessing
from . import bids, brats, nifti, nnunet, picture
from .source import FileRef, Format, ScanSource

SUFFIXES = (*nifti.SUFFIXES, *picture.SUFFIXES)
# Files that may be DICOM: what a series is called is up to the scanner.
_NEVER_DICOM = (
    *SUFFIXES,
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".md",
    ".html",
    ".bval",
    ".bvec",
    ".xml",
)

InputFormat = Literal["auto", "picture", "nifti", "brats", "nnunet", "bids", "dicom"]
FORMATS: tuple[str, ...] = get_args(InputFormat)


@dataclass(frozen=True)
class Found:
    """What lies in an input folder.

    Attributes
    ----------
    sources : tuple of ScanSource
        Scans, sorted by key; those with a `problem` cannot be used.
    ignored : tuple of (str, str)
        Files that are no scan: name and reason.
    """

    sources: tuple[ScanSource, ...]
    ignored: tuple[tuple[str, str], ...] = ()

    def part(self, count: int, number: int) -> Found:
        """Every `count`-th scan, beginning with the `number`-th: what one of several jobs takes."""
        return replace(self, sources=self.sources[number::count])


def suffix_of(path: Path) -> str:
    """Return the suffix a scan is read by, in lower case ("" where it is none of ours)."""
    name = path.name.lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def find_scans(
    path: Path, preprocessing: Preprocessing, input_format: InputFormat = "auto"
) -> Found:
    """Find the scans of a folder and its subfolders, or the scan in one file.

    Hidden files and folders (a leading dot) are passed over, and so are links to folders.

    Parameters
    ----------
    path : Path
        A folder or a file.
    preprocessing : Preprocessing
        The model's intended input: which channels a scan must have.
    input_format : str
        "auto", or the one layout to look for.

    Raises
    ------
    InputError
        If there is no scan, or the format is unknown.
    """
    path = Path(path)
    if input_format not in FORMATS:
        raise InputError(f"unknown input format '{input_format}'; known: {', '.join(FORMATS)}")
    if not path.is_dir() and not path.exists():
        raise InputError(f"{path} does not exist")
    root, files = (path, list_files(path)) if path.is_dir() else (path.parent, [path])
    search = _Search(root, files, preprocessing, input_format)
    found = search.run()
    if not found.sources:
        raise InputError(_nothing(path, input_format, found))
    return found


def file_source(path: Path) -> ScanSource:
    """Return one file as a scan of its own.

    Raises
    ------
    InputError
        If it is no NIfTI, MGH or picture by its name.
    """
    suffix = suffix_of(path)
    if not suffix:
        raise InputError(f"{path} is no scan by its name; expected {', '.join(SUFFIXES)}")
    return _single(path, path.parent)


def find_files(path: Path) -> list[Path]:
    """List the NIfTI files and pictures of a folder and its subfolders, or the one given.

    Raises
    ------
    InputError
        If there is none.
    """
    path = Path(path)
    if path.is_dir():
        found = [file for file in list_files(path) if suffix_of(file)]
        if not found:
            raise InputError(f"found no scan in {path}; expected {', '.join(SUFFIXES)}")
        return found
    if not path.exists():
        raise InputError(f"{path} does not exist")
    file_source(path)  # refuses what is no scan by its name
    return [path]


def list_files(folder: Path) -> list[Path]:
    """List a folder's files, sorted, with those of its subfolders; hidden ones left out."""
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


class _Search:
    """Layouts take their files one after another; what is left is looked at file by file."""

    def __init__(
        self, root: Path, files: list[Path], preprocessing: Preprocessing, wanted: InputFormat
    ) -> None:
        self.root = root
        self.left = files
        self.preprocessing = preprocessing
        self.wanted = wanted
        self.sources: list[ScanSource] = []
        self.ignored: list[tuple[str, str]] = []

    def run(self) -> Found:
        for name, layout in (("bids", bids), ("brats", brats), ("nnunet", nnunet)):
            if self._looks_for(name) and (
                self.wanted == name or layout.recognise(self.root, self.left, self.preprocessing)
            ):
                found = layout.find(self.root, self.left, self.preprocessing)
                self.sources += found.sources
                self.left = [file for file in self.left if file not in found.claimed]
                used = {file.path for source in found.sources for file in source.files}
                self._ignore(found.claimed - used, f"part of a {name} folder, no input")
        if self._looks_for("dicom"):
            self._dicom()
        for file in self.left:
            self._file(file)
        sources = unique_names(sorted(self.sources, key=lambda source: source.key))
        return Found(tuple(sources), tuple(self.ignored))

    def _looks_for(self, name: str) -> bool:
        return self.wanted in ("auto", name)

    def _ignore(self, files: Iterable[Path], reason: str) -> None:
        self.ignored += [(f.relative_to(self.root).as_posix(), reason) for f in sorted(files)]

    def _file(self, file: Path) -> None:
        suffix = suffix_of(file)
        kind = "nifti" if suffix in nifti.SUFFIXES else "picture" if suffix else ""
        if kind and self._looks_for(kind):
            self.sources.append(_single(file, self.root))
        else:
            reason = f"not looked for: --input-format {self.wanted}" if kind else "no scan"
            self._ignore([file], reason)

    def _dicom(self) -> None:
        forced = self.wanted == "dicom"
        candidates = [f for f in self.left if forced or not f.name.lower().endswith(_NEVER_DICOM)]
        if not candidates:
            return
        from .dicom_source import dicom_sources

        sources, skipped, taken = dicom_sources(candidates, self.preprocessing, forced)
        self.sources += sources
        self.ignored += skipped
        self.left = [file for file in self.left if file not in taken]


def _single(path: Path, root: Path) -> ScanSource:
    relative = path.relative_to(root).as_posix()
    suffix = suffix_of(path)
    kind: Format = "nifti" if suffix in nifti.SUFFIXES else "picture"
    name = relative[: -len(suffix)]
    return ScanSource(relative, name, kind, (FileRef(path),), summary=suffix[1:])


def unique_names(sources: Sequence[ScanSource]) -> list[ScanSource]:
    """Give every scan a name of its own.

    Scans whose names differ in nothing, or in upper and lower case only, keep their full key, with
    dots as dashes at the end (``a-png``, ``a-nii-gz``); a number is added where that is not enough.
    """
    names = [source.name for source in sources]
    for attempt in range(len(sources) + 1):
        counts = Counter(name.casefold() for name in names)
        clashes = [index for index, name in enumerate(names) if counts[name.casefold()] > 1]
        if not clashes:
            break
        for number, index in enumerate(clashes):
            full = names[index] + _ending(sources[index])
            names[index] = full if attempt == 0 else f"{full}-{number}"
    return [
        source if source.name == name else replace(source, name=name)
        for source, name in zip(sources, names, strict=True)
    ]


def _ending(source: ScanSource) -> str:
    file = source.files[0].path if source.files else Path(source.key)
    return suffix_of(file).replace(".", "-") or f"-{source.format}"


def scan_names(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """Name files: path below `root` without suffix, unique; see `unique_names`."""
    base = root if root.is_dir() else root.parent
    named = unique_names([_single(path, base) for path in paths])
    return {path: source.name for path, source in zip(paths, named, strict=True)}


def _nothing(path: Path, input_format: InputFormat, found: Found) -> str:
    looked = (
        f"{', '.join(SUFFIXES)}, DICOM, zip archives of DICOM, or BraTS, nnU-Net and BIDS folders"
        if input_format == "auto"
        else f"format {input_format}"
    )
    reasons = Counter(reason for _, reason in found.ignored if reason != "no scan")
    listed = "".join(f"; {count} files: {reason}" for reason, count in reasons.most_common(3))
    return f"found no scan in {path}; expected {looked}{listed}"
