"""The device through cuda-core, with the library's own names and a driver that only pretends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from berdiff.runtime.cuda import arrays, device
from berdiff.runtime.errors import BackendError, MissingDependency

core = pytest.importorskip("cuda.core")
driver = pytest.importorskip("cuda.bindings.driver")
memory_view = pytest.importorskip("cuda.core.utils").StridedMemoryView

OK = driver.CUresult.CUDA_SUCCESS


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The two libraries with every function mocked and no name that they do not have."""
    fake = SimpleNamespace(
        core=mock.create_autospec(core), driver=mock.create_autospec(driver), view=mock.Mock()
    )
    gpu = mock.create_autospec(core.Device, instance=True)
    gpu.name, gpu.compute_capability = "Pretend 9000", (8, 9)
    gpu.create_stream.return_value = stream = mock.create_autospec(core.Stream, instance=True)
    stream.handle = 0xABC
    builder = mock.create_autospec(core.graph.GraphBuilder, instance=True)
    builder.begin_building.return_value = builder.end_building.return_value = builder
    builder.complete.return_value = mock.create_autospec(core.graph.Graph, instance=True)
    stream.create_graph_builder.return_value = builder
    fake.core.Device.return_value = gpu
    fake.core.Device.get_all_devices.return_value = (gpu, gpu)
    fake.gpu, fake.stream, fake.builder = gpu, stream, builder
    fake.driver.CUresult = driver.CUresult
    fake.driver.cuMemAlloc.return_value = (OK, 0x1000)
    for name in ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemFree"):
        getattr(fake.driver, name).return_value = (OK,)
    fake.driver.cuMemGetInfo.return_value = (OK, 3, 7)
    fake.driver.cuDriverGetVersion.return_value = (OK, 12060)
    fake.view = mock.create_autospec(memory_view)
    modules = {
        "cuda.core": fake.core,
        "cuda.bindings": SimpleNamespace(),
        "cuda.bindings.driver": fake.driver,
        "cuda.core.utils": SimpleNamespace(StridedMemoryView=fake.view),
    }
    for module in (device, arrays):
        monkeypatch.setattr(module, "optional", lambda name, extra: modules[name])
    return fake


def test_without_a_driver_there_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> tuple[Any, ...]:
        raise RuntimeError("libcuda.so.1 is missing")

    monkeypatch.setattr(device, "_cuda_core", lambda: SimpleNamespace(Device=SimpleNamespace(
        get_all_devices=no_driver
    )))  # fmt: skip
    with pytest.raises(BackendError, match=r"no NVIDIA driver could be used \(libcuda"):
        device.cuda_devices()


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, extra: str) -> None:
        raise MissingDependency(name, extra)

    monkeypatch.setattr(device, "optional", missing)
    with pytest.raises(MissingDependency, match=r"berdiff\[cuda\]"):
        device.cuda_devices()


def test_devices_are_counted(pretend: SimpleNamespace) -> None:
    assert device.cuda_devices() == ["cuda:0", "cuda:1"]
    pretend.core.Device.get_all_devices.return_value = ()
    with pytest.raises(BackendError, match="reports no GPU"):
        device.cuda_devices()


def test_a_device_says_what_it_is(pretend: SimpleNamespace) -> None:
    opened = device.open_device("cuda:1")
    pretend.core.Device.assert_called_once_with(1)
    assert (opened.name, opened.gpu, opened.compute_capability, opened.stream) == (
        *("cuda:1", "Pretend 9000"),
        (8, 9),
        0xABC,
    )
    assert opened.memory() == (3, 7)


@pytest.mark.parametrize(
    ("capability", "loader"),
    # The driver is too old for the machine code of the last.
    [((8, 9), "from_cubin"), ((8, 8), "from_ptx"), ((12, 0), "from_ptx")],
)
def test_code_for_this_very_gpu_is_taken_before_ptx(
    pretend: SimpleNamespace, capability: tuple[int, int], loader: str
) -> None:
    pretend.gpu.compute_capability = capability
    device.open_device("cuda:0")
    (call,) = pretend.core.ObjectCode.method_calls
    assert call[0] == loader


def test_memory_is_given_back_once(pretend: SimpleNamespace) -> None:
    buffer = device.open_device("cuda:0").allocate(100)
    assert (buffer.pointer, buffer.nbytes) == (0x1000, 100)
    buffer.close()
    buffer.close()
    pretend.driver.cuMemFree.assert_called_once_with(0x1000)


