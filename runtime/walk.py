"""One batch through the networks and the loop: what is computed before anything is judged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .anomaly import anomaly_map, flip_mean
from .backends import Backend
from .deadline import UNLIMITED, Deadline
from .manifest import CodeKind, SamplingDefaults
from .philox import CODE_STEP, PhiloxNoise
from .sampler import Sampler

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Walk:
    """Result of a batch on the host, and where its time went.

    Attributes
    ----------
    anomaly_map : ndarray of float32, shape (N, H, W), or None
        Median-filtered; None for the kind "flips", which is made of `flips` alone.
    flips : ndarray of float32, shape (N, h, w)
        Mean probability, over steps and bits, that the healthy bit differs; in [0, 1].
    reconstruction : ndarray of float32, shape (N, C, H, W)
        The healthy counterpart, in [0, 1].
    sound : ndarray of bool, shape (N,)
        Images that every network answered with numbers. Thresholds and clipping make plausible
        codes and images of NaN and infinity, so what the others got means nothing.
    timings : dict of str to float
        Seconds spent in "encode", "loop", "decode" and "maps", for the whole batch.
    """

    anomaly_map: FloatArray | None
    flips: FloatArray
    reconstruction: FloatArray
    sound: NDArray[np.bool_]
    timings: dict[str, float]


def walk(
    backend: Backend,
    images: FloatArray,
    noise: PhiloxNoise,
    sampler: Sampler,
    settings: SamplingDefaults,
    deadline: Deadline = UNLIMITED,
) -> Walk:
    """Encode, walk back, decode and compare a batch, with the loop on the host.

    Parameters
    ----------
    backend : Backend
        Opened.
    images : ndarray of float32, shape (N, C, H, W)
        In [0, 1].
    noise : PhiloxNoise
        For these images.
    sampler : Sampler
        The loop.
    settings : SamplingDefaults
        Of which the kinds of code and map are used here.
    deadline : Deadline
        Asked before every call of a network.
    """

    def flip_probability(code: FloatArray, t: int) -> FloatArray:
        deadline.check()
        return backend.flip_probability(code, t)

    timings: dict[str, float] = {}
    deadline.check()
    with timed(timings, "encode"):
        probability = backend.encode(images)
        z_org = own_code(probability, noise, settings.code)
    with timed(timings, "loop"):
        state = sampler.run(z_org, flip_probability, noise)
    deadline.check()
    with timed(timings, "decode"):
        decoded = [backend.decode(state.z)]
        if settings.anomaly_map == "change":
            decoded.append(backend.decode(z_org))
    with timed(timings, "maps"):
        sound = _all_finite(probability, state.flips, *decoded)
        kind, clipped = settings.anomaly_map, [np.clip(values, 0, 1) for values in decoded]
        difference = None
        if kind != "flips":
            unchanged = clipped[1] if kind == "change" else None
            difference = anomaly_map(kind, images, clipped[0], unchanged, flips=None)
        flips = flip_mean(state.flips / np.float32(len(sampler.kept)))
    return Walk(difference, flips, clipped[0], sound, timings)


def own_code(probability: FloatArray, noise: PhiloxNoise, kind: CodeKind) -> FloatArray:
    """Code of images, 0 or 1, of its bit probabilities ``[N, K, h, w]``."""
    half = np.float32(0.5)
    uniforms = noise(CODE_STEP, probability.shape) if kind == "sample" else half
    return (uniforms < probability).astype(np.float32)


def _all_finite(*answers: FloatArray) -> NDArray[np.bool_]:
    return np.all([np.isfinite(values).all(axis=(1, 2, 3)) for values in answers], axis=0)


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds the context takes to an entry of `timings`."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start
