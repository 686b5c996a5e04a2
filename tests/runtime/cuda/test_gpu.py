"""What only a GPU can show: driver, machine code and graphs do what their stand-in here does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from host_device import HostDevice
from numpy.typing import NDArray

from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cuda.backend import DeviceBackend
from berdiff.runtime.cuda.device import (
    CudaDevice,
    Device,
    OutOfDeviceMemory,
    cuda_devices,
    open_device,
)
from berdiff.runtime.cuda.kernels import SETTINGS_DTYPE, SIGNATURES, STEP_DTYPE
from berdiff.runtime.cuda.layout import Layout
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BackendError, BerdiffError

pytestmark = pytest.mark.gpu

FLOATS, IMAGES, BITS = np.float32, 3, 4_001  # not a multiple of four: the last block is short


@pytest.fixture(scope="session")
def gpu() -> CudaDevice:
    try:
        cuda_devices()
    except BerdiffError as error:
        pytest.skip(str(error))
    return open_device("cuda:0")


@pytest.fixture(scope="module")
def cpu(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle) as backend:
        yield backend


def random_arrays(kernel: str) -> tuple[int, list[NDArray[Any] | int]]:
    """Threads and arguments of a kernel; arrays in place of addresses."""
    random = np.random.default_rng(len(kernel))
    n, e = IMAGES, BITS
    k, p, c, h, w = 16, 21, 2, 13, 11

    def floats(*shape: int) -> NDArray[np.float32]:
        return random.random(shape, FLOATS)

    settings, steps = np.zeros(1, SETTINGS_DTYPE), np.zeros(4, STEP_DTYPE)
    settings[0] = (11, 12, 60, 1, 0.9, 0.05, 0.5, 4)
    for index, step in enumerate(steps):
        step["timestep"] = 50 - index
        for name in STEP_DTYPE.names[1:]:  # type: ignore[index]
            step[name] = floats()
    ids, cursor = random.integers(0, 2**63, n).astype(np.uint64), np.array([1], np.int32)
    state = random.integers(0, 8, (n, e)).astype(np.uint8)
    unsound, images = np.array([0, 1, 0], np.int32), floats(n, c, h * w)
    eps, code, flips = floats(n, e), floats(n, e), floats(n, e)
    blocks = n * -(-e // 4)
    return {
        "begin": (blocks, [settings, ids, eps, code, state, flips, unsound, cursor, e, n]),
        "advance": (1, [steps, cursor, np.zeros(1, np.int64)]),
        "step": (blocks, [settings, steps, cursor, ids, eps, code, state, flips, e, n]),
        "finish": (blocks, [eps, code, state, flips, unsound, e, n]),
        "own_code": (blocks, [state, code, e, n]),
        "difference": (
            n * h * w,
            [3, images, floats(*images.shape), floats(*images.shape), floats(n, h * w),
             floats(*images.shape), unsound, c, h * w, n],
        ),
        "median": (n * h * w, [floats(n, h, w), floats(n, h, w), h, w, n]),
        "flip_mean": (n * p, [settings, floats(n, k, p), floats(n, p), k, p, n]),
        "blank": (n * p, [unsound, floats(n, p), p, n]),
    }[kernel]  # fmt: skip


def run(device: Device, kernel: str) -> list[NDArray[Any]]:
    """All arrays of a kernel's arguments after it ran."""
    count, arguments = random_arrays(kernel)
    buffers, values = [], []
    for kind, argument in zip(SIGNATURES[kernel], arguments, strict=True):
        if isinstance(argument, np.ndarray):
            buffer = device.allocate(argument.nbytes)
            device.upload(argument, buffer.pointer)
            buffers.append((buffer, argument))
            argument = buffer.pointer
        values.append(kind(argument))
    device.launch(kernel, count, *values)
    for buffer, array in buffers:
        device.download(buffer.pointer, array)
        buffer.close()
    return [array for _, array in buffers]


@pytest.mark.parametrize("kernel", SIGNATURES)
def test_kernel_gives_the_bits_of_the_host(gpu: CudaDevice, kernel: str) -> None:
    for found, expected in zip(run(gpu, kernel), run(HostDevice(), kernel), strict=True):
        assert found.tobytes() == expected.tobytes()


