"""DICOM series: what is read, against highdicom; every rule broken on purpose."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedMRImageStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import FileRef, find_scans, read_scan
from berdiff.runtime.scans.dicom import DicomImage, read_series
from berdiff.runtime.scans.dicom_bytes import DicomError
from berdiff.runtime.scans.dicom_series import expand, find_series

MODEL = Preprocessing(1, ("t1",), (32, 40))
FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 40))

Datasets = list[Dataset]


def turned(angles: tuple[float, float, float], flip: tuple[int, int]) -> np.ndarray:
    """Directions of rows and columns, (6,), of a plane turned about all axes."""
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turn = rx @ ry @ rz
    return np.concatenate([turn[:, 0] * flip[0], turn[:, 1] * flip[1]])


def classic(
    count: int = 6,
    orientation: np.ndarray | None = None,
    spacing: tuple[float, float] = (2.0, 1.5),
    step: float = 3.0,
    seed: int = 0,
) -> Datasets:
    """A series as a scanner would send it, in order."""
    rng = np.random.default_rng(seed)
    orientation = np.array([1, 0, 0, 0, 1, 0.0]) if orientation is None else orientation
    normal = np.cross(orientation[:3], orientation[3:])
    series = []
    for number in range(count):
        data = pydicom.dcmread(io.BytesIO(hostile.dicom_slice(number)))
        data.ImageOrientationPatient = [f"{value:.10f}"[:16] for value in orientation]
        place = np.array([-20.0, 15.0, 7.0]) + step * number * normal
        data.ImagePositionPatient = [f"{value:.10f}"[:16] for value in place]
        data.PixelSpacing = list(spacing)
        data.SeriesDescription = "t1_mprage_sag"
        data.PixelData = rng.integers(0, 4000, (20, 18)).astype("<u2").tobytes()
        series.append(data)
    return series


def save(folder: Path, series: Datasets, names: list[str] | None = None) -> list[FileRef]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, data in enumerate(series):
        path = folder / (names[number] if names else f"IM{number:04}")
        data.save_as(path, enforce_file_format=True)
        files.append(FileRef(path))
    return files


def read(folder: Path, series: Datasets) -> DicomImage:
    return read_series(save(folder, series))


def in_world(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels sorted by where they lie: the same for every order of axes and slices."""
    index = np.indices(values.shape).reshape(3, -1)
    places = np.round((affine[:3, :3] @ index + affine[:3, 3:]).T, 3) + 0.0
    order = np.lexsort(places.T)
    return places[order], values.reshape(-1)[order]


def of_highdicom(volume: object) -> tuple[np.ndarray, np.ndarray]:
    """highdicom's array [slice, row, column] and affine (LPS+) as ours."""
    swap = np.eye(4)[:, [2, 1, 0, 3]]
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine @ swap  # type: ignore[attr-defined]
    return volume.array.transpose(2, 1, 0), affine  # type: ignore[attr-defined]


def assert_same(image: DicomImage, volume: object, tolerance: float = 2e-3) -> None:
    ours = in_world(image.values, image.affine)
    theirs = in_world(*of_highdicom(volume))
    np.testing.assert_allclose(ours[0], theirs[0], atol=tolerance)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-3)


# Against highdicom

angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3)
flips = st.tuples(*[st.sampled_from([-1, 1])] * 2)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 2**31),
    turn=angles,
    flip=flips,
    spacing=st.tuples(st.floats(0.4, 3), st.floats(0.4, 3)),
    step=st.floats(0.5, 6),
    rescale=st.booleans(),
)
def test_a_shuffled_oblique_series_is_what_highdicom_reads(
    seed: int,
    turn: tuple[float, float, float],
    flip: tuple[int, int],
    spacing: tuple[float, float],
    step: float,
    rescale: bool,
    tmp_path: Path,
):
    import highdicom

    spacing = (round(spacing[0], 4), round(spacing[1], 4))
    series = classic(5, turned(turn, flip), spacing, step, seed)
    rng = np.random.default_rng(seed)
    if rescale:
        for data in series:
            data.RescaleSlope = round(float(rng.uniform(0.5, 2)), 4)
            data.RescaleIntercept = round(float(rng.uniform(-50, 50)), 3)
            data.RescaleType = "US"
    rng.shuffle(series)  # type: ignore[arg-type]
    image = read(tmp_path / "series", series)
    assert_same(image, highdicom.get_volume_from_series(series))
    assert np.linalg.det(image.affine[:3, :3]) > 0
    np.testing.assert_allclose(image.spacing, spacing)
    numbers = [data.SOPInstanceUID for data in image.origin.datasets]
    assert sorted(numbers) == sorted(data.SOPInstanceUID for data in series)
    assert not any("PixelData" in data for data in image.origin.datasets)


def enhanced(seed: int = 0, count: int = 5) -> Dataset:
    """An enhanced MR object whose frames are shuffled, with a rescaling of their own."""
    series = classic(count, turned((0.2, -0.3, 0.1), (1, 1)), seed=seed)
    rng = np.random.default_rng(seed)
    order = [int(index) for index in rng.permutation(count)]
    first = series[0]
    data = Dataset()
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
                    "SeriesNumber", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated",
                    "BitsStored", "HighBit", "PixelRepresentation", "PatientName", "PatientID",
                    "PhotometricInterpretation", "InstanceNumber"):  # fmt: skip
        setattr(data, keyword, getattr(first, keyword))
    data.SOPClassUID, data.SOPInstanceUID = EnhancedMRImageStorage, "1.2.3.9"
    data.NumberOfFrames = count
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, 3.0
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in order:
        group, position, scaling = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = series[index].ImagePositionPatient
        scaling.RescaleSlope, scaling.RescaleIntercept = 1 + index, -index
        scaling.RescaleType = "US"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([scaling])
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    data.PixelData = b"".join(series[index].PixelData for index in order)
    data.file_meta = first.file_meta
    data.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


@pytest.mark.parametrize("seed", range(4))
def test_a_shuffled_enhanced_object_is_what_highdicom_reads(seed: int, tmp_path: Path):
    import highdicom

    (file,) = save(tmp_path, [enhanced(seed)])
    image = read_series([file])
    assert_same(image, highdicom.imread(file.path).get_volume())
    assert sorted(image.origin.frame_numbers) == [1, 2, 3, 4, 5]
    (data,) = image.origin.datasets
    for k, frame in enumerate(image.origin.frame_numbers):
        place = data.PerFrameFunctionalGroupsSequence[frame - 1].PlanePositionSequence[0]
        expected = np.array(place.ImagePositionPatient, float) * (-1, -1, 1)
        np.testing.assert_allclose((image.affine @ [0, 0, k, 1])[:3], expected, atol=1e-3)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compressed_pixels_are_the_same_pixels(syntax: str, tmp_path: Path):
    plain = read(tmp_path / "plain", classic())
    packed = classic()
    for data in packed:
        if syntax == JPEG2000Lossless:
            compress_with_gdcm(data, tmp_path)
        else:
            data.compress(syntax, generate_instance_uid=False)
    image = read(tmp_path / "packed", packed)
    np.testing.assert_array_equal(image.stored, plain.stored)
    np.testing.assert_array_equal(image.affine, plain.affine)


def compress_with_gdcm(data: Dataset, folder: Path) -> None:
    import gdcm

    data.save_as(folder / "before.dcm", enforce_file_format=True)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "before.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(folder / "after.dcm"))
    assert writer.Write()
    after = pydicom.dcmread(folder / "after.dcm")
    data.PixelData = after.PixelData
    data["PixelData"].is_undefined_length = True
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data["PixelData"].VR = "OB"


