"""The scans of an evaluation: every map of each, gathered in one pass of the loop."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.anomaly import anomaly_map, image_score, smooth
from berdiff.runtime.batches import Progress, detect_slices, read_job
from berdiff.runtime.detector import Detection, Detector
from berdiff.runtime.errors import InputError
from berdiff.runtime.manifest import AnomalyMapKind, SamplingDefaults
from berdiff.runtime.preprocessing import foreground
from berdiff.runtime.scan_job import ScanJob
from berdiff.runtime.scans import ScanSource, find_scans

from .baseline import SMOOTHING, ZScore, intensity
from .evaluation_masks import pair_masks, read_mask

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

KINDS: tuple[AnomalyMapKind, ...] = typing.get_args(AnomalyMapKind)
SMOOTHED = ", smoothed"
ZSCORE = "z-score baseline"
INTENSITY = "intensity baseline"
NO_ZSCORE = (
    "the z-score baseline was left out: name a folder of healthy training images with --train"
)


def main_map(settings: SamplingDefaults) -> str:
    """Name of the map that `berdiff infer` would show with these settings."""
    return settings.anomaly_map + (SMOOTHED if settings.smoothing else "")


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Attributes
    ----------
    kinds : tuple of str or None
        Anomaly maps to measure; the first is the main one, shown in plots. None: every kind, the
        bundle's own first.
    seed : int
        64-bit seed of the detector.
    batch_size : int
        Slices per batch; changes no result.
    rate : float
        Share of healthy foreground pixels above the threshold of the "calibrated" Dice.
    smoothing : float
        Standard deviation of the Gaussian for baselines, as a share of the height of the model's
        grid; for smoothed maps too, where the bundle has no smoothing of its own.
    """

    kinds: tuple[AnomalyMapKind, ...] | None = None
    seed: int = 0
    batch_size: int = 8
    rate: float = 0.01
    smoothing: float = SMOOTHING


@dataclass(eq=False)
class Case:
    """One evaluated scan; ``n`` is its number of foreground pixels, in C order of `inside`.

    Attributes
    ----------
    name : str
        Path below its folder, without suffix.
    masked : bool
        Whether it came with a mask, that is, counts for the pixel figures.
    inside : ndarray of bool, shape (S, H0, W0)
        Foreground.
    truth : ndarray of bool, shape (S, H0, W0)
        Its mask; all False for healthy scans.
    values : dict of str to ndarray of float32, shape (n,)
        Each map inside the foreground, on the scan's own grid.
    scores : dict of str to float
        Image score by each map; of a volume, the highest of its slices.
    shown : int
        Slice to show: the one with most lesion pixels, or with the highest score.
    image, reconstruction : ndarray of uint8, shape (H0, W0)
        That slice, mean over channels.
    """

    name: str
    masked: bool
    inside: BoolArray
    truth: BoolArray
    values: dict[str, FloatArray]
    scores: dict[str, float]
    shown: int
    image: NDArray[np.uint8]
    reconstruction: NDArray[np.uint8]

    @property
    def labels(self) -> BoolArray:
        """Mask of the foreground pixels, ``[n]``."""
        return self.truth[self.inside]

    @property
    def has_lesion(self) -> bool:
        """Whether its mask shows anything."""
        return bool(self.truth.any())

    def volume(self, name: str) -> FloatArray:
        """Map `name` on the scan's own grid, ``[S, H0, W0]``; 0 outside the foreground."""
        full = np.zeros(self.inside.shape, np.float32)
        full[self.inside] = self.values[name]
        return full


