"""Engines are built whole and in the bundle's precision, or not at all.

TensorRT for RTX builds without a GPU, so it builds for real here. TensorRT does not; its part runs
on TensorRT for RTX too, with a GPU and an engine inspector that are made up.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines import build, library
from berdiff.runtime.engines.build import Built, build_engines, check_build
from berdiff.runtime.engines.compile import Job, build_network, configure, open_timing_cache
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import TENSORRT, TENSORRT_RTX, BuildLog, Library
from berdiff.runtime.engines.options import BuildOptions
from berdiff.runtime.engines.store import NETWORKS, NetworkEngine, find_engine
from berdiff.runtime.errors import BackendError, MissingDependency
from berdiff.runtime.files import sha256_file

trt = pytest.importorskip("tensorrt_rtx")

GPU = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
Steps = list[tuple[str, str, float]]


def copy(source: Bundle, folder: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(source.path, folder / "bundle")))


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    return copy(tiny_bundle, tmp_path)


@pytest.fixture(scope="module")
def real(
    tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, Built, Steps]:
    """A bundle with an engine built for sm_89, and the progress that was reported."""
    target = copy(tiny_bundle, tmp_path_factory.mktemp("built"))
    steps: Steps = []
    built = build_engines(
        target, TENSORRT_RTX, target="sm_89", progress=lambda *step: steps.append(step)
    )
    return target, built, steps


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Building a network takes no time and gives nothing of use; names of those built."""
    names: list[str] = []

    def fake(job: Any, network: str, folder: Path) -> NetworkEngine:
        names.append(network)
        file = folder / f"{network}.engine"
        file.write_bytes(f"{network} {len(names)}".encode())
        digest = job.bundle.manifest.files[f"onnx/{network}.onnx"].sha256
        count = {"float32": 3}
        size, sha256 = file.stat().st_size, sha256_file(file)
        return NetworkEngine(digest, sha256, size, {}, {}, count, {}, 1, 2, 3, (), 4.0)

    monkeypatch.setattr(build, "build_network", fake)
    return names


def job(
    bundle: Bundle,
    library: Library,
    module: ModuleType,
    gpu: Gpu | None = None,
    options: BuildOptions | None = None,
) -> Job:
    """What is common to the networks of a build."""
    options = options or BuildOptions(bundle.manifest.dynamic_batch)
    target = gpu.architecture if gpu else "ampere+"
    return Job(library, module, bundle, target, gpu, options, None, None)


def assert_nothing_written(bundle: Bundle) -> None:
    assert sorted(p.name for p in bundle.path.iterdir()) == ["bundle.json", "golden", "onnx"]


# --- a real build --------------------------------------------------------------------------


def test_the_sidecar_tells_what_was_built(real: tuple[Bundle, Built, Steps]) -> None:
    bundle, built, _ = real
    sidecar = built.engine.sidecar
    assert built.new
    assert sidecar.key == built.engine.folder.name
    assert (sidecar.library, sidecar.library_version) == ("tensorrt-rtx", trt.__version__)
    assert (sidecar.precision, sidecar.target, sidecar.gpu) == ("fp32", "sm_89", None)
    assert sidecar.options == BuildOptions(bundle.manifest.dynamic_batch)
    assert sidecar.software["tensorrt-rtx"] == trt.__version__
    for name, network in sidecar.networks.items():
        file = built.engine.folder / f"{name}.engine"
        assert network.size == file.stat().st_size
        assert network.sha256 == sha256_file(file)
        assert network.onnx_sha256 == sha256_file(bundle.file(f"onnx/{name}.onnx"))
        graph = onnx.load(bundle.file(f"onnx/{name}.onnx")).graph
        operators = [node.op_type for node in graph.node]
        count = operators.count("Conv") + operators.count("MatMul")
        assert network.compute == {"float32": count}
        initial = sum(4 * prod(t.dims) for t in graph.initializer if t.data_type == 1)
        assert initial * 0.9 < network.weights["float32"] < initial * 1.1
        assert initial * 0.9 < network.weight_bytes < initial * 1.1
        assert network.scratch_bytes > 0
        assert network.layers > count
        assert network.warnings == ()
    assert sidecar.networks["denoiser"].inputs == {"code": "float32", "t": "int64"}
    assert sidecar.networks["encoder"].outputs == {"probability": "float32"}


def test_the_bundle_is_the_same_with_engines(
    real: tuple[Bundle, Built, Steps], tiny_bundle: Bundle
) -> None:
    bundle, built, _ = real
    assert Bundle.open(bundle.path).digest == tiny_bundle.digest
    ada = Gpu("NVIDIA L4", (8, 9))
    assert find_engine(bundle, TENSORRT_RTX, ada).digest == built.engine.digest


