"""Which writer writes what, and what is refused before anything is computed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import hostile
import nibabel
import numpy as np
import pydicom
import pytest
from fakes import fake_detector
from PIL import Image

from berdiff.runtime.errors import InputError
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.run_plan import RunOptions


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    data = np.zeros((28, 26, 4), np.int16)
    data[3:25, 3:23, 1:3] = np.random.default_rng(0).integers(100, 900, (22, 20, 2))
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1.0, -4.0, 1.0])), tmp_path / "in/v.nii")
    return tmp_path / "in"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_png_of_a_volume_is_a_picture_of_every_slice_that_shows_something(
    volume: Path, tmp_path: Path
):
    options = RunOptions(output_types=("png",))
    run_folder(fake_detector(), volume, tmp_path / "out", options)
    found = files(tmp_path / "out")
    # The file's slices run from head to feet; names are places in the file.
    assert {name for name in found if name.startswith("slices/")} == {
        "slices/v/1.png",
        "slices/v/2.png",
    }
    assert not any(name.startswith("maps/") for name in found)
    with Image.open(tmp_path / "out/slices/v/1.png") as picture:
        assert picture.width > picture.height


def test_several_types_at_once(volume: Path, tmp_path: Path):
    options = RunOptions(output_types=("nifti", "bids", "png"))
    run_folder(fake_detector(), volume, tmp_path / "out", options)
    tops = {name.split("/")[0] for name in files(tmp_path / "out") if "/" in name}
    assert tops == {"maps", "bids", "slices", "overlays", "volumes"}


def test_other_types_do_a_finished_scan_again(volume: Path, tmp_path: Path):
    def reused(*types: str) -> int:
        options = RunOptions(output_types=types, resume=True)  # type: ignore[arg-type]
        return run_folder(fake_detector(), volume, tmp_path / "out", options).reused

    assert [reused("nifti"), reused("nifti"), reused("png"), reused("png")] == [0, 1, 0, 1]
    assert not list((tmp_path / "out" / "maps").iterdir())


def test_two_scans_never_write_one_file(volume: Path, tmp_path: Path):
    """A subject of a dataset that says nothing of itself, beside a file of the same name."""
    subject = volume / "sub-01" / "anat"
    subject.mkdir(parents=True)
    content = (volume / "v.nii").read_bytes()
    (subject / "sub-01_FLAIR.nii").write_bytes(content)
    (volume / "v.nii").rename(volume / "01.nii")
    options = RunOptions(output_types=("bids",))
    with pytest.raises(InputError, match=r"01\.nii.* and .*sub-01.* would both be written to"):
        run_folder(fake_detector(), volume, tmp_path / "out", options)


def test_the_sidecar_says_what_made_the_maps(volume: Path, tmp_path: Path):
    options = RunOptions(seed=7, threshold=0.03)
    (result,) = run_folder(fake_detector(), volume, tmp_path / "out", options).results
    made_by = json.loads((tmp_path / "out/maps/v.json").read_text())["GeneratedBy"]
    assert made_by["input_sha256"] == result.sha256
    assert (made_by["seed"], made_by["threshold"], made_by["bundle"]) == (7, 0.03, "d" * 64)
    assert made_by["settings"]["noise_level"] == 100


def test_types_that_cannot_hold_a_scan_are_refused_before_anything_is_written(
    volume: Path, tmp_path: Path
):
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(volume / "p.png")
    for types, message in ((("bids",), "no anatomical pictures"), (("dicom-seg",), "needs DICOM")):
        with pytest.raises(InputError, match=message):
            run_folder(fake_detector(), volume, tmp_path / "out", RunOptions(output_types=types))
    assert not (tmp_path / "out").exists()


def series(folder: Path, **attributes: object) -> Path:
    folder.mkdir()
    for number in range(20):
        data = pydicom.dcmread(io.BytesIO(hostile.dicom_slice(number)))
        for keyword, value in attributes.items():
            setattr(data, keyword, value)
        data.save_as(folder / f"{number}", enforce_file_format=True)
    return folder


def test_dicom_results_of_a_run_name_nobody_but_inside_the_objects(tmp_path: Path):
    """Tables, report, sidecars, names, journal: no name, birth date, identity or accession."""
    from berdiff.runtime.report import write_report

    options = RunOptions(output_types=("nifti", "dicom-seg", "dicom-pmap"), threshold=0.03)
    source = series(tmp_path / "in", SeriesDescription="DOE^JANE t2_flair")
    summary = run_folder(fake_detector(), source, tmp_path / "out", options)
    assert len(summary.ok) == 1, summary.failed
    write_report(tmp_path / "out")
    private = (b"DOE", b"JANE", b"4711", b"19700101", b"A-0815")
    objects = sorted((tmp_path / "out" / "dicom").iterdir())
    assert [path.name.rsplit("_", 1)[1] for path in objects] == ["pmap.dcm", "seg.dcm"]
    for path in (tmp_path / "out").rglob("*"):
        assert "DOE" not in path.name
        if path.is_file() and path not in objects:
            content = path.read_bytes()
            assert not [word for word in private if word in content], path
    for path in objects:
        assert pydicom.dcmread(path).PatientName == "DOE^JANE"


def test_a_series_without_a_frame_of_reference_is_refused_before_it_is_computed(tmp_path: Path):
    source = series(tmp_path / "in", FrameOfReferenceUID="")
    detector = fake_detector()
    options = RunOptions(output_types=("dicom-seg",))
    (result,) = run_folder(detector, source, tmp_path / "out", options).results
    assert result.status == "failed"
    assert "no valid FrameOfReferenceUID" in result.reason
    assert detector.backend.batches == []  # type: ignore[attr-defined]


def test_min_slices_and_contrast(tmp_path: Path):
    source = series(tmp_path / "in", SeriesDescription="t1_mprage")
    (few,) = run_folder(
        fake_detector(), source, tmp_path / "a", RunOptions(min_slices=21, accept_contrast=True)
    ).results
    assert "it has 20 slices, expected 21 at least" in few.reason
    (other,) = run_folder(fake_detector(), source, tmp_path / "b").results
    assert other.reason.startswith("its header says t1, and the model takes flair; --accept")
    assert other.verdict == "rejected"
    (taken,) = run_folder(
        fake_detector(), source, tmp_path / "c", RunOptions(accept_contrast=True)
    ).results
    assert (taken.status, taken.verdict) == ("ok", "suspect")
    assert "its header says t1" in taken.verdict_reason
