r"""How well the input checks tell wrong input from right.

Run it as::

    python benchmarks/intake.py --train train --preset flair --right healthy lesion \
        --wrong T1.nii.gz unstripped.nii.gz -o intake

Statistics are learnt from the images in `--train`, as a training does. `--right` are folders of
what the model is meant for, with lesions or without: what is called suspect there is a false
alarm. Of the first of them, which should be healthy and not trained on, wrong inputs are made:
turned, mirrored, scaled, blurred and so on. `--wrong` are scans or folders of something else; each
channel is given to a model of one channel by itself. Those rows come twice: as they
are, and moved and stretched to where the training images lie ("in place"), which leaves only what
the image itself shows.

The figures go to ``intake.json``, the table to ``table.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from berdiff import __version__
from berdiff.data import load_healthy
from berdiff.runtime.errors import InputError
from berdiff.runtime.files import write_atomic
from berdiff.runtime.image_features import SHAPE_FEATURES, describe
from berdiff.runtime.intake import InputStatistics, Intake, judge
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import Scan, find_scans, read_scan
from berdiff.runtime.scans.scan import is_constant
from berdiff.training_config import load_preset

FloatArray = NDArray[np.float32]
Change = Callable[[FloatArray], FloatArray]

RANDOM = np.random.default_rng(0)


def _inside(change: Change) -> Change:
    """Change the foreground, and leave the background 0."""
    return lambda image: np.where(image > 0, change(image), 0).astype(np.float32)


def _rotated(degrees: float) -> Change:
    return lambda image: ndimage.rotate(image, degrees, (1, 2), reshape=False, order=1)


def _blurred(pixels: float) -> Change:
    return lambda image: ndimage.gaussian_filter(image, (0, pixels, pixels))


def _noisy(image: FloatArray) -> FloatArray:
    level = 0.15 * np.median(image[image > 0])
    return np.maximum(image + RANDOM.normal(0, level, image.shape), 1e-3)


# What is done to stored slices [C, H0, W0].
CHANGES: dict[str, Change] = {
    "mirrored, left to right": lambda image: image[:, :, ::-1],
    "upside down": lambda image: image[:, ::-1],
    "rows and columns exchanged": lambda image: image.transpose(0, 2, 1),
    "turned by 90 degrees": lambda image: np.rot90(image, axes=(1, 2)),
    "turned by 30 degrees": _rotated(30),
    "turned by 15 degrees": _rotated(15),
    "inverted contrast": _inside(lambda image: image.max() + 1 - image),
    "blurred, sigma 3 pixels": _inside(_blurred(3)),
    "blurred, sigma 6 pixels": _inside(_blurred(6)),
    "blurred beyond the mask, sigma 3 pixels": _blurred(3),
    "noise of 15 % of the median": _inside(_noisy),
    "twice as bright below as above": lambda image: (
        image * np.linspace(2 / 3, 4 / 3, image.shape[1], dtype=np.float32)[:, None]
    ),
    "left half missing": lambda image: image * (np.arange(image.shape[2]) >= image.shape[2] // 2),
    "foreground of pure noise": _inside(lambda image: RANDOM.random(image.shape)),
    "pure noise": lambda image: RANDOM.random(image.shape, np.float32),
}
SPACINGS = {"pixel size 1.5 times too large": 1.5, "pixel size 1.5 times too small": 1 / 1.5}


@dataclasses.dataclass(frozen=True)
class Checks:
    """What images are judged by."""

    preprocessing: Preprocessing
    statistics: InputStatistics

    def grid(self, slices: FloatArray, spacing: tuple[float, float] | None) -> FloatArray:
        """Slices of a scan on the model's grid."""
        cleared = self.preprocessing.clear_background(slices)
        shown = [image for image in cleared if not is_constant(image)]
        return np.stack([self.preprocessing.to_grid(image, spacing) for image in shown])

    def judge(self, scan: Scan, change: Change | None = None, scale: float = 1) -> Intake:
        """Judge a scan, or what a change makes of it; "rejected" if it is refused."""
        slices, spacing = scan.slices, scan.spacing
        if change is not None:
            slices = np.stack([np.ascontiguousarray(change(image)) for image in slices])
        if scale != 1:
            usual = self.preprocessing.default_spacing or 1.0
            spacing = tuple(scale * length for length in spacing or (usual, usual))
        try:
            return judge(self.statistics, self.grid(slices, spacing))
        except InputError as error:
            return Intake("rejected", (str(error),))

    def in_place(self, scan: Scan) -> Intake:
        """Judge a scan after it was moved and stretched to where the training images lie."""
        try:
            images = self.grid(scan.slices, scan.spacing)
        except InputError as error:
            return Intake("rejected", (str(error),))
        return judge(self.statistics, np.stack([self._moved(image) for image in images]))

    def _moved(self, image: FloatArray) -> FloatArray:
        have = dict(zip(SHAPE_FEATURES, describe(image[None])[0], strict=False))
        want = dict(zip(SHAPE_FEATURES, self.statistics.mean, strict=False))
        ratio = [have[name] / want[name] for name in ("height", "width")]
        centres = [
            np.array([side["row centre"], side["column centre"]]) * image.shape[1:]
            for side in (have, want)
        ]
        offset = centres[0] - ratio * centres[1]
        inside = ndimage.affine_transform(
            (image > 0).any(axis=0).astype(np.float32), np.array(ratio), offset, order=1
        )
        planes = [ndimage.affine_transform(p, np.array(ratio), offset, order=1) for p in image]
        return np.stack(planes) * (inside > 0.5)


