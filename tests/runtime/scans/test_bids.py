"""BIDS datasets: which images of which session make a scan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans.bids import find, parse_name, recognise
from berdiff.runtime.scans.modalities import Layout

FLAIR = Preprocessing(1, ("flair",), (32, 32))
TWO = Preprocessing(2, ("flair", "t1"), (32, 32))
FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 32))


def touch(folder: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return sorted(folder / name for name in names)


def anat(session: str, *endings: str) -> list[str]:
    """Images of a session, ``"sub-01/ses-1"``."""
    start = session.replace("/", "_")
    return [f"{session}/anat/{start}_{ending}.nii.gz" for ending in endings]


def names(layout: Layout) -> dict[str, list[str]]:
    return {source.key: [file.path.name for file in source.files] for source in layout.sources}


def problems(layout: Layout) -> list[str]:
    return [source.problem for source in layout.sources]


LABEL = st.text("0123456789abcXYZ+", min_size=1, max_size=5)
KEY = st.text("abcdefgACQ", min_size=1, max_size=4).filter(lambda key: key not in ("sub", "ses"))


@given(
    LABEL, st.none() | LABEL, st.dictionaries(KEY, LABEL, max_size=4), st.sampled_from(["T1w", "x"])
)
def test_a_name_is_its_entities(
    subject: str, session: str | None, others: dict[str, str], suffix: str
):
    entities = [("sub", subject), *([("ses", session)] if session else []), *others.items()]
    name = "_".join([*("-".join(pair) for pair in entities), suffix])
    for extension in (".nii.gz", ".nii", ".json", ""):
        assert parse_name(name + extension) == (*entities, ("suffix", suffix))


@given(st.text("sub-e_.T1w/0\n ", max_size=20))
def test_what_parses_is_written_back(name: str):
    try:
        *entities, (_, suffix) = parse_name(name)
    except InputError:
        return
    written = "_".join([*("-".join(pair) for pair in entities), suffix])
    assert written == name.split(".")[0]
    assert written.startswith("sub-")


@pytest.mark.parametrize(
    "name",
    [
        "T1w.nii.gz",
        "sub-01.nii.gz",
        "01_T1w.nii.gz",
        "sub-_T1w.nii",
        "sub-0-1_T1w.nii",
        "sub-01_acq-1.5T_T1w.nii",
        "sub-01_acq_T1w.nii",
        "sub-01_sub-02_T1w.nii",
        "ses-1_sub-01_T1w.nii",
        "sub-01_run-1_ses-1_T1w.nii",
        "sub-01_suffix-1_T1w.nii",
        "sub-01__T1w.nii",
        "sub-01_T1w\n.nii",
        "sub-ä_T1w.nii",
        "",
    ],
)
def test_other_names_are_refused(name: str):
    with pytest.raises(InputError, match="is not named as BIDS says"):
        parse_name(name)


def test_each_image_of_the_modality_is_a_scan(tmp_path: Path):
    images = [
        *anat("sub-01", "FLAIR", "T1w", "acq-x_run-2_FLAIR", "part-phase_FLAIR", "T2starw"),
        *anat("sub-02/ses-a", "FLAIR"),
        "sub-03/ses-b/anat/sub-03_ses-b_FLAIR.nii",
    ]
    others = ["sub-01/func/sub-01_task-x_bold.nii.gz", "sub-01/anat/sub-01_FLAIR.json", "README"]
    files = touch(tmp_path, [*images, *others])
    assert recognise(tmp_path, files, FLAIR)
    found = find(tmp_path, files, FLAIR)
    assert {source.key: source.name for source in found.sources} == {
        "sub-01/anat/sub-01_FLAIR.nii.gz": "sub-01/anat/sub-01_FLAIR",
        "sub-01/anat/sub-01_acq-x_run-2_FLAIR.nii.gz": "sub-01/anat/sub-01_acq-x_run-2_FLAIR",
        "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz": "sub-02/ses-a/anat/sub-02_ses-a_FLAIR",
        "sub-03/ses-b/anat/sub-03_ses-b_FLAIR.nii": "sub-03/ses-b/anat/sub-03_ses-b_FLAIR",
    }
    for source in found.sources:
        assert [file.path for file in source.files] == [tmp_path / source.key]
        assert (source.format, source.modalities, source.problem) == ("bids", ("flair",), "")
        assert source.summary == "BIDS image: flair"
    assert found.sources[1].entities == (
        ("sub", "01"),
        ("acq", "x"),
        ("run", "2"),
        ("suffix", "FLAIR"),
    )
    assert found.claimed == set(files) - {tmp_path / "README"}


def test_one_scan_per_session_in_the_models_order(tmp_path: Path):
    endings = ["FLAIR", "T1w", "T2w", "ce-gadolinium_T1w"]
    files = touch(tmp_path, [*anat("sub-01", *endings, "PDw"), *anat("sub-02/ses-a", *endings)])
    found = find(tmp_path, files, FOUR)
    order = ["T1w", "ce-gadolinium_T1w", "T2w", "FLAIR"]
    assert names(found) == {
        "sub-01/anat/sub-01_T1w.nii.gz": [f"sub-01_{ending}.nii.gz" for ending in order],
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz": [
            f"sub-02_ses-a_{ending}.nii.gz" for ending in order
        ],
    }
    for source in found.sources:
        assert source.modalities == FOUR.modalities
        assert source.problem == ""
        assert source.summary == "BIDS session: t1, t1ce, t2, flair"
        assert source.entities[-1] == ("suffix", "T1w")


def test_contrast_agent(tmp_path: Path):
    files = touch(tmp_path, anat("sub-01", "T1w", "ce-gadolinium_T1w"))
    for modality, ending in (("t1", "T1w"), ("t1ce", "ce-gadolinium_T1w")):
        (source,) = find(tmp_path, files, Preprocessing(1, (modality,), (32, 32))).sources
        assert source.files[0].path.name == f"sub-01_{ending}.nii.gz"


def test_one_scan_per_run_where_all_have_the_same(tmp_path: Path):
    files = touch(
        tmp_path, anat("sub-01", "run-1_T1w", "run-2_T1w", "run-01_FLAIR", "run-02_FLAIR")
    )
    assert names(find(tmp_path, files, TWO)) == {
        f"sub-01/anat/sub-01_run-0{run}_FLAIR.nii.gz": [
            f"sub-01_run-0{run}_FLAIR.nii.gz",
            f"sub-01_run-{run}_T1w.nii.gz",
        ]
        for run in (1, 2)
    }


def test_runs_that_do_not_match(tmp_path: Path):
    files = touch(tmp_path, anat("sub-01", "run-1_T1w", "run-2_T1w", "FLAIR"))
    (problem,) = problems(find(tmp_path, files, TWO))
    assert problem.startswith(
        "more than one file for t1: sub-01_run-1_T1w.nii.gz, sub-01_run-2_T1w.nii.gz; the model "
    )
    # Another number alone is no contradiction.
    files = touch(tmp_path / "b", anat("sub-01", "run-2_T1w", "FLAIR"))
    assert problems(find(tmp_path / "b", files, TWO)) == [""]


def test_two_candidates_in_one_run(tmp_path: Path):
    endings = ["run-1_T1w", "acq-x_run-1_T1w", "run-2_T1w", "run-1_FLAIR", "run-2_FLAIR"]
    files = touch(tmp_path, anat("sub-01", *endings))
    found = find(tmp_path, files, TWO)
    assert [len(source.files) for source in found.sources] == [3, 2]
    assert "sub-01_acq-x_run-1_T1w.nii.gz, sub-01_run-1_T1w.nii.gz" in problems(found)[0]
    assert problems(found)[1] == ""


def test_one_image_stored_twice(tmp_path: Path):
    files = touch(tmp_path, ["sub-1/anat/sub-1_FLAIR.nii", *anat("sub-1", "FLAIR", "run-2_FLAIR")])
    twice, once = find(tmp_path, files, FLAIR).sources
    assert "more than one file for flair: sub-1_FLAIR.nii, sub-1_FLAIR.nii.gz;" in twice.problem
    assert once.problem == ""


@pytest.mark.parametrize("model", [FLAIR, TWO])
def test_a_session_without_the_modality(model: Preprocessing, tmp_path: Path):
    files = touch(tmp_path, anat("sub-01", "T1w", "PDw"))
    (source,) = find(tmp_path, files, model).sources
    assert source.problem.startswith("flair missing: got PDw, t1; the model takes flair")
    assert source.key == "sub-01/anat/sub-01_PDw.nii.gz"
    assert source.modalities == ()


def test_a_modality_that_is_none_of_mri(tmp_path: Path):
    files = touch(tmp_path, anat("sub-01", "T1w", "FLAIR"))
    found = find(tmp_path, files, Preprocessing(1, ("oct",), (32, 32)))
    assert [problem.split(";")[0] for problem in problems(found)] == [
        "oct missing: got flair, t1",
    ]


def test_names_that_break_the_rules(tmp_path: Path):
    files = touch(
        tmp_path,
        [
            *anat("sub-01", "FLAIR", "acq-1.5T_FLAIR", "acq-1.5T_T2w"),
            "sub-02/anat/sub-03_FLAIR.nii.gz",
            "sub-04/ses-1/anat/sub-04_FLAIR.nii.gz",
            "sub-05/anat/sub-05_ses-1_FLAIR.nii.gz",
        ],
    )
    found = find(tmp_path, files, FLAIR)
    assert [problem[:40] for problem in problems(found)] == [
        "",
        "sub-01_acq-1.5T_FLAIR.nii.gz is not name",
        "sub-03_FLAIR.nii.gz lies in a folder of ",
        "sub-04_FLAIR.nii.gz lies in a folder of ",
        "sub-05_ses-1_FLAIR.nii.gz lies in a fold",
    ]
    (tmp_path / "b").mkdir()
    files = touch(tmp_path / "b", anat("sub-01", "FLAIR", "acq-1.5T_T1w"))
    (source,) = find(tmp_path / "b", files, TWO).sources
    assert "acq-1.5T_T1w.nii.gz is not named as BIDS says" in source.problem


SET_APART = [
    "derivatives/x/sub-01/anat/sub-01_FLAIR.nii.gz",
    "sourcedata/sub-01/anat/sub-01_FLAIR.nii.gz",
    "sourcedata/dicom/1.dcm",
    "code/test/sub-01/anat/sub-01_FLAIR.nii.gz",
]


def test_derived_images_and_sources_are_no_inputs(tmp_path: Path):
    loose = ["loose.nii.gz", "sub-02_FLAIR.nii.gz"]
    files = touch(tmp_path, [*SET_APART, *anat("sub-01", "FLAIR"), *loose])
    found = find(tmp_path, files, FLAIR)
    assert names(found) == {"sub-01/anat/sub-01_FLAIR.nii.gz": ["sub-01_FLAIR.nii.gz"]}
    assert found.claimed == set(files) - {tmp_path / name for name in loose}


def test_derived_images_alone_are_no_inputs_either(tmp_path: Path):
    files = touch(tmp_path, SET_APART[:1])
    assert recognise(tmp_path, files, FLAIR)
    assert find(tmp_path, files, FLAIR) == Layout((), frozenset(files))


def describe(folder: Path, **content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))
    return folder / "dataset_description.json"


def test_a_described_dataset_owns_all_below_it(tmp_path: Path):
    inside = touch(
        tmp_path / "set",
        [*anat("sub-01", "FLAIR"), "extra/x.nii.gz", "extra/sub-2/anat/sub-2_FLAIR.nii"],
    )
    outside = touch(
        tmp_path, ["other/x.nii.gz", *[f"b/{name}" for name in anat("sub-01", "FLAIR")]]
    )
    description = describe(tmp_path / "set")
    found = find(tmp_path, sorted([*inside, *outside, description]), FLAIR)
    assert list(names(found)) == [
        "b/sub-01/anat/sub-01_FLAIR.nii.gz",
        "set/sub-01/anat/sub-01_FLAIR.nii.gz",
    ]
    assert found.claimed == {*inside, description, *outside} - {tmp_path / "other" / "x.nii.gz"}


def test_a_described_dataset_without_anatomical_images(tmp_path: Path):
    files = touch(tmp_path, ["sub-01/func/sub-01_task-rest_bold.nii.gz"])
    assert not recognise(tmp_path, files, FLAIR)
    files.append(describe(tmp_path))
    assert recognise(tmp_path, files, FLAIR)
    assert find(tmp_path, files, FLAIR) == Layout((), frozenset(files))


def test_a_derivative_dataset_is_an_input_only_where_it_was_given(tmp_path: Path):
    images = touch(tmp_path / "results", anat("sub-01", "FLAIR"))
    files = [*images, describe(tmp_path / "results", DatasetType="derivative")]
    assert find(tmp_path, files, FLAIR) == Layout((), frozenset(files))
    assert len(find(tmp_path / "results", files, FLAIR).sources) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_broken_description_says_nothing(text: str, tmp_path: Path):
    files = touch(tmp_path / "set", anat("sub-01", "FLAIR"))
    (tmp_path / "set" / "dataset_description.json").write_text(text)
    files.append(tmp_path / "set" / "dataset_description.json")
    assert problems(find(tmp_path, files, FLAIR)) == [""]


@pytest.mark.parametrize("part", ["sub-01", "sub-01/ses-1", "sub-01/ses-1/anat"])
def test_a_part_of_a_dataset(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (file,) = touch(tmp_path, anat("sub-01/ses-1", "FLAIR"))
    root = tmp_path / part
    found = find(root, [file], FLAIR)
    assert names(found) == {file.relative_to(root).as_posix(): ["sub-01_ses-1_FLAIR.nii.gz"]}
    assert found.claimed == {file}
    monkeypatch.chdir(root)
    here = file.relative_to(root)
    assert recognise(Path("."), [here], FLAIR)
    assert find(Path("."), [here], FLAIR).claimed == {here}


@pytest.mark.parametrize(
    "loose",
    [
        ["sub-01_FLAIR.nii.gz", "anat/sub-01_FLAIR.nii.gz"],
        ["sub-01/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_FLAIR.png"],
        ["ses-1/anat/sub-01_ses-1_FLAIR.nii.gz"],
        ["dataset_description.json", "a.nii.gz"],
    ],
)
def test_what_is_no_dataset(loose: list[str], tmp_path: Path):
    files = touch(tmp_path, loose)
    assert not recognise(tmp_path, files, FLAIR)
    assert find(tmp_path, files, FLAIR) == Layout((), frozenset())


def test_links(tmp_path: Path):
    folder = tmp_path / "set" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (tmp_path / "content").touch()
    (folder / "sub-01_FLAIR.nii.gz").symlink_to(tmp_path / "content")
    (folder / "sub-01_run-2_FLAIR.nii.gz").symlink_to(tmp_path / "annex" / "gone")
    found = find(tmp_path / "set", sorted(folder.iterdir()), FLAIR)
    assert problems(found)[0] == ""
    assert problems(found)[1].startswith("broken link: sub-01_run-2_FLAIR.nii.gz")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sub-1", "sub-2/ses-1", "sub-2/ses-2"]),
            st.sampled_from(["", "run-1_", "run-2_", "acq-x_", "acq-x_run-2_"]),
            st.sampled_from(["T1w", "T2w", "FLAIR", "ce-gd_T1w", "PDw"]),
        ),
        unique=True,
    ),
    st.sampled_from([FLAIR, TWO, FOUR]),
)
def test_no_image_is_used_twice_or_in_another_session(
    images: list[tuple[str, str, str]], model: Preprocessing
):
    root = Path("root")
    files = sorted(root / name for s, e, m in images for name in anat(s, e + m))
    found = find(root, files, model)
    used = [file.path for source in found.sources for file in source.files]
    assert len(set(used)) == len(used)
    assert len({source.key for source in found.sources}) == len(found.sources)
    assert len({source.name for source in found.sources}) == len(found.sources)
    assert {file.parent for file in used} == {file.parent for file in files}
    for source in found.sources:
        assert len({file.path.parent for file in source.files}) == 1
        if not source.problem:
            assert len(source.files) == len(source.modalities) == model.channels
            runs = {dict(parse_name(file.path.name)).get("run") for file in source.files}
            if len(runs) > 1:  # only where there is nothing to mistake it for
                endings = [file.path.name.rsplit("_", 1)[1] for file in source.files]
                session = [f for f in files if f.parent == source.files[0].path.parent]
                for ending in endings:
                    alike = [file for file in session if file.name.endswith(f"_{ending}")]
                    contrast = [file for file in alike if "ce-gd" in file.name]
                    assert len(alike) - len(contrast) <= 1
                    assert len(contrast) <= (1 if "t1ce" in model.modalities else len(contrast))
