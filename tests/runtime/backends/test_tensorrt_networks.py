"""Networks on TensorRT, with the library and the GPU replaced by the host.

See `fake_tensorrt` for what stands in for the library and `host_device` for the GPU; everything
between them is the project's own.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_tensorrt as fake
import numpy as np
import pytest
from host_device import HostDevice, at
from stand_ins import VERSIONS

from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.backends.tensorrt_networks import TensorRtNetworks
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cuda.backend import DeviceBackend
from berdiff.runtime.cuda.device import OutOfDeviceMemory
from berdiff.runtime.cuda.networks import TENSORS
from berdiff.runtime.detector import Detector
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import LIBRARIES, TENSORRT_RTX, Library
from berdiff.runtime.errors import BackendError

MIB = 1 << 20
ADA = (8, 9)


@pytest.fixture(params=sorted(LIBRARIES))
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """One of the libraries, installed as a fake."""
    chosen = LIBRARIES[request.param]
    install(chosen, monkeypatch)
    return chosen


def install(library: Library, monkeypatch: pytest.MonkeyPatch, *without: type) -> ModuleType:
    classes = [*fake.CLASSES, *(fake.RTX_CLASSES if library is TENSORRT_RTX else ())]
    kept = [kind for kind in classes if kind not in without]
    module = fake.fake_module(library.module, VERSIONS[library.name], kept)
    monkeypatch.setitem(sys.modules, library.module, module)
    return module


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy to put engines into."""
    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture(scope="module")
def cpu(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle, threads=1) as backend:
        yield backend


def gpu_of(device: HostDevice) -> Gpu:
    return Gpu(device.gpu, device.compute_capability)


def opened(
    bundle: Bundle, library: Library, total: int = 1 << 32, **facts: dict[str, Any]
) -> tuple[HostDevice, TensorRtNetworks]:
    """A device and networks on it, with engines of the facts by network."""
    device = fake.device_with_stream(ADA, total)
    fake.store_engines(bundle, library, gpu_of(device), facts)
    return device, TensorRtNetworks(bundle, device, library)


def images(bundle: Bundle, count: int) -> np.ndarray:
    pre = bundle.manifest.preprocessing
    return np.random.default_rng(8).random((count, pre.channels, *pre.size), np.float32)


# --- the same bits as on the CPU ---


