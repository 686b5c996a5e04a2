"""The compiled kernels: up to date, for the right GPUs, free of what rounds otherwise."""

import re
import struct
from pathlib import Path

import host_kernels
import numpy as np
import ptx_emulator
import pytest

from berdiff.runtime.cuda import compile_kernels, kernels
from berdiff.runtime.errors import BerdiffError, MissingDependency

FOLDER = Path(kernels.__file__).parent
PTX = (FOLDER / kernels.PTX).read_text()
PTX_TYPES = {np.uint64: "u64", np.int32: "u32"}


@pytest.mark.slow
def test_what_is_shipped_comes_from_the_source() -> None:
    try:
        compilers = compile_kernels.load_compilers()
    except BerdiffError as error:
        pytest.skip(str(error))
    compiled = dict(compile_kernels.compile_kernels(compilers))
    files = [file for file in FOLDER.iterdir() if file.suffix in {".ptx", ".cubin"}]
    shipped = {file.name: file.read_bytes() for file in files}
    assert sorted(compiled) == sorted(shipped)
    stale = [name for name, content in compiled.items() if shipped[name] != content]
    assert not stale, "run: python -m berdiff.runtime.cuda.compile_kernels"


def test_a_source_that_does_not_compile_says_where() -> None:
    try:
        compilers = compile_kernels.load_compilers()
    except BerdiffError as error:
        pytest.skip(str(error))
    with pytest.raises(BerdiffError, match=r"compute_75:\nloop\.cu\(2\): error"):
        compilers[12].compile(b"\nnonsense;", "compute_75")


def test_another_compiler_is_refused() -> None:
    other = compile_kernels.Compiler("numpy", "0.1", 12)
    with pytest.raises(BerdiffError, match=r"compiled with numpy 0\.1, .*pip install numpy==0"):
        compile_kernels.Nvrtc(other)
    with pytest.raises(MissingDependency, match="no-such-compiler"):
        compile_kernels.Nvrtc(compile_kernels.Compiler("no-such-compiler", "1", 12))


def test_ptx_is_for_every_gpu_from_turing_on() -> None:
    assert re.findall(r"^\.(?:version|target) .*$", PTX, re.MULTILINE) == [
        ".version 8.5",
        ".target sm_75",
    ]


def test_ptx_rounds_every_operation_to_nearest() -> None:
    # Without `.rn` the driver may contract a product and a sum.
    arithmetic = r"\b(?:add|sub|mul|div|fma|mad|rcp|sqrt|rsqrt|ex2|lg2|sin|cos|tanh)[\w.]*\.f\d+"
    assert set(re.findall(arithmetic, PTX)) == {
        "add.rn.f32",
        "sub.rn.f32",
        "mul.rn.f32",
        "div.rn.f32",
    }
    assert not re.search(r"\.ftz|\.sat|\.approx|\.full|\bcall\b", PTX)


def test_ptx_keeps_everything_in_registers() -> None:
    assert not re.search(r"\.local|\.shared|__local_depot", PTX)


def test_ptx_takes_the_arguments_that_are_promised() -> None:
    assert {name: entry.parameters for name, entry in ptx_emulator.parse(PTX).items()} == {
        name: tuple(PTX_TYPES[type_] for type_ in types)
        for name, types in kernels.SIGNATURES.items()
    }


@pytest.mark.parametrize("instruction", ["fma.rn.f32", "div.full.f32", "add.ftz.f32", "mul.f32"])
def test_the_emulator_refuses_what_may_round_otherwise(instruction: str) -> None:
    assert ptx_emulator.operation_of("mul.rn.f32")
    with pytest.raises(NotImplementedError, match=re.escape(instruction)):
        ptx_emulator.operation_of(instruction)


@pytest.mark.parametrize(("capability", "driver"), kernels.CUBINS.items())
def test_cubins_are_for_the_gpu_in_their_name(
    capability: tuple[int, int], driver: tuple[int, int]
) -> None:
    image = kernels.load_image(capability)
    magic, abi, machine, flags = struct.unpack_from("<4s 3x 2s 9x H 28x I", image)
    assert magic == b"\x7fELF"
    assert machine == 190  # CUDA
    # CUDA 13 changed the format; drivers of CUDA 12 do not know the new one.
    assert abi == {12: b"\x33\x07", 13: b"\x41\x08"}[driver[0]]
    architecture = flags & 0xFF if driver[0] == 12 else flags >> 8 & 0xFF
    assert architecture == 10 * capability[0] + capability[1]
    for name in kernels.SIGNATURES:
        assert f".text.{name}\0".encode() in image


def test_ptx_is_loaded_where_no_cubin_fits() -> None:
    ptx = PTX.encode() + b"\0"
    assert kernels.load_image((13, 0)) == ptx
    assert kernels.load_image((12, 0), driver_version=(12, 9)) == ptx
    assert kernels.load_image((12, 0), driver_version=(13, 0)) == kernels.load_image((12, 0)) != ptx
    assert kernels.load_image((8, 7), driver_version=(12, 6)) == kernels.load_image((8, 7)) != ptx


@pytest.mark.parametrize(
    ("struct_name", "dtype"),
    [("Settings", kernels.SETTINGS_DTYPE), ("Step", kernels.STEP_DTYPE)],
)
def test_records_are_laid_out_as_the_structs(
    struct_name: str, dtype: np.dtype[np.void], tmp_path: Path
) -> None:
    assert dtype.names is not None
    fields = "".join(
        f"(int)__builtin_offsetof({struct_name}, {name}), (int)sizeof({struct_name}::{name}), "
        for name in dtype.names
    )
    probe = tmp_path / "probe.cpp"
    probe.write_text(
        f'#include "{host_kernels.SOURCE}"\n'
        f'extern "C" {{ int layout[] = {{(int)sizeof({struct_name}), {fields}}}; }}\n'
    )
    library = host_kernels.build(probe, tmp_path / "probe.so")
    expected = [dtype.itemsize]
    for name in dtype.names:
        type_, offset = dtype.fields[name][:2]  # type: ignore[index]
        expected += [offset, type_.itemsize]
    layout = (host_kernels.ctypes.c_int * len(expected)).in_dll(library, "layout")
    assert list(layout) == expected


def test_codes_of_states_and_maps_are_those_of_the_source() -> None:
    source = host_kernels.SOURCE.read_text()
    constants = dict(re.findall(r"\b([A-Z]+) = (\d+)", source))
    for name in ("OWN", "MASK", "CURRENT"):
        assert int(constants[name]) == getattr(kernels, name)
    for name, value in kernels.KINDS.items():
        assert int(constants[name.upper()]) == value
