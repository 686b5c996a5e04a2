"""Which files of a folder are scans, and how their results are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import file_source, find_files, find_scans, read_scan, scan_names

MODEL = Preprocessing(1, ("flair",), (32, 32))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_scans_are_found_by_suffix_in_all_subfolders(tmp_path: Path):
    scans = ["B.NII.GZ", "a.nii", "a.png", "deep/d.jpeg", "deep/er/c.TIF", "e.jpg", "f.tiff"]
    touch(
        tmp_path, *scans, "notes.txt", "g.gz", "nii", ".hidden.png", ".cache/x.png", ".part-y.png"
    )
    found = find_scans(tmp_path, MODEL)
    assert [source.key for source in found.sources] == scans
    assert [source.name for source in found.sources][:3] == ["B", "a-nii", "a-png"]
    assert {source.format for source in found.sources} == {"nifti", "picture"}
    assert sorted(name for name, _ in found.ignored) == ["g.gz", "nii", "notes.txt"]
    assert [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path)] == scans


def test_one_layout_may_be_asked_for(tmp_path: Path):
    touch(tmp_path, "a.nii", "b.png", "c.txt")
    found = find_scans(tmp_path, MODEL, "nifti")
    assert [source.key for source in found.sources] == ["a.nii"]
    assert dict(found.ignored)["b.png"] == "not looked for: --input-format nifti"
    with pytest.raises(InputError, match="unknown input format 'nii'; known: auto, picture"):
        find_scans(tmp_path, MODEL, "nii")  # type: ignore[arg-type]


def test_parts_are_disjoint_and_complete(tmp_path: Path):
    touch(tmp_path, *(f"{number}.png" for number in range(7)))
    found = find_scans(tmp_path, MODEL)
    parts = [found.part(3, number).sources for number in range(3)]
    assert sorted(source.key for part in parts for source in part) == [
        source.key for source in found.sources
    ]
    assert [len(part) for part in parts] == [3, 2, 2]


def test_one_file(tmp_path: Path):
    touch(tmp_path, "a.png", "b.txt")
    (source,) = find_scans(tmp_path / "a.png", MODEL).sources
    assert source == file_source(tmp_path / "a.png")
    assert find_files(tmp_path / "a.png") == [tmp_path / "a.png"]
    with pytest.raises(InputError, match=r"found no scan in .*b\.txt; expected \.nii"):
        find_scans(tmp_path / "b.txt", MODEL)
    with pytest.raises(InputError, match=r"no scan by its name; expected \.nii"):
        file_source(tmp_path / "b.txt")
    with pytest.raises(InputError, match="does not exist"):
        find_scans(tmp_path / "c.png", MODEL)


def test_a_folder_without_scans(tmp_path: Path):
    touch(tmp_path, "b.txt")
    with pytest.raises(InputError, match=r"found no scan .*\.nii\.gz.*\.png"):
        find_scans(tmp_path, MODEL)


def test_names_keep_subfolders_and_never_collide(tmp_path: Path):
    touch(
        tmp_path, "s/a.png", "s/a.nii.gz", "s/a.nii", "b.png", "t/b.png", "c.v2.nii.gz", "C.V2.tif"
    )
    names = {
        path.relative_to(tmp_path).as_posix(): name
        for path, name in scan_names(find_files(tmp_path), tmp_path).items()
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


@pytest.mark.parametrize("name", ["scan.png", "scan.nii.gz"])
def test_what_is_no_regular_file(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="cannot read the file: No such file"):
        read_scan(file_source(tmp_path / name), MODEL)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        read_scan(file_source(tmp_path / name), MODEL)
    os.mkfifo(tmp_path / f"pipe-{name}")
    with pytest.raises(InputError, match="not a regular file"):
        read_scan(file_source(tmp_path / f"pipe-{name}"), MODEL)
