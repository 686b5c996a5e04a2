"""One scan on its way through a run: its prepared slices, the maps as they arrive, its files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .anomaly import otsu, segment
from .components import Components, find_components
from .detector import Detection
from .errors import InputError
from .intake import InputStatistics, Intake, judge, scored
from .preprocessing import Preprocessing, foreground
from .results import ScanResult, SliceResult
from .scans import Scan, ScanSource, read_scan
from .scans.picture import full_scale
from .scans.scan import is_constant

FloatArray = NDArray[np.float32]
ThresholdSource = Literal["option", "bundle", "otsu"]


@dataclass(eq=False)
class ScanJob:
    """A scan whose slices are being processed; all maps are on the scan's own grid.

    Attributes
    ----------
    scan : Scan
        The scan; its voxels are given up once they are prepared.
    preprocessing : Preprocessing
        Takes slices to the model's grid and maps back.
    images : ndarray of float32, shape (n, C, H, W)
        The slices that show something, on the model's grid.
    positions : list of int
        Which slice of the scan each of `images` is.
    inside : ndarray of bool, shape (S, H0, W0)
        Foreground.
    anomaly, flips : ndarray of float32, shape (S, H0, W0)
        Maps; 0 in empty slices.
    reconstruction : ndarray of float32, shape (S, C, H0, W0)
        In [0, 1]; 0 in empty slices.
    scores : list of float or None
        Score of each slice, None where it is empty or not processed yet.
    pending : int
        Slices still to come.
    seconds : float
        Time spent on this scan so far.
    trouble : str
        Why the scan has failed; empty while it has not.
    intake : Intake
        How far the input is what the model was trained on; from `look`.
    """

    scan: Scan
    preprocessing: Preprocessing
    images: FloatArray
    positions: list[int]
    inside: NDArray[np.bool_]
    anomaly: FloatArray = field(init=False)
    flips: FloatArray = field(init=False)
    reconstruction: FloatArray = field(init=False)
    scores: list[float | None] = field(init=False)
    pending: int = field(init=False)
    seconds: float = 0.0
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

    @classmethod
    def read(
        cls, source: ScanSource, preprocessing: Preprocessing, accept_contrast: bool = False
    ) -> ScanJob:
        """Read a scan and bring its slices to the model's grid.

        Raises
        ------
        InputError
            If the scan cannot be used.
        """
        if source.mismatch and not accept_contrast:
            raise InputError(f"{source.mismatch}; --accept-contrast processes it all the same")
        scan = read_scan(source, preprocessing)
        slices = preprocessing.clear_background(scan.slices)
        count, _, rows, columns = slices.shape
        positions = [
            position
            for position, image in enumerate(slices)
            if count == 1 or not _shows_nothing(image, preprocessing)
        ]
        shape = (len(positions), preprocessing.channels, *preprocessing.size)
        images = np.empty(shape, np.float32)
        inside = np.zeros((count, rows, columns), np.bool_)
        for number, position in enumerate(positions):
            try:
                normalised = preprocessing.normalise(slices[position])
                images[number] = preprocessing.place(normalised, scan.spacing)
                inside[position] = foreground(normalised)
            except InputError as error:
                if count == 1:
                    raise
                raise InputError(f"slice {scan.grid.file_index(position)}: {error}") from error
        if not positions:
            raise InputError("no slice shows anything the model's normalisation can use")
        doubts = (*scan.doubts, *([source.mismatch] if source.mismatch else []))
        scan = dataclasses.replace(scan, slices=scan.slices[:0].copy(), doubts=doubts)
        return cls(scan, preprocessing, images, positions, inside)

    @property
    def name(self) -> str:
        """Name of the scan's results."""
        return self.scan.source.name

    @property
    def nbytes(self) -> int:
        """Bytes it holds until its results are written."""
        arrays = (self.images, self.inside, self.anomaly, self.flips, self.reconstruction)
        return sum(array.nbytes for array in arrays)

    def look(self, statistics: InputStatistics | None) -> None:
        """Judge the input against what the model was trained on."""
        self.intake = judge(statistics, self.images, self.scan.doubts)

    def image_id(self, number: int) -> int:
        """Identity of ``images[number]``."""
        return int(self.scan.image_ids[self.positions[number]])

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

    def components(self, mask: NDArray[np.bool_]) -> Components:
        """Connected parts of the mask, largest first, on the file's own axes."""
        grid = self.scan.grid
        affine = grid.affine if self.scan.kind == "volume" else None
        return find_components(
            grid.volume(mask), grid.volume(self.anomaly), affine, self.scan.voxel_mm3
        )

    def result(
        self,
        mask: NDArray[np.bool_],
        threshold: tuple[float, ThresholdSource],
        components: Components,
    ) -> ScanResult:
        """Sum the scan up."""
        grid, voxels = self.scan.grid, int(np.count_nonzero(mask))
        mm3 = self.scan.voxel_mm3
        worst = self.worst()
        return ScanResult(
            name=self.name,
            input=self.scan.source.key,
            format=self.scan.source.format,
            status="ok",
            verdict=self.intake.verdict,
            verdict_reason="; ".join(self.intake.reasons),
            ood=self.intake.ood,
            slices=len(self.scores),
            empty_slices=len(self.scores) - len(self.positions),
            score=self.scores[worst],
            worst_slice=grid.file_index(worst),
            slice_axis=grid.slice_axis,
            threshold=threshold[0],
            threshold_source=threshold[1],
            mask_pixels=voxels,
            volume_ml=None if mm3 is None else round(voxels * mm3 / 1000, 6),
            components=len(components) + components.left_out,
            largest_ml=components[0].volume_ml if components else None,
            full_scale=full_scale(self.anomaly) if self.scan.kind == "picture" else 1.0,
            seconds=round(self.seconds, 3),
            sha256=self.scan.sha256,
            notes="; ".join((*self.scan.notes, *self.intake.notes)),
        )

    def slice_results(self, mask: NDArray[np.bool_]) -> tuple[SliceResult, ...]:
        """Sum each slice up, in the order of the file."""
        strangeness = dict(zip(self.positions, self.intake.slices, strict=True))
        results = (
            SliceResult(
                index=self.scan.grid.file_index(index),
                score=score,
                mask_pixels=int(plane.sum()),
                ood=strangeness.get(index),
            )
            for index, (score, plane) in enumerate(zip(self.scores, mask, strict=True))
        )
        return tuple(sorted(results, key=lambda item: item.index))

    def image(self, position: int) -> FloatArray:
        """One slice as the model saw it, mean over channels, on the scan's grid, ``[H0, W0]``."""
        return self._to_scan(self.images[self.positions.index(position)]).mean(axis=0)

    def worst(self) -> int:
        """Position of the slice with the highest score; the first of equals.

        Slices that show next to nothing, at the ends of a volume, do not count: models are not
        trained on them.
        """
        enough = scored(np.count_nonzero(self.inside[self.positions], axis=(1, 2)))
        counted = [p for p, keep in zip(self.positions, enough, strict=True) if keep]
        return max(counted, key=lambda position: self.scores[position] or 0.0)

    def _to_scan(self, values: FloatArray) -> FloatArray:
        shape = (self.inside.shape[1], self.inside.shape[2])
        return self.preprocessing.from_grid(values, shape, self.scan.spacing)

    def write_overlay(
        self, path: Path, position: int, mask: NDArray[np.bool_], threshold: float
    ) -> None:
        """Write a picture of one slice: image, reconstruction, anomaly map, mask."""
        from .overlays import write_overlay

        write_overlay(
            path,
            self.image(position),
            self.anomaly[position],
            mask[position],
            self.reconstruction[position].mean(axis=0),
            # Scaled by the threshold, healthy scans look dark beside others of the run.
            scale=2 * threshold,
        )

    def write_volume_picture(self, path: Path, mask: NDArray[np.bool_], threshold: float) -> None:
        """Write a picture of a volume: three planes through the worst place, and the scores."""
        from .volume_picture import write_volume_picture

        image = np.zeros(self.anomaly.shape, np.float32)
        for position in self.positions:
            image[position] = self.image(position)
        worst = self.worst()
        peak = np.unravel_index(int(self.anomaly[worst].argmax()), self.anomaly.shape[1:])
        rows, columns = self.scan.spacing or (1.0, 1.0)
        area = rows * columns
        write_volume_picture(
            path,
            image,
            self.anomaly,
            mask,
            spacing_mm=((self.scan.voxel_mm3 or area) / area, rows, columns),
            focus=(worst, int(peak[0]), int(peak[1])),
            scores=self.scores,
            scale=2 * threshold,
            orientation=self.preprocessing.orientation,
            ends=(self.scan.grid.file_index(0), self.scan.grid.file_index(len(self.scores) - 1)),
        )


def _shows_nothing(image: FloatArray, preprocessing: Preprocessing) -> bool:
    """Whether a slice of a volume lies beyond what was imaged, such as above the head."""
    if is_constant(image):
        return True
    return preprocessing.normalisation == "foreground-median" and float(image.max()) <= 0
