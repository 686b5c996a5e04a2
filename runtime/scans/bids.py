"""BIDS datasets: ``sub-X[/ses-Y]/anat/*_{T1w,T2w,FLAIR}.nii[.gz]``.

A T1w image with the entity ``ce`` was taken with a contrast agent: t1ce. Names decide; of files
only ``dataset_description.json`` is read, for its DatasetType.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..preprocessing import Preprocessing
from .modalities import (
    Choice,
    Layout,
    below,
    canonical_modality,
    choose,
    choose_by_name,
    is_nifti,
    listed,
    refused,
)
from .source import FileRef, ScanSource

Entities = tuple[tuple[str, str], ...]

_ENTITY = re.compile(r"(?P<key>[a-zA-Z]+)-(?P<label>[0-9a-zA-Z+]+)")
_SUFFIX = re.compile(r"[0-9a-zA-Z]+")
_EXTENSION = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_MODALITIES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair"}
_DESCRIPTION = "dataset_description.json"
_MAX_JSON_BYTES = 2**22
# Folders beside the subjects that belong to the dataset and hold no raw images.
_BESIDE = ("derivatives", "sourcedata", "code", "stimuli", "phenotype")
# Never inputs, even if the dataset they belong to is not there.
_SET_APART = ("derivatives", "sourcedata")


def parse_name(name: str) -> Entities:
    """Return the entities of a file name in their order, and its suffix last.

    ``sub-01_ses-1_T1w.nii.gz`` has ``(("sub", "01"), ("ses", "1"), ("suffix", "T1w"))``.

    Raises
    ------
    InputError
        If the name is not made as BIDS says.
    """
    *pairs, suffix = name.split(".", 1)[0].split("_")
    matches = [_ENTITY.fullmatch(pair) for pair in pairs]
    entities = [(match["key"], match["label"]) for match in matches if match]
    keys = [key for key, _ in entities]
    if (
        len(entities) < len(pairs)
        or len(set(keys)) < len(keys)
        or keys[:1] != ["sub"]
        or "ses" in keys[2:]
        or "suffix" in keys
        or not _SUFFIX.fullmatch(suffix)
    ):
        raise InputError(
            f"{name} is not named as BIDS says: sub-<label>[_ses-<label>][_<key>-<label>...]"
            "_<suffix>, labels of letters and digits; rename it"
        )
    return (*entities, ("suffix", suffix))


def recognise(root: Path, files: Sequence[Path], preprocessing: Preprocessing) -> bool:
    """Whether subjects' folders have a folder ``anat``, or lie beside a dataset's description."""
    dataset = _Dataset.look(root, files)
    return bool(dataset.images or dataset.described)


def find(root: Path, files: Sequence[Path], preprocessing: Preprocessing) -> Layout:
    """Find the images of BIDS datasets.

    A model of one modality takes each image of that modality as a scan. One of several takes one
    scan per session, or one per run where every modality has the same runs. A session whose
    ``anat`` lacks what the model takes is a scan with a problem. All else that belongs to the
    datasets is claimed and not used.

    Parameters
    ----------
    root : Path
        Where keys and names begin: a dataset, a folder that holds datasets, or a part of one.
    files : sequence of Path
        All files below it, sorted.
    preprocessing : Preprocessing
        The model's intended input.
    """
    dataset = _Dataset.look(root, files)
    sources = []
    for session in dataset.sessions():
        if preprocessing.channels == 1:
            choices = _one_by_one(session, preprocessing)
        else:
            choices = _together(session, preprocessing)
        sources += [_source(root, session, choice) for choice in choices]
    return Layout(tuple(sorted(sources, key=lambda source: source.key)), dataset.claimed())


@dataclass(frozen=True)
class _Image:
    """An image in a folder ``anat``.

    `base` is the folder of its dataset, which may lie above what was given; `session` are its
    folders below that: ``("sub-01", "ses-1")``. `modality` is the canonical one, or whatever else
    BIDS calls it. Where there is a `problem` with its name, there are no `entities`.
    """

    file: Path
    base: Path
    session: tuple[str, ...]
    modality: str
    entities: Entities = ()
    problem: str = ""

    @classmethod
    def at(cls, file: Path, place: Path) -> _Image | None:
        """`file`, whose absolute path is `place`, if it lies where BIDS puts anatomical images."""
        if place.parent.name != "anat" or not is_nifti(file):
            return None
        above = place.parents[1]
        if above.name.startswith("sub-"):
            folders: tuple[str, ...] = (above.name,)
        elif above.name.startswith("ses-") and above.parent.name.startswith("sub-"):
            folders = (above.parent.name, above.name)
        else:
            return None
        base = place.parents[1 + len(folders)]
        try:
            entities = parse_name(file.name)
        except InputError as error:
            suffix = _EXTENSION.sub("", file.name).split("_")[-1]
            return cls(file, base, folders, _MODALITIES.get(suffix, suffix), problem=str(error))
        named = tuple(f"{key}-{label}" for key, label in entities if key in ("sub", "ses"))
        if named != folders:
            problem = (
                f"{file.name} lies in a folder of another subject or session; move or rename it"
            )
            return cls(file, base, folders, _modality(entities), problem=problem)
        return cls(file, base, folders, _modality(entities), entities)

    @property
    def run(self) -> str:
        label = dict(self.entities).get("run", "")
        return str(int(label)) if label.isdecimal() else label


def _modality(entities: Entities) -> str:
    values = dict(entities)
    if values.get("part", "mag") != "mag":
        return f"{values['suffix']} part-{values['part']}"
    modality = _MODALITIES.get(values["suffix"], values["suffix"])
    return "t1ce" if modality == "t1" and "ce" in values else modality


@dataclass(frozen=True)
class _Dataset:
    """The BIDS datasets of a folder.

    Attributes
    ----------
    root : Path
        Absolute.
    places : mapping of Path to Path
        The absolute path of each file.
    images : sequence of _Image
        What lies in folders ``anat``, derived images too.
    described : set of Path
        Folders with a description and subjects, absolute.
    """

    root: Path
    places: Mapping[Path, Path]
    images: Sequence[_Image]
    described: frozenset[Path]

    @classmethod
    def look(cls, root: Path, files: Sequence[Path]) -> _Dataset:
        top = Path(os.path.abspath(root))
        places = {file: top / file.relative_to(root) for file in files}
        images = [_Image.at(file, place) for file, place in places.items()]
        holding = {place.parent for place in places.values()}
        folders = {folder for inner in holding for folder in (inner, *inner.parents)}
        with_subjects = {folder.parent for folder in folders if folder.name.startswith("sub-")}
        described = {place.parent for place in places.values() if place.name == _DESCRIPTION}
        return cls(
            top, places, [image for image in images if image], frozenset(described & with_subjects)
        )

    def sessions(self) -> Iterator[list[_Image]]:
        """The raw images, session by session."""
        bases = self._bases()
        nested = {base for base in bases if self._owned(base, bases)}
        derived = {base for base in self.described if base != self.root and _is_derived(base)}
        sessions: dict[tuple[Path, tuple[str, ...]], list[_Image]] = defaultdict(list)
        for image in self.images:
            if image.base not in nested | derived and not self._set_apart(
                self.places[image.file].parent
            ):
                sessions[image.base, image.session].append(image)
        yield from sessions.values()

    def claimed(self) -> frozenset[Path]:
        """All files that belong to a dataset."""
        bases = self._bases()
        if not bases:
            return frozenset()
        owned = {
            folder
            for folder in {place.parent for place in self.places.values()}
            if folder in self.described or self._owned(folder, bases) or self._set_apart(folder)
        }
        return frozenset(file for file, place in self.places.items() if place.parent in owned)

    def _bases(self) -> frozenset[Path]:
        return self.described | {image.base for image in self.images}

    def _owned(self, folder: Path, bases: frozenset[Path]) -> bool:
        """Whether a folder is part of a dataset around it."""
        for inner, outer in zip((folder, *folder.parents), folder.parents, strict=False):
            if outer in bases and (
                outer in self.described or inner.name.startswith("sub-") or inner.name in _BESIDE
            ):
                return True
        return False

    def _set_apart(self, folder: Path) -> bool:
        """Whether a folder holds what is never an input, whatever lies around it."""
        return not set(folder.relative_to(self.root).parts).isdisjoint(_SET_APART)


def _is_derived(base: Path) -> bool:
    """Whether a dataset says that it was made of another."""
    with contextlib.suppress(InputError, ValueError, RecursionError):
        content = json.loads(FileRef(base / _DESCRIPTION).read(_MAX_JSON_BYTES))
        return isinstance(content, dict) and content.get("DatasetType") == "derivative"
    return False


def _one_by_one(session: Sequence[_Image], preprocessing: Preprocessing) -> list[Choice]:
    """Every image of the model's modality, or why there is none."""
    wanted = canonical_modality(preprocessing.modalities[0])
    alike: dict[object, list[Path]] = defaultdict(list)
    choices = []
    for image in session:
        if image.modality == wanted and image.problem:
            choices.append(refused({wanted: [image.file]}, image.problem))
        elif image.modality == wanted:
            alike[image.entities].append(image.file)
    choices += [choose([files], {wanted: files}, preprocessing) for files in alike.values()]
    return choices or [choose_by_name(_by_modality(session), preprocessing)]


