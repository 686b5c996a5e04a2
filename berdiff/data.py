"""Healthy training images: loading, splitting, batching and augmenting.

Which images a step sees, and how they are changed, is a function of the seed and the step alone:
a run that was killed and continued sees exactly what an uninterrupted one would have seen, and so
do several processes that share a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.errors import InputError, optional
from berdiff.runtime.image_features import describe
from berdiff.runtime.intake import InputStatistics, fit, scored
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import ScanSource, find_scans, read_scan

from .training_config import Augmentation

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class HealthyImages:
    """Healthy slices on the model's grid.

    Attributes
    ----------
    train, validation : ndarray of float32, shapes (N, C, H, W)
        In [0, 1].
    digest : str
        SHA-256 over all of them: a continued run must see the same images.
    """

    train: FloatArray
    validation: FloatArray
    digest: str

    def statistics(self, modalities: tuple[str, ...]) -> InputStatistics | None:
        """What these images look like; None of too few.

        All of them count: each is measured by statistics of others, so none has to be held out.
        """
        described = [describe(images) for images in (self.train, self.validation)]
        return fit(np.concatenate(described), modalities)


def load_healthy(
    folder: Path,
    preprocessing: Preprocessing,
    validation_fraction: float,
    progress: Callable[[int, int], None] | None = None,
) -> HealthyImages:
    """Read a folder of slices or volumes and hold a part of the *scans* out for validation.

    Parameters
    ----------
    folder : Path
        Images of any supported format.
    preprocessing : Preprocessing
        How slices are brought to the model's grid.
    validation_fraction : float
        Part of the scans held out, at least one; chosen by the hash of the file's name, so that
        adding scans moves few others.
    progress : callable, optional
        Called with (scans read, scans in all).

    Raises
    ------
    InputError
        If a scan cannot be used (training on part of what was given would go unnoticed), or there
        are fewer than two.
    """
    sources = find_scans(folder, preprocessing).sources
    if len(sources) < 2:
        raise InputError(f"{folder} holds {len(sources)} scan(s); training needs at least 2")
    held_out = _held_out([source.key for source in sources], validation_fraction)
    train: list[FloatArray] = []
    validation: list[FloatArray] = []
    for count, source in enumerate(sources):
        images = _slices(source, preprocessing)
        (validation if source.key in held_out else train).extend(images)
        if progress:
            progress(count + 1, len(sources))
    digest = hashlib.sha256()
    for image in (*train, *validation):
        digest.update(image.tobytes())
    return HealthyImages(np.stack(train), np.stack(validation), digest.hexdigest())


def _held_out(names: list[str], fraction: float) -> set[str]:
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def _slices(source: ScanSource, preprocessing: Preprocessing) -> list[FloatArray]:
    """Slices of one scan on the model's grid, without the nearly empty ends of a volume."""
    try:
        scan = read_scan(source, preprocessing)
        slices = preprocessing.clear_background(scan.slices)
        shown = (slices > 0).any(axis=1).sum(axis=(1, 2))
        keep = np.flatnonzero(scored(shown))
        return [preprocessing.to_grid(slices[index], scan.spacing) for index in keep]
    except InputError as error:
        raise InputError(f"{source.key}: {error}") from error


@dataclass(frozen=True)
class Batches:
    """Endless shuffled batches, addressable by step.

    Attributes
    ----------
    count : int
        Number of images.
    batch_size : int
        Images per step over all processes.
    seed : int
        Seed of the run.
    rank, world_size : int
        This process and how many share each batch.
    """

    count: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def positions(self) -> range:
        """Places in the batch that this process takes."""
        return range(self.rank, self.batch_size, self.world_size)

    def indices(self, step: int) -> list[int]:
        """Images of one step for this process; each image once per epoch."""
        orders: dict[int, NDArray[np.int64]] = {}
        chosen = []
        for position in self.positions():
            epoch, place = divmod(step * self.batch_size + position, self.count)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([self.seed, 1, epoch]).permutation(self.count)
            chosen.append(int(orders[epoch][place]))
        return chosen

    def generators(self, step: int) -> list[np.random.Generator]:
        """One random generator for each image of this process at one step."""
        return [
            np.random.default_rng([self.seed, 2, step, position]) for position in self.positions()
        ]


def augment(image: FloatArray, settings: Augmentation, rng: np.random.Generator) -> FloatArray:
    """Return a randomly changed copy of an image ``[C, H, W]`` in [0, 1]."""
    flip = settings.flip and rng.random() < 0.5
    angle, grow, up, left, bright = rng.uniform(-1, 1, 5)
    if flip:
        image = image[:, :, ::-1]
    if settings.rotation or settings.scale or settings.shift:
        image = _move(
            image,
            np.deg2rad(settings.rotation * angle),
            1 + settings.scale * grow,
            (settings.shift * up * image.shape[1], settings.shift * left * image.shape[2]),
        )
    if settings.intensity:
        image = np.clip(image * np.float32(1 + settings.intensity * bright), 0, 1)
    return np.ascontiguousarray(image)


def _move(image: FloatArray, angle: float, scale: float, shift: tuple[float, float]) -> FloatArray:
    """Rotate, scale and shift about the centre, bilinear, zero outside."""
    ndimage = optional("scipy.ndimage", "train")
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    centre = (np.array(image.shape[1:]) - 1) / 2
    offset = centre - turn @ (centre + np.array(shift))
    return np.stack(
        [ndimage.affine_transform(plane, turn, offset, order=1) for plane in image]
    ).astype(np.float32)