@dataclass
class Collector:
    """From scans to cases.

    Attributes
    ----------
    detector : Detector
        An opened detector.
    settings : SamplingDefaults
        Settings of the loop; `anomaly_map` is the main map.
    options : EvaluationOptions
        What to measure.
    progress : callable, optional
        Called with (scans done, scans in all, slices done).
    notes : list of str
        What a reader of the figures should know.
    train_images : int
        Images the z-score baseline was fitted on; 0 without it.
    """

    detector: Detector
    settings: SamplingDefaults
    options: EvaluationOptions
    progress: Progress | None = None
    scans: list[tuple[ScanSource, Path | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    zscore: ZScore | None = None
    train_images: int = 0
    train_digests: set[str] = field(default_factory=set)

    def add(self, source: Path, masks: Path | None) -> None:
        """Add scans, with their masks or as healthy ones."""
        found = find_scans(source, self.detector.bundle.manifest.preprocessing).sources
        mask_of = pair_masks([scan.name for scan in found], masks) if masks is not None else {}
        self.scans += [(scan, mask_of.get(scan.name)) for scan in found]

    def fit_baseline(self, train: Path) -> None:
        """Fit the z-score baseline on healthy images."""
        preprocessing = self.detector.bundle.manifest.preprocessing
        found = find_scans(train, preprocessing).sources

        def slices() -> Iterator[FloatArray]:
            for scan in found:
                job = read_job(scan, preprocessing)
                self.train_digests.add(job.scan.sha256)
                yield from job.images

        self.zscore = ZScore.fit(slices(), self.options.smoothing)
        self.train_images = self.zscore.images

    def collect(self) -> tuple[Case, ...]:
        """Run the detector over every scan added.

        Raises
        ------
        InputError
            If a scan or mask cannot be used, or no mask shows anything.
        """
        if self.zscore is None:
            self.notes.append(NO_ZSCORE)
        cases: list[Case] = []
        gathered: dict[ScanJob, _Gathered] = {}
        # The loop does not depend on the map: "change" is asked for since the detector alone can
        # make it, and all others follow from what comes with it.
        settings = dataclasses.replace(self.settings, anomaly_map="change", smoothing=0.0)
        truths: dict[ScanJob, BoolArray | None] = {}
        seen = detect_slices(
            self.detector, self._jobs(truths), settings, self.options.seed, self.options.batch_size
        )
        for slices, (job, number, detection, item) in enumerate(seen, start=1):
            maps = self._maps(job.images[number], detection, item)
            gathered.setdefault(job, _Gathered()).take(job, number, maps)
            if job.pending == 0:
                cases.append(gathered.pop(job).case(job, truths.pop(job)))
                if self.progress is not None:
                    self.progress(len(cases), len(self.scans), slices)
        if not any(case.labels.any() for case in cases):
            raise InputError("no mask shows anything inside the foreground: nothing to evaluate")
        return tuple(cases)

    def _jobs(self, truths: dict[ScanJob, BoolArray | None]) -> Iterator[ScanJob]:
        both = 0
        for scan, mask in self.scans:
            job = read_job(scan, self.detector.bundle.manifest.preprocessing)
            truths[job] = read_mask(mask, job) if mask is not None else None
            both += job.scan.sha256 in self.train_digests
            yield job
        if both:
            self.notes.append(
                f"{both} of the evaluated scans are also in --train, where the z-score baseline "
                "has seen them"
            )

    def _maps(self, image: FloatArray, detection: Detection, item: int) -> dict[str, FloatArray]:
        """Every map of one image on the model's grid, ``[H, W]``, by name."""
        inside = foreground(image)
        sigma = (self.settings.smoothing or self.options.smoothing) * image.shape[-2]
        batch = image[None], detection.reconstruction[item][None]
        flips = detection.flip_map[item][None]
        maps: dict[str, FloatArray] = {}
        for kind in self.options.kinds or dict.fromkeys((self.settings.anomaly_map, *KINDS)):
            plane = (
                detection.anomaly_map[item]
                if kind == "change"
                else anomaly_map(kind, *batch, unchanged=None, flips=flips)[0]
            )
            pair = {kind: plane, kind + SMOOTHED: smooth(plane, inside, sigma)}
            # What the bundle itself would show comes first.
            maps |= dict(reversed(pair.items())) if self.settings.smoothing else pair
        if self.zscore is not None:
            maps[ZSCORE] = self.zscore.anomaly_map(image[None])[0]
        maps[INTENSITY] = intensity(image[None], self.options.smoothing)[0]
        return maps


@dataclass
class _Gathered:
    """What is known of a scan while its slices arrive."""

    values: dict[str, list[FloatArray]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)

    def take(self, job: ScanJob, number: int, maps: dict[str, FloatArray]) -> None:
        inside_model = foreground(job.images[number])
        inside = job.inside[job.positions[number]]
        for name, plane in maps.items():
            own = job.preprocessing.from_grid(plane, inside.shape, job.scan.spacing)
            self.values.setdefault(name, []).append(own[inside])
            self.scores.setdefault(name, []).append(image_score(plane, inside_model))

    def case(self, job: ScanJob, truth: BoolArray | None) -> Case:
        masked = truth is not None
        if truth is None:
            truth = np.zeros(job.inside.shape, np.bool_)
        main = next(iter(self.scores.values()))
        # By lesion pixels where there is a lesion, by score where there is none.
        ranks = [(int(truth[p].sum()), main[n]) for n, p in enumerate(job.positions)]
        number = max(range(len(ranks)), key=ranks.__getitem__)
        shown = job.positions[number]
        image = job.preprocessing.from_grid(
            job.images[number], job.inside.shape[1:], job.scan.spacing
        )
        return Case(
            name=job.name,
            masked=masked,
            inside=job.inside,
            truth=truth,
            values={name: np.concatenate(planes) for name, planes in self.values.items()},
            scores={name: max(scores) for name, scores in self.scores.items()},
            shown=shown,
            image=_bytes(image),
            reconstruction=_bytes(job.reconstruction[shown]),
        )


def _bytes(image: FloatArray) -> NDArray[np.uint8]:
    """Mean over channels ``[C, H, W]`` as 8 bits."""
    return np.rint(np.clip(image.mean(axis=0), 0, 1) * 255).astype(np.uint8)
