"""Does a bundle compute what PyTorch computed when it was made? Golden vectors, replayed.

Export uses the same comparison as its gate, so a bundle that exists has passed it once.
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .anomaly import anomaly_map
from .backends import Backend
from .bundle import Bundle
from .errors import BackendError, BundleError
from .philox import PhiloxNoise
from .precision import FIGURES, limits
from .sampler import Sampler, State

FloatArray = NDArray[np.float32]

GOLDEN_NAME = "golden/vectors.npz"


@dataclass(frozen=True)
class Golden:
    """Inputs, and what PyTorch computed from them.

    Attributes
    ----------
    image : ndarray of float32, shape (N, C, H, W)
        On the model's grid.
    probability : ndarray of float32, shape (N, K, h, w)
        Bit probabilities of the images.
    code : ndarray of bool, shape (N, K, h, w)
        ``probability > 0.5``.
    decoded : ndarray of float32, shape (N, C, H, W)
        Image of that code, not clamped.
    timesteps : ndarray of int64, shape (S,)
        Steps at which the denoiser was run on the code.
    flip_probability : ndarray of float32, shape (S, N, K, h, w)
        What it returned.
    image_ids : ndarray of uint64, shape (N,)
        Identities under which the loop draws noise.
    seed, noise_level, steps, flip_threshold
        Settings of a short loop over the code.
    loop_bits : ndarray of bool, shape (steps, N, K, h, w)
        The loop's code before each step.
    loop_mask : ndarray of bool, shape (steps, N, K, h, w)
        Its mask before each step; the last step leaves the mask alone.
    loop_code : ndarray of float32, shape (N, K, h, w)
        The soft healthy code after the last step.
    loop_image : ndarray of float32, shape (N, C, H, W), or None
        Image of that code, not clamped; None in bundles of schema version 1.
    """

    image: FloatArray
    probability: FloatArray
    code: NDArray[np.bool_]
    decoded: FloatArray
    timesteps: NDArray[np.int64]
    flip_probability: FloatArray
    image_ids: NDArray[np.uint64]
    seed: int
    noise_level: int
    steps: int
    flip_threshold: float
    loop_bits: NDArray[np.bool_]
    loop_mask: NDArray[np.bool_]
    loop_code: FloatArray
    loop_image: FloatArray | None = None

    _SETTINGS: ClassVar[dict[str, type]] = {
        "seed": int,
        "noise_level": int,
        "steps": int,
        "flip_threshold": float,
    }

    def save(self, path: Path) -> None:
        """Write the vectors as a compressed ``.npz``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, bundle: Bundle) -> Golden:
        """Read a bundle's vectors.

        Raises
        ------
        BundleError
            If the file is not what this release writes.
        """
        path = bundle.file(GOLDEN_NAME)
        try:
            with np.load(path, allow_pickle=False) as file:
                values: dict[str, Any] = dict(file)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path} is not a readable .npz file: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if bundle.manifest.schema_version == 1:
            names -= {"loop_image"}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise BundleError(f"{path}: unknown or missing arrays: {odd}")
        for name, kind in cls._SETTINGS.items():
            values[name] = kind(values[name])
        golden = cls(**values)
        golden._check(bundle, path)
        return golden

    def _check(self, bundle: Bundle, path: Path) -> None:
        """Refuse vectors of another model."""
        pre, code = bundle.manifest.preprocessing, bundle.manifest.code
        image = (len(self.image), pre.channels, *pre.size)
        bits = (len(self.image), code.channels, code.height, code.width)
        expected = {
            "image": image,
            "probability": bits,
            "code": bits,
            "decoded": image,
            "flip_probability": (len(self.timesteps), *bits),
            "image_ids": image[:1],
            "loop_bits": (self.steps, *bits),
            "loop_mask": (self.steps, *bits),
            "loop_code": bits,
        }
        if self.loop_image is not None:
            expected["loop_image"] = image
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise BundleError(
                    f"{path}: {name} has shape {getattr(self, name).shape}, expected {shape}"
                )


