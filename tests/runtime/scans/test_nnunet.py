"""nnU-Net channel files, and images that are only counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans.modalities import Layout
from berdiff.runtime.scans.nnunet import find, recognise

FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 32))
TWO = Preprocessing(2, ("t1", "flair"), (32, 32))
FLAIR = Preprocessing(1, ("flair",), (32, 32))


def touch(folder: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(folder / name for name in names)


def case(name: str, *channels: int, suffix: str = ".nii.gz") -> list[str]:
    return [f"{name}_{channel:04d}{suffix}" for channel in channels or range(4)]


def describe(path: Path, channels: Any, key: str = "channel_names") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: channels, "file_ending": ".nii.gz"}))
    return path


def names(layout: Layout) -> dict[str, list[str]]:
    return {source.key: [file.path.name for file in source.files] for source in layout.sources}


def test_channels_in_the_models_order(tmp_path: Path):
    files = touch(tmp_path, [*case("a"), *case("deep/b_2", suffix=".nii"), "deep/x.png"])
    assert recognise(tmp_path, files, FOUR)
    found = find(tmp_path, files, FOUR)
    assert names(found) == {"a": case("a"), "deep/b_2": case("b_2", suffix=".nii")}
    for source in found.sources:
        assert (source.name, source.format, source.problem) == (source.key, "nnunet", "")
        assert source.modalities == FOUR.modalities
        assert source.summary == "nnU-Net case: 0000, 0001, 0002, 0003"
    assert found.claimed == set(files) - {tmp_path / "deep" / "x.png"}


@pytest.mark.parametrize("key", ["channel_names", "modality"])
@pytest.mark.parametrize("place", ["imagesTs/dataset.json", "dataset.json"])
def test_dataset_json_says_which_channel_is_which(key: str, place: str, tmp_path: Path):
    files = touch(tmp_path, [*case("imagesTs/a"), *case("imagesTs/b")])
    channels = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    files.append(describe(tmp_path / place, channels, key))
    found = find(tmp_path, sorted(files), FOUR)
    assert names(found) == {
        "imagesTs/a": case("a", 1, 2, 3, 0),
        "imagesTs/b": case("b", 1, 2, 3, 0),
    }
    assert found.sources[0].modalities == FOUR.modalities
    assert found.sources[0].summary == "nnU-Net case: flair, t1, t1ce, t2"
    assert found.claimed == set(files)
    assert names(find(tmp_path, files, FLAIR)) == {
        "imagesTs/a": case("a", 0),
        "imagesTs/b": case("b", 0),
    }


def test_the_folder_given_is_one_of_images(tmp_path: Path):
    root = tmp_path / "imagesTs"
    files = touch(root, case("a"))
    describe(tmp_path / "dataset.json", {"0": "flair", "1": "t1", "2": "t2", "3": "t1ce"})
    assert recognise(root, files, FLAIR)
    assert names(find(root, files, FOUR)) == {"a": case("a", 1, 3, 2, 0)}


def test_what_lies_above_the_folder_given_is_left_alone(tmp_path: Path):
    describe(tmp_path / "dataset.json", {"0": "flair", "1": "t1", "2": "t2", "3": "t1ce"})
    root = tmp_path / "mine"
    assert names(find(root, touch(root, case("a")), FOUR)) == {"a": case("a")}


@pytest.mark.parametrize(
    "channels", [["MRI"] * 4, ["0", "1", "2", "3"], ["zscore", "", "MR", "noNorm"]]
)
def test_names_that_are_no_modalities_leave_the_order(channels: list[str], tmp_path: Path):
    files = touch(tmp_path, case("a"))
    describe(tmp_path / "dataset.json", dict(enumerate(channels)))
    (source,) = find(tmp_path, files, FOUR).sources
    assert [file.path.name for file in source.files] == case("a")
    assert source.problem == ""


def test_another_modality_is_refused(tmp_path: Path):
    files = touch(tmp_path, case("a", 0))
    describe(tmp_path / "dataset.json", {"0": "CT"})
    assert recognise(tmp_path, files, FLAIR)
    (source,) = find(tmp_path, files, FLAIR).sources
    assert source.problem.startswith("flair missing: got CT; the model takes flair.")


def test_several_channels_for_a_model_of_one(tmp_path: Path):
    files = touch(tmp_path, [f"imagesTr/{name}" for name in case("a")])
    assert recognise(tmp_path, files, FLAIR)
    (source,) = find(tmp_path, files, FLAIR).sources
    assert source.problem.startswith(
        "got channels 0000, 0001, 0002, 0003; the model takes 1 (flair). Say which is which in "
        "dataset.json"
    )
    assert source.modalities == ()


def test_a_broken_case_among_whole_ones(tmp_path: Path):
    files = touch(
        tmp_path,
        [f"imagesTr/{name}" for name in [*case("a"), *case("b", 0, 1, 3), "b_0000.nii"]],
    )
    assert recognise(tmp_path, files, FOUR)
    whole, broken = find(tmp_path, files, FOUR).sources
    assert whole.problem == ""
    assert broken.problem.startswith("t2 missing: got 0000, 0001, 0003; the model takes t1, t1ce")
    assert len(broken.files) == 4


def test_every_case_is_broken_but_dataset_json_is_there(tmp_path: Path):
    files = touch(tmp_path, case("a", 1, 3))
    describe(tmp_path / "dataset.json", {"0": "T1", "1": "T2", "2": "T1ce", "3": "FLAIR"})
    assert recognise(tmp_path, files, TWO)
    assert find(tmp_path, files, TWO).sources[0].problem.startswith("t1 missing: got t2, flair;")
    assert names(find(tmp_path, files, FLAIR)) == {"a": case("a", 3)}


def test_one_channel_twice(tmp_path: Path):
    files = touch(tmp_path, [*case("a", 0, 1), "a_0001.nii"])
    (source,) = find(tmp_path, files, TWO).sources
    assert "more than one file for flair: a_0001.nii, a_0001.nii.gz;" in source.problem


COUNTED = [
    case("scan", 1, 2),
    case("scan", 0, 1),
    case("scan", *range(30)),
    [*case("a", 0, 1), *case("b", 0)],
    [*case("a", 0), *case("b", 1)],
    ["a_00000.nii.gz", "a_000.nii.gz", "_0000.nii.gz", "a_0000.png", "0000.nii.gz"],
    case("imagesTr/scan", 1, 2),
]


@pytest.mark.parametrize("counted", COUNTED)
def test_counted_images_are_no_channels(counted: list[str], tmp_path: Path):
    assert not recognise(tmp_path, touch(tmp_path, counted), FLAIR)


def test_counted_images_beside_a_dataset_of_one_channel(tmp_path: Path):
    describe(tmp_path / "dataset.json", {"0": "FLAIR"})
    assert not recognise(tmp_path, touch(tmp_path, case("scan", 1, 2, 3)), FLAIR)
    assert recognise(tmp_path, touch(tmp_path, [*case("a", 0), *case("b", 0)]), FLAIR)


def test_counted_images_in_another_folder_stay_unclaimed(tmp_path: Path):
    channels = touch(tmp_path, [f"cases/{name}" for name in case("a", 0)])
    counted = touch(tmp_path, [f"single/{name}" for name in case("scan", 1, 2)])
    found = find(tmp_path, [*channels, *counted], FLAIR)
    assert names(found) == {"cases/a": ["a_0000.nii.gz"]}
    assert found.claimed == set(channels)


def test_all_such_files_when_asked_for(tmp_path: Path):
    files = touch(tmp_path, case("scan", 1, 2))
    (source,) = find(tmp_path, files, TWO).sources
    assert source.problem.startswith("t1 missing: got 0001, 0002;")


def test_labels_are_no_images(tmp_path: Path):
    channels = touch(tmp_path, ["set/imagesTr/a_0000.nii.gz"])
    labels = touch(tmp_path, ["set/labelsTr/a.nii.gz", "set/labelsTs/deep/b.nii.gz"])
    others = touch(tmp_path, ["other/labelsTr/a.nii.gz", "set/labels/c.nii.gz"])
    files = sorted([*channels, *labels, *others])
    found = find(tmp_path, files, FLAIR)
    assert names(found) == {"set/imagesTr/a": ["a_0000.nii.gz"]}
    assert found.claimed == {*channels, *labels}


def test_labels_beside_images_of_all_channels_in_one_file(tmp_path: Path):
    """The Medical Segmentation Decathlon has folders like nnU-Net, and files of four dimensions."""
    images = touch(tmp_path, ["imagesTr/BRATS_001.nii.gz"])
    labels = touch(tmp_path, ["labelsTr/BRATS_001.nii.gz"])
    assert recognise(tmp_path, [*images, *labels], FOUR)
    assert find(tmp_path, [*images, *labels], FOUR) == Layout((), frozenset(labels))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("", "the file is empty"),
        ("[" * 100_000, "cannot be read"),
        ("\xff", "cannot be read"),
        ('{"channel_names": {"T1": 0}}', "'channel_names' in dataset.json is not as nnU-Net"),
        ('{"modality": {"0": "\\u001b[2J"}}', "'modality' in dataset.json is not as nnU-Net"),
        ('{"channel_names": {"0": "%s"}}' % ("x" * 1000), "is not as nnU-Net writes it"),
        ('{"channel_names": 3}', "is not as nnU-Net writes it"),
    ],
)
def test_a_broken_dataset_json(text: str, says: str, tmp_path: Path):
    files = touch(tmp_path, case("a", 0))
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    (source,) = find(tmp_path, files, FLAIR).sources
    assert says in source.problem
    assert len(source.problem) < 300


@pytest.mark.parametrize("text", ["[]", "{}", '{"modality": "MR"}', '"x"'])
def test_a_dataset_json_of_somebody_else(text: str, tmp_path: Path):
    files = touch(tmp_path, case("a", 0))
    (tmp_path / "dataset.json").write_text(text)
    assert find(tmp_path, files, FLAIR).sources[0].problem == ""


def test_names_as_a_list(tmp_path: Path):
    files = touch(tmp_path, case("a", 0, 1))
    describe(tmp_path / "dataset.json", ["FLAIR", "T1"])
    assert names(find(tmp_path, files, TWO)) == {"a": case("a", 1, 0)}


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c_0000", "d"]),
        st.sets(st.integers(0, 4), min_size=1),
        min_size=1,
    ),
    st.sampled_from([FLAIR, TWO, FOUR]),
)
def test_without_other_evidence_every_case_has_the_models_channels(
    cases: dict[str, set[int]], model: Preprocessing
):
    files = sorted(Path("root", file) for name, c in cases.items() for file in case(name, *c))
    fits = all(channels == set(range(model.channels)) for channels in cases.values())
    assert recognise(Path("root"), files, model) == fits
    if fits:
        sources = find(Path("root"), files, model).sources
        assert [source.name for source in sources] == sorted(cases)
        assert all(len(source.files) == model.channels for source in sources)
