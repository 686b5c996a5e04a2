"""What `berdiff info --system` finds on machines that are made up: files, a driver, libraries."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from berdiff.cli.main import run
from berdiff.runtime import system as system_module
from berdiff.runtime.backends import Availability
from berdiff.runtime.nvidia import GpuInfo, Jetson, driver, has_nvidia_hardware, jetson
from berdiff.runtime.system import BackendState, Missing, system

H200 = ("NVIDIA H200", (9, 0), 143_771 << 20, 0)
ADA = ("NVIDIA RTX 6000 Ada Generation", (8, 9), 49_140 << 20, 0)
ORIN = ("Orin", (8, 7), 62_800 << 20, 1)

TEGRA_RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
    "GCC version:  gcc version 12.3.0\n"
)


class FakeDriver:
    """The calls of libcuda that are used, writing through the pointers they are given."""

    def __init__(self, *gpus: tuple[Any, ...], cuda: int = 13_000, init: int = 0) -> None:
        self.gpus, self.cuda, self.init = gpus, cuda, init

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.cuda
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        handle._obj.value = 40 + index  # a handle need not be the index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: int) -> int:  # noqa: N802
        assert size == 256
        name.value = self.gpus[handle - 40][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, handle: int) -> int:  # noqa: N802
        memory._obj.value = self.gpus[handle - 40][2]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: int) -> int:  # noqa: N802
        _, (major, minor), _, integrated = self.gpus[handle - 40]
        value._obj.value = {75: major, 76: minor, 18: integrated}[attribute]
        return 0

    def cuGetErrorName(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(status)
        return 0


def no_driver() -> Any:
    raise OSError("libcuda.so.1: cannot open shared object file")


def files(root: Path, **content: str) -> Path:
    """Write files below a root; two underscores in a name stand for a slash."""
    for name, text in content.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# --- the driver ----------------------------------------------------------------------------------


def test_the_driver_is_asked_for_its_gpus(tmp_path: Path) -> None:
    found = driver(tmp_path, lambda: FakeDriver(H200, ORIN, cuda=12_060))
    assert found.cuda == "12.6"
    assert found.problem is None
    assert found.gpus == (
        GpuInfo("cuda:0", "NVIDIA H200", "sm_90", 143_771, unified_memory=False),
        GpuInfo("cuda:1", "Orin", "sm_87", 62_800, unified_memory=True),
    )


def test_a_driver_that_fails_says_how(tmp_path: Path) -> None:
    found = driver(tmp_path, lambda: FakeDriver(init=100))
    assert (found.cuda, found.gpus) == ("13.0", ())
    assert found.problem == "cuInit of the driver answers CUDA_ERROR_NO_DEVICE (100)"
    assert "an unknown error (7)" in (driver(tmp_path, lambda: FakeDriver(init=7)).problem or "")
    assert driver(tmp_path, FakeDriver).problem == "the driver shows no GPU"


def test_no_driver(tmp_path: Path) -> None:
    found = driver(tmp_path, no_driver)
    assert (found.version, found.cuda, found.gpus) == (None, None, ())
    assert "cannot open shared object file" in (found.problem or "")


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ({"sys__module__nvidia__version": "580.65.06\n"}, "580.65.06"),
        ({"proc__driver__nvidia__version": OPEN_MODULE}, "580.65.06"),
        (
            {"proc__driver__nvidia__version": "NVRM version: NVIDIA UNIX x86_64  550.54  Tue\n"},
            "550.54",
        ),
        ({"proc__driver__nvidia__version": "nothing of the kind\n"}, None),
    ],
)
def test_version_of_the_kernel_module(
    tmp_path: Path, content: dict[str, str], version: str | None
) -> None:
    assert driver(files(tmp_path, **content), no_driver).version == version


# --- Jetson and PCI ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "linux", "jetpack"),
    [
        (TEGRA_RELEASE, "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.0, GCID: 1", "36.4.0", "6.1"),
        ("# R38 (release), REVISION: 4.0, GCID: 1", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0", "7.2"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", "99.1.0", None),
        ("unreadable", None, None),
    ],
)
def test_which_jetson(tmp_path: Path, release: str, linux: str | None, jetpack: str | None) -> None:
    model = "NVIDIA Jetson AGX Orin Developer Kit"
    files(tmp_path, **{"proc__device-tree__model": model + "\0", "etc__nv_tegra_release": release})
    assert jetson(tmp_path) == Jetson(model, linux, jetpack)


def test_other_boards_are_no_jetson(tmp_path: Path) -> None:
    assert jetson(tmp_path) is None
    files(tmp_path, **{"proc__device-tree__model": "Raspberry Pi 5 Model B\0"})
    assert jetson(tmp_path) is None


@pytest.mark.parametrize(
    ("vendor", "kind", "expected"),
    [
        ("0x10de\n", "0x030000\n", True),
        ("0x10de\n", "0x040300\n", False),  # the sound device of a graphics card
        ("0x1002\n", "0x030000\n", False),
    ],
)
def test_hardware_on_the_pci_bus(tmp_path: Path, vendor: str, kind: str, expected: bool) -> None:
    folder = "sys__bus__pci__devices__0000:01:00.0__"
    files(tmp_path, **{folder + "vendor": vendor, folder + "class": kind})
    assert has_nvidia_hardware(tmp_path) is expected


# --- what is missing -----------------------------------------------------------------------------

Look = Callable[..., dict[str, BackendState]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """States of three backends that cannot use a GPU, on a machine as described."""

    def states(
        *gpus: tuple[Any, ...],
        cuda: int = 13_000,
        software: tuple[str, ...] = (),
        providers: tuple[str, ...] = (),
        load: Callable[[], Any] | None = None,
        usable: str | None = None,
        **content: str,
    ) -> dict[str, BackendState]:
        found = {name: Availability((), "unused") for name in system_module._LIBRARY}
        if usable:
            found[usable] = Availability(("cuda:0",))
        installed = dict(item.split("==") for item in software)
        monkeypatch.setattr(system_module, "available", lambda: found)
        monkeypatch.setattr(system_module, "gpu_obstacle", lambda _: "it cannot")
        monkeypatch.setattr(system_module, "software", lambda: dict(installed))
        monkeypatch.setattr(system_module, "_providers", lambda: providers)
        monkeypatch.setattr(system_module.importlib.util, "find_spec", lambda _: None)
        files(tmp_path, **content)
        return system(tmp_path, load or (lambda: FakeDriver(*gpus, cuda=cuda))).backends

    return states


CUDA_13 = ("cuda-core==1.2.2", "cuda-bindings==13.5.0")
CUDA_12 = ("cuda-core==1.2.2", "cuda-bindings==12.9.10")


def commands(state: BackendState) -> list[str | None]:
    return [item.command for item in state.missing]


def test_nothing_is_missing_where_a_gpu_is_used(look: Look) -> None:
    states = look(ADA, usable="tensorrt-rtx")
    assert states["tensorrt-rtx"] == BackendState(("cuda:0",), None, ())
    assert states["tensorrt"].gpu_obstacle == "it cannot"


def test_a_bare_workstation(look: Look) -> None:
    states = look(ADA)
    both = "pip install 'berdiff[cuda]'"
    assert commands(states["onnxruntime"]) == ["pip install 'berdiff[gpu]'", both]
    assert commands(states["tensorrt"]) == ["pip install 'berdiff[tensorrt]'", both]
    assert commands(states["tensorrt-rtx"]) == ["pip install 'berdiff[rtx]'", both]


def test_everything_is_there_but_the_wrong_onnxruntime(look: Look) -> None:
    software = (*CUDA_13, "onnxruntime==1.32.0", "tensorrt==11.0.0", "tensorrt-rtx==1.7.1")
    states = look(ADA, software=software, providers=("CPUExecutionProvider",))
    assert commands(states["onnxruntime"]) == [
        "pip uninstall --yes onnxruntime && pip install 'berdiff[gpu]'"
    ]
    # What is missing then, only the backend itself can say.
    assert commands(states["tensorrt"]) == commands(states["tensorrt-rtx"]) == []


def test_an_old_driver_wants_old_bindings(look: Look) -> None:
    software = ("tensorrt==10.3.0", *CUDA_13)
    (missing,) = look(H200, cuda=12_040, software=software)["tensorrt"].missing
    assert missing.command == "pip install 'cuda-bindings<13'"
    assert "CUDA 12.4; installed is 13.5.0" in missing.what
    assert look(H200, cuda=12_040, software=(software[0], *CUDA_12))["tensorrt"].missing == ()
    bare = look(H200, cuda=12_040)["tensorrt"]
    assert commands(bare)[-1] == "pip install 'berdiff[cuda]' 'cuda-bindings<13'"


def test_tensorrt_for_rtx_does_not_know_every_gpu(look: Look) -> None:
    (missing,) = look(H200, software=(*CUDA_13, "tensorrt-rtx==1.7.1"))["tensorrt-rtx"].missing
    assert missing.command is None
    assert "NVIDIA H200 is sm_90" in missing.what
    assert "'tensorrt'" in missing.what
    # One that it knows is enough.
    assert look(H200, ADA, software=(*CUDA_13, "tensorrt-rtx==1"))["tensorrt-rtx"].missing == ()


JETSON_FILES = {
    "proc__device-tree__model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "etc__nv_tegra_release": TEGRA_RELEASE,
}


def test_a_bare_jetson(look: Look) -> None:
    states = look(ORIN, cuda=12_060, **JETSON_FILES)
    bindings = "pip install 'berdiff[cuda]' 'cuda-bindings<13'"
    assert commands(states["tensorrt"]) == ["sudo apt install python3-libnvinfer", bindings]
    assert commands(states["onnxruntime"])[0] == system_module.JETSON_WHEEL
    assert "sm_87" in states["tensorrt-rtx"].missing[0].what


def test_a_jetson_without_its_driver(look: Look) -> None:
    first = look(load=no_driver, **JETSON_FILES)["tensorrt"].missing[0]
    assert first.command == "sudo apt install nvidia-jetpack"


@pytest.mark.parametrize(
    ("file", "version"),
    [
        ("usr__lib__python3.10__dist-packages__tensorrt-10.3.0.dist-info__METADATA", "10.3.0"),
        ("usr__lib__aarch64-linux-gnu__libnvinfer.so.10.3.0", "10.3.0"),
    ],
)
def test_an_environment_that_does_not_see_the_systems_tensorrt(
    look: Look, file: str, version: str
) -> None:
    content = {**JETSON_FILES, file: ""}
    (missing,) = look(ORIN, cuda=12_060, software=CUDA_12, **content)["tensorrt"].missing
    assert f"TensorRT {version} that is installed" in missing.what
    assert missing.command == "python3 -m venv --system-site-packages berdiff-env"


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ({}, Missing("an NVIDIA GPU")),
        (
            {
                "sys__bus__pci__devices__0__vendor": "0x10de",
                "sys__bus__pci__devices__0__class": "0x030200",
            },
            Missing("NVIDIA's driver; on Ubuntu it comes with", "sudo ubuntu-drivers install"),
        ),
    ],
)
def test_no_driver_no_gpu(look: Look, content: dict[str, str], missing: Missing) -> None:
    states = look(load=no_driver, **content)
    assert {state.missing[0] for state in states.values()} == {missing}
    assert commands(states["onnxruntime"])[1] == "pip install 'berdiff[cpu]'"


def test_a_container_without_its_gpus(look: Look) -> None:
    states = look(load=no_driver, sys__module__nvidia__version="580.65.06")
    first = states["tensorrt"].missing[0]
    assert first.command == "docker run --gpus all ..."
    assert "580.65.06" in first.what


def test_a_driver_without_gpus(look: Look) -> None:
    assert look()["tensorrt"].missing[0] == Missing(
        "a GPU that can be used: the driver shows no GPU"
    )


# --- the verb ------------------------------------------------------------------------------------


def end(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run(list(arguments))
    return int(caught.value.code or 0)


def test_info_as_text(
    look: Look, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backends = look(ORIN, cuda=12_060, **JETSON_FILES)
    found = driver(load=lambda: FakeDriver(ORIN, cuda=12_060))
    made_up = dataclasses.replace(system(load=no_driver), driver=found, backends=backends)
    monkeypatch.setattr(system_module, "system", lambda: made_up)
    assert end("info", "--system") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "    cuda:0: Orin, sm_87, 62800 MiB shared with the host" in lines
    assert "      TensorRT: sudo apt install python3-libnvinfer" in lines
    assert "    gpu_obstacle: it cannot" in lines


def test_info_as_json_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    from berdiff.runtime.backends import BACKENDS

    assert end("info", "--system", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["backends"].keys() == BACKENDS.keys()
    assert shown["software"].keys() >= {"berdiff", "python", "numpy"}
    assert shown["machine"]["memory"].endswith(" GiB")
    gpus = shown["driver"]["gpus"]
    assert bool(gpus) == (shown["driver"]["problem"] is None)
    assert "cpu" in shown["backends"]["onnxruntime"]["devices"]


@pytest.mark.slow
def test_info_on_a_bare_installation(base_python: Path) -> None:
    command = [base_python.with_name("berdiff"), "info", "--system", "--json"]
    shown = json.loads(subprocess.check_output(command, text=True))
    assert shown["onnxruntime_providers"] == []
    assert shown["backends"]["onnxruntime"]["devices"] == []
    asked = [item["command"] for item in shown["backends"]["onnxruntime"]["missing"]]
    assert any(command and "pip install 'berdiff[" in command for command in asked)


def test_info_of_a_bundle_and_the_machine_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert end("info", "bundle", "--system") == 2
    assert "give no bundle" in capsys.readouterr().err


def test_the_driver_library_is_loaded_by_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    from berdiff.runtime.nvidia import load_driver

    asked: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name))
    load_driver()
    assert asked == ["libcuda.so.1"]