def test_overlays_in_unused_bits_and_signed_values(tmp_path: Path):
    plain = read(tmp_path / "plain", classic())
    marked = classic()
    for data in marked:
        pixels = np.frombuffer(data.PixelData, "<u2") | 0x8000
        data.PixelData = pixels.astype("<u2").tobytes()
    np.testing.assert_array_equal(read(tmp_path / "marked", marked).stored, plain.stored)
    signed = classic()
    for data in signed:
        data.PixelRepresentation = 1
        pixels = np.frombuffer(data.PixelData, "<u2").astype(np.int32) - 2000
        data.PixelData = (pixels & 0x0FFF).astype("<u2").tobytes()  # 12 bits, no sign above
    stored = read(tmp_path / "signed", signed).stored
    np.testing.assert_array_equal(stored, plain.stored.astype(np.int32) - 2000)


def test_padding_is_no_tissue(tmp_path: Path):
    series = classic()
    for data in series:
        pixels = np.frombuffer(data.PixelData, "<u2").copy()
        pixels[:18] = 4095
        data.PixelData = pixels.tobytes()
        data.add_new("PixelPaddingValue", "US", 4095)
        data.RescaleSlope, data.RescaleIntercept = 1, 10
    image = read(tmp_path, series)
    assert not image.values[:, 0].any()
    assert image.values[:, 1:].min() >= 10


# Rules


def change(**attributes: object) -> Callable[[Datasets], None]:
    """Set attributes of the third slice."""

    def apply(series: Datasets) -> None:
        for keyword, value in attributes.items():
            setattr(series[2], keyword, value)

    return apply


def tilt(series: Datasets) -> None:
    for number, data in enumerate(series):
        x, y, z = data.ImagePositionPatient
        data.ImagePositionPatient = [x, y + 0.6 * number, z]


def move(series: Datasets) -> None:
    x, y, z = series[2].ImagePositionPatient
    series[2].ImagePositionPatient = [x, y, z + 0.7]


def again(series: Datasets) -> None:
    for data in classic(seed=1):
        data.SOPInstanceUID = f"{data.SOPInstanceUID}.2"
        series.append(data)


def shorten(series: Datasets) -> None:
    series[1].PixelData = series[1].PixelData[:-20]


def shift(series: Datasets) -> None:
    x, y, z = series[2].ImagePositionPatient
    series[2].ImagePositionPatient = [x + 0.9, y, z]


BROKEN = {
    "shifted-slice": shift,
    "multi-frame": lambda series: setattr(series[2], "NumberOfFrames", 2),
    "rescale": change(ModalityLUTSequence=Sequence([])),
    "damaged": change(HighBit=15),
    "missing-slice": lambda series: series.pop(3),
    "duplicate-position": again,
    "tilt": tilt,
    "irregular-spacing": move,
    "orientation": change(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]),
    "frame-of-reference": change(FrameOfReferenceUID="9.9.9"),
    "mixed-series": change(SeriesInstanceUID="9.9.9"),
    "mosaic": change(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]),
    "no-pixels": lambda series: series[2].pop("PixelData"),
    "truncated": shorten,
    "matrix": lambda series: (
        setattr(series[2], "Rows", 18),
        setattr(series[2], "PixelData", series[2].PixelData[: 18 * 18 * 2]),
    ),
    "spacing": change(PixelSpacing=[2.0, 2.5]),
    "colour": change(PhotometricInterpretation="MONOCHROME1"),
    "position": lambda series: series[2].pop("ImagePositionPatient"),
    "size": change(Rows=60000, Columns=60000),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule: str, tmp_path: Path):
    series = classic()
    BROKEN[rule](series)
    files = save(tmp_path, series)
    with pytest.raises(DicomError) as caught:
        read_series(files)
    assert caught.value.rule == rule
    assert not any(word in str(caught.value) for word in ("DOE", "4711", "1970", "A-0815"))


