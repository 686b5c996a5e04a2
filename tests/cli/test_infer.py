"""``berdiff infer`` with a real, tiny bundle."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest
from PIL import Image

from berdiff.cli import main

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "maps").rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures and a volume of four slices, of which one is empty."""
    folder = tmp_path_factory.mktemp("scans")
    random = np.random.default_rng(0)
    for name in ("one.png", "two.png"):
        Image.fromarray(random.integers(0, 256, (30, 28), np.uint8)).save(folder / name)
    data = random.integers(0, 900, (28, 30, 4)).astype(np.int16)
    data[..., 3] = 0
    nibabel.save(nibabel.Nifti1Image(data, np.diag([-1, -1, 3, 1])), folder / "three.nii.gz")
    return folder


def test_a_folder_of_scans(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", tmp_path / "out", "--no-report")
    assert code == 0
    shown = capsys.readouterr()
    assert shown.out == f"3 of 3 scans processed; results in {tmp_path / 'out'}\n"
    assert shown.err == ""
    assert len(digests(tmp_path / "out")) == 13  # four maps each, and one sidecar
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["bundle"]["digest"] == tiny_bundle.digest
    assert (record["backend"], record["device"], record["seed"]) == ("onnxruntime", "cpu", 0)
    assert record["settings"]["steps"] == 5
    assert "numpy" in record["software"]


def test_batch_size_and_file_names_change_no_byte(tiny_bundle: Bundle, scans: Path, tmp_path: Path):
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    names = {"one.png": "z.png", "two.png": "a.png", "three.nii.gz": "m.nii.gz"}
    for old, new in names.items():
        (shuffled / new).write_bytes((scans / old).read_bytes())
    common = ("infer", "-m", tiny_bundle.path, "--no-report")
    assert end(*common, "-i", scans, "-o", tmp_path / "1", "--batch-size", 1) == 0
    assert end(*common, "-i", shuffled, "-o", tmp_path / "7", "--batch-size", 7) == 0
    assert end(*common, "-i", scans, "-o", tmp_path / "t", "--threads", 1) == 0
    first = digests(tmp_path / "1")
    assert sorted(first.values()) == sorted(digests(tmp_path / "7").values())
    assert first == digests(tmp_path / "t")
    assert end(*common, "-i", scans, "-o", tmp_path / "s", "--seed", 5) == 0
    assert first["three_anomaly.nii.gz"] != digests(tmp_path / "s")["three_anomaly.nii.gz"]


def test_options_reach_the_run(tiny_bundle: Bundle, scans: Path, tmp_path: Path):
    options = ("--steps", 3, "--noise-level", 20, "--flip-threshold", 0.7, "--threshold", 0.25)
    out = tmp_path / "out"
    assert (
        end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", out, "--no-report", *options) == 0
    )
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["steps"], settings["noise_level"], settings["flip_threshold"]) == (3, 20, 0.7)
    with open(out / "results.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert {(row["threshold"], row["threshold_source"]) for row in table} == {("0.25", "option")}


def test_partial_failure_ends_with_3_and_lists_reasons(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes((scans / "one.png").read_bytes())
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    command = ("infer", "-m", tiny_bundle.path, "-i", folder, "-o", tmp_path / "out", "--no-report")
    assert end(*command) == 3
    shown = capsys.readouterr()
    assert "1 of 2 scans processed" in shown.out
    assert "1 of 2 scans could not be processed:\n  bad.nii.gz: this is no NIfTI" in shown.err

    assert end(*command) == 1
    assert "add --continue" in capsys.readouterr().err
    assert end(*command, "--continue") == 3
    assert "processed, 1 of them by an earlier run" in capsys.readouterr().out

    (folder / "good.png").unlink()
    assert end(*command[:5], "-o", tmp_path / "none") == 1
    assert "none of 1 scans could be processed" in capsys.readouterr().err


def test_errors_and_wrong_usage(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert end("infer", "-m", tmp_path, "-i", scans, "-o", out) == 1
    assert "is not a bundle" in capsys.readouterr().err
    assert end("infer", "-m", tiny_bundle.path, "-i", tmp_path / "x", "-o", out) == 1
    assert "does not exist" in capsys.readouterr().err
    assert end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", out, "-d", "tpu") == 1
    assert "no device 'tpu'" in capsys.readouterr().err
    assert end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", out, "--batch-size", 0) == 2
    assert end("infer", "-i", scans, "-o", out) == 2
    assert end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", out, "-ot", "nrrd") == 1
    assert "unknown output type nrrd; known: nifti, bids" in capsys.readouterr().err
    assert end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", out, "-ot", "dicom-seg") == 1
    assert "dicom-seg needs DICOM" in capsys.readouterr().err
    assert not out.exists()


def test_the_report_is_written_unless_refused(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import berdiff.runtime.report as report

    written: list[Path] = []
    monkeypatch.setattr(report, "write_report", written.append)
    common = ("infer", "-m", tiny_bundle.path, "-i", scans / "one.png")
    assert end(*common, "-o", tmp_path / "no", "--no-report") == 0
    assert written == []
    assert end(*common, "-o", tmp_path / "yes") == 0
    assert written == [tmp_path / "yes"]


def test_a_dry_run_lists_and_writes_nothing(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert end("infer", "-m", tiny_bundle.path, "-i", scans, "-o", out, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "one\tpicture\t1 file\tpng",
        "three\tnifti\t1 file\tnii.gz",
        "two\tpicture\t1 file\tpng",
        "3 scans found, 0 of them cannot be used",
    ]
    assert not out.exists()


def test_folders_may_come_from_the_environment(
    tiny_bundle: Bundle, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As Mercure and Holoscan name them; what is said on the command line comes first."""
    monkeypatch.setenv("MERCURE_IN_DIR", str(scans))
    monkeypatch.setenv("MERCURE_OUT_DIR", str(tmp_path / "mercure"))
    monkeypatch.setenv("HOLOSCAN_MODEL_PATH", str(tiny_bundle.path))
    assert end("infer", "--no-report") == 0
    assert (tmp_path / "mercure" / "results.csv").exists()
    monkeypatch.delenv("MERCURE_IN_DIR")
    monkeypatch.delenv("MERCURE_OUT_DIR")
    monkeypatch.setenv("HOLOSCAN_INPUT_PATH", str(scans))
    monkeypatch.setenv("HOLOSCAN_OUTPUT_PATH", str(tmp_path / "holoscan"))
    assert end("infer", "--no-report", "-o", tmp_path / "mine") == 0
    assert (tmp_path / "mine" / "results.csv").exists()
    assert not (tmp_path / "holoscan").exists()


def test_parts_share_the_work(tiny_bundle: Bundle, scans: Path, tmp_path: Path):
    common = ("infer", "-m", tiny_bundle.path, "-i", scans, "-o", tmp_path / "out", "--no-report")
    for number in (0, 1):
        assert end(*common, "--num-parts", 2, "--part-id", number) == 0
    names = []
    for number in (0, 1):
        with open(tmp_path / "out" / f"part-{number}-of-2" / "results.csv", newline="") as stream:
            names.append([row["name"] for row in csv.DictReader(stream)])
    assert names == [["one", "two"], ["three"]]
    assert end(*common, "--num-parts", 2, "--part-id", 2) == 1
    assert end(*common, "--num-parts", 9, "--part-id", 8) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_progress_is_shown_on_a_terminal(tiny_bundle: Bundle, scans: Path, tmp_path: Path):
    ours, theirs = pty.openpty()
    code = "import sys; from berdiff.cli.main import run; run(sys.argv[1:])"
    options = ("-m", tiny_bundle.path, "-i", scans, "-o", tmp_path / "out", "--no-report")
    child = subprocess.Popen(
        [sys.executable, "-c", code, "infer", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 65536):
            seen += block
    except OSError:  # how Linux says that the other end is closed
        pass
    out, _ = child.communicate()
    os.close(ours)
    assert child.returncode == 0
    assert b"3/3" in seen
    assert b"5 slices" in seen
    assert out.decode().startswith("3 of 3 scans processed")
