"""A run over a folder: what it writes, what stops it, and how it goes on after a kill."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fakes import fake_detector
from PIL import Image

from berdiff.runtime.anomaly import otsu, segment
from berdiff.runtime.errors import BerdiffError, InputError
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.manifest import Threshold
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.run_plan import RunOptions

HERE = Path(__file__).parent
RAS = np.diag([1.0, 1.0, 4.0, 1.0])


def head(rows: int, columns: int, seed: int) -> np.ndarray:
    """A bright textured disc on black."""
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    texture = np.random.default_rng(seed).random((rows, columns)) * 0.5 + 0.5
    return (texture * (x**2 + y**2 < 0.8)).astype(np.float32)


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((head(30, 36, seed) * 255).astype(np.uint8)).save(path)
    return path


def volume(path: Path, seed: int = 0, slices: int = 6) -> Path:
    """A volume [x, y, z] whose first and last slices are empty."""
    planes = [head(28, 26, seed * 100 + index) for index in range(slices)]
    planes[0][:] = planes[-1][:] = 0
    data = np.stack(planes, axis=-1)[::-1].transpose(1, 0, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image((data * 1000).astype(np.int16), RAS), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    picture(folder / "a.png", 1)
    volume(folder / "deep" / "b.nii.gz", 2)
    picture(folder / "deep" / "c.png", 3)
    volume(folder / "d.nii", 4)
    return folder


def digests(folder: Path, *parts: str) -> dict[str, str]:
    """SHA-256 of every file in some subfolders."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in parts or ("maps", "overlays")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def rows(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# What a run leaves behind


def test_layout_of_the_output(scans: Path, tmp_path: Path):
    (scans / "notes.txt").write_text("ignored")
    out = tmp_path / "out"
    summary = run_folder(fake_detector(), scans, out)

    expected = {"journal.jsonl", "run.json"}
    expected |= {"results.csv", "results.json", "slices.csv", "components.csv"}
    for name, suffix in (("a", "png"), ("deep/b", "nii.gz"), ("deep/c", "png"), ("d", "nii.gz")):
        expected.add(f"overlays/{name}.png")
        if suffix == "nii.gz":
            expected |= {f"volumes/{name}.png", f"maps/{name}.json"}
        for part in ("anomaly", "flips", "mask", "reconstruction"):
            expected.add(f"maps/{name}_{part}.{suffix}")
    found = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert found == expected
    assert [result.name for result in summary.results] == ["a", "d", "deep/b", "deep/c"]
    assert summary.failed == []

    table = rows(out)
    assert [row["status"] for row in table] == ["ok"] * 4
    volume_row = table[1]
    assert (volume_row["slices"], volume_row["empty_slices"]) == ("6", "2")
    assert volume_row["threshold_source"] == "otsu"
    assert volume_row["slice_axis"] == "2"
    assert float(volume_row["volume_ml"]) == pytest.approx(
        int(volume_row["mask_pixels"]) * 4 / 1000
    )
    assert volume_row["sha256"] == hashlib.sha256((scans / "d.nii").read_bytes()).hexdigest()

    record = json.loads((out / "run.json").read_text())
    assert record["counts"] == {
        "scans": 4,
        "ok": 4,
        "failed": 0,
        "suspect": 0,
        "rejected": 0,
        "reused": 0,
        "slices": 14,
        "empty_slices": 4,
        "ignored_files": 1,
    }
    assert record["bundle"]["digest"] == "d" * 64
    assert record["settings"]["noise_level"] == 100
    assert record["ignored_files"] == {"no scan": 1}
    stages = {"read", "encode", "loop", "decode", "maps", "restore", "write", "starved"}
    assert set(record["timings"]) == stages


