"""What every engine backend has to keep, on each of its devices and at each precision.

Shapes, dtypes and ranges as the protocol says; PyTorch's results; and no result that depends on
batch, threads, order of calls or on another caller. What this machine cannot run is collected all
the same, and skipped with the reason. Everything of a GPU backend but its library and the driver
runs on any machine: see `stand_ins`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import stand_ins
from numpy.typing import NDArray

from berdiff.runtime import backends
from berdiff.runtime.backends import BACKENDS, Backend, available, gpu_obstacle, open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.library import LIBRARIES, TENSORRT_RTX
from berdiff.runtime.errors import BackendError, MissingDependency
from berdiff.runtime.precision import PRECISIONS, Precision, limits

# What each backend must be able to use where the machine has it.
DEVICES = {
    "onnxruntime": ("cpu", "cuda:0"),
    "tensorrt": ("cuda:0",),
    "tensorrt-rtx": ("cuda:0",),
}
# Precisions it has no convolutions for.
WITHOUT: dict[tuple[str, str], tuple[Precision, ...]] = {("onnxruntime", "cpu"): ("bf16",)}


@dataclass(frozen=True)
class Choice:
    """One backend on one device with a bundle of one precision.

    With `stands_in`, the device is the host and TensorRT a few classes around ONNX Runtime.
    """

    backend: str
    device: str
    precision: Precision
    stands_in: bool = False

    @property
    def place(self) -> tuple[str, str]:
        return self.backend, self.device

    def tolerance(self, figure: str) -> float:
        """How far from PyTorch's float32; the CPU does better than a gate for all asks for."""
        if self.place == ("onnxruntime", "cpu") and self.precision == "fp32":
            return 1e-5
        return limits(self.precision)[figure]


CHOICES = [
    Choice(backend, device, precision)
    for backend, devices in DEVICES.items()
    for device in devices
    for precision in PRECISIONS
    if precision not in WITHOUT.get((backend, device), ())
]
PARAMETERS = [
    pytest.param(
        choice,
        id="-".join((*choice.place, choice.precision)),
        marks=[pytest.mark.gpu] if choice.device.startswith("cuda") else [],
    )
    for choice in CHOICES
] + [
    pytest.param(Choice(backend, "cuda:0", "fp32", stands_in=True), id=f"{backend}-on-the-host")
    for backend in DEVICES
]


@pytest.fixture(scope="module", params=PARAMETERS)
def choice(request: pytest.FixtureRequest) -> Iterator[Choice]:
    chosen: Choice = request.param
    with pytest.MonkeyPatch.context() as patch:
        if chosen.stands_in:
            stand_ins.install(patch)
        found = available()[chosen.backend]
        if chosen.device not in found.devices:
            reason = found.reason or gpu_obstacle(chosen.backend) or f"no {chosen.device}"
            pytest.skip(reason.partition("; ")[0])
        yield chosen


