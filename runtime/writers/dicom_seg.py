"""The mask of a scan as a DICOM Segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import optional
from ..files import atomic_file
from ..provenance import Provenance
from .dicom_identity import MANUFACTURER, Origin, in_ascii, own_identity, settings_of, settle
from .dicom_planes import explained, number_frames, pixels_of, placed, stand_ins

_RED = (255, 0, 0)


def write_segmentation(
    path: Path,
    origin: Origin,
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    made_by: Provenance,
) -> None:
    """Write a mask as a binary Segmentation with one segment, whole or not at all.

    Every slice of the series has a frame, also where nothing was found.

    Parameters
    ----------
    path : Path
        Where to write it.
    origin : Origin
        The series the mask belongs to.
    mask : ndarray of bool, shape (I, J, K)
        Columns, rows and slices of the series.
    affine : ndarray of float64, shape (4, 4)
        Index to world mm (RAS+), checked against the series' own planes.
    made_by : Provenance
        What made it.

    Raises
    ------
    InputError
        If the series is of a kind that segmentations cannot refer to, or lies elsewhere.
    """
    seg = optional("highdicom.seg", "dicom")
    pixels = pixels_of(origin, mask.view(np.uint8))
    planes = placed(origin, affine)
    with explained():
        result = seg.Segmentation(
            source_images=stand_ins(origin, planes),
            pixel_array=pixels,
            segmentation_type=seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(made_by)],
            omit_empty_frames=False,
            **own_identity(origin, pixels, made_by, "seg"),
        )
    number_frames(result, origin)
    settle(result, origin)
    with atomic_file(path) as part:
        result.save_as(part)


def _segment(made_by: Provenance) -> Any:
    highdicom = optional("highdicom", "dicom")
    seg = optional("highdicom.seg", "dicom")
    codes = optional("pydicom.sr.codedict", "dicom").codes
    return seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=in_ascii(made_by.model, 64) or "unnamed",
            family=codes.cid7162.ArtificialIntelligence,
            version=f"{in_ascii(made_by.software, 32)} {made_by.bundle[:16]}",
            source=MANUFACTURER,
            parameters=settings_of(made_by),
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*_RED),
    )
