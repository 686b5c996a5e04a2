"""Hostile inputs: small valid files of every format, ways to damage them, and what must hold then.

Used by ``test_hostile_inputs.py`` with hypothesis, and by ``tests/fuzz.py`` with atheris.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.manifest import (
    SCHEMA_VERSION,
    CodeShape,
    Manifest,
    SamplingDefaults,
    ScheduleSpec,
)
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scan_job import ScanJob
from berdiff.runtime.scans import find_scans

MODEL = Preprocessing(1, ("flair",), (32, 40))
KINDS = ("nii", "nii.gz", "mgz", "png", "jpg", "tif", "dcm", "zip", "json")

# Values that parsers get wrong: lengths, signs, types.
TOKENS = (
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x01\x00\x00\x00",
    b"\x00\x7f",
    b"\xff\x7f",
    b"\x00\x00\xc0\x7f",
    b"../../../../tmp/escaped",
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff",
    b"1e999",
    b"NaN",
    b"[" * 64,
)


@functools.cache
def valid(kind: str) -> bytes:
    """A small file of a kind, as good software writes it."""
    rng = np.random.default_rng(0)
    volume = rng.integers(1, 900, (18, 20, 4)).astype(np.int16)
    if kind in ("nii", "nii.gz"):
        data = nibabel.Nifti1Image(volume, np.diag([-2.0, 2.0, 4.0, 1.0])).to_bytes()
        return gzip.compress(data, 1) if kind == "nii.gz" else data
    if kind == "mgz":
        image = nibabel.MGHImage(volume.astype(np.float32), np.diag([2.0, 2.0, 4.0, 1.0]))
        return gzip.compress(image.to_bytes(), 1)
    if kind in ("png", "jpg", "tif"):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 256, (20, 24), np.uint8)
        Image.fromarray(pixels).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, "PNG"))
        return buffer.getvalue()
    if kind == "dcm":
        return dicom_slice(0)
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"study/{number}.dcm", dicom_slice(number))
        return buffer.getvalue()
    return json.dumps(dataclasses.asdict(manifest())).encode()


def manifest() -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="hostile",
        preprocessing=MODEL,
        code=CodeShape(8, 16, 16),
        schedule=ScheduleSpec(),
        forward_noise="bernoulli",
        sampling=SamplingDefaults(),
        files={},
    )


def dicom_slice(number: int, **attributes: object) -> bytes:
    """One slice of a classic MR series, explicit little endian; `attributes` replace its own."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    rng = np.random.default_rng(number)
    data = Dataset()
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = f"1.2.3.4.{number + 1}"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    data.FrameOfReferenceUID = "1.2.3.3"
    data.Modality, data.SeriesNumber, data.InstanceNumber = "MR", 4, number + 1
    data.PatientName, data.PatientID = "DOE^JANE", "4711"
    data.PatientBirthDate, data.AccessionNumber = "19700101", "A-0815"
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [-20, -20, 4.0 * number]
    data.PixelSpacing, data.SliceThickness = [2.0, 2.0], 4.0
    data.Rows, data.Columns = 20, 18
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = rng.integers(1, 4000, (20, 18)).astype("<u2").tobytes()
    for name, value in attributes.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def damage(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Apply changes one after another: (what, where in [0, 1], a number)."""
    data = bytearray(content)
    for what, place, number in changes:
        at = min(int(place * len(data)), max(0, len(data) - 1))
        if what == "byte" and data:
            data[at] = number % 256
        elif what == "bit" and data:
            data[at] ^= 1 << number % 8
        elif what == "token":
            token = TOKENS[number % len(TOKENS)]
            data[at : at + len(token)] = token
        elif what == "insert":
            data[at:at] = bytes([number % 256]) * (1 + number % 37)
        elif what == "cut":
            del data[at:]
        elif what == "repeat":
            data[at:at] = data[at : at + 1 + number % 300]
    return bytes(data)


def consume(kind: str, content: bytes) -> bool:
    """Take an input as a run would; return whether it was accepted.

    A refusal is a `BerdiffError`; any other exception is a defect. What is accepted has finite
    values on the model's grid.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "json":
            (folder / "bundle.json").write_bytes(content)
        else:
            (folder / f"scan.{kind}").write_bytes(content)
        try:
            if kind == "json":
                Bundle.open(folder)
                return True
            for source in find_scans(folder, MODEL).sources:
                job = ScanJob.read(source, MODEL)
                assert np.isfinite(job.images).all()
                assert 0 <= job.images.min() <= job.images.max() <= 1
                assert job.anomaly.shape == job.inside.shape
                job.scan.grid.volume(job.anomaly)
        except BerdiffError:
            return False
        finally:
            assert sorted(path.name for path in folder.iterdir()) in (
                [f"scan.{kind}"],
                ["bundle.json"],
            )
    return True
