"""Figures of merit of anomaly scores against labels (through scikit-learn), and their spread.

All take flat arrays: scores, larger meaning more anomalous, and labels. A figure that is not
defined, since only one class is present, is None, never a number that looks like a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import optional

Scores = NDArray[np.floating]
Labels = NDArray[np.bool_]
Interval = tuple[float, float]

_RESAMPLINGS = 1000
_BINS = 1024
_COVERAGE = (2.5, 97.5)


def average_precision(scores: Scores, labels: Labels) -> float | None:
    """Average precision: precision summed over the steps of recall, without interpolation.

    Parameters
    ----------
    scores : ndarray, shape (n,)
        Finite.
    labels : ndarray of bool, shape (n,)
        True where anomalous.

    Returns
    -------
    float or None
        In [0, 1]; an uninformative score gets the share of positives. None without positives or
        without negatives.
    """
    if not _has_both(labels):
        return None
    return float(_metrics().average_precision_score(labels, scores))


def auroc(scores: Scores, labels: Labels) -> float | None:
    """Area under the ROC curve, ties counted half; None without positives or negatives."""
    if not _has_both(labels):
        return None
    return float(_metrics().roc_auc_score(labels, scores))


def dice(predicted: Labels, labels: Labels) -> float | None:
    """Dice overlap of two masks, 2 |A and B| / (|A| + |B|); None where both are empty."""
    total = np.count_nonzero(predicted) + np.count_nonzero(labels)
    return float(2 * np.count_nonzero(predicted & labels) / total) if total else None


def best_dice(scores: Scores, labels: Labels) -> tuple[float, float] | None:
    """Highest Dice over all thresholds, and the threshold.

    The threshold is chosen with the labels at hand: an upper bound, not what a user gets.

    Returns
    -------
    (float, float) or None
        Dice of ``scores > threshold``, and the threshold. None without positives or negatives.
    """
    if not _has_both(labels):
        return None
    precision, recall, thresholds = _metrics().precision_recall_curve(labels, scores)
    # At each threshold of the curve, scores equal to it count as anomalous.
    overlap = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.argmax(overlap[:-1]))
    below = np.nextafter(thresholds[best], -np.inf, dtype=thresholds.dtype)
    return float(overlap[best]), float(below)


def average_precision_interval(
    scores: Sequence[Scores], labels: Sequence[Labels], seed: int = 0
) -> Interval | None:
    """95 % interval of the pooled average precision; see `resampled_average_precision`."""
    figures = resampled_average_precision(scores, labels, seed)
    return None if figures is None else percentile_interval(figures)


def resampled_average_precision(
    scores: Sequence[Scores], labels: Sequence[Labels], seed: int = 0
) -> NDArray[np.float64] | None:
    """Pooled average precision of 1000 resamplings of the images (bootstrap).

    Pixels of an image are not independent, so whole images are drawn with replacement. Scores are
    binned by rank into 1024 bins, which changes the figure by less than the interval's width.

    Parameters
    ----------
    scores, labels : sequence of ndarray, each of shape (n_i,)
        One pair per image.
    seed : int
        Of the resampling. With the same seed and number of images, the same images are drawn: the
        difference between two results is a paired one.

    Returns
    -------
    ndarray of float64, shape (1000,), or None
        None for fewer than two images, or without positives or negatives.
    """
    if len(scores) < 2 or not _has_both(np.concatenate(labels)):
        return None
    pooled = np.sort(np.concatenate(scores))
    edges = np.unique(pooled[np.linspace(0, pooled.size - 1, _BINS).astype(np.intp)])
    counts = np.zeros((2, len(scores), len(edges)))
    for index, (values, truth) in enumerate(zip(scores, labels, strict=True)):
        bins = np.searchsorted(edges, values, side="right") - 1
        for kind, chosen in enumerate((truth, ~truth)):
            counts[kind, index] = np.bincount(bins[chosen], minlength=len(edges))
    weights = _resampled(len(scores), seed)
    # Bins from the highest scores down, as the threshold falls.
    hits, misses = (np.cumsum((weights @ side)[:, ::-1], axis=1) for side in counts)
    found = np.diff(hits, axis=1, prepend=0)
    precision = hits / np.maximum(hits + misses, 1)
    with np.errstate(invalid="ignore"):
        return np.asarray((precision * found).sum(axis=1) / hits[:, -1])


def auroc_interval(scores: Scores, labels: Labels, seed: int = 0) -> Interval | None:
    """95 % interval of the AUROC of images; see `resampled_auroc`."""
    figures = resampled_auroc(scores, labels, seed)
    return None if figures is None else percentile_interval(figures)


def resampled_auroc(scores: Scores, labels: Labels, seed: int = 0) -> NDArray[np.float64] | None:
    """AUROC of 1000 resamplings of the images of each class (bootstrap), ``[1000]``.

    As `resampled_average_precision`, results of one seed are paired. None where a class has fewer
    than two images.
    """
    positive, negative = scores[labels], scores[~labels]
    if min(len(positive), len(negative)) < 2:
        return None
    above = positive[:, None] > negative[None]
    wins = above + 0.5 * (positive[:, None] == negative[None])
    chosen = _resampled(len(positive), seed), _resampled(len(negative), seed + 1)
    figures = np.einsum("bi,ij,bj->b", chosen[0], wins, chosen[1], optimize=True)
    return np.asarray(figures / wins.size)


def percentile_interval(figures: NDArray[np.float64]) -> Interval:
    """95 % interval of resampled figures, or of differences between them."""
    low, high = np.nanpercentile(figures, _COVERAGE)
    return float(low), float(high)


def _has_both(labels: Labels) -> bool:
    return bool(labels.any()) and not bool(labels.all())


def _resampled(count: int, seed: int) -> NDArray[np.float64]:
    """How often each of `count` images is drawn, ``[resamplings, count]``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLINGS).astype(float)


def _metrics() -> Any:
    return optional("sklearn.metrics", "report")
