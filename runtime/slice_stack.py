"""The slices of one scan on their way through a detector: prepared, then with their maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .anomaly import otsu, segment
from .detection import Detection, ThresholdSource
from .errors import InputError
from .intake import InputStatistics, Intake, judge, scored
from .preprocessing import Preprocessing, foreground
from .scans.scan import is_constant

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Slices as the networks take them.

    Attributes
    ----------
    images : ndarray of float32, shape (n, C, H, W)
        The slices that show something, on the model's grid.
    positions : list of int
        Which slice of the scan each of `images` is.
    inside : ndarray of bool, shape (S, H0, W0)
        Foreground.
    """

    images: FloatArray
    positions: list[int]
    inside: NDArray[np.bool_]


def prepare(
    slices: FloatArray,
    spacing: tuple[float, float] | None,
    preprocessing: Preprocessing,
    index_of: Callable[[int], int] = int,
) -> Prepared:
    """Bring the slices of a scan to the model's grid.

    Parameters
    ----------
    slices : ndarray of float32, shape (S, C, H0, W0)
        Stored intensities of the whole scan, oriented as the model expects.
    spacing : tuple of float or None
        Row and column pixel size in mm.
    preprocessing : Preprocessing
        Of the model.
    index_of : callable
        What a person calls a slice, for errors.

    Raises
    ------
    InputError
        If a slice cannot be used, or none shows anything.
    """
    slices = preprocessing.clear_background(slices)
    count, _, rows, columns = slices.shape
    positions = [
        position
        for position, image in enumerate(slices)
        if count == 1 or not _shows_nothing(image, preprocessing)
    ]
    images = np.empty((len(positions), preprocessing.channels, *preprocessing.size), np.float32)
    inside = np.zeros((count, rows, columns), np.bool_)
    for number, position in enumerate(positions):
        try:
            normalised = preprocessing.normalise(slices[position])
            images[number] = preprocessing.place(normalised, spacing)
            inside[position] = foreground(normalised)
        except InputError as error:
            if count == 1:
                raise
            raise InputError(f"slice {index_of(position)}: {error}") from error
    if not positions:
        raise InputError("no slice shows anything the model's normalisation can use")
    return Prepared(images, positions, inside)


@dataclass(eq=False)
class SliceStack:
    """Prepared slices and, as they arrive, their maps, which are on the scan's own grid.

    Attributes
    ----------
    preprocessing : Preprocessing
        Takes slices to the model's grid and maps back.
    spacing : tuple of float or None
        Row and column pixel size in mm.
    images, positions, inside
        See `Prepared`.
    anomaly, flips : ndarray of float32, shape (S, H0, W0)
        Maps; 0 in empty slices.
    reconstruction : ndarray of float32, shape (S, C, H0, W0)
        In [0, 1]; 0 in empty slices.
    scores : list of float or None
        Score of each slice, None where it is empty or not processed yet.
    pending : int
        Slices still to come.
    trouble : str
        Why the scan has failed; empty while it has not.
    intake : Intake
        How far the input is what the model was trained on; from `look`.
    """

    preprocessing: Preprocessing
    spacing: tuple[float, float] | None
    images: FloatArray
    positions: list[int]
    inside: NDArray[np.bool_]
    anomaly: FloatArray = field(init=False)
    flips: FloatArray = field(init=False)
    reconstruction: FloatArray = field(init=False)
    scores: list[float | None] = field(init=False)
    pending: int = field(init=False)
    trouble: str = ""
    intake: Intake = field(init=False)

    def __post_init__(self) -> None:
        """Make room for the results."""
        count, rows, columns = self.inside.shape
        self.anomaly = np.zeros((count, rows, columns), np.float32)
        self.flips = np.zeros((count, rows, columns), np.float32)
        self.reconstruction = np.zeros(
            (count, self.preprocessing.channels, rows, columns), np.float32
        )
        self.scores = [None] * count
        self.pending = len(self.positions)

    def look(self, statistics: InputStatistics | None, doubts: tuple[str, ...] = ()) -> None:
        """Judge the input against what the model was trained on."""
        self.intake = judge(statistics, self.images, doubts)

    def accept(self, number: int, detection: Detection, item: int) -> None:
        """Take the results of ``images[number]`` from entry `item` of a batch.

        Results that hold NaN or infinity spoil the scan: they must not look like a normal map.
        """
        self.pending -= 1
        position = self.positions[number]
        for values, target in (
            (detection.anomaly_map[item], self.anomaly),
            (detection.flip_map[item], self.flips),
            (detection.reconstruction[item], self.reconstruction),
        ):
            if not np.isfinite(values).all():
                self.trouble = "the model answered with NaN or infinity"
            target[position] = self._to_scan(values)
        self.scores[position] = float(detection.score[item])

    def threshold(
        self, chosen: tuple[float, ThresholdSource] | None
    ) -> tuple[float, ThresholdSource]:
        """Return the threshold given, or Otsu's over the foreground of this scan."""
        return chosen or (otsu(self.anomaly[self.inside]), "otsu")

    def segment(self, threshold: float) -> NDArray[np.bool_]:
        """Segment the anomaly map slice by slice, ``[S, H0, W0]``."""
        return np.stack(
            [
                segment(plane, threshold, area)
                for plane, area in zip(self.anomaly, self.inside, strict=True)
            ]
        )

    def worst(self) -> int:
        """Position of the slice with the highest score; the first of equals.

        Slices that show next to nothing, at the ends of a volume, do not count: models are not
        trained on them.
        """
        enough = scored(np.count_nonzero(self.inside[self.positions], axis=(1, 2)))
        counted = [p for p, keep in zip(self.positions, enough, strict=True) if keep]
        return max(counted, key=lambda position: self.scores[position] or 0.0)

    def _to_scan(self, values: FloatArray) -> FloatArray:
        """Bring values on the model's grid to the scan's own."""
        shape = (self.inside.shape[1], self.inside.shape[2])
        return self.preprocessing.from_grid(values, shape, self.spacing)


def _shows_nothing(image: FloatArray, preprocessing: Preprocessing) -> bool:
    """Whether a slice of a volume lies beyond what was imaged, such as above the head."""
    if is_constant(image):
        return True
    return preprocessing.normalisation == "foreground-median" and float(image.max()) <= 0
