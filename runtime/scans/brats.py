"""BraTS case folders: one scan per case, one file per modality.

2018 to 2021 ``ID/ID_{t1,t1ce,t2,flair,seg}.nii[.gz]``, from 2023 on
``ID/ID-{t1n,t1c,t2w,t2f,seg}.nii.gz``. Names only; nothing is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..preprocessing import Preprocessing
from .modalities import Layout, below, canonical_modality, choose_by_name, folder_name, is_nifti
from .source import ScanSource

# "t1gd" is no name of the challenge, but of collections that follow it otherwise.
_FILE = re.compile(
    r"(?P<case>.+)[_-](?P<part>t1|t1ce|t2|flair|t1n|t1c|t1gd|t2w|t2f|seg)\.nii(?:\.gz)?",
    re.IGNORECASE,
)
_ORDER = ("t1", "t1ce", "t2", "flair")


@dataclass
class _Case:
    """The files of one case; `folder` is None where it shares its folder with others."""

    folder: Path | None
    key: str
    modalities: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    segmentations: list[Path] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of its results: its path, which never is a dot."""
        return folder_name(self.folder) if self.folder and self.key == "." else self.key

    def add(self, part: str, file: Path) -> None:
        if part.lower() == "seg":
            self.segmentations.append(file)
        else:
            self.modalities[canonical_modality(part)].append(file)


def recognise(root: Path, files: Sequence[Path], preprocessing: Preprocessing) -> bool:
    """Whether there is a folder whose files are called like itself and a modality of BraTS.

    `root` may have any name where it holds nothing but one case of at least two modalities, since a
    case that was sent or mounted lies in a folder called otherwise.
    """
    return bool(_case_folders(root, files))


def find(root: Path, files: Sequence[Path], preprocessing: Preprocessing) -> Layout:
    """Find BraTS cases.

    Where `recognise` says no, whoever calls this knows better: then all files with such names are
    taken, also many cases in one folder.

    Parameters
    ----------
    root : Path
        Where keys and names begin. It may be a case itself.
    files : sequence of Path
        All files below it, sorted.
    preprocessing : Preprocessing
        The model's intended input.
    """
    cases = _case_folders(root, files) or _loose_cases(root, files)
    folders = {case.folder for case in cases}
    claimed = {file for file in files if file.parent in folders}
    for case in cases:
        claimed.update(case.segmentations, *case.modalities.values())
    sources = sorted((_source(case, preprocessing) for case in cases), key=lambda s: s.key)
    return Layout(tuple(sources), frozenset(claimed))


def _source(case: _Case, preprocessing: Preprocessing) -> ScanSource:
    there = {name: case.modalities[name] for name in _ORDER if name in case.modalities}
    choice = choose_by_name(there, preprocessing)
    return ScanSource(
        key=case.key,
        name=case.name,
        format="brats",
        files=choice.files,
        modalities=choice.modalities,
        problem=choice.problem,
        summary=f"BraTS case: {', '.join(there) or 'no modality'}",
    )


def _case_folders(root: Path, files: Sequence[Path]) -> list[_Case]:
    """Cases that have a folder of their own."""
    cases: dict[Path, _Case] = {}
    for file in files:
        match = _FILE.fullmatch(file.name)
        if match and match["case"] == folder_name(file.parent):
            key = below(file.parent, root)
            case = cases.setdefault(file.parent, _Case(file.parent, key))
            case.add(match["part"], file)
    if root not in cases:
        cases.update(_only_case(root, files))
    # A folder of the same name may lie in it, and keys are unique.
    if root in cases and root / cases[root].key in cases:
        cases[root].key = "."
    return list(cases.values())


def _only_case(root: Path, files: Sequence[Path]) -> dict[Path, _Case]:
    """`root` as a case, if all its images belong to one; empty otherwise."""
    case = _Case(root, below(root, root))
    names = set()
    for file in files:
        if file.parent == root and is_nifti(file):
            match = _FILE.fullmatch(file.name)
            if not match:
                return {}
            names.add(match["case"])
            case.add(match["part"], file)
    return {root: case} if len(names) == 1 and len(case.modalities) > 1 else {}


def _loose_cases(root: Path, files: Sequence[Path]) -> list[_Case]:
    """Cases by their names alone, whatever their folders are called."""
    cases: dict[str, _Case] = {}
    for file in files:
        match = _FILE.fullmatch(file.name)
        if match:
            key = below(file.with_name(match["case"]), root)
            cases.setdefault(key, _Case(None, key)).add(match["part"], file)
    return list(cases.values())
