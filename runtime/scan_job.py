"""One scan on its way through a run: its prepared slices, the maps as they arrive, its files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .anomaly import otsu, segment
from .detector import Detection
from .errors import InputError
from .files import sha256_file
from .preprocessing import Preprocessing, foreground
from .results import ScanResult, SliceResult
from .scans import Scan, read_scan
from .scans.scan import is_constant

FloatArray = NDArray[np.float32]
ThresholdSource = Literal["option", "bundle", "otsu"]

MAP_PARTS = ("anomaly", "flips", "mask", "reconstruction")


@dataclass(eq=False)
class ScanJob:
    """A scan whose slices are being processed; all maps are on the scan's own grid.

    Attributes
    ----------
    name : str
        Name of the results.
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
    """

    name: str
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
    def read(cls, path: Path, name: str, preprocessing: Preprocessing) -> ScanJob:
        """Read a scan and bring its slices to the model's grid.

        Raises
        ------
        InputError
            If the scan cannot be used.
        """
        scan = read_scan(path, preprocessing)
        count, _, rows, columns = scan.slices.shape
        images, positions = [], []
        inside = np.zeros((count, rows, columns), np.bool_)
        for position, image in enumerate(scan.slices):
            if count > 1 and _shows_nothing(image, preprocessing):
                continue
            try:
                images.append(preprocessing.to_grid(image, scan.spacing))
                inside[position] = foreground(preprocessing.normalise(image))
            except InputError as error:
                if count == 1:
                    raise
                raise InputError(f"slice {scan.grid.file_index(position)}: {error}") from error
            positions.append(position)
        if not images:
            raise InputError("no slice shows anything the model's normalisation can use")
        scan = dataclasses.replace(scan, slices=scan.slices[:0].copy())
        return cls(name, scan, preprocessing, np.stack(images), positions, inside)

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

    def write(
        self, folder: Path, mask: NDArray[np.bool_], threshold: float
    ) -> tuple[dict[str, str], float]:
        """Write maps and overlay, each file whole or not at all.

        Returns
        -------
        dict of str to str
            SHA-256 of each file, by path below `folder`.
        float
            What full scale of the anomaly map stands for.
        """
        grid = self.scan.grid
        files = output_files(self.name, grid.suffix)
        anomaly, flips, mask_file, reconstruction, overlay = (folder / name for name in files)
        full_scale = grid.write_map(anomaly, self.anomaly)
        grid.write_map(flips, self.flips)
        grid.write_mask(mask_file, mask)
        grid.write_images(reconstruction, self.reconstruction)
        self._write_overlay(overlay, mask, threshold)
        return {name: sha256_file(folder / name) for name in files}, full_scale

    def result(
        self,
        relative: str,
        mask: NDArray[np.bool_],
        threshold: tuple[float, ThresholdSource],
        full_scale: float,
    ) -> ScanResult:
        """Sum the scan up."""
        grid, voxels = self.scan.grid, int(np.count_nonzero(mask))
        mm3 = self.scan.voxel_mm3
        return ScanResult(
            name=self.name,
            input=relative,
            status="ok",
            slices=len(self.scores),
            empty_slices=len(self.scores) - len(self.positions),
            score=self.scores[self._worst()],
            worst_slice=grid.file_index(self._worst()),
            slice_axis=grid.slice_axis,
            threshold=threshold[0],
            threshold_source=threshold[1],
            mask_pixels=voxels,
            volume_ml=None if mm3 is None else round(voxels * mm3 / 1000, 6),
            full_scale=full_scale,
            seconds=round(self.seconds, 3),
            sha256=self.scan.sha256,
            notes="; ".join(self.scan.notes),
        )

    def slice_results(self, mask: NDArray[np.bool_]) -> tuple[SliceResult, ...]:
        """Sum each slice up, in the order of the file."""
        return tuple(
            sorted(
                (
                    SliceResult(self.scan.grid.file_index(index), score, int(plane.sum()))
                    for index, (score, plane) in enumerate(zip(self.scores, mask, strict=True))
                ),
                key=lambda item: item.index,
            )
        )

    def _to_scan(self, values: FloatArray) -> FloatArray:
        shape = (self.inside.shape[1], self.inside.shape[2])
        return self.preprocessing.from_grid(values, shape, self.scan.spacing)

    def _worst(self) -> int:
        """Position of the slice with the highest score; the first of equals."""
        return max(self.positions, key=lambda position: self.scores[position] or 0.0)

    def _write_overlay(self, path: Path, mask: NDArray[np.bool_], threshold: float) -> None:
        from .overlays import write_overlay

        worst = self._worst()
        image = self._to_scan(self.images[self.positions.index(worst)])
        write_overlay(
            path,
            image.mean(axis=0),
            self.anomaly[worst],
            mask[worst],
            self.reconstruction[worst].mean(axis=0),
            # Scaled by the threshold, healthy scans look dark beside others of the run.
            scale=2 * threshold,
        )


def output_files(name: str, suffix: str) -> list[str]:
    """Paths of a scan's results below the output folder: four maps and the overlay."""
    maps = (f"maps/{name}_{part}{suffix}" for part in MAP_PARTS)
    return [*maps, f"overlays/{name}.png"]


def _shows_nothing(image: FloatArray, preprocessing: Preprocessing) -> bool:
    """Whether a slice of a volume lies beyond what was imaged, such as above the head."""
    if is_constant(image):
        return True
    return preprocessing.normalisation == "foreground-median" and float(image.max()) <= 0
