"""TensorRT for RTX, on the GPUs it has kernels for."""

from __future__ import annotations

from ..bundle import Bundle
from ..cuda.backend import DeviceBackend
from ..cuda.device import Device, cuda_devices
from ..engines.library import TENSORRT, TENSORRT_RTX
from ..engines.options import RTX_TARGETS
from ..errors import BackendError
from ..nvidia import driver
from .on_device import open_on_device, why_not
from .tensorrt_networks import TensorRtNetworks


def devices() -> list[str]:
    """GPUs here that TensorRT for RTX supports; raises where it or they are missing."""
    TENSORRT_RTX.load()
    present = cuda_devices()
    gpus = {gpu.device: gpu for gpu in driver().gpus}  # asked without making a context on each
    usable = [name for name in present if gpus[name].architecture in RTX_TARGETS]
    if not usable:
        found = ", ".join(f"{gpus[name].name} ({gpus[name].architecture})" for name in present)
        raise BackendError(
            f"{TENSORRT_RTX.name} has no kernels for {found}, only for {', '.join(RTX_TARGETS)}; "
            f"use the backend '{TENSORRT.name}' on it"
        )
    return usable


def obstacle() -> str | None:
    """Say why it can use no GPU here, if so."""
    return why_not(devices)


def open(bundle: Bundle, device: str, threads: int | None) -> DeviceBackend:  # noqa: A001
    """Open a bundle; see `berdiff.runtime.backends.open_backend`."""
    return open_on_device(TENSORRT_RTX.name, bundle, device, open_networks)


def open_networks(bundle: Bundle, device: Device) -> TensorRtNetworks:
    """Open a bundle's networks for the loop on a GPU."""
    return TensorRtNetworks(bundle, device, TENSORRT_RTX)
