"""ONNX Runtime, on the CPU and on NVIDIA GPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..closing import Closing
from ..cuda.device import Device, cuda_devices
from ..errors import BackendError, BerdiffError
from . import Backend
from .on_device import open_on_device
from .onnxruntime_networks import OnnxRuntimeNetworks
from .onnxruntime_session import (
    PROVIDERS,
    library_obstacle,
    load,
    open_session,
    provider_obstacle,
)

FloatArray = NDArray[np.float32]


def devices() -> list[str]:
    """Devices the installed ONNX Runtime can use here."""
    cpu = ["cpu"] if PROVIDERS["cpu"] in load().get_available_providers() else []
    return cpu if obstacle() else cpu + cuda_devices()


def obstacle() -> str | None:
    """Say why there is no GPU among `devices`, if so."""
    try:
        library = load()
        problem = provider_obstacle(library)
        if problem is None:
            cuda_devices()
            problem = library_obstacle(library)
    except BerdiffError as error:
        problem = str(error)
    return problem


def open(bundle: Bundle, device: str, threads: int | None) -> Backend:  # noqa: A001
    """Open a bundle; see `berdiff.runtime.backends.open_backend`."""
    if device == "cpu":
        return OnnxRuntimeBackend(bundle, threads)
    return open_on_device("onnxruntime", bundle, device, open_networks)


def open_networks(bundle: Bundle, device: Device) -> OnnxRuntimeNetworks:
    """Open a bundle's networks for the loop on a GPU."""
    return OnnxRuntimeNetworks(bundle, device)


class OnnxRuntimeBackend(Closing):
    """The networks on the CPU, one session each.

    Parameters
    ----------
    bundle : Bundle
        Opened bundle.
    threads : int or None
        Threads per operator; None takes one per physical core.

    Raises
    ------
    BackendError
        If a graph cannot be loaded, or the bundle's precision is one that ONNX Runtime has no
        convolutions for on a CPU.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._library = load()
        self._threads = threads
        self._num_timesteps = bundle.manifest.schedule.num_timesteps
        if bundle.manifest.precision == "bf16":
            raise BackendError(
                f"{bundle.path} is in bf16, for which ONNX Runtime has no convolutions on the "
                "CPU; export the checkpoint with --precision fp32, fp16 or int8, or run this "
                "bundle on a GPU"
            )
        self._sessions = {
            network: open_session(
                self._library, bundle.file(f"onnx/{network}.onnx"), PROVIDERS["cpu"], {}, threads
            )
            for network in ("encoder", "denoiser", "decoder")
        }

    def _run(self, network: str, feeds: dict[str, NDArray[Any]]) -> FloatArray:
        if network not in self._sessions:
            raise BackendError("the backend is closed")
        try:
            (output,) = self._sessions[network].run(None, feeds)
        except Exception as error:  # the library's own exceptions share no public base
            raise BackendError(f"ONNX Runtime failed in the {network}: {error}") from error
        return output

    def encode(self, images: FloatArray) -> FloatArray:
        """Bit probabilities; see `Backend.encode`."""
        return self._run("encoder", {"image": images})

    def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
        """Flip probabilities; see `Backend.flip_probability`."""
        if not 0 <= t < self._num_timesteps:
            raise BackendError(f"steps lie between 0 and {self._num_timesteps - 1}, got {t}")
        return self._run("denoiser", {"code": code, "t": np.array([t], np.int64)})

    def decode(self, code: FloatArray) -> FloatArray:
        """Images; see `Backend.decode`."""
        return self._run("decoder", {"code": code})

    def describe(self) -> dict[str, str]:
        """What runs, for a report."""
        return {
            "backend": self.name,
            "device": self.device,
            "provider": PROVIDERS["cpu"],
            "onnxruntime": self._library.__version__,
            "threads": "one per core" if self._threads is None else str(self._threads),
        }

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()
