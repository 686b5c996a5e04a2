"""Golden vectors catch each network that computes something else, and say which."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import Bundle, record_files, write_manifest
from berdiff.runtime.errors import BundleError
from berdiff.runtime.precision import FIGURES, PRECISIONS, Precision, limits
from berdiff.runtime.verify import GOLDEN_NAME, Check, Golden, map_error, verify

Array = NDArray[np.float32]
Change = Callable[[Array], Array]


class Altered:
    """A backend whose answers are changed on the way out."""

    device = "cpu"

    def __init__(self, backend: Backend, **changes: Change) -> None:
        self._backend = backend
        self._changes = changes

    def _changed(self, name: str, answer: Array) -> Array:
        return self._changes[name](answer) if name in self._changes else answer

    def encode(self, images: Array) -> Array:
        return self._changed("encode", self._backend.encode(images))

    def flip_probability(self, code: Array, t: int) -> Array:
        return self._changed("flip_probability", self._backend.flip_probability(code, t))

    def decode(self, code: Array) -> Array:
        return self._changed("decode", self._backend.decode(code))


@pytest.fixture(scope="module")
def backend(tiny_bundle: Bundle) -> Iterator[Backend]:
    with open_backend(tiny_bundle, threads=1) as opened:
        yield opened


def failed(bundle: Bundle, backend: Any) -> set[str]:
    return {check.name for check in verify(bundle, backend) if not check.passed}


def nudge(answer: Array) -> Array:
    """One value, by more than the limit."""
    changed = answer.copy()
    changed.flat[7] += 3e-4 * max(1, np.abs(answer).max())
    return changed


def test_a_sound_bundle_passes_with_room(tiny_bundle: Bundle, backend: Backend) -> None:
    checks = verify(tiny_bundle, backend)
    assert [check.name for check in checks] == list(FIGURES)
    assert all(check.passed for check in checks)
    errors = {check.name: check.value for check in checks}
    assert max(errors[name] for name in ("encoder_error", "denoiser_error", "decoder_error")) < 1e-5
    assert errors["batch_error"] == 0
    assert tiny_bundle.manifest.parity.keys() == errors.keys()


def test_one_wrong_value_is_noticed(tiny_bundle: Bundle, backend: Backend) -> None:
    assert failed(tiny_bundle, Altered(backend, encode=nudge)) == {"encoder_error"}
    assert failed(tiny_bundle, Altered(backend, decode=nudge)) == {"decoder_error"}
    assert failed(tiny_bundle, Altered(backend, flip_probability=nudge)) >= {
        "denoiser_error",
        "step_code_error",
    }


def test_wrong_bits_are_noticed(tiny_bundle: Bundle, backend: Backend) -> None:
    altered = Altered(backend, encode=lambda p: 1 - p, flip_probability=lambda p: 1 - p)
    assert failed(tiny_bundle, altered) >= {
        "code_bit_rate",
        "step_bit_rate",
        "step_mask_rate",
        "loop_mask_rate",
        "loop_image_error",
    }


def test_nan_is_noticed(tiny_bundle: Bundle, backend: Backend) -> None:
    def spoil(answer: Array) -> Array:
        return np.full_like(answer, np.nan)

    altered = Altered(backend, encode=spoil, flip_probability=spoil, decode=spoil)
    found = failed(tiny_bundle, altered)
    assert found >= {"encoder_error", "denoiser_error", "decoder_error", "batch_error"}
    assert not Check("x", "", float("nan"), 1.0).passed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_limits_are_those_of_the_precision(
    tiny_bundle: Bundle, backend: Backend, precision: Precision
) -> None:
    manifest = dataclasses.replace(tiny_bundle.manifest, precision=precision)
    bundle = dataclasses.replace(tiny_bundle, manifest=manifest)
    assert {check.name: check.limit for check in verify(bundle, backend)} == limits(precision)
    # No precision is an excuse for networks that answer something else.
    wrong = dict.fromkeys(("encode", "flip_probability", "decode"), by_one)
    assert failed(bundle, Altered(backend, **wrong)) >= {
        "encoder_error",
        "code_bit_rate",
        "denoiser_error",
        "decoder_error",
        "step_code_error",
        "loop_mask_rate",
        "map_error",
    }
    assert failed(bundle, Altered(backend, decode=lambda image: image * np.float32(np.nan))) >= {
        "decoder_error",
        "loop_image_error",
        "map_error",
        "batch_error",
    }


def by_one(answer: Array) -> Array:
    """Each row in the place of the next: right in everything but where it is."""
    return np.roll(answer, 1, axis=-2)


def test_maps_that_are_the_same_have_no_error() -> None:
    maps = np.random.default_rng(0).random((2, 8, 8), np.float32)
    assert map_error(maps, maps) == 0
    assert map_error(2 * maps + 1, maps) == pytest.approx(0, abs=1e-6)
    assert map_error(-maps, maps) == pytest.approx(2)
    assert map_error(np.zeros_like(maps), np.zeros_like(maps)) == 0
    assert np.isnan(map_error(np.zeros_like(maps), maps))
    assert np.isnan(map_error(maps * np.float32(np.nan), maps))


def test_dependence_on_the_batch_is_noticed(tiny_bundle: Bundle, backend: Backend) -> None:
    def by_batch(answer: Array) -> Array:
        return answer + np.float32(1e-6 * len(answer))

    altered = Altered(backend, decode=by_batch)
    assert failed(tiny_bundle, altered) == {"batch_error"}
    altered.device = "cuda:0"  # where kernels are chosen by batch size
    assert failed(tiny_bundle, altered) == set()


def test_a_network_asked_for_another_step_is_noticed(tiny_bundle: Bundle, backend: Backend) -> None:
    class Late(Altered):
        def flip_probability(self, code: Array, t: int) -> Array:
            return self._backend.flip_probability(code, max(t - 1, 0))

    assert "denoiser_error" in failed(tiny_bundle, Late(backend))


def rewrite(bundle: Bundle, target: Path, **changes: Any) -> Bundle:
    """A copy with other golden vectors, its manifest in order."""
    folder = Path(shutil.copytree(bundle.path, target))
    dataclasses.replace(Golden.load(bundle), **changes).save(folder / GOLDEN_NAME)
    return sign(bundle, folder)


def sign(bundle: Bundle, folder: Path) -> Bundle:
    manifest = dataclasses.replace(bundle.manifest, files=record_files(folder))
    write_manifest(folder, manifest)
    return Bundle.open(folder)


def test_other_golden_vectors_fail(tiny_bundle: Bundle, backend: Backend, tmp_path: Path) -> None:
    golden = Golden.load(tiny_bundle)
    altered = rewrite(tiny_bundle, tmp_path / "b", loop_mask=~golden.loop_mask)
    assert failed(altered, backend) >= {"step_mask_rate", "loop_mask_rate"}


def test_vectors_come_back_as_saved(tiny_bundle: Bundle, tmp_path: Path) -> None:
    golden = Golden.load(tiny_bundle)
    again = Golden.load(rewrite(tiny_bundle, tmp_path / "b"))
    for field in dataclasses.fields(Golden):
        before, after = getattr(golden, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(before, after)
        assert type(before) is type(after)
    assert golden.image.min() == 0
    assert golden.image.max() <= 1
    assert 0.05 < golden.loop_mask[-1].mean() < 0.95


def test_vectors_of_another_shape_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    golden = Golden.load(tiny_bundle)
    altered = rewrite(tiny_bundle, tmp_path / "b", decoded=golden.decoded[:, :, :-1])
    with pytest.raises(BundleError, match=r"vectors\.npz: decoded has shape .* expected"):
        Golden.load(altered)


@pytest.mark.parametrize("flaw", ["extra", "missing", "pickle", "noise", "half", "empty"])
def test_a_file_that_is_no_golden_file_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, flaw: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "b"))
    path = folder / GOLDEN_NAME
    with np.load(path) as file:
        arrays = dict(file)
    if flaw == "extra":
        arrays["colour"] = np.zeros(1)
    elif flaw == "missing":
        del arrays["code"]
    elif flaw == "pickle":
        arrays["code"] = np.array([{}], dtype=object)
    np.savez(path, **arrays)
    if flaw == "noise":
        path.write_bytes(b"not a zip file")
    elif flaw in ("half", "empty"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if flaw == "half" else b"")
    with pytest.raises(BundleError, match=r"vectors\.npz"):
        Golden.load(sign(tiny_bundle, folder))