def test_progress_is_reported(real: tuple[Bundle, Built, Steps]) -> None:
    _, _, steps = real
    assert list(dict.fromkeys(network for network, _, _ in steps)) == list(NETWORKS)
    assert len({phase for _, phase, _ in steps}) > 3
    assert all(0 <= share <= 1 for _, _, share in steps)
    assert any(0 < share < 1 for _, _, share in steps)


def test_a_second_build_finds_the_first(real: tuple[Bundle, Built, Steps]) -> None:
    bundle, built, _ = real
    again = build_engines(bundle, TENSORRT_RTX, target="sm_89", progress=pytest.fail)
    assert not again.new
    assert again.engine == built.engine


# --- what is written, and what is not ------------------------------------------------------


def test_other_options_are_another_engine(bundle: Bundle, quick: list[str]) -> None:
    first = build_engines(bundle, TENSORRT_RTX)
    assert first.engine.sidecar.target == "ampere+"
    smaller = BuildOptions((1, 2, 2))
    for options, target in ((smaller, None), (None, "sm_86"), (smaller, "sm_86")):
        assert build_engines(bundle, TENSORRT_RTX, options=options, target=target).new
    assert len(list((bundle.path / "engines").iterdir())) == 4
    assert not build_engines(bundle, TENSORRT_RTX).new
    assert len(quick) == 4 * len(NETWORKS)


@pytest.mark.parametrize("name", ["decoder.engine", "engine.json"])
def test_a_damaged_engine_is_built_again(bundle: Bundle, quick: list[str], name: str) -> None:
    folder = build_engines(bundle, TENSORRT_RTX).engine.folder
    (folder / name).write_bytes(b"damaged")
    again = build_engines(bundle, TENSORRT_RTX)
    assert again.new
    assert again.engine.folder == folder
    assert again.engine.files
    assert len(quick) == 2 * len(NETWORKS)