def test_messages_say_what_is_wrong(tmp_path: Path):
    missing = classic(9)
    del missing[3:5]
    with pytest.raises(DicomError, match="2 slices are missing"):
        read(tmp_path / "a", missing)
    stray = classic()
    stray[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    with pytest.raises(DicomError, match="1 of its 6 slices lie at an angle"):
        read(tmp_path / "b", stray)
    several = classic()
    again(several)
    with pytest.raises(DicomError, match="12 slices share 6 positions"):
        read(tmp_path / "c", several)
    tilted = classic()
    tilt(tilted)
    with pytest.raises(DicomError, match=r"off by 11\.3 degrees"):
        read(tmp_path / "d", tilted)
    uneven = classic(4)
    x, y, z = uneven[3].ImagePositionPatient
    uneven[3].ImagePositionPatient = [x, y, z + 0.2]
    with pytest.raises(DicomError, match=r"vary from 3 to 3\.2 mm") as caught:
        read(tmp_path / "e", uneven)
    assert caught.value.rule == "irregular-spacing"


def test_one_shifted_slice_of_many_is_seen(tmp_path: Path):
    series = classic(30, spacing=(1.0, 1.0))
    x, y, z = series[11].ImagePositionPatient
    series[11].ImagePositionPatient = [x, y + 0.9, z]
    with pytest.raises(DicomError, match=r"a slice lies 0\.90 mm aside"):
        read(tmp_path, series)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "Modality"])
def test_a_series_of_several_studies_or_modalities(keyword: str, tmp_path: Path):
    series = classic()
    setattr(series[1], keyword, "CT" if keyword == "Modality" else "9.9.9")
    with pytest.raises(DicomError) as caught:
        read(tmp_path, series)
    assert caught.value.rule == "mixed-series"


def test_several_tomographies_are_not_one(tmp_path: Path):
    files = []
    for number in range(2):
        data = tomography()
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.9.{number}"
        files += save(tmp_path / str(number), [data])
    with pytest.raises(DicomError, match="2 objects that hold frames"):
        read_series(files)


def test_thickness_and_numbers_play_no_part(tmp_path: Path):
    plain, odd = classic(), classic()
    for number, data in enumerate(odd):
        data.SliceThickness, data.SpacingBetweenSlices = 17.0, 0.3
        data.InstanceNumber = 100 - number
    first, second = read(tmp_path / "a", plain), read(tmp_path / "b", odd)
    np.testing.assert_array_equal(first.affine, second.affine)
    np.testing.assert_array_equal(first.values, second.values)


def test_one_slice_takes_its_thickness_from_the_header(tmp_path: Path):
    image = read(tmp_path, classic(1))
    assert np.linalg.norm(image.affine[:3, 2]) == pytest.approx(4.0)
    assert image.notes == ("one slice; its thickness is SliceThickness",)


def test_a_series_that_promises_more_is_doubted(tmp_path: Path):
    series = classic()
    for data in series:
        data.ImagesInAcquisition = 9
    assert read(tmp_path, series).doubts == ("its header promises 9 images and there are 6",)


def test_jpeg_2000_that_lies_about_its_size_meets_no_decoder(tmp_path: Path):
    series = classic(1)
    compress_with_gdcm(series[0], tmp_path)
    content = bytearray(series[0].PixelData)
    at = content.index(b"\xff\x4f\xff\x51") + 8
    content[at : at + 8] = (60000).to_bytes(4, "big") * 2
    series[0].PixelData = bytes(content)
    with pytest.raises(DicomError, match="its pixels are 60000 x 60000") as caught:
        read(tmp_path / "lying", series)
    assert caught.value.rule == "damaged"