def test_errors_of_the_driver_are_raised(pretend: SimpleNamespace) -> None:
    opened = device.open_device("cuda:0")
    pretend.driver.cuMemAlloc.return_value = (driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
    with pytest.raises(device.OutOfDeviceMemory):
        opened.allocate(100)
    pretend.driver.cuMemcpyHtoDAsync.return_value = (driver.CUresult.CUDA_ERROR_INVALID_VALUE,)
    with pytest.raises(BackendError, match="CUDA_ERROR_INVALID_VALUE"):
        opened.upload(np.zeros(3), 0)


def test_copies_are_on_the_stream_and_waited_for(pretend: SimpleNamespace) -> None:
    opened, values = device.open_device("cuda:0"), np.zeros(3)
    opened.upload(values, 0x20)
    pretend.driver.cuMemcpyHtoDAsync.assert_called_once_with(0x20, values.ctypes.data, 24, 0xABC)
    opened.download(0x30, values)
    pretend.driver.cuMemcpyDtoHAsync.assert_called_once_with(values.ctypes.data, 0x30, 24, 0xABC)
    assert pretend.stream.sync.call_count == 2


def test_launches_are_captured_into_the_builder(pretend: SimpleNamespace) -> None:
    opened = device.open_device("cuda:0")
    pointers = [np.uint64(1)] * 3
    opened.launch("advance", 257, *pointers)
    with opened.capture() as graph:
        opened.launch("advance", 1, *pointers)
    opened.launch("advance", 1, *pointers)
    targets = [call.args[0] for call in pretend.core.launch.call_args_list]
    assert targets == [pretend.stream, pretend.builder, pretend.stream]
    grids = [call.kwargs for call in pretend.core.LaunchConfig.call_args_list]
    assert grids[0] == {"grid": 2, "block": 256}
    assert grids[1] == {"grid": 1, "block": 256}
    graph.launch()
    pretend.builder.complete.return_value.launch.assert_called_once_with(pretend.stream)
    graph.close()
    pretend.builder.complete.return_value.close.assert_called_once_with()


def test_a_capture_that_fails_leaves_the_stream_alone(pretend: SimpleNamespace) -> None:
    opened = device.open_device("cuda:0")
    with pytest.raises(ZeroDivisionError), opened.capture():
        _ = 1 / 0
    pretend.builder.complete.assert_not_called()
    pretend.builder.close.assert_called_once_with()
    opened.launch("advance", 1, *[np.uint64(1)] * 3)
    assert pretend.core.launch.call_args.args[0] is pretend.stream


def test_arrays_of_others_are_looked_at_on_the_stream(pretend: SimpleNamespace) -> None:
    opened = device.open_device("cuda:1")
    seen = SimpleNamespace(
        ptr=5, shape=(2, 3), strides=(3, 1), dtype=np.dtype("f4"), device_id=1,
        is_device_accessible=True,
    )  # fmt: skip
    pretend.view.from_any_interface.return_value = seen
    view = opened.view("array")
    pretend.view.from_any_interface.assert_called_once_with("array", stream_ptr=0xABC)
    assert (view.pointer, view.shape, view.dtype) == (5, (2, 3), np.float32)
    seen.strides = (1, 2)
    with pytest.raises(BackendError, match=r"strides \(1, 2\); expected a C-contiguous"):
        opened.view("array")
    seen.device_id = 0
    with pytest.raises(BackendError, match="lies on device 0, expected cuda:1"):
        opened.view("array")
    pretend.view.from_any_interface.side_effect = BufferError("no protocol")
    with pytest.raises(BackendError, match="got str, expected an array on cuda:1"):
        opened.view("array")


def test_arrays_are_handed_out_by_both_protocols(pretend: SimpleNamespace) -> None:
    opened = device.open_device("cuda:0")
    array = opened.export(opened.allocate(24), (2, 3), np.dtype("f4"))
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (0x1000, False),
        "strides": None,
        "stream": None,
        "version": 3,
    }
    strided = SimpleNamespace(
        __dlpack__=lambda stream: ("capsule", stream), __dlpack_device__=lambda: (2, 0)
    )
    pretend.view.from_buffer.return_value = strided
    assert array.__dlpack__(stream=1) == ("capsule", 1)
    assert array.__dlpack_device__() == (2, 0)
    pretend.core.Buffer.from_handle.assert_called_with(0x1000, 24, owner=array)
    memory = pretend.core.Buffer.from_handle.return_value
    pretend.view.from_buffer.assert_called_with(memory, (2, 3), dtype=np.dtype("f4"))


@pytest.mark.parametrize(
    ("shape", "expected"), [((), ()), ((4,), (1,)), ((2, 3, 5), (15, 5, 1)), ((1, 0, 7), (0, 7, 1))]
)
def test_strides(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert arrays.c_strides(shape) == expected