def scans(path: Path, preprocessing: Preprocessing) -> Iterator[Scan]:
    """Scans below a path; channels one by one where the model takes one and the file has more."""
    channels = preprocessing.channels
    for source in find_scans(path, preprocessing).sources:
        source = dataclasses.replace(source, problem="", mismatch="")
        for count in (1, 3, 4) if channels == 1 else (channels,):
            names = tuple(map(str, range(count)))
            wide = dataclasses.replace(preprocessing, channels=count, modalities=names)
            try:
                scan = read_scan(source, wide)
            except InputError:
                continue  # another number of channels, perhaps
            for first in range(0, count, channels):
                part = scan.slices[:, first : first + channels]
                yield dataclasses.replace(scan, slices=part)
            break
        else:
            print(f"{source.key} has none of the numbers of channels tried; left out")


def row(name: str, found: list[Intake]) -> dict[str, Any]:
    """Sum the verdicts of some scans up."""
    verdicts = [intake.verdict for intake in found]
    scores = [intake.ood for intake in found if intake.ood is not None]
    slices = [value for intake in found for value in intake.slices if value is not None]
    reasons = [intake.reasons[0] for intake in found if intake.reasons]
    return {
        "input": name,
        "scans": len(found),
        "ok": verdicts.count("ok"),
        "suspect": verdicts.count("suspect"),
        "rejected": verdicts.count("rejected"),
        "ood": float(np.median(scores)) if scores else None,
        "highest": max(scores, default=None),
        "slices": len(slices),
        "slices_above_1": sum(value > 1 for value in slices),
        "example": reasons[0] if reasons else "",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = ["| input | scans | suspect | rejected | ood: median | highest | slices above 1 |"]
    lines.append("|---|---|---|---|---|---|---|")
    for item in rows:
        score, highest = (
            "" if item[key] is None else f"{item[key]:.2f}" for key in ("ood", "highest")
        )
        lines.append(
            f"| {item['input']} | {item['scans']} | {item['suspect']} | {item['rejected']} "
            f"| {score} | {highest} | {item['slices_above_1']} of {item['slices']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--right", type=Path, nargs="+", required=True)
    parser.add_argument("--wrong", type=Path, nargs="*", default=[])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_preset(arguments.preset)
    pre = config.model.preprocessing
    images = load_healthy(arguments.train, pre, config.validation_fraction)
    started = time.process_time()
    statistics = images.statistics(pre.modalities)
    seconds = time.process_time() - started
    if statistics is None:
        parser.error(f"{arguments.train} holds too few images to learn from")
    checks = Checks(pre, statistics)
    right = {path.name: list(scans(path, pre)) for path in arguments.right}
    rows = [row(name, [checks.judge(scan) for scan in group]) for name, group in right.items()]
    healthy = right[arguments.right[0].name]
    for name, change in CHANGES.items():
        rows.append(row(name, [checks.judge(scan, change) for scan in healthy]))
    for name, scale in SPACINGS.items():
        rows.append(row(name, [checks.judge(scan, scale=scale) for scan in healthy]))
    for path in arguments.wrong:
        group = list(scans(path, pre))
        rows.append(row(path.name, [checks.judge(scan) for scan in group]))
        rows.append(row(f"{path.name}, in place", [checks.in_place(scan) for scan in group]))
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        "berdiff": __version__,
        "statistics": dataclasses.asdict(statistics),
        "fit_cpu_seconds": round(seconds, 3),
        "rows": rows,
    }
    write_atomic(arguments.output / "intake.json", json.dumps(record, indent=2).encode())
    write_atomic(arguments.output / "table.md", table(rows).encode())
    print(f"{statistics.images} images, limit {statistics.limit}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
