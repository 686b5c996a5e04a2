"""What tests of DICOM results share: series read by the real reader, and what to compare with."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicom_peers import program
from dicom_sources import save
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from berdiff.runtime.provenance import Provenance
from berdiff.runtime.scans.dicom import DicomImage, read_series
from berdiff.runtime.scans.source import FileRef
from berdiff.runtime.writers.dicom_pmap import write_parametric_map
from berdiff.runtime.writers.dicom_seg import write_segmentation

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

MADE_BY = Provenance(
    model="brats-flair",
    bundle="0123456789abcdef" * 4,
    software="0.1.0",
    backend="onnxruntime",
    device="cpu",
    seed=2**64 - 1,
    settings={"noise_level": 200, "steps": 25, "flip_threshold": 0.5},
    threshold=0.125,
    threshold_source="bundle",
    input_sha256="f" * 64,
)

WRITERS: dict[str, Callable[..., None]] = {
    "seg": write_segmentation,
    "pmap": write_parametric_map,
}


def read(folder: Path, *datasets: Dataset) -> DicomImage:
    """Write a series as files and read it back as a scan."""
    return read_series([FileRef(path) for path in save(folder, *datasets)])


def results(shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """A mask that no flip or turn leaves alike, and a map."""
    rng = np.random.default_rng(6)
    mask = rng.random(shape) > 0.8
    mask[0, 0, 0], mask[-1, 0, 0], mask[0, -1, 0] = True, False, False
    mask[..., -1] = False  # a slice in which nothing was found
    return {"seg": mask, "pmap": rng.random(shape).astype(np.float32) * np.float32(0.2)}


def write(kind: str, path: Path, image: DicomImage, made_by: Provenance = MADE_BY) -> Dataset:
    """Write the result of a kind, and read it with pydicom."""
    WRITERS[kind](path, image.origin, results(image.values.shape)[kind], image.affine, made_by)
    return pydicom.dcmread(path)


def by_place(data: Dataset) -> dict[tuple[float, ...], float]:
    """Value of every pixel by its place in mm (LPS), as the object itself says."""
    shared = data.SharedFunctionalGroupsSequence[0]
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows, columns = (float(size) for size in shared.PixelMeasuresSequence[0].PixelSpacing)
    found = {}
    for frame, own in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(own.PlanePositionSequence[0].ImagePositionPatient, float)
        for (row, column), value in np.ndenumerate(frame):
            place = origin + turn[:3] * columns * column + turn[3:] * rows * row
            found[tuple(np.round(place, 4) + 0.0)] = float(value)
    return found


def expected_by_place(
    values: NDArray[Any], affine: NDArray[np.float64]
) -> dict[tuple[float, ...], float]:
    """The same from an array ``[I, J, K]`` and its affine (RAS+)."""
    found = {}
    for index, value in np.ndenumerate(values):
        place = (LPS_TO_RAS @ affine @ [*index, 1])[:3]
        found[tuple(np.round(place, 4) + 0.0)] = float(value)
    return found


def assert_same_places(
    found: dict[tuple[float, ...], float], expected: dict[tuple[float, ...], float]
) -> None:
    """Every value lies where it should, to a thousandth of a millimetre."""
    assert len(found) == len(expected)
    places, wanted = np.array(list(found)), np.array(list(expected))
    distances = np.linalg.norm(places[:, None] - wanted[None], axis=-1)
    nearest = distances.argmin(axis=1)
    assert distances.min(axis=1).max() < 1e-3
    assert len(set(nearest.tolist())) == len(places)
    np.testing.assert_array_equal(
        np.array(list(found.values())), np.array(list(expected.values()))[nearest]
    )


def complaints(path: Path) -> list[str]:
    """What dciodvfy calls an error; its exit status alone does not tell of all of them."""
    dciodvfy = program("dciodvfy", "dicom3tools")
    done = subprocess.run(
        [dciodvfy, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    if done.returncode and not errors:
        errors.append(f"exit status {done.returncode}: {lines}")
    return errors
