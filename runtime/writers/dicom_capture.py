"""The summary of a scan as a DICOM Secondary Capture: a picture that every viewer shows.

Where nothing was computed, it says so and why: an archive must not take silence for health.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import optional
from ..files import atomic_file
from ..overlays import white_level
from ..provenance import NOTICE, Provenance
from ..summary_picture import grey_tile, page, tile
from .dicom_identity import Origin, own_identity, settle

if TYPE_CHECKING:
    from pydicom import Dataset

    from ..scan_job import ScanJob

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_EXPLICIT = "1.2.840.10008.1.2.1"
_IMPLEMENTATION = "2.25.162041153017573265262443370311926829337"  # ours, drawn by chance once
_WORST = 7  # slices on a page, besides the worst one as it is


@dataclass(frozen=True)
class Headers:
    """Headers that a status takes its identity from; an `Origin` of objects not read as images."""

    datasets: tuple[Any, ...]
    frame_numbers: tuple[int, ...] = ()


def write_capture(
    path: Path, origin: Origin, job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance
) -> None:
    """Write the summary of a scan's results, whole or not at all.

    Parameters
    ----------
    path : Path
        Where to write it.
    origin : Origin
        The series it belongs to.
    job : ScanJob
        The scan, every slice of it done.
    mask : ndarray of bool, shape (S, H0, W0)
        Its segmentation.
    made_by : Provenance
        What made it.

    Raises
    ------
    InputError
        If the source's patient or study cannot be copied.
    """
    write_page(path, origin, _results(job, mask, made_by), made_by)


def write_status(path: Path, origin: Origin, reason: str, made_by: Provenance) -> None:
    """Write that nothing was computed, and why, whole or not at all.

    Parameters
    ----------
    path : Path
        Where to write it.
    origin : Origin
        The series it belongs to; see `Headers`.
    reason : str
        Why; without names.
    made_by : Provenance
        What was to make the results.

    Raises
    ------
    InputError
        If the source's patient or study cannot be copied.
    """
    lines = (
        "This series was received and NOT examined. There is no anomaly map.",
        "Nothing is said about what the images show.",
        "",
        f"Reason: {reason}",
        "",
        _model(made_by),
    )
    write_page(path, origin, page("berdiff: NOTHING WAS COMPUTED", lines), made_by)


def write_page(path: Path, origin: Origin, pixels: NDArray[np.uint8], made_by: Provenance) -> None:
    """Write a picture in colour as a Secondary Capture.

    Parameters
    ----------
    path : Path
        Where to write it.
    origin : Origin
        The series it belongs to.
    pixels : ndarray of uint8, shape (rows, columns, 3)
        The picture.
    made_by : Provenance
        What made it.
    """
    identity = own_identity(origin, pixels[None], made_by, "sc")
    result = _object(pixels, identity)
    _refer(result, origin)
    settle(result, origin)
    with atomic_file(path) as part:
        result.save_as(part, enforce_file_format=True)


def _results(job: ScanJob, mask: NDArray[np.bool_], made_by: Provenance) -> NDArray[np.uint8]:
    """The worst slice as it is, and the worst ones with their maps."""
    grid, worst = job.scan.grid, job.worst()
    intake = job.intake
    scored = [(score, index) for index, score in enumerate(job.scores) if score is not None]
    ranked = [index for _, index in sorted(scored, key=lambda item: (-item[0], item[1]))]
    slices = f"{len(job.scores)} slices, {len(job.scores) - len(scored)} of them empty"
    counted = f"{int(mask.sum())} voxels above {made_by.threshold:.4g}"
    lines = [
        f"Highest score {job.scores[worst]:.4g} in slice {grid.file_index(worst)}; {slices}",
        f"Mask: {counted}; threshold: {made_by.threshold_source}",
        f"Input: {intake.verdict}" + "".join(f"; {reason}" for reason in intake.reasons),
        _model(made_by),
        "Shown: the slice with the highest score as it is; then slices by falling score, with the",
        "anomaly map in colour and the mask outlined. Slices count from 0.",
    ]
    image, spacing = job.image(worst), job.spacing
    shown = grey_tile(image, float(white_level(image)), spacing)
    tiles = [(f"slice {grid.file_index(worst)}, as it is", shown)]
    scale = 2 * made_by.threshold if made_by.threshold > 0 else float(job.anomaly.max()) or 1.0
    for index in ranked[:_WORST]:
        label = f"slice {grid.file_index(index)}: {job.scores[index]:.4g}"
        drawn = tile(job.image(index), job.anomaly[index], mask[index], scale, spacing)
        tiles.append((label, drawn))
    return page("berdiff anomaly summary", lines, tiles)


def _model(made_by: Provenance) -> str:
    return (
        f"Model {made_by.model}, bundle {made_by.bundle[:16]}, berdiff {made_by.software}, "
        f"{made_by.backend} on {made_by.device}, seed {made_by.seed}"
    )


def _object(pixels: NDArray[np.uint8], identity: dict[str, Any]) -> Dataset:
    """The object without its patient, its study and its references."""
    pydicom = optional("pydicom", "dicom")
    result = pydicom.Dataset()
    result.file_meta = meta = optional("pydicom.dataset", "dicom").FileMetaDataset()
    result.SOPClassUID = meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    result.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = identity["sop_instance_uid"]
    meta.TransferSyntaxUID, meta.ImplementationClassUID = _EXPLICIT, _IMPLEMENTATION
    result.Modality, result.ConversionType = "OT", "WSD"
    result.SeriesInstanceUID = identity["series_instance_uid"]
    result.SeriesNumber = identity["series_number"]
    result.InstanceNumber = identity["instance_number"]
    result.SeriesDescription = identity["series_description"]
    result.Manufacturer = identity["manufacturer"]
    result.ManufacturerModelName = identity["manufacturer_model_name"]
    result.SoftwareVersions = identity["software_versions"]
    result.DeviceSerialNumber = identity["device_serial_number"]
    result.ContributingEquipmentSequence = identity["contributing_equipment"]
    result.ImageType, result.PatientOrientation = ["DERIVED", "SECONDARY"], None
    result.ImageComments = NOTICE
    result.BurnedInAnnotation, result.RecognizableVisualFeatures = "NO", "YES"
    result.SamplesPerPixel, result.PhotometricInterpretation = 3, "RGB"
    result.PlanarConfiguration, result.PixelRepresentation = 0, 0
    result.Rows, result.Columns = pixels.shape[:2]
    result.BitsAllocated, result.BitsStored, result.HighBit = 8, 8, 7
    result.LossyImageCompression = "00"
    content = pixels.tobytes()
    result.PixelData = content + b"\0" * (len(content) % 2)
    result["PixelData"].VR = "OB"
    return result


def _refer(result: Dataset, origin: Origin) -> None:
    """Name the objects of the source, by their series; other studies' are left out."""
    dataset = optional("pydicom", "dicom").Dataset
    study = origin.datasets[0].get("StudyInstanceUID")
    by_series: defaultdict[str, list[Any]] = defaultdict(list)
    for source in origin.datasets:
        if source.get("StudyInstanceUID") == study:
            item = dataset()
            item.ReferencedSOPClassUID = source.SOPClassUID
            item.ReferencedSOPInstanceUID = source.SOPInstanceUID
            by_series[str(source.SeriesInstanceUID)].append(item)
    result.SourceImageSequence = [item for items in by_series.values() for item in items]
    series = []
    for uid, items in by_series.items():
        one = dataset()
        one.SeriesInstanceUID, one.ReferencedInstanceSequence = uid, items
        series.append(one)
    result.ReferencedSeriesSequence = series
