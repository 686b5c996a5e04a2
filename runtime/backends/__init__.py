"""Engine backends behind one protocol, and the registry they are opened from.

A backend is one module here with three functions: ``devices()``, which lists the devices it can
use on this machine (or raises a `BerdiffError` saying why it cannot be used at all),
``obstacle()``, which says why there is no GPU among them, if so, and
``open(bundle, device, threads)``, which returns a `Backend`. Devices are "cpu" and "cuda:0",
"cuda:1" and so on. Adding one means adding the module and its line in `BACKENDS`; the contract
every backend has to meet is tested in ``tests/runtime/test_backend_contract.py``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BackendError, BerdiffError

FloatArray = NDArray[np.float32]

# Name as users write it -> module in this package.
BACKENDS = {
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}


class Backend(Protocol):
    """The three networks of a bundle, ready to run.

    Arrays are NumPy float32, C-contiguous, owned by the caller once returned. What an image gets
    depends, bit for bit, neither on the rest of its batch nor on the number of threads. Several
    threads may call one backend. Anything that goes wrong is a `BackendError`.
    """

    name: str
    device: str

    def encode(self, images: FloatArray) -> FloatArray:
        """Bit probabilities ``[N, K, h, w]`` in [0, 1] of images ``[N, C, H, W]`` in [0, 1]."""
        ...

    def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
        """Probability in [0, 1] that noise has flipped each bit of ``[N, K, h, w]``, at step t."""
        ...

    def decode(self, code: FloatArray) -> FloatArray:
        """Images ``[N, C, H, W]``, not clamped, of codes ``[N, K, h, w]`` in [0, 1]."""
        ...

    def describe(self) -> dict[str, str]:
        """What runs, for a report: backend, device, library version, settings."""
        ...

    def close(self) -> None:
        """Release the engines; the backend cannot be used afterwards."""
        ...

    def __enter__(self) -> Backend:
        """Return the backend itself."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the engines."""
        ...


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used on this machine.

    Attributes
    ----------
    devices : tuple of str
        Devices it can use; empty where it cannot be used.
    reason : str or None
        Why it cannot be used.
    """

    devices: tuple[str, ...]
    reason: str | None = None


def available() -> dict[str, Availability]:
    """Look at every known backend: its devices here, or why it cannot be used."""
    found = {}
    for name in BACKENDS:
        try:
            found[name] = Availability(tuple(_module(name).devices()))
        except BerdiffError as error:
            found[name] = Availability((), str(error))
    return found


def gpu_obstacle(name: str) -> str | None:
    """Say why a backend can use no GPU of this machine, if so."""
    found: str | None = _module(name).obstacle()
    return found


def open_backend(
    bundle: Bundle, name: str = "onnxruntime", device: str = "cpu", threads: int | None = None
) -> Backend:
    """Open a bundle's networks on exactly the backend and device asked for.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked.
    name : str
        A key of `BACKENDS`.
    device : str
        One of the backend's devices, for example "cpu"; "cuda" is "cuda:0".
    threads : int, optional
        CPU threads per network; None takes one per physical core. Not for a GPU.

    Raises
    ------
    BackendError
        If the backend or the device is unknown or cannot be used here; says what can be.
    MissingDependency
        If the backend's library is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(f"unknown backend '{name}'; known are: {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise BackendError(f"threads must be at least 1, got {threads}")
    if device == "cuda":
        device = "cuda:0"
    if threads is not None and device != "cpu":
        raise BackendError(f"threads are for the CPU; leave the option away on '{device}'")
    module = _module(name)
    devices = tuple(module.devices())
    if device not in devices:
        reason = gpu_obstacle(name) if device.startswith("cuda:") else None
        raise BackendError(
            f"backend '{name}' has no device '{device}' on this machine; "
            f"available are: {', '.join(devices)}" + (f". No GPU: {reason}" if reason else "")
        )
    backend: Backend = module.open(bundle, device, threads)
    return backend


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{BACKENDS[name]}", __name__)
