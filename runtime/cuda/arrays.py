"""Arrays on a device that libraries hand to each other without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import optional


class Buffer(Protocol):
    """Memory of a device.

    Attributes
    ----------
    pointer : int
        Address.
    nbytes : int
        Size in bytes.
    """

    pointer: int
    nbytes: int

    def close(self) -> None:
        """Give the memory back; waits for work that uses it."""
        ...


@dataclass(frozen=True)
class ArrayView:
    """Somebody's array on the device, by address.

    Attributes
    ----------
    pointer : int
        Address of the first element; C-contiguous.
    shape : tuple of int
        Shape.
    dtype : numpy dtype
        Type of the elements.
    owner : object
        Keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object


class DeviceArray:
    """An array on a GPU that other libraries take over without a copy.

    CuPy, PyTorch, JAX and others read it through DLPack, Numba and others through
    ``__cuda_array_interface__``. The work that fills it is done when it is handed out.

    Attributes
    ----------
    shape : tuple of int
        Shape; C-contiguous.
    dtype : numpy dtype
        Type of the elements.
    pointer : int
        Address on the device.
    """

    def __init__(self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype
        self.pointer = buffer.pointer
        self._buffer = buffer

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface; no stream to wait for."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def _strided(self) -> Any:
        core = optional("cuda.core", "cuda")
        # The array itself is the owner: its memory lives as long as any view of it.
        memory = core.Buffer.from_handle(self.pointer, self._buffer.nbytes, owner=self)
        view = optional("cuda.core.utils", "cuda").StridedMemoryView
        return view.from_buffer(memory, self.shape, dtype=self.dtype)

    def __dlpack__(self, **options: Any) -> Any:
        """Capsule of the DLPack protocol; see the array API standard."""
        return self._strided().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Kind and number of the device, as DLPack counts them."""
        kind, index = self._strided().__dlpack_device__()
        return int(kind), int(index)


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a C-contiguous array, in elements."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[-len(shape) :] if shape else ()
