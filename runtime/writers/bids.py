"""Results as a BIDS derivative dataset.

Of a scan that came from a BIDS dataset, results keep its entities; of any other, the subject is
named after the scan. The anomaly map and the reconstruction take the suffix of their contrast with
``desc-anomaly`` and ``desc-healthy``; the mask is ``desc-anomaly_mask``, the flip map, a
probability, ``desc-flips_probseg``. Where the input has a ``desc`` of its own, it stays in front:
``desc-preprocAnomaly``.

Results lie in ``bids/``; those of a dataset that lies below the input, in a folder of its name in
there, so that subjects of two datasets stay apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from berdiff import __version__

from ..files import write_atomic
from ..provenance import NOTICE, Provenance
from ..scans import Grid, ScanSource
from .bids_names import FOLDER, SUFFIXES, Entities, Names, contrast_of, contrasts_of
from .nifti import PARTS, write_nifti

if TYPE_CHECKING:
    from ..scan_job import ScanJob

BIDS_VERSION = "1.10.0"

_DESCRIPTION = "dataset_description.json"
_IGNORED = ".bidsignore"
_LINK = "raw"
_LINKS = ("DatasetLinks", "SourceDatasets")


def files(source: ScanSource) -> list[str]:
    """Every path that a scan's results may have; sidecars lie beside each."""
    names = Names.of(source)
    # Outside BIDS, BraTS and nnU-Net, a source does not know what the model takes it for.
    known = [c for c in map(contrast_of, source.modalities) if c in SUFFIXES]
    images = [
        names.path(names.shared, "anomaly", "mask"),
        names.path(names.shared, "flips", "probseg"),
    ]
    for channel, contrast in enumerate(known or SUFFIXES):
        images += [names.anomaly(contrast)[0], names.healthy(channel, contrast)[0]]
    return [end for image in dict.fromkeys(images) for end in (image, _sidecar_of(image))]


def write(folder: Path, job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance) -> list[str]:
    """Write the maps of a scan on its own grid.

    Every image has three axes, as the standard wants it: axes of length 1 that the input has
    after them are left out, and an image of two axes gets a third.

    Returns
    -------
    list of str
        What was written for the scan, below `folder`.

    Raises
    ------
    InputError
        If BIDS has no suffix for the model's contrasts, or they cannot be told apart.
    """
    source, grid = job.scan.source, job.scan.grid
    contrasts = contrasts_of(job.preprocessing.modalities)
    names, written = Names.of(source), []
    for (image, entities), part, values in _maps(names, contrasts, job, mask):
        write_nifti(folder / image, _three_axes(grid, values), grid, f"berdiff {part}")
        record = _sidecar(source, part, entities, made_by)
        write_atomic(folder / _sidecar_of(image), _as_json(record))
        written += [image, _sidecar_of(image)]
    return written


def _maps(
    names: Names, contrasts: list[str], job: ScanJob, mask: NDArray[np.bool_]
) -> Iterator[tuple[tuple[str, Entities], str, NDArray[Any]]]:
    """Path with entities, part and values ``[S, H0, W0]`` of each image."""
    shared = names.shared
    yield names.anomaly(contrasts[0]), "anomaly", job.anomaly
    # Interpolation may exceed a probability by its rounding.
    flips = np.clip(job.flips, 0, 1)
    yield (names.path(shared, "flips", "probseg"), shared), "flips", flips
    yield (names.path(shared, "anomaly", "mask"), shared), "mask", mask.astype(np.uint8)
    for channel, contrast in enumerate(contrasts):
        yield names.healthy(channel, contrast), "reconstruction", job.reconstruction[:, channel]


def _three_axes(grid: Grid, values: NDArray[Any]) -> NDArray[Any]:
    stored = grid.arrange(values[:, None])
    image: NDArray[Any] = stored.reshape((*stored.shape, 1, 1)[:3])
    return image


def _sidecar_of(name: str) -> str:
    return name.removesuffix(".nii.gz") + ".json"


