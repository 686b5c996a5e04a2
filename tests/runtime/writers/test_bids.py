"""BIDS derivatives, judged by the validator of the standard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fakes import fake_detector
from hypothesis import given
from hypothesis import strategies as st

from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.run_plan import RunOptions
from berdiff.runtime.scans import FileRef, ScanSource
from berdiff.runtime.writers.bids import files

FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 40))
BIDS = RunOptions(output_types=("bids",), threshold=0.03)
AFFINE = np.diag([-1.0, 1.0, 3.0, 1.0])

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
needs_validator = pytest.mark.skipif(not VALIDATOR.exists(), reason="needs bids-validator-deno")


def volume(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    data = np.zeros((30, 28, 5), np.int16)
    data[4:26, 4:24, 1:4] = rng.integers(100, 900, (22, 20, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return path


def raw_dataset(folder: Path) -> Path:
    """Two subjects; one with two sessions, the other with two runs."""
    contrasts = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")
    for seed, stem in enumerate(
        ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02")
    ):
        for contrast in contrasts:
            volume(folder / f"{stem}_{contrast}.nii.gz", seed)
    description = {"Name": "raw", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return folder


def errors(dataset: Path) -> list[dict]:
    """What the validator objects to."""
    done = subprocess.run(
        [VALIDATOR, "--format", "json", dataset], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout[done.stdout.index("{") :])["issues"]["issues"]
    return [issue for issue in found if issue["severity"] == "error"]


def names(dataset: Path) -> set[str]:
    return {
        path.relative_to(dataset).as_posix()
        for path in dataset.rglob("*")
        if path.is_file() and path.suffix != ".json"
    }


@needs_validator
def test_results_of_a_dataset_are_a_derivative_of_it(tmp_path: Path):
    source, out = raw_dataset(tmp_path / "raw"), tmp_path / "out"
    summary = run_folder(fake_detector(FOUR), source, out, BIDS)
    assert len(summary.ok) == 3, summary.failed
    assert errors(out / "bids") == []

    anat = "sub-01/ses-b/anat/sub-01_ses-b"
    expected = {
        f"{anat}_desc-anomaly_T1w.nii.gz",
        f"{anat}_desc-anomaly_mask.nii.gz",
        f"{anat}_desc-flips_probseg.nii.gz",
        f"{anat}_ce-gadolinium_desc-healthy_T1w.nii.gz",
        *(f"{anat}_desc-healthy_{suffix}.nii.gz" for suffix in ("T1w", "T2w", "FLAIR")),
    }
    assert {name for name in names(out / "bids") if name.startswith(anat)} == expected
    for name in expected:
        image = nibabel.load(out / "bids" / name)
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert image.shape == (30, 28, 5)
        assert image.header.get_xyzt_units()[0] == "mm"
    sidecar = json.loads((out / "bids" / f"{anat}_desc-anomaly_mask.json").read_text())
    assert sidecar["Sources"][0] == "bids:raw:sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz"
    assert sidecar["GeneratedBy"]["threshold"] == 0.03
    described = json.loads((out / "bids" / "dataset_description.json").read_text())
    link = described["DatasetLinks"]["raw"]
    assert (out / "bids" / link).resolve() == source.resolve()

    # The check above can fail: a name the standard does not know is objected to.
    shutil.copy(
        out / "bids" / f"{anat}_desc-anomaly_mask.nii.gz", out / "bids" / f"{anat}_anommap.nii.gz"
    )
    assert errors(out / "bids")


@needs_validator
def test_results_of_other_scans_are_a_dataset_of_their_own(tmp_path: Path):
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("case1.nii.gz", "case_1.nii.gz", "deep/case-1.nii.gz", "äöü 3.nii.gz"):
        volume(source / name, len(name))
    summary = run_folder(fake_detector(), source, out, BIDS)
    assert len(summary.ok) == 4, summary.failed
    assert errors(out / "bids") == []
    found = names(out / "bids")
    assert len({name.split("/")[0] for name in found if name.startswith("sub-")}) == 4
    assert "sub-case1/anat/sub-case1_desc-anomaly_FLAIR.nii.gz" in found
    again = run_folder(fake_detector(), source, out, RunOptions(**{**vars(BIDS), "resume": True}))
    assert again.reused == 4


def test_contrasts_that_bids_does_not_know(tmp_path: Path):
    volume(tmp_path / "in" / "a.nii.gz")
    model = Preprocessing(1, ("oct",), (32, 40))
    summary = run_folder(fake_detector(model), tmp_path / "in", tmp_path / "out", BIDS)
    assert "BIDS has no suffix for images of 'oct'" in summary.failed[0].reason
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@given(st.sets(st.text("aB1-_/ .ä", min_size=1, max_size=8), min_size=2, max_size=12))
def test_subjects_are_told_apart(given_names: set[str]):
    sources = [
        ScanSource(f"{name}.nii", name, "nifti", (FileRef(Path("x.nii")),)) for name in given_names
    ]
    subjects = [files(source)[0].split("/")[1] for source in sources]
    assert len(set(subjects)) == len(sources)
    assert all(subject.removeprefix("sub-").isalnum() for subject in subjects)
    assert all(subject.isascii() for subject in subjects)
