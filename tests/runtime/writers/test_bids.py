"""BIDS derivatives, judged by the validator of the standard."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nibabel
import numpy as np
import pytest
from fakes import fake_detector

from berdiff.runtime.errors import InputError
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.run_plan import RunOptions
from berdiff.runtime.writers import bids

FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 40))
BIDS = RunOptions(output_types=("bids",), threshold=0.03)
AGAIN = RunOptions(output_types=("bids",), threshold=0.03, resume=True)
AFFINE = np.diag([-1.0, 1.0, 3.0, 1.0])
STUDIES = ("a [study]", "b")
CONTRASTS = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
needs_validator = pytest.mark.skipif(not VALIDATOR.exists(), reason="needs bids-validator-deno")


def volume(path: Path, seed: int = 0, shape: tuple[int, ...] = (30, 28, 5)) -> Path:
    rng = np.random.default_rng(seed)
    data = np.zeros(shape, np.int16)
    inner = (slice(4, 26), slice(4, 24), slice(1, 4))[: len(shape)]
    data[inner] = rng.integers(100, 900, data[inner].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mgz":
        nibabel.save(nibabel.freesurfer.MGHImage(data, AFFINE), path)
    else:
        nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    return path


def describe(folder: Path) -> Path:
    description = {"Name": "raw", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    return folder


def raw_dataset(folder: Path) -> Path:
    """Two sessions, two runs, one acquisition named in one image, images already processed."""
    stems = (
        *("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b"),
        *("sub-02/anat/sub-02_{}run-1", "sub-02/anat/sub-02_{}run-2"),
        "sub-03/anat/sub-03_{}space-native_res-2_desc-preproc",
    )
    for seed, stem in enumerate(stems):
        for contrast in CONTRASTS:
            # Entities have an order: the contrast agent comes before the run.
            *agent, suffix = contrast.split("_")
            ce = "".join(f"{name}_" for name in agent)
            name = stem.format(ce) if "{}" in stem else "_".join([stem, *agent])
            if name == "sub-01/ses-b/anat/sub-01_ses-b" and suffix == "T1w":
                name += "_acq-mprage"
            volume(folder / f"{name}_{suffix}.nii.gz", seed)
    return describe(folder)


def validated(dataset: Path) -> list[dict[str, Any]]:
    """Everything the validator objects to."""
    done = subprocess.run(
        [VALIDATOR, "--format", "json", dataset], capture_output=True, text=True, check=False
    )
    found: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["issues"][
        "issues"
    ]
    return found


def errors(issues: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [issue for issue in issues if issue["severity"] == "error"]


def images(dataset: Path) -> set[str]:
    return {path.relative_to(dataset).as_posix() for path in dataset.rglob("*.nii.gz")}


def read_json(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@needs_validator
def test_results_of_a_dataset_are_a_derivative_of_it(tmp_path: Path):
    source, out = raw_dataset(tmp_path / "raw data"), tmp_path / "out"
    summary = run_folder(fake_detector(FOUR), source, out, BIDS)
    assert len(summary.ok) == 5, summary.failed
    issues = validated(out / "bids")
    assert errors(issues) == []
    # The data's authors are not ours to name; nothing else is left to be wished for.
    assert {issue["code"] for issue in issues} <= {"TOO_FEW_AUTHORS"}

    anat = "sub-01/ses-b/anat/sub-01_ses-b"
    expected = {
        f"{anat}_desc-anomaly_T1w.nii.gz",
        f"{anat}_desc-anomaly_mask.nii.gz",
        f"{anat}_desc-flips_probseg.nii.gz",
        f"{anat}_acq-mprage_desc-healthy_T1w.nii.gz",
        f"{anat}_ce-gadolinium_desc-healthy_T1w.nii.gz",
        f"{anat}_desc-healthy_T2w.nii.gz",
        f"{anat}_desc-healthy_FLAIR.nii.gz",
    }
    assert {name for name in images(out / "bids") if name.startswith(anat)} == expected
    for name in expected:
        image = nibabel.load(out / "bids" / name)
        np.testing.assert_array_equal(image.affine, AFFINE)
        assert image.shape == (30, 28, 5)
        assert image.header.get_xyzt_units()[0] == "mm"
    assert {
        "sub-02/anat/sub-02_run-2_desc-anomaly_mask.nii.gz",
        "sub-02/anat/sub-02_ce-gadolinium_run-2_desc-healthy_T1w.nii.gz",
        "sub-03/anat/sub-03_space-native_res-2_desc-preprocAnomaly_T1w.nii.gz",
        "sub-03/anat/sub-03_space-native_res-2_desc-preprocAnomaly_mask.nii.gz",
    } <= images(out / "bids")

    sidecar = read_json(out / "bids" / f"{anat}_desc-anomaly_mask.json")
    assert sidecar["Sources"] == [
        f"bids:raw:{anat}_{rest}.nii.gz"
        for rest in ("acq-mprage_T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")
    ]
    assert sidecar["SpatialReference"] == sidecar["Sources"][0]
    made_by = sidecar["GeneratedBy"][0]
    assert (made_by["threshold"], made_by["bundle"]) == (0.03, "d" * 64)
    described = read_json(out / "bids" / "dataset_description.json")
    link = unquote(described["DatasetLinks"]["raw"])
    assert (out / "bids" / link).resolve() == source.resolve()


@needs_validator
def test_the_validator_objects_to_what_is_wrong(tmp_path: Path):
    """Without this, an answer without errors would say little."""
    run_folder(fake_detector(), volume(tmp_path / "case.nii.gz"), tmp_path / "out", BIDS)
    anat = tmp_path / "out" / "bids" / "sub-case" / "anat"
    shutil.copy(anat / "sub-case_desc-anomaly_mask.nii.gz", anat / "sub-case_anommap.nii.gz")
    stripped = anat / "sub-case_desc-healthy_FLAIR.json"
    record = read_json(stripped)
    del record["SkullStripped"]
    stripped.write_text(json.dumps(record))
    found = {(e["location"], e.get("subCode")) for e in errors(validated(anat.parents[1]))}
    assert {
        ("/sub-case/anat/sub-case_anommap.nii.gz", None),
        ("/sub-case/anat/sub-case_desc-healthy_FLAIR.nii.gz", "SkullStripped"),
    } <= found


@needs_validator
def test_results_of_other_scans_are_a_dataset_of_their_own(tmp_path: Path):
    one, four, out = tmp_path / "one", tmp_path / "four", tmp_path / "out"
    for name in ("case1.nii.gz", "case_1.nii.gz", "deep/case-1.nii.gz", "äöü 3.nii.gz", "m.mgz"):
        volume(one / name, len(name))
    volume(one / "plane.nii.gz", 1, (30, 28))
    volume(one / "long.nii.gz", 2, (30, 28, 5, 1))
    for seed, study in enumerate(STUDIES):
        volume(one / study / "sub-01/anat/sub-01_T1w.nii.gz", seed)
        describe(one / study)
    for contrast in FOUR.modalities:
        volume(four / "BraTS20_001" / f"BraTS20_001_{contrast}.nii.gz", 4)
    volume(four / "together.nii.gz", 5, (30, 28, 5, 4))

    t1 = fake_detector(Preprocessing(1, ("t1",), (32, 40)))  # of T1w, the validator counts the axes
    summary = run_folder(t1, one, out, BIDS)
    assert len(summary.ok) == 9, summary.failed
    assert run_folder(t1, one, out, AGAIN).reused == 9
    summary = run_folder(fake_detector(FOUR), four, tmp_path / "out4", BIDS)
    assert len(summary.ok) == 2, summary.failed
    dataset = out / "bids"
    for subject in (tmp_path / "out4" / "bids").glob("sub-*"):
        shutil.copytree(subject, dataset / subject.name)
    assert errors(validated(dataset)) == []

    found = {name for name in images(dataset) if name.startswith("sub-")}
    assert len({name.split("/")[0] for name in found}) == 9
    assert "sub-case1/anat/sub-case1_desc-anomaly_T1w.nii.gz" in found
    together = {name.split("_", 1)[1] for name in found if name.startswith("sub-together/")}
    assert together == {
        "desc-anomaly_T1w.nii.gz",
        "desc-anomaly_mask.nii.gz",
        "desc-flips_probseg.nii.gz",
        "ce-gadolinium_desc-healthy_T1w.nii.gz",
        *(f"desc-healthy_{suffix}.nii.gz" for suffix in ("T1w", "T2w", "FLAIR")),
    }
    mask = read_json(dataset / "sub-together/anat/sub-together_desc-anomaly_mask.json")
    assert mask["Input"] == "together.nii.gz"
    assert "Sources" not in mask
    assert "DatasetLinks" not in read_json(dataset / "dataset_description.json")

    # Both studies have a subject 01, and each has a derivative of its own.
    maps = [dataset / study / "sub-01/anat/sub-01_desc-anomaly_T1w.nii.gz" for study in STUDIES]
    assert maps[0].read_bytes() != maps[1].read_bytes()
    for study in STUDIES:
        link = read_json(dataset / study / "dataset_description.json")["DatasetLinks"]["raw"]
        assert (dataset / study / unquote(link)).resolve() == (one / study).resolve()


def test_the_description_is_written_once_and_belongs_to_no_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[str] = []
    original = bids.write_atomic

    def write_atomic(path: Path, data: bytes) -> None:
        written.append(path.name)
        original(path, data)

    monkeypatch.setattr(bids, "write_atomic", write_atomic)
    for number in range(8):
        volume(tmp_path / "in" / f"case{number}.nii.gz", number)
    out = tmp_path / "out"
    options = RunOptions(output_types=("bids",), threshold=0.03, workers=4)
    summary = run_folder(fake_detector(), tmp_path / "in", out, options)
    assert len(summary.ok) == 8, summary.failed
    assert written.count("dataset_description.json") == written.count("README") == 1
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    for record in journal:
        listed = {name for name in record["outputs"] if name.startswith("bids/")}
        assert all(name.startswith("bids/sub-case") for name in listed)
        assert len(listed) == 8

    # One that says something else, such as of an older version, is brought up to date.
    description = out / "bids" / "dataset_description.json"
    current = description.read_bytes()
    description.write_text("{")
    run_folder(fake_detector(digest="e" * 64), tmp_path / "in", out, AGAIN)
    assert description.read_bytes() == current


def test_links_outlive_scans_from_elsewhere(tmp_path: Path):
    """Images of a dataset beside other files: whichever is finished last, its links remain."""
    source = tmp_path / "in"
    volume(source / "sub-01/anat/sub-01_FLAIR.nii.gz", 1)
    volume(source / "zz.nii.gz", 2)
    out = tmp_path / "out"
    options = RunOptions(output_types=("bids",), threshold=0.03, workers=1)
    summary = run_folder(fake_detector(), source, out, options)
    assert [scan.format for scan in summary.ok] == ["bids", "nifti"]
    described = read_json(out / "bids" / "dataset_description.json")
    assert described["DatasetLinks"] == {"raw": "../../in"}
    assert described["SourceDatasets"] == [{"URL": "../../in"}]


def test_one_session_alone_is_known_as_part_of_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = raw_dataset(tmp_path / "raw")
    monkeypatch.chdir(source / "sub-01" / "ses-a" / "anat")
    summary = run_folder(fake_detector(FOUR), Path("."), tmp_path / "out", BIDS)
    assert len(summary.ok) == 1, summary.failed
    dataset = tmp_path / "out" / "bids"
    anat = "sub-01/ses-a/anat/sub-01_ses-a"
    sidecar = read_json(dataset / f"{anat}_desc-anomaly_mask.json")
    assert sidecar["Sources"][0] == f"bids:raw:{anat}_T1w.nii.gz"
    described = read_json(dataset / "dataset_description.json")
    assert (dataset / described["DatasetLinks"]["raw"]).resolve() == source.resolve()


def test_values_are_those_of_the_scan(tmp_path: Path):
    source = volume(tmp_path / "case.nii.gz")
    both = RunOptions(output_types=("bids", "nifti"), threshold=0.03)
    run_folder(fake_detector(), source, tmp_path / "out", both)
    anat = tmp_path / "out" / "bids" / "sub-case" / "anat"
    for name, part in (
        ("desc-anomaly_FLAIR", "anomaly"),
        ("desc-healthy_FLAIR", "reconstruction"),
        ("desc-flips_probseg", "flips"),
        ("desc-anomaly_mask", "mask"),
    ):
        image = nibabel.load(anat / f"sub-case_{name}.nii.gz")
        plain = nibabel.load(tmp_path / "out" / "maps" / f"case_{part}.nii.gz")
        assert image.get_data_dtype() == (np.uint8 if part == "mask" else np.float32)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(plain.dataobj))
        assert np.asarray(image.dataobj).max() > 0


@pytest.mark.parametrize(
    ("modalities", "reason"),
    [
        (("oct",), "BIDS has no suffix for images of 'oct'"),
        (("t1", "T1w"), "would have the same names in BIDS"),
    ],
)
def test_contrasts_that_bids_cannot_name(tmp_path: Path, modalities: tuple[str, ...], reason: str):
    count = len(modalities)
    volume(tmp_path / "in" / "a.nii.gz", 0, (30, 28, 5, count) if count > 1 else (30, 28, 5))
    model = Preprocessing(count, modalities, (32, 40))
    with pytest.raises(InputError, match=reason):
        run_folder(fake_detector(model), tmp_path / "in", tmp_path / "out", BIDS)
    assert not (tmp_path / "out").exists()
