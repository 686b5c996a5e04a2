"""What a detector returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .intake import Verdict

FloatArray = NDArray[np.float32]
ThresholdSource = Literal["option", "bundle", "otsu"]


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


@dataclass(frozen=True)
class ScanDetection:
    """Result for the slices of one scan, on the scan's own grid.

    Slices that show nothing have maps and a reconstruction of 0 and an empty mask.

    Attributes
    ----------
    anomaly_map : ndarray of float32, shape (S, H0, W0)
        At least 0; larger is more anomalous. Which kind it is, the bundle says.
    flip_map : ndarray of float32, shape (S, H0, W0)
        Mean probability, over steps and bits, that the healthy code differs; in [0, 1].
    reconstruction : ndarray of float32, shape (S, C, H0, W0)
        The healthy counterpart of the normalised slices, in [0, 1].
    mask : ndarray of bool, shape (S, H0, W0)
        Where the anomaly map exceeds the threshold, without specks.
    scores : ndarray of float64, shape (S,)
        Score of each slice, see `Detection.score`; NaN where a slice shows nothing.
    score : float
        The highest among the slices that count: those that show enough.
    worst_slice : int
        Which slice has it.
    threshold : float
        Threshold of the mask.
    threshold_source : {"option", "bundle", "otsu"}
        Given by the caller, calibrated, or chosen on this scan.
    verdict : {"ok", "suspect"}
        Whether the input is what the model was trained on. Input that cannot be used at all
        raises `InputError` instead of giving a map that looks normal.
    reasons : tuple of str
        Why it is suspect.
    ood : float or None
        How far the scan is from the training images; above 1 is out of distribution. None where
        the bundle has no statistics of them.
    timings : dict of str to float
        Seconds spent in "prepare", "encode", "loop", "decode", "maps" and "restore".
    """

    anomaly_map: FloatArray
    flip_map: FloatArray
    reconstruction: FloatArray
    mask: NDArray[np.bool_]
    scores: NDArray[np.float64]
    score: float
    worst_slice: int
    threshold: float
    threshold_source: ThresholdSource
    verdict: Verdict
    reasons: tuple[str, ...]
    ood: float | None
    timings: dict[str, float]


def among_empty(
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
