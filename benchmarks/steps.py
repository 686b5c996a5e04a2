r"""How detection and time move with the number of reverse steps, and with where they lie.

Run it as::

    python benchmarks/steps.py BUNDLE --images lesion --masks lesion_masks --healthy healthy \
        -o steps

Every combination is a file in ``steps/``; what is there already is not measured again. The table,
``steps.png`` and ``table.md`` are made from what is there. Pixel figures are those of
``berdiff evaluate``: inside the foreground, pooled, on the images' own grids. Differences are
paired: from the most steps at the same noise level, resampling the same images (bootstrap).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from steps_report import report

from berdiff.baseline import SMOOTHING
from berdiff.evaluation_cases import SMOOTHED, main_map
from berdiff.evaluation_masks import pair_masks, read_mask
from berdiff.runtime import metrics
from berdiff.runtime.anomaly import anomaly_map, flip_map, flip_mean, image_score, smooth
from berdiff.runtime.batches import read_job
from berdiff.runtime.detector import Detector
from berdiff.runtime.files import write_atomic
from berdiff.runtime.manifest import AnomalyMapKind, SamplingDefaults
from berdiff.runtime.philox import CODE_STEP, PhiloxNoise
from berdiff.runtime.preprocessing import foreground
from berdiff.runtime.sampler import Sampler
from berdiff.runtime.scan_job import ScanJob
from berdiff.runtime.scans import ScanSource, find_scans
from berdiff.runtime.schedule import spread

FloatArray = NDArray[np.float32]
Row = dict[str, Any]

LEVELS = (50, 100, 200, 300)
STEPS = (200, 100, 50, 20, 10, 5)
KINDS: tuple[AnomalyMapKind, ...] = ("squared", "change", "flips")  # beside the bundle's own
TIMED_BATCHES = (1, 8)


def uniform(count: int, stop: int) -> list[int]:
    """Equal gaps, as `berdiff infer --steps` makes them."""
    return spread(count, stop)


def dense_at_start(count: int, stop: int) -> list[int]:
    """Gaps that grow with t: most steps where little noise is left."""
    kept: list[int] = []
    for i in range(count):
        t = round((stop - 1) * (i / (count - 1)) ** 2)
        kept.append(max(t, kept[-1] + 1 if kept else 0))
    return kept


def dense_at_level(count: int, stop: int) -> list[int]:
    """Gaps that shrink with t: most steps where the code is noisiest."""
    return [stop - 1 - t for t in reversed(dense_at_start(count, stop))]


SPACINGS: dict[str, Callable[[int, int], list[int]]] = {
    "uniform": uniform,
    "dense at 0": dense_at_start,
    "dense at L": dense_at_level,
}


@dataclass(frozen=True)
class Combination:
    """One point of the curve; level 0 is the autoencoder alone, without the loop."""

    level: int
    spacing: str
    steps: int

    @property
    def file(self) -> str:
        return f"L{self.level}-{self.spacing.replace(' ', '-')}-{self.steps}.json"

    def sampler(self, detector: Detector, settings: SamplingDefaults) -> Sampler:
        """A loop over just these steps: L and the kept ones become a schedule of their own."""
        kept = SPACINGS[self.spacing](self.steps, self.level)
        return Sampler(
            schedule=detector.schedule.respaced([*kept, self.level]),
            noise_level=len(kept),
            flip_threshold=settings.flip_threshold,
            forward_noise=detector.bundle.manifest.forward_noise,
        )


def combinations(levels: tuple[int, ...], others: int) -> Iterator[Combination]:
    """What to measure, the most telling first; other spacings from `others` steps down."""
    yield Combination(0, "uniform", 0)
    for spacing in SPACINGS:
        for level in levels:
            for steps in sorted(STEPS):
                most = level if spacing == "uniform" else min(level - 1, others)
                if steps <= most:
                    yield Combination(level, spacing, steps)


@dataclass(eq=False)
class Images:
    """What every combination shares: the images, their own codes, and what those decode to."""

    detector: Detector
    settings: SamplingDefaults
    jobs: list[ScanJob]
    truths: list[NDArray[np.bool_] | None]
    pixels: FloatArray
    ids: NDArray[np.uint64]
    codes: FloatArray
    unchanged: FloatArray
    seed: int
    batch_size: int

    @classmethod
    def load(cls, detector: Detector, args: argparse.Namespace) -> Images:
        jobs, truths = [], []
        for folder, masks in ((args.images, args.masks), (args.healthy, None)):
            preprocessing = detector.bundle.manifest.preprocessing
            found = find_scans(folder, preprocessing).sources
            mask_of = pair_masks([scan.name for scan in found], masks) if masks else {}
            for scan in _chosen(found, args.count):
                job = read_job(scan, preprocessing)
                if len(job.images) != 1:
                    raise SystemExit(f"{scan.key}: this script takes single slices, not volumes")
                jobs.append(job)
                truths.append(read_mask(mask_of[scan.name], job) if masks else None)
        pixels = np.concatenate([job.images for job in jobs])
        ids = np.array([job.image_id(0) for job in jobs], np.uint64)
        codes, unchanged = [], []
        settings = detector.settings(flip_threshold=args.flip_threshold)
        for start in range(0, len(pixels), args.batch_size):
            part = slice(start, start + args.batch_size)
            probability = detector.backend.encode(pixels[part])
            limit = np.float32(0.5)
            if settings.code == "sample":
                limit = PhiloxNoise(args.seed, ids[part])(CODE_STEP, probability.shape)
            codes.append((limit < probability).astype(np.float32))
            unchanged.append(np.clip(detector.backend.decode(codes[-1]), 0, 1))
        return cls(
            detector, settings, jobs, truths, pixels, ids, np.concatenate(codes),
            np.concatenate(unchanged), args.seed, args.batch_size,
        )  # fmt: skip

    def measure(self, combination: Combination) -> Row:
        """Run the loop over every image, and judge every map."""
        values: dict[str, list[FloatArray]] = {}
        scores: dict[str, list[float]] = {}
        for start in range(0, len(self.jobs), self.batch_size):
            part = slice(start, start + self.batch_size)
            healthy, flips = self._walk(combination, part)
            for name, planes in self._maps(part, healthy, flips).items():
                for job, plane in zip(self.jobs[part], planes, strict=True):
                    own = job.preprocessing.from_grid(plane, job.inside.shape[1:], job.scan.spacing)
                    values.setdefault(name, []).append(own[job.inside[0]])
                    inside = foreground(job.images[0])
                    scores.setdefault(name, []).append(image_score(plane, inside))
        return {
            "level": combination.level,
            "spacing": combination.spacing,
            "steps": combination.steps,
            "maps": {name: self._judge(values[name], np.array(scores[name])) for name in values},
        }

    def _walk(self, combination: Combination, part: slice) -> tuple[FloatArray, FloatArray]:
        """The healthy counterparts ``[N, C, H, W]`` and the flip maps ``[N, H, W]``."""
        size = self.detector.bundle.manifest.preprocessing.size
        if combination.level == 0:  # nothing changes, nothing is doubted
            unchanged = self.unchanged[part]
            return unchanged, np.zeros((len(unchanged), *size), np.float32)
        sampler = combination.sampler(self.detector, self.settings)
        noise = PhiloxNoise(self.seed, self.ids[part])
        state = sampler.run(self.codes[part], self.detector.backend.flip_probability, noise)
        mean = flip_mean(state.flips / np.float32(combination.steps))
        return np.clip(self.detector.backend.decode(state.z), 0, 1), flip_map(mean, size)

    def _maps(self, part: slice, healthy: FloatArray, flips: FloatArray) -> dict[str, FloatArray]:
        """Every map as it is and smoothed."""
        images, inside = self.pixels[part], foreground(self.pixels[part])
        sigma = (self.settings.smoothing or SMOOTHING) * images.shape[2]
        maps: dict[str, FloatArray] = {}
        kinds: tuple[AnomalyMapKind, ...] = (self.settings.anomaly_map, *KINDS)
        for kind in dict.fromkeys(kinds):
            plain = anomaly_map(kind, images, healthy, self.unchanged[part], flips)
            maps |= {kind: plain, kind + SMOOTHED: smooth(plain, inside, sigma)}
        return maps

    def _judge(self, values: list[FloatArray], scores: NDArray[np.float64]) -> Row:
        masked = [i for i, truth in enumerate(self.truths) if truth is not None]
        planes = [values[i] for i in masked]
        labels = [self.truths[i][self.jobs[i].inside] for i in masked]  # type: ignore[index]
        sick = np.array([truth is not None and bool(truth.any()) for truth in self.truths])
        return {
            "pixel_ap": metrics.average_precision(np.concatenate(planes), np.concatenate(labels)),
            "image_auroc": metrics.auroc(scores, sick),
            "pixel_ap_resampled": _rounded(metrics.resampled_average_precision(planes, labels)),
            "image_auroc_resampled": _rounded(metrics.resampled_auroc(scores, sick)),
        }

    def cpu_time(self, repeats: int = 5) -> dict[str, dict[str, float]]:
        """Milliseconds of CPU time per image of `Detector.detect`, by batch size and steps.

        CPU time, since other work on the machine adds less to it than to the time on the clock.
        """
        found: dict[str, dict[str, float]] = {}
        for size in TIMED_BATCHES:
            images, ids = self.pixels[:size], self.ids[:size]
            for steps in STEPS:
                chosen = self.detector.settings(noise_level=max(LEVELS), steps=steps)
                runs = []
                for _ in range(repeats + 1):
                    began = time.process_time()
                    self.detector.detect(images, ids, self.seed, chosen)
                    runs.append(1000 * (time.process_time() - began) / size)
                found.setdefault(str(size), {})[str(steps)] = statistics.median(runs[1:])
        return found


def _chosen(scans: Sequence[ScanSource], count: int | None) -> Sequence[ScanSource]:
    """All, or `count` drawn with a fixed seed."""
    if count is None or count >= len(scans):
        return scans
    rng = np.random.default_rng(0)
    return [scans[i] for i in sorted(rng.choice(len(scans), count, replace=False))]


def _rounded(figures: NDArray[np.float64] | None) -> list[float]:
    if figures is None:
        raise SystemExit("too few images, or no mask shows anything: nothing to measure")
    return [round(float(figure), 6) for figure in figures]


def measure(args: argparse.Namespace) -> None:
    """Measure what is not there yet."""
    args.output.mkdir(parents=True, exist_ok=True)
    with Detector.open(args.bundle, threads=args.threads) as detector:
        images = Images.load(detector, args)
        subject = {
            "bundle": detector.bundle.digest,
            "images": sum(truth is not None for truth in images.truths),
            "healthy": sum(truth is None for truth in images.truths),
            "scans": [job.scan.sha256 for job in images.jobs],
            "seed": args.seed,
            "flip_threshold": images.settings.flip_threshold,
            "main_map": main_map(images.settings),
        }
        about = args.output / "subject.json"
        if about.exists() and json.loads(about.read_text()) != subject:
            raise SystemExit(f"{args.output} was measured with another bundle or other images")
        write_atomic(about, json.dumps(subject).encode())
        for combination in combinations(tuple(args.levels), args.others):
            path = args.output / combination.file
            if path.exists():
                continue
            row = images.measure(combination)
            write_atomic(path, json.dumps(row).encode())
            main = row["maps"][subject["main_map"]]
            print(
                f"{path.stem}: pixel AP {main['pixel_ap']:.4f}, "
                f"image AUROC {main['image_auroc']:.4f}",
                flush=True,
            )
        if args.time:
            write_atomic(args.output / "time.json", json.dumps(images.cpu_time()).encode())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="single slices with lesions")
    parser.add_argument("--masks", type=Path, required=True, help="their masks, of the same names")
    parser.add_argument("--healthy", type=Path, required=True, help="single slices without lesions")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, may be begun")
    parser.add_argument("--count", type=int, help="images per folder, drawn; default: all")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, help="noise levels")
    parser.add_argument("--others", type=int, default=50, help="most steps of other spacings")
    parser.add_argument("--flip-threshold", type=float, help="default: the bundle's")
    parser.add_argument("--time", action="store_true", help="CPU time per image too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    measure(args)
    report(args.output)


if __name__ == "__main__":
    main()