def _as_json(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode("ascii")


def _sidecar(
    source: ScanSource, part: str, entities: Entities, made_by: Provenance
) -> dict[str, Any]:
    record: dict[str, Any] = {"Description": f"{PARTS[part]}. {NOTICE}"}
    if part in ("anomaly", "reconstruction"):
        # The standard asks for an answer. This one is true of what was done here; whether the
        # input was stripped before, and whether the model expects it, nobody has said.
        record["SkullStripped"] = False
        record["Description"] += (
            ". SkullStripped: nothing was stripped here; what the input was is not known"
        )
        record["Units"] = "arbitrary"
    if part == "mask":
        record["Type"] = "Lesion"
    if source.entities:
        paths = (Names.below_dataset(source, index) for index in range(len(source.files)))
        record["Sources"] = [f"bids:{_LINK}:{path}" for path in paths]
        record["SpatialReference"] = record["Sources"][0]
    else:
        record["Input"] = source.key  # "Sources" would have to lie in a BIDS dataset
        record["SpatialReference"] = "orig"
    if "res" in entities:
        record["Resolution"] = f"That of the input, which calls it res-{entities['res']}"
    record["GeneratedBy"] = [_generated_by(made_by)]
    return record


def _generated_by(made_by: Provenance) -> dict[str, Any]:
    described = dict(vars(made_by))
    return {"Name": "berdiff", "Version": described.pop("software"), **described}


def describe(folder: Path, source: ScanSource, model: str) -> None:
    """Let the dataset that a scan's results are part of say what it is, unless it does already.

    Parameters
    ----------
    folder : Path
        The output folder.
    source : ScanSource
        The scan.
    model : str
        Name of the bundle.
    """
    names = Names.of(source)
    own = folder / names.folder
    record: dict[str, Any] = {
        "Name": f"Anomaly maps by {model}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "berdiff",
                "Version": __version__,
                "Description": f"Masked Bernoulli diffusion. {NOTICE}",
            }
        ],
    }
    if source.entities:
        link = _link(Names.dataset(source), own)
        record |= {"DatasetLinks": {_LINK: link}, "SourceDatasets": [{"URL": link}]}
    else:
        # Scans of a dataset may lie beside: what their sidecars refer to has to stay.
        there = _described(own / _DESCRIPTION)
        record |= {name: there[name] for name in _LINKS if name in there}
    _keep(own / "README", _README.encode("ascii"))
    _keep(own / _DESCRIPTION, _as_json(record))
    if names.folder != FOLDER:
        _set_apart(folder / FOLDER, names.folder.split("/")[1])


def _keep(path: Path, content: bytes) -> None:
    """Write a file, unless that is what it holds."""
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def _described(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _link(dataset: Path, folder: Path) -> str:
    """Where a dataset lies, seen from a folder, as a URI."""
    there, here = os.path.realpath(dataset), os.path.realpath(folder)
    try:
        return quote(Path(os.path.relpath(there, here)).as_posix())
    except ValueError:  # another drive
        return Path(there).as_uri()


def _set_apart(folder: Path, dataset: str) -> None:
    """Say that a folder beside the subjects is a dataset of its own."""
    special = r"\*?[]!# "
    line = "/" + "".join(f"\\{mark}" if mark in special else mark for mark in dataset)
    path = folder / _IGNORED
    lines = {line.encode("utf-8", "surrogateescape")}
    if path.is_file():
        lines |= set(path.read_bytes().splitlines())
    _keep(path, b"\n".join(sorted(lines)) + b"\n")


_README = f"""Anomaly maps made by berdiff: masked Bernoulli diffusion on images of one study.
{NOTICE}.

desc-anomaly         anomaly map, at least 0; larger is more anomalous
desc-healthy         the healthy counterpart the model saw, intensities normalised to [0, 1]
desc-flips           probability that the healthy code differs
desc-anomaly_mask    anomaly map above the threshold that its sidecar names

Where the image it was made of has a desc of its own, that stands first: desc-preprocAnomaly.
"""
