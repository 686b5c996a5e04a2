"""Which GPU engines are built for, or run on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..cuda.device import cuda_devices
from ..errors import BackendError, optional


@dataclass(frozen=True)
class Gpu:
    """What an engine must know about a GPU.

    Attributes
    ----------
    name : str
        Product name, as the driver tells it.
    compute_capability : tuple of int
        Major and minor.
    """

    name: str
    compute_capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """Compute capability as compilers write it: "sm_89"."""
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"


def gpu_here(device: str = "cuda:0") -> Gpu:
    """Look at a GPU of this machine and make it the one that work of this thread is done on.

    Parameters
    ----------
    device : str
        "cuda:0", "cuda:1" and so on; "cuda" is the first.

    Raises
    ------
    BackendError
        If there is no such GPU; says what there is.
    MissingDependency
        If cuda-core is not installed.
    """
    name = "cuda:0" if device == "cuda" else device
    present = cuda_devices()
    if name not in present or not re.fullmatch(r"cuda:\d+", name):
        raise BackendError(f"there is no GPU '{device}'; available are: {', '.join(present)}")
    gpu = optional("cuda.core", "cuda").Device(int(name.partition(":")[2]))
    gpu.set_current()
    major, minor = gpu.compute_capability
    return Gpu(str(gpu.name), (int(major), int(minor)))
