"""The slices of one scan in memory, from stored intensities to maps on their own grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .detection import Detection, FloatArray, ScanDetection, ThresholdSource
from .errors import BackendError, InputError
from .manifest import Manifest
from .preprocessing import Preprocessing
from .scans.scan import MAX_VOXELS, check_content, image_ids, little_endian
from .slice_stack import SliceStack, prepare
from .walk import timed

# Where DLPack says that memory lies: the host's, ordinary or pinned by CUDA or ROCm.
_HOST_MEMORY = (1, 3, 11)


def on_host(array: Any) -> NDArray[Any]:
    """View an array of any library as one of NumPy, without a copy where DLPack offers it.

    Raises
    ------
    InputError
        If it lies on a GPU, or is no array of numbers.
    """
    try:
        if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
            viewed = np.asarray(array)
        elif int(array.__dlpack_device__()[0]) in _HOST_MEMORY:
            viewed = np.from_dlpack(array)
        else:
            raise InputError(
                "the images do not lie in host memory; copy them there, or give them to a detector "
                "on that GPU with detect_on_device"
            )
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputError(f"the images cannot be read as an array: {error}") from error
    if viewed.dtype.kind not in "iufb":
        raise InputError(f"got images of {viewed.dtype}, expected real numbers")
    return viewed


def detect_scan(
    manifest: Manifest,
    slices: NDArray[Any],
    spacing: tuple[float, float] | None,
    ids: ArrayLike | None,
    threshold: tuple[float, ThresholdSource] | None,
    batch_size: int,
    detect: Callable[[FloatArray, ArrayLike], Detection],
) -> ScanDetection:
    """Find anomalies in the slices of one scan; see `Detector.detect_slices`.

    `detect` takes images on the model's grid and their ids.
    """
    timings: dict[str, float] = {}
    with timed(timings, "prepare"):
        values = _checked(slices, manifest.preprocessing, batch_size)
        numbers = _ids(slices, ids)
        ready = prepare(values, spacing, manifest.preprocessing)
        stack = SliceStack(
            manifest.preprocessing, spacing, ready.images, ready.positions, ready.inside
        )
        stack.look(manifest.input_statistics)
    for start in range(0, len(stack.images), batch_size):
        part = slice(start, start + batch_size)
        detection = detect(stack.images[part], [numbers[p] for p in stack.positions[part]])
        for stage, seconds in detection.timings.items():
            timings[stage] = timings.get(stage, 0.0) + seconds
        with timed(timings, "restore"):
            for item in range(len(detection.score)):
                stack.accept(start + item, detection, item)
        if stack.trouble:
            raise BackendError(f"{stack.trouble}; nothing can be said of these slices")
    with timed(timings, "maps"):
        value, source = stack.threshold(threshold)
        mask = stack.segment(value)
    return _result(stack, mask, (value, source), timings)


def _checked(slices: NDArray[Any], preprocessing: Preprocessing, batch_size: int) -> FloatArray:
    """Slices as float32, or why they cannot be used."""
    if batch_size < 1:
        raise InputError(f"batch size must be 1 or more, got {batch_size}")
    if slices.ndim != 4 or slices.shape[1] != preprocessing.channels or not slices.size:
        raise InputError(
            f"got slices of shape {slices.shape}, expected [S, {preprocessing.channels}, H0, W0]: "
            f"{', '.join(preprocessing.modalities)} of every slice"
        )
    if slices.size > MAX_VOXELS:
        raise InputError(f"the slices have more than {MAX_VOXELS} voxels")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused by name
        values = slices.astype(np.float32)
    check_content(values)
    return values


def _ids(slices: NDArray[Any], ids: ArrayLike | None) -> list[int]:
    """One identity for each slice; made of the values where none are given."""
    if ids is None:
        stored = np.ascontiguousarray(little_endian(slices))
        return [int(i) for i in image_ids([stored.tobytes()], len(slices))]
    given = list(np.asarray(ids, dtype=object).reshape(-1))
    if len(given) != len(slices):
        raise InputError(f"got {len(slices)} slices and {len(given)} ids")
    return given


def _result(
    stack: SliceStack,
    mask: NDArray[np.bool_],
    threshold: tuple[float, ThresholdSource],
    timings: dict[str, float],
) -> ScanDetection:
    scores = np.array([np.nan if score is None else score for score in stack.scores])
    worst = stack.worst()
    return ScanDetection(
        anomaly_map=stack.anomaly,
        flip_map=stack.flips,
        reconstruction=stack.reconstruction,
        mask=mask,
        scores=scores,
        score=float(scores[worst]),
        worst_slice=worst,
        threshold=threshold[0],
        threshold_source=threshold[1],
        verdict=stack.intake.verdict,
        reasons=stack.intake.reasons,
        ood=stack.intake.ood,
        timings=timings,
    )