def test_what_is_no_codestream_meets_no_decoder(tmp_path: Path):
    series = classic(1)
    compress_with_gdcm(series[0], tmp_path)
    whole = bytes(series[0].PixelData)
    at = whole.index(b"\xff\x4f\xff\x51")
    three = bytearray(whole)
    three[at + 40 : at + 42] = (3).to_bytes(2, "big")
    for number, (content, message) in enumerate(
        (
            (whole[:at] + b"\0" + whole[at : at + 1] + whole[at + 2 :], "not of the kind"),
            (bytes(three), "3 components"),
        )
    ):
        series[0].PixelData = content
        with pytest.raises(DicomError, match=message):
            read(tmp_path / str(number), series)


def test_run_lengths_are_bounded_by_the_pixels(tmp_path: Path):
    series = classic(1)
    series[0].compress(RLELossless, generate_instance_uid=False)
    packed = next(generate_frames(series[0].PixelData, number_of_frames=1))
    series[0].PixelData = encapsulate([packed + b"\x81\x00" * 10_000])
    with pytest.raises(DicomError, match="longer than its pixels"):
        read(tmp_path, series)


def test_a_header_of_nothing_but_elements_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import berdiff.runtime.scans.dicom_bytes as dicom_bytes

    monkeypatch.setattr(dicom_bytes._Counted, "left", 30)
    with pytest.raises(DicomError, match="too many elements"):
        read(tmp_path, classic(1))


# Finding


def test_a_header_with_much_before_the_image_is_read_to_its_end(tmp_path: Path):
    data = classic(1)[0]
    block = data.private_block(0x0021, "SOMEBODY", create=True)
    block.add_new(1, "OB", bytes(300_000))
    files = save(tmp_path, [data])
    (series,), skipped = find_series(files)
    assert (series.files, skipped) == (tuple(files), [])


def test_directories_of_archives_are_bounded(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"1")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[-10:-6] = (2**28).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match="described in 268435456 bytes"):
        expand(FileRef(tmp_path / "a.zip"))


def test_series_are_found_whatever_files_are_called(tmp_path: Path):
    first, second = classic(), classic(4)
    for data in second:
        data.SeriesInstanceUID, data.SeriesNumber = "1.2.3.77", 9
        data.SOPInstanceUID = f"{data.SOPInstanceUID}.9"
        data.SeriesDescription = "DOE^JANE t2_tse"
    save(tmp_path / "a", first, ["x.nii.txt.bak", "2", "IM.IMA", "b.dcm", "c", "d"])
    save(tmp_path / "a", second, [f"{n}.dcm" for n in range(4)])
    report = pydicom.dcmread(io.BytesIO(hostile.dicom_slice(0)))
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    for keyword in ("Rows", "Columns", "PixelData"):
        del report[keyword]
    save(tmp_path / "a", [report], ["report"])
    (tmp_path / "notes").write_text("no DICOM")
    (tmp_path / "broken.dcm").write_bytes(hostile.dicom_slice(0)[:150])

    found = find_scans(tmp_path, Preprocessing(1, ("custom",), (32, 40)))
    assert [source.summary for source in found.sources] == [
        "MR series 4, contrast t1",
        "MR series 9, contrast t2",
    ]
    assert [len(source.files) for source in found.sources] == [6, 4]
    assert found.sources[0].key == "dicom:1.2.3.2"
    assert found.sources[0].name.startswith("series-004-")
    reasons = dict(found.ignored)
    assert reasons["report"] == "DICOM, but an object without an image"
    assert reasons["notes"] == "no scan"
    assert "DOE" not in repr(found.sources).replace(str(tmp_path), "")


def test_a_zip_archive_is_a_folder(tmp_path: Path):
    files = save(tmp_path / "plain", classic())
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "study.zip", "w") as archive:
        for number, file in enumerate(files):
            archive.write(file.path, f"../DICOM/{number}/IM")
        archive.writestr("nested.zip", b"PK")
        archive.writestr("readme.txt", b"text")
    (plain,) = find_scans(tmp_path / "plain", MODEL).sources
    (zipped,) = find_scans(tmp_path / "zipped", MODEL).sources
    assert plain.name == zipped.name
    assert plain.digest() == zipped.digest()
    first, second = read_scan(plain, MODEL), read_scan(zipped, MODEL)
    np.testing.assert_array_equal(first.slices, second.slices)
    np.testing.assert_array_equal(first.image_ids, second.image_ids)


