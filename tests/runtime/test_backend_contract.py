"""What every engine backend has to keep; each one available here runs all of it.

Shapes, dtypes and ranges as the protocol says; PyTorch's results; and no result that depends on
batch, threads, order of calls or on another caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from berdiff.runtime import backends
from berdiff.runtime.backends import Backend, available, open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import BackendError, MissingDependency

CHOICES = [
    (name, device) for name, found in available().items() for device in found.devices
]  # fmt: skip


@pytest.fixture(scope="module", params=CHOICES, ids="-".join)
def choice(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def backend(choice: tuple[str, str], tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle, *choice) as opened:
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


def test_some_backend_is_tested() -> None:
    assert ("onnxruntime", "cpu") in CHOICES


def test_shapes_dtypes_and_ranges(backend: Backend, tiny_bundle: Bundle) -> None:
    images, codes = example(tiny_bundle, 3)
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
    backend: Backend, tiny_bundle: Bundle, tiny_checkpoint: Path
) -> None:
    import torch

    from berdiff.checkpoint import load_checkpoint

    _, autoencoder, denoiser = load_checkpoint(tiny_checkpoint)
    images, codes = map(torch.from_numpy, example(tiny_bundle, 2))
    with torch.no_grad():
        expected = {"encode": autoencoder.encode(images), "decode": autoencoder.decode(codes)}
        got = {"encode": backend.encode(images.numpy()), "decode": backend.decode(codes.numpy())}
        for t in (0, 1, 137, 500, 999):
            expected[f"step {t}"] = denoiser(codes, torch.full((2,), t))
            got[f"step {t}"] = backend.flip_probability(codes.numpy(), t)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values.numpy(), rtol=0, atol=1e-5, err_msg=name)


def test_an_image_does_not_depend_on_its_batch(backend: Backend, tiny_bundle: Bundle) -> None:
    images, codes = example(tiny_bundle, 32)
    together = everything(backend, images, codes)
    for size in (1, 2, 7):
        for start in (0, 32 - size):
            part = slice(start, start + size)
            apart = everything(backend, images[part], codes[part])
            for whole, piece in zip(together, apart, strict=True):
                np.testing.assert_array_equal(whole[part], piece)


def test_results_do_not_depend_on_the_number_of_threads(
    choice: tuple[str, str], tiny_bundle: Bundle
) -> None:
    images, codes = example(tiny_bundle, 3)
    with (
        open_backend(tiny_bundle, *choice, threads=1) as one,
        open_backend(tiny_bundle, *choice, threads=2) as two,
    ):
        results = zip(everything(one, images, codes), everything(two, images, codes), strict=True)
        for single, double in results:
            np.testing.assert_array_equal(single, double)


def test_results_belong_to_the_caller(backend: Backend, tiny_bundle: Bundle) -> None:
    images, codes = example(tiny_bundle, 2)
    given = images.copy(), codes.copy()
    first = everything(backend, images, codes)
    kept = [array.copy() for array in first]
    everything(backend, images[::-1].copy(), codes[::-1].copy())
    for array, copy in zip((*first, images, codes), (*kept, *given), strict=True):
        np.testing.assert_array_equal(array, copy)


def test_several_threads_may_call(backend: Backend, tiny_bundle: Bundle) -> None:
    _, codes = example(tiny_bundle, 8)
    alone = [backend.flip_probability(codes[i : i + 1], 100 * i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        shared = pool.map(lambda i: backend.flip_probability(codes[i : i + 1], 100 * i), range(8))
        for expected, got in zip(alone, shared, strict=True):
            np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("t", [-1, 1000])
def test_a_step_outside_the_schedule_is_refused(
    backend: Backend, tiny_bundle: Bundle, t: int
) -> None:
    with pytest.raises(BackendError, match=rf"between 0 and 999, got {t}"):
        backend.flip_probability(example(tiny_bundle, 1)[1], t)


def test_a_wrong_shape_is_refused(backend: Backend, tiny_bundle: Bundle) -> None:
    images, codes = example(tiny_bundle, 1)
    with pytest.raises(BackendError, match="encoder"):
        backend.encode(images[:, :, :-1])
    with pytest.raises(BackendError, match="denoiser"):
        backend.flip_probability(codes[:, :-1], 0)
    with pytest.raises(BackendError, match="decoder"):
        backend.decode(codes[0])


def test_says_what_it_is(backend: Backend, choice: tuple[str, str]) -> None:
    described = backend.describe()
    assert (described["backend"], described["device"]) == choice == (backend.name, backend.device)
    assert all(isinstance(value, str) for value in described.values())
    json.dumps(described)


def test_is_closed_by_its_context(choice: tuple[str, str], tiny_bundle: Bundle) -> None:
    with open_backend(tiny_bundle, *choice) as opened:
        pass
    opened.close()
    with pytest.raises(BackendError, match="closed"):
        opened.decode(example(tiny_bundle, 1)[1])


def test_a_damaged_graph_is_refused_by_name(
    choice: tuple[str, str], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(tiny_bundle.file("onnx/decoder.onnx").read_bytes()[:1000])
    stand_in = SimpleNamespace(
        manifest=tiny_bundle.manifest,
        file=lambda name: broken if "decoder" in name else tiny_bundle.file(name),
    )
    with pytest.raises(BackendError, match=r"broken\.onnx cannot be loaded"):
        open_backend(stand_in, *choice)  # type: ignore[arg-type]


def test_unknown_names_are_refused_with_the_known_ones(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="'onnx'; known are: onnxruntime"):
        open_backend(tiny_bundle, "onnx")
    with pytest.raises(BackendError, match="no device 'cuda' on this machine; available are: cpu"):
        open_backend(tiny_bundle, "onnxruntime", "cuda")
    with pytest.raises(BackendError, match="at least 1, got 0"):
        open_backend(tiny_bundle, threads=0)


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[str]:
        raise MissingDependency("onnxruntime", "cpu")

    monkeypatch.setattr(backends._module("onnxruntime"), "devices", missing)
    found = available()["onnxruntime"]
    assert found.devices == ()
    assert "pip install 'berdiff[cpu]'" in (found.reason or "")