def test_a_failure_leaves_other_engines_alone(
    bundle: Bundle, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = build_engines(bundle, TENSORRT_RTX).engine
    monkeypatch.setattr(build, "build_network", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_engines(bundle, TENSORRT_RTX, target="sm_89")
    assert list((bundle.path / "engines").iterdir()) == [kept.folder]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_build_leaves_nothing(bundle: Bundle, error: type[BaseException]) -> None:
    def interrupt(*step: Any) -> None:
        raise error

    with pytest.raises(error):
        build_engines(bundle, TENSORRT_RTX, progress=interrupt)
    assert_nothing_written(bundle)


def test_ctrl_c_stops_a_build_and_leaves_nothing(bundle: Bundle) -> None:
    def press(*step: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engines(bundle, TENSORRT_RTX, progress=press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert_nothing_written(bundle)


def test_what_the_library_cannot_build(bundle: Bundle) -> None:
    with pytest.raises(BackendError) as caught:
        build_engines(bundle, TENSORRT_RTX, target="sm_75")
    said = str(caught.value)
    assert said.startswith(f"tensorrt-rtx {trt.__version__} cannot build the encoder for sm_75")
    assert "FP32 GEMM is not supported" in said
    assert_nothing_written(bundle)


def test_a_workspace_that_is_too_small(bundle: Bundle) -> None:
    options = BuildOptions(bundle.manifest.dynamic_batch, workspace=1 << 10)
    with pytest.raises(BackendError, match=r"cannot build the encoder .*workspace"):
        build_engines(bundle, TENSORRT_RTX, options=options)
    assert_nothing_written(bundle)


def test_a_file_that_is_no_onnx(bundle: Bundle) -> None:
    (bundle.path / "onnx" / "encoder.onnx").write_bytes(b"something else")
    with pytest.raises(BackendError, match=r"cannot read .*encoder\.onnx: "):
        build_engines(bundle, TENSORRT_RTX)
    assert_nothing_written(bundle)


def test_a_bundle_that_is_not_in_its_precision(bundle: Bundle, quick: list[str]) -> None:
    manifest = dataclasses.replace(bundle.manifest, precision="fp16")
    with pytest.raises(BackendError, match=r"says it is in fp16, but of the 3 .* 0 in float16"):
        build_engines(dataclasses.replace(bundle, manifest=manifest), TENSORRT_RTX)
    assert_nothing_written(bundle)


def test_an_engine_whose_layers_are_not_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BuildLog, "_FACTS", ("Total Activation Memory: ",))
    with pytest.raises(BackendError, match="tells nothing about the layers of the encoder"):
        build_engines(bundle, TENSORRT_RTX)
    assert_nothing_written(bundle)


@pytest.mark.parametrize(
    ("warning", "refused"),
    [
        ("Layer 3 is unsupported, falling back to FP32", True),
        ("This operator is not supported in Half", True),
        ("The builder took its time", False),
        ("ModelImporter.cpp:1071: Make sure input t has Int64 binding.", False),
    ],
)
def test_warnings_of_the_library(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, warning: str, refused: bool
) -> None:
    usual = BuildLog.__init__

    def warned(self: BuildLog) -> None:
        usual(self)
        self.warnings.append(warning)

    monkeypatch.setattr(BuildLog, "__init__", warned)
    if refused:
        with pytest.raises(BackendError, match=f"the library warns: {warning}"):
            build_network(job(bundle, TENSORRT_RTX, trt), "encoder", bundle.path)
    else:
        built = build_network(job(bundle, TENSORRT_RTX, trt), "encoder", bundle.path)
        assert built.warnings == (() if "Int64" in warning else (warning,))


# --- refused before anything is built ------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "cache", "said"),
    [
        ({}, Path("cache"), "--timing-cache does nothing with tensorrt-rtx"),
        ({"builder_optimization_level": 3}, None, "--builder-optimization-level does nothing"),
        ({"hardware_compatibility": "ampere+"}, None, "--hardware-compatibility does nothing"),
        ({"dynamic_batch": (2, 4, 8)}, None, "give --dynamic-batch 1,4,8"),
    ],
)
def test_options_that_would_do_nothing_or_harm(
    options: dict[str, Any], cache: Path | None, said: str
) -> None:
    chosen = BuildOptions(**({"dynamic_batch": (1, 1, 1)} | options))
    with pytest.raises(BackendError, match=said):
        check_build(TENSORRT_RTX, target=None, options=chosen, timing_cache=cache)


def no_gpu(*_: Any) -> list[str]:
    raise BackendError("the NVIDIA driver reports no GPU")


def test_without_library_and_gpu_both_are_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("berdiff.runtime.engines.gpu.cuda_devices", no_gpu)
    with pytest.raises(BackendError) as caught:
        build_engines(bundle, TENSORRT)
    for part in ("'tensorrt'", "berdiff[tensorrt]", "JetPack", "on the GPU", "reports no GPU"):
        assert part in str(caught.value)
    monkeypatch.setattr(build, "gpu_here", lambda device: GPU)
    with pytest.raises(MissingDependency, match="JetPack"):
        build_engines(bundle, TENSORRT)


def test_a_library_that_does_not_load(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> ModuleType:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(library, "optional", broken)
    with pytest.raises(BackendError, match=r"installed and cannot be loaded: libnvinfer\.so\.10"):
        build_engines(bundle, TENSORRT_RTX)


# --- TensorRT ------------------------------------------------------------------------------


class Engine:
    """An encoder's engine opened on a GPU; its layers compute in the type that is chosen."""

    num_io_tensors = 2
    device_memory_size_v2 = 4321

    def __init__(self, names: list[str], kind: str) -> None:
        self._names, self._kind = names, kind

    def get_tensor_name(self, index: int) -> str:
        return ("image", "probability")[index]

    def get_tensor_mode(self, name: str) -> Any:
        return trt.TensorIOMode.INPUT if name == "image" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return trt.DataType.FLOAT

    def create_engine_inspector(self) -> Engine:
        return self

    def get_engine_information(self, form: Any) -> str:
        assert form == trt.LayerInformationFormat.JSON
        words = f"Row major linear {self._kind}"
        operand = {"Name": "x", "Dimensions": [1, 8, 4, 4], "Format/Datatype": words}
        layers = [
            {
                "Name": name,
                "LayerType": "CaskConvolution",
                "Inputs": [operand],
                "Weights": {"Type": self._kind, "Count": 576},
                "Metadata": f"[ONNX Layer: {name}]",
            }
            for name in self._names
        ]
        return json.dumps({"Layers": layers})


def tensorrt(bundle: Bundle, kind: str = "FP32", opens: bool = True) -> ModuleType:
    """TensorRT for RTX that says it is TensorRT and opens engines, of layers of this type."""
    graph = onnx.load(bundle.file("onnx/encoder.onnx")).graph
    names = [node.name for node in graph.node if node.op_type in ("Conv", "MatMul")]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, data: Any) -> Any:
            assert len(bytes(data)) > 1000
            if not opens:
                self._logger.log(trt.ILogger.Severity.ERROR, "made for another GPU")
            return Engine(names, kind) if opens else None

    module = ModuleType("tensorrt")
    vars(module).update(vars(trt) | {"Runtime": Runtime, "__version__": "10.16.1"})
    return module


def test_tensorrt_inspects_the_opened_engine(bundle: Bundle, tmp_path: Path) -> None:
    options = BuildOptions((1, 2, 4), workspace=1 << 30, builder_optimization_level=2)
    chosen = job(bundle, TENSORRT, tensorrt(bundle), GPU, options)
    built = build_network(chosen, "encoder", tmp_path)
    assert built.scratch_bytes == 4321
    assert built.inputs == {"image": "float32"}
    assert built.outputs == {"probability": "float32"}
    assert built.compute == {"float32": built.layers}
    assert built.weights == {"float32": 4 * 576 * built.layers}


def test_an_engine_of_tensorrt_in_another_type_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"the encoder engine .* in float16 instead of float32"):
        build_network(job(bundle, TENSORRT, tensorrt(bundle, "Half"), GPU), "encoder", tmp_path)


def test_an_engine_that_tensorrt_cannot_open(bundle: Bundle, tmp_path: Path) -> None:
    module = tensorrt(bundle, opens=False)
    with pytest.raises(BackendError, match=r"encoder engine cannot be opened .* another GPU"):
        build_network(job(bundle, TENSORRT, module, GPU), "encoder", tmp_path)


def test_an_engine_of_tensorrt_is_for_the_gpu_of_this_machine(
    bundle: Bundle, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(bundle))
    monkeypatch.setattr(build, "gpu_here", lambda device: GPU)
    sidecar = build_engines(bundle, TENSORRT).engine.sidecar
    assert (sidecar.target, sidecar.gpu, sidecar.library_version) == ("sm_90", GPU, "10.16.1")
    assert find_engine(bundle, TENSORRT, GPU).sidecar == sidecar
    with pytest.raises(BackendError, match="holds no tensorrt engine"):
        find_engine(bundle, TENSORRT, Gpu("NVIDIA H200", (9, 0)))


def test_an_old_tensorrt_knows_fewer_levels(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tensorrt(bundle)
    vars(module)["HardwareCompatibilityLevel"] = SimpleNamespace(NONE=0, AMPERE_PLUS=1)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(build, "gpu_here", lambda device: GPU)
    options = BuildOptions((1, 1, 1), hardware_compatibility="same-cc")
    with pytest.raises(BackendError, match=r"TensorRT 10\.16\.1 knows no hardware compatibility"):
        check_build(TENSORRT, target=None, options=options)


@pytest.mark.parametrize(
    ("level", "name"), [("ampere+", "AMPERE_PLUS"), ("same-cc", "SAME_COMPUTE_CAPABILITY")]
)
def test_options_reach_the_builder(bundle: Bundle, level: Any, name: str) -> None:
    options = BuildOptions(
        (1, 2, 4), workspace=1 << 30, builder_optimization_level=5, hardware_compatibility=level
    )
    builder = trt.Builder(library.make_logger(trt, BuildLog()))
    network = builder.create_network(0)
    network.add_input("image", trt.float32, (-1, 1, 32, 32))
    network.add_input("t", trt.int64, (1,))
    called: dict[str, Any] = {}
    config = SimpleNamespace(
        clear_flag=lambda flag: called.update(cleared=flag),
        set_memory_pool_limit=lambda pool, size: called.update({str(pool): size}),
        add_optimization_profile=lambda profile: called.update(profile=profile),
    )
    maker = SimpleNamespace(
        create_builder_config=lambda: config,
        create_optimization_profile=builder.create_optimization_profile,
    )
    assert configure(job(bundle, TENSORRT, trt, GPU, options), maker, network) is config
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == getattr(trt.HardwareCompatibilityLevel, name)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert called["cleared"] == trt.BuilderFlag.TF32
    assert called["MemoryPoolType.WORKSPACE"] == 1 << 30
    shapes = [tuple(shape) for shape in called["profile"].get_shape("image")]
    assert shapes == [(1, 1, 32, 32), (2, 1, 32, 32), (4, 1, 32, 32)]


class Cache:
    """A timing cache: bytes that grow with every build."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data + b"timed "


class Config:
    """The part of a builder's configuration that knows timing caches."""

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return not cache.serialize().startswith(b"foreign")


def test_a_timing_cache_is_read_where_there_is_one(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    common = dataclasses.replace(job(bundle, TENSORRT, tensorrt(bundle), GPU), timing_cache=file)
    assert open_timing_cache(common, Config()).serialize() == b"timed "
    file.write_bytes(b"timed ")
    assert open_timing_cache(common, Config()).serialize() == b"timed timed "
    file.write_bytes(b"foreign ")
    with pytest.raises(BackendError, match=r"timing\.cache is no timing cache of TensorRT 10\.16"):
        open_timing_cache(common, Config())
    assert open_timing_cache(job(bundle, TENSORRT, trt, GPU), None) is None
