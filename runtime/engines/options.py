"""What an engine is built for: batch sizes, memory, effort, GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import BackendError
from .library import TENSORRT_RTX, Library

HardwareCompatibility = Literal["none", "same-cc", "ampere+"]

# What TensorRT for RTX can build for, on any machine.
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
# Its engine for no GPU in particular: all of the above but Turing.
PORTABLE = "ampere+"
LEVELS = range(6)

_UNITS = {"": 20, "b": 0, "k": 10, "m": 20, "g": 30}


@dataclass(frozen=True)
class BuildOptions:
    """Choices that make one engine differ from another of the same network.

    Attributes
    ----------
    dynamic_batch : tuple of int
        Smallest, usual and largest batch.
    workspace : int or None
        Most scratch memory in bytes that a layer may use; None: all of the GPU's.
    builder_optimization_level : int or None
        0 to 5, more is slower to build; None: the library's default.
    hardware_compatibility : {"none", "same-cc", "ampere+"}
        Which other GPUs a TensorRT engine runs on, besides its own.
    """

    dynamic_batch: tuple[int, int, int]
    workspace: int | None = None
    builder_optimization_level: int | None = None
    hardware_compatibility: HardwareCompatibility = "none"

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises
        ------
        ValueError
            Naming the value.
        """
        smallest, usual, largest = self.dynamic_batch
        if not 1 <= smallest <= usual <= largest:
            raise ValueError(
                "dynamic batch must be MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, "
                f"got {self.dynamic_batch}"
            )
        if self.workspace is not None and self.workspace < 1:
            raise ValueError(f"workspace must be positive, got {self.workspace}")
        if self.builder_optimization_level not in (None, *LEVELS):
            raise ValueError(
                f"builder optimisation level must lie between {LEVELS[0]} and {LEVELS[-1]}, "
                f"got {self.builder_optimization_level}"
            )
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            raise ValueError(
                f"hardware compatibility must be one of "
                f"{', '.join(get_args(HardwareCompatibility))}, got {self.hardware_compatibility!r}"
            )


def parse_bytes(text: str) -> int:
    """Read an amount of memory: "2GiB", "512MiB", "2G", or, as trtexec has it, a number of MiB.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmg])(?:i?b)?|(b))?", text.strip().lower())
    amount = 0
    if match:
        amount = int(float(match[1]) * 2 ** _UNITS[match[2] or match[3] or ""])
    if amount < 1:
        raise ValueError(f"expected an amount of memory like 2GiB, 512MiB or 512, got {text!r}")
    return amount


def check_target(library: Library, target: str | None) -> None:
    """Refuse a target the library cannot build for.

    Parameters
    ----------
    library : Library
        The library.
    target : str or None
        As "sm_89"; None is the library's default: the portable engine of TensorRT for RTX, the
        GPU of this machine for TensorRT.

    Raises
    ------
    BackendError
        With the reason, and what to do instead.
    """
    if target is None or (library is TENSORRT_RTX and target in (*RTX_TARGETS, PORTABLE)):
        return
    if library is not TENSORRT_RTX:
        raise BackendError(
            f"{library.name} builds by timing kernels on the GPU that will run them: --target "
            f"{target} cannot be built elsewhere. Copy the bundle to that machine and run there: "
            f"berdiff build BUNDLE --engine {library.name}"
        )
    advice = "Expected one of these, as sm_89"
    if re.fullmatch(r"sm_\d{2,3}", target):
        advice = (
            "It has no kernels for that GPU (Jetson Orin is sm_87, H100 and H200 are sm_90, "
            "Jetson Thor is sm_110). Build on that machine with: "
            "berdiff build BUNDLE --engine tensorrt"
        )
    raise BackendError(
        f"tensorrt-rtx builds for {', '.join(RTX_TARGETS)} (default: {PORTABLE}, one engine for "
        f"all of them but sm_75), not for {target!r}. {advice}"
    )


def check_options(
    library: Library, options: BuildOptions, timing_cache: Path | None = None
) -> None:
    """Refuse options that cannot be used with a bundle, or that a library would ignore.

    Raises
    ------
    BackendError
        Naming the option as it is on the command line.
    """
    smallest, usual, largest = options.dynamic_batch
    if smallest != 1:
        raise BackendError(
            f"got batches from {smallest}, expected from 1: the last batch of a scan may hold a "
            f"single slice; give --dynamic-batch 1,{usual},{largest}"
        )
    if library is not TENSORRT_RTX:
        return
    for name, given, reason in (
        ("--timing-cache", timing_cache is not None, "it times nothing while it builds"),
        (
            "--builder-optimization-level",
            options.builder_optimization_level is not None,
            "its engines are the same at every level",
        ),
        (
            "--hardware-compatibility",
            options.hardware_compatibility != "none",
            f"--target says what it builds for, and without one the engine is for {PORTABLE}",
        ),
    ):
        if given:
            raise BackendError(f"{name} does nothing with {library.name}: {reason}")
