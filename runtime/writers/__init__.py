"""Writers: what a run found in a scan, in the formats its users read.

A writer is a module with ``files(source)``, every path it may write below the output folder, and
``write(folder, job, mask, made_by)``, which writes and returns the paths it wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..provenance import Provenance
    from ..scan_job import ScanJob
    from ..scans import ScanSource

OutputType = Literal["nifti", "bids", "dicom-seg", "dicom-pmap", "dicom-sc", "png"]
OUTPUT_TYPES: tuple[OutputType, ...] = get_args(OutputType)

# Top folders of everything that is written for a scan.
FOLDERS = ("maps", "slices", "bids", "dicom", "overlays", "volumes")


def types_for(source: ScanSource, types: tuple[OutputType, ...]) -> tuple[OutputType, ...]:
    """Output types of a scan: those asked for, or the one that is like the scan."""
    return types or (("png",) if source.format == "picture" else ("nifti",))


def check_types(
    source: ScanSource, types: tuple[OutputType, ...], modalities: tuple[str, ...]
) -> None:
    """Refuse types that cannot hold a scan's results, or those of the model.

    Raises
    ------
    InputError
        Naming type and scan.
    """
    if "bids" in types:
        from .bids_names import contrasts_of

        contrasts_of(modalities)
    for kind in types:
        if kind.startswith("dicom-") and source.format != "dicom":
            raise InputError(
                f"{kind} needs DICOM, whose patient and study the results belong to; "
                f"{source.key} is {source.format}. Leave {kind} out, or give DICOM only"
            )
        if kind == "bids" and source.format == "picture":
            raise InputError(
                f"BIDS knows no anatomical pictures; {source.key} is one. Leave bids out, or "
                "convert the pictures to NIfTI"
            )


def check_origin(job: ScanJob, types: tuple[OutputType, ...]) -> None:
    """Refuse a scan, before anything is computed, whose headers DICOM results could not refer to.

    Raises
    ------
    InputError
        Saying what is missing.
    """
    if any(kind.startswith("dicom-") for kind in types):
        from .dicom_planes import read_planes

        read_planes(job.scan.origin)


def planned_files(source: ScanSource, types: tuple[OutputType, ...]) -> list[str]:
    """Every path below the output folder that a scan's results may have."""
    names = [f"overlays/{source.name}.png", f"volumes/{source.name}.png"]
    for kind in types_for(source, types):
        names += _writer(kind).files(source)
    return names


def write_results_of(
    folder: Path,
    job: ScanJob,
    mask: NDArray[np.bool_],
    made_by: Provenance,
    types: tuple[OutputType, ...],
) -> list[str]:
    """Write maps and pictures of a scan, each file whole or not at all.

    Parameters
    ----------
    folder : Path
        The output folder.
    job : ScanJob
        The scan, every slice of it done.
    mask : ndarray of bool, shape (S, H0, W0)
        Its segmentation.
    made_by : Provenance
        What made it.
    types : tuple of str
        Output types asked for; see `types_for`.

    Returns
    -------
    list of str
        Paths below `folder`.
    """
    names: list[str] = []
    for kind in types_for(job.scan.source, types):
        names += _writer(kind).write(folder, job, mask, made_by)
    names.append(f"overlays/{job.name}.png")
    job.write_overlay(folder / names[-1], job.worst(), mask, made_by.threshold)
    if job.scan.kind == "volume":
        names.append(f"volumes/{job.name}.png")
        job.write_volume_picture(folder / names[-1], mask, made_by.threshold)
    return names


def describe_results(
    folder: Path, source: ScanSource, types: tuple[OutputType, ...], model: str
) -> None:
    """Write what describes the results of several scans together, unless it is there already.

    Not for several threads or processes at once.

    Parameters
    ----------
    folder : Path
        The output folder.
    source : ScanSource
        One of the scans.
    types : tuple of str
        Output types asked for.
    model : str
        Name of the bundle.
    """
    if "bids" in types:
        from .bids import describe

        describe(folder, source, model)


def _writer(kind: OutputType) -> Any:
    """The module that writes a type; none of them is loaded before it is needed."""
    if kind == "nifti":
        from . import nifti

        return nifti
    if kind == "png":
        from . import picture

        return picture
    if kind == "bids":
        from . import bids

        return bids
    from . import dicom

    return dicom.WRITERS[kind]
