"""The arithmetic of the benchmark of engines, on runs that are made up, and one real small run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from berdiff.runtime.backends import available
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.nvidia import driver

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import engines_figures

    return engines_figures


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import engines

    return engines


def run(name: str, family: str, precision: str, batch: int, loop: float, **more: Any) -> dict:
    """One run: the loop takes `loop` seconds, encoding and decoding half a second together."""
    defaults = {"images": batch, "encode": 0.2, "decode": 0.3, "host_mib": 100.0}
    return {
        "contender": name,
        "family": family,
        "precision": precision,
        "batch": batch,
        "loop": loop,
        "device_mib": None,
        "largest_batch": None,
        **defaults,
        **more,
    }


def turns(*contenders: tuple[Any, ...]) -> list[dict]:
    """Runs as the script makes them, A B A B ..., from (arguments..., [seconds of each turn])."""
    lengths = {len(each[-1]) for each in contenders}
    assert len(lengths) == 1
    return [run(*each[:-1], each[-1][turn]) for turn in range(*lengths) for each in contenders]


def small(figures: ModuleType) -> tuple[Any, Any]:
    network = figures.Network(2_000_000, 8.0, 1.0, 1.0)
    tflops = {"fp32": 1.0, "fp16": 2.0, "bf16": 2.0, "int8": 4.0}
    return network, figures.Peak(tflops, 100.0, "made up")


def test_the_first_run_warms_up_and_medians_count(figures: ModuleType) -> None:
    runs = turns(
        ("old", "published", "fp32", 1, [9.0, 3.5, 1.5, 2.5]),
        ("new", "onnxruntime", "fp32", 1, [7.0, 0.4, 1.0, 0.5]),
    )
    old, new = figures.rows(runs, 10, *small(figures))
    assert (old.contender, old.batch, old.images) == ("old", 1, 1)
    assert (old.step_ms, old.step_ms_least) == (250, 150)
    assert (old.image_ms, old.image_ms_least) == (3000, 2000)
    assert old.first_ms == 9500
    assert (new.step_ms, new.image_ms) == (50, 1000)
    assert (old.image_times_published, new.image_times_published) == (1.0, 3.0)
    assert (old.step_times_published, new.step_times_published) == (1.0, 5.0)
    assert (old.step_times_fp32, new.step_times_fp32) == (1.0, 1.0)


def test_ratios_are_of_one_image_and_of_the_same_batch_and_family(figures: ModuleType) -> None:
    runs = [
        run("old", "published", "fp32", 4, 3.5, images=1),
        run("a fp32", "a", "fp32", 4, 7.5),
        run("a int8", "a", "int8", 4, 3.5),
        run("b int8", "b", "int8", 4, 1.5),
        run("old", "published", "fp32", 1, 7.5, images=1),
    ]
    found = figures.rows([each for each in runs for _ in range(2)], 10, *small(figures))
    by_name = {(row.contender, row.batch): row for row in found}
    assert [row.batch for row in found] == [1, 4, 4, 4, 4]
    assert by_name["old", 4].image_ms == 4000
    assert by_name["a fp32", 4].image_ms == 2000
    assert by_name["a int8", 4].image_times_published == 4.0
    assert by_name["a int8", 4].step_times_published == 4.0  # 3.5 s for one, 3.5 s for four
    assert by_name["a int8", 4].step_times_fp32 == pytest.approx(7.5 / 3.5)
    assert by_name["b int8", 4].step_times_fp32 is None
    assert by_name["b int8", 4].image_times_published == 8.0


def test_a_contender_that_fell_out_has_no_row(figures: ModuleType) -> None:
    runs = [
        run("a", "a", "fp32", 1, 1.0),
        run("a", "a", "fp32", 1, 1.0),
        run("a", "a", "fp32", 8, 1),
    ]
    (row,) = figures.rows(runs, 10, *small(figures))
    assert (row.batch, row.image_times_published) == (1, None)


@pytest.mark.parametrize(
    ("precision", "batch", "arithmetic", "bandwidth"),
    # 8 GFLOP at 1 TFLOP/s are 8 ms; 2 M weights of 4 bytes at 100 GB/s are 0.08 ms.
    [("fp32", 1, 8.0, 0.08), ("fp16", 1, 4.0, 0.04), ("int8", 4, 8.0, 0.02)],
)
def test_floors(
    figures: ModuleType, precision: str, batch: int, arithmetic: float, bandwidth: float
) -> None:
    network, peak = small(figures)
    assert figures.floors_ms(network, peak, precision, batch) == pytest.approx(
        (arithmetic, bandwidth)
    )
    runs = [run("a", "a", precision, batch, 0.1)] * 2  # 10 ms for each of 10 steps
    (row,) = figures.rows(runs, 10, network, peak)
    assert row.arithmetic_share == pytest.approx(arithmetic / 10)
    assert row.bandwidth_share == pytest.approx(bandwidth / 10)


def test_the_floors_of_the_published_architecture(figures: ModuleType) -> None:
    """13.0 GFLOP and 72 MB of fp16 weights on an H200: 16.5 and 17 microseconds."""
    network = figures.Network(36_034_432, 13.03, 14.8, 23.9)
    floors = figures.floors_ms(network, figures.peak_of("NVIDIA H200"), "fp16", 1)
    assert floors == pytest.approx((0.0165, 0.0168), abs=1e-4)


@pytest.mark.parametrize(
    ("gpu", "gbs"),
    [
        ("NVIDIA H200", 4300),
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA L40S", 864),
        ("NVIDIA L4", 300),
        ("Orin", 205),
    ],
)
def test_peaks_by_name(figures: ModuleType, gpu: str, gbs: float) -> None:
    peak = figures.peak_of(gpu)
    assert peak.gbs == gbs
    assert peak.tflops.keys() == figures.WEIGHT_BYTES.keys()


def test_a_gpu_that_is_not_known(figures: ModuleType) -> None:
    assert figures.peak_of("NVIDIA GeForce GT 710") is None


def test_given_peaks_go_first(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def options(*words: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["engines.py", "--device", "cuda:0", *words])
        return script.arguments()

    peak = script.peak(options("--peak", "fp16=700"), "NVIDIA H200")
    assert (peak.tflops["fp16"], peak.tflops["bf16"], peak.gbs) == (700, 790, 4300)
    assert peak.source.endswith("fp16 given")

    words = ["--precisions", "fp16", "--peak", "fp16=9", "--bandwidth", "50"]
    peak = script.peak(options(*words), "unheard of")  # nothing is measured
    assert (peak.tflops, peak.gbs, peak.source) == ({"fp16": 9}, 50, "given")


def test_memory_is_the_most_and_parts_are_told(figures: ModuleType) -> None:
    runs = [
        run("a", "a", "fp32", 8, 1.0, device_mib=mib, largest_batch="4") for mib in (9.0, 3.0, 5.0)
    ]
    (row,) = figures.rows(runs, 10, *small(figures))
    assert (row.device_mib, row.host_mib, row.largest_batch) == (5.0, 100.0, 4)
    openings = {"a": {"open_s": 1.0, "warm_up_s": 0.25}}
    result = {
        "conditions": {"device": "a GPU", "threads": None},
        "rows": figures.as_json([row]),
        "openings": openings,
        "left_out": {"b": "there is no b"},
    }
    lines = figures.markdown(result).splitlines()
    assert lines[0] == "device: a GPU  "
    assert not any(line.startswith("threads") for line in lines)
    cells = [line.split("|")[1:3] for line in lines if "in parts of" in line]
    assert cells == [[" 8 ", " a (in parts of 4) "]]
    assert "| a | 1.00 | 0.25 | 8: 1.50 | 8: 100 | 8: 5 |" in lines
    assert lines[-1] == "* b: there is no b"


class FakeWorker:
    """A contender that takes a second per image, and fails where it is told to."""

    order: list[tuple[str, int]] = []  # noqa: RUF012
    closed: list[str] = []  # noqa: RUF012

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.opening = {"error": "no such file"} if spec.name == "absent" else {"open_s": 1.0}

    def run(self, batch: int) -> dict[str, Any]:
        self.order.append((self.spec.name, batch))
        if self.spec.name == "weak" and batch > 1:
            return {"error": "out of memory"}
        return {"loop": 1.0 * batch, "images": batch}

    def close(self) -> None:
        self.closed.append(self.spec.name)


def test_contenders_take_turns_and_failures_are_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "order", [])
    monkeypatch.setattr(FakeWorker, "closed", [])
    specs = [
        script.Spec(name, "torch", "fp32", "folder", "cpu", 200, 10)
        for name in ("strong", "absent", "weak")
    ]
    left_out: dict[str, str] = {}
    runs, openings = script.measure(specs, [1, 2], 1, left_out)
    assert FakeWorker.order == [
        *[("strong", 1), ("weak", 1)] * 2,
        *[("strong", 2), ("weak", 2), ("strong", 2)],
    ]
    assert left_out == {"absent": "no such file", "weak from batch 2 on": "out of memory"}
    assert list(openings) == ["strong", "weak"]
    assert sorted(FakeWorker.closed) == ["absent", "strong", "weak"]
    assert [(each["contender"], each["batch"], each["turn"]) for each in runs][:2] == [
        ("strong", 1, 0),
        ("weak", 1, 0),
    ]
    assert len(runs) == 6


def test_what_is_timed_on_a_cpu(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["--device", "cpu", "--precisions", "fp32,int8", "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["engines.py", *words])
    answers = {"fp32": tmp_path / "bundle-fp32", "int8": "its maps stray too far"}
    monkeypatch.setattr(script.prepare, "bundle", lambda _, precision, __: answers[precision])
    left_out: dict[str, str] = {}
    specs = list(script.contenders(script.arguments(), tmp_path, left_out))
    assert [(spec.name, spec.family) for spec in specs] == [
        ("PyTorch eager, one at a time", "published"),
        ("PyTorch eager fp32", "torch"),
        ("onnxruntime fp32", "onnxruntime"),
    ]
    assert {(spec.steps, spec.noise_level) for spec in specs} == {(10, 200)}
    assert left_out["onnxruntime int8"] == "its maps stray too far"
    assert "--compile" in left_out["PyTorch compiled"]


def test_an_export_that_fails_is_said(script: ModuleType, tmp_path: Path) -> None:
    """`berdiff export` takes the options it is given, and misses the checkpoint."""
    for leftover in ("heads", "bundle-int8"):
        (tmp_path / leftover).mkdir()
    options = Namespace(work=tmp_path, calibration=tmp_path / "heads")
    assert "no config.json" in script.prepare.bundle(tmp_path / "nothing", "int8", options)
    assert not (tmp_path / "bundle-int8").exists()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_a_small_run_from_beginning_to_end(
    device: str, tiny_checkpoint: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """But for the export, which takes longer than all of it: the bundle is there already."""
    if device not in ("cpu", *(gpu.device for gpu in driver().gpus)):
        pytest.skip(driver().problem or "no such GPU")
    copy = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle-fp32")) / "bundle.json"
    copied = copy.stat().st_mtime_ns
    command = [sys.executable, str(ROOT / "benchmarks" / "engines.py"), "--device", device]
    command += ["--checkpoint", str(tiny_checkpoint), "--work", str(tmp_path), "--threads", "1"]
    command += ["--batch-sizes", "1,2", "--rounds", "2", "--steps", "3", "--noise-level", "50"]
    command += ["--precisions", "fp32", "--peak", "fp32=0.1", "--bandwidth", "10"]
    subprocess.run(command, check=True, capture_output=True)
    assert copy.stat().st_mtime_ns == copied
    result = json.loads((tmp_path / "engines.json").read_text())
    names = ["PyTorch eager, one at a time", "PyTorch eager fp32"]
    if device == "cpu":
        names.append("onnxruntime fp32")
    else:
        names.append("PyTorch compiled fp32")
        usable = [name for name, found in available().items() if device in found.devices]
        names += [f"{name} fp32" for name in usable]
    rows = result["rows"]
    expected = [(batch, name) for batch in (1, 2) for name in names]
    assert [(row["batch"], row["contender"]) for row in rows] == expected, result["left_out"]
    assert [row["images"] for row in rows] == [1] * (len(names) + 1) + [2] * (len(names) - 1)
    assert all(row["image_times_published"] > 0 for row in rows)
    assert all(10 < row["host_mib"] < 1e5 for row in rows)
    assert all((row["device_mib"] is None) == (device == "cpu") for row in rows)
    assert len(result["runs"]) == len(names) * 2 * 3
    assert "error" not in json.dumps(result["openings"])
    assert (tmp_path / "engines.png").stat().st_size > 1000
    table = (tmp_path / "engines.md").read_text()
    assert "L = 50, 3 reverse steps" in table
    assert "| 2 | PyTorch eager fp32 |" in table