@dataclass(frozen=True)
class Check:
    """One figure and the limit it must not exceed."""

    name: str
    meaning: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the figure keeps its limit; a NaN does not."""
        return self.value <= self.limit


def verify(bundle: Bundle, backend: Backend) -> list[Check]:
    """Replay a bundle's golden vectors on a backend.

    Parameters
    ----------
    bundle : Bundle
        Opened bundle.
    backend : Backend
        Its networks, opened.

    Returns
    -------
    list of Check
        Every figure with its limit at the bundle's precision; the bundle works here if all have
        passed.
    """
    golden = Golden.load(bundle)
    figures = _network_figures(golden, backend) | _loop_figures(golden, bundle, backend)
    allowed = limits(bundle.manifest.precision, backend.device)
    return [
        Check(name, figure.meaning, figures[name], allowed[name])
        for name, figure in FIGURES.items()
    ]


def refuse_failed(checks: Sequence[Check], engine: Mapping[str, str], model: str | Path) -> None:
    """Raise `BackendError` if a figure breaches its limit: the bundle is not to be used here.

    Parameters
    ----------
    checks : sequence of Check
        From `verify`.
    engine : mapping of str to str
        What ran; see `Backend.describe`.
    model : str or Path
        The bundle, for the message.
    """
    failed = ", ".join(check.name for check in checks if not check.passed)
    if failed:
        raise BackendError(
            f"{engine['backend']} on {engine['device']} does not compute what {model} was exported "
            f"to compute ({failed}); do not use it on this machine"
        )


def _network_figures(golden: Golden, backend: Backend) -> dict[str, float]:
    code = golden.code.astype(np.float32)
    probability = backend.encode(golden.image)
    flips = np.stack([backend.flip_probability(code, int(t)) for t in golden.timesteps])
    decoded = backend.decode(code)
    alone = (
        _difference(backend.encode(golden.image[:1]), probability[:1]),
        _difference(backend.flip_probability(code[:1], int(golden.timesteps[0])), flips[0, :1]),
        _difference(backend.decode(code[:1]), decoded[:1]),
    )
    return {
        "encoder_error": _error(probability, golden.probability),
        "code_bit_rate": _rate(probability > 0.5, golden.code),
        "denoiser_error": _error(flips, golden.flip_probability),
        "decoder_error": _error(decoded, golden.decoded),
        "batch_error": float(np.max(alone)),
    }


def _loop_figures(golden: Golden, bundle: Bundle, backend: Backend) -> dict[str, float]:
    sampler = Sampler(
        schedule=bundle.schedule,
        noise_level=golden.noise_level,
        steps=golden.steps,
        flip_threshold=golden.flip_threshold,
        forward_noise=bundle.manifest.forward_noise,
    )
    noise = PhiloxNoise(golden.seed, golden.image_ids)
    code = golden.code.astype(np.float32)

    # Each step from PyTorch's own state: one different bit cannot hide behind others it caused.
    bits, masks = [0.0], [0.0]
    for index in range(golden.steps):
        z, mask = golden.loop_bits[index].astype(np.float32), golden.loop_mask[index]
        before = State(code, z, mask, np.zeros_like(z), golden.steps - index)
        state = sampler.step(before, backend.flip_probability, noise)
        if state.remaining:
            bits.append(_rate(state.z > 0.5, golden.loop_bits[index + 1]))
            masks.append(_rate(state.mask, golden.loop_mask[index + 1]))

    free = sampler.run(code, backend.flip_probability, noise)
    healthy = backend.decode(free.z)
    expected = golden.loop_image
    if expected is None:
        expected = backend.decode(golden.loop_code)
    return {
        "step_bit_rate": float(np.mean(bits)),
        "step_mask_rate": float(np.mean(masks)),
        "step_code_error": _error(state.z, golden.loop_code),
        "loop_mask_rate": _rate(free.mask, golden.loop_mask[-1]),
        "loop_image_error": float(np.mean(np.abs(healthy - expected)) / _scale(expected)),
        "map_error": map_error(_map(golden.image, healthy), _map(golden.image, expected)),
    }


def map_error(got: FloatArray, expected: FloatArray) -> float:
    """One minus the correlation of two stacks of maps; 0 where they are the same, up to 2."""
    if np.array_equal(got, expected):
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - float(np.corrcoef(got.ravel(), expected.ravel(), dtype=np.float64)[0, 1])


def _map(images: FloatArray, healthy: FloatArray) -> FloatArray:
    """The published anomaly map, which every bundle can make whatever its own kind is."""
    return anomaly_map("squared", images, np.clip(healthy, 0, 1), None, None)


def _rate(got: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    return float(np.mean(got != expected))


def _difference(got: FloatArray, expected: FloatArray) -> float:
    return float(np.max(np.abs(got - expected)))


def _error(got: FloatArray, expected: FloatArray) -> float:
    return _difference(got, expected) / _scale(expected)


def _scale(expected: FloatArray) -> float:
    return max(1.0, float(np.max(np.abs(expected))))