def test_the_tables_say_the_same_in_json(scans: Path, tmp_path: Path):
    (scans / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    run_folder(fake_detector(), scans, out, RunOptions(threshold=0.03))
    listed = json.loads((out / "results.json").read_text())["scans"]
    table = rows(out)
    assert [scan["input"] for scan in listed] == [row["input"] for row in table]
    for scan, row in zip(listed, table, strict=True):
        slices, components = scan.pop("slice_results"), scan.pop("component_results")
        assert {key: "" if value is None else str(value) for key, value in scan.items()} == row
        assert len(slices) == scan["slices"]
        assert len(components) == scan["components"]
        assert sum(item["voxels"] for item in components) == scan["mask_pixels"]
        assert sum(item["mask_pixels"] for item in slices) == scan["mask_pixels"]
    bad = next(scan for scan in listed if scan["input"] == "bad.png")
    assert (bad["status"], bad["verdict"]) == ("failed", "rejected")
    assert bad["verdict_reason"] == bad["reason"] != ""
    parts = rows(out, "components.csv")
    assert len(parts) == sum(int(row["components"]) for row in table)
    assert {row["name"] for row in parts} == {
        row["name"] for row in table if int(row["components"])
    }


def test_slices_are_summed_up_in_the_order_of_the_file(scans: Path, tmp_path: Path):
    summary = run_folder(fake_detector(), scans, tmp_path / "out")
    result = summary.results[1]
    table = [row for row in rows(tmp_path / "out", "slices.csv") if row["name"] == "d"]
    assert [row["index"] for row in table] == [str(index) for index in range(6)]
    assert (table[0]["score"], table[5]["score"]) == ("", "")
    scores = [float(row["score"]) for row in table[1:5]]
    assert result.score == max(scores)
    assert result.worst_slice == 1 + scores.index(max(scores))
    assert result.mask_pixels == sum(int(row["mask_pixels"]) for row in table)


def test_results_lie_where_the_scan_shows_them(tmp_path: Path):
    """A bright block in one corner of a volume leads to a mask around that block only."""
    data = np.full((26, 28, 3), 100, np.int16)
    data[:, :, 1] += np.arange(28, dtype=np.int16)
    data[4:12, 16:24, 1] = 900
    (tmp_path / "in").mkdir()
    # Stored with x to the left and y to the back; the model wants the nose at the top.
    nibabel.save(
        nibabel.Nifti1Image(data, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "in" / "v.nii.gz"
    )
    run_folder(
        fake_detector(),
        tmp_path / "in",
        tmp_path / "out",
        RunOptions(threshold=0.05),
    )
    mask = nibabel.load(tmp_path / "out" / "maps" / "v_mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, np.diag([-1.0, -1.0, 2.0, 1.0]))
    marked = np.asarray(mask.dataobj)[:, :, 1]
    assert marked[5:11, 17:23].mean() > 0.8
    outside = marked.copy()
    outside[2:14, 14:26] = 0
    assert outside.sum() == 0
    assert np.asarray(mask.dataobj)[:, :, [0, 2]].sum() == 0


def test_masks_follow_from_the_written_map(tmp_path: Path):
    volume(tmp_path / "in" / "v.nii.gz", 3)
    options = RunOptions(threshold=0.03)
    result = run_folder(fake_detector(), tmp_path / "in", tmp_path / "out", options).results[0]
    anomaly, mask, scan = (
        np.asarray(nibabel.load(path).dataobj)
        for path in (
            tmp_path / "out" / "maps" / "v_anomaly.nii.gz",
            tmp_path / "out" / "maps" / "v_mask.nii.gz",
            tmp_path / "in" / "v.nii.gz",
        )
    )
    assert (result.threshold, result.threshold_source) == (0.03, "option")
    assert 0 < mask.sum() == result.mask_pixels
    for z in range(6):
        np.testing.assert_array_equal(
            mask[..., z], segment(anomaly[..., z], 0.03, scan[..., z] > 0)
        )


@pytest.mark.parametrize(
    ("noise_level", "source_of", "warned"), [(None, "bundle", False), (50, "otsu", True)]
)
def test_a_calibrated_threshold_is_used_with_its_own_settings_only(
    noise_level: int | None, source_of: str, warned: bool, scans: Path, tmp_path: Path
):
    calibrated = Threshold(0.5, "healthy images", "squared", 100, 10, 0.5)
    summary = run_folder(
        fake_detector(threshold=calibrated),
        scans,
        tmp_path / "out",
        RunOptions(noise_level=noise_level),
    )
    assert {result.threshold_source for result in summary.results} == {source_of}
    assert [("noise_level 100" in warning) for warning in summary.warnings] == [True] * warned


def test_empty_slices_get_zeros_and_count_for_no_threshold(tmp_path: Path):
    """Air before, between and after."""
    planes = [head(28, 26, seed) for seed in range(3)]
    air = np.zeros_like(planes[0])
    stack = np.stack([air, air, planes[0], air, planes[1], planes[2], air], axis=-1)
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(stack, RAS), tmp_path / "in" / "v.nii.gz")
    detector, out = fake_detector(), tmp_path / "out"
    (result,) = run_folder(detector, tmp_path / "in", out, RunOptions(batch_size=2)).results
    assert (result.slices, result.empty_slices) == (7, 4)
    assert detector.backend.batches == [2, 1]  # type: ignore[attr-defined]
    shown = [2, 4, 5]
    values = {}
    for part in ("anomaly", "flips", "mask", "reconstruction"):
        data = np.asarray(nibabel.load(out / "maps" / f"v_{part}.nii.gz").dataobj)
        data = np.moveaxis(data, 2, 0)
        assert data[shown].any(axis=(1, 2)).all()
        assert not data[[0, 1, 3, 6]].any()
        values[part] = data[shown]
    assert result.threshold == otsu(values["anomaly"][stack.transpose(2, 0, 1)[shown] > 0])
    scores = [row["score"] for row in rows(out, "slices.csv")]
    assert [bool(score) for score in scores] == [False, False, True, False, True, True, False]


# The same result, however the work is cut up


def test_batches_reach_across_scans_and_change_nothing(scans: Path, tmp_path: Path):
    one, seven = fake_detector(), fake_detector()
    run_folder(one, scans, tmp_path / "one", RunOptions(batch_size=1))
    run_folder(seven, scans, tmp_path / "seven", RunOptions(batch_size=7))
    assert one.backend.batches == [1] * 10  # type: ignore[attr-defined]
    assert seven.backend.batches == [7, 3]  # type: ignore[attr-defined]
    assert digests(tmp_path / "one") == digests(tmp_path / "seven")
    assert len(digests(tmp_path / "one")) == 22  # four maps and a picture each, two sidecars


def test_names_and_order_change_nothing(scans: Path, tmp_path: Path):
    shuffled = tmp_path / "shuffled"
    renamed = {
        "a.png": "z.png",
        "deep/b.nii.gz": "0.nii.gz",
        "deep/c.png": "x/y.png",
        "d.nii": "m.nii",
    }
    for old, new in renamed.items():
        (shuffled / new).parent.mkdir(parents=True, exist_ok=True)
        (shuffled / new).write_bytes((scans / old).read_bytes())
    run_folder(fake_detector(), scans, tmp_path / "one")
    run_folder(fake_detector(), shuffled, tmp_path / "two", RunOptions(batch_size=3))
    first, second = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert sorted(first.values()) == sorted(second.values())
    assert first["maps/deep/c_anomaly.png"] == second["maps/x/y_anomaly.png"]


def test_the_seed_matters(scans: Path, tmp_path: Path):
    run_folder(fake_detector(), scans, tmp_path / "one", RunOptions(seed=0))
    run_folder(fake_detector(), scans, tmp_path / "two", RunOptions(seed=1))
    first, second = digests(tmp_path / "one", "maps"), digests(tmp_path / "two", "maps")
    assert first["maps/a_anomaly.png"] != second["maps/a_anomaly.png"]


# Failures


def test_one_bad_file_does_not_stop_the_rest(scans: Path, tmp_path: Path):
    (scans / "bad.png").write_text("no picture")
    (scans / "empty.nii.gz").touch()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(scans / "black.png")
    picture(scans / ("x" * 230 + ".png"))
    summary = run_folder(fake_detector(), scans, tmp_path / "out", RunOptions(batch_size=4))
    reasons = {result.input: result.reason for result in summary.failed}
    assert sorted(reasons) == ["bad.png", "black.png", "empty.nii.gz", "x" * 230 + ".png"]
    assert "constant" in reasons["black.png"]
    assert "too long" in reasons["x" * 230 + ".png"]
    assert len(summary.ok) == 4
    assert {
        row["input"]: row["reason"] for row in rows(tmp_path / "out") if row["reason"]
    } == reasons
    left = [path.name for path in (tmp_path / "out").rglob("*")]
    assert not [name for name in left if name.startswith((".part", "bad", "black", "empty", "x"))]


def test_a_bad_slice_is_named(tmp_path: Path):
    """One that does not fit into the model's field of view; counted as the file counts."""
    data = np.zeros((60, 60, 5), np.int16)
    data[20:40, 20:40, :4] = np.random.default_rng(0).integers(50, 90, (20, 20, 4))
    data[:, :, 1] = np.random.default_rng(1).integers(50, 90, (60, 60))
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, -3, 1])), tmp_path / "in" / "v.nii")
    summary = run_folder(fake_detector(), tmp_path / "in", tmp_path / "out")
    assert summary.failed[0].reason.startswith("slice 1: ")


