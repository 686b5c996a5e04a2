"""Bernoulli diffusion once more, in float64 NumPy: the oracle of the schedule and the loop.

Nothing here is shared with the package. Probabilities are float64; only the comparison that turns
one into a bit is float32, as the method prescribes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FlipProbability = Callable[[Array, int], Array]
Noise = Callable[[int, tuple[int, ...]], Array]


def cumulative_alphas(num_timesteps: int = 1000) -> Array:
    """`abar` [T]: linear betas 1e-4..0.02, scaled by 1000/T."""
    scale = 1000 / num_timesteps
    betas = np.linspace(1e-4 * scale, 0.02 * scale, num_timesteps, dtype=np.float64)
    return np.cumprod(1 - betas)


def forward_mean(z0: Array, abar: float, kind: str) -> Array:
    """q(z_t = 1 | z_0): with the term towards one half ("bernoulli") or without ("upstream")."""
    mean = abar * np.asarray(z0, np.float64)
    return mean + (1 - abar) / 2 if kind == "bernoulli" else mean


def posterior(z0: Array, zt: Array, a: float, abar_prev: float) -> Array:
    """q(z_{prev} = 1 | z_t, z_0) for a soft z_0, with alpha `a` of the step from prev to t."""
    z0, zt = np.asarray(z0, np.float64), np.asarray(zt, np.float64)
    one = (a * zt + (1 - a) / 2) * (abar_prev * z0 + (1 - abar_prev) / 2)
    zero = (a * (1 - zt) + (1 - a) / 2) * (abar_prev * (1 - z0) + (1 - abar_prev) / 2)
    return one / (zero + one)


def reverse_times(noise_level: int, steps: int | None = None) -> list[int]:
    """Original steps the reverse walk visits, ascending: all below L, or K spread over [0, L)."""
    if steps is None:
        return list(range(noise_level))
    return [round(i * (noise_level - 1) / (steps - 1)) for i in range(steps)]


@dataclass
class Loop:
    """What one run of the masked loop left behind, and how close its closest decision was."""

    final: Array
    mask: NDArray[np.bool_]
    closest_draw: float = np.inf
    closest_flip: float = np.inf
    times: list[int] = field(default_factory=list)


def masked_loop(
    z_org: Array,
    flip_probability: FlipProbability,
    noise: Noise,
    abar: Array,
    *,
    noise_level: int,
    flip_threshold: float = 0.5,
    kind: str = "bernoulli",
    steps: int | None = None,
) -> Loop:
    """METHOD, section 4. `noise(t, shape)` gives the uniforms, t being an original step."""
    times = reverse_times(noise_level, steps)
    run = Loop(final=z_org, mask=np.zeros(z_org.shape, bool), times=times)

    def draw(probability: Array, t: int) -> Array:
        p, u = probability.astype(np.float32), noise(t, probability.shape).astype(np.float32)
        run.closest_draw = min(run.closest_draw, float(np.abs(p.astype(np.float64) - u).min()))
        return (u < p).astype(np.float64)

    z = draw(forward_mean(z_org, abar[noise_level], kind), noise_level)
    for previous, t in reversed(list(itertools.pairwise(times))):
        eps = flip_probability(z, t)
        run.closest_flip = min(run.closest_flip, float(np.abs(eps - flip_threshold).min()))
        run.mask = run.mask | (eps > flip_threshold)
        z0 = np.where(run.mask, np.abs(z - eps), z_org)
        z = draw(posterior(z0, z, abar[t] / abar[previous], abar[previous]), t)
    run.final = np.abs(z - flip_probability(z, times[0]))
    return run


# --- Philox4x32-10 (Salmon et al. 2011) in plain integers ------------------------------------

WORD = 0xFFFFFFFF


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Four 32-bit words of a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (right >> 32) ^ c1 ^ k0, right & WORD, (left >> 32) ^ c3 ^ k1, left & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def philox_uniforms(seed: int, image_id: int, t: int, shape: tuple[int, ...]) -> Array:
    """Uniforms of one image [K,h,w], float32, by METHOD section 5."""
    key = (seed & WORD, seed >> 32)
    count = int(np.prod(shape))
    words: list[int] = []
    for block in range(-(-count // 4)):
        words += philox((block, t, image_id & WORD, image_id >> 32), key)
    values = [(word >> 8) * 2.0**-24 for word in words[:count]]
    return np.array(values, np.float32).reshape(shape)


def philox_noise(seed: int, image_ids: list[int]) -> Noise:
    """The uniforms of a batch: each image gets what it would get alone."""

    def noise(t: int, shape: tuple[int, ...]) -> Array:
        return np.stack([philox_uniforms(seed, image, t, shape[1:]) for image in image_ids])

    return noise


def sequential_noise(key: int) -> Noise:
    """Uniforms drawn one after another from NumPy's generator, as the reference fixtures do."""
    generator = np.random.Generator(np.random.Philox(key=key))

    def noise(t: int, shape: tuple[int, ...]) -> Array:
        return generator.random(shape, dtype=np.float32)

    return noise
