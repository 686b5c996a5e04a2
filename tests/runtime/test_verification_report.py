"""The report says what was found, also of a bundle that is not to be used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from berdiff.runtime import verification_report as module
from berdiff.runtime.backends.onnxruntime import OnnxRuntimeBackend
from berdiff.runtime.bundle import GRAPHS, MANIFEST_NAME, Bundle
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.precision import limits
from berdiff.runtime.strict import from_json, to_json
from berdiff.runtime.verification_report import (
    MIN_RUNS,
    Distribution,
    VerificationReport,
    verification_report,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"


@pytest.fixture(scope="module")
def report(tiny_bundle: Bundle) -> VerificationReport:
    return verification_report(tiny_bundle.path, threads=1, steps=2)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def test_it_says_what_was_checked(report: VerificationReport, tiny_bundle: Bundle) -> None:
    assert (report.passed, report.failures) == (True, ())
    assert report.bundle.digest == tiny_bundle.digest
    assert report.bundle.name == "tiny"
    assert report.engine["backend"] == "onnxruntime"
    assert {"berdiff", "python", "numpy", "onnxruntime"} <= report.software.keys()
    assert {result.name: result.limit for result in report.golden} == limits("fp32")
    assert report.conditions.threads == 1
    for name, record in tiny_bundle.manifest.files.items():
        state = report.bundle.files[name]
        assert (state.state, state.found, state.expected) == ("ok", record, record)
        content = (tiny_bundle.path / name).read_bytes()
        assert state.found is not None
        assert state.found.sha256 == hashlib.sha256(content).hexdigest()


def test_its_times_are_those_of_the_runs(report: VerificationReport) -> None:
    latency = report.latency
    assert latency is not None
    assert len(latency.total_ms) == latency.runs == MIN_RUNS
    assert (latency.batch_size, latency.network_calls, latency.settings.steps) == (1, 2, 2)
    assert latency.total == Distribution.of(latency.total_ms)
    assert list(latency.stages) == ["encode", "loop", "decode", "maps"]
    parts = sum(stage.mean for stage in latency.stages.values())
    assert 0 < parts < latency.total.mean  # the checks of the input are not in the parts
    assert sum(latency.total_ms) <= 1000 * latency.seconds


def test_percentiles_are_by_nearest_rank() -> None:
    times = [float(number) for number in range(1, 201)]
    found = Distribution.of(times[::-1])
    assert found == Distribution(min=1, p50=100, p95=190, p99=198, max=200, mean=100.5)
    # One more run moves each to the next time that occurred, never between two.
    found = Distribution.of([*times, 201.0])
    assert (found.p50, found.p95, found.p99, found.max) == (101, 191, 199, 201)


def test_it_is_read_as_strictly_as_it_is_written(report: VerificationReport) -> None:
    content = json.loads(to_json(report))
    assert from_json(VerificationReport, content, "report.json") == report
    with pytest.raises(BerdiffError, match=r"report\.json: unknown key 'remark'"):
        from_json(VerificationReport, {**content, "remark": ""}, "report.json")
    del content["latency"]["total"]["p99"]
    with pytest.raises(BerdiffError, match=r"latency: total: missing key 'p99'"):
        from_json(VerificationReport, content, "report.json")


def test_files_are_told_apart(bundle: Path) -> None:
    graph, golden = bundle / GRAPHS[0], bundle / "golden" / "vectors.npz"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    golden.unlink()
    (bundle / "notes.txt").write_text("mine")
    report = verification_report(bundle)
    states = {name: file.state for name, file in report.bundle.files.items()}
    assert states == {
        GRAPHS[0]: "altered",
        GRAPHS[1]: "ok",
        GRAPHS[2]: "ok",
        "golden/vectors.npz": "missing",
        "notes.txt": "unlisted",
    }
    altered = report.bundle.files[GRAPHS[0]]
    assert altered.found is not None
    assert altered.expected is not None
    assert altered.found.size == altered.expected.size
    assert altered.found.sha256 != altered.expected.sha256
    assert report.bundle.files["golden/vectors.npz"].found is None
    assert not report.passed
    assert re.search("was altered|is missing", report.failures[0])
    assert (report.engine, report.golden, report.latency) == ({}, (), None)


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"[" * 100_000, b'{"name": 1}'])
def test_a_manifest_that_is_none(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST_NAME).write_bytes(content)
    report = verification_report(bundle)
    assert not report.passed
    assert report.bundle.name is None
    assert report.bundle.digest == hashlib.sha256(content).hexdigest()
    assert {file.state for file in report.bundle.files.values()} == {"unlisted"}


def test_no_bundle(tmp_path: Path) -> None:
    report = verification_report(tmp_path)
    assert not report.passed
    assert "is not a bundle" in report.failures[0]
    assert (report.bundle.digest, report.bundle.files) == (None, {})


def test_what_is_not_there_is_a_failure(tiny_bundle: Bundle) -> None:
    report = verification_report(tiny_bundle.path, device="tpu")
    assert "no device 'tpu' on this machine" in report.failures[0]
    assert {file.state for file in report.bundle.files.values()} == {"ok"}


def test_an_engine_that_computes_something_else(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, code: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((len(code), 1, 32, 32), np.nan, np.float32)

    monkeypatch.setattr(OnnxRuntimeBackend, "decode", broken)
    report = verification_report(tiny_bundle.path)
    failed = {result.name: result.value for result in report.golden if not result.passed}
    assert failed["decoder_error"] is None
    assert "decoder_error" in report.failures[0]
    assert report.latency is None
    assert from_json(VerificationReport, json.loads(to_json(report)), "report.json") == report


def test_an_engine_that_fails_later(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = OnnxRuntimeBackend.decode, []

    def tires(self: Any, code: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append(len(code))
        return real(self, code) * np.float32(1 if len(calls) < 50 else np.nan)

    monkeypatch.setattr(OnnxRuntimeBackend, "decode", tires)
    report = verification_report(tiny_bundle.path, steps=2)
    assert all(result.passed for result in report.golden)
    assert re.fullmatch(r"detection \d+ gave a score that is no number", report.failures[0])
    assert (report.passed, report.latency) == (False, None)


def test_too_few_runs_for_a_p99(tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="expected at least 200"):
        verification_report(tiny_bundle.path, runs=199)


@pytest.mark.parametrize(
    ("kind", "heading"),
    [
        (VerificationReport, "changes a key raises\n`schema_version`."),
        (module.Conditions, "\n`conditions`:"),
        (module.BundleState, "\n`bundle`:"),
        (module.FileState, "\n`bundle.files`, each:"),
        (module.GoldenResult, "\n`golden`, each:"),
        (module.Latency, "\n`latency`:"),
        (Distribution, "\n`total` and each of `stages`:"),
    ],
)
def test_every_key_is_explained(kind: type, heading: str) -> None:
    table = PAGE.read_text().split(heading, 1)[1].lstrip("\n").split("\n\n", 1)[0]
    explained = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert explained == [field.name for field in dataclasses.fields(kind)]
