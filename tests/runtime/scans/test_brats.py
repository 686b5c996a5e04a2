"""BraTS case folders of both namings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans.brats import find, recognise
from berdiff.runtime.scans.modalities import Layout

FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 32))
FLAIR = Preprocessing(1, ("flair",), (32, 32))
OLD = [f"HGG/B18_1/B18_1_{part}.nii.gz" for part in ("flair", "seg", "t1", "t1ce", "t2")]
NEW = [f"B-GLI-2-000/B-GLI-2-000-{part}.nii.gz" for part in ("seg", "t1c", "t1n", "t2f", "t2w")]


def touch(folder: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(folder / name for name in names)


def names(layout: Layout) -> dict[str, list[str]]:
    return {source.key: [file.path.name for file in source.files] for source in layout.sources}


def test_both_namings_in_the_models_order(tmp_path: Path):
    files = touch(tmp_path, [*OLD, *NEW, "HGG/B18_1/notes.txt", "survival.csv"])
    assert recognise(tmp_path, files, FOUR)
    found = find(tmp_path, files, FOUR)
    assert names(found) == {
        "B-GLI-2-000": [f"B-GLI-2-000-{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f")],
        "HGG/B18_1": [f"B18_1_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair")],
    }
    for source in found.sources:
        assert source.name == source.key
        assert source.modalities == FOUR.modalities
        assert source.format == "brats"
        assert source.problem == ""
        assert source.summary == "BraTS case: t1, t1ce, t2, flair"
    assert found.claimed == set(files) - {tmp_path / "survival.csv"}


def test_a_model_of_one_modality_takes_its_file(tmp_path: Path):
    found = find(tmp_path, touch(tmp_path, [*OLD, *NEW]), FLAIR)
    assert names(found) == {
        "B-GLI-2-000": ["B-GLI-2-000-t2f.nii.gz"],
        "HGG/B18_1": ["B18_1_flair.nii.gz"],
    }
    assert len(found.claimed) == 10


def test_a_missing_modality(tmp_path: Path):
    files = touch(tmp_path, [name for name in OLD if "t1ce" not in name])
    (source,) = find(tmp_path, files, FOUR).sources
    assert source.problem.startswith("t1ce missing: got t1, t2, flair; the model takes t1, t1ce,")
    assert source.summary == "BraTS case: t1, t2, flair"
    assert not any("seg" in file.path.name for file in source.files)


def test_a_modality_brats_does_not_have(tmp_path: Path):
    (source,) = find(tmp_path, touch(tmp_path, OLD), Preprocessing(1, ("oct",), (32, 32))).sources
    assert source.problem.startswith("oct missing: got t1, t1ce, t2, flair; the model takes oct.")


@pytest.mark.parametrize("twin", ["a/a_t1.nii", "a/a-t1n.nii.gz", "a/a_T1.nii.gz"])
def test_one_modality_twice(twin: str, tmp_path: Path):
    four = [f"a/a_{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair")]
    files = touch(tmp_path, [*four, twin])
    (source,) = find(tmp_path, files, FOUR).sources
    assert source.problem.startswith("more than one file for t1: ")
    assert Path(twin).name in source.problem
    assert "a_t1.nii.gz" in source.problem
    assert find(tmp_path, files, FLAIR).sources[0].problem == ""


def test_a_segmentation_is_never_an_input(tmp_path: Path):
    files = touch(tmp_path, ["a/a_seg.nii.gz"])
    assert recognise(tmp_path, files, FLAIR)
    found = find(tmp_path, files, FLAIR)
    assert found.sources[0].problem.startswith("flair missing: got no modality")
    assert found.sources[0].files == ()
    assert found.claimed == set(files)


def test_the_folder_given_is_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, OLD)
    root = tmp_path / "HGG" / "B18_1"
    files = sorted(root.iterdir())
    for written in (root, root / ".." / "B18_1"):
        found = find(written, [written / file.name for file in files], FOUR)
        assert [(s.key, s.name) for s in found.sources] == [("B18_1", "B18_1")]
    monkeypatch.chdir(root)
    here = [Path(file.name) for file in files]
    found = find(Path("."), here, FOUR)
    assert [(s.key, s.name, s.problem) for s in found.sources] == [("B18_1", "B18_1", "")]
    assert found.claimed == set(here)


def test_a_case_in_a_folder_called_otherwise(tmp_path: Path):
    root = tmp_path / "input"
    files = touch(root, [Path(name).name for name in OLD])
    assert recognise(root, files, FOUR)
    found = find(root, files, FOUR)
    assert [(s.key, s.name, s.problem) for s in found.sources] == [("input", "input", "")]
    assert found.claimed == set(files)


def test_a_case_that_holds_a_folder_of_its_own_name(tmp_path: Path):
    root = tmp_path / "a"
    files = touch(root, ["a_flair.nii", "a/a_flair.nii", "a/a/a_flair.nii"])
    found = find(root, files, FLAIR)
    assert [(s.key, s.name) for s in found.sources] == [(".", "a"), ("a", "a"), ("a/a", "a/a")]
    assert [s.files[0].path for s in found.sources] == [
        root / "a_flair.nii",
        root / "a" / "a_flair.nii",
        root / "a" / "a" / "a_flair.nii",
    ]


@pytest.mark.parametrize(
    "loose",
    [
        ["p07_FLAIR.nii.gz", "p07_T1.nii.gz", "p07_lesion.nii.gz"],
        ["p07_FLAIR.nii.gz", "p07_T1.nii.gz", "p08_FLAIR.nii.gz"],
        ["p07_FLAIR.nii.gz"],
        ["p07_FLAIR.nii.gz", "p07_seg.nii.gz"],
        ["other/p07_t1.nii.gz", "other/p07_t2.nii.gz"],
        [
            "a/b_t1.nii.gz",
            "a/a_t1.png",
            "a/a_t1w.nii.gz",
            "a/a.nii.gz",
            "a/_t1.nii.gz",
            "a/at1.nii",
        ],
    ],
)
def test_what_is_no_case_folder(loose: list[str], tmp_path: Path):
    assert not recognise(tmp_path, touch(tmp_path, loose), FLAIR)


def test_cases_without_folders_when_asked_for(tmp_path: Path):
    files = touch(
        tmp_path,
        ["p07_FLAIR.nii.gz", "p07_T1.nii.gz", "p07_seg.nii.gz", "deep/p08_FLAIR.nii", "x.nii"],
    )
    found = find(tmp_path, files, FLAIR)
    assert names(found) == {"deep/p08": ["p08_FLAIR.nii"], "p07": ["p07_FLAIR.nii.gz"]}
    assert found.claimed == set(files) - {tmp_path / "x.nii"}


def test_a_broken_link(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a_flair.nii.gz").symlink_to(tmp_path / "annex" / "gone")
    (source,) = find(tmp_path, [tmp_path / "a" / "a_flair.nii.gz"], FLAIR).sources
    assert source.problem.startswith("broken link: a_flair.nii.gz")
