"""The kernels of ``loop.cu``: what they are called with, and their compiled code for a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Settings of a run and coefficients of one reverse step, laid out as the structs of loop.cu.
SETTINGS_DTYPE = np.dtype(
    [
        ("seed_low", np.uint32),
        ("seed_high", np.uint32),
        ("forward_step", np.uint32),
        ("sample_code", np.uint32),
        ("keep", np.float32),
        ("floor", np.float32),
        ("flip_threshold", np.float32),
        ("kept", np.float32),
    ]
)
STEP_DTYPE = np.dtype(
    [
        ("timestep", np.uint32),
        ("alpha", np.float32),
        ("alpha_rest", np.float32),
        ("abar", np.float32),
        ("abar_rest", np.float32),
    ]
)

# The state of a bit, one byte: the image's own bit, whether a step wanted to flip it, the bit now.
OWN, MASK, CURRENT = 1, 2, 4

# The maps that the kernel `difference` makes, by their name in `anomaly.anomaly_map`.
KINDS = {"squared": 0, "absolute": 1, "signed": 2, "change": 3}

_Pointer = np.uint64
_Count = np.int32

# Types of the arguments of each kernel, in their order; loop.cu names them.
SIGNATURES: dict[str, tuple[type[np.generic], ...]] = {
    "begin": (*[_Pointer] * 8, *[_Count] * 2),
    "advance": (_Pointer,) * 3,
    "step": (*[_Pointer] * 8, *[_Count] * 2),
    "finish": (*[_Pointer] * 5, *[_Count] * 2),
    "own_code": (*[_Pointer] * 2, *[_Count] * 2),
    "difference": (_Count, *[_Pointer] * 6, *[_Count] * 3),
    "median": (*[_Pointer] * 2, *[_Count] * 3),
    "flip_mean": (*[_Pointer] * 3, *[_Count] * 3),
    "blank": (*[_Pointer] * 2, *[_Count] * 2),
}

# Compute capabilities that have a cubin, each with the oldest CUDA version whose drivers load it:
# a cubin needs a driver of its compiler's major version.
CUBINS = {
    (7, 5): (12, 0),
    (8, 0): (12, 0),
    (8, 6): (12, 0),
    (8, 7): (12, 0),
    (8, 9): (12, 0),
    (9, 0): (12, 0),
    (10, 0): (13, 0),
    (10, 3): (13, 0),
    (11, 0): (13, 0),
    (12, 0): (13, 0),
    (12, 1): (13, 0),
}
PTX = "loop.ptx"
_FOLDER = Path(__file__).parent


def cubin_name(compute_capability: tuple[int, int]) -> str:
    """Return the name of the file with the machine code for one compute capability."""
    major, minor = compute_capability
    return f"loop_sm_{major}{minor}.cubin"


def load_image(
    compute_capability: tuple[int, int], driver_version: tuple[int, int] | None = None
) -> bytes:
    """Return the compiled kernels for a GPU.

    Machine code where there is some for exactly this compute capability, otherwise PTX, which the
    driver compiles. The arithmetic is the same in both.

    Parameters
    ----------
    compute_capability : tuple of int
        Major and minor, for example ``(8, 9)``.
    driver_version : tuple of int, optional
        CUDA version of the driver, for example ``(12, 8)``: PTX is returned to one too old for the
        machine code. None trusts that it is new enough.

    Returns
    -------
    bytes
        A cubin, which is an ELF file, or PTX, ended by a zero byte as the driver expects it. The
        PTX is for compute capability 7.5 and up and drivers of CUDA 12.5 and up.
    """
    oldest = CUBINS.get(compute_capability)
    if oldest is None or (driver_version is not None and driver_version < oldest):
        return (_FOLDER / PTX).read_bytes() + b"\0"
    return (_FOLDER / cubin_name(compute_capability)).read_bytes()
