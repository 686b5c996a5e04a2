"""Results as DICOM objects that refer to the series they were found in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..provenance import Provenance
from ..scans import ScanSource
from .dicom_capture import write_capture
from .dicom_pmap import write_parametric_map
from .dicom_seg import write_segmentation

if TYPE_CHECKING:
    from ..scan_job import ScanJob


@dataclass(frozen=True)
class DicomWriter:
    """Writes one kind of object.

    Attributes
    ----------
    kind : {"seg", "pmap", "sc"}
        Segmentation of the mask, parametric map of the anomaly map, or a picture that sums up.
    """

    kind: Literal["seg", "pmap", "sc"]

    def files(self, source: ScanSource) -> list[str]:
        """Path of the object below the output folder."""
        return [f"dicom/{source.name}_{self.kind}.dcm"]

    def write(
        self, folder: Path, job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance
    ) -> list[str]:
        """Write the object; see the module of its kind."""
        names = self.files(job.scan.source)
        grid, origin = job.scan.grid, job.scan.origin
        if self.kind == "sc":
            write_capture(folder / names[0], origin, job, mask, made_by)
            return names
        affine = np.eye(4) if grid.affine is None else grid.affine
        if self.kind == "seg":
            write_segmentation(folder / names[0], origin, grid.volume(mask), affine, made_by)
        else:
            values = grid.volume(job.anomaly)
            write_parametric_map(folder / names[0], origin, values, affine, made_by)
        return names


WRITERS = {
    "dicom-seg": DicomWriter("seg"),
    "dicom-pmap": DicomWriter("pmap"),
    "dicom-sc": DicomWriter("sc"),
}
