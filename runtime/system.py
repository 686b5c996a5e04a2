"""What this machine can run, and what it lacks for the rest. Needs no GPU and no optional library.

What each backend can use, the backend itself says; this adds what stands in the way and the command
that removes it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .backends import available, gpu_obstacle
from .backends.onnxruntime_session import load
from .engines.library import TENSORRT
from .engines.options import RTX_TARGETS
from .environment import machine, software
from .nvidia import Driver, Jetson, driver, has_nvidia_hardware, jetson, load_driver

# ONNX Runtime's own wheels have no kernels for a Jetson; docs/jetson.md says which index has some.
JETSON_WHEEL = 'pip install onnxruntime-gpu --index-url "$JETSON_INDEX"'


@dataclass(frozen=True)
class Missing:
    """Something a backend needs and this machine lacks.

    Attributes
    ----------
    what : str
        What it is.
    command : str or None
        Command that gets it; None where no command can.
    """

    what: str
    command: str | None = None


@dataclass(frozen=True)
class BackendState:
    """One backend on this machine.

    Attributes
    ----------
    devices : tuple of str
        Devices it can use now.
    gpu_obstacle : str or None
        Why it can use no GPU here, in its own words.
    missing : tuple of Missing
        What stands between it and the GPU; empty where it uses one.
    """

    devices: tuple[str, ...]
    gpu_obstacle: str | None
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class System:
    """Everything `berdiff info --system` shows.

    Attributes
    ----------
    software : dict of str to str
        Versions of what is installed.
    machine : dict of str to str
        Operating system, processors, memory.
    driver : Driver
        NVIDIA's driver and the GPUs.
    jetson : Jetson or None
        Board and release, on a Jetson.
    onnxruntime_providers : tuple of str
        Execution providers of the installed ONNX Runtime.
    system_tensorrt : str or None
        Version of a TensorRT installed for the whole machine, as JetPack does it.
    backends : dict of str to BackendState
        By name.
    """

    software: dict[str, str]
    machine: dict[str, str]
    driver: Driver
    jetson: Jetson | None
    onnxruntime_providers: tuple[str, ...]
    system_tensorrt: str | None
    backends: dict[str, BackendState]


@dataclass(frozen=True)
class _Facts:
    """What the advice depends on."""

    driver: Driver
    jetson: Jetson | None
    hardware: bool
    software: dict[str, str]
    providers: tuple[str, ...]
    system_tensorrt: str | None

    def has(self, *names: str) -> bool:
        return all(name in self.software for name in names)

    @property
    def cuda_major(self) -> int:
        """Major version of CUDA that the driver runs; 0 without a driver."""
        return int((self.driver.cuda or "0").partition(".")[0])


def system(root: Path = Path("/"), load: Callable[[], Any] = load_driver) -> System:
    """Look at this machine.

    Parameters
    ----------
    root : Path
        Where the file system starts.
    load : callable
        Returns the library of NVIDIA's driver; see `berdiff.runtime.nvidia.load_driver`.
    """
    installed = software()
    if "tensorrt" not in installed and importlib.util.find_spec("tensorrt") is not None:
        installed["tensorrt"] = _version_of_tensorrt()
    facts = _Facts(
        driver=driver(root, load),
        jetson=jetson(root),
        hardware=has_nvidia_hardware(root),
        software=installed,
        providers=_providers(),
        system_tensorrt=_system_tensorrt(root),
    )
    backends = {}
    for name, found in available().items():
        if any(device.startswith("cuda") for device in found.devices):
            backends[name] = BackendState(found.devices, None, ())
        else:
            missing = tuple(_missing(name, facts))
            backends[name] = BackendState(found.devices, gpu_obstacle(name), missing)
    return System(
        software=installed,
        machine={**machine(), **_memory(root)},
        driver=facts.driver,
        jetson=facts.jetson,
        onnxruntime_providers=facts.providers,
        system_tensorrt=facts.system_tensorrt,
        backends=backends,
    )


def _missing(name: str, facts: _Facts) -> Iterator[Missing]:
    """What a backend lacks for the GPU, the most basic first."""
    if name not in _LIBRARY:
        return
    if not facts.driver.gpus:
        yield _missing_gpu(facts)
    yield from _LIBRARY[name](facts)
    yield from _missing_cuda(facts)


def _missing_gpu(facts: _Facts) -> Missing:
    problem = facts.driver.problem
    if facts.driver.cuda is not None:
        return Missing(f"a GPU that can be used: {problem}")
    if facts.jetson is not None:
        return Missing(f"JetPack's driver: {problem}", "sudo apt install nvidia-jetpack")
    if facts.driver.version is not None:
        return Missing(
            f"access to the GPU: the kernel has NVIDIA's driver {facts.driver.version}, but "
            f"{problem}. A container must be started with its GPUs, for example",
            "docker run --gpus all ...",
        )
    if facts.hardware:
        return Missing("NVIDIA's driver; on Ubuntu it comes with", "sudo ubuntu-drivers install")
    return Missing("an NVIDIA GPU")


def _missing_cuda(facts: _Facts) -> Iterator[Missing]:
    """The libraries the loop on the GPU uses, which must fit the driver."""
    old = 0 < facts.cuda_major < 13
    bound = " 'cuda-bindings<13'" if old else ""
    if not facts.has("cuda-core", "cuda-bindings"):
        yield Missing("cuda-core and cuda-bindings", f"pip install 'berdiff[cuda]'{bound}")
    elif old and int(facts.software["cuda-bindings"].partition(".")[0]) > facts.cuda_major:
        yield Missing(
            f"cuda-bindings for this driver, which runs CUDA {facts.driver.cuda}; installed is "
            f"{facts.software['cuda-bindings']}",
            "pip install 'cuda-bindings<13'",
        )


def _missing_onnxruntime(facts: _Facts) -> Iterator[Missing]:
    if "CUDAExecutionProvider" in facts.providers:
        return
    if not facts.driver.gpus:
        if not facts.providers:
            yield Missing("ONNX Runtime", "pip install 'berdiff[cpu]'")
        return
    install = "pip install 'berdiff[gpu]'"
    if facts.jetson is not None:
        install = JETSON_WHEEL
    if facts.has("onnxruntime"):
        # Both provide one module, so that the one must go before the other comes.
        install = f"pip uninstall --yes onnxruntime && {install}"
    yield Missing("ONNX Runtime with its CUDA provider", install)


def _missing_tensorrt(facts: _Facts) -> Iterator[Missing]:
    if facts.has("tensorrt"):
        return
    if facts.system_tensorrt is not None:
        yield Missing(
            f"sight of the TensorRT {facts.system_tensorrt} that is installed for the whole "
            f"machine: this environment of Python {sys.version_info[0]}.{sys.version_info[1]} "
            "does not see it. Make one that does",
            "python3 -m venv --system-site-packages berdiff-env",
        )
    elif facts.jetson is not None:
        yield Missing("TensorRT", "sudo apt install python3-libnvinfer")
    else:
        yield Missing("TensorRT", f"pip install 'berdiff[{TENSORRT.extra}]'")


def _missing_rtx(facts: _Facts) -> Iterator[Missing]:
    unknown = [gpu for gpu in facts.driver.gpus if gpu.architecture not in RTX_TARGETS]
    if unknown and len(unknown) == len(facts.driver.gpus):
        yield Missing(
            f"a GPU that TensorRT for RTX knows: {unknown[0].name} is {unknown[0].architecture}; "
            "use the backend 'tensorrt' on it"
        )
    elif not facts.has("tensorrt-rtx"):
        yield Missing("TensorRT for RTX", "pip install 'berdiff[rtx]'")


_LIBRARY: dict[str, Callable[[_Facts], Iterator[Missing]]] = {
    "onnxruntime": _missing_onnxruntime,
    "tensorrt": _missing_tensorrt,
    "tensorrt-rtx": _missing_rtx,
}


def _providers() -> tuple[str, ...]:
    try:
        return tuple(load().get_available_providers())
    except Exception:  # not installed, or not to be loaded: the backend says which
        return ()


def _version_of_tensorrt() -> str:
    try:
        return TENSORRT.version
    except Exception as error:  # whatever its loader raises
        return f"unusable: {error}"


def _system_tensorrt(root: Path) -> str | None:
    """Version of the Python package or of the library that the system's packages brought."""
    for info in root.glob("usr/lib/python3*/dist-packages/tensorrt-*.dist-info"):
        return info.name.removeprefix("tensorrt-").removesuffix(".dist-info")
    for library in sorted(root.glob("usr/lib/*-linux-gnu*/libnvinfer.so.*.*")):
        return library.name.removeprefix("libnvinfer.so.")
    return None


def _memory(root: Path) -> dict[str, str]:
    try:
        first = (root / "proc/meminfo").read_text().splitlines()[0]
        return {"memory": f"{int(first.split()[1]) / (1 << 20):.1f} GiB"}
    except (OSError, IndexError, ValueError):
        return {}
