"""The detector: images in, anomaly maps out. This is what other software embeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .anomaly import flip_map, image_score, median_filter, otsu, segment, smooth
from .backends import Backend, open_backend
from .bundle import Bundle
from .closing import Closing
from .cuda.backend import DeviceBackend
from .errors import BackendError, InputError
from .manifest import AnomalyMapKind, SamplingDefaults
from .philox import PhiloxNoise
from .preprocessing import Preprocessing, foreground
from .sampler import Sampler
from .sampling_settings import fill_settings, make_sampler
from .walk import timed, walk

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Detection:
    """Result for a batch of images, on the model's grid.

    An image without foreground, that is, of zeros, is not looked at: its maps, reconstruction and
    score are 0 and its mask is empty.

    Attributes
    ----------
    anomaly_map : ndarray of float32, shape (N, H, W)
        At least 0; larger is more anomalous. Which kind it is, the bundle says.
    flip_map : ndarray of float32, shape (N, H, W)
        Mean probability, over steps and bits, that the healthy code differs; in [0, 1].
    reconstruction : ndarray of float32, shape (N, C, H, W)
        The healthy counterpart, in [0, 1].
    mask : ndarray of bool, shape (N, H, W)
        Segmentation by the threshold the bundle was calibrated to for these settings, or by
        Otsu's where there is none. Empty where a network answered with NaN or infinity: the maps
        and the reconstruction of that image are NaN throughout.
    score : ndarray of float64, shape (N,)
        Mean of the highest 1 % of the anomaly map inside the foreground.
    timings : dict of str to float
        Seconds spent in "encode", "loop", "decode" and "maps", for the whole batch; 0 where no
        image shows anything.
    """

    anomaly_map: FloatArray
    flip_map: FloatArray
    reconstruction: FloatArray
    mask: NDArray[np.bool_]
    score: NDArray[np.float64]
    timings: dict[str, float]


@dataclass(frozen=True)
class DeviceDetection:
    """Result for a batch of images that stays on the GPU.

    The arrays offer DLPack and ``__cuda_array_interface__``: CuPy, PyTorch and others take them
    over without a copy. They belong to the caller, and everything in them is done.

    Attributes
    ----------
    anomaly_map : DeviceArray of float32, shape (N, H, W)
        As in `Detection`, before smoothing.
    flip_mean : DeviceArray of float32, shape (N, h, w)
        Mean probability, over steps and bits, that the healthy code differs; in [0, 1].
    reconstruction : DeviceArray of float32, shape (N, C, H, W)
        The healthy counterpart, in [0, 1].
    sound : ndarray of bool, shape (N,)
        False where a network answered with NaN or infinity; that image's results are NaN.
    """

    anomaly_map: Any
    flip_mean: Any
    reconstruction: Any
    sound: NDArray[np.bool_]


class Detector(Closing):
    """A bundle opened on a backend.

    Use one per worker thread; `detect` keeps no state between calls.

    Examples
    --------
    >>> with Detector.open("bundle") as detector:  # doctest: +SKIP
    ...     detection = detector.detect(images, ids=[1, 2], seed=0)
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.schedule = bundle.schedule

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        backend: str = "onnxruntime",
        device: str = "cpu",
        threads: int | None = None,
    ) -> Detector:
        """Open a bundle on a backend.

        Parameters
        ----------
        bundle : str, Path or Bundle
            The folder, or a bundle opened before.
        backend : str
            Name of the engine backend.
        device : str
            For example "cpu".
        threads : int, optional
            Number of CPU threads; None leaves it to the backend.

        Raises
        ------
        BundleError
            If the bundle is incomplete or altered.
        BackendError
            If the backend or device is unknown or not available here.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        return cls(opened, open_backend(opened, backend, device, threads))

    def close(self) -> None:
        """Release the engines."""
        self.backend.close()

    def warm_up(self, batch_size: int = 1) -> None:
        """Run every network once on zeros, so that the first real image is not the slow one."""
        pre, code = self.bundle.manifest.preprocessing, self.bundle.manifest.code
        self.backend.encode(np.zeros((batch_size, pre.channels, *pre.size), np.float32))
        zeros = np.zeros((batch_size, code.channels, code.height, code.width), np.float32)
        self.backend.flip_probability(zeros, 0)
        self.backend.decode(zeros)

    def settings(
        self,
        noise_level: int | None = None,
        steps: int | None = None,
        flip_threshold: float | None = None,
        anomaly_map: AnomalyMapKind | None = None,
    ) -> SamplingDefaults:
        """Fill in the bundle's defaults where an argument is None; see `fill_settings`."""
        return fill_settings(self.bundle, noise_level, steps, flip_threshold, anomaly_map)

    def sampler(self, settings: SamplingDefaults) -> Sampler:
        """Return the sampling loop for given settings."""
        return make_sampler(self.bundle, settings)

    def detect(
        self,
        images: NDArray[np.float32],
        ids: ArrayLike,
        seed: int = 0,
        settings: SamplingDefaults | None = None,
    ) -> Detection:
        """Find anomalies in a batch.

        What an image gets depends on its pixels, its id, the seed and the settings only, not on
        the rest of the batch. The networks see only images that show something; what the others
        get is defined, see `Detection`.

        Parameters
        ----------
        images : ndarray of float32, shape (N, C, H, W)
            On the model's grid, in [0, 1]; see `Preprocessing.to_grid`.
        ids : array_like of uint64, shape (N,)
            Identity of each image: which noise it draws.
        seed : int
            64-bit seed of the run.
        settings : SamplingDefaults, optional
            From `settings`; None takes the bundle's.

        Raises
        ------
        InputError
            If the images have another shape or do not lie in [0, 1], or seed, ids or a setting
            are out of range.
        """
        settings = settings or self.settings()
        images = self._check(images)
        noise = _noise(seed, ids, len(images))
        sampler = self.sampler(settings)
        shown = np.any(foreground(images), axis=(1, 2))
        if shown.all():
            return self._detect(images, noise, sampler, settings)
        found = None
        if shown.any():
            noise = PhiloxNoise(seed, noise.image_ids[shown])
            found = self._detect(images[shown], noise, sampler, settings)
        return _among_empty(found, shown, images.shape)

    def detect_on_device(
        self,
        images: Any,
        ids: ArrayLike,
        seed: int = 0,
        settings: SamplingDefaults | None = None,
    ) -> DeviceDetection:
        """Find anomalies in images that lie on the detector's GPU, and leave the result there.

        The values are not looked at: images must hold what `detect` asks for, and those of zeros
        are walked like any other.

        Parameters
        ----------
        images : array of float32, shape (N, C, H, W)
            Of any library that offers DLPack or ``__cuda_array_interface__``; C-contiguous, on the
            same GPU. Not copied; not to be changed before this returns.
        ids, seed, settings
            As for `detect`.

        Raises
        ------
        BackendError
            If the detector is not on a GPU, or the images are not.
        InputError
            As for `detect`, for shape, type, seed, ids and settings.
        """
        if not isinstance(self.backend, DeviceBackend):
            raise BackendError(
                f"the detector runs on '{self.backend.device}'; images on a GPU need a detector "
                "opened there, for example with device='cuda'"
            )
        settings = settings or self.settings()
        view, pre = self.backend.view(images), self.bundle.manifest.preprocessing
        if len(view.shape) != 4 or view.shape[1:] != (pre.channels, *pre.size) or not view.shape[0]:
            raise InputError(_shape_message(view.shape, pre))
        if view.dtype != np.float32:
            raise InputError(f"got images of {view.dtype}, expected float32")
        noise = _noise(seed, ids, view.shape[0])
        arrays, sound = self.backend.walk_on_device(view, noise, self.sampler(settings), settings)
        return DeviceDetection(arrays["map"], arrays["flip_mean"], arrays["reconstruction"], sound)

    def _detect(
        self, images: FloatArray, noise: PhiloxNoise, sampler: Sampler, settings: SamplingDefaults
    ) -> Detection:
        """Find anomalies in images that all show something."""
        if isinstance(self.backend, DeviceBackend):
            walked = self.backend.walk(images, noise, sampler, settings)
        else:
            walked = walk(self.backend, images, noise, sampler, settings)
        with timed(walked.timings, "maps"):
            flips = flip_map(walked.flips, images.shape[2:])
            maps = walked.anomaly_map if walked.anomaly_map is not None else median_filter(flips)
            inside = foreground(images)
            if settings.smoothing:
                maps = smooth(maps, inside, settings.smoothing * images.shape[2])
            for values in (maps, flips, walked.reconstruction):
                values[~walked.sound] = np.nan
            calibrated = self.calibrated_threshold(settings)
            mask = np.stack([_mask(calibrated, *pair) for pair in zip(maps, inside, strict=True)])
            score = np.array([image_score(*pair) for pair in zip(maps, inside, strict=True)])
        return Detection(maps, flips, walked.reconstruction, mask, score, walked.timings)

    def calibrated_threshold(self, settings: SamplingDefaults) -> float | None:
        """Return the bundle's threshold if it was calibrated for these settings, else None."""
        calibrated = self.bundle.manifest.threshold
        if calibrated is None or calibrated.mismatch(settings):
            return None
        return calibrated.value

    def _check(self, images: NDArray[np.float32]) -> FloatArray:
        pre = self.bundle.manifest.preprocessing
        images = np.ascontiguousarray(images, dtype=np.float32)
        if images.ndim != 4 or images.shape[1:] != (pre.channels, *pre.size) or not len(images):
            raise InputError(_shape_message(images.shape, pre))
        if not np.isfinite(images).all():
            raise InputError("the images hold NaN or infinite values")
        if images.min() < 0 or images.max() > 1:
            raise InputError(
                f"the images hold values from {images.min():g} to {images.max():g}, expected "
                "[0, 1]: bring them to the model's grid with Preprocessing.to_grid"
            )
        return images


