"""Names of modalities, and the choice of a scan's files by them: what the folder layouts share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..preprocessing import Preprocessing
from .source import FileRef, ScanSource

_SYNONYMS = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "t2flair"),
}
MR_CONTRASTS = tuple(_SYNONYMS)
_CANONICAL = {name: canonical for canonical, names in _SYNONYMS.items() for name in names}

# Names that a message lists before it only counts.
_LISTED = 6


@dataclass(frozen=True)
class Layout:
    """What one layout found in a folder.

    Attributes
    ----------
    sources : tuple of ScanSource
        Its scans, sorted by key; those with a `problem` cannot be used.
    claimed : frozenset of Path
        The files that belong to it, also those that are no input (segmentations, sidecars, labels):
        nobody else may take them for scans.
    """

    sources: tuple[ScanSource, ...]
    claimed: frozenset[Path]


@dataclass(frozen=True)
class Choice:
    """The files of one scan.

    Attributes
    ----------
    files : tuple of FileRef
        One for each channel, in the model's order; all there are where there is a problem.
    modalities : tuple of str
        The model's names of what they hold; empty where there is a problem.
    problem : str
        Why there is no such choice; empty where there is.
    """

    files: tuple[FileRef, ...]
    modalities: tuple[str, ...] = ()
    problem: str = ""


def canonical_modality(name: str) -> str:
    """Return "t1", "t1ce", "t2" or "flair" for their many names; another name as it is.

    Upper and lower case, dashes, underscores and spaces make no difference: "T2-FLAIR" is "flair".
    """
    folded = name.casefold()
    for mark in "-_ ":
        folded = folded.replace(mark, "")
    return _CANONICAL.get(folded, name)


def choose_by_name(there: Mapping[str, Sequence[Path]], preprocessing: Preprocessing) -> Choice:
    """Choose the files of a scan whose modalities are known.

    Parameters
    ----------
    there : mapping of str to sequence of Path
        The files of each modality, by its canonical name.
    preprocessing : Preprocessing
        The model's intended input.
    """
    wanted = [canonical_modality(name) for name in preprocessing.modalities]
    if len(set(wanted)) < len(wanted):
        return refused(
            there,
            f"the model's channels ({', '.join(preprocessing.modalities)}) cannot be told apart by "
            "modality; give it one file that holds all channels",
        )
    return choose([there.get(name, ()) for name in wanted], there, preprocessing)


def choose(
    candidates: Sequence[Sequence[Path]],
    there: Mapping[str, Sequence[Path]],
    preprocessing: Preprocessing,
) -> Choice:
    """Choose the files of a scan.

    Parameters
    ----------
    candidates : sequence of sequence of Path
        The files each of the model's channels could be read from. There has to be one.
    there : mapping of str to sequence of Path
        What the scan has at all, under the names that messages use.
    preprocessing : Preprocessing
        The model's intended input.
    """
    named = list(zip(preprocessing.modalities, candidates, strict=True))
    missing = [name for name, files in named if not files]
    if missing:
        return refused(
            there,
            f"{', '.join(missing)} missing: got {listed(there) or 'no modality known here'}; "
            f"the model takes {', '.join(preprocessing.modalities)}. Add what is missing, or "
            "choose a model for what is there",
        )
    several = [f"{name}: {_names(files)}" for name, files in named if len(files) > 1]
    if several:
        return refused(
            there,
            f"more than one file for {'; '.join(several)}; the model takes one each. Leave only "
            "the one that is meant",
        )
    chosen = [files[0] for files in candidates]
    broken = [file for file in chosen if file.is_symlink() and not file.exists()]
    if broken:
        return refused(
            there,
            f"broken link: {_names(broken)} points to a file that is not there; fetch the content "
            "(datalad get, git annex get) or repair the link",
        )
    return Choice(tuple(FileRef(file) for file in chosen), preprocessing.modalities)


def listed(names: Iterable[str]) -> str:
    """Join names for a message that does not grow without end."""
    shown = list(names)
    more = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def refused(there: Mapping[str, Sequence[Path]], problem: str) -> Choice:
    """Return a choice of all that is there, with the reason why none of it is taken."""
    files = sorted({file for group in there.values() for file in group})
    return Choice(tuple(FileRef(file) for file in files), problem=problem)


def _names(files: Sequence[Path]) -> str:
    """Names of files for a message, without their folders."""
    return listed(file.name for file in files)


def is_nifti(file: Path) -> bool:
    """Whether a file is called .nii or .nii.gz, in upper or lower case."""
    return file.name.lower().endswith((".nii", ".nii.gz"))


def below(file: Path, root: Path) -> str:
    """Path of a file or folder below `root` in POSIX form; for `root` itself its folder's name."""
    return folder_name(root) if file == root else file.relative_to(root).as_posix()


def folder_name(folder: Path) -> str:
    """Name of a folder, also where its path ends in dots; never empty, never dots."""
    return os.path.basename(os.path.abspath(folder)) or "scan"
