"""What only a GPU can show: that TensorRT builds engines, and that engines and logs agree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines import inspection
from berdiff.runtime.engines.build import build_engines
from berdiff.runtime.engines.gpu import Gpu, gpu_here
from berdiff.runtime.engines.library import TENSORRT, TENSORRT_RTX, BuildLog, Library, make_logger
from berdiff.runtime.engines.options import RTX_TARGETS, BuildOptions
from berdiff.runtime.engines.store import find_engine
from berdiff.runtime.errors import BackendError, BerdiffError
from berdiff.runtime.precision import Precision

pytestmark = pytest.mark.gpu

SIZES = (1, 2, 4)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    try:
        return gpu_here()
    except BerdiffError as error:
        pytest.skip(str(error))


def installed(library: Library, gpu: Gpu) -> Library:
    try:
        library.load()
    except BerdiffError as error:
        pytest.skip(str(error))
    if library is TENSORRT_RTX and gpu.architecture not in RTX_TARGETS:
        pytest.skip(f"{library.name} has no kernels for {gpu.architecture}")
    return library


def copy(bundle: Bundle, folder: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(bundle.path, folder / "bundle")))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_in_every_precision(
    gpu: Gpu, tiny_bundle_at: Callable[[Precision], Bundle], tmp_path: Path, precision: Precision
) -> None:
    library = installed(TENSORRT, gpu)
    bundle = copy(tiny_bundle_at(precision), tmp_path)
    built = build_engines(bundle, library, options=BuildOptions(SIZES))
    sidecar = built.engine.sidecar
    assert sidecar.gpu == gpu
    wanted = inspection.TYPE_OF[precision]
    assert all(network.compute.get("unknown", 0) == 0 for network in sidecar.networks.values())
    assert sidecar.networks["denoiser"].compute[wanted] > 0
    assert find_engine(bundle, library, gpu) == built.engine
    assert not build_engines(bundle, library, options=BuildOptions(SIZES)).new
    with pytest.raises(BackendError, match="built on"):
        find_engine(bundle, library, Gpu("another", gpu.compute_capability))


def test_a_timing_cache_serves_the_next_build(
    gpu: Gpu, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    library = installed(TENSORRT, gpu)
    bundle, cache = copy(tiny_bundle, tmp_path), tmp_path / "timing.cache"
    build_engines(bundle, library, options=BuildOptions(SIZES), timing_cache=cache)
    first = cache.read_bytes()
    assert first
    larger = BuildOptions(SIZES, workspace=1 << 30)
    assert build_engines(bundle, library, options=larger, timing_cache=cache).new
    assert len(cache.read_bytes()) >= len(first)
    cache.write_bytes(b"no timing cache")
    other = BuildOptions(SIZES, workspace=1 << 31)
    with pytest.raises(BackendError, match="is no timing cache"):
        build_engines(bundle, library, options=other, timing_cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_opened_rtx_engine_says_what_its_build_log_said(
    gpu: Gpu, tiny_bundle_at: Callable[[Precision], Bundle], tmp_path: Path, precision: Precision
) -> None:
    """The list that the build judges by is the inspector's own."""
    library = installed(TENSORRT_RTX, gpu)
    trt, bundle = library.load(), copy(tiny_bundle_at(precision), tmp_path)
    log = BuildLog()
    runtime = trt.Runtime(make_logger(trt, log))
    engine = build_engines(bundle, library, target=gpu.architecture).engine
    for name, file in engine.files.items():
        opened = runtime.deserialize_cuda_engine(file.read_bytes())
        assert opened is not None, log.reasons()
        inspector = opened.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        layers = inspection.layers_from_json(text)
        record = engine.sidecar.networks[name]
        assert len(layers) == record.layers
        assert inspection.weight_bytes_by_type(layers) == record.weights