def _shape_message(shape: tuple[int, ...], pre: Preprocessing) -> str:
    return (
        f"got images of shape {shape}, expected [N, {pre.channels}, {pre.size[0]}, {pre.size[1]}]"
    )


def _noise(seed: int, ids: ArrayLike, count: int) -> PhiloxNoise:
    try:
        noise = PhiloxNoise(seed, ids)
    except ValueError as error:
        raise InputError(str(error)) from error
    if len(noise.image_ids) != count:
        raise InputError(f"got {count} images and {len(noise.image_ids)} ids")
    return noise


def _mask(
    threshold: float | None, anomaly: FloatArray, inside: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Mask of one map; empty where it holds NaN or infinity, which no threshold can judge."""
    if not np.isfinite(anomaly).all():
        return np.zeros(anomaly.shape, np.bool_)
    return segment(anomaly, otsu(anomaly[inside]) if threshold is None else threshold, inside)


def _among_empty(
    found: Detection | None, shown: NDArray[np.bool_], shape: tuple[int, ...]
) -> Detection:
    """Put results back in their places among images that show nothing, which get zeros."""
    maps = (shape[0], *shape[2:])
    whole = Detection(
        anomaly_map=np.zeros(maps, np.float32),
        flip_map=np.zeros(maps, np.float32),
        reconstruction=np.zeros(shape, np.float32),
        mask=np.zeros(maps, np.bool_),
        score=np.zeros(shape[0], np.float64),
        timings=dict.fromkeys(("encode", "loop", "decode", "maps"), 0.0),
    )
    if found is None:
        return whole
    for name in ("anomaly_map", "flip_map", "reconstruction", "mask", "score"):
        getattr(whole, name)[shown] = getattr(found, name)
    return replace(whole, timings=found.timings)
