"""Results as a BIDS derivative dataset.

Of a scan that came from a BIDS dataset, results keep its entities; of any other, the subject is
named after the scan. The anomaly map and the reconstruction take the suffix of their contrast with
``desc-anomaly`` and ``desc-healthy``; the mask is ``desc-anomaly_mask``, the flip map, a
probability, ``desc-flips_probseg``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import threading
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_atomic
from ..provenance import NOTICE, Provenance
from ..scans import ScanSource
from ..scans.modalities import canonical_modality
from .nifti import PARTS, write_nifti

if TYPE_CHECKING:
    from ..scan_job import ScanJob

FOLDER = "bids"
BIDS_VERSION = "1.10.0"

Entities = dict[str, str]

# Order of the entities in a file name, as the specification has it.
_ORDER = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "desc")
_SUFFIXES = {"t1": "T1w", "t1ce": "T1w", "t2": "T2w", "flair": "FLAIR"}
_AGENT = "gadolinium"
_LINK = "raw"
_describing = threading.Lock()


def files(source: ScanSource) -> list[str]:
    """Every path that a scan's results may have; sidecars lie beside each."""
    base = _entities(source)
    names = [
        _path(_with(base, desc="anomaly"), "mask"),
        _path(_with(base, desc="flips"), "probseg"),
    ]
    for contrast in _SUFFIXES:
        own = _of_contrast(base, contrast)
        names += [_path(_with(own, desc=d), _SUFFIXES[contrast]) for d in ("anomaly", "healthy")]
    return [end for name in names for end in (name, _sidecar_of(name))]


def write(folder: Path, job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance) -> list[str]:
    """Write the maps of a scan on its own grid, and describe the dataset where nobody has yet.

    Returns
    -------
    list of str
        What was written for the scan, below `folder`.

    Raises
    ------
    InputError
        If BIDS has no suffix for the model's contrasts.
    """
    source, grid = job.scan.source, job.scan.grid
    contrasts = [_contrast(name) for name in job.preprocessing.modalities]
    base = _entities(source)
    main = _of_contrast(base, contrasts[0]), _SUFFIXES[contrasts[0]]
    maps: list[tuple[Entities, str, str, NDArray[Any]]] = [
        (_with(main[0], desc="anomaly"), main[1], "anomaly", job.anomaly),
        (_with(base, desc="flips"), "probseg", "flips", job.flips),
        (_with(base, desc="anomaly"), "mask", "mask", mask.astype(np.uint8)),
    ]
    for channel, contrast in enumerate(contrasts):
        entities = _with(_of_contrast(base, contrast), desc="healthy")
        values = job.reconstruction[:, channel]
        maps.append((entities, _SUFFIXES[contrast], "reconstruction", values))
    written = []
    for entities, suffix, part, values in maps:
        name = _path(entities, suffix)
        kind = np.uint8 if part == "mask" else np.float32
        stored = grid.arrange(values[:, None]).astype(kind)
        write_nifti(folder / name, stored, grid, f"berdiff {part}")
        write_atomic(folder / _sidecar_of(name), _sidecar(source, part, suffix, made_by))
        written += [name, _sidecar_of(name)]
    _describe(folder / FOLDER, source, made_by)
    return written


def _contrast(modality: str) -> str:
    contrast = canonical_modality(modality)
    if contrast not in _SUFFIXES:
        raise InputError(
            f"BIDS has no suffix for images of '{modality}'; known: {', '.join(_SUFFIXES)}. Leave "
            "bids out of the output types"
        )
    return contrast


def _entities(source: ScanSource) -> Entities:
    """Entities of a scan's results, without suffix, description and contrast agent."""
    if source.entities:
        own = {name: value for name, value in source.entities if name in _ORDER}
        if len(source.files) > 1:
            own.pop("ce", None)
        own.pop("desc", None)
        return own
    return {"sub": _label(source)}


def _label(source: ScanSource) -> str:
    """Name a subject after a scan: letters and digits only; a hash tells apart what that joins."""
    plain = re.sub(r"[^A-Za-z0-9]", "", source.name)[:40]
    if plain == source.name:
        return plain
    return plain + hashlib.sha256(source.key.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _of_contrast(base: Entities, contrast: str) -> Entities:
    if contrast == "t1ce" and "ce" not in base:
        return _with(base, ce=_AGENT)
    return base


def _with(base: Entities, **entities: str) -> Entities:
    return {**base, **entities}


def _path(entities: Entities, suffix: str) -> str:
    folders = [f"{name}-{entities[name]}" for name in ("sub", "ses") if name in entities]
    parts = [f"{name}-{entities[name]}" for name in _ORDER if name in entities]
    return "/".join([FOLDER, *folders, "anat", "_".join([*parts, suffix]) + ".nii.gz"])


def _sidecar_of(name: str) -> str:
    return name.removesuffix(".nii.gz") + ".json"


def _sidecar(source: ScanSource, part: str, suffix: str, made_by: Provenance) -> bytes:
    record: dict[str, Any] = {"Description": f"{PARTS[part]}. {NOTICE}"}
    if suffix not in ("mask", "probseg"):
        # Asked for by the standard. Nothing is stripped here; what the input was is not known.
        record["SkullStripped"] = False
    if suffix == "mask":
        record["Type"] = "Lesion"
    if source.entities:
        record["Sources"] = [f"bids:{_LINK}:{_below_dataset(source, i)}" for i in _files(source)]
    record["GeneratedBy"] = dataclasses.asdict(made_by)
    return (json.dumps(record, indent=2) + "\n").encode("ascii")


def _files(source: ScanSource) -> range:
    return range(len(source.files))


def _below_dataset(source: ScanSource, index: int) -> str:
    """Path of a file of a BIDS dataset, from its subject's folder on."""
    parts = source.files[index].path.parts
    subject = f"sub-{dict(source.entities)['sub']}"
    start = len(parts) - 1 - parts[::-1].index(subject) if subject in parts else len(parts) - 1
    return PurePosixPath(*parts[start:]).as_posix()


def _describe(folder: Path, source: ScanSource, made_by: Provenance) -> None:
    """Write what the dataset says of itself, once."""
    with _describing:
        if (folder / "dataset_description.json").exists():
            return
        record: dict[str, Any] = {
            "Name": f"Anomaly maps by {made_by.model}",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "berdiff",
                    "Version": made_by.software,
                    "Description": f"Masked Bernoulli diffusion. {NOTICE}",
                }
            ],
        }
        if source.entities:
            below = _below_dataset(source, 0)
            dataset = source.files[0].path.parents[len(PurePosixPath(below).parts) - 1]
            link = Path(os.path.relpath(dataset, folder)).as_posix()
            record["DatasetLinks"] = {_LINK: link}
            record["SourceDatasets"] = [{"URL": link}]
        write_atomic(folder / "README", _README.encode())
        text = json.dumps(record, indent=2) + "\n"
        write_atomic(folder / "dataset_description.json", text.encode("ascii"))


_README = f"""Anomaly maps made by berdiff: masked Bernoulli diffusion on images of one study.
{NOTICE}.

desc-anomaly    anomaly map, at least 0; larger is more anomalous
desc-healthy    the healthy counterpart the model saw, intensities normalised to [0, 1]
desc-flips      probability that the healthy code differs
desc-anomaly_mask    anomaly map above the threshold that its sidecar names
"""
