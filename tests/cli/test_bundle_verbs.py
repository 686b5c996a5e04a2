"""``berdiff export``, ``verify``, ``info`` and ``bench`` with a real, tiny model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import berdiff
from berdiff.cli import main
from berdiff.export import write_bundle
from berdiff.runtime.backends.onnxruntime import OnnxRuntimeBackend
from berdiff.runtime.bundle import GRAPHS, Bundle, write_manifest
from berdiff.runtime.intake import fit
from berdiff.runtime.precision import FIGURES, Precision, limits

Capture = pytest.CaptureFixture[str]


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


# --- export --------------------------------------------------------------------------------


def test_export_writes_a_bundle_and_shows_its_parity(
    tiny_checkpoint: Path,
    tiny_bundle: Bundle,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = tiny_bundle.path / "onnx"  # exporting them again would take most of a minute
    monkeypatch.setattr(
        write_bundle, "_write_graphs", lambda folder, *_: shutil.copytree(graphs, folder)
    )
    output = tmp_path / "bundle"
    assert end("export", tiny_checkpoint, "-o", output, "--dynamic-batch", "1,2,4") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in FIGURES)
    assert shown.endswith(f"bundle: {output}\n")
    assert Bundle.open(output).manifest.dynamic_batch == (1, 2, 4)


def test_export_at_a_precision(
    tiny_checkpoint: Path,
    tiny_bundle_at: Callable[[Precision], Bundle],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = tiny_bundle_at("fp16").path / "onnx"
    monkeypatch.setattr(
        write_bundle, "_write_graphs", lambda folder, *_: shutil.copytree(graphs, folder)
    )
    output = tmp_path / "bundle"
    assert end("export", tiny_checkpoint, "-o", output, "--precision", "fp16") == 0
    assert "limit 2.0e-02  bit probabilities" in capsys.readouterr().out
    assert Bundle.open(output).manifest.precision == "fp16"


def test_export_in_int8_wants_scans(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    assert end("export", tiny_checkpoint, "-o", tmp_path / "b", "--precision", "int8") == 1
    assert "name a folder of them with --calibration" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batches", ["1,8", "1,8,x", "1,8,32,64", ""])
def test_export_explains_the_batch_option(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, batches: str
) -> None:
    arguments = ("export", tiny_checkpoint, "-o", tmp_path / "b", "--dynamic-batch", batches)
    assert end(*arguments) == 2
    assert "1,8,32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_export_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert end("export", tmp_path / "none", "-o", tmp_path / "b") == 1
    assert "is not a checkpoint" in capsys.readouterr().err


# --- verify --------------------------------------------------------------------------------


def test_verify_passes(tiny_bundle: Bundle, capsys: Capture) -> None:
    assert end("verify", tiny_bundle.path, "--threads", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("backend onnxruntime, device cpu")
    assert [line.split()[:2] for line in lines[1:]] == [["ok", name] for name in FIGURES]


def test_verify_fails_where_the_engine_computes_something_else(
    tiny_bundle: Bundle, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxRuntimeBackend.decode
    monkeypatch.setattr(OnnxRuntimeBackend, "decode", lambda self, code: real(self, code) + 0.01)
    assert end("verify", tiny_bundle.path) == 1
    shown = capsys.readouterr()
    assert "FAILED decoder_error" in shown.out
    assert "ok     encoder_error" in shown.out
    assert "onnxruntime on cpu does not compute" in shown.err
    assert "decoder_error" in shown.err

    assert end("verify", tiny_bundle.path, "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is False
    assert [check["name"] for check in result["checks"] if not check["passed"]] == ["decoder_error"]


def test_verify_as_json(tiny_bundle: Bundle, capsys: Capture) -> None:
    assert end("verify", tiny_bundle.path, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    assert result["bundle"] == {"name": "tiny", "digest": tiny_bundle.digest}
    assert result["engine"]["backend"] == "onnxruntime"
    assert {check["name"]: check["limit"] for check in result["checks"]} == limits("fp32")


def test_verify_of_an_altered_bundle(tiny_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    with open(folder / GRAPHS[1], "r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte[0] ^ 1]))
    assert end("verify", folder) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "denoiser.onnx was altered" in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--backend", "magic", "unknown backend 'magic'; known are: onnxruntime"),
        ("--device", "tpu", "no device 'tpu' on this machine; available are: cpu"),
    ],
)
def test_an_unknown_backend_or_device_is_no_fallback(
    tiny_bundle: Bundle, capsys: Capture, option: str, value: str, message: str
) -> None:
    assert end("verify", tiny_bundle.path, option, value) == 1
    assert message in capsys.readouterr().err


# --- info ----------------------------------------------------------------------------------


def test_info_of_a_bundle(tiny_bundle: Bundle, capsys: Capture) -> None:
    assert end("info", tiny_bundle.path) == 0
    shown = capsys.readouterr().out
    for line in (
        "name: tiny",
        "  modalities: flair",
        "  size: 32, 32",
        "  channels: 8",
        "  num_timesteps: 1000",
        "  noise_level: 50",
        "threshold: none",
        f"    size: {tiny_bundle.file(GRAPHS[0]).stat().st_size}",
        f"digest: {tiny_bundle.digest}",
        "  opset: 20",
    ):
        assert line in shown.splitlines()


def test_info_shows_what_healthy_input_looks_like(
    tiny_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    found = fit(np.random.default_rng(0).normal(0.5, 0.1, (30, 15)), ("flair",))
    assert found is not None
    manifest = dataclasses.replace(tiny_bundle.manifest, input_statistics=found)
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    write_manifest(folder, manifest)
    assert end("info", folder) == 0
    shown = capsys.readouterr().out
    low, high = found.low[0], found.high[0]
    assert f"input_statistics:\n  images: 30\n  limit: {found.limit:g}\n" in shown
    assert f"  coverage: {low:g} to {high:g}\n" in shown
    assert "  flair fineness: " in shown
    assert "precision: 1" not in shown
    assert end("info", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["input_statistics"]["limit"] == found.limit


def test_info_of_a_bundle_as_json_is_its_manifest(tiny_bundle: Bundle, capsys: Capture) -> None:
    assert end("info", tiny_bundle.path, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown.pop("digest") == tiny_bundle.digest
    assert shown.pop("path") == str(tiny_bundle.path)
    assert shown == json.loads((tiny_bundle.path / "bundle.json").read_text())


def test_info_of_the_installation(capsys: Capture) -> None:
    assert end("info", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["software"]["berdiff"] == berdiff.__version__
    assert shown["software"]["python"] == sys.version.split()[0]
    assert shown["software"].keys() >= {"numpy", "onnxruntime"}
    assert shown["backends"]["onnxruntime"] == {"devices": ["cpu"], "reason": None}
    assert end("info") == 0
    assert "  onnxruntime:\n    devices: cpu\n" in capsys.readouterr().out


def test_info_of_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    assert end("info", tmp_path) == 1
    assert "is not a bundle" in capsys.readouterr().err


# --- bench ---------------------------------------------------------------------------------


def test_bench_alone(tiny_bundle: Bundle, capsys: Capture) -> None:
    arguments = ("bench", "-m", tiny_bundle.path, "--batch-sizes", "2,1", "--repeats", 1)
    assert end(*arguments, "--steps", 3, "--threads", 1) == 0
    shown = capsys.readouterr().out
    assert "noise level 50, 3 reverse steps" in shown
    assert "start-up" in shown
    assert "MiB" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("onnxruntime ")]
    assert [row[1] for row in rows] == ["1", "2"]
    assert "times as fast" not in shown


def test_bench_against_torch(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    """In a process of its own: the number of PyTorch's threads is set for the whole process."""
    code = "import sys; from berdiff.cli.main import run; run(sys.argv[1:])"
    command = [sys.executable, "-c", code, "bench", "-m", str(tiny_bundle.path)]
    command += ["--against", "torch", str(tiny_checkpoint), "--batch-sizes", "1,3", "--json"]
    command += ["--steps", "4", "--repeats", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = json.loads(done.stdout)
    assert shown["steps"] == 4
    assert shown["engine"]["threads"] == "1"
    names = [(timing["name"].split()[0], timing["batch_size"]) for timing in shown["timings"]]
    assert names == [("onnxruntime", 1), ("torch", 1), ("onnxruntime", 3), ("torch", 3)]
    assert all(len(timing["runs_ms"]) == 2 for timing in shown["timings"])
    by_name = {(t["name"].split()[0], t["batch_size"]): t["image_ms"] for t in shown["timings"]}
    assert shown["speedup"]["3"] == by_name["torch", 3] / by_name["onnxruntime", 3]


def test_bench_against_another_checkpoint(
    tiny_bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    config = other / "config.json"
    config.write_text(config.read_text().replace('"name": "tiny"', '"name": "other"'))
    arguments = ("bench", "-m", tiny_bundle.path, "--batch-sizes", 1, "--against", "torch", other)
    assert end(*arguments) == 1
    assert "sha256 of config.json differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "jax", "folder"], "known is: torch"),
        (["--against", "torch"], "2 arguments"),
        (["--batch-sizes", "1,none"], "1,4,8"),
        (["--batch-sizes", "0"], "1,4,8"),
    ],
)
def test_bench_wrong_usage(
    tiny_bundle: Bundle, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert end("bench", "-m", tiny_bundle.path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_bench_steps_out_of_range(tiny_bundle: Bundle, capsys: Capture) -> None:
    assert end("bench", "-m", tiny_bundle.path, "--steps", 1000) == 1
    assert "steps must lie between" in capsys.readouterr().err
