"""ONNX Runtime bound to addresses: on the host through the same code as on a GPU.

And what is asked of its CUDA provider, checked against a stand-in that notes it down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_device import HostDevice

from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.backends import onnxruntime as module
from berdiff.runtime.backends import onnxruntime_networks as networks_module
from berdiff.runtime.backends import onnxruntime_session as session_module
from berdiff.runtime.backends.onnxruntime_networks import OnnxRuntimeNetworks
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cuda.backend import DeviceBackend
from berdiff.runtime.cuda.device import OutOfDeviceMemory
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BackendError


@pytest.fixture(scope="module")
def cpu(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle) as backend:
        yield backend


def on_host(bundle: Bundle) -> DeviceBackend:
    device = HostDevice()
    networks = OnnxRuntimeNetworks(bundle, device, memory="cpu")
    return DeviceBackend("onnxruntime", bundle, device, networks)


def images(bundle: Bundle, count: int) -> np.ndarray:
    pre = bundle.manifest.preprocessing
    return np.random.default_rng(8).random((count, pre.channels, *pre.size), np.float32)


def test_detects_what_the_cpu_detects_bit_for_bit(tiny_bundle: Bundle, cpu: Backend) -> None:
    with Detector(tiny_bundle, on_host(tiny_bundle)) as detector:
        for count, kind in ((5, "squared"), (2, "change"), (5, "signed")):
            batch, ids = images(tiny_bundle, count), range(count)
            settings = detector.settings(noise_level=90, steps=4, anomaly_map=kind)  # type: ignore
            expected = Detector(tiny_bundle, cpu).detect(batch, ids, seed=3, settings=settings)
            found = detector.detect(batch, ids, seed=3, settings=settings)
            for name in ("anomaly_map", "flip_map", "reconstruction", "mask", "score"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_every_network_answers_as_on_the_cpu(tiny_bundle: Bundle, cpu: Backend) -> None:
    code = tiny_bundle.manifest.code
    codes = np.random.default_rng(1).random((3, code.channels, code.height, code.width), np.float32)
    pictures = images(tiny_bundle, 3)
    with on_host(tiny_bundle) as backend:
        np.testing.assert_array_equal(backend.encode(pictures), cpu.encode(pictures))
        np.testing.assert_array_equal(backend.decode(codes), cpu.decode(codes))
        for t in (0, 613, 999):
            np.testing.assert_array_equal(
                backend.flip_probability(codes, t), cpu.flip_probability(codes, t)
            )


def test_errors_of_the_library_are_errors_of_the_backend(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(binding: object, options: object) -> None:
        raise RuntimeError("BFCArena: Available memory of 5 is smaller than requested bytes of 9")

    networks = OnnxRuntimeNetworks(tiny_bundle, HostDevice(), memory="cpu")
    with pytest.raises(BackendError, match="no batch has been prepared"):
        networks.enqueue("decoder", {"code": 0}, 0)
    networks.prepare(1)
    # Nothing lies at address 0, and ONNX Runtime sees that.
    with pytest.raises(BackendError, match="ONNX Runtime failed in the decoder"):
        networks.enqueue("decoder", {"code": 0}, 0)
    buffer = HostDevice().allocate(1 << 20)
    monkeypatch.setitem(networks._sessions, "decoder", _with(networks._sessions["decoder"], fail))
    with pytest.raises(OutOfDeviceMemory, match="failed in the decoder: BFCArena"):
        networks.enqueue("decoder", {"code": buffer.pointer}, buffer.pointer)
    networks.close()
    with pytest.raises(BackendError, match="closed"):
        networks.prepare(1)


def _with(session: Any, run: Any) -> SimpleNamespace:
    return SimpleNamespace(io_binding=session.io_binding, run_with_iobinding=run)


def test_the_weights_are_what_it_says_to_hold(tiny_bundle: Bundle) -> None:
    networks = OnnxRuntimeNetworks(tiny_bundle, HostDevice(), memory="cpu")
    files = (tiny_bundle.path / "onnx").iterdir()
    assert networks.device_bytes(0) == sum(file.stat().st_size for file in files)
    assert networks.max_batch == tiny_bundle.manifest.dynamic_batch[2]


# --- what the CUDA provider is asked for ---


class Noted:
    """A library that notes how it was used, and otherwise is the real one."""

    def __init__(self, available: tuple[str, ...], answers: str | None = None) -> None:
        import onnxruntime

        self._real, self._available = onnxruntime, list(available)
        self.answers = answers or available[0]
        self.opened: list[tuple[str, dict[str, str], Any, dict[str, Any]]] = []
        self.config: list[dict[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get_available_providers(self) -> list[str]:
        return self._available

    def SessionOptions(self) -> Any:  # noqa: N802
        entries: dict[str, str] = {}
        self.config.append(entries)
        return SimpleNamespace(add_session_config_entry=entries.__setitem__)

    def InferenceSession(self, path: str, options: Any, providers: Any, **rest: Any) -> Any:  # noqa: N802
        (name, chosen), *others = providers
        assert not others
        self.opened.append((name, chosen, options, rest))
        return SimpleNamespace(get_providers=lambda: [self.answers, "CPUExecutionProvider"])


def test_the_cuda_provider_gets_stream_device_and_limits(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Noted(("CUDAExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(networks_module, "load", lambda: library)
    device = HostDevice(total=12345)
    device.name, device.stream = "cuda:3", 99
    OnnxRuntimeNetworks(tiny_bundle, device)
    assert len(library.opened) == 3
    for (name, chosen, options, rest), entries in zip(library.opened, library.config, strict=True):
        assert name == "CUDAExecutionProvider"
        assert chosen == {
            "device_id": "3",
            "user_compute_stream": "99",
            "gpu_mem_limit": "12345",
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
        }
        assert entries == {
            "session.disable_cpu_ep_fallback": "1",
            "session.use_device_allocator_for_initializers": "1",
        }
        assert options.use_deterministic_compute
        assert rest == {"enable_fallback": 0}


def test_a_silent_fallback_is_an_error(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = ("CUDAExecutionProvider", "CPUExecutionProvider")
    library = Noted(available, answers="CPUExecutionProvider")
    monkeypatch.setattr(networks_module, "load", lambda: library)
    with pytest.raises(BackendError, match="on CPUExecutionProvider instead of CUDAExecution"):
        OnnxRuntimeNetworks(tiny_bundle, HostDevice())


def test_the_installed_library_takes_no_graph_for_a_gpu(tiny_bundle: Bundle) -> None:
    """The real one, without a CUDA provider: it would compute on the CPU if it were let."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")
    with pytest.warns(UserWarning, match="not in available provider"), pytest.raises(BackendError):
        OnnxRuntimeNetworks(tiny_bundle, HostDevice())


