"""The anomaly map of a scan as a DICOM Parametric Map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, optional
from ..files import atomic_file
from ..provenance import Provenance
from .dicom_identity import Origin, own_identity, settle
from .dicom_planes import explained, number_frames, pixels_of, placed, stand_ins


def write_parametric_map(
    path: Path,
    origin: Origin,
    values: NDArray[np.float32],
    affine: NDArray[np.float64],
    made_by: Provenance,
) -> None:
    """Write an anomaly map as a Parametric Map of 32-bit floats, whole or not at all.

    The values stand in it as they are, without unit; its window reaches from 0 to the largest.

    Parameters
    ----------
    path : Path
        Where to write it.
    origin : Origin
        The series the map belongs to.
    values : ndarray of float32, shape (I, J, K)
        Columns, rows and slices of the series.
    affine : ndarray of float64, shape (4, 4)
        Index to world mm (RAS+), checked against the series' own planes.
    made_by : Provenance
        What made it.

    Raises
    ------
    InputError
        If the series is of a kind that parametric maps cannot refer to, or lies elsewhere; or if
        the map holds NaN or infinity.
    """
    pm = optional("highdicom.pm", "dicom")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        raise InputError("the map holds NaN or infinity; expected finite values")
    pixels = pixels_of(origin, values.astype(np.float32, copy=False))
    planes = placed(origin, affine)
    with explained():
        result = pm.ParametricMap(
            source_images=stand_ins(origin, planes),
            pixel_array=pixels,
            contains_recognizable_visual_features=True,  # a map of a head may show the face
            **_meaning(min(low, 0.0), max(high, 0.0)),
            **own_identity(origin, pixels, made_by, "pmap"),
        )
    number_frames(result, origin)
    settle(result, origin)
    with atomic_file(path) as part:
        result.save_as(part)


def _meaning(low: float, high: float) -> dict[str, Any]:
    """Say that stored values are the real ones, without unit, and show all of them."""
    highdicom = optional("highdicom", "dicom")
    mapping = optional("highdicom.pm", "dicom").RealWorldValueMapping(
        lut_label="Anomaly",
        lut_explanation="Anomaly map, larger is more anomalous",
        unit=optional("pydicom.sr.codedict", "dicom").codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
    )
    width = high - low or 1.0
    window = highdicom.VOILUTTransformation(
        window_center=low + width / 2,
        window_width=width,
        # The ordinary function knows no window narrower than 1.
        voi_lut_function=highdicom.VOILUTFunctionValues.LINEAR_EXACT,
    )
    return {"real_world_value_mappings": [mapping], "voi_lut_transformations": [window]}
