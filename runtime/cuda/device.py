"""A GPU as the loop sees it: memory, one stream, kernels, captured graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, MissingDependency, optional
from .arrays import ArrayView, Buffer, DeviceArray, c_strides

THREADS_PER_BLOCK = 256


class OutOfDeviceMemory(BackendError):
    """The GPU has no room for a buffer."""


class Graph(Protocol):
    """Work recorded once, to be done again without the host taking part."""

    def launch(self) -> None:
        """Put the recorded work on the device's stream."""
        ...

    def close(self) -> None:
        """Release the graph."""
        ...


class Device(Protocol):
    """One device with one stream; everything is done in the order it is asked for.

    Attributes
    ----------
    name : str
        As backends name it: "cuda:0".
    gpu : str
        Product name.
    compute_capability : tuple of int
        Major and minor.
    stream : int
        Address of the stream, for libraries that put work on it.
    """

    name: str
    gpu: str
    compute_capability: tuple[int, int]
    stream: int

    def activate(self) -> None:
        """Make this the device of the calling thread; every thread does so before it works."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Reserve memory, aligned to 256 bytes.

        Raises
        ------
        OutOfDeviceMemory
            If there is none left.
        """
        ...

    def upload(self, array: NDArray[Any], pointer: int) -> None:
        """Copy a C-contiguous array to the device; it may be changed afterwards."""
        ...

    def download(self, pointer: int, array: NDArray[Any]) -> None:
        """Fill a C-contiguous array from the device; waits for the work before it."""
        ...

    def launch(self, kernel: str, count: int, *arguments: np.generic) -> None:
        """Run one of the project's kernels with at least `count` threads.

        Arguments are those of `berdiff.runtime.cuda.kernels.SIGNATURES`, pointers as ``uint64``.
        """
        ...

    def capture(self) -> AbstractContextManager[Graph]:
        """Record what is asked for inside the context instead of doing it."""
        ...

    def synchronise(self) -> None:
        """Wait until everything is done."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total memory in bytes."""
        ...

    def view(self, array: Any) -> ArrayView:
        """Look at another library's array on this device, without a copy.

        Work that library has put on its own stream is waited for, on the device.

        Raises
        ------
        BackendError
            If the object offers neither DLPack nor ``__cuda_array_interface__``, lies elsewhere,
            or is not C-contiguous.
        """
        ...

    def export(self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Hand a buffer out as an array that DLPack and ``__cuda_array_interface__`` know."""
        ...


def cuda_devices() -> list[str]:
    """Names of the CUDA devices here, ``cuda:0`` and so on.

    Raises
    ------
    MissingDependency
        If cuda-core is not installed.
    BackendError
        If there is no driver or no device; says which.
    """
    try:
        count = len(_cuda_core().Device.get_all_devices())
    except MissingDependency:
        raise
    except Exception as error:  # loading the driver and asking it raise several kinds
        raise BackendError(
            f"no NVIDIA driver could be used ({error}); is there a GPU, and its driver installed?"
        ) from error
    if not count:
        raise BackendError("the NVIDIA driver reports no GPU")
    return [f"cuda:{index}" for index in range(count)]


def open_device(name: str) -> CudaDevice:
    """Open a device by its name, ``cuda:0`` and so on."""
    return CudaDevice(int(name.partition(":")[2] or 0))


def _cuda_core() -> Any:
    optional("cuda.bindings", "cuda")
    return optional("cuda.core", "cuda")


def _driver() -> Any:
    return optional("cuda.bindings.driver", "cuda")


def _checked(answer: tuple[Any, ...]) -> Any:
    """Result of a driver call, or its error."""
    status, *values = answer
    name = getattr(status, "name", str(status))
    if name == "CUDA_ERROR_OUT_OF_MEMORY":
        raise OutOfDeviceMemory("the GPU is out of memory")
    if int(status):
        raise BackendError(f"the CUDA driver reports {name}")
    return values[0] if len(values) == 1 else tuple(values)


class _CudaBuffer:
    """Memory from ``cuMemAlloc``, whose release waits for all work that uses it."""

    def __init__(self, nbytes: int, device: Any) -> None:
        self.nbytes, self.pointer = nbytes, 0
        self.pointer = int(_checked(_driver().cuMemAlloc(nbytes)))
        self._device, self._free = device, _driver().cuMemFree

    def close(self) -> None:
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            self._device.set_current()  # whichever thread lets go of it
            self._free(pointer)

    def __del__(self) -> None:
        if getattr(self, "_free", None) is not None:
            self.close()


class _CudaGraph:
    """A graph of cuda-core on the device's stream; it exists once its capture has ended."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.graph: Any = None

    def launch(self) -> None:
        self.graph.launch(self._stream)

    def close(self) -> None:
        if self.graph is not None:
            self.graph.close()


class CudaDevice:
    """An NVIDIA GPU through cuda-core.

    Parameters
    ----------
    index : int
        Which of the devices the driver shows.
    """

    def __init__(self, index: int) -> None:
        core = _cuda_core()
        self._core = core
        self._device = core.Device(index)
        self.activate()
        self._stream = self._device.create_stream()
        self.name = f"cuda:{index}"
        self.gpu = str(self._device.name)
        capability = self._device.compute_capability
        self.compute_capability = (int(capability[0]), int(capability[1]))
        self.stream = int(self._stream.handle)
        self._kernels = self._load_kernels()
        self._capturing = threading.local()

    def _load_kernels(self) -> dict[str, Any]:
        from .kernels import SIGNATURES, load_image

        version = int(_checked(_driver().cuDriverGetVersion()))  # 12080 for CUDA 12.8
        image = load_image(self.compute_capability, (version // 1000, version % 1000 // 10))
        # An ELF file is machine code for this very GPU; anything else is PTX.
        load = self._core.ObjectCode.from_cubin
        if not image.startswith(b"\x7fELF"):
            load = self._core.ObjectCode.from_ptx
        code = load(image)
        return {name: code.get_kernel(name) for name in SIGNATURES}

    def activate(self) -> None:
        """See `Device.activate`."""
        self._device.set_current()

    def allocate(self, nbytes: int) -> Buffer:
        """See `Device.allocate`."""
        return _CudaBuffer(nbytes, self._device)

    def upload(self, array: NDArray[Any], pointer: int) -> None:
        """See `Device.upload`."""
        copy = _driver().cuMemcpyHtoDAsync
        _checked(copy(pointer, array.ctypes.data, array.nbytes, self.stream))
        self.synchronise()  # the array is the caller's again

    def download(self, pointer: int, array: NDArray[Any]) -> None:
        """See `Device.download`."""
        copy = _driver().cuMemcpyDtoHAsync
        _checked(copy(array.ctypes.data, pointer, array.nbytes, self.stream))
        self.synchronise()

    def launch(self, kernel: str, count: int, *arguments: np.generic) -> None:
        """See `Device.launch`."""
        blocks = -(-count // THREADS_PER_BLOCK)
        config = self._core.LaunchConfig(grid=blocks, block=THREADS_PER_BLOCK)
        target = getattr(self._capturing, "builder", None) or self._stream
        self._core.launch(target, config, self._kernels[kernel], *arguments)

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """See `Device.capture`."""
        graph = _CudaGraph(self._stream)
        builder = self._stream.create_graph_builder()
        builder.begin_building("thread_local")
        self._capturing.builder = builder
        try:
            yield graph
            graph.graph = builder.end_building().complete()
        finally:
            self._capturing.builder = None
            builder.close()

    def synchronise(self) -> None:
        """See `Device.synchronise`."""
        self._stream.sync()

    def memory(self) -> tuple[int, int]:
        """See `Device.memory`."""
        free, total = _checked(_driver().cuMemGetInfo())
        return int(free), int(total)

    def view(self, array: Any) -> ArrayView:
        """See `Device.view`."""
        strided = optional("cuda.core.utils", "cuda").StridedMemoryView
        try:
            seen = strided.from_any_interface(array, stream_ptr=self.stream)
        except Exception as error:  # each library's exporter raises its own
            raise BackendError(
                f"got {type(array).__name__}, expected an array on {self.name} that offers DLPack "
                f"or __cuda_array_interface__: {error}"
            ) from error
        index = int(self.name.partition(":")[2])
        if not seen.is_device_accessible or seen.device_id != index:
            raise BackendError(f"the array lies on device {seen.device_id}, expected {self.name}")
        shape = tuple(int(length) for length in seen.shape)
        if seen.strides is not None and tuple(seen.strides) != c_strides(shape):
            raise BackendError(
                f"the array of shape {shape} has strides {tuple(seen.strides)}; expected a "
                "C-contiguous one: copy it first"
            )
        return ArrayView(int(seen.ptr), shape, np.dtype(seen.dtype), seen)

    def export(self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """See `Device.export`."""
        return DeviceArray(buffer, shape, np.dtype(dtype))