def test_members_without_a_name_are_left_out(tmp_path: Path):
    """Found by the fuzzer: asking such a member whether it is a folder fails inside Python."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"1")
        archive.writestr("y", b"2")
    content = (tmp_path / "a.zip").read_bytes()
    start = content.index(b"PK\x01\x02")
    nameless = content[:start] + content[start:].replace(b"x", b"\0", 1)
    (tmp_path / "a.zip").write_bytes(nameless)
    assert [file.member for file in expand(FileRef(tmp_path / "a.zip"))] == ["y"]


def test_archives_that_are_none(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="cannot be read as a zip archive"):
        expand(FileRef(tmp_path / "a.zip"))


def test_another_contrast_is_a_mismatch(tmp_path: Path):
    save(tmp_path, classic())
    (source,) = find_scans(tmp_path, Preprocessing(1, ("FLAIR",), (32, 40))).sources
    assert source.mismatch == "its header says t1, and the model takes FLAIR"
    (same,) = find_scans(tmp_path, Preprocessing(1, ("T1w",), (32, 40))).sources
    assert same.mismatch == ""


@pytest.mark.parametrize(
    ("attributes", "contrast"),
    [
        ({"SeriesDescription": "t2_flair_tra"}, "flair"),
        ({"SeriesDescription": "AX T2 FLAIR"}, "flair"),
        ({"SeriesDescription": "t2_tirm_tra_dark-fluid"}, "flair"),
        ({"SeriesDescription": "t2_tse_tra"}, "t2"),
        ({"SeriesDescription": "MPRAGE"}, "t1"),
        ({"SeriesDescription": "t1_se_tra_GD"}, "t1ce"),
        ({"SeriesDescription": "t1_se", "ContrastBolusAgent": "Gadovist"}, "t1ce"),
        ({"SeriesDescription": "t1 without contrast"}, "t1"),
        ({"SeriesDescription": "t1_pre_contrast"}, "t1"),
        ({"SeriesDescription": "t1_se", "ContrastBolusAgent": "NONE"}, "t1"),
        ({"SeriesDescription": "t1 native", "ContrastBolusAgent": "Gadovist"}, None),
        ({"SeriesDescription": "AX T1 FLAIR"}, None),
        ({"SeriesDescription": "t2_tirm_cor"}, "t2"),
        ({"SeriesDescription": "epilepsy t1 mprage"}, "t1"),
        ({"SeriesDescription": "T1w_MPR"}, "t1"),
        ({"SeriesDescription": "ep2d_diff_ADC"}, None),
        ({"SeriesDescription": "t2*_swi"}, None),
        ({"SeriesDescription": "localizer t1"}, None),
        ({"SeriesDescription": "sag 3"}, None),
        ({"EchoTime": 120, "RepetitionTime": 9000, "InversionTime": 2500}, "flair"),
        ({"EchoTime": 10, "RepetitionTime": 500}, "t1"),
        ({"EchoTime": 100, "RepetitionTime": 4000}, "t2"),
        ({"EchoTime": 30, "RepetitionTime": 1500}, None),
        ({"Modality": "CT", "SeriesDescription": "t1"}, "ct"),
        ({"Modality": "OPT"}, "oct"),
    ],
)
def test_contrast_from_the_header(attributes: dict, contrast: str | None, tmp_path: Path):
    (tmp_path / "a").write_bytes(hostile.dicom_slice(0, **attributes))
    (series,), _ = find_series([FileRef(tmp_path / "a")])
    assert series.contrast == contrast


def test_a_study_gives_a_model_its_channels(tmp_path: Path):
    names = {"t1": "t1_se", "t1ce": "t1_se_gd", "t2": "t2_tse", "flair": "t2_flair"}
    for number, (contrast, description) in enumerate(names.items()):
        series = classic(20, seed=number)
        for data in series:
            data.SeriesInstanceUID, data.SeriesNumber = f"1.2.3.{20 + number}", 20 + number
            data.SOPInstanceUID = f"{data.SOPInstanceUID}.{number}"
            data.SeriesDescription = description
        save(tmp_path / contrast, series)
    (source,) = find_scans(tmp_path, FOUR).sources
    assert source.problem == ""
    scan = read_scan(source, FOUR)
    assert scan.slices.shape[1] == 4
    for channel, contrast in enumerate(names):
        (alone,) = find_scans(tmp_path / contrast, MODEL).sources
        np.testing.assert_array_equal(scan.slices[:, channel], read_scan(alone, MODEL).slices[:, 0])

    for file in (tmp_path / "t2").iterdir():
        file.unlink()
    (missing,) = find_scans(tmp_path, FOUR).sources
    assert "no series of contrast t2" in missing.problem
    assert "20: t1, 21: t1ce, 23: flair" in missing.problem


def tomography() -> Dataset:
    """B-scans of an eye whose positions say nothing (a radial pattern)."""
    data = enhanced()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
    data.Modality = "OPT"
    for group in data.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.004, 0.012]
    return data


def test_tomography_is_taken_frame_by_frame_as_stored(tmp_path: Path):
    data = tomography()
    (file,) = save(tmp_path, [data])
    model = Preprocessing(1, ("oct",), (32, 40), fit="resize")
    (source,) = find_scans(tmp_path, model).sources
    assert source.mismatch == ""
    scan = read_scan(source, model)
    frames = np.frombuffer(data.PixelData, "<u2").reshape(5, 20, 18)
    np.testing.assert_array_equal(scan.slices[:, 0], frames.astype(np.float32))
    assert (scan.kind, scan.spacing) == ("frames", (0.004, 0.012))
    assert [scan.grid.file_index(k) for k in range(5)] == list(range(5))
    stored = scan.grid.volume(scan.slices[:, 0])
    np.testing.assert_array_equal(stored, frames.transpose(2, 1, 0))
    assert file.label == "IM0000"


# Real series


@pytest.fixture
def dicom_data(shared_data: Path) -> Path:
    folder = shared_data / "data" / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def test_a_real_series_is_what_highdicom_reads(dicom_data: Path):
    import highdicom

    (series,), _ = find_series([FileRef(p) for p in (dicom_data / "siemens_t1_hfs").iterdir()])
    assert (series.contrast, len(series.files)) == ("t1", 35)
    image = read_series(series.files)
    datasets = [pydicom.dcmread(file.path) for file in series.files]
    assert_same(image, highdicom.get_volume_from_series(datasets))


def test_real_mosaics_are_refused(dicom_data: Path):
    files = [FileRef(path) for path in (dicom_data / "siemens_mosaic_epi").iterdir()]
    (series,), _ = find_series(files)
    with pytest.raises(DicomError, match="mosaic"):
        read_series(series.files)


def test_real_single_objects(dicom_data: Path):
    shapes = {}
    for path in (dicom_data / "pydicom_mr").iterdir():
        (series,), _ = find_series([FileRef(path)])
        try:
            shapes[path.name] = read_series(series.files).values.shape
        except DicomError as error:
            shapes[path.name] = error.rule
    assert shapes == {
        "MR-SIEMENS-DICOM-WithOverlays.dcm": (484, 484, 1),
        "MR2_J2KR.dcm": (1024, 1024, 1),
        "emri_small.dcm": "position",  # frames without functional groups
        "emri_small_jpeg_ls_lossless.dcm": "position",
    }
