"""nnU-Net channel files: ``CASE_0000.nii.gz``, ``CASE_0001.nii.gz``, ... are one scan.

Which modality a channel number stands for is said by ``dataset.json``; without it the order of the
model holds. Only that file is read.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..preprocessing import Preprocessing
from .modalities import (
    Choice,
    Layout,
    below,
    canonical_modality,
    choose,
    choose_by_name,
    folder_name,
    listed,
    refused,
)
from .source import FileRef, ScanSource

_FILE = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})\.nii(?:\.gz)?", re.IGNORECASE)
_IMAGES = ("imagestr", "imagests", "imagesval")
_LABELS = ("labelstr", "labelsts", "labelsval")
_DATASET = "dataset.json"
_MAX_JSON_BYTES = 2**24
# Names come into messages and tables, so there are limits to what they may be.
_NAME = re.compile(r"[\w +./()-]{0,40}")
# What stands where a name should: they choose a normalisation, or say nothing.
_NO_MODALITY = re.compile(
    r"|mri?|nonorm|zscore|rescale_to_0_1|rgb_to_0_1|(channel|modality)?[ _]?[0-9]+", re.IGNORECASE
)

Channels = Mapping[int, Sequence[Path]]


@dataclass(frozen=True)
class _Dataset:
    """What ``dataset.json`` says of the channels; empty where it says nothing."""

    names: Mapping[int, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def names_modalities(self) -> bool:
        return any(not _NO_MODALITY.fullmatch(name) for name in self.names.values())


@dataclass(frozen=True)
class _Folder:
    """A folder with channel files: its cases by name, and its ``dataset.json``."""

    path: Path
    cases: Mapping[str, Channels]
    dataset: _Dataset

    def is_nnunet(self, preprocessing: Preprocessing) -> bool:
        """Whether the numbers are channels, and do not just count images."""
        numbers = [set(case) for case in self.cases.values()]
        complete = [set(range(len(case))) == case for case in numbers]
        fitting = [len(case) == preprocessing.channels for case in numbers]
        if count := len(self.dataset.names):
            every = set(range(count))
            return every in numbers or (count > 1 and all(case <= every for case in numbers))
        if folder_name(self.path).lower() in _IMAGES:
            # One whole case of the model's size is enough, so that broken ones are told of.
            return all(complete) or any(map(all, zip(complete, fitting, strict=True)))
        return all(complete) and all(fitting)


def recognise(root: Path, files: Sequence[Path], preprocessing: Preprocessing) -> bool:
    """Whether there are channel files, or labels beside images.

    ``scan_0001.nii.gz``, ``scan_0002.nii.gz`` may as well be images that were counted. Numbers are
    taken for channels where ``dataset.json`` names as many, in a folder ``imagesTr``, ``imagesTs``
    or ``imagesVal`` with whole cases, and elsewhere if every case is whole, from 0000 on, and has
    as many channels as the model.
    """
    folders = _folders(root, files)
    return any(folder.is_nnunet(preprocessing) for folder in folders) or bool(_labels(root, files))


def find(root: Path, files: Sequence[Path], preprocessing: Preprocessing) -> Layout:
    """Find cases of channel files.

    Where `recognise` says no, whoever calls this knows better: then all files with such names are
    taken for channels. Labels are claimed, so that nobody takes them for images.

    Parameters
    ----------
    root : Path
        Where keys and names begin.
    files : sequence of Path
        All files below it, sorted.
    preprocessing : Preprocessing
        The model's intended input.
    """
    folders, claimed = _folders(root, files), _labels(root, files)
    chosen = [folder for folder in folders if folder.is_nnunet(preprocessing)]
    if not chosen and not claimed:
        chosen = folders
    descriptions = {file for file in files if file.name == _DATASET}
    sources = []
    for folder in chosen:
        claimed |= descriptions & {folder.path / _DATASET, folder.path.parent / _DATASET}
        for case, channels in folder.cases.items():
            claimed.update(*channels.values())
            sources.append(_source(root, folder, case, channels, preprocessing))
    return Layout(tuple(sorted(sources, key=lambda source: source.key)), frozenset(claimed))


def _source(
    root: Path, folder: _Folder, case: str, channels: Channels, preprocessing: Preprocessing
) -> ScanSource:
    key = below(folder.path / case, root)
    choice = _choose(channels, folder.dataset, preprocessing)
    return ScanSource(
        key=key,
        name=key,
        format="nnunet",
        files=choice.files,
        modalities=choice.modalities,
        problem=choice.problem,
        summary=f"nnU-Net case: {listed(_there(channels, folder.dataset))}",
    )


def _choose(channels: Channels, dataset: _Dataset, preprocessing: Preprocessing) -> Choice:
    there = _there(channels, dataset)
    if dataset.problem:
        return refused(there, dataset.problem)
    if dataset.names_modalities:
        return choose_by_name(there, preprocessing)
    if len(channels) > preprocessing.channels:
        return refused(
            there,
            f"got channels {listed(there)}; the model takes {preprocessing.channels} "
            f"({', '.join(preprocessing.modalities)}). Say which is which in {_DATASET}: "
            '"channel_names": {"0": "..."}',
        )
    order = [channels.get(number, ()) for number in range(preprocessing.channels)]
    return choose(order, there, preprocessing)


def _there(channels: Channels, dataset: _Dataset) -> dict[str, list[Path]]:
    """Files by what they are called: their modality where `dataset` names it, else their number."""
    there: dict[str, list[Path]] = defaultdict(list)
    for number, files in sorted(channels.items()):
        named = dataset.names_modalities and number in dataset.names
        name = canonical_modality(dataset.names[number]) if named else f"{number:04d}"
        there[name] += files
    return dict(there)


def _folders(root: Path, files: Sequence[Path]) -> list[_Folder]:
    grouped: dict[Path, dict[str, dict[int, list[Path]]]] = {}
    for file in files:
        if match := _FILE.fullmatch(file.name):
            case = grouped.setdefault(file.parent, {}).setdefault(match["case"], defaultdict(list))
            case[int(match["channel"])].append(file)
    return [_Folder(path, cases, _dataset(path, root)) for path, cases in grouped.items()]


def _labels(root: Path, files: Sequence[Path]) -> set[Path]:
    """Files of ``labelsTr`` and the like that lie beside a folder of images."""
    holding = {file.parent for file in files}
    inside = [
        (folder, inner)
        for inner in holding
        for folder in (inner, *inner.parents)
        if root in folder.parents
    ]
    images = {folder.parent for folder, _ in inside if folder.name.lower() in _IMAGES}
    labels = {
        inner
        for folder, inner in inside
        if folder.name.lower() in _LABELS and folder.parent in images
    }
    return {file for file in files if file.parent in labels}


def _dataset(folder: Path, root: Path) -> _Dataset:
    """Read the ``dataset.json`` of a folder of images: in it, or beside it."""
    places = [folder]
    # Above what was given only where the layout says that it belongs there.
    if folder != root or folder_name(folder).lower() in _IMAGES:
        places.append(Path(folder, "..") if folder == root else folder.parent)
    for place in places:
        if (place / _DATASET).is_file():
            dataset = _read(place / _DATASET)
            if dataset.names or dataset.problem:
                return dataset
    return _Dataset()


def _read(path: Path) -> _Dataset:
    try:
        content = json.loads(FileRef(path).read(_MAX_JSON_BYTES))
    except (InputError, ValueError, RecursionError) as error:
        return _Dataset(problem=f"{_DATASET} cannot be read: {error}. Repair or remove it")
    if not isinstance(content, dict):
        return _Dataset()
    # Version 2 of nnU-Net and version 1. Others write a "modality" as well, but in one word.
    for key in ("channel_names", "modality"):
        if not isinstance(content.get(key, ""), str):
            return _names(key, content[key])
    return _Dataset()


def _names(key: str, value: Any) -> _Dataset:
    if isinstance(value, list):
        value = {str(number): name for number, name in enumerate(value)}
    if isinstance(value, dict) and all(
        re.fullmatch("[0-9]{1,4}", number) and isinstance(name, str) and _NAME.fullmatch(name)
        for number, name in value.items()
    ):
        return _Dataset({int(number): name for number, name in value.items()})
    return _Dataset(
        problem=f"'{key}' in {_DATASET} is not as nnU-Net writes it; expected channel numbers and "
        'names, like {"0": "T1", "1": "FLAIR"}'
    )
