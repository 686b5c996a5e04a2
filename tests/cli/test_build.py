"""``berdiff build`` and ``berdiff export --engine``: what is said, and how it ends.

What is built is a stand-in: real engines are built in tests/export and tests/runtime/engines.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from berdiff.cli import main
from berdiff.export import write_bundle
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines import build
from berdiff.runtime.engines.store import NETWORKS, NetworkEngine, stored_engines
from berdiff.runtime.errors import BackendError
from berdiff.runtime.files import sha256_file

trt = pytest.importorskip("tensorrt_rtx")

Capture = pytest.CaptureFixture[str]
RTX = ("--engine", "tensorrt-rtx")


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Building takes no time and gives nothing of use; what was asked for."""
    found: list[Any] = []

    def fake(job: Any, network: str, folder: Path) -> NetworkEngine:
        found.append(job)
        file = folder / f"{network}.engine"
        file.write_bytes(b"engine")
        digest = job.bundle.manifest.files[f"onnx/{network}.onnx"].sha256
        compute = {"float32": 3, "unknown": 1}
        warnings = ("the builder took its time",) if network == "decoder" else ()
        return NetworkEngine(
            *(digest, sha256_file(file), 6, {}, {}, compute, {}),
            *(9, 2_000_000, 3_000_000, warnings, 4.25),
        )

    monkeypatch.setattr(build, "build_network", fake)
    return found


# --- build ---------------------------------------------------------------------------------


def test_build_stores_an_engine_and_says_what_it_is(
    bundle: Path, jobs: list[Any], capsys: Capture
) -> None:
    assert end("build", bundle, *RTX, "--target", "sm_89") == 0
    (stored,) = stored_engines(Bundle.open(bundle))
    shown = capsys.readouterr()
    first, *networks, last = shown.out.splitlines()
    assert first == f"tensorrt-rtx {trt.__version__}, sm_89, fp32, batches of 1 to 32"
    assert [line.split()[0] for line in networks] == list(NETWORKS)
    assert (
        "products: 3 in float32, 1 in unknown; weights 2.0 MB, scratch 3.0 MB; built in 4.2 s"
        in networks[0]
    )
    assert last == f"engine: {stored.folder}"
    assert shown.err == "warning: decoder: the builder took its time\n"


def test_a_second_build_is_not_done(bundle: Path, jobs: list[Any], capsys: Capture) -> None:
    assert end("build", bundle, *RTX) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert end("build", bundle, *RTX) == 0
    assert capsys.readouterr().out.endswith("; nothing to do)\n")
    assert len(jobs) == len(NETWORKS)


def test_several_targets_are_several_engines(bundle: Path, jobs: list[Any]) -> None:
    assert end("build", bundle, *RTX, "--target", "sm_89", "--target", "sm_120") == 0
    targets = {stored.sidecar.target for stored in stored_engines(Bundle.open(bundle))}
    assert targets == {"sm_89", "sm_120"}


def test_options_arrive(bundle: Path, jobs: list[Any]) -> None:
    assert end("build", bundle, *RTX, "--dynamic-batch", "1,2,4", "--workspace", "2GiB") == 0
    assert jobs[0].options.dynamic_batch == (1, 2, 4)
    assert jobs[0].options.workspace == 2 << 30
    assert jobs[0].target == "ampere+"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((*RTX, "--target", "sm_90"), 1, "tensorrt-rtx builds for sm_75"),
        ((*RTX, "--timing-cache", "file"), 1, "--timing-cache does nothing"),
        ((*RTX, "--builder-optimization-level", "3"), 1, "does nothing with tensorrt-rtx"),
        ((*RTX, "--hardware-compatibility", "same-cc"), 1, "does nothing with tensorrt-rtx"),
        ((*RTX, "--dynamic-batch", "2,4,8"), 1, "give --dynamic-batch 1,4,8"),
        ((*RTX, "--dynamic-batch", "1,8"), 2, "like 1,8,32"),
        ((*RTX, "--dynamic-batch", "1,8,4"), 2, "MIN <= OPT <= MAX"),
        ((*RTX, "--workspace", "much"), 2, "like 2GiB, 512MiB or 512"),
        ((*RTX, "--builder-optimization-level", "6"), 2, "--builder-optimization-level"),
        (("--engine", "magic"), 2, "tensorrt-rtx"),
        ((), 2, "--engine"),
        (("--engine", "tensorrt", "--target", "sm_89"), 1, "cannot be built elsewhere"),
    ],
)
def test_build_refuses(
    bundle: Path, jobs: list[Any], capsys: Capture, arguments: Any, code: int, said: str
) -> None:
    assert end("build", bundle, *arguments) == code
    assert said in capsys.readouterr().err
    assert jobs == []
    assert not (bundle / "engines").exists()


