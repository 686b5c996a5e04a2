"""From a scan's slice to the model's grid and back: one implementation for training and inference.

A slice ``[C, H0, W0]`` of stored intensities is normalised on its own grid, then brought to the
model's grid ``[C, H, W]``: scaled in the plane (to the model's spacing, or to its size) and padded
or cropped about the centre. Results come back the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, optional

FloatArray = NDArray[np.float32]
Fit = Literal["pad", "resize"]
Normalisation = Literal["minmax", "foreground-median", "none"]

# "foreground-median" maps the median of the positive intensities here, so that a lesion more than
# twice as bright as the tissue around it still fits below 1.
MEDIAN_LEVEL = 0.35

_BRIGHT = 99.5  # percentile of the positive values that stands for bright tissue

# Part of a slice, by intensity, that may lie outside the model's field of view.
MAX_CROPPED = 0.05


@dataclass(frozen=True)
class Preprocessing:
    """The intended input of a model and how a slice is brought to it.

    Attributes
    ----------
    channels : int
        Number of image channels C.
    modalities : tuple of str
        One name per channel, for example ``("t1", "t1ce", "t2", "flair")``.
    size : tuple of int
        Height and width (H, W) of the model's grid, in pixels.
    fit : {"pad", "resize"}
        "pad" keeps the scale given by `spacing` and pads or crops about the centre;
        "resize" stretches the slice to `size`.
    spacing : float or None
        Model pixel size in mm ("pad" only). None: pixels are taken one for one.
    default_spacing : float or None
        Pixel size in mm assumed for files that carry none (PNG, JPEG).
    orientation : str
        Axis codes towards which rows, columns and slices grow, for volumes that have an affine.
        "PRS" shows the nose at the top and the patient's left on the left.
    background : float
        Share of a scan's bright level, the 99.5th percentile of a channel's positive values, up to
        which a voxel is background and set to 0 before anything else; 0 leaves all as it is. Keeps
        ripples of interpolation and noise of air out of the foreground.
    normalisation : {"minmax", "foreground-median", "none"}
        "minmax": (x - min) / (max - min) over the whole slice and all channels (the published
        method). "foreground-median": per channel, x * 0.35 / median(x > 0), clipped to [0, 1].
        "none": intensities are in [0, 1] already.
    """

    channels: int
    modalities: tuple[str, ...]
    size: tuple[int, int]
    fit: Fit = "pad"
    spacing: float | None = None
    default_spacing: float | None = None
    orientation: str = "PRS"
    normalisation: Normalisation = "minmax"
    background: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if self.channels < 1 or len(self.modalities) != self.channels:
            raise ValueError(
                f"{self.channels} channels need as many modality names, got {self.modalities}"
            )
        if min(self.size) < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        for name, known in (("fit", get_args(Fit)), ("normalisation", get_args(Normalisation))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("spacing", "default_spacing"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= self.background < 1:
            raise ValueError(f"background must lie in [0, 1), got {self.background}")
        axes = ("LR", "AP", "IS")
        if len(self.orientation) != 3 or any(
            sum(code in pair for code in self.orientation) != 1 for pair in axes
        ):
            raise ValueError(
                f"orientation must be three axis codes like PRS, got {self.orientation!r}"
            )

    def clear_background(self, slices: FloatArray) -> FloatArray:
        """Set the background of a scan to 0, channel by channel over all of its slices.

        Parameters
        ----------
        slices : ndarray of float32, shape (S, C, H0, W0)
            Stored intensities of the whole scan.

        Returns
        -------
        ndarray of float32, shape (S, C, H0, W0)
            The array itself where `background` is 0, otherwise a copy in which values up to that
            share of the bright level, negative ones among them, are 0.
        """
        if self.background == 0:
            return slices
        cleared = np.zeros(slices.shape, slices.dtype)
        for channel in range(slices.shape[1]):
            positive = slices[:, channel][slices[:, channel] > 0]
            if not positive.size:
                continue
            level = np.percentile(positive, _BRIGHT, overwrite_input=True)
            for before, after in zip(slices[:, channel], cleared[:, channel], strict=True):
                # NaN is no background: it stays, and is refused later.
                np.copyto(after, before, where=~(before <= self.background * level))
        return cleared

    def to_grid(
        self, image: NDArray[Any], spacing: tuple[float, float] | None = None
    ) -> FloatArray:
        """Bring one slice to the model's grid.

        Parameters
        ----------
        image : ndarray, shape (C, H0, W0)
            Stored intensities, any real dtype.
        spacing : tuple of float, optional
            Row and column pixel size in mm; None where the file carries none.

        Returns
        -------
        ndarray of float32, shape (C, H, W)
            In [0, 1]; background is 0.

        Raises
        ------
        InputError
            If the slice has another number of channels, holds NaN or infinity, is constant, or
            does not fit into the model's field of view.
        """
        image = np.asarray(image, dtype=np.float32)
        self._check(image)
        return self.place(self.normalise(image), spacing)

    def place(
        self, normalised: FloatArray, spacing: tuple[float, float] | None = None
    ) -> FloatArray:
        """Scale and pad or crop one normalised slice: `to_grid` without `normalise`.

        Parameters
        ----------
        normalised : ndarray of float32, shape (C, H0, W0)
            In [0, 1], from `normalise`.
        spacing : tuple of float, optional
            As for `to_grid`.

        Returns
        -------
        ndarray of float32, shape (C, H, W)
            In [0, 1]; background is 0.

        Raises
        ------
        InputError
            If the slice has another number of channels, or does not fit into the model's field of
            view.
        """
        self._check(normalised)
        scaled = _resize(normalised, self._scaled_shape(normalised.shape[1:], spacing))
        placed = self._place(scaled) if self.fit == "pad" else scaled
        return np.clip(placed, 0.0, 1.0)

    def _check(self, image: FloatArray) -> None:
        if image.ndim != 3 or image.shape[0] != self.channels:
            raise InputError(
                f"got an image of shape {image.shape}; the model takes {self.channels} channel(s) "
                f"({', '.join(self.modalities)}) as [channel, row, column]"
            )
        if min(image.shape) < 1:
            raise InputError(f"the image is empty: shape {image.shape}")

    def from_grid(
        self,
        values: NDArray[Any],
        shape: tuple[int, int],
        spacing: tuple[float, float] | None = None,
    ) -> FloatArray:
        """Bring a map on the model's grid back to a slice's own grid.

        Parameters
        ----------
        values : ndarray, shape (..., H, W)
            Values on the model's grid.
        shape : tuple of int
            The slice's own (H0, W0).
        spacing : tuple of float, optional
            As given to `to_grid`.

        Returns
        -------
        ndarray of float32, shape (..., H0, W0)
            Bilinear where the scale differs; 0 outside the model's field of view.
        """
        scaled_shape = self._scaled_shape(shape, spacing)
        flat = np.asarray(values, dtype=np.float32).reshape(-1, *self.size)
        if self.fit == "pad":
            inner, outer = self._overlap(scaled_shape)
            back = np.zeros((len(flat), *scaled_shape), np.float32)
            back[:, outer[0], outer[1]] = flat[:, inner[0], inner[1]]
            flat = back
        return _resize(flat, shape).reshape(*np.shape(values)[:-2], *shape)

    def normalise(self, image: NDArray[Any]) -> FloatArray:
        """Map stored intensities ``[C, H0, W0]`` to [0, 1] as `normalisation` says."""
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = self._scale(np.asarray(image, dtype=np.float32))
        if not np.isfinite(scaled).all():
            raise InputError(
                f"intensities from {np.min(image):g} to {np.max(image):g} are too large or too "
                "small for 32-bit floats; rescale the file"
            )
        return scaled

    def _scale(self, image: FloatArray) -> FloatArray:
        if not np.isfinite(image).all():
            bad = int(np.count_nonzero(~np.isfinite(image)))
            raise InputError(f"{bad} of {image.size} values are NaN or infinite; repair the file")
        low, high = float(image.min()), float(image.max())
        if low == high:
            raise InputError(f"the image is constant (every value is {low:g})")
        if self.normalisation == "minmax":
            return (image - np.float32(low)) / np.float32(high - low)
        if self.normalisation == "none":
            if low < 0 or high > 1:
                raise InputError(f"the model takes intensities in [0, 1], got {low:g} to {high:g}")
            return image
        scaled = np.empty_like(image)
        for channel, name in enumerate(self.modalities):
            positive = image[channel][image[channel] > 0]
            if positive.size == 0:
                raise InputError(f"channel {channel} ({name}) has no positive intensity")
            scaled[channel] = image[channel] * np.float32(MEDIAN_LEVEL / np.median(positive))
        return np.clip(scaled, 0.0, 1.0)

    def _scaled_shape(
        self, shape: tuple[int, ...], spacing: tuple[float, float] | None
    ) -> tuple[int, int]:
        """In-plane shape after scaling, before padding or cropping."""
        if self.fit == "resize":
            return self.size
        if self.spacing is None:
            return shape[0], shape[1]
        if spacing is None:
            if self.default_spacing is None:
                raise InputError(
                    f"the file carries no pixel spacing and the model works at {self.spacing:g} mm "
                    "per pixel; convert it to NIfTI with the right affine"
                )
            spacing = (self.default_spacing, self.default_spacing)
        rows, columns = (
            max(1, round(count * size / self.spacing))
            for count, size in zip(shape, spacing, strict=True)
        )
        if max(rows / self.size[0], columns / self.size[1]) > 4:
            raise InputError(
                f"the slice measures {shape[0] * spacing[0]:.0f} x {shape[1] * spacing[1]:.0f} mm; "
                f"the model's field of view is {self.size[0] * self.spacing:.0f} x "
                f"{self.size[1] * self.spacing:.0f} mm"
            )
        return rows, columns

    def _overlap(self, shape: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a centred slice of `shape` and the model's grid cover each other."""
        inner, outer = [], []
        for have, want in zip(shape, self.size, strict=True):
            count = min(have, want)
            inner.append(slice((want - count) // 2, (want - count) // 2 + count))
            outer.append(slice((have - count) // 2, (have - count) // 2 + count))
        return (inner[0], inner[1]), (outer[0], outer[1])

    def _place(self, image: FloatArray) -> FloatArray:
        """Pad or crop about the centre; refuse to cut off more than a sliver of foreground."""
        inner, outer = self._overlap((image.shape[1], image.shape[2]))
        placed = np.zeros((self.channels, *self.size), np.float32)
        placed[:, inner[0], inner[1]] = image[:, outer[0], outer[1]]
        # Weighed by intensity: the noise of the air around an unstripped head must not count.
        total = float(image.sum(dtype=np.float64))
        lost = total - float(placed.sum(dtype=np.float64))
        if lost > MAX_CROPPED * total:
            raise InputError(
                f"{lost / total:.0%} of the image (by intensity) lies outside the model's field of "
                f"view of {self.size[0]} x {self.size[1]} pixels; crop the scan or resample it"
            )
        return placed


def foreground(images: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that show anything: any channel above 0; ``[..., C, H, W] -> [..., H, W]``."""
    planes = np.moveaxis(np.asarray(images), -3, 0)
    shown: NDArray[np.bool_] = planes[0] > 0
    for plane in planes[1:]:
        shown |= plane > 0
    return shown


def _resize(images: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Resize planes ``[N, H0, W0]``, bilinear, averaging over the footprint when shrinking."""
    if images.shape[1:] == tuple(shape):
        return np.ascontiguousarray(images)
    pillow = optional("PIL.Image", "images")
    return np.stack(
        [
            np.asarray(
                pillow.fromarray(np.ascontiguousarray(plane)).resize(
                    (shape[1], shape[0]), pillow.Resampling.BILINEAR
                )
            )
            for plane in images
        ]
    )
