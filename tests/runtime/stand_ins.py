"""A machine with one GPU that is the host: every backend opens there as on a real one."""

from __future__ import annotations

import sys

import fake_tensorrt as fake
import pytest

from berdiff.runtime.backends import on_device, onnxruntime, tensorrt, tensorrt_rtx
from berdiff.runtime.backends.onnxruntime_networks import OnnxRuntimeNetworks
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import LIBRARIES
from berdiff.runtime.nvidia import Driver, GpuInfo

GPU = Gpu("host", (8, 9))
VERSIONS = {"tensorrt": "10.16.0", "tensorrt-rtx": "1.7.1"}


def install(patch: pytest.MonkeyPatch) -> None:
    """Make this such a machine."""
    info = GpuInfo("cuda:0", GPU.name, GPU.architecture, 4096, unified_memory=True)
    driver = Driver("580.65.06", "13.0", (info,), None)
    for module in (onnxruntime, tensorrt, tensorrt_rtx):
        patch.setattr(module, "cuda_devices", lambda: ["cuda:0"])
    patch.setattr(tensorrt_rtx, "driver", lambda: driver)
    patch.setattr(
        on_device, "open_device", lambda name: fake.device_with_stream(GPU.compute_capability)
    )
    patch.setattr(onnxruntime, "provider_obstacle", lambda library: None)
    patch.setattr(onnxruntime, "library_obstacle", lambda library: None)
    # What differs from a GPU: the provider, and what the addresses are addresses of.
    patch.setattr(
        onnxruntime,
        "open_networks",
        lambda bundle, device: OnnxRuntimeNetworks(bundle, device, memory="cpu"),
    )
    for name, library in LIBRARIES.items():
        classes = (*fake.CLASSES, *(fake.RTX_CLASSES if name == "tensorrt-rtx" else ()))
        patch.setitem(
            sys.modules, library.module, fake.fake_module(library.module, VERSIONS[name], classes)
        )


def build(bundle: Bundle, backend: str) -> None:
    """Put the engines into a bundle that a backend needs on this machine."""
    fake.store_engines(bundle, LIBRARIES[backend], GPU)
