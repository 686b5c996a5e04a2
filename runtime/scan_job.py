"""One scan on its way through a run: its prepared slices, the maps as they arrive, its files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .components import Components, find_components
from .detection import ThresholdSource
from .errors import InputError
from .preprocessing import Preprocessing
from .results import ScanResult, SliceResult
from .scans import Scan, ScanSource, read_scan
from .scans.picture import full_scale
from .slice_stack import FloatArray, SliceStack, prepare


@dataclass(eq=False)
class ScanJob(SliceStack):
    """A scan whose slices are being processed.

    Attributes
    ----------
    scan : Scan
        The scan; its voxels are given up once they are prepared.
    seconds : float
        Time spent on this scan so far.
    """

    scan: Scan = field(kw_only=True)
    seconds: float = 0.0

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
        ready = prepare(scan.slices, scan.spacing, preprocessing, scan.grid.file_index)
        doubts = (*scan.doubts, *([source.mismatch] if source.mismatch else []))
        scan = dataclasses.replace(scan, slices=scan.slices[:0].copy(), doubts=doubts)
        return cls(
            preprocessing, scan.spacing, ready.images, ready.positions, ready.inside, scan=scan
        )

    @property
    def name(self) -> str:
        """Name of the scan's results."""
        return self.scan.source.name

    @property
    def nbytes(self) -> int:
        """Bytes it holds until its results are written."""
        arrays = (self.images, self.inside, self.anomaly, self.flips, self.reconstruction)
        return sum(array.nbytes for array in arrays)

    def image_id(self, number: int) -> int:
        """Identity of ``images[number]``."""
        return int(self.scan.image_ids[self.positions[number]])

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
