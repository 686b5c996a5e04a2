"""What the ranges of an int8 denoiser are measured on: codes as the masked loop meets them.

They come from the loop itself, walked back from healthy images: codes of another kind, random ones
say, would give the ranges of something the denoiser never sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.backends import Backend
from berdiff.runtime.batches import read_job
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import InputError
from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.sampler import FloatArray, Sampler
from berdiff.runtime.scans import find_scans

IMAGES = 32

# Besides the bundle's own settings, loops start at this many noise levels, spread up to the
# highest or to the bundle's own where that is higher: `infer` can be asked for any of them.
LEVELS = 4
HIGHEST_LEVEL = 300

# More steps of one loop hardly differ from one another.
MOST_STEPS = 25
BATCH = 8


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """What the denoiser gets in masked loops over healthy images.

    Attributes
    ----------
    codes : ndarray of bool, shape (P, K, h, w)
        Codes on their way back.
    timesteps : ndarray of int64, shape (P,)
        At which step each was met.
    """

    codes: NDArray[np.bool_]
    timesteps: NDArray[np.int64]

    def feeds(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the denoiser's inputs by name, one code at a time."""
        for code, t in zip(self.codes, self.timesteps, strict=True):
            yield {"code": code[None].astype(np.float32), "t": t[None]}


def calibration_images(
    folder: Path, preprocessing: Preprocessing, count: int = IMAGES
) -> FloatArray:
    """Read healthy slices, spread evenly over the scans of a folder, as `infer` would see them.

    Parameters
    ----------
    folder : Path
        Healthy scans of any supported format.
    preprocessing : Preprocessing
        How slices are brought to the model's grid.
    count : int
        How many slices to take at most.

    Returns
    -------
    ndarray of float32, shape (M, C, H, W)
        On the model's grid, in [0, 1].

    Raises
    ------
    InputError
        If there is no scan, or one that was chosen cannot be used.
    """
    sources = find_scans(folder, preprocessing).sources
    chosen = [sources[index] for index in _evenly(min(count, len(sources)), len(sources))]
    images: list[FloatArray] = []
    for number, source in enumerate(chosen):
        slices = read_job(source, preprocessing).images
        share = min(len(slices), (count * (number + 1)) // len(chosen) - len(images))
        images += [slices[index] for index in _evenly(share, len(slices))]
    return np.stack(images)


def _evenly(count: int, length: int) -> NDArray[np.int64]:
    return np.arange(count) * length // max(count, 1)


def calibration_set(
    bundle: Bundle, backend: Backend, images: FloatArray, seed: int = 0
) -> CalibrationSet:
    """Walk healthy images back with the masked loop, and keep codes met on the way.

    Every image is walked with the bundle's own settings, and once more from one of `LEVELS` noise
    levels; of each batch, one code is kept at every step, another image's each time.

    Parameters
    ----------
    bundle : Bundle
        The bundle in float32.
    backend : Backend
        Its networks, opened.
    images : ndarray of float32, shape (M, C, H, W)
        Healthy, on the model's grid, in [0, 1].
    seed : int
        64-bit seed of the loops.

    Raises
    ------
    InputError
        If there are no images, or they have another shape.
    """
    pre = bundle.manifest.preprocessing
    if images.shape[1:] != (pre.channels, *pre.size) or not len(images):
        raise InputError(
            f"got images of shape {images.shape} to calibrate on, expected at least one, "
            f"[M, {pre.channels}, {pre.size[0]}, {pre.size[1]}]"
        )
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    own = np.concatenate([backend.encode(part) > 0.5 for part in parts]).astype(np.float32)
    codes: list[NDArray[np.bool_]] = []
    timesteps: list[int] = []

    def note(code: FloatArray, t: int) -> FloatArray:
        codes.append(code[len(codes) % len(code)] > 0.5)
        timesteps.append(t)
        return backend.flip_probability(code, t)

    for sampler, numbers in _walks(bundle, backend, len(images)):
        sampler.run(own[numbers], note, PhiloxNoise(seed, numbers.astype(np.uint64)))
    return CalibrationSet(np.stack(codes), np.array(timesteps, np.int64))


def _walks(
    bundle: Bundle, backend: Backend, count: int
) -> Iterator[tuple[Sampler, NDArray[np.int64]]]:
    """Loops to walk, and the images of each: the bundle's own settings, then other noise levels."""
    settings = bundle.manifest.sampling
    highest = min(max(HIGHEST_LEVEL, settings.noise_level), len(bundle.schedule) - 1)
    levels = [max(1, highest * number // LEVELS) for number in range(1, LEVELS + 1)]
    walks = [(settings, np.arange(count))]
    for index, level in enumerate(levels):
        chosen = np.arange(index, max(count, LEVELS), LEVELS) % count
        walks.append((dataclasses.replace(settings, noise_level=level, steps=None), chosen))
    detector = Detector(bundle, backend)
    for options, chosen in walks:
        steps = min(options.steps or options.noise_level, MOST_STEPS)
        sampler = detector.sampler(dataclasses.replace(options, steps=steps))
        for start in range(0, len(chosen), BATCH):
            yield sampler, chosen[start : start + BATCH]
