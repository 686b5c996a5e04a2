"""TensorRT, on the GPU its engines were built on."""

from __future__ import annotations

from ..bundle import Bundle
from ..cuda.backend import DeviceBackend
from ..cuda.device import Device, cuda_devices
from ..engines.library import TENSORRT
from .on_device import open_on_device, why_not
from .tensorrt_networks import TensorRtNetworks


def devices() -> list[str]:
    """GPUs here; raises where TensorRT or they are missing."""
    TENSORRT.load()
    return cuda_devices()


def obstacle() -> str | None:
    """Say why it can use no GPU here, if so."""
    return why_not(devices)


def open(bundle: Bundle, device: str, threads: int | None) -> DeviceBackend:  # noqa: A001
    """Open a bundle; see `berdiff.runtime.backends.open_backend`."""
    return open_on_device(TENSORRT.name, bundle, device, open_networks)


def open_networks(bundle: Bundle, device: Device) -> TensorRtNetworks:
    """Open a bundle's networks for the loop on a GPU."""
    return TensorRtNetworks(bundle, device, TENSORRT)
