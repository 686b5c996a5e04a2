"""Counter-based random numbers: a draw depends on seed, image, step and element, nothing else.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

# The step number under which a sampled code is drawn; no reverse step ever has it.
CODE_STEP = 0xFFFFFFFF


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32.

    Parameters
    ----------
    counter : array_like of uint32, shape (..., 4)
        Counter words, least significant first.
    key : array_like of uint32, shape (2,)
        Key words.

    Returns
    -------
    ndarray of uint32, shape (..., 4)
        Four random words per counter.
    """
    counters = np.asarray(counter, dtype=np.uint32)
    low, high = (int(word) for word in np.asarray(key, dtype=np.uint32))
    words = _rounds(counters.reshape(-1, 4).T.astype(np.uint64), low, high)
    return words.T.astype(np.uint32).reshape(counters.shape)


def _rounds(words: NDArray[np.uint64], key0: int, key1: int) -> NDArray[np.uint64]:
    """Apply the ten rounds to ``words [4, n]``, 32-bit values held in 64 bits, in place."""
    w0, w1, w2, w3 = words
    product0, product1 = np.empty_like(w0), np.empty_like(w0)
    for _ in range(10):
        np.multiply(w0, _MULTIPLIERS[0], out=product0)
        np.multiply(w2, _MULTIPLIERS[1], out=product1)
        np.right_shift(product1, _HALF, out=w0)
        w0 ^= w1
        w0 ^= np.uint64(key0)
        np.right_shift(product0, _HALF, out=w2)
        w2 ^= w3
        w2 ^= np.uint64(key1)
        np.bitwise_and(product1, _LOW, out=w1)
        np.bitwise_and(product0, _LOW, out=w3)
        key0 = (key0 + _KEY_STEPS[0]) & 0xFFFFFFFF
        key1 = (key1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return words


class PhiloxNoise:
    """Uniform noise for a batch of images, each image drawing from its own stream.

    Parameters
    ----------
    seed : int
        64-bit seed of the run.
    image_ids : array_like of uint64, shape (N,)
        Identity of each image; equal ids draw equal noise.
    """

    def __init__(self, seed: int, image_ids: ArrayLike) -> None:
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed must be a 64-bit unsigned integer, got {seed}")
        self.seed = seed
        # As objects first: NumPy would make floats, which hold 53 bits, of some lists of integers.
        ids = np.asarray(image_ids, dtype=object).reshape(-1)
        if not all(isinstance(i, (int, np.integer)) and 0 <= int(i) < 1 << 64 for i in ids):
            raise ValueError(f"image ids must be 64-bit unsigned integers, got {image_ids!r}")
        self.image_ids: NDArray[np.uint64] = ids.astype(np.uint64)

    def __call__(self, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draw uniforms in [0, 1) for one step.

        Parameters
        ----------
        step : int
            The original timestep, or `CODE_STEP`.
        shape : tuple of int
            (N, K, h, w); N must be the number of image ids.

        Returns
        -------
        ndarray of float32, shape (N, K, h, w)
            Multiples of 2**-24.
        """
        if shape[0] != len(self.image_ids):
            raise ValueError(f"noise for {len(self.image_ids)} images was asked for {shape[0]}")
        count = math.prod(shape[1:])
        uniforms = np.empty((shape[0], count), np.float32)
        for row, image_id in zip(uniforms, self.image_ids, strict=True):
            row[:] = _uniforms(self.seed, int(image_id), step, count)
        return uniforms.reshape(shape)


def _uniforms(seed: int, image_id: int, step: int, count: int) -> NDArray[np.float32]:
    """Uniforms of one image at one step: element e is lane e % 4 of counter e // 4."""
    blocks = -(-count // 4)
    words = np.empty((4, blocks), np.uint64)
    words[0] = np.arange(blocks, dtype=np.uint64)
    words[1] = step
    words[2] = image_id & 0xFFFFFFFF
    words[3] = image_id >> 32
    _rounds(words, seed & 0xFFFFFFFF, seed >> 32)
    words >>= np.uint64(8)
    uniforms = np.empty((blocks, 4), np.float32)
    np.multiply(words.T, np.float32(2.0**-24), out=uniforms, casting="unsafe", dtype=np.float32)
    return uniforms.reshape(-1)[:count]
