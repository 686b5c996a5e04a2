"""TensorRT as far as `tensorrt_networks` uses it; its engines are ONNX files run on the host.

Every public name of the classes here is one of the real library: a test compares them. They are as
strict as the real ones where carelessness would show on a GPU only: contexts refuse to run without
shapes, addresses or scratch memory, work goes to the stream, and scratch memory is overwritten.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from host_device import HostDevice, at

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import Library
from berdiff.runtime.engines.options import BuildOptions
from berdiff.runtime.engines.store import (
    SIDECAR_NAME,
    SIDECAR_VERSION,
    NetworkEngine,
    Sidecar,
    engine_key,
    onnx_digests,
    platform_here,
    sidecar_text,
)

MAGIC = b"fake engine "
SCRATCH = (3000, 5000, 4000)  # bytes per image of encoder, denoiser, decoder
STREAMS: dict[int, HostDevice] = {}


def device_with_stream(architecture: tuple[int, int], total: int = 1 << 32) -> HostDevice:
    """A `HostDevice` that this library knows the stream of."""
    device = HostDevice(total)
    device.compute_capability = architecture
    device.stream = 1000 + len(STREAMS)
    STREAMS[device.stream] = device
    return device


def engine_bytes(onnx: bytes, **facts: Any) -> bytes:
    """A serialized engine.

    Parameters
    ----------
    onnx : bytes
        The ONNX file.
    **facts
        What the engine says of itself, or does wrong: see `ICudaEngine` and `IExecutionContext`.
    """
    return MAGIC + json.dumps(facts).encode() + b"\n" + onnx


class DataType(enum.Enum):
    FLOAT = enum.auto()
    HALF = enum.auto()
    INT64 = enum.auto()


class TensorIOMode(enum.Enum):
    INPUT = enum.auto()
    OUTPUT = enum.auto()


class TensorLocation(enum.Enum):
    DEVICE = enum.auto()
    HOST = enum.auto()


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = enum.auto()
    USER_MANAGED = enum.auto()


class EngineStat(enum.Enum):
    TOTAL_WEIGHTS_SIZE = enum.auto()


class CudaGraphStrategy(enum.Enum):
    DISABLED = enum.auto()


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    EAGER = enum.auto()


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = enum.auto()
        ERROR = enum.auto()
        WARNING = enum.auto()
        VERBOSE = enum.auto()

    def __init__(self) -> None:
        self._ready = True


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger._ready, "the logger's own constructor must be called"
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._logger.log(ILogger.Severity.VERBOSE, "Deserializing")  # type: ignore[attr-defined]
        facts, _, onnx = serialized_engine.removeprefix(MAGIC).partition(b"\n")
        if not serialized_engine.startswith(MAGIC):
            self._error("Serialization assertion plan->header.magicTag == 0 failed.")
            return None
        known = json.loads(facts)
        if "load_error" in known:
            self._error(known["load_error"])
            return None
        return ICudaEngine(self._logger, onnx, known)

    def _error(self, text: str) -> None:
        self._logger.log(ILogger.Severity.ERROR, f" {text}\n")  # type: ignore[attr-defined]


_TYPES = {"tensor(float)": DataType.FLOAT, "tensor(int64)": DataType.INT64}


class ICudaEngine:
    """Facts: `batches`, `weights`, `scratch` (bytes per image), `dtype`, `location`, `rename`."""

    def __init__(self, logger: ILogger, onnx: bytes, facts: dict[str, Any]) -> None:
        self._logger, self._facts = logger, facts
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(onnx, options)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._tensors = {facts.get("rename", {}).get(t.name, t.name): t for t in inputs + outputs}
        self._inputs = list(self._tensors)[: len(inputs)]

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return self._scratch(self._facts["batches"][2])

    def _scratch(self, batch: int) -> int:
        return batch * int(self._facts["scratch"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        changed = self._facts.get("dtype", {}).get(name)
        return DataType[changed] if changed else _TYPES[self._tensors[name].type]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation[self._facts.get("location", {}).get(name, "DEVICE")]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(d, str) else d for d in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name in self._inputs
        assert profile_index == 0
        shape = self.get_tensor_shape(name)
        return [(batch, *shape[1:]) for batch in self._facts["batches"]]

    def get_engine_stat(self, stat: EngineStat) -> int:
        assert stat is EngineStat.TOTAL_WEIGHTS_SIZE
        return int(self._facts["weights"])

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, how: Any) -> IExecutionContext | None:
        strategy = how._strategy if isinstance(how, IRuntimeConfig) else how
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(how, IRuntimeConfig):
            assert how.cuda_graph_strategy is CudaGraphStrategy.DISABLED
            kernels = how.dynamic_shapes_kernel_specialization_strategy
            assert kernels is DynamicShapesKernelSpecializationStrategy.EAGER
        return IExecutionContext(self)


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels = b""

    def serialize(self) -> bytes:
        return self._kernels or b"compiled kernels"

    def deserialize(self, blob: bytes) -> bool:
        self._kernels = blob
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self._strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IExecutionContext:
    """Facts: `refuse_shape`, `refuse_address` (names of tensors), `fail` (a message)."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._facts = engine, engine._facts
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = (0, 0)

    @property
    def _batch(self) -> int:
        return self._shapes[self._engine._inputs[0]][0]

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        fixed = -1 not in self._engine.get_tensor_shape(name)
        fits = tuple(shape) == self._engine.get_tensor_shape(name) or (
            not fixed and smallest <= tuple(shape) <= largest and shape[1:] == smallest[1:]
        )
        if not fits or name in self._facts.get("refuse_shape", ()):
            self._error("setInputShape: shape is out of the range of the profile")
            return False
        self._shapes[name] = tuple(shape)
        self._memory = (0, 0)  # what was handed over is for other shapes
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self._shapes) == set(self._engine._inputs), "some shape is missing"
        return self._engine._scratch(self._batch)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self._memory = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name in self._facts.get("refuse_address", ()) or name not in self._engine._tensors:
            self._error("setTensorAddress: invalid address")
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert set(self._shapes) == set(self._engine._inputs), "some shape is missing"
        assert set(self._addresses) == set(self._engine._tensors), "some address is missing"
        needed = self._engine._scratch(self._batch)
        assert self._memory[1] >= needed, "too little scratch memory was handed over"
        if "fail" in self._facts:
            self._error(self._facts["fail"])
            return False
        shapes, addresses, scratch = dict(self._shapes), dict(self._addresses), self._memory[0]
        STREAMS[stream_handle].do(lambda: self._run(shapes, addresses, scratch, needed))
        return True

    def _run(
        self, shapes: dict[str, Any], addresses: dict[str, int], scratch: int, needed: int
    ) -> None:
        if needed:
            at(scratch, (needed,), np.uint8)[...] = 0xEE
        tensors = self._engine._tensors
        feeds = {
            tensors[name].name: at(
                addresses[name],
                shape,
                np.int64 if tensors[name].type == "tensor(int64)" else np.float32,
            ).copy()
            for name, shape in shapes.items()
        }
        (answer,) = self._engine._session.run(None, feeds)
        (output,) = (name for name in tensors if name not in shapes)
        at(addresses[output], answer.shape, answer.dtype)[...] = answer

    def _error(self, text: str) -> None:
        self._engine._logger.log(ILogger.Severity.ERROR, text)  # type: ignore[attr-defined]


