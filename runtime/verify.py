"""Does a bundle compute here what it computed where it was made? Golden vectors, replayed.

Export uses the same comparison as its gate, so a bundle that exists has passed it once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backends import Backend
from .bundle import Bundle
from .errors import BundleError
from .philox import PhiloxNoise
from .sampler import Sampler

FloatArray = NDArray[np.float32]

GOLDEN_NAME = "golden/vectors.npz"

# Largest error of a network's output, relative to the output's largest value where that exceeds 1.
MAX_NETWORK_ERROR = 1e-4
# Part of the bits that may differ. A bit differs where rounding carries a probability across a
# threshold or a uniform number; each such bit then moves its neighbours a little.
MAX_BIT_RATE = 1e-3
# Error that 99.9 % of the loop's results stay below.
MAX_LOOP_ERROR = 1e-2
LOOP_QUANTILE = 1 - MAX_BIT_RATE


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
    loop_code : ndarray of float32, shape (N, K, h, w)
        Its soft healthy code.
    loop_mask : ndarray of bool, shape (N, K, h, w)
        Its mask.
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
    loop_code: FloatArray
    loop_mask: NDArray[np.bool_]

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
        except (ValueError, OSError) as error:
            raise BundleError(f"{path} is not a readable .npz file: {error}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise BundleError(f"{path}: unknown or missing arrays: {odd}")
        for name, kind in (("seed", int), ("noise_level", int), ("steps", int)):
            values[name] = kind(values[name])
        return cls(**{**values, "flip_threshold": float(values["flip_threshold"])})


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
        Every figure with its limit; the bundle works here if all have passed.
    """
    golden = Golden.load(bundle)
    code = golden.code.astype(np.float32)
    probability = backend.encode(golden.image)
    flips = np.stack([backend.flip_probability(code, int(t)) for t in golden.timesteps])
    decoded = backend.decode(code)

    sampler = Sampler(
        schedule=bundle.schedule,
        noise_level=golden.noise_level,
        steps=golden.steps,
        flip_threshold=golden.flip_threshold,
        forward_noise=bundle.manifest.forward_noise,
    )
    state = sampler.run(code, backend.flip_probability, PhiloxNoise(golden.seed, golden.image_ids))
    alone = max(
        _difference(backend.encode(golden.image[:1]), probability[:1]),
        _difference(backend.flip_probability(code[:1], int(golden.timesteps[0])), flips[0, :1]),
        _difference(backend.decode(code[:1]), decoded[:1]),
    )
    quantile = f"{LOOP_QUANTILE:.1%} of"
    return [
        Check("encoder_error", "bit probabilities", _error(probability, golden.probability),
              MAX_NETWORK_ERROR),
        Check("code_bit_rate", "bits of the code that differ",
              float(np.mean((probability > 0.5) != golden.code)), MAX_BIT_RATE),
        Check("denoiser_error", "flip probabilities", _error(flips, golden.flip_probability),
              MAX_NETWORK_ERROR),
        Check("decoder_error", "decoded image", _error(decoded, golden.decoded),
              MAX_NETWORK_ERROR),
        Check("loop_mask_rate", "bits of the loop's mask that differ",
              float(np.mean(state.mask != golden.loop_mask)), MAX_BIT_RATE),
        Check("loop_code_error", f"{quantile} the loop's healthy code",
              _quantile(state.z, golden.loop_code), MAX_LOOP_ERROR),
        Check("loop_image_error", f"{quantile} the loop's healthy image",
              _quantile(backend.decode(state.z), backend.decode(golden.loop_code)),
              MAX_LOOP_ERROR),
        Check("batch_error", "an image alone and in a batch", alone, 0.0),
    ]  # fmt: skip


def _difference(got: FloatArray, expected: FloatArray) -> float:
    if got.shape != expected.shape:
        raise BundleError(f"{GOLDEN_NAME}: expected shape {expected.shape}, got {got.shape}")
    return float(np.max(np.abs(got - expected)))


def _error(got: FloatArray, expected: FloatArray) -> float:
    return _difference(got, expected) / max(1.0, float(np.max(np.abs(expected))))


def _quantile(got: FloatArray, expected: FloatArray) -> float:
    scale = max(1.0, float(np.max(np.abs(expected))))
    return float(np.quantile(np.abs(got - expected), LOOP_QUANTILE)) / scale
