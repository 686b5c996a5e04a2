"""How the results of a scan are called in a BIDS derivative dataset.

Names are made of entities: pairs such as ``sub-01`` or ``run-2``, in the order of the standard.
Two scans never share one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..scans import ScanSource
from ..scans.bids import parse_name
from ..scans.modalities import canonical_modality

FOLDER = "bids"

# Suffix of each contrast: those with many names, and what else the standard knows.
SUFFIXES = {
    "t1": "T1w",
    "t1ce": "T1w",
    "t2": "T2w",
    "flair": "FLAIR",
    "pdw": "PDw",
    "t2starw": "T2starw",
    "angio": "angio",
}

Entities = dict[str, str]

# What the standard allows in the name of a derived anatomical image, in its order.
_ORDER = tuple("sub ses task acq ce rec run echo part space chunk res desc".split())
_AGENT = "gadolinium"
_LONGEST_LABEL = 40
_HASHED = re.compile(r"x[0-9a-f]{8}$")


def contrast_of(modality: str) -> str:
    """Return the key into `SUFFIXES` of a modality; one that is not in there is unknown."""
    return canonical_modality(modality).casefold()


def contrasts_of(modalities: Sequence[str]) -> list[str]:
    """Return the key into `SUFFIXES` of each of a model's modalities.

    Raises
    ------
    InputError
        If the standard has no suffix for one, or two would have the same name.
    """
    contrasts = [contrast_of(name) for name in modalities]
    unknown = [
        n for n, contrast in zip(modalities, contrasts, strict=True) if contrast not in SUFFIXES
    ]
    if unknown:
        raise InputError(
            f"BIDS has no suffix for images of '{unknown[0]}'; known: {', '.join(SUFFIXES)}. Leave "
            "bids out of the output types"
        )
    if len(set(contrasts)) < len(contrasts):
        raise InputError(
            f"the model's channels ({', '.join(modalities)}) would have the same names in BIDS, "
            "expected one of each contrast. Leave bids out of the output types"
        )
    return contrasts


@dataclass(frozen=True)
class Names:
    """The names of one scan's results.

    Attributes
    ----------
    folder : str
        The dataset they belong to, below the output folder.
    shared : dict of str to str
        Entities that all the scan's images have, and its run.
    own : tuple of dict
        Entities of each image, in the order of the model's channels; empty outside BIDS.
    """

    folder: str
    shared: Entities
    own: tuple[Entities, ...] = ()

    @classmethod
    def of(cls, source: ScanSource) -> Names:
        """Name the results of a scan."""
        if not source.entities:
            return cls(FOLDER, {"sub": _label(source)})
        parsed = [source.entities]
        if not source.problem:
            parsed = [parse_name(file.path.name) for file in source.files]
        own = tuple(_kept(dict(entities), source.key) for entities in parsed)
        # Runs are the same, though they may be written 1 and 01.
        shared = {
            name: label
            for name, label in own[0].items()
            if name == "run" or all(other.get(name) == label for other in own)
        }
        below = "/" + cls.below_dataset(source, 0)
        nested = source.key.removesuffix(below) if source.key.endswith(below) else ""
        return cls(f"{FOLDER}/{nested}" if nested else FOLDER, shared, own)

    @staticmethod
    def below_dataset(source: ScanSource, index: int) -> str:
        """Path of a file of a BIDS dataset inside it: ``sub-01/anat/sub-01_T1w.nii.gz``."""
        parts = Path(os.path.abspath(source.files[index].path)).parts
        return PurePosixPath(*parts[-_depth(source) :]).as_posix()

    @staticmethod
    def dataset(source: ScanSource) -> Path:
        """Folder of the BIDS dataset a scan belongs to, absolute."""
        return Path(os.path.abspath(source.files[0].path)).parents[_depth(source) - 1]

    def path(self, entities: Entities, what: str, suffix: str) -> str:
        """Path below the output folder of an image that is described as `what`."""
        before = entities.get("desc", "")
        named = {**entities, "desc": before + what.capitalize() if before else what}
        folders = [f"{name}-{named[name]}" for name in ("sub", "ses") if name in named]
        parts = [f"{name}-{named[name]}" for name in _ORDER if name in named]
        return "/".join([self.folder, *folders, "anat", "_".join([*parts, suffix]) + ".nii.gz"])

    def anomaly(self, contrast: str) -> tuple[str, Entities]:
        """Path and entities of the anomaly map, which is called after the first contrast."""
        entities = self._contrasted(self.shared, 0, contrast)
        return self.path(entities, "anomaly", SUFFIXES[contrast]), entities

    def healthy(self, channel: int, contrast: str) -> tuple[str, Entities]:
        """Path and entities of the reconstruction of one channel."""
        own = self._of_image(channel) or self.shared
        entities = self._contrasted(own, channel, contrast)
        return self.path(entities, "healthy", SUFFIXES[contrast]), entities

    def _contrasted(self, entities: Entities, channel: int, contrast: str) -> Entities:
        if contrast != "t1ce" or "ce" in entities:
            return entities
        return {**entities, "ce": self._of_image(channel).get("ce", _AGENT)}

    def _of_image(self, channel: int) -> Entities:
        return self.own[channel] if channel < len(self.own) else {}


def _depth(source: ScanSource) -> int:
    """Number of names in a file's path below its dataset."""
    return 4 if "ses" in dict(source.entities) else 3


def _kept(entities: Entities, key: str) -> Entities:
    """Leave out what no derivative may be called; its place takes a hash before the description."""
    kept = {name: label for name, label in entities.items() if name in _ORDER}
    if set(entities) - set(_ORDER) - {"suffix"}:
        kept["desc"] = kept.get("desc", "") + _hash(key)
    return kept


def _label(source: ScanSource) -> str:
    """Name a subject after a scan: letters and digits only; a hash tells apart what that joins."""
    plain = re.sub(r"[^A-Za-z0-9]", "", source.name)[:_LONGEST_LABEL]
    if plain == source.name and not _HASHED.search(plain):
        return plain
    return plain + _hash(source.key)


def _hash(key: str) -> str:
    return "x" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
