"""Results as NIfTI on the scan's own grid, with a JSON sidecar that says what they are."""

from __future__ import annotations

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import optional
from ..files import write_atomic
from ..provenance import NOTICE, Provenance
from ..scans import Grid, ScanSource

if TYPE_CHECKING:
    from ..scan_job import ScanJob

SUFFIX = ".nii.gz"
PARTS = {
    "anomaly": "Anomaly map, at least 0; larger is more anomalous",
    "flips": "Mean probability, over steps and bits, that the healthy code differs; in [0, 1]",
    "mask": "Anomaly map above the threshold: 1, elsewhere 0",
    "reconstruction": "Healthy counterpart the model saw, intensities normalised to [0, 1]",
}

_MM = 2
_GZIP_LEVEL = 2  # of ISA-L: as small as zlib's 3 and several times as fast


def files(source: ScanSource) -> list[str]:
    """Paths of a scan's maps below the output folder, the sidecar last."""
    name = source.name
    return [*(f"maps/{name}_{part}{SUFFIX}" for part in PARTS), f"maps/{name}.json"]


def write(folder: Path, job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance) -> list[str]:
    """Write the four maps of a scan and their sidecar.

    Maps are float32, the mask uint8. A map of a slice with channels keeps the channel axis, with
    length 1, so that the affine still fits; the reconstruction has the channels of the scan, last
    in a volume.

    Returns
    -------
    list of str
        What was written, below `folder`.
    """
    grid, names = job.scan.grid, files(job.scan.source)
    arrays = (job.anomaly[:, None], job.flips[:, None], mask[:, None], job.reconstruction)

    def write_part(name: str, part: str, values: NDArray[Any]) -> None:
        kind = np.uint8 if part == "mask" else np.float32
        stored = grid.arrange(values).astype(kind, copy=False)
        write_nifti(folder / name, stored, grid, f"berdiff {part}")

    # Compressing lets go of Python's lock.
    with ThreadPoolExecutor(len(PARTS)) as pool:
        list(pool.map(write_part, names, PARTS, arrays))
    write_atomic(folder / names[-1], sidecar(job, made_by))
    return names


def sidecar(job: ScanJob, made_by: Provenance) -> bytes:
    """JSON that describes a scan's maps: what each holds, and what made it."""
    record = {
        "Description": "Anomaly maps by masked Bernoulli diffusion",
        "Notice": NOTICE,
        "Maps": PARTS,
        "Units": "arbitrary (anomaly), probability (flips)",
        "GeneratedBy": dataclasses.asdict(made_by),
    }
    return (json.dumps(record, indent=2) + "\n").encode("ascii")


def write_nifti(path: Path, stored: NDArray[Any], grid: Grid, description: str) -> None:
    """Write an array on the axes of a grid as ``.nii.gz``, whole or not at all.

    Takes the affine with its codes from the input's header where there is one; otherwise the
    grid's own affine. Equal results are equal files: no time and no name stand inside.
    """
    import nibabel

    header = _header(grid, nibabel)
    header["descrip"] = description.encode()
    header.set_data_dtype(stored.dtype)
    wide = isinstance(header, nibabel.Nifti2Header)
    image = (nibabel.Nifti2Image if wide else nibabel.Nifti1Image)(stored, None, header)
    if grid.header is None and grid.affine is not None:
        image.set_sform(grid.affine, code=1)
        image.set_qform(grid.affine, code=1)
    igzip = optional("isal.igzip", "images")
    buffer = io.BytesIO()
    with igzip.IGzipFile("", "wb", _GZIP_LEVEL, buffer, mtime=0) as stream:
        stream.write(_start(image))
        own = stored.astype(header.get_data_dtype(), copy=False)  # the header's byte order
        stream.write(own.tobytes(order="F"))
    write_atomic(path, buffer.getvalue())


def _start(image: Any) -> bytes:
    """What an image's file holds before its voxels, which are stored as they are."""
    header = image.header.copy()
    header["vox_offset"] = header.single_vox_offset
    header.set_slope_inter(1, 0)
    buffer = io.BytesIO()
    header.write_to(buffer)
    return buffer.getvalue()


def _header(grid: Grid, nibabel: Any) -> Any:
    """The input's header, without what describes the input or may name the patient."""
    if grid.header is None:
        header = nibabel.Nifti1Header()
        header["xyzt_units"] = _MM if grid.affine is not None else 0
        return header
    header = grid.header.copy()
    header.extensions.clear()
    for name in ("db_name", "aux_file", "intent_name"):
        if name in header.keys():  # noqa: SIM118 (headers are no mappings)
            header[name] = b""
    header["cal_min"] = header["cal_max"] = 0  # the input's window would hide a map
    header["intent_code"] = 0
    header["vox_offset"] = 0
    header.set_slope_inter(1, 0)
    if int(header["xyzt_units"]) % 8 == 0:
        header["xyzt_units"] = int(header["xyzt_units"]) + _MM
    return header