class RoundTrip:
    """Networks that compute on the host: every call goes there and back."""

    max_batch, capturable = 8, False

    def __init__(self, device: Device, bundle: Bundle, cpu: Backend) -> None:
        self.device, self.cpu, self.layout, self.batch = device, cpu, Layout.of(bundle), 0

    def device_bytes(self, batch: int) -> int:
        return 0

    def prepare(self, batch: int) -> None:
        self.batch = batch

    def enqueue(self, network: str, inputs: Mapping[str, int], output: int) -> None:
        given = {}
        for name, pointer in inputs.items():
            shape, dtype = self.layout.arrays(self.batch)[name]
            given[name] = np.empty(shape, dtype)
            self.device.download(pointer, given[name])
        if network == "denoiser":
            answer = self.cpu.flip_probability(given["code"], int(given["t"][0]))
        else:
            answer = getattr(self.cpu, network.removesuffix("r"))(*given.values())
        self.device.upload(answer, output)

    def describe(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


@pytest.mark.parametrize("kind", ["squared", "change", "flips"])
def test_loop_gives_the_bits_of_the_host(
    gpu: CudaDevice, tiny_bundle: Bundle, cpu: Backend, kind: str
) -> None:
    images = np.random.default_rng(1).random((5, 1, 32, 32), FLOATS)
    backend = DeviceBackend("round trip", tiny_bundle, gpu, RoundTrip(gpu, tiny_bundle, cpu))
    with Detector(tiny_bundle, backend) as detector:
        settings = detector.settings(noise_level=80, steps=9, anomaly_map=kind)  # type: ignore
        found = detector.detect(images, range(5), seed=3, settings=settings)
    expected = Detector(tiny_bundle, cpu).detect(images, range(5), seed=3, settings=settings)
    for name in ("anomaly_map", "flip_map", "reconstruction", "mask", "score"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_captured_graph_does_nothing_until_it_is_launched(gpu: CudaDevice) -> None:
    steps = np.zeros(8, STEP_DTYPE)
    steps["timestep"] = range(10, 18)
    arrays = steps, np.array([-1], np.int32), np.array([0], np.int64)
    buffers = [gpu.allocate(array.nbytes) for array in arrays]
    for buffer, array in zip(buffers, arrays, strict=True):
        gpu.upload(array, buffer.pointer)
    with gpu.capture() as graph:
        gpu.launch("advance", 1, *(np.uint64(buffer.pointer) for buffer in buffers))
    cursor, t = arrays[1:]
    gpu.download(buffers[1].pointer, cursor)
    assert cursor == -1
    for _ in range(5):
        graph.launch()
    gpu.download(buffers[1].pointer, cursor)
    gpu.download(buffers[2].pointer, t)
    assert (cursor, t) == (4, 14)
    graph.close()


def test_memory_is_counted_and_its_end_is_an_error(gpu: CudaDevice) -> None:
    free, total = gpu.memory()
    assert 0 < free <= total
    buffer = gpu.allocate(256 << 20)
    assert gpu.memory()[0] <= free - (200 << 20)
    buffer.close()
    assert gpu.memory()[0] >= free - (8 << 20)
    with pytest.raises(OutOfDeviceMemory):
        gpu.allocate(2 * total)


@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_arrays_are_shared_with_other_libraries(
    gpu: CudaDevice, tiny_bundle: Bundle, cpu: Backend, library: str
) -> None:
    module = pytest.importorskip(library)
    host = np.random.default_rng(1).random((2, 1, 32, 32), FLOATS)
    images = module.from_numpy(host).cuda() if library == "torch" else module.asarray(host)
    backend = DeviceBackend("round trip", tiny_bundle, gpu, RoundTrip(gpu, tiny_bundle, cpu))
    with Detector(tiny_bundle, backend) as detector:
        assert gpu.view(images).pointer == (
            images.data_ptr() if library == "torch" else images.data.ptr
        )
        found = detector.detect_on_device(images, [1, 2])
        expected = detector.detect(host, [1, 2])
        taken = module.from_dlpack(found.reconstruction)
        back = taken.cpu().numpy() if library == "torch" else module.asnumpy(taken)
        np.testing.assert_array_equal(back, expected.reconstruction)
        with pytest.raises(BackendError, match="C-contiguous"):
            detector.detect_on_device(images.swapaxes(2, 3), [1, 2])
