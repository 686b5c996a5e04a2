"""The kernels of ``loop.cu`` as plain functions of this machine: the same source, by g++."""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from berdiff.runtime.cuda import kernels

SOURCE = Path(kernels.__file__).with_name("loop.cu")
# Each operation rounded by itself, as on the GPU.
OPTIONS = ("-x", "c++", "-O2", "-ffp-contract=off")
_FOLDER = tempfile.TemporaryDirectory(prefix="berdiff-kernels-")


def build(source: Path, library: Path) -> ctypes.CDLL:
    """Compile one file and load it; skip the test where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels with")
    command = ["g++", *OPTIONS, "-fPIC", "-shared", str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@functools.cache
def host_library() -> ctypes.CDLL:
    """Every kernel as a function of the same name and arguments, which runs all elements."""
    library = build(SOURCE, Path(_FOLDER.name, "loop.so"))
    c_types = {np.uint64: ctypes.c_uint64, np.int32: ctypes.c_int32}
    for name, types in kernels.SIGNATURES.items():
        function = getattr(library, name)
        function.restype = None
        function.argtypes = [c_types[type_] for type_ in types]
    return library


def call(name: str, *arguments: np.generic) -> None:
    """Run a kernel; pointers are addresses of this process."""
    expected = kernels.SIGNATURES[name]
    got = tuple(type(argument) for argument in arguments)
    assert got == expected, f"{name} takes {expected}, got {got}"
    getattr(host_library(), name)(*(argument.item() for argument in arguments))