def test_detects_what_the_cpu_detects_bit_for_bit(
    bundle: Bundle, library: Library, cpu: Backend
) -> None:
    device, networks = opened(bundle, library)
    batch, ids = images(bundle, 5), [4, 3, 2**63, 1, 0]
    with Detector(bundle, DeviceBackend(library.name, bundle, device, networks)) as detector:
        for kind in ("squared", "change"):
            settings = detector.settings(noise_level=120, steps=7, anomaly_map=kind)  # type: ignore
            expected = Detector(bundle, cpu).detect(batch, ids, seed=9, settings=settings)
            found = detector.detect(batch, ids, seed=9, settings=settings)
            for name in ("anomaly_map", "flip_map", "reconstruction", "mask", "score"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert expected.anomaly_map.std() > 0
        # Recorded once, replayed for every step but the last of both runs.
        (graph,) = device.graphs
        assert graph.launches == 12


def test_every_network_answers_as_on_the_cpu(
    bundle: Bundle, library: Library, cpu: Backend
) -> None:
    device, networks = opened(bundle, library)
    pre, code = bundle.manifest.preprocessing, bundle.manifest.code
    random = np.random.default_rng(1)
    pictures = random.random((3, pre.channels, *pre.size), np.float32)
    codes = random.random((3, code.channels, code.height, code.width), np.float32)
    with DeviceBackend(library.name, bundle, device, networks) as backend:
        np.testing.assert_array_equal(backend.encode(pictures), cpu.encode(pictures))
        np.testing.assert_array_equal(backend.decode(codes), cpu.decode(codes))
        for t in (0, 613, 999):
            np.testing.assert_array_equal(
                backend.flip_probability(codes, t), cpu.flip_probability(codes, t)
            )


# --- memory ---


@pytest.mark.parametrize("few", [False, True], ids=["all figures", "few figures"])
def test_one_scratch_memory_of_the_largest_need(
    bundle: Bundle, library: Library, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few: no size of the weights, as in TensorRT 10.3, and only what the largest batch needs."""
    if few:
        install(library, monkeypatch, fake.EngineStat)
        name = "update_device_memory_size_for_shapes"
        monkeypatch.setattr(fake.IExecutionContext, name, lambda context: 0)
    device, networks = opened(bundle, library)
    largest = bundle.manifest.dynamic_batch[2]
    weights = 3 * 77 if few else 1000 + 1001 + 1002
    most = max(fake.SCRATCH)
    assert networks.max_batch == largest
    assert networks.device_bytes(0) == weights
    assert networks.device_bytes(1) == weights + most * (largest if few else 1)
    assert networks.device_bytes(largest) == weights + most * largest
    assert device.allocated == 0, "figures are asked for, not tried"
    for batch in (4, largest, 2):
        networks.prepare(batch)
        assert device.allocated == networks.device_bytes(batch) - weights
    networks.close()
    assert device.allocated == 0


def test_engines_without_scratch_get_some(bundle: Bundle, library: Library) -> None:
    none = {"scratch": 0}
    device, networks = opened(bundle, library, encoder=none, denoiser=none, decoder=none)
    networks.prepare(1)
    assert device.allocated == 256


def test_the_batch_is_what_fits_by_the_engines_figures(
    bundle: Bundle, library: Library, cpu: Backend
) -> None:
    batch, ids = images(bundle, 7), list(range(7))
    expected = Detector(bundle, cpu).detect(batch, ids)
    device, networks = opened(bundle, library, total=66 * MIB, denoiser={"scratch": MIB // 2})
    with Detector(bundle, DeviceBackend(library.name, bundle, device, networks)) as detector:
        largest = int(detector.backend.describe()["largest batch"])
        assert 1 < largest < 7
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing had to be halved
            found = detector.detect(batch, ids)
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)
        assert device.peak <= device.total


def test_out_of_memory_at_the_scratch_is_survived(
    bundle: Bundle, library: Library, cpu: Backend
) -> None:
    device, networks = opened(bundle, library, denoiser={"scratch": MIB})
    batch, ids = images(bundle, 8), list(range(8))
    expected = Detector(bundle, cpu).detect(batch, ids)
    with Detector(bundle, DeviceBackend(library.name, bundle, device, networks)) as detector:
        device.total = 7 * MIB  # somebody else took the rest
        with pytest.warns(RuntimeWarning, match="going on with 4"):
            found = detector.detect(batch, ids)
        np.testing.assert_array_equal(found.anomaly_map, expected.anomaly_map)


def test_asking_for_figures_leaves_the_prepared_batch_usable(
    bundle: Bundle, library: Library
) -> None:
    device, networks = opened(bundle, library)
    networks.prepare(2)
    networks.device_bytes(5)
    run(device, networks, bundle, batch=2)


# --- what does not fit is refused ---


def test_no_engine_names_the_command(bundle: Bundle, library: Library) -> None:
    device = fake.device_with_stream(ADA)
    with pytest.raises(BackendError, match=f"build one with: berdiff build .* {library.name}"):
        TensorRtNetworks(bundle, device, library)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another name": (
        {"rename": {"code": "z"}},
        r"has tensors \['flip_probability', 't', 'z'\], expected \['code', 'flip_probability', 't'",
    ),
    "another type": ({"dtype": {"code": "HALF"}}, r"'code' is DataType.HALF, expected .*FLOAT"),
    "on the host": ({"location": {"t": "HOST"}}, r"'t' is TensorLocation.HOST, expected .*DEVICE"),
    "large batches only": ({"batches": [4, 8, 32]}, "takes batches of at least 4, expected 1"),
    "no engine at all": (
        {"load_error": "Version tag does not match"},
        r"does not load .*denoiser\.engine: Version tag does not match",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_engine_that_is_not_the_bundles_is_refused(
    bundle: Bundle, library: Library, case: str
) -> None:
    facts, message = WRONG[case]
    with pytest.raises(BackendError, match=message) as raised:
        opened(bundle, library, denoiser=facts)
    assert f"berdiff build {bundle.path} --engine {library.name}" in str(raised.value)
    assert not isinstance(raised.value, OutOfDeviceMemory)


def test_engines_of_other_shapes_are_refused(bundle: Bundle, library: Library) -> None:
    """As if the decoder's engine lay where the encoder's belongs."""
    import dataclasses

    other = dataclasses.replace(bundle.manifest.code, channels=bundle.manifest.code.channels * 2)
    manifest = dataclasses.replace(bundle.manifest, code=other)
    with pytest.raises(
        BackendError, match=r"'probability' has shape .*, expected \(-1, 16, 16, 16"
    ):
        opened(dataclasses.replace(bundle, manifest=manifest), library)


def test_no_room_for_the_weights(bundle: Bundle, library: Library) -> None:
    with pytest.raises(OutOfDeviceMemory, match="OutOfMemory"):
        opened(bundle, library, decoder={"load_error": "Error Code 2: OutOfMemory (Requested 9)"})


def run(device: HostDevice, networks: TensorRtNetworks, bundle: Bundle, batch: int = 1) -> None:
    """Run the denoiser on anything."""
    code = bundle.manifest.code
    size = batch * code.channels * code.height * code.width * 4
    inputs = device.allocate(size), device.allocate(8)
    output = device.allocate(size)
    at(inputs[1].pointer, (1,), np.int64)[...] = 5
    at(inputs[0].pointer, (size // 4,), np.float32)[...] = 1
    names = TENSORS["denoiser"][:-1]
    addresses = {name: buffer.pointer for name, buffer in zip(names, inputs, strict=True)}
    networks.enqueue("denoiser", addresses, output.pointer)
    assert 0 < at(output.pointer, (size // 4,), np.float32).mean() < 1


def test_a_failed_run_says_why_and_only_why(bundle: Bundle, library: Library) -> None:
    device, networks = opened(
        bundle, library, denoiser={"fail": "Error Code 1: Cuda Runtime (700)"}
    )
    networks.prepare(1)
    networks._logger.log(fake.ILogger.Severity.ERROR, "of another engine of this process")
    for _ in range(2):  # the reasons of the first failure are not those of the second
        networks._logger.log(fake.ILogger.Severity.WARNING, "nothing to worry about")
        with pytest.raises(BackendError) as raised:
            run(device, networks, bundle)
        assert str(raised.value) == (
            f"{library.name} failed in the denoiser: Error Code 1: Cuda Runtime (700)"
        )


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"refuse_shape": ["t"]}, r"refuses shape \(1,\) for 't' of the denoiser: setInputShape"),
        ({"refuse_address": ["code"]}, "refuses the address of 'code' in the denoiser: setTensor"),
    ],
)
def test_what_the_library_refuses_is_an_error(
    bundle: Bundle, library: Library, fact: dict[str, Any], message: str
) -> None:
    device, networks = opened(bundle, library, denoiser=fact)

    def use() -> None:
        networks.prepare(1)
        run(device, networks, bundle)

    with pytest.raises(BackendError, match=message):
        use()


@pytest.mark.parametrize("batch", [0, 33])
def test_a_batch_outside_the_profile_is_refused(
    bundle: Bundle, library: Library, batch: int
) -> None:
    _, networks = opened(bundle, library)
    with pytest.raises(
        BackendError, match=rf"take batches of 1 to 32, got {batch}.*--dynamic-batch"
    ):
        networks.prepare(batch)


def test_nothing_runs_unprepared_or_closed(bundle: Bundle, library: Library) -> None:
    device, networks = opened(bundle, library)
    with pytest.raises(BackendError, match="no batch has been prepared"):
        run(device, networks, bundle)
    networks.prepare(1)
    run(device, networks, bundle)
    networks.close()
    networks.close()
    with pytest.raises(BackendError, match="closed"):
        run(device, networks, bundle)
    with pytest.raises(BackendError, match="closed"):
        networks.prepare(1)


def test_says_which_engines_run(bundle: Bundle, library: Library) -> None:
    _, networks = opened(bundle, library)
    (folder,) = (bundle.path / "engines").iterdir()
    described = networks.describe()
    assert described[library.name] == VERSIONS[library.name]
    assert described["engine"] == folder.name
    assert len(described["engine_digest"]) == 64


# --- TensorRT for RTX: compiled kernels are kept ---


def test_compiled_kernels_are_kept_beside_the_engine(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(TENSORRT_RTX, monkeypatch)
    device, networks = opened(bundle, TENSORRT_RTX)
    networks.close()
    (folder,) = (bundle.path / "engines").iterdir()
    caches = sorted(folder.glob("*.cache"))
    assert [cache.name for cache in caches] == ["decoder.cache", "denoiser.cache", "encoder.cache"]
    caches[0].write_bytes(b"from the last time")
    again = TensorRtNetworks(bundle, device, TENSORRT_RTX)
    again.close()
    assert caches[0].read_bytes() == b"from the last time"


def test_a_bundle_that_cannot_be_written_to_works_as_well(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Read-only file system", str(path))

    install(TENSORRT_RTX, monkeypatch)
    monkeypatch.setattr("berdiff.runtime.backends.tensorrt_networks.write_atomic", refuse)
    device, networks = opened(bundle, TENSORRT_RTX)
    networks.prepare(1)
    run(device, networks, bundle)
    networks.close()


# --- the stand-in ---


def test_the_fake_has_no_name_that_the_real_library_lacks() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    for kind in (*fake.CLASSES, *fake.RTX_CLASSES):
        names = [name for name in vars(kind) if not name.startswith("_")]
        lacking = [name for name in names if not hasattr(getattr(real, kind.__name__), name)]
        assert lacking == [], kind
    assert real.float32 == real.DataType.FLOAT
    assert real.int64 == real.DataType.INT64
