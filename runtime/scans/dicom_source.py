"""DICOM series as scans: which of them fit the model, and how they are read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..preprocessing import Preprocessing
from .channels import on_grid, resampled_note
from .dicom import DicomImage, read_series
from .dicom_series import DicomSeries, expand, find_series
from .geometry import FloatArray, Grid, cut_channels, voxel_volume
from .modalities import MR_CONTRASTS, canonical_modality
from .nifti import check_width
from .scan import Scan, image_ids, little_endian
from .source import FileRef, ScanSource, combined_digest

# Frames as stored: rows and columns of the pixel matrix, one frame after another.
_AS_STORED = np.array([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]])


def dicom_sources(
    files: Sequence[Path], preprocessing: Preprocessing, forced: bool
) -> tuple[list[ScanSource], list[tuple[str, str]], set[Path]]:
    """Find the DICOM series among files, zip archives included.

    A model of one channel takes every series; one of several takes a study that has one series of
    each contrast, in one frame of reference.

    Parameters
    ----------
    files : sequence of Path
        Files that may be DICOM.
    preprocessing : Preprocessing
        Says which contrasts the model takes.
    forced : bool
        Take files without DICOM's preamble for DICOM too.

    Returns
    -------
    sources : list of ScanSource
    ignored : list of (str, str)
        DICOM that is no image, and what could not be read: name and reason.
    taken : set of Path
        Files that are accounted for.
    """
    refs: list[FileRef] = []
    ignored: list[tuple[str, str]] = []
    for file in files:
        if file.suffix.lower() == ".zip":
            try:
                refs += expand(FileRef(file))
            except InputError as error:
                ignored.append((file.name, str(error)))
        else:
            refs.append(FileRef(file))
    series, skipped = find_series(refs, force=forced)
    ignored += [(item.file.label, item.reason) for item in skipped if item.reason]
    taken = {file.path for one in series for file in one.files}
    taken |= {item.file.path for item in skipped if item.reason}
    taken |= {file for file in files if file.suffix.lower() == ".zip"}
    if preprocessing.channels == 1:
        return [_one_series(one, preprocessing) for one in series], ignored, taken
    return _studies(series, preprocessing), ignored, taken


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def _one_series(series: DicomSeries, preprocessing: Preprocessing) -> ScanSource:
    return ScanSource(
        key=f"dicom:{series.series_uid}",
        name=f"series-{series.series_number or 0:03d}-{_hash(series.series_uid)}",
        format="dicom",
        files=series.files,
        mismatch=_mismatch(series, preprocessing.modalities[0]),
        summary=series.summary,
    )


def _mismatch(series: DicomSeries, modality: str) -> str:
    """What the header says against the model's contrast; empty where it says nothing."""
    wanted = canonical_modality(modality)
    comparable = wanted in MR_CONTRASTS or wanted in ("ct", "oct")
    if series.contrast is None or not comparable or series.contrast == wanted:
        return ""
    return f"its header says {series.contrast}, and the model takes {modality}"


def _studies(series: Sequence[DicomSeries], preprocessing: Preprocessing) -> list[ScanSource]:
    """One scan per study and frame of reference, with one series of each contrast."""
    groups: defaultdict[tuple[str, str], list[DicomSeries]] = defaultdict(list)
    for one in series:
        groups[one.study_uid, one.frame_of_reference].append(one)
    sources = []
    for (study, frame), members in sorted(groups.items()):
        chosen, problem = _choose(members, preprocessing)
        identity = f"{study}/{frame}" if len({s for s, _ in groups}) < len(groups) else study
        sources.append(
            ScanSource(
                key=f"dicom:{identity}",
                name=f"study-{_hash(identity)}",
                format="dicom",
                files=tuple(file for one in chosen for file in one.files),
                modalities=tuple(
                    name
                    for name, one in zip(preprocessing.modalities, chosen, strict=False)
                    for _ in one.files
                ),
                problem=problem,
                summary=f"DICOM study: {len(members)} series",
            )
        )
    return sources


def _choose(
    members: Sequence[DicomSeries], preprocessing: Preprocessing
) -> tuple[list[DicomSeries], str]:
    """One series for each of the model's channels, or why there is none."""
    there = ", ".join(f"{one.series_number}: {one.contrast or 'unknown'}" for one in members)
    chosen = []
    for name in preprocessing.modalities:
        fitting = [one for one in members if one.contrast == canonical_modality(name)]
        if len(fitting) != 1:
            found = "no series" if not fitting else f"{len(fitting)} series"
            return [], (
                f"the study has {found} of contrast {name}; the model takes one each of "
                f"{', '.join(preprocessing.modalities)}. Series by number: {there}. Give a study "
                "with one of each, or convert the right ones to NIfTI"
            )
        chosen += fitting
    return chosen, ""


def read_dicom(source: ScanSource, preprocessing: Preprocessing) -> Scan:
    """Read a series, or the series of a study that are the model's channels.

    Raises
    ------
    InputError
        If a rule of DICOM geometry is broken; see `read_series`.
    """
    images = [read_series(files) for files in _by_channel(source)]
    first = images[0]
    notes = tuple(note for image in images for note in image.notes)
    doubts = tuple(doubt for image in images for doubt in image.doubts)
    shape = first.values.shape
    if first.kind == "frames":
        slices = np.ascontiguousarray(first.values.transpose(2, 1, 0))[:, None]
        grid = Grid("volume", shape, first.affine, _AS_STORED)
        spacing: tuple[float, float] | None = first.spacing
    else:
        slices, grid, spacing, moved = _volume(images, source, preprocessing)
        notes += moved
    check_width(slices.shape[2:], "volume", shape)
    return Scan(
        source=source,
        kind=first.kind,
        slices=slices,
        spacing=spacing,
        voxel_mm3=voxel_volume(first.affine) if first.kind == "volume" else None,
        image_ids=image_ids(
            (little_endian(image.stored).tobytes(order="F") for image in images), len(slices)
        ),
        sha256=combined_digest([digest for image in images for digest in image.digests]),
        grid=grid,
        notes=notes,
        doubts=doubts,
        origin=first.origin,
    )


def _by_channel(source: ScanSource) -> list[tuple[FileRef, ...]]:
    """Files of each channel, in the model's order."""
    if not source.modalities:
        return [source.files]
    pairs = list(zip(source.modalities, source.files, strict=True))
    return [
        tuple(file for name, file in pairs if name == wanted)
        for wanted in dict.fromkeys(source.modalities)
    ]


def _volume(
    images: Sequence[DicomImage], source: ScanSource, preprocessing: Preprocessing
) -> tuple[FloatArray, Grid, tuple[float, float], tuple[str, ...]]:
    """Slices of all channels on the first one's grid; which of them had to be resampled."""
    first = images[0]
    shape = first.values.shape
    names = list(dict.fromkeys(source.modalities))
    channels = []
    notes = []
    for number, image in enumerate(images):
        values, moved = on_grid(image.values, image.affine, first.affine, shape)
        channels.append(values)
        if moved:
            notes.append(resampled_note(names[number], names[0]))
    slices, spacing, to_file = cut_channels(channels, first.affine, preprocessing.orientation)
    return slices, Grid("volume", shape, first.affine, to_file), spacing, tuple(notes)
