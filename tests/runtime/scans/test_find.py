"""Which files of a folder are scans, and how their results are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import find_scans, other_files, read_scan, result_suffix, scan_names


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_scans_are_found_by_suffix_in_all_subfolders(tmp_path: Path):
    scans = ["B.NII.GZ", "a.nii", "a.png", "deep/d.jpeg", "deep/er/c.TIF", "e.jpg", "f.tiff"]
    touch(
        tmp_path, *scans, "notes.txt", "g.gz", "nii", ".hidden.png", ".cache/x.png", ".part-y.png"
    )
    assert [path.relative_to(tmp_path).as_posix() for path in find_scans(tmp_path)] == scans
    assert [path.name for path in other_files(tmp_path)] == ["g.gz", "nii", "notes.txt"]


def test_one_file(tmp_path: Path):
    touch(tmp_path, "a.png", "b.txt")
    assert find_scans(tmp_path / "a.png") == [tmp_path / "a.png"]
    with pytest.raises(InputError, match=r"no scan by its name; expected \.nii"):
        find_scans(tmp_path / "b.txt")
    with pytest.raises(InputError, match="does not exist"):
        find_scans(tmp_path / "c.png")


def test_a_folder_without_scans(tmp_path: Path):
    touch(tmp_path, "b.txt")
    with pytest.raises(InputError, match=r"found no scan .*\.nii\.gz.*\.png"):
        find_scans(tmp_path)


def test_names_keep_subfolders_and_never_collide(tmp_path: Path):
    touch(
        tmp_path, "s/a.png", "s/a.nii.gz", "s/a.nii", "b.png", "t/b.png", "c.v2.nii.gz", "C.V2.tif"
    )
    names = {
        path.relative_to(tmp_path).as_posix(): name
        for path, name in scan_names(find_scans(tmp_path), tmp_path).items()
    }
    assert names == {
        "C.V2.tif": "C.V2-tif",
        "b.png": "b",
        "c.v2.nii.gz": "c.v2-nii-gz",
        "s/a.nii": "s/a-nii",
        "s/a.nii.gz": "s/a-nii-gz",
        "s/a.png": "s/a-png",
        "t/b.png": "t/b",
    }


@given(
    stems=st.sets(
        st.tuples(
            st.sampled_from(["a", "A", "a-png", "a-png-png-0", "a-tif", "b"]),
            st.sampled_from([".png", ".PNG", ".tif", ".nii", ".nii.gz"]),
        ),
        min_size=1,
    )
)
def test_names_are_unique_whatever_the_files_are_called(stems: set[tuple[str, str]]):
    paths = sorted(Path("root", stem + suffix) for stem, suffix in stems)
    names = scan_names(paths, Path("root"))
    assert list(names) == paths
    assert len({name.casefold() for name in names.values()}) == len(paths)


def test_result_suffixes():
    assert result_suffix(Path("a.NII")) == ".nii.gz"
    assert result_suffix(Path("a.jpg")) == ".png"


@pytest.mark.parametrize("name", ["scan.png", "scan.nii.gz"])
def test_what_is_no_regular_file(name: str, tmp_path: Path):
    model = Preprocessing(1, ("t1",), (32, 32))
    with pytest.raises(InputError, match="cannot read the file: No such file"):
        read_scan(tmp_path / name, model)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        read_scan(tmp_path / name, model)
    os.mkfifo(tmp_path / f"pipe-{name}")
    with pytest.raises(InputError, match="not a regular file"):
        read_scan(tmp_path / f"pipe-{name}", model)
