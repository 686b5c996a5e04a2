"""Which GPUs the backends take, and how they are opened; the driver is replaced."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from berdiff.runtime.backends import on_device, tensorrt, tensorrt_rtx
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cuda.device import OutOfDeviceMemory
from berdiff.runtime.errors import BackendError, MissingDependency
from berdiff.runtime.nvidia import Driver, GpuInfo

MODULES = {"tensorrt": tensorrt, "tensorrt_rtx": tensorrt_rtx}


def machine(monkeypatch: pytest.MonkeyPatch, *architectures: str) -> None:
    """A machine with both libraries and these GPUs."""
    names = [f"cuda:{index}" for index in range(len(architectures))]
    gpus = tuple(
        GpuInfo(device, f"GPU {index}", architecture, 1000, unified_memory=False)
        for index, (device, architecture) in enumerate(zip(names, architectures, strict=True))
    )
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setattr(module, "cuda_devices", lambda: names)
    monkeypatch.setattr(tensorrt_rtx, "driver", lambda: Driver("580", "13.0", gpus, None))


def test_tensorrt_takes_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "sm_90", "sm_89")
    assert tensorrt.devices() == ["cuda:0", "cuda:1"]
    assert tensorrt.obstacle() is None


def test_tensorrt_rtx_takes_those_it_has_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "sm_90", "sm_89", "sm_87", "sm_120")
    assert tensorrt_rtx.devices() == ["cuda:1", "cuda:3"]
    assert tensorrt_rtx.obstacle() is None


def test_tensorrt_rtx_says_what_it_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "sm_90")
    with pytest.raises(BackendError, match=r"no kernels for GPU 0 \(sm_90\), only for sm_75, .*"):
        tensorrt_rtx.devices()
    assert (tensorrt_rtx.obstacle() or "").endswith("use the backend 'tensorrt' on it")


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    machine(monkeypatch, "sm_89")
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}[name]
    with pytest.raises(MissingDependency, match=rf"berdiff\[{extra}\]"):
        MODULES[name].devices()  # type: ignore[attr-defined]
    assert f"berdiff[{extra}]" in MODULES[name].obstacle()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_driver_is_the_reason(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def none() -> list[str]:
        raise BackendError("the NVIDIA driver reports no GPU")

    machine(monkeypatch, "sm_89")
    monkeypatch.setattr(MODULES[name], "cuda_devices", none)
    assert MODULES[name].obstacle() == "the NVIDIA driver reports no GPU"  # type: ignore


def test_networks_that_do_not_fit_are_released(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle
) -> None:
    closed = []
    networks: Any = SimpleNamespace(
        max_batch=8,
        device_bytes=lambda batch: batch << 40,
        describe=dict,
        close=lambda: closed.append(True),
    )
    device = SimpleNamespace(
        name="cuda:2", gpu="small", compute_capability=(8, 9), memory=lambda: (1 << 30, 1 << 30)
    )
    monkeypatch.setattr(on_device, "open_device", lambda name: device)
    with pytest.raises(OutOfDeviceMemory):
        on_device.open_on_device("tensorrt", tiny_bundle, "cuda:2", lambda *_: networks)
    assert closed == [True]
