"""Simple opponents of the diffusion model: a z-score per pixel, and intensity itself.

On FLAIR images, where lesions are bright, both are strong. A detector that does not beat them does
not earn its cost, so `berdiff evaluate` reports them side by side. Both see the same images as
the model: on its grid, after its `Preprocessing`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.anomaly import smooth
from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import foreground

FloatArray = NDArray[np.float32]

# Lesion masks are drawn coarsely and lesions are larger than the folds of the cortex: smoothing
# by a forty-eighth of the image's height (4 pixels of 192) helped every map on real FLAIR slices.
SMOOTHING = 1 / 48

# A pixel that few training images show is judged as if these many more images had shown the
# average there: no pixel at the rim of the brain gets a standard deviation near zero.
PRIOR_IMAGES = 10


@dataclass(frozen=True)
class ZScore:
    """How far each pixel lies from what healthy images show at that place.

    Images are smoothed inside their foreground; mean and standard deviation of each pixel are
    taken over the healthy images that show it.

    Attributes
    ----------
    mean, std : ndarray of float32, shape (C, H, W)
        Of the smoothed healthy images; `std` is positive.
    smoothing : float
        Standard deviation of the Gaussian as a share of the image height H; 0: none.
    side : {"bright", "both"}
        "bright": (x - mean) / std, so that darker than usual counts as normal. "both": its
        absolute value.
    images : int
        Healthy images it was fitted on.
    """

    mean: FloatArray
    std: FloatArray
    smoothing: float
    side: Literal["bright", "both"]
    images: int

    @classmethod
    def fit(
        cls,
        images: Iterable[FloatArray],
        smoothing: float = SMOOTHING,
        side: Literal["bright", "both"] = "bright",
    ) -> ZScore:
        """Fit on healthy images.

        Parameters
        ----------
        images : iterable of ndarray of float32, shape (C, H, W)
            On the model's grid, in [0, 1], as `Preprocessing.to_grid` makes them; background 0.
        smoothing, side
            See the attributes.

        Raises
        ------
        InputError
            If there are fewer than two images, or all show the same.
        """
        count = 0
        # float64 sums: over pixels and over all, of values and of squares.
        for image in images:
            inside = foreground(image)[None].repeat(len(image), axis=0)
            values = smooth(image, inside, smoothing * image.shape[-2]).astype(np.float64)
            if count == 0:
                shown, total, squares = np.zeros((3, *image.shape))
            shown += inside
            total += values
            squares += values**2
            count += 1
        if count < 2:
            raise InputError(f"a z-score needs at least 2 healthy images, got {count}")
        axes = (1, 2)
        overall = (total.sum(axes) / np.maximum(shown.sum(axes), 1))[:, None, None]
        mean = (total + PRIOR_IMAGES * overall) / (shown + PRIOR_IMAGES)
        deviation = np.maximum(squares - 2 * mean * total + shown * mean**2, 0)
        usual = (deviation.sum(axes) / np.maximum(shown.sum(axes), 1))[:, None, None]
        variance = (deviation + PRIOR_IMAGES * usual) / (shown + PRIOR_IMAGES)
        if not (variance > 0).all():
            raise InputError("the healthy images are all the same: they have no spread to compare")
        std = np.sqrt(variance)
        return cls(mean.astype(np.float32), std.astype(np.float32), smoothing, side, count)

    def anomaly_map(self, images: FloatArray) -> FloatArray:
        """Score images ``[N, C, H, W]`` of the model's grid: mean over channels, ``[N, H, W]``.

        0 outside the foreground. With `side` "bright", values may be negative.
        """
        inside = foreground(images)[:, None].repeat(images.shape[1], axis=1)
        smoothed = smooth(images, inside, self.smoothing * images.shape[-2])
        z = (smoothed - self.mean) / self.std
        if self.side == "both":
            z = np.abs(z)
        return np.where(inside, z, np.float32(0)).mean(axis=1, dtype=np.float32)


def intensity(images: FloatArray, smoothing: float = SMOOTHING) -> FloatArray:
    """Brightness as an anomaly map: mean over channels, smoothed inside the foreground.

    Parameters
    ----------
    images : ndarray of float32, shape (N, C, H, W)
        On the model's grid, in [0, 1].
    smoothing : float
        As in `ZScore`.
    """
    inside = foreground(images)
    mean = images.mean(axis=1, dtype=np.float32)
    return smooth(mean, inside, smoothing * images.shape[-2])
