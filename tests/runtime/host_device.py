"""A device that is the host: its memory NumPy's, its kernels the project's source compiled as C++.

What runs on it is everything of the loop on a device but the driver: addresses, orders, layouts,
captured graphs, and the arithmetic of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import host_kernels
import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.backends import Backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cuda.arrays import ArrayView
from berdiff.runtime.cuda.device import OutOfDeviceMemory
from berdiff.runtime.cuda.layout import Layout
from berdiff.runtime.cuda.networks import TENSORS
from berdiff.runtime.errors import BackendError


class HostBuffer:
    """Bytes of the host, with garbage in them, as on a device."""

    def __init__(self, device: HostDevice, nbytes: int) -> None:
        self.bytes = np.full(nbytes + 256, 0xA5, np.uint8)
        self.pointer = -(-self.bytes.ctypes.data // 256) * 256
        self.nbytes = nbytes
        self._device: HostDevice | None = device
        device.allocated += nbytes
        device.peak = max(device.peak, device.allocated)

    def close(self) -> None:
        if self._device is not None:
            self._device.allocated -= self.nbytes
            self._device = None


class HostGraph:
    """Recorded calls."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.launches = 0
        self.closed = False

    def launch(self) -> None:
        assert not self.closed
        self.launches += 1
        for call in self.calls:
            call()

    def close(self) -> None:
        self.closed = True


class HostDevice:
    """See `berdiff.runtime.cuda.device.Device`.

    Parameters
    ----------
    total : int
        Bytes of memory it pretends to have.
    """

    name = "cuda:0"
    gpu = "host"
    compute_capability = (0, 0)
    stream = 0

    def __init__(self, total: int = 1 << 32) -> None:
        self.total = total
        self.allocated = 0
        self.peak = 0
        self.graphs: list[HostGraph] = []
        self._recording: HostGraph | None = None
        self.library = host_kernels.host_library()

    def activate(self) -> None: ...

    def allocate(self, nbytes: int) -> HostBuffer:
        assert self._recording is None, "memory is never reserved while a graph is captured"
        if self.allocated + nbytes > self.total:
            raise OutOfDeviceMemory(f"{nbytes} bytes asked for, {self.total - self.allocated} left")
        return HostBuffer(self, nbytes)

    def do(self, call: Callable[[], object]) -> None:
        """Do something on the stream, or record it."""
        if self._recording is not None:
            self._recording.calls.append(call)
        else:
            call()

    def upload(self, array: NDArray[Any], pointer: int) -> None:
        assert array.flags.c_contiguous
        assert self._recording is None, "an upload waits, which a captured stream cannot"
        at(pointer, array.shape, array.dtype)[...] = array

    def download(self, pointer: int, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        assert self._recording is None, "a download waits, which a captured stream cannot"
        array[...] = at(pointer, array.shape, array.dtype)

    def launch(self, kernel: str, count: int, *arguments: np.generic) -> None:
        assert count > 0
        self.do(lambda: host_kernels.call(kernel, *arguments))

    @contextmanager
    def capture(self) -> Iterator[HostGraph]:
        graph = HostGraph()
        self._recording = graph
        try:
            yield graph
        finally:
            self._recording = None
        self.graphs.append(graph)

    def synchronise(self) -> None:
        assert self._recording is None, "a captured stream cannot be waited for"

    def memory(self) -> tuple[int, int]:
        return self.total - self.allocated, self.total

    def view(self, array: Any) -> ArrayView:
        try:
            seen = np.from_dlpack(array)
        except Exception as error:
            raise BackendError(f"got {type(array).__name__}, expected an array: {error}") from error
        if not seen.flags.c_contiguous:
            raise BackendError("expected a C-contiguous array: copy it first")
        return ArrayView(seen.ctypes.data, seen.shape, seen.dtype, seen)

    def export(self, buffer: Any, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        values = at(buffer.pointer, shape, dtype).copy()
        buffer.close()
        return values


def at(pointer: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """The array at an address."""
    import ctypes

    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * nbytes).from_address(pointer)
    return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)


class HostNetworks:
    """The networks of a backend on the CPU, on a `HostDevice`'s memory.

    Parameters
    ----------
    device : HostDevice
        Where the arrays are.
    bundle : Bundle
        For the shapes.
    backend : Backend
        Computes.
    max_batch : int
        Largest batch of one call.
    weights, scratch : int
        Bytes it says it holds, and needs per image.
    """

    def __init__(
        self,
        device: HostDevice,
        bundle: Bundle,
        backend: Backend,
        max_batch: int = 32,
        capturable: bool = True,
        weights: int = 1 << 20,
        scratch: int = 1 << 16,
    ) -> None:
        self.device = device
        self.backend = backend
        self.max_batch = max_batch
        self.capturable = capturable
        self.weights, self.scratch = weights, scratch
        self.layout = Layout.of(bundle)
        self.calls: list[tuple[str, int]] = []
        self.prepared: list[int] = []
        self.closed = False

    def device_bytes(self, batch: int) -> int:
        return self.weights + batch * self.scratch

    def prepare(self, batch: int) -> None:
        assert 1 <= batch <= self.max_batch
        self.prepared.append(batch)

    def enqueue(self, network: str, inputs: Mapping[str, int], output: int) -> None:
        assert tuple(inputs) == TENSORS[network][:-1]
        batch = self.prepared[-1]
        self.device.do(lambda: self._run(network, batch, dict(inputs), output))

    def _run(self, network: str, batch: int, inputs: dict[str, int], output: int) -> None:
        self.calls.append((network, batch))
        shapes = self.layout.arrays(batch)
        given = {name: at(pointer, *shapes[name]).copy() for name, pointer in inputs.items()}
        if network == "encoder":
            result, name = self.backend.encode(given["image"]), "answer"
        elif network == "denoiser":
            result = self.backend.flip_probability(given["code"], int(given["t"][0]))
            name = "answer"
        else:
            result, name = self.backend.decode(given["code"]), "decoded"
        at(output, *shapes[name])[...] = result

    def describe(self) -> dict[str, str]:
        return {"library": "host"}

    def close(self) -> None:
        self.closed = True