def _together(session: Sequence[_Image], preprocessing: Preprocessing) -> list[Choice]:
    """One image of each of the model's modalities, for every run if they have the same runs."""
    wanted = {canonical_modality(name) for name in preprocessing.modalities}
    images = [image for image in session if image.modality in wanted]
    problems = [image.problem for image in images if image.problem]
    if problems:
        return [refused(_by_modality(session), "; ".join(problems[:2]))]
    runs: dict[str, set[str]] = defaultdict(set)
    for image in images:
        runs[image.modality].add(image.run)
    shared = set.union(*runs.values()) if runs else set()
    if len(runs) == len(wanted) and all(shared == own for own in runs.values()):
        groups = [[image for image in images if image.run == run] for run in sorted(shared)]
        return [choose_by_name(_by_modality(group), preprocessing) for group in groups]
    return [choose_by_name(_by_modality(session), preprocessing)]


def _by_modality(session: Sequence[_Image]) -> dict[str, list[Path]]:
    there: dict[str, list[Path]] = defaultdict(list)
    for image in session:
        there[image.modality].append(image.file)
    return dict(there)


def _source(root: Path, session: Sequence[_Image], choice: Choice) -> ScanSource:
    images = {image.file: image for image in session}
    held = [images[file.path] for file in choice.files]
    key = below(held[0].file, root)
    modalities = dict.fromkeys(image.modality for image in held)
    return ScanSource(
        key=key,
        name=_EXTENSION.sub("", key),
        format="bids",
        files=choice.files,
        modalities=choice.modalities,
        entities=held[0].entities,
        problem=choice.problem,
        summary=f"BIDS {'session' if len(held) > 1 else 'image'}: {listed(modalities)}",
    )
