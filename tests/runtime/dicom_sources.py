"""DICOM series as scanners write them, made of nothing, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

MR = "1.2.840.10008.5.1.4.1.1.4"
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
OPHTHALMIC_TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.77.1.5.4"

SHAPE = (9, 7, 5)  # columns, rows, slices
SPACING = (0.75, 1.25)  # rows, columns

# Directions of columns' and rows' growing indices (LPS+); slices follow their cross product.
TURN = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]
ORIENTATIONS = {
    "axial": np.array([[1, 0, 0], [0, 1, 0]], float),
    "sagittal": np.array([[0, 1, 0], [0, 0, -1]], float),
    "coronal": np.array([[1, 0, 0], [0, 0, -1]], float),
    "flipped": np.array([[-1, 0, 0], [0, 1, 0]], float),
    "upside down": np.array([[0, -1, 0], [-1, 0, 0]], float),
    "oblique": TURN[:, :2].T,
    "oblique flipped": np.array([-TURN[:, 1], TURN[:, 2]]),
}


def voxels(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint16]:
    """Array [I, J, K] in which every voxel has a value of its own."""
    count = int(np.prod(shape))
    return np.random.default_rng(8).permutation(count).astype(np.uint16).reshape(shape)


def positions(turn: NDArray[Any], count: int, step: float = 2.5) -> NDArray[np.float64]:
    normal = np.cross(*turn)
    return np.array([-31.25, 14.5, 77.125]) + np.outer(np.arange(count) * step, normal)


def _decimals(values: Any) -> list[Any]:
    return [pydicom.valuerep.DSfloat(float(value), auto_format=True) for value in values]


def _common(sop_class: str, instance: str) -> Dataset:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = instance
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = sop_class, instance
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.4.1", "1.2.3.4.1.7"
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = "1.2.3.4.9", ""
    data.PatientName, data.PatientID = "Müller^Jürgen", "P-17"
    data.PatientBirthDate, data.PatientSex, data.PatientAge = "19500102", "M", "075Y"
    data.StudyDate, data.StudyTime, data.StudyID = "20250203", "101112", "S1"
    data.AccessionNumber, data.ReferringPhysicianName = "ACC-5", "Doe^Jane"
    data.StudyDescription, data.SeriesDescription = "Head", "t2_flair_tra"
    data.SeriesNumber, data.InstanceNumber, data.AcquisitionNumber = 7, 1, 1
    data.SeriesDate, data.SeriesTime = "20250203", "101500"
    data.ContentDate, data.ContentTime = "20250203", "101530.25"
    data.AcquisitionDate, data.AcquisitionTime = "20250203", "101520"
    data.Manufacturer, data.ManufacturerModelName = "Scanners Inc", "Model 3"
    data.SoftwareVersions, data.DeviceSerialNumber = "v1", "4711"
    data.BodyPartExamined = "HEAD"
    data.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = 0
    return data


def _mr(data: Dataset) -> None:
    data.Modality, data.ScanningSequence, data.SequenceVariant = "MR", "SE", "NONE"
    data.ScanOptions, data.MRAcquisitionType = "", "2D"
    data.RepetitionTime, data.EchoTime, data.EchoTrainLength = "9000", "90", "16"
    data.InversionTime, data.PatientPosition = "2500", "HFS"


def _ct(data: Dataset) -> None:
    data.Modality, data.KVP, data.PatientPosition = "CT", "120", "HFS"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = "-1024", "1", "HU"


def classic(
    turn: NDArray[Any] = ORIENTATIONS["axial"],
    sop_class: str = MR,
    shape: tuple[int, int, int] = SHAPE,
) -> list[Dataset]:
    """One object per slice, in an order and with numbers that mean nothing."""
    result = []
    values, places = voxels(shape), positions(turn, shape[2])
    for number, index in enumerate(np.random.default_rng(2).permutation(shape[2]), start=1):
        data = _common(sop_class, f"1.2.3.4.5.{int(index) + 1}")
        (_mr if sop_class == MR else _ct)(data)
        data.InstanceNumber = number
        data.ImagePositionPatient = _decimals(places[index])
        data.ImageOrientationPatient = _decimals(turn.ravel())
        data.PixelSpacing, data.SliceThickness = _decimals(SPACING), "2"
        _fill(data, values[:, :, [index]])
        result.append(data)
    return result


def multi_frame(
    turn: NDArray[Any] = ORIENTATIONS["axial"],
    sop_class: str = ENHANCED_MR,
    shared_orientation: bool = True,
    order: list[int] | None = None,
) -> Dataset:
    """One object whose frames are slices in `order`; by default neither up nor down."""
    count = SHAPE[2]
    order = order or [int(index) for index in np.random.default_rng(3).permutation(count)]
    data = _common(sop_class, "1.2.3.4.5.100")
    data.Modality = "MR" if sop_class == ENHANCED_MR else "OPT"
    data.PixelPresentation, data.VolumetricProperties = "MONOCHROME", "VOLUME"
    data.VolumeBasedCalculationTechnique, data.LossyImageCompression = "NONE", "00"
    if sop_class == OPHTHALMIC_TOMOGRAPHY:
        data.ImageLaterality = "R"
        del data.BodyPartExamined
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _decimals(turn.ravel())
    measures.PixelSpacing, measures.SliceThickness = _decimals(SPACING), "2"
    shared.PixelMeasuresSequence = [measures]
    if shared_orientation:
        shared.PlaneOrientationSequence = [orientation]
    data.SharedFunctionalGroupsSequence, frames = [shared], []
    for index in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = _decimals(positions(turn, count)[index])
        frame.PlanePositionSequence = [place]
        if not shared_orientation:
            frame.PlaneOrientationSequence = [orientation]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    _fill(data, voxels()[:, :, order])
    data.NumberOfFrames = len(frames)
    return data


def _fill(data: Dataset, values: NDArray[Any]) -> None:
    data.Columns, data.Rows = values.shape[:2]
    content = np.ascontiguousarray(values.transpose(2, 1, 0)).astype("<u2").tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)


def save(folder: Path, *datasets: Dataset) -> list[Path]:
    """Write them as files whose names mean nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, data in enumerate(datasets):
        paths.append(folder / f"IM{number:04d}")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths
