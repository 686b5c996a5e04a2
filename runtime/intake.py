"""Is an image what the model was trained for: a few numbers of it beside those of healthy images.

`describe` sums an image on the model's grid up in numbers that a person can name: how much of the
grid it fills, where it lies, how bright, how sharp. `fit` learns from healthy images which of
them go together (a Mahalanobis distance with shrinkage) and how far healthy images stray from the
rest; `judge` says of a scan how far it strays beside that. It is meant to catch what is grossly
wrong, such as another orientation, scale, contrast or a head with its skull; a lesion is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .image_features import FloatArray, describe, feature_names

Verdict = Literal["ok", "suspect", "rejected"]

# Slices of a volume that show less than this part of what its fullest slice shows do not count:
# models are not trained on them.
SCORED_FOREGROUND = 0.2

# A scan whose fullest slice covers less of the grid than this is suspect, whatever the model.
MIN_COVERAGE = 0.01

# From fewer images than this nothing is learnt: what a distance means could not be told.
MIN_IMAGES = 20

SHRINKAGE = 0.1
# A feature that hardly varies among healthy images must not make a hair's breadth look far.
MIN_SCALE = 0.003
FOLDS = 5
LIMIT_QUANTILE = 0.995
LIMIT_MARGIN = 1.1
MAX_NUMBER = 1e6
_NAMED = 3
_NO_STATISTICS = (
    "not compared with the training images: the bundle has no statistics of them; "
    "berdiff calibrate adds some"
)


@dataclass(frozen=True)
class InputStatistics:
    """What healthy images look like on the model's grid, in numbers; see `feature_names`.

    Attributes
    ----------
    images : int
        Healthy images it was made from.
    features : tuple of str
        Names of the F features, those of `feature_names`.
    mean, scale : tuple of float
        Mean of each feature, and its standard deviation (at least 0.003).
    low, high : tuple of float
        1 % and 99 % quantile of each feature, for people.
    precision : tuple of float
        Inverse of the features' correlation matrix, shrunk by a tenth towards the identity:
        its lower triangle row by row, F (F + 1) / 2 numbers.
    limit : float
        Distance that healthy images rarely exceed.
    """

    images: int
    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    precision: tuple[float, ...]
    limit: float

    def __post_init__(self) -> None:
        """Refuse numbers that do not belong together."""
        count = len(self.features)
        for name in ("mean", "scale", "low", "high"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{count} features need as many numbers in {name}")
        if len(self.precision) != count * (count + 1) // 2:
            raise ValueError(f"{count} features need {count * (count + 1) // 2} of precision")
        if not self.limit > 0 or any(not scale > 0 for scale in self.scale):
            raise ValueError("limit and scale must be positive")
        numbers = (*self.mean, *self.scale, *self.precision, self.limit)
        if max(map(abs, numbers)) > MAX_NUMBER:
            raise ValueError(f"numbers beyond {MAX_NUMBER:g} do not come from images")


def check_features(statistics: InputStatistics | None, modalities: tuple[str, ...]) -> None:
    """Raise ValueError if statistics are not of images with these channels."""
    if statistics is not None and statistics.features != feature_names(modalities):
        raise ValueError(
            f"input_statistics are of {', '.join(statistics.features) or 'nothing'}; images of "
            f"{', '.join(modalities)} have {', '.join(feature_names(modalities))}"
        )


@dataclass(frozen=True)
class Intake:
    """What the checks of a scan's input found.

    Attributes
    ----------
    verdict : {"ok", "suspect", "rejected"}
        "suspect": results are to be doubted. `judge` rejects nothing: what cannot be used has
        raised `InputError` before.
    reasons : tuple of str
        Why it is suspect.
    ood : float or None
        Distance from the training images over the distance that healthy images rarely exceed:
        above 1 is out of distribution. Median over the slices that count. None without statistics.
    slices : tuple of float or None
        The same for each image.
    notes : tuple of str
        What could not be checked.
    """

    verdict: Verdict = "ok"
    reasons: tuple[str, ...] = ()
    ood: float | None = None
    slices: tuple[float | None, ...] = ()
    notes: tuple[str, ...] = ()


def scored(shown: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which slices of a scan count, from the pixels (or the part) each shows, ``[S]``."""
    shown = np.asarray(shown)
    return shown >= SCORED_FOREGROUND * shown.max()


def fit(described: FloatArray, modalities: tuple[str, ...]) -> InputStatistics | None:
    """Learn what healthy images look like.

    The limit is the distance of the 99.5 % quantile of the images, each measured by statistics
    of the others (five folds of images that follow each other, so that slices of one scan rarely
    stand on both sides), times 1.1.

    Parameters
    ----------
    described : ndarray of float64, shape (N, F)
        From `describe`; those of one scan follow each other.
    modalities : tuple of str
        Names of the channels.

    Returns
    -------
    InputStatistics or None
        None from fewer than 20 images: from so few nothing can be said.
    """
    count = len(described)
    if count < MIN_IMAGES:
        return None
    fold = np.arange(count) * FOLDS // count
    distance = np.concatenate(
        [_Model.of(described[fold != k]).distances(described[fold == k]) for k in range(FOLDS)]
    )
    model = _Model.of(described)
    limit = max(1.0, LIMIT_MARGIN * float(np.quantile(distance, LIMIT_QUANTILE)))
    low, high = np.quantile(described, (0.01, 0.99), axis=0)
    triangle = model.precision[np.tril_indices(len(model.mean))]
    return InputStatistics(
        images=count,
        features=feature_names(modalities),
        mean=_rounded(model.mean),
        scale=_rounded(model.scale),
        low=_rounded(low),
        high=_rounded(high),
        precision=_rounded(triangle),
        limit=_rounded(np.array([limit]))[0],
    )


@dataclass(frozen=True, eq=False)
class _Model:
    """Mean, scale and inverse correlation of features, as arrays."""

    mean: FloatArray
    scale: FloatArray
    precision: FloatArray

    @classmethod
    def of(cls, described: FloatArray) -> _Model:
        mean = described.mean(axis=0)
        scale = np.maximum(described.std(axis=0), MIN_SCALE)
        deviation = (described - mean) / scale
        correlation = deviation.T @ deviation / len(described)
        np.fill_diagonal(correlation, 1)  # below it where the scale was raised
        shrunk = (1 - SHRINKAGE) * correlation + SHRINKAGE * np.eye(len(mean))
        return cls(mean, scale, np.linalg.inv(shrunk))

    @classmethod
    def read(cls, statistics: InputStatistics) -> _Model:
        count = len(statistics.features)
        lower = np.zeros((count, count))
        lower[np.tril_indices(count)] = statistics.precision
        precision = lower + np.tril(lower, -1).T
        return cls(np.array(statistics.mean), np.array(statistics.scale), precision)

    def distances(self, described: FloatArray) -> FloatArray:
        """Mahalanobis distance over the root of the number of features."""
        deviation = (described - self.mean) / self.scale
        squared = np.einsum("nf,fg,ng->n", deviation, self.precision, deviation)
        return np.sqrt(np.maximum(squared, 0) / len(self.mean))


def _rounded(values: FloatArray) -> tuple[float, ...]:
    """Six digits: enough to tell images apart, and the same from one machine to the next."""
    return tuple(float(f"{value:.6g}") for value in values)


def distances(statistics: InputStatistics, described: FloatArray) -> FloatArray:
    """Distance of each image from the training images; `statistics.limit` is far.

    Parameters
    ----------
    statistics : InputStatistics
        Of images with the same channels.
    described : ndarray of float64, shape (N, F)
        From `describe`.

    Returns
    -------
    ndarray of float64, shape (N,)
        At least 0; about 1 for healthy images.
    """
    return _Model.read(statistics).distances(described)


def judge(
    statistics: InputStatistics | None, images: NDArray[Any], doubts: tuple[str, ...] = ()
) -> Intake:
    """Judge the input of one scan.

    Parameters
    ----------
    statistics : InputStatistics or None
        Of the bundle; None where it has none.
    images : ndarray of float32, shape (N, C, H, W)
        The scan's slices on the model's grid, in [0, 1]; at least one.
    doubts : tuple of str
        What made it suspect already.
    """
    described = describe(images)
    coverage = described[:, 0]
    reasons = list(doubts)
    if coverage.max() < MIN_COVERAGE:
        reasons.append(
            f"hardly anything is shown: the foreground covers {coverage.max():.2%} of the model's "
            "field of view at most"
        )
    if statistics is None:
        blank: tuple[float | None, ...] = (None,) * len(images)
        verdict: Verdict = "suspect" if reasons else "ok"
        return Intake(verdict, tuple(reasons), None, blank, (_NO_STATISTICS,))
    slices = distances(statistics, described) / statistics.limit
    counted = np.flatnonzero(scored(coverage))
    ood = float(np.median(slices[counted]))
    if ood > 1:
        typical = counted[np.argmin(np.abs(slices[counted] - ood))]
        reasons.append(
            f"unlike the training images ({ood:.1f} times as far as healthy ones are): "
            + _oddities(statistics, described[typical])
        )
    return Intake(
        verdict="suspect" if reasons else "ok",
        reasons=tuple(reasons),
        ood=round(ood, 4),
        slices=tuple(round(float(value), 4) for value in slices),
    )


def _oddities(statistics: InputStatistics, row: FloatArray) -> str:
    """Name the features that lie farthest outside what healthy images show."""
    model = _Model.read(statistics)
    far = np.abs(row - model.mean) / model.scale
    outside = (row < np.array(statistics.low)) | (row > np.array(statistics.high))
    outside &= far > 1  # not by their last digit
    worst = [index for index in np.argsort(-far, kind="stable") if outside[index]][:_NAMED]
    if not worst:
        return "each property for itself is usual, their combination is not"
    return ", ".join(
        f"{statistics.features[index]} {row[index]:.3g} (training {statistics.low[index]:.3g} to "
        f"{statistics.high[index]:.3g})"
        for index in worst
    )
