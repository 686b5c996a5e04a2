"""ONNX Runtime on the CPU."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BackendError, optional

FloatArray = NDArray[np.float32]

_PROVIDERS = {"cpu": "CPUExecutionProvider"}


def devices() -> list[str]:
    """Devices the installed ONNX Runtime can use here."""
    library = optional("onnxruntime", "cpu")
    present = library.get_available_providers()
    return [device for device, provider in _PROVIDERS.items() if provider in present]


def open(bundle: Bundle, device: str, threads: int | None) -> OnnxRuntimeBackend:  # noqa: A001
    """Open a bundle; see `berdiff.runtime.backends.open_backend`."""
    return OnnxRuntimeBackend(bundle, device, threads)


class OnnxRuntimeBackend:
    """One session per network.

    Parameters
    ----------
    bundle : Bundle
        Opened bundle.
    device : str
        "cpu".
    threads : int or None
        Threads per operator; None takes one per physical core.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, device: str, threads: int | None) -> None:
        self._library = optional("onnxruntime", "cpu")
        self.device = device
        self._threads = threads
        self._num_timesteps = bundle.manifest.schedule.num_timesteps
        self._sessions = {
            network: self._open(bundle, f"onnx/{network}.onnx")
            for network in ("encoder", "denoiser", "decoder")
        }

    def _open(self, bundle: Bundle, name: str) -> Any:
        options = self._library.SessionOptions()
        options.graph_optimization_level = self._library.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors only: the library logs to the terminal
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        provider = _PROVIDERS[self.device]
        path = bundle.file(name)
        try:
            session = self._library.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # the library's own exceptions share no public base
            raise BackendError(f"{path} cannot be loaded by ONNX Runtime: {error}") from error
        if session.get_providers()[0] != provider:
            raise BackendError(
                f"ONNX Runtime opened {path} on {session.get_providers()[0]} instead of {provider}"
            )
        return session

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
            "provider": _PROVIDERS[self.device],
            "onnxruntime": self._library.__version__,
            "threads": "one per core" if self._threads is None else str(self._threads),
        }

    def close(self) -> None:
        """Release the sessions."""
        self._sessions.clear()

    def __enter__(self) -> OnnxRuntimeBackend:
        """Return the backend itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the sessions."""
        self.close()