# --- where there is no GPU, it says why ---


def use(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load", lambda: library)


def test_no_provider_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Noted(("CPUExecutionProvider",)), monkeypatch)
    assert module.devices() == ["cpu"]
    assert "has no CUDA provider" in (module.obstacle() or "")
    assert "pip install 'berdiff[gpu]'" in (module.obstacle() or "")


def test_missing_libraries_are_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = Noted(("CUDAExecutionProvider", "CPUExecutionProvider"))
    library.__file__ = str(tmp_path / "__init__.py")
    library.__version__, library.cuda_version = "1.31.1", "13.0"
    library.preload_dlls = lambda: print("Failed to load libcublas.so.13")  # noqa: T201
    (tmp_path / "capi").mkdir()
    provider = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    provider.write_bytes(b"")
    asked: list[Path] = []

    def missing(file: Path) -> list[str]:
        asked.append(file)
        return ["libcublasLt.so.13", "libcurand.so.10"]

    monkeypatch.setattr(session_module, "missing_libraries", missing)
    monkeypatch.setattr(module, "cuda_devices", lambda: ["cuda:0"])
    use(library, monkeypatch)
    assert module.devices() == ["cpu"]
    assert asked == [provider]
    reason = module.obstacle() or ""
    assert "1.31.1 needs libraries that are not found: libcublasLt.so.13, libcurand.so.10" in reason
    assert "install CUDA 13.0 and cuDNN" in reason
    assert capsys.readouterr().out == ""


def test_with_provider_libraries_and_driver_there_are_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = Noted(("CUDAExecutionProvider", "CPUExecutionProvider"))
    library.__file__ = str(tmp_path / "__init__.py")
    library.preload_dlls = lambda: None
    use(library, monkeypatch)
    monkeypatch.setattr(module, "cuda_devices", lambda: ["cuda:0", "cuda:1"])
    assert module.devices() == ["cpu", "cuda:0", "cuda:1"]
    assert module.obstacle() is None

    def none() -> list[str]:
        raise BackendError("the NVIDIA driver reports no GPU")

    monkeypatch.setattr(module, "cuda_devices", none)
    assert module.devices() == ["cpu"]
    assert module.obstacle() == "the NVIDIA driver reports no GPU"


def test_bf16_is_refused_on_the_cpu(tiny_bundle: Bundle) -> None:
    manifest = dataclasses.replace(tiny_bundle.manifest, precision="bf16")
    with pytest.raises(BackendError, match=r"is in bf16.*--precision fp32, fp16 or int8.*on a GPU"):
        open_backend(dataclasses.replace(tiny_bundle, manifest=manifest))