CLASSES = (
    *(DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy, EngineStat),
    *(ILogger, Runtime, ICudaEngine, IExecutionContext),
)
RTX_CLASSES = (
    *(CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy),
    *(IRuntimeCache, IRuntimeConfig),
)


def fake_module(name: str, version: str, classes: Sequence[type]) -> ModuleType:
    """A module to stand for the library, with the classes it has."""
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    for kind in classes:
        setattr(module, kind.__name__, kind)
    module.float32, module.int64 = DataType.FLOAT, DataType.INT64  # type: ignore[attr-defined]
    return module


def store_engines(
    bundle: Bundle, library: Library, gpu: Gpu, facts: dict[str, dict[str, Any]] | None = None
) -> Path:
    """Put engines for a GPU into a bundle, as a build does; returns their folder.

    `facts` are those of `engine_bytes`, by network, beside the ones every engine has.
    """
    options = BuildOptions(bundle.manifest.dynamic_batch)
    key = engine_key(bundle, library, gpu.architecture, gpu, options)
    folder = bundle.path / "engines" / key
    folder.mkdir(parents=True)
    records = {}
    for index, (network, digest) in enumerate(onnx_digests(bundle).items()):
        usual = {
            "batches": options.dynamic_batch,
            "weights": 1000 + index,
            "scratch": SCRATCH[index],
        }
        onnx = bundle.file(f"onnx/{network}.onnx").read_bytes()
        data = engine_bytes(onnx, **(usual | (facts or {}).get(network, {})))
        (folder / f"{network}.engine").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        names: dict[str, Any] = {"inputs": {}, "outputs": {}, "compute": {}, "weights": {}}
        sizes: dict[str, Any] = {"layers": 1, "weight_bytes": 77, "scratch_bytes": 1}
        rest: dict[str, Any] = {"build_seconds": 0.0, "warnings": ()}
        records[network] = NetworkEngine(digest, sha256, len(data), **names, **sizes, **rest)
    sidecar = Sidecar(
        schema_version=SIDECAR_VERSION,
        key=key,
        library=library.name,
        library_version=library.version,
        precision=bundle.manifest.precision,
        target=gpu.architecture,
        platform=platform_here(),
        gpu=gpu,
        options=options,
        networks=records,
        created="2026-01-01T00:00:00+00:00",
    )
    (folder / SIDECAR_NAME).write_bytes(sidecar_text(sidecar))
    return folder