@pytest.fixture(scope="module")
def bundle(
    choice: Choice,
    tiny_bundle_at: Callable[[Precision], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """The tiny bundle at the precision, with engines where the backend needs them."""
    exported = tiny_bundle_at(choice.precision)
    if choice.backend not in LIBRARIES:
        return exported
    from berdiff.runtime.engines.build import build_engines
    from berdiff.runtime.engines.gpu import gpu_here

    folder = tmp_path_factory.mktemp("engines") / "bundle"
    shutil.copytree(exported.path, folder)
    opened, library = Bundle.open(folder), LIBRARIES[choice.backend]
    if choice.stands_in:
        stand_ins.build(opened, choice.backend)
        return opened
    target = gpu_here(choice.device).architecture if library is TENSORRT_RTX else None
    if target == "sm_75" and choice.precision != "fp16":
        pytest.skip("on Turing, TensorRT for RTX builds fp16 only")
    build_engines(opened, library, target=target, device=choice.device)
    return opened


@pytest.fixture(scope="module")
def backend(choice: Choice, bundle: Bundle) -> Iterator[Backend]:
    with open_backend(bundle, *choice.place) as opened:
        yield opened


def example(bundle: Bundle, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images and codes."""
    pre, code = bundle.manifest.preprocessing, bundle.manifest.code
    random = np.random.default_rng(5)
    images = random.random((count, pre.channels, *pre.size), np.float32)
    bits = random.random((count, code.channels, code.height, code.width)) < 0.5
    return images, bits.astype(np.float32)


def everything(backend: Backend, images: NDArray[np.float32], codes: NDArray[np.float32]) -> list:
    return [
        backend.encode(images),
        backend.flip_probability(codes, 0),
        backend.flip_probability(codes, 999),
        backend.decode(codes),
    ]


def test_every_backend_is_tested_on_the_cpu_and_on_a_gpu() -> None:
    assert set(DEVICES) == set(BACKENDS)
    on_cpu = {choice.precision for choice in CHOICES if choice.device == "cpu"}
    assert on_cpu == {"fp32", "fp16", "int8"}
    assert {c.backend for c in CHOICES if c.device.startswith("cuda")} == set(BACKENDS)


def test_shapes_dtypes_and_ranges(backend: Backend, bundle: Bundle) -> None:
    images, codes = example(bundle, 3)
    probability, first, last, decoded = everything(backend, images, codes)
    for bits in (probability, first, last):
        assert bits.shape == codes.shape
        assert bits.min() >= 0
        assert bits.max() <= 1
        assert bits.std() > 0.01
    assert decoded.shape == images.shape
    for array in (probability, first, last, decoded):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


def test_computes_what_pytorch_computes(
    backend: Backend, bundle: Bundle, choice: Choice, tiny_checkpoint: Path
) -> None:
    import torch

    from berdiff.checkpoint import load_checkpoint

    _, autoencoder, denoiser = load_checkpoint(tiny_checkpoint)
    images, codes = map(torch.from_numpy, example(bundle, 2))
    with torch.no_grad():
        expected = {
            "encoder_error": [autoencoder.encode(images)],
            "decoder_error": [autoencoder.decode(codes)],
            "denoiser_error": [denoiser(codes, torch.full((2,), t)) for t in (0, 1, 137, 500, 999)],
        }
    got = {
        "encoder_error": [backend.encode(images.numpy())],
        "decoder_error": [backend.decode(codes.numpy())],
        "denoiser_error": [
            backend.flip_probability(codes.numpy(), t) for t in (0, 1, 137, 500, 999)
        ],
    }
    for figure, answers in expected.items():
        for answer, found in zip(answers, got[figure], strict=True):
            np.testing.assert_allclose(
                found, answer.numpy(), rtol=0, atol=choice.tolerance(figure), err_msg=figure
            )


def test_an_image_does_not_depend_on_its_batch(
    choice: Choice, backend: Backend, bundle: Bundle
) -> None:
    tolerance = limits(choice.precision, choice.device)["batch_error"]
    images, codes = example(bundle, 32)
    together = everything(backend, images, codes)
    for size in (1, 2, 7):
        for start in (0, 32 - size):
            part = slice(start, start + size)
            apart = everything(backend, images[part], codes[part])
            for whole, piece in zip(together, apart, strict=True):
                np.testing.assert_allclose(whole[part], piece, rtol=0, atol=tolerance)


def test_results_do_not_depend_on_the_number_of_threads(choice: Choice, bundle: Bundle) -> None:
    if choice.device != "cpu":
        with pytest.raises(BackendError, match="threads are for the CPU"):
            open_backend(bundle, *choice.place, threads=1)
        return
    images, codes = example(bundle, 3)
    with (
        open_backend(bundle, *choice.place, threads=1) as one,
        open_backend(bundle, *choice.place, threads=2) as two,
    ):
        results = zip(everything(one, images, codes), everything(two, images, codes), strict=True)
        for single, double in results:
            np.testing.assert_array_equal(single, double)


def test_results_belong_to_the_caller(backend: Backend, bundle: Bundle) -> None:
    images, codes = example(bundle, 2)
    given = images.copy(), codes.copy()
    first = everything(backend, images, codes)
    kept = [array.copy() for array in first]
    everything(backend, images[::-1].copy(), codes[::-1].copy())
    for array, copy in zip((*first, images, codes), (*kept, *given), strict=True):
        np.testing.assert_array_equal(array, copy)


def test_several_threads_may_call(backend: Backend, bundle: Bundle) -> None:
    _, codes = example(bundle, 8)
    alone = [backend.flip_probability(codes[i : i + 1], 100 * i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        shared = pool.map(lambda i: backend.flip_probability(codes[i : i + 1], 100 * i), range(8))
        for expected, got in zip(alone, shared, strict=True):
            np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_step_outside_the_schedule_is_refused(backend: Backend, bundle: Bundle, t: int) -> None:
    with pytest.raises(BackendError, match=rf"between 0 and 999, got {t}"):
        backend.flip_probability(example(bundle, 1)[1], t)


def test_a_wrong_shape_is_refused(backend: Backend, bundle: Bundle) -> None:
    images, codes = example(bundle, 1)
    with pytest.raises(BackendError, match="encoder"):
        backend.encode(images[:, :, :-1])
    with pytest.raises(BackendError, match="denoiser"):
        backend.flip_probability(codes[:, :-1], 0)
    with pytest.raises(BackendError, match="decoder"):
        backend.decode(codes[0])


def test_says_what_it_is(backend: Backend, choice: Choice) -> None:
    described = backend.describe()
    assert (described["backend"], described["device"]) == choice.place
    assert (backend.name, backend.device) == choice.place
    assert all(isinstance(value, str) for value in described.values())
    json.dumps(described)


def test_is_closed_by_its_context(choice: Choice, bundle: Bundle) -> None:
    with open_backend(bundle, *choice.place) as opened:
        pass
    opened.close()
    with pytest.raises(BackendError, match="closed"):
        opened.decode(example(bundle, 1)[1])


def test_a_damaged_file_is_refused_by_name(choice: Choice, bundle: Bundle, tmp_path: Path) -> None:
    if choice.backend in LIBRARIES:
        shutil.copytree(bundle.path, tmp_path / "bundle")
        (engine,) = (tmp_path / "bundle" / "engines").glob("*/decoder.engine")
        engine.write_bytes(engine.read_bytes()[:1000])
        with pytest.raises(BackendError, match=r"decoder\.engine was altered.*berdiff build"):
            open_backend(Bundle.open(tmp_path / "bundle"), *choice.place)
        return
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(bundle.file("onnx/decoder.onnx").read_bytes()[:1000])
    stand_in = SimpleNamespace(
        manifest=bundle.manifest,
        file=lambda name: broken if "decoder" in name else bundle.file(name),
    )
    with pytest.raises(BackendError, match=r"broken\.onnx cannot be loaded"):
        open_backend(stand_in, *choice.place)  # type: ignore[arg-type]


def test_unknown_names_are_refused_with_the_known_ones(tiny_bundle: Bundle) -> None:
    with pytest.raises(
        BackendError, match="'onnx'; known are: onnxruntime, tensorrt, tensorrt-rtx"
    ):
        open_backend(tiny_bundle, "onnx")
    expected = r"no device 'cuda:99' on this machine; available are: cpu"
    with pytest.raises(BackendError, match=expected):
        open_backend(tiny_bundle, "onnxruntime", "cuda:99")
    with pytest.raises(BackendError, match="at least 1, got 0"):
        open_backend(tiny_bundle, threads=0)
    with pytest.raises(BackendError, match="leave the option away on 'cuda:0'"):
        open_backend(tiny_bundle, "tensorrt", "cuda", threads=2)


def test_why_there_is_no_gpu_is_said(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backends._module("onnxruntime")
    monkeypatch.setattr(module, "devices", lambda: ["cpu"])
    monkeypatch.setattr(module, "obstacle", lambda: "its fan is loose")
    with pytest.raises(BackendError, match=r"'cuda:0'.*are: cpu\. No GPU: its fan is loose"):
        open_backend(tiny_bundle, "onnxruntime", "cuda")


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[str]:
        raise MissingDependency("onnxruntime", "cpu")

    monkeypatch.setattr(backends._module("onnxruntime"), "devices", missing)
    found = available()["onnxruntime"]
    assert found.devices == ()
    assert "pip install 'berdiff[cpu]'" in (found.reason or "")
