"""The summary of a scan, or of why there is none, as a Secondary Capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_results import MADE_BY, complaints
from dicom_sources import OPHTHALMIC_TOMOGRAPHY, classic, multi_frame, save
from fakes import fake_detector

from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.overlays import PANEL_SIZE
from berdiff.runtime.run_plan import RunOptions
from berdiff.runtime.summary_picture import WIDTH, grey_tile, page, tile
from berdiff.runtime.writers.dicom_capture import SECONDARY_CAPTURE, Headers, write_status

SHAPE = (40, 32, 5)


def summary(folder: Path, *datasets: pydicom.Dataset, seed: int = 0) -> Path:
    save(folder / "in", *datasets)
    options = RunOptions(output_types=("dicom-sc",), threshold=0.03, seed=seed)
    done = run_folder(fake_detector(), folder / "in", folder / f"out{seed}", options)
    assert [result.reason for result in done.failed] == []
    (path,) = (folder / f"out{seed}" / "dicom").iterdir()
    return path


def test_it_belongs_to_its_patient_and_says_what_it_is(tmp_path: Path) -> None:
    sources = classic(shape=SHAPE)
    path = summary(tmp_path, *sources)
    assert complaints(path) == []
    data = pydicom.dcmread(path)
    assert data.SOPClassUID == SECONDARY_CAPTURE
    first = sources[0]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber"):
        assert data[keyword].value == first[keyword].value
    assert data.SeriesInstanceUID != first.SeriesInstanceUID
    assert "RESEARCH - not for clinical use" in data.SeriesDescription
    assert data.ImageComments == "RESEARCH - not for clinical use"
    (series,) = data.ReferencedSeriesSequence
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == {source.SOPInstanceUID for source in sources}
    picture = data.pixel_array
    assert picture.shape[1:] == (WIDTH, 3)
    # Anomalies are in colour: the tiles are not all grey.
    assert np.ptp(picture.astype(int), axis=2).max() > 60


def test_equal_runs_give_equal_bytes_and_others_other_uids(tmp_path: Path) -> None:
    sources = classic(shape=SHAPE)
    first, again = (summary(tmp_path / name, *sources) for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    other = summary(tmp_path / "a", seed=1)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (first, other)]
    assert uids[0] != uids[1]


def test_what_was_not_computed_says_so(tmp_path: Path) -> None:
    sources = classic()
    reason = "it has 5 slices, expected 20 at least"
    write_status(tmp_path / "status.dcm", Headers(tuple(sources)), reason, MADE_BY)
    assert complaints(tmp_path / "status.dcm") == []
    data = pydicom.dcmread(tmp_path / "status.dcm")
    assert data.StudyInstanceUID == sources[0].StudyInstanceUID
    write_status(tmp_path / "other.dcm", Headers(tuple(sources)), "another reason", MADE_BY)
    other = pydicom.dcmread(tmp_path / "other.dcm")
    assert other.SOPInstanceUID != data.SOPInstanceUID
    assert (data.pixel_array != other.pixel_array[: data.Rows]).any()


def test_frames_of_ophthalmic_tomography_have_one_too(tmp_path: Path) -> None:
    source = multi_frame(sop_class=OPHTHALMIC_TOMOGRAPHY)
    path = tmp_path / "status.dcm"
    write_status(path, Headers((source,)), "it is too small", MADE_BY)
    assert complaints(path) == []


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_pages_hold_every_tile(count: int) -> None:
    white = np.full((256, 200, 3), 255, np.uint8)
    drawn = page("title", ["a line", "word " * 100], [("label", white)] * count)
    assert np.all(drawn == 255, axis=2).sum() == pytest.approx(count * 256 * 200, abs=200)


@pytest.mark.parametrize(
    ("spacing", "size"), [(None, (256, 64)), ((1.0, 4.0), (256, 256)), ((0.5, 4.0), (128, 256))]
)
def test_slices_are_shown_in_their_true_shape(
    spacing: tuple[float, float] | None, size: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).random((80, 20), np.float32)
    assert PANEL_SIZE == 256
    assert grey_tile(image, 1.0, spacing).shape == (*size, 3)
    assert tile(image, image, image > 0.9, 1.0, spacing).shape == (*size, 3)
