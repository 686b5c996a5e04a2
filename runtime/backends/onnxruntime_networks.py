"""Networks on ONNX Runtime's CUDA provider, on the loop's own memory and stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..bundle import Bundle
from ..cuda.device import Device
from ..cuda.memory import library_error
from ..errors import BackendError
from .onnxruntime_session import PROVIDERS, load, open_session
from .tensors import network_tensors


class OnnxRuntimeNetworks:
    """One session per network, bound to addresses on a device.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked.
    device : Device
        Where to run.
    memory : {"cuda", "cpu"}
        What the device's addresses are: those of a GPU, or, in a test, of the host.

    Raises
    ------
    BackendError
        If the provider takes not every node of a graph.
    """

    # A run allocates from ONNX Runtime's own memory and may wait for the stream, which a captured
    # stream does not allow; its own way of capturing (`enable_cuda_graph`) would record each
    # network apart, without the loop's kernels between them.
    capturable = False

    def __init__(
        self, bundle: Bundle, device: Device, memory: Literal["cuda", "cpu"] = "cuda"
    ) -> None:
        self._library = load()
        self._device = device
        self._memory = memory
        self._index = int(device.name.partition(":")[2]) if memory == "cuda" else 0
        self._tensors = network_tensors(bundle)
        self._batch = 0
        self._bindings: dict[str, tuple[tuple[int, ...], Any]] = {}
        self.max_batch = bundle.manifest.dynamic_batch[2]
        files = {network: bundle.file(f"onnx/{network}.onnx") for network in self._tensors}
        # Weights make up nearly all of the files.
        self._weight_bytes = sum(file.stat().st_size for file in files.values())
        device.activate()
        self._run_options = self._library.RunOptions()
        # Everything stays on the loop's stream, in order: nothing to wait for after a run.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        options = self._provider_options()
        self._sessions = {
            network: open_session(self._library, file, PROVIDERS[memory], options)
            for network, file in files.items()
        }

    def _provider_options(self) -> dict[str, str]:
        if self._memory == "cpu":
            return {}
        return {
            "device_id": str(self._index),
            "user_compute_stream": str(self._device.stream),
            # On boards where GPU and host share their memory, a request beyond it ends the process.
            "gpu_mem_limit": str(self._device.memory()[0]),
            "arena_extend_strategy": "kSameAsRequested",
            # Trying all algorithms chooses by time, hence not twice the same.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
        }

    def device_bytes(self, batch: int) -> int:
        """Weights only: ONNX Runtime has no figure for its scratch memory before it runs."""
        return self._weight_bytes

    def prepare(self, batch: int) -> None:
        """Take the batch size; see `DeviceNetworks`."""
        if not self._sessions:
            raise BackendError("the networks are closed")
        if batch != self._batch:
            self._bindings.clear()
            self._batch = batch

    def enqueue(self, network: str, inputs: Mapping[str, int], output: int) -> None:
        """Run one network on the stream; see `DeviceNetworks`."""
        if not self._batch:
            raise BackendError("the networks are closed, or no batch has been prepared")
        addresses = (*(inputs[tensor.name] for tensor in self._tensors[network][:-1]), output)
        try:
            if self._bindings.get(network, ((), None))[0] != addresses:
                self._bindings[network] = addresses, self._bind(network, addresses)
            self._sessions[network].run_with_iobinding(
                self._bindings[network][1], self._run_options
            )
        except Exception as error:  # the library's own exceptions share no public base
            raise library_error(f"ONNX Runtime failed in the {network}: {error}") from error

    def _bind(self, network: str, addresses: tuple[int, ...]) -> Any:
        binding = self._sessions[network].io_binding()
        *inputs, output = (
            (tensor.name, self._memory, self._index, tensor.dtype, tensor.of(self._batch), address)
            for tensor, address in zip(self._tensors[network], addresses, strict=True)
        )
        for tensor in inputs:
            binding.bind_input(*tensor)
        binding.bind_output(*output)
        return binding

    def describe(self) -> dict[str, str]:
        """Library version and provider."""
        return {
            "onnxruntime": self._library.__version__,
            "provider": PROVIDERS[self._memory],
        }

    def close(self) -> None:
        """Release the sessions."""
        self._batch = 0
        self._bindings.clear()
        self._sessions.clear()
