"""``berdiff verify --report``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from berdiff.cli import main
from berdiff.runtime.bundle import GRAPHS, Bundle
from berdiff.runtime.precision import FIGURES
from berdiff.runtime.strict import read_json
from berdiff.runtime.verification_report import VerificationReport

Capture = pytest.CaptureFixture[str]


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_a_report_is_written_and_shown(
    tiny_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "new" / "report.json"
    options = ("--threads", 1, "--steps", 2, "--runs", 210)
    assert end("verify", tiny_bundle.path, "--report", path, *options) == 0
    report = read_json(VerificationReport, path)
    assert report.passed
    assert report.latency is not None
    assert (report.latency.runs, report.latency.network_calls) == (210, 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("backend onnxruntime, device cpu")
    checked, rest = lines[1 : 1 + len(FIGURES)], lines[1 + len(FIGURES) :]
    assert [line.split()[:2] for line in checked] == [["ok", name] for name in FIGURES]
    assert rest[0].startswith("210 detections of one image, 2 calls of the denoiser each")
    assert rest[2].split() == [
        "total",
        *(f"{ms:.2f}" for ms in (report.latency.total.p50, report.latency.total.p95)),
        *(f"{ms:.2f}" for ms in (report.latency.total.p99, report.latency.total.max)),
    ]
    assert rest[-1] == f"report: {path}"
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_a_failure_is_reported_too(tiny_bundle: Bundle, tmp_path: Path, capsys: Capture) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    graph = bundle / GRAPHS[1]
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    path = tmp_path / "report.json"
    path.write_text("of an earlier run")
    assert end("verify", bundle, "--report", path) == 1
    report = read_json(VerificationReport, path)
    assert not report.passed
    shown = capsys.readouterr()
    assert shown.err == f"error: {report.failures[0]}\n"
    assert "denoiser.onnx was altered" in shown.err
    assert shown.out == f"report: {path}\n"


def test_json_on_the_terminal_and_in_the_file(
    tiny_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "report.json"
    assert (
        end("verify", tiny_bundle.path, "--json", "--report", path, "--steps", 2, "--threads", 1)
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["bundle"] == {"name": "tiny", "digest": tiny_bundle.digest}
    assert [check["name"] for check in result["checks"]] == list(FIGURES)


def test_a_report_does_not_go_into_the_bundle(
    tiny_bundle: Bundle, tmp_path: Path, capsys: Capture
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    before = (bundle / "bundle.json").read_bytes()
    assert end("verify", bundle, "--report", bundle / "bundle.json") == 1
    assert "lies in the bundle" in capsys.readouterr().err
    assert (bundle / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("name", ["", "file/report.json"])
def test_where_nothing_can_be_written(
    tiny_bundle: Bundle, tmp_path: Path, capsys: Capture, name: str
) -> None:
    (tmp_path / "file").write_text("")
    assert end("verify", tiny_bundle.path, "--report", tmp_path / name) == 1
    error = capsys.readouterr().err
    assert "is a folder; name a file" in error or "cannot write" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runs", 200), "name its file with --report"),
        (("--steps", 5), "name its file with --report"),
        (("--report", "r.json", "--runs", 199), "200"),
    ],
)
def test_options_that_do_not_fit(
    tiny_bundle: Bundle, capsys: Capture, options: tuple[object, ...], message: str
) -> None:
    assert end("verify", tiny_bundle.path, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
