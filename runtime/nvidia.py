"""What NVIDIA's driver and files tell of this machine, asked without any other library."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER_LIBRARY = "libcuda.so.1"

# Numbers of `CUdevice_attribute`.
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18

# First numbers of a Jetson Linux release -> JetPack. 36.4 has two: 36.4.0 is 6.1, later ones 6.2.
_JETPACK = {
    "36.3": "6.0",
    "36.4": "6.2",
    "36.5": "6.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2": "7.2",
}


@dataclass(frozen=True)
class GpuInfo:
    """One GPU.

    Attributes
    ----------
    device : str
        As backends name it: "cuda:0".
    name : str
        Product name.
    architecture : str
        Compute capability as compilers write it: "sm_89".
    memory_mib : int
        Memory in MiB; on a Jetson it is the host's too.
    unified_memory : bool
        Whether GPU and host share one memory.
    """

    device: str
    name: str
    architecture: str
    memory_mib: int
    unified_memory: bool


@dataclass(frozen=True)
class Driver:
    """The driver and the GPUs it shows.

    Attributes
    ----------
    version : str or None
        Of the kernel module, for example "580.65.06"; None where it does not tell.
    cuda : str or None
        Newest CUDA it can run, for example "13.0"; None where there is no driver.
    gpus : tuple of GpuInfo
        In the driver's order.
    problem : str or None
        Why there are none.
    """

    version: str | None
    cuda: str | None
    gpus: tuple[GpuInfo, ...]
    problem: str | None


@dataclass(frozen=True)
class Jetson:
    """An NVIDIA Jetson.

    Attributes
    ----------
    model : str
        Of the board, for example "NVIDIA Jetson AGX Orin Developer Kit".
    linux : str or None
        Release of Jetson Linux, for example "36.4.3".
    jetpack : str or None
        JetPack it belongs to, where that is known.
    """

    model: str
    linux: str | None
    jetpack: str | None


class _DriverError(Exception):
    """A call of the driver failed."""


def load_driver() -> Any:
    """Load the driver's library; raises `OSError` where there is none."""
    return ctypes.CDLL(DRIVER_LIBRARY)


def driver(root: Path = Path("/"), load: Callable[[], Any] = load_driver) -> Driver:
    """Ask the driver what it is and which GPUs it shows.

    Parameters
    ----------
    root : Path
        Where the file system starts.
    load : callable
        Returns the driver's library; see `load_driver`.
    """
    version = _module_version(root)
    try:
        library = load()
    except OSError as error:
        return Driver(version, None, (), f"the driver's library cannot be loaded: {error}")
    cuda = None
    try:
        number = _number(library, "cuDriverGetVersion")
        cuda = f"{number // 1000}.{number % 1000 // 10}"
        _call(library, "cuInit", 0)
        count = _number(library, "cuDeviceGetCount")
        gpus = tuple(_gpu(library, index) for index in range(count))
    except _DriverError as error:
        return Driver(version, cuda, (), str(error))
    return Driver(version, cuda, gpus, None if gpus else "the driver shows no GPU")


def _gpu(library: Any, index: int) -> GpuInfo:
    handle = _number(library, "cuDeviceGet", index)
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGetName", name, len(name), handle)
    memory = ctypes.c_size_t()
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    major, minor, integrated = (
        _number(library, "cuDeviceGetAttribute", attribute, handle)
        for attribute in (_MAJOR, _MINOR, _INTEGRATED)
    )
    return GpuInfo(
        device=f"cuda:{index}",
        name=name.value.decode(errors="replace"),
        architecture=f"sm_{major}{minor}",
        memory_mib=memory.value >> 20,
        unified_memory=bool(integrated),
    )


def _number(library: Any, name: str, *arguments: Any) -> int:
    """Result of a call whose first argument is where to put an ``int``."""
    value = ctypes.c_int()
    _call(library, name, ctypes.byref(value), *arguments)
    return value.value


def _call(library: Any, name: str, *arguments: Any) -> None:
    status = getattr(library, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(text))
        meaning = (text.value or b"an unknown error").decode()
        raise _DriverError(f"{name} of the driver answers {meaning} ({status})")


def _module_version(root: Path) -> str | None:
    """Version of the loaded kernel module."""
    version = _text(root / "sys/module/nvidia/version")
    if version:
        return version
    match = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", _text(root / "proc/driver/nvidia/version") or "")
    return match[0] if match else None


def has_nvidia_hardware(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA display controller sits on the PCI bus, driver or not."""
    return any(
        _text(device / "vendor") == "0x10de" and (_text(device / "class") or "").startswith("0x03")
        for device in (root / "sys/bus/pci/devices").glob("*")
    )


def jetson(root: Path = Path("/")) -> Jetson | None:
    """Tell which Jetson this is; None where it is none."""
    release = _text(root / "etc/nv_tegra_release")
    model = _text(root / "proc/device-tree/model") or ""
    if release is None and "jetson" not in model.lower():
        return None
    match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release or "")
    linux = f"{match[1]}.{match[2]}" if match else None
    jetpack = "6.1" if linux == "36.4.0" else _JETPACK.get(".".join((linux or "").split(".")[:2]))
    return Jetson(model or "unknown", linux, jetpack)


def _text(path: Path) -> str | None:
    """Content of a small file of the system; None where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().strip("\0")
    except OSError:
        return None
