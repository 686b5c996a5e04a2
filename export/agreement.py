"""How far two sets of networks come apart on real images, over the whole loop with equal noise.

Bits that differ cascade through the loop, in one model more than in another. What the loop itself
leaves to chance is the measure: how much the same networks differ from themselves when the noise
has another seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.anomaly import anomaly_map, flip_map, flip_mean
from berdiff.runtime.backends import Backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.preprocessing import foreground
from berdiff.runtime.sampler import FloatArray
from berdiff.runtime.verify import map_error
from berdiff.runtime.walk import own_code

BATCH = 4
# Flip probabilities are compared at this many steps, from the loop's first to its last.
STEPS = 5


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a batch of N images.

    Attributes
    ----------
    own : ndarray of bool, shape (N, K, h, w)
        Bits of the images.
    codes : dict of int to ndarray of float32, shape (N, K, h, w)
        Codes on the way back, by step.
    mask : ndarray of bool, shape (N, K, h, w)
        Bits that were released.
    healthy : ndarray of bool, shape (N, K, h, w)
        Bits of the healthy code.
    map : ndarray of float32, shape (n,)
        Foreground of the anomaly maps.
    """

    own: NDArray[np.bool_]
    codes: dict[int, FloatArray]
    mask: NDArray[np.bool_]
    healthy: NDArray[np.bool_]
    map: FloatArray


def outcomes(
    bundle: Bundle, backend: Backend, images: FloatArray, seed: int = 0
) -> tuple[Outcome, ...]:
    """Detect anomalies with a bundle's own settings, some images at a time.

    Parameters
    ----------
    bundle : Bundle
        Tells settings and schedule.
    backend : Backend
        Its networks, opened.
    images : ndarray of float32, shape (N, C, H, W)
        On the model's grid, in [0, 1].
    seed : int
        64-bit seed of the loop.
    """
    numbers = np.arange(len(images), dtype=np.uint64)
    parts = [slice(start, start + BATCH) for start in range(0, len(images), BATCH)]
    return tuple(_detect(bundle, backend, images[part], numbers[part], seed) for part in parts)


def flip_errors(
    reference: Backend, candidate: Backend, expected: Sequence[Outcome]
) -> dict[str, float]:
    """Compare flip probabilities on the codes of the reference.

    Parameters
    ----------
    reference, candidate : Backend
        Networks, opened.
    expected : sequence of Outcome
        Of the reference.
    """
    errors = [
        np.abs(candidate.flip_probability(code, t) - reference.flip_probability(code, t)).ravel()
        for outcome in expected
        for t, code in outcome.codes.items()
    ]
    together = np.concatenate(errors)
    return {
        "calibration_flip_error": float(together.max()),
        "calibration_flip_p999": float(np.percentile(together, 99.9)),
    }


def differences(got: Sequence[Outcome], expected: Sequence[Outcome]) -> dict[str, float]:
    """Compare bits, masks and maps of the same images."""
    pairs = list(zip(got, expected, strict=True))
    return {
        "calibration_code_rate": _rate([(one.own, other.own) for one, other in pairs]),
        "calibration_mask_rate": _rate([(one.mask, other.mask) for one, other in pairs]),
        "calibration_bit_rate": _rate([(one.healthy, other.healthy) for one, other in pairs]),
        "calibration_map_error": map_error(
            np.concatenate([one.map for one in got]),
            np.concatenate([one.map for one in expected]),
        ),
    }


def _rate(pairs: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> float:
    return float(np.mean(np.concatenate([one != other for one, other in pairs])))


def _detect(
    bundle: Bundle, backend: Backend, images: FloatArray, ids: NDArray[np.uint64], seed: int
) -> Outcome:
    settings, schedule = bundle.manifest.sampling, bundle.schedule
    sampler = Detector(bundle, backend).sampler(settings)
    noise = PhiloxNoise(seed, ids)
    own = own_code(backend.encode(images), noise, settings.code)

    count = len(sampler.kept)
    compared = set(np.linspace(0, count - 1, STEPS).round().astype(int).tolist())
    state, codes = sampler.init(own, noise), {}
    while state.remaining:
        index = state.remaining - 1
        if index in compared:
            codes[int(schedule.timesteps[sampler.kept[index]])] = state.z
        state = sampler.step(state, backend.flip_probability, noise)
    maps = anomaly_map(
        settings.anomaly_map,
        images,
        np.clip(backend.decode(state.z), 0, 1),
        np.clip(backend.decode(state.z_org), 0, 1),
        flip_map(flip_mean(state.flips / np.float32(count)), images.shape[2:]),
    )
    return Outcome(own > 0.5, codes, state.mask, state.z > 0.5, maps[foreground(images)])
