"""Names of BIDS derivatives: in order, and no two scans share one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berdiff.runtime.errors import InputError
from berdiff.runtime.scans import FileRef, ScanSource
from berdiff.runtime.scans.bids import parse_name
from berdiff.runtime.writers.bids import files
from berdiff.runtime.writers.bids_names import contrasts_of

ORDER = ("sub", "ses", "acq", "ce", "rec", "run", "echo", "part", "space", "chunk", "res", "desc")
# The first are allowed in the names of derivatives, the last are not.
KEYS = (*ORDER[1:], "inv", "mod", "flip")

labels = st.text("aA1", min_size=1, max_size=2)
own_entities = st.dictionaries(st.sampled_from(KEYS), labels, max_size=4)


def found_as(name: str, key: str = "") -> ScanSource:
    return ScanSource(key or f"{name}.nii", name, "nifti", (FileRef(Path("x.nii")),))


def of_dataset(entities: dict[str, str]) -> ScanSource:
    named = {"sub": "1", **{key: entities[key] for key in KEYS if key in entities}}
    name = "_".join([*(f"{key}-{label}" for key, label in named.items()), "FLAIR"])
    session = (f"ses-{named['ses']}",) if "ses" in named else ()
    key = "/".join(["sub-1", *session, "anat", f"{name}.nii.gz"])
    file = FileRef(Path("/data") / key)
    return ScanSource(key, name, "bids", (file,), ("flair",), parse_name(f"{name}.nii.gz"))


@given(st.sets(st.text("aB1-_/ .äx", min_size=1, max_size=8), min_size=2, max_size=12))
def test_subjects_are_told_apart(given_names: set[str]):
    sources = [found_as(name) for name in given_names]
    subjects = [files(source)[0].split("/")[1] for source in sources]
    assert len(set(subjects)) == len(sources)
    assert all(re.fullmatch("sub-[0-9A-Za-z]+", subject) for subject in subjects)


def test_a_name_cannot_pass_for_another_with_its_hash():
    hashed = files(found_as("case_1"))[0].split("/")[1].removeprefix("sub-")
    assert files(found_as("case1"))[0].split("/")[1] == "sub-case1"
    assert files(found_as(hashed))[0].split("/")[1] != f"sub-{hashed}"


def test_names_of_subjects_stay_short_and_equal():
    source = found_as("a" * 200)
    subject = files(source)[0].split("/")[1]
    assert len(subject) < 60
    assert subject == files(source)[0].split("/")[1]
    assert subject != files(found_as("a" * 201))[0].split("/")[1]


@given(st.lists(own_entities, min_size=2, max_size=8, unique_by=lambda e: tuple(sorted(e.items()))))
def test_images_of_a_subject_are_told_apart(several: list[dict[str, str]]):
    seen: set[str] = set()
    for source in map(of_dataset, several):
        names = set(files(source))
        assert not seen & names
        seen |= names
    for name in seen:
        *pairs, _ = name.rsplit("/", 1)[1].split("_")
        keys = [pair.split("-")[0] for pair in pairs]
        assert keys == [key for key in ORDER if key in keys]


def test_what_a_file_has_to_itself_stays_with_it():
    suffixes = ("rec-norm_run-1_T1w", "ce-gad_run-01_T1w", "run-1_T2w", "run-1_FLAIR")
    below = [f"sub-1/anat/sub-1_acq-x_{suffix}.nii.gz" for suffix in suffixes]
    source = ScanSource(
        f"study/{below[0]}",
        "study/x",
        "bids",
        tuple(FileRef(Path("/data/study") / name) for name in below),
        ("t1", "t1ce", "t2", "flair"),
        parse_name(Path(below[0]).name),
    )
    anat = "bids/study/sub-1/anat/sub-1_acq-x"
    assert {name for name in files(source) if name.endswith(".json")} == {
        f"{anat}_run-1_desc-anomaly_mask.json",
        f"{anat}_run-1_desc-flips_probseg.json",
        f"{anat}_rec-norm_run-1_desc-healthy_T1w.json",
        f"{anat}_ce-gad_run-01_desc-healthy_T1w.json",
        f"{anat}_run-1_desc-healthy_T2w.json",
        f"{anat}_run-1_desc-healthy_FLAIR.json",
        *(f"{anat}_run-1_desc-anomaly_{suffix}.json" for suffix in ("T1w", "T2w", "FLAIR")),
        # What the model takes first gives the map its name; planned are all.
        f"{anat}_ce-gadolinium_run-1_desc-anomaly_T1w.json",
    }


def test_contrasts():
    assert contrasts_of(("T1", "t1c", "T2w", "t2f", "PDw")) == ["t1", "t1ce", "t2", "flair", "pdw"]
    with pytest.raises(InputError, match="no suffix for images of 'oct'"):
        contrasts_of(("flair", "oct"))
    with pytest.raises(InputError, match="the same names"):
        contrasts_of(("t2f", "flair"))
