"""Compile ``loop.cu`` into the PTX and cubins beside it: ``python -m`` this module.

Done when loop.cu changes, not at installation and never at run time. It needs no GPU, but the two
NVRTC wheels of the extra ``dev``, in exactly these versions: the files must come out the same
everywhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import BerdiffError, MissingDependency
from .kernels import CUBINS, PTX, cubin_name

SOURCE = Path(__file__).with_name("loop.cu")

# loop.cu says itself where it rounds; these say it again for what it may forget.
OPTIONS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--ftz=false")


@dataclass(frozen=True)
class Compiler:
    """One wheel with NVRTC.

    Attributes
    ----------
    package : str
        Name of the distribution.
    version : str
        The version to compile with.
    cuda : int
        Major version of CUDA.
    """

    package: str
    version: str
    cuda: int


# CUDA 12 for every GPU that its release knows: its cubins load on drivers of CUDA 12 and 13. The
# PTX has the instruction set version of its compiler, 8.5, which drivers know from CUDA 12.5 on.
CUDA_12 = Compiler("nvidia-cuda-nvrtc-cu12", "12.6.85", 12)
CUDA_13 = Compiler("nvidia-cuda-nvrtc", "13.0.88", 13)


def load_compilers() -> dict[int, Nvrtc]:
    """Load the compilers, by major version of CUDA.

    Raises
    ------
    MissingDependency
        If a compiler is not installed.
    BerdiffError
        If a compiler has another version.
    """
    return {compiler.cuda: Nvrtc(compiler) for compiler in (CUDA_12, CUDA_13)}


def compile_kernels(compilers: dict[int, Nvrtc]) -> Iterator[tuple[str, bytes]]:
    """Compile ``loop.cu`` for every target.

    Yields
    ------
    str
        Name of the file.
    bytes
        What belongs in it.

    Raises
    ------
    BerdiffError
        If a compiler does not accept the source.
    """
    source = SOURCE.read_bytes()
    yield PTX, compilers[12].compile(source, "compute_75")
    for capability, (cuda, _) in CUBINS.items():
        architecture = "sm_{}{}".format(*capability)
        yield cubin_name(capability), compilers[cuda].compile(source, architecture)


class Nvrtc:
    """NVIDIA's runtime compiler, loaded from its wheel."""

    def __init__(self, compiler: Compiler) -> None:
        try:
            distribution = metadata.distribution(compiler.package)
        except metadata.PackageNotFoundError as error:
            raise MissingDependency(compiler.package, "dev") from error
        if distribution.version != compiler.version:
            raise BerdiffError(
                f"the kernels are compiled with {compiler.package} {compiler.version}, but "
                f"{distribution.version} is installed: "
                f"pip install {compiler.package}=={compiler.version}"
            )
        files = {file.name: Path(str(file.locate())) for file in distribution.files or ()}
        # It looks for its built-in functions by name only, so they are loaded before.
        (builtins,) = (path for name, path in files.items() if "builtins.so" in name)
        ctypes.CDLL(str(builtins))
        self._library = ctypes.CDLL(str(files[f"libnvrtc.so.{compiler.cuda}"]))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, source: bytes, architecture: str) -> bytes:
        """Return PTX for a ``compute_NN``, a cubin for an ``sm_NN``."""
        options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
        program = ctypes.c_void_p()
        # No path: the file's name is all that could get into the result.
        name = SOURCE.name.encode()
        self._call("CreateProgram", ctypes.byref(program), source, name, 0, None, None)
        try:
            array = (ctypes.c_char_p * len(options))(*options)
            status = self._library.nvrtcCompileProgram(program, len(options), array)
            if status:
                log = self._text(program, "ProgramLog").rstrip(b"\0").decode()
                raise BerdiffError(f"{SOURCE.name} does not compile for {architecture}:\n{log}")
            if architecture.startswith("sm_"):
                return self._text(program, "CUBIN")
            return self._text(program, "PTX").rstrip(b"\0")
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{function}")(*arguments)
        if status:
            reason = self._library.nvrtcGetErrorString(status).decode()
            raise BerdiffError(f"nvrtc{function} failed: {reason}")


if __name__ == "__main__":
    for name, content in compile_kernels(load_compilers()):
        SOURCE.with_name(name).write_bytes(content)
