"""Networks on TensorRT or TensorRT for RTX: three engines, one context each, one scratch memory.

Only names that exist in TensorRT 10.3 to 11 and in TensorRT for RTX are used without asking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..cuda.arrays import Buffer
from ..cuda.device import Device
from ..cuda.memory import library_error
from ..engines.gpu import Gpu
from ..engines.library import TENSORRT_RTX, BuildLog, Library, make_logger
from ..engines.store import find_engine, rebuild
from ..errors import BackendError
from ..files import write_atomic
from .tensors import network_tensors

# Contexts want scratch memory even where they need none.
_SMALLEST_SCRATCH = 256


class TensorRtNetworks:
    """A bundle's engines for this GPU, opened on a device.

    The contexts share one scratch memory: the networks run one after another on one stream, so
    what they need for intermediate values never exists at the same time.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked.
    device : Device
        Where to run.
    library : Library
        TensorRT or TensorRT for RTX.

    Raises
    ------
    MissingDependency
        If the library is not installed.
    BackendError
        If the bundle holds no engine for this GPU and library version, naming the command that
        builds one; if the library refuses an engine, or one is not what the bundle describes.
    OutOfDeviceMemory
        If there is no room for the weights.
    """

    capturable = True

    def __init__(self, bundle: Bundle, device: Device, library: Library) -> None:
        self._library = library
        self._trt = library.load()
        self._device = device
        self._tensors = network_tensors(bundle)
        self._stored = find_engine(bundle, library, Gpu(device.gpu, device.compute_capability))
        self._batch = 0
        self._scratch: Buffer | None = None
        self._scratch_needed: dict[int, int] = {}  # by batch
        self._engines: dict[str, Any] = {}
        self._contexts: dict[str, Any] = {}
        self._caches: dict[Path, Any] = {}
        self._log = _ErrorLog()
        device.activate()
        self._logger = make_logger(self._trt, self._log)
        self._runtime = self._trt.Runtime(self._logger)
        try:
            self.max_batch = min(
                self._open(name, file) for name, file in self._stored.files.items()
            )
        except BaseException:
            self.close()
            raise

    def _open(self, network: str, file: Path) -> int:
        """Load an engine and make its context; returns the largest batch it takes."""
        engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise self._failure(f"does not load {file}", again=True)
        self._engines[network] = engine
        largest = self._check(network, engine)
        context = engine.create_execution_context(self._context_settings(engine, file))
        if context is None:
            raise self._failure(f"makes no context for {file}")
        self._contexts[network] = context
        return largest

    def _check(self, network: str, engine: Any) -> int:
        """Compare an engine's inputs and outputs with the bundle; returns its largest batch."""
        *inputs, output = self._tensors[network]
        expected = {tensor.name for tensor in self._tensors[network]}
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if found != expected:
            raise self._wrong(network, "has tensors", sorted(found), sorted(expected))
        trt = self._trt
        types = {"float32": trt.float32, "int64": trt.int64}
        modes = [(tensor, trt.TensorIOMode.INPUT) for tensor in inputs]
        for tensor, mode in [*modes, (output, trt.TensorIOMode.OUTPUT)]:
            facts = (
                (engine.get_tensor_mode(tensor.name), mode),
                (engine.get_tensor_dtype(tensor.name), types[tensor.dtype.name]),
                (engine.get_tensor_location(tensor.name), trt.TensorLocation.DEVICE),
            )
            for got, wanted in facts:
                if got != wanted:
                    raise self._wrong(network, f"'{tensor.name}' is", got, wanted)
            shape = tuple(engine.get_tensor_shape(tensor.name))
            if shape[tensor.batched :] != tensor.shape or len(shape) != len(tensor.of(1)):
                raise self._wrong(network, f"'{tensor.name}' has shape", shape, tensor.of(-1))
        smallest, _, largest = engine.get_tensor_profile_shape(inputs[0].name, 0)
        if smallest[0] != 1:
            raise self._wrong(network, "takes batches of at least", smallest[0], 1)
        return int(largest[0])

    def _context_settings(self, engine: Any, file: Path) -> Any:
        """Memory is ours to give; TensorRT for RTX also has a cache of compiled kernels."""
        trt = self._trt
        ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library is not TENSORRT_RTX:
            return ours
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ours)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # the loop captures as a whole
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # The default exchanges kernels while the engine is being used: with them a result
            # could change between two runs, and a captured graph would keep the slow ones.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        cache = config.create_runtime_cache()
        path = file.with_suffix(".cache")
        if path.is_file():
            cache.deserialize(path.read_bytes())  # refuses what is not of this machine
        if config.set_runtime_cache(cache):
            self._caches[path] = cache
        return config

    def device_bytes(self, batch: int) -> int:
        """Weights, and the largest scratch memory of the three; see `DeviceNetworks`.

        To ask for a batch size not asked for before, once one is prepared, voids captured graphs.
        """
        weights = sum(self._weight_bytes(network) for network in self._engines)
        if batch and batch not in self._scratch_needed:
            prepared, self._batch = self._batch, 0
            self._shape(batch)
            if prepared:
                self.prepare(prepared)
        return weights + (self._scratch_needed[batch] if batch else 0)

    def _weight_bytes(self, network: str) -> int:
        engine = self._engines[network]
        if hasattr(self._trt, "EngineStat"):
            return int(engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE))
        return self._stored.sidecar.networks[network].weight_bytes

    def _shape(self, batch: int) -> int:
        """Set the input shapes of every context; returns the scratch memory they need."""
        if not 1 <= batch <= self.max_batch:
            raise BackendError(
                f"the engines take batches of 1 to {self.max_batch}, got {batch}; for larger ones: "
                f"{self._rebuild()} --dynamic-batch 1,OPT,{max(batch, 1)}"
            )
        self._device.activate()
        sizes = [_SMALLEST_SCRATCH]
        for network, context in self._contexts.items():
            for tensor in self._tensors[network][:-1]:
                if not context.set_input_shape(tensor.name, tensor.of(batch)):
                    raise self._failure(
                        f"refuses shape {tensor.of(batch)} for '{tensor.name}' of the {network}"
                    )
            sizes.append(self._scratch_bytes(self._engines[network], context))
        self._scratch_needed[batch] = max(sizes)
        return max(sizes)

    def _scratch_bytes(self, engine: Any, context: Any) -> int:
        # 0 where it cannot tell what these shapes need: then what the largest batch does.
        needed = int(context.update_device_memory_size_for_shapes())
        return needed or int(engine.device_memory_size_v2)

    def prepare(self, batch: int) -> None:
        """Set shapes and give every context the shared scratch memory; see `DeviceNetworks`."""
        if not self._contexts:
            raise BackendError("the networks are closed")
        if self._batch and batch == self._batch:
            return
        self._batch = 0
        needed = self._shape(batch)
        if self._scratch is None or self._scratch.nbytes != needed:
            self._release_scratch()
            self._scratch = self._device.allocate(needed)
        for context in self._contexts.values():
            context.set_device_memory(self._scratch.pointer, self._scratch.nbytes)
        self._batch = batch

    def enqueue(self, network: str, inputs: Mapping[str, int], output: int) -> None:
        """Put one network on the stream; see `DeviceNetworks`."""
        if not self._batch:
            raise BackendError("the networks are closed, or no batch has been prepared")
        self._log.errors.clear()  # others may have caused some: a process has one logger
        context = self._contexts[network]
        addresses = {**inputs, self._tensors[network][-1].name: output}
        for tensor in self._tensors[network]:
            if not context.set_tensor_address(tensor.name, addresses[tensor.name]):
                raise self._failure(f"refuses the address of '{tensor.name}' in the {network}")
        if not context.execute_async_v3(self._device.stream):
            raise self._failure(f"failed in the {network}")

    def describe(self) -> dict[str, str]:
        """Library, its version, and which engines run."""
        sidecar = self._stored.sidecar
        return {
            self._library.name: self._library.version,
            "engine": sidecar.key,
            "engine_digest": self._stored.digest,
            "precision": sidecar.precision,
        }

    def close(self) -> None:
        """Release contexts, scratch memory and engines, in this order; keep what was compiled."""
        self._batch = 0
        caches, self._caches = self._caches, {}
        for path, cache in caches.items():
            _keep(cache, path)
        self._contexts.clear()
        self._release_scratch()
        self._engines.clear()
        self._runtime = None

    def _release_scratch(self) -> None:
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            scratch.close()

    def _rebuild(self) -> str:
        folder = self._stored.folder
        return rebuild(folder.parents[1], self._stored.sidecar)

    def _wrong(self, network: str, what: str, got: object, expected: object) -> BackendError:
        return BackendError(
            f"the {network} engine in {self._stored.folder} {what} {got}, expected {expected}; "
            f"{self._rebuild()}"
        )

    def _failure(self, what: str, again: bool = False) -> BackendError:
        """Make an error of what the library has said since the last one."""
        said = self._log.reasons()
        self._log.errors.clear()
        advice = f". {self._rebuild()}" if again else ""
        return library_error(f"{self._library.name} {what}: {said}{advice}")


class _ErrorLog(BuildLog):
    """Keeps errors only: engines run for long."""

    def note(self, severity: str, message: str) -> None:
        """See `BuildLog.note`."""
        if "ERROR" in severity:
            super().note(severity, message)


def _keep(cache: Any, path: Path) -> None:
    """Write a cache of compiled kernels beside its engine, if it holds anything new."""
    data = bytes(cache.serialize() or b"")
    # A bundle on a read-only disk works as well: it compiles again the next time.
    with contextlib.suppress(OSError):
        if data and not (path.is_file() and path.read_bytes() == data):
            write_atomic(path, data)