def test_build_says_why_tensorrt_cannot_build_here(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu() -> list[str]:
        raise BackendError("the NVIDIA driver reports no GPU")

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("berdiff.runtime.engines.gpu.cuda_devices", no_gpu)
    assert end("build", bundle, "--engine", "tensorrt") == 1
    said = capsys.readouterr().err
    for part in ("pip install 'berdiff[tensorrt]'", "JetPack", "the NVIDIA driver reports no GPU"):
        assert part in said


def test_build_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert end("build", tmp_path, *RTX) == 1
    assert "is not a bundle" in capsys.readouterr().err


def test_build_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    """The library refuses this target, after it has read the ONNX file and tried."""
    code = (
        "import sys\n"
        "from berdiff.cli.main import run\n"
        "try:\n    run(sys.argv[1:])\n"
        "finally:\n    print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, "build", str(bundle), *RTX, "--target", "sm_75"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "FP32 GEMM is not supported" in done.stderr
    assert done.stdout == "[]\n"


# --- export --------------------------------------------------------------------------------


@pytest.fixture
def graphs(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting the graphs again would take most of a minute."""
    source = tiny_bundle.path / "onnx"
    monkeypatch.setattr(
        write_bundle, "_write_graphs", lambda folder, *_: shutil.copytree(source, folder)
    )


@pytest.mark.usefixtures("graphs")
def test_export_also_builds(
    tiny_checkpoint: Path, tmp_path: Path, jobs: list[Any], capsys: Capture
) -> None:
    output = tmp_path / "bundle"
    options = ("--target", "sm_86", "--dynamic-batch", "1,2,4", "--workspace", "512")
    assert end("export", tiny_checkpoint, "-o", output, *RTX, *options) == 0
    (stored,) = stored_engines(Bundle.open(output))
    assert stored.sidecar.target == "sm_86"
    assert stored.sidecar.options.dynamic_batch == (1, 2, 4)
    assert stored.sidecar.options.workspace == 512 << 20
    shown = capsys.readouterr().out
    assert f"bundle: {output}\n" in shown
    assert shown.endswith(f"engine: {stored.folder}\n")


@pytest.mark.usefixtures("graphs")
def test_a_failing_engine_leaves_the_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*_: Any) -> None:
        raise BackendError("the library refuses")

    monkeypatch.setattr(build, "build_network", fail)
    output = tmp_path / "bundle"
    assert end("export", tiny_checkpoint, "-o", output, *RTX) == 1
    said = capsys.readouterr().err
    assert "error: the library refuses\n" in said
    assert f"{output} is complete and can be used; it only lacks this engine" in said
    assert stored_engines(Bundle.open(output)) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((*RTX, "--target", "sm_87"), 1, "tensorrt-rtx builds for sm_75"),
        (("--engine", "tensorrt", "--target", "sm_89"), 1, "cannot be built elsewhere"),
        (("--target", "sm_89"), 2, "--engine"),
        (("--hardware-compatibility", "ampere+"), 2, "--engine"),
        (("--builder-optimization-level", "0"), 2, "--engine"),
    ],
)
def test_export_refuses_engines_before_it_begins(
    tiny_checkpoint: Path, tmp_path: Path, capsys: Capture, arguments: Any, code: int, said: str
) -> None:
    assert end("export", tiny_checkpoint, "-o", tmp_path / "bundle", *arguments) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
