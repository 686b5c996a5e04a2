"""Names of modalities, and the choice of files by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans.modalities import (
    canonical_modality,
    choose,
    choose_by_name,
    folder_name,
    listed,
)

NAMES = {
    "t1": ["t1", "T1", "t1n", "T1w", "t1-n"],
    "t1ce": ["t1ce", "t1c", "T1Gd", "T1-CE", "t1_gd", "T1 Gd"],
    "t2": ["t2", "T2w", "t2_w"],
    "flair": ["flair", "FLAIR", "t2f", "T2FLAIR", "T2-FLAIR", "t2_flair"],
}


@pytest.mark.parametrize("canonical", NAMES)
def test_names_of_a_modality(canonical: str):
    assert {canonical_modality(name) for name in NAMES[canonical]} == {canonical}


@pytest.mark.parametrize("name", ["oct", "OCT", "T2starw", "t1 map", "", "t1cet2", "PD-w"])
def test_other_names_stay_as_they_are(name: str):
    assert canonical_modality(name) == name


def model(*modalities: str) -> Preprocessing:
    return Preprocessing(len(modalities), modalities, (32, 32))


def test_the_model_says_what_and_in_which_order(tmp_path: Path):
    there = {name: [tmp_path / f"{name}.nii"] for name in NAMES}
    choice = choose_by_name(there, model("T2-FLAIR", "t1n"))
    assert [file.path.name for file in choice.files] == ["flair.nii", "t1.nii"]
    assert choice.modalities == ("T2-FLAIR", "t1n")
    assert choice.problem == ""


def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path):
    there = {name: [tmp_path / f"{name}.nii"] for name in ("t1", "t2")}
    choice = choose_by_name(there, model("t1", "t1ce", "t2", "flair"))
    assert choice.problem.startswith(
        "t1ce, flair missing: got t1, t2; the model takes t1, t1ce, t2, flair. "
    )
    assert choice.modalities == ()
    assert [file.path.name for file in choice.files] == ["t1.nii", "t2.nii"]
    assert "oct missing: got no modality known here" in choose_by_name({}, model("oct")).problem


def test_two_files_for_one_modality(tmp_path: Path):
    there = {"t1": [tmp_path / "t1.nii", tmp_path / "t1.nii.gz"], "t2": [tmp_path / "t2.nii"]}
    problem = choose_by_name(there, model("t2", "t1")).problem
    assert "more than one file for t1: t1.nii, t1.nii.gz;" in problem
    assert str(tmp_path) not in problem
    assert choose_by_name(there, model("t2")).problem == ""


def test_channels_of_one_modality_are_not_told_apart(tmp_path: Path):
    there = {"t1": [tmp_path / "t1.nii"]}
    assert "(t1, T1w) cannot be told apart" in choose_by_name(there, model("t1", "T1w")).problem
    files = [[tmp_path / "a_0000.nii"], [tmp_path / "a_0001.nii"]]
    assert choose(files, {}, model("t1", "T1w")).problem == ""


def test_links(tmp_path: Path):
    (tmp_path / "content").touch()
    (tmp_path / "t1.nii").symlink_to("content")
    (tmp_path / "t2.nii").symlink_to("gone")
    there = {name: [tmp_path / f"{name}.nii"] for name in ("t1", "t2")}
    assert choose_by_name(there, model("t1")).problem == ""
    problem = choose_by_name(there, model("t1", "t2")).problem
    assert problem.startswith("broken link: t2.nii points to a file that is not there")


def test_lists_end():
    names = [str(number) for number in range(100)]
    assert listed(names[:6]) == "0, 1, 2, 3, 4, 5"
    assert listed(names) == "0, 1, 2, 3, 4, 5 and 94 more"


def test_a_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "case" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "case" / "deep")
    for written in (Path("../../case"), Path(".."), tmp_path / "case" / "deep" / ".."):
        assert folder_name(written) == "case"
    assert folder_name(Path(".")) == "deep"
    assert folder_name(Path("/")) == "scan"
