"""How well a detector finds what masks show, beside simple opponents, in one pass of the loop.

Pixels: average precision, AUROC and Dice over the foreground pixels of all images with masks,
pooled, on the images' own grids. Images: AUROC of the image score, those with a lesion against
the healthy ones. Every kind of anomaly map is measured, as it is and smoothed like the baselines.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from berdiff.runtime import metrics
from berdiff.runtime.anomaly import segment
from berdiff.runtime.batches import Progress
from berdiff.runtime.calibration import threshold_for_rate
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import optional
from berdiff.runtime.manifest import SamplingDefaults

from .evaluation_cases import Case, Collector, EvaluationOptions, main_map


@dataclass(frozen=True)
class Figures:
    """Figures of one map; None where one is not defined.

    Attributes
    ----------
    map : str
        Its name.
    pixel_ap, pixel_auroc : float
        Over all foreground pixels of the images with masks.
    pixel_ap_interval, image_auroc_interval : (float, float) or None
        95 % bootstrap interval over images.
    best_dice, best_threshold : float
        Highest pooled Dice and its threshold, chosen with the masks: an upper bound.
    healthy_threshold, healthy_dice : float
        Threshold that the accepted share of healthy foreground pixels exceeds, and the pooled
        Dice at it: what a user without masks can get.
    image_auroc : float or None
        Of the image score.
    """

    map: str
    pixel_ap: float | None
    pixel_ap_interval: tuple[float, float] | None
    pixel_auroc: float | None
    best_dice: float | None
    best_threshold: float | None
    healthy_threshold: float
    healthy_dice: float | None
    image_auroc: float | None
    image_auroc_interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outcome of an evaluation.

    Attributes
    ----------
    figures : tuple of Figures
        One per map: the detector's, then the baselines.
    cases : tuple of Case
        Every scan: those with masks, then the healthy ones.
    settings : SamplingDefaults
        Settings of the loop; `anomaly_map` is the main map.
    options : EvaluationOptions
        As given.
    calibrated_dice : float or None
        Pooled Dice of the masks that the bundle's own threshold gives; None where it has none
        for these settings.
    counts : dict of str to int
        Scans and pixels.
    notes : tuple of str
        What a reader of the figures should know.
    seconds : float
        Time taken.
    """

    figures: tuple[Figures, ...]
    cases: tuple[Case, ...]
    settings: SamplingDefaults
    options: EvaluationOptions
    calibrated_dice: float | None
    counts: dict[str, int]
    notes: tuple[str, ...]
    seconds: float


def evaluate(
    detector: Detector,
    images: str | Path,
    masks: str | Path,
    healthy: str | Path,
    train: str | Path | None = None,
    settings: SamplingDefaults | None = None,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a detector and simple baselines on images with masks and on healthy images.

    Parameters
    ----------
    detector : Detector
        An opened detector.
    images, masks : str or Path
        Folders with scans and their masks, of equal names apart from the suffix.
    healthy : str or Path
        Scans without lesions.
    train : str or Path, optional
        Healthy images to fit the z-score baseline on; without them it is left out.
    settings : SamplingDefaults, optional
        Settings of the loop; None takes the bundle's.
    options : EvaluationOptions, optional
        What to measure.
    progress : callable, optional
        Called with (scans done, scans in all, slices done).

    Raises
    ------
    InputError
        If a mask is missing or has another shape, no mask shows anything, or a scan cannot be
        used.
    MissingDependency
        If scikit-learn is not installed.
    """
    started = time.perf_counter()
    optional("sklearn.metrics", "report")  # before the hours, not after them
    options = options or EvaluationOptions()
    settings = settings or detector.settings()
    if options.kinds:
        settings = dataclasses.replace(settings, anomaly_map=options.kinds[0])
    detector.sampler(settings)
    threshold_for_rate(np.zeros(1), options.rate)
    run = Collector(detector, settings, options, progress)
    run.add(Path(images), Path(masks))
    run.add(Path(healthy), None)
    if train is not None:
        run.fit_baseline(Path(train))
    cases = run.collect()
    figures = tuple(_figures(name, cases, options) for name in cases[0].values)
    lost = sum(int(np.count_nonzero(case.truth & ~case.inside)) for case in cases)
    notes = list(run.notes)
    if lost:
        notes.append(f"{lost} mask pixels lie outside the foreground and are not counted")
    calibrated, note = _calibrated_dice(detector, settings, cases)
    if note:
        notes.append(note)
    return Evaluation(
        figures=figures,
        cases=cases,
        settings=settings,
        options=options,
        calibrated_dice=calibrated,
        counts=_counts(cases, run.train_images),
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _figures(name: str, cases: Sequence[Case], options: EvaluationOptions) -> Figures:
    masked = [case for case in cases if case.masked]
    values, truths = [case.values[name] for case in masked], [case.labels for case in masked]
    pooled, labels = np.concatenate(values), np.concatenate(truths)
    best = metrics.best_dice(pooled, labels)
    healthy = np.concatenate([case.values[name] for case in cases if not case.masked])
    threshold = threshold_for_rate(healthy, options.rate)
    scores = np.array([case.scores[name] for case in cases])
    sick = np.array([case.has_lesion for case in cases])
    return Figures(
        map=name,
        pixel_ap=metrics.average_precision(pooled, labels),
        pixel_ap_interval=metrics.average_precision_interval(values, truths),
        pixel_auroc=metrics.auroc(pooled, labels),
        best_dice=best[0] if best else None,
        best_threshold=best[1] if best else None,
        healthy_threshold=threshold,
        healthy_dice=metrics.dice(pooled > threshold, labels),
        image_auroc=metrics.auroc(scores, sick),
        image_auroc_interval=metrics.auroc_interval(scores, sick),
    )


def _calibrated_dice(
    detector: Detector, settings: SamplingDefaults, cases: Sequence[Case]
) -> tuple[float | None, str]:
    """Pooled Dice of the masks `infer` would write, or why there is none."""
    threshold = detector.bundle.manifest.threshold
    if threshold is None:
        return None, "the bundle has no calibrated threshold: berdiff calibrate makes one"
    other = threshold.mismatch(settings)
    if other:
        wanted, used = getattr(threshold, other), getattr(settings, other)
        return None, f"the bundle's threshold is for {other} {wanted}, evaluated was {used}"
    predicted, truth = [], []
    for case in cases:
        if case.masked:
            planes = zip(case.volume(main_map(settings)), case.inside, strict=True)
            mask = np.stack([segment(plane, threshold.value, area) for plane, area in planes])
            predicted.append(mask[case.inside])
            truth.append(case.labels)
    return metrics.dice(np.concatenate(predicted), np.concatenate(truth)), ""


def _counts(cases: Sequence[Case], train_images: int) -> dict[str, int]:
    masked = [case for case in cases if case.masked]
    return {
        "images_with_masks": len(masked),
        "of_them_without_lesion": sum(not case.has_lesion for case in masked),
        "healthy_images": len(cases) - len(masked),
        "foreground_pixels": sum(int(case.inside.sum()) for case in masked),
        "lesion_pixels": sum(int(case.labels.sum()) for case in masked),
        "train_images": train_images,
    }
