"""TensorRT and TensorRT for RTX: two libraries with one interface."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from ..errors import BackendError, MissingDependency, optional


@dataclass(frozen=True)
class Library:
    """A library that builds engines from ONNX and runs them.

    Attributes
    ----------
    name : str
        As users write it.
    module : str
        As Python imports it.
    extra : str
        The extra of this distribution that brings it.
    installation : str
        Where it comes from, for those who lack it.
    """

    name: str
    module: str
    extra: str
    installation: str

    def load(self) -> ModuleType:
        """Import the library.

        Raises
        ------
        MissingDependency
            If it is not installed; says where it comes from.
        BackendError
            If it is installed and cannot be loaded.
        """
        try:
            return optional(self.module, self.extra)
        except MissingDependency as error:
            raise MissingDependency(self.module, self.extra, self.installation) from error
        except Exception as error:  # its loader raises several kinds: a library not found, ...
            raise BackendError(
                f"the Python package '{self.module}' is installed and cannot be loaded: {error}. "
                f"{self.installation}"
            ) from error

    @property
    def version(self) -> str:
        """Version of the installed library; engines run on no other."""
        return str(self.load().__version__)


TENSORRT = Library(
    "tensorrt",
    "tensorrt",
    "tensorrt",
    "Its wheels hold nothing but what fetches the libraries from NVIDIA's own package index, so "
    "the machine must reach that. On a Jetson it is part of JetPack: sudo apt install "
    "python3-libnvinfer, in an environment made with --system-site-packages.",
)
TENSORRT_RTX = Library(
    "tensorrt-rtx",
    "tensorrt_rtx",
    "rtx",
    "There are wheels for Linux on x86-64 and aarch64; no GPU is needed to build.",
)
LIBRARIES = {library.name: library for library in (TENSORRT, TENSORRT_RTX)}
