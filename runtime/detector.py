"""The detector: images in, anomaly maps out. This is what other software embeds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .anomaly import flip_map, image_score, median_filter, otsu, segment, smooth
from .backends import Backend, open_backend
from .bundle import Bundle
from .closing import Closing
from .cuda.backend import DeviceBackend
from .deadline import UNLIMITED, Cancel, Deadline
from .detection import Detection, DeviceDetection, ScanDetection, ThresholdSource, among_empty
from .errors import BackendError, InputError
from .lifetime import Lifetime
from .manifest import AnomalyMapKind, SamplingDefaults
from .philox import PhiloxNoise
from .preprocessing import Preprocessing, foreground
from .sampler import Sampler
from .sampling_settings import fill_settings, make_sampler
from .scan_detection import detect_scan, on_host
from .walk import Walk, timed, walk

__all__ = ["Detection", "Detector", "DeviceDetection", "ScanDetection"]

FloatArray = NDArray[np.float32]


class Detector(Closing):
    """A bundle opened on a backend.

    Any number of threads may share one: what a call returns does not depend on the others. On a
    CPU they compute at the same time, on a GPU they take turns. A detector belongs to the process
    that opened it: after a fork, calls in the child raise `BackendError`, and it cannot be pickled;
    open one in each process.

    Examples
    --------
    >>> with Detector.open("bundle") as detector:  # doctest: +SKIP
    ...     detection = detector.detect(images, ids=[1, 2], seed=0)
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self.schedule = bundle.schedule
        self._lifetime = Lifetime(backend)

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
        """Release the engines, once the calls that other threads are in have ended.

        Calls after that raise `BackendError`. Closing twice does nothing.
        """
        if self._lifetime.end():
            self.backend.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to travel: engines stay in their process."""
        raise TypeError(
            "a Detector cannot be pickled; pass the path of its bundle and open one per process"
        )

    def warm_up(self, batch_size: int = 1) -> None:
        """Walk a batch of zeros through everything, so that the first image is not the slow one.

        Memory is taken, libraries are loaded, and on a GPU the loop is recorded.

        Parameters
        ----------
        batch_size : int
            Images at a time that will be usual.
        """
        pre, usual = self.bundle.manifest.preprocessing, self.settings()
        settings = replace(usual, steps=min(2, usual.noise_level))
        zeros = np.zeros((batch_size, pre.channels, *pre.size), np.float32)
        with self._lifetime.call():
            noise, sampler = PhiloxNoise(0, range(batch_size)), self.sampler(settings)
            walked = self._walk(zeros, noise, sampler, settings, UNLIMITED)
            self._judge(walked, np.ones_like(zeros), settings)

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
        images: Any,
        ids: ArrayLike,
        seed: int = 0,
        settings: SamplingDefaults | None = None,
        *,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> Detection:
        """Find anomalies in a batch.

        What an image gets depends on its pixels, its id, the seed and the settings only, not on
        the rest of the batch. The networks see only images that show something; what the others
        get is defined, see `Detection`.

        Parameters
        ----------
        images : array, shape (N, C, H, W)
            On the model's grid, in [0, 1]; see `Preprocessing.to_grid`. A NumPy array, or any that
            offers DLPack and lies in host memory. Read, never changed; taken as float32.
        ids : array_like of uint64, shape (N,)
            Identity of each image: which noise it draws.
        seed : int
            64-bit seed of the run.
        settings : SamplingDefaults, optional
            From `settings`; None takes the bundle's.
        timeout : float, optional
            Seconds after which the call is to end, asked between steps.
        cancel : threading.Event, optional
            Ends the call between two steps once it is set.

        Raises
        ------
        InputError
            If the images have another shape or do not lie in [0, 1], or seed, ids or a setting
            are out of range.
        DeadlineExceeded, Cancelled
            If the call was ended so; the detector can be used on.
        BackendError
            If the engine fails, or the detector is closed or was opened by another process.
        """
        return self._until(
            Deadline(timeout, cancel), images, ids, seed, settings or self.settings()
        )

    def detect_slices(
        self,
        slices: Any,
        spacing: tuple[float, float] | None = None,
        ids: ArrayLike | None = None,
        seed: int = 0,
        settings: SamplingDefaults | None = None,
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> ScanDetection:
        """Find anomalies in the slices of one scan as they were acquired.

        They are normalised, brought to the model's grid, and the results back to their own, as
        `berdiff infer` does with a file.

        Parameters
        ----------
        slices : array, shape (S, C, H0, W0)
            Stored intensities of a whole scan, of any real type, as `detect` takes them; rows and
            columns oriented as the bundle's preprocessing says.
        spacing : tuple of float, optional
            Distance between rows and between columns in mm; None where it is not known.
        ids : array_like of uint64, shape (S,), optional
            Identity of each slice: which noise it draws. None: made of the values themselves.
        seed, settings, timeout, cancel
            As for `detect`.
        threshold : float, optional
            Of the mask; None takes the bundle's where it was calibrated for these settings, or
            Otsu's on this scan.
        batch_size : int
            Slices at a time; changes no result.

        Raises
        ------
        InputError
            As for `detect`; also if the slices are constant, hold NaN or infinity, or do not fit
            into the model's field of view.
        BackendError, DeadlineExceeded, Cancelled
            As for `detect`.
        """
        deadline, chosen = Deadline(timeout, cancel), settings or self.settings()

        def detect(images: FloatArray, numbers: ArrayLike) -> Detection:
            return self._until(deadline, images, numbers, seed, chosen)

        limit: tuple[float, ThresholdSource] | None = None
        if threshold is not None:
            if not math.isfinite(threshold):
                raise InputError(f"threshold must be a number, got {threshold}")
            limit = threshold, "option"
        elif (calibrated := self.calibrated_threshold(chosen)) is not None:
            limit = calibrated, "bundle"
        stored = on_host(slices)
        manifest = self.bundle.manifest
        return detect_scan(manifest, stored, spacing, ids, limit, batch_size, detect)

    def detect_on_device(
        self,
        images: Any,
        ids: ArrayLike,
        seed: int = 0,
        settings: SamplingDefaults | None = None,
        *,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> DeviceDetection:
        """Find anomalies in images that lie on the detector's GPU, and leave the result there.

        The values are not looked at: images must hold what `detect` asks for, and those of zeros
        are walked like any other.

        Parameters
        ----------
        images : array of float32, shape (N, C, H, W)
            Of any library that offers DLPack or ``__cuda_array_interface__``; C-contiguous, on the
            same GPU. Not copied; not to be changed before this returns.
        ids, seed, settings, timeout, cancel
            As for `detect`.

        Raises
        ------
        BackendError
            If the detector is not on a GPU, or the images are not; also as for `detect`.
        InputError
            As for `detect`, for shape, type, seed, ids and settings.
        DeadlineExceeded, Cancelled
            As for `detect`.
        """
        deadline = Deadline(timeout, cancel)
        if not isinstance(self.backend, DeviceBackend):
            raise BackendError(
                f"the detector runs on '{self.backend.device}'; images on a GPU need a detector "
                "opened there, for example with device='cuda'"
            )
        settings = settings or self.settings()
        with self._lifetime.call():
            view, pre = self.backend.view(images), self.bundle.manifest.preprocessing
            shape = (pre.channels, *pre.size)
            if len(view.shape) != 4 or view.shape[1:] != shape or not view.shape[0]:
                raise InputError(_shape_message(view.shape, pre))
            if view.dtype != np.float32:
                raise InputError(f"got images of {view.dtype}, expected float32")
            noise = _noise(seed, ids, view.shape[0])
            sampler = self.sampler(settings)
            arrays, sound = self.backend.walk_on_device(view, noise, sampler, settings, deadline)
        return DeviceDetection(arrays["map"], arrays["flip_mean"], arrays["reconstruction"], sound)

    def _until(
        self,
        deadline: Deadline,
        images: Any,
        ids: ArrayLike,
        seed: int,
        settings: SamplingDefaults,
    ) -> Detection:
        """Find anomalies in a batch before a deadline; see `detect`."""
        images = self._check(images)
        noise = _noise(seed, ids, len(images))
        sampler = self.sampler(settings)  # refuses what is out of range, also if nothing is shown
        shown = np.any(foreground(images), axis=(1, 2))
        with self._lifetime.call():
            if shown.all():
                return self._detect(images, noise, sampler, settings, deadline)
            found = None
            if shown.any():
                noise = PhiloxNoise(seed, noise.image_ids[shown])
                found = self._detect(images[shown], noise, sampler, settings, deadline)
        return among_empty(found, shown, images.shape)

    def _walk(
        self,
        images: FloatArray,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        deadline: Deadline,
    ) -> Walk:
        if isinstance(self.backend, DeviceBackend):
            return self.backend.walk(images, noise, sampler, settings, deadline)
        return walk(self.backend, images, noise, sampler, settings, deadline)

    def _detect(
        self,
        images: FloatArray,
        noise: PhiloxNoise,
        sampler: Sampler,
        settings: SamplingDefaults,
        deadline: Deadline,
    ) -> Detection:
        """Find anomalies in images that all show something."""
        walked = self._walk(images, noise, sampler, settings, deadline)
        return self._judge(walked, images, settings)

    def _judge(self, walked: Walk, images: FloatArray, settings: SamplingDefaults) -> Detection:
        """Make maps, masks and scores of what the walk of some images led to."""
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

    def _check(self, images: Any) -> FloatArray:
        pre = self.bundle.manifest.preprocessing
        images = np.ascontiguousarray(on_host(images), dtype=np.float32)
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