def test_a_model_that_answers_nan_is_no_normal_map(scans: Path, tmp_path: Path):
    summary = run_folder(fake_detector(answer_nan=True), scans, tmp_path / "out")
    assert {result.reason for result in summary.failed} == {
        "the model answered with NaN or infinity"
    }
    assert len(summary.failed) == 4
    assert not (tmp_path / "out" / "maps").exists()


def test_names_that_are_not_unicode(tmp_path: Path):
    (tmp_path / "in").mkdir()
    image = picture(tmp_path / "ok.png")
    os.rename(image, os.fsencode(tmp_path / "in") + b"/caf\xe9,\n.png")
    summary = run_folder(fake_detector(), tmp_path / "in", tmp_path / "out")
    assert len(summary.ok) == 1
    assert rows(tmp_path / "out")[0]["name"] == "caf\\udce9,\n"
    again = run_folder(fake_detector(), tmp_path / "in", tmp_path / "out", RunOptions(resume=True))
    assert again.reused == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RunOptions(batch_size=0), "batch size"),
        (RunOptions(seed=-1), "seed"),
        (RunOptions(seed=2**64), "seed"),
        (RunOptions(threshold=float("nan")), "threshold"),
        (RunOptions(noise_level=1000), "noise level"),
        (RunOptions(steps=101), "steps"),
        (RunOptions(flip_threshold=1.5), "flip threshold"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    options: RunOptions, message: str, scans: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=message):
        run_folder(fake_detector(), scans, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_input_and_output_may_not_overlap(scans: Path, tmp_path: Path):
    for read, written in (
        (scans, scans),
        (scans, scans / "out"),
        (scans / "deep", scans),
        (scans / "a.png", scans),
    ):
        with pytest.raises(InputError, match="lie in one another"):
            run_folder(fake_detector(), read, written, RunOptions(resume=True))
    assert sorted(path.name for path in scans.iterdir()) == ["a.png", "d.nii", "deep"]
    summary = run_folder(fake_detector(), scans / "a.png", scans / "out")
    assert [result.input for result in summary.ok] == ["a.png"]


def test_an_output_folder_in_use(scans: Path, tmp_path: Path):
    out = tmp_path / "out"
    (out / "mine").mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(BerdiffError, match="is not empty and holds no results"):
            run_folder(fake_detector(), scans, out, RunOptions(resume=resume))
    (out / "mine").rmdir()
    run_folder(fake_detector(), scans, out)
    before = digests(out, ".")
    with pytest.raises(BerdiffError, match="add --continue"):
        run_folder(fake_detector(), scans, out)
    assert digests(out, ".") == before
    (tmp_path / "file").touch()
    with pytest.raises(BerdiffError, match="is a file"):
        run_folder(fake_detector(), scans, tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="the lock is a POSIX one")
def test_two_runs_never_share_an_output(scans: Path, tmp_path: Path):
    refusals: list[str] = []

    def second_run(*_: int) -> None:
        if not refusals:
            with pytest.raises(BerdiffError, match="another run is writing") as caught:
                run_folder(fake_detector(), scans, tmp_path / "out", RunOptions(resume=True))
            refusals.append(str(caught.value))

    run_folder(fake_detector(), scans, tmp_path / "out", progress=second_run)
    assert refusals
    again = run_folder(fake_detector(), scans, tmp_path / "out", RunOptions(resume=True))
    assert again.reused == 4


def test_a_full_disk_says_how_to_go_on(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import berdiff.runtime.scan_work as scan_work

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(scan_work, "write_results_of", full)
        with pytest.raises(BerdiffError, match=r"No space left on device.*--continue"):
            run_folder(fake_detector(), scans, tmp_path / "out")
    summary = run_folder(fake_detector(), scans, tmp_path / "out", RunOptions(resume=True))
    assert (len(summary.ok), summary.reused) == (4, 0)


def test_progress(scans: Path, tmp_path: Path):
    (scans / "bad.png").write_text("no picture")
    seen: list[tuple[int, int, int]] = []
    options = RunOptions(batch_size=4)
    run_folder(fake_detector(), scans, tmp_path / "out", options, lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert seen[-1] == (5, 5, 10)


# Going on


def test_what_is_finished_is_trusted_by_content(scans: Path, tmp_path: Path):
    out = tmp_path / "out"
    go_on = RunOptions(resume=True)

    def reused(**changes: object) -> int:
        options = dataclasses.replace(go_on, **changes)
        return run_folder(fake_detector(), scans, out, options).reused

    assert reused() == 0
    fresh, table = digests(out), rows(out)
    assert reused() == 4
    assert (digests(out), rows(out)) == (fresh, table)
    assert reused(batch_size=2) == 4

    (out / "maps" / "a_mask.png").write_bytes(b"altered")
    (out / "maps" / "d_flips.nii.gz").unlink()
    (out / "overlays" / "deep" / "b.png").unlink()
    assert reused() == 1
    assert digests(out) == fresh

    picture(scans / "a.png", 9)
    assert reused() == 3
    picture(scans / "a.png", 1)
    assert reused() == 3
    assert digests(out) == fresh

    assert reused(seed=3) == 0
    assert reused(threshold=0.2, seed=3) == 0
    other = fake_detector(digest="e" * 64)
    assert run_folder(other, scans, out, go_on).reused == 0
    assert reused() == 0
    assert digests(out) == fresh


def test_results_of_a_scan_that_no_longer_works_are_removed(scans: Path, tmp_path: Path):
    out, go_on = tmp_path / "out", RunOptions(resume=True)
    run_folder(fake_detector(), scans, out)
    (scans / "a.png").write_text("no picture any more")
    summary = run_folder(fake_detector(), scans, out, go_on)
    assert [result.input for result in summary.failed] == ["a.png"]
    assert not [name for name in digests(out) if "/a" in name]


def test_a_new_file_of_the_same_name_renames_results(scans: Path, tmp_path: Path):
    out, go_on = tmp_path / "out", RunOptions(resume=True)
    run_folder(fake_detector(), scans, out)
    volume(scans / "a.nii.gz", 7)
    summary = run_folder(fake_detector(), scans, out, go_on)
    assert summary.reused == 3
    found = {name for name in digests(out) if name.startswith(("maps/a", "overlays/a"))}
    assert found == {
        *(f"maps/a-png_{part}.png" for part in ("anomaly", "flips", "mask", "reconstruction")),
        *(
            f"maps/a-nii-gz_{part}.nii.gz"
            for part in ("anomaly", "flips", "mask", "reconstruction")
        ),
        "maps/a-nii-gz.json",
        "overlays/a-png.png",
        "overlays/a-nii-gz.png",
    }


def test_an_interrupted_run_leaves_only_finished_scans(scans: Path, tmp_path: Path):
    """Scans that were handed to the writers are finished; the others are as if never begun."""
    out = tmp_path / "out"
    detector = fake_detector(delay=0.01)
    for seed in range(20, 32):
        picture(scans / f"z-{seed}.png", seed)

    def interrupt(done: int, total: int, slices: int) -> None:
        if slices >= 11 and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_folder(detector, scans, out, RunOptions(batch_size=1), interrupt)
    finished = len((out / "journal.jsonl").read_text().splitlines())
    assert 4 <= finished < 16
    assert not (out / "results.csv").exists()
    assert not list(out.rglob(".part-*"))
    assert len(list((out / "overlays").rglob("*.png"))) == finished
    summary = run_folder(fake_detector(), scans, out, RunOptions(resume=True))
    assert (len(summary.ok), summary.reused) == (16, finished)


RUN_SLOWLY = """
import sys
sys.path.insert(0, sys.argv[1])
from fakes import fake_detector
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.run_plan import RunOptions
options = RunOptions(resume=True, batch_size=2)
run_folder(fake_detector(delay=0.06), sys.argv[2], sys.argv[3], options)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_any_moment_it_finishes_with_the_same_result(scans: Path, tmp_path: Path):
    for seed in range(10, 40):  # so many that it is never near its end when it is killed
        picture(scans / f"more-{seed}.png", seed)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    run_folder(fake_detector(), scans, undisturbed)
    command = [sys.executable, "-c", RUN_SLOWLY, str(HERE), str(scans), str(out)]

    kills = 0
    for wanted in (1, 4, 7):  # kill once so many scans are in the journal
        child = subprocess.Popen(command)
        while child.poll() is None:
            journal = out / "journal.jsonl"
            if journal.exists() and journal.read_bytes().count(b"\n") >= wanted:
                time.sleep(0.013 * wanted)  # somewhere within the scans after that
                child.send_signal(signal.SIGKILL)
                kills += child.wait() == -signal.SIGKILL
            time.sleep(0.002)
    assert kills == 3
    assert not (out / "results.csv").exists()
    done = len((out / "journal.jsonl").read_bytes().splitlines())

    summary = run_folder(fake_detector(), scans, out, RunOptions(resume=True))

    assert summary.reused >= 7 <= done
    assert digests(out) == digests(undisturbed)
    assert not list(out.rglob(".part-*"))
    timeless = [{**row, "seconds": ""} for row in rows(out)]
    assert timeless == [{**row, "seconds": ""} for row in rows(undisturbed)]
    assert rows(out, "slices.csv") == rows(undisturbed, "slices.csv")


def test_several_channels(tmp_path: Path):
    model = Preprocessing(2, ("t1", "t2"), (32, 40))
    data = np.stack([head(30, 36, 1), head(30, 36, 2)])
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "in" / "first.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.moveaxis(data, 0, -1), np.eye(4)), tmp_path / "in" / "last.nii.gz"
    )
    run_folder(fake_detector(model), tmp_path / "in", tmp_path / "out")
    shapes = {
        path.name: nibabel.load(path).shape for path in (tmp_path / "out" / "maps").glob("*.nii.gz")
    }
    assert shapes["first_anomaly.nii.gz"] == (1, 30, 36)
    assert shapes["first_reconstruction.nii.gz"] == (2, 30, 36)
    assert shapes["last_mask.nii.gz"] == (30, 36, 1)
    assert shapes["last_reconstruction.nii.gz"] == (30, 36, 2)
