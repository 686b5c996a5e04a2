r"""What a precision costs: size, flip probabilities, bits, anomaly maps and detection.

Run it as::

    python benchmarks/precision.py CHECKPOINT --calibration train --healthy healthy \
        --images lesion --masks lesion_masks -o precision

Every precision is exported into ``precision/bundles`` (what is there already is not exported
again) and compared with fp32, with the bundle's own settings and the same noise, through ONNX
Runtime on the CPU. bf16, which that cannot compute, has every half value rounded as an accelerator
rounds it; so has fp16, which runs once more as that CPU computes it. The row "another seed" is
fp32 again, with other noise: what the loop leaves to chance.

Flip probabilities, bits and maps are compared on the healthy images, detection on all of them.
Differences of the pixel AP are paired: resampling the same images (bootstrap). The figures go to
``precision.json``, the table to ``table.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff import __version__
from berdiff.evaluation import evaluate
from berdiff.evaluation_cases import EvaluationOptions, main_map
from berdiff.export.agreement import differences, flip_errors, outcomes
from berdiff.export.calibration_set import calibration_images
from berdiff.export.emulation import open_emulated
from berdiff.export.half import HALF_TYPES
from berdiff.export.parity import ParityError
from berdiff.export.write_bundle import export_bundle
from berdiff.runtime import metrics
from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import GRAPHS, Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.files import write_atomic
from berdiff.runtime.precision import PRECISIONS, Precision

Row = dict[str, Any]

OTHER_SEED = 1


def short(value: float) -> str:
    return f"{value:.1e}" if value else "0"


COLUMNS = {
    "": lambda row: row["name"],
    "size of the graphs": lambda row: f"{row['bytes'] / 1e6:.1f} MB",
    "flip probability: largest error": lambda row: short(row["calibration_flip_error"]),
    "0.1 % exceed": lambda row: short(row["calibration_flip_p999"]),
    "own bits": lambda row: short(row["calibration_code_rate"]),
    "mask bits": lambda row: short(row["calibration_mask_rate"]),
    "healthy bits": lambda row: short(row["calibration_bit_rate"]),
    "maps: 1 - correlation": lambda row: short(row["calibration_map_error"]),
    "pixel AP": lambda row: f"{row['pixel_ap']:.4f}",
    "its change [95 %]": lambda row: row["change"],
    "image AUROC": lambda row: f"{row['image_auroc']:.4f}",
}


@dataclass(frozen=True)
class Contender:
    """One row: a bundle, how its networks run, and the seed of the loop."""

    name: str
    bundle: Bundle
    opened: Callable[[Bundle, int | None], Backend]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Found:
    """Detection by the map that the bundle itself shows."""

    map: str
    pixel_ap: float
    resampled: NDArray[np.float64]
    image_auroc: float


def natively(bundle: Bundle, threads: int | None) -> Backend:
    return open_backend(bundle, threads=threads)


def contenders(args: argparse.Namespace) -> Iterator[Contender]:
    for precision in PRECISIONS:
        bundle = exported(args, precision)
        if bundle is None:
            continue
        if precision in HALF_TYPES:
            yield Contender(precision, bundle, open_emulated)
        else:
            yield Contender(precision, bundle, natively)
        if precision == "fp16":
            yield Contender("fp16 on this CPU", bundle, natively)
        if precision == "fp32":
            yield Contender("fp32, another seed", bundle, natively, OTHER_SEED)


def exported(args: argparse.Namespace, precision: Precision) -> Bundle | None:
    folder = args.output / "bundles" / precision
    if folder.exists():
        return Bundle.open(folder)
    calibration = None if precision == "fp32" else args.calibration
    try:
        return export_bundle(args.checkpoint, folder, precision=precision, calibration=calibration)
    except ParityError as error:
        print(f"{precision} is left out: {error}")
        return None


def detect(args: argparse.Namespace, contender: Contender, backend: Backend) -> Found:
    detector = Detector(contender.bundle, backend)
    settings = detector.settings()
    options = EvaluationOptions(kinds=(settings.anomaly_map,), seed=contender.seed)
    result = evaluate(detector, args.images, args.masks, args.healthy, options=options)
    name = main_map(settings)
    (figures,) = (each for each in result.figures if each.map == name)
    masked = [case for case in result.cases if case.masked]
    resampled = metrics.resampled_average_precision(
        [case.values[name] for case in masked], [case.labels for case in masked]
    )
    if figures.pixel_ap is None or figures.image_auroc is None or resampled is None:
        raise SystemExit("detection needs at least two images with masks and two healthy ones")
    return Found(name, figures.pixel_ap, resampled, figures.image_auroc)


def change(found: Found, exact: Found) -> str:
    """Paired difference of the pixel AP, in words."""
    if found is exact:
        return ""
    low, high = metrics.percentile_interval(found.resampled - exact.resampled)
    return f"{found.pixel_ap - exact.pixel_ap:+.4f} [{low:+.4f}, {high:+.4f}]"


def measure(args: argparse.Namespace) -> Iterator[Row]:
    every = list(contenders(args))
    first = every[0].bundle
    images = calibration_images(args.healthy, first.manifest.preprocessing, args.count)
    with open_backend(first, threads=args.threads) as reference:
        expected = outcomes(first, reference, images)
        exact = None
        for contender in every:
            bundle = contender.bundle
            with contender.opened(bundle, args.threads) as backend:
                found = detect(args, contender, backend)
                exact = exact or found
                yield {
                    "name": contender.name,
                    "bytes": sum(bundle.manifest.files[name].size for name in GRAPHS),
                    **flip_errors(reference, backend, expected),
                    **differences(outcomes(bundle, backend, images, contender.seed), expected),
                    "map": found.map,
                    "pixel_ap": found.pixel_ap,
                    "change": change(found, exact),
                    "image_auroc": found.image_auroc,
                    "compared_images": len(images),
                    "parity": bundle.manifest.parity,
                    "parity_limits": bundle.manifest.parity_limits,
                }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--calibration", type=Path, required=True, help="healthy, to calibrate on")
    parser.add_argument("--healthy", type=Path, required=True, help="healthy, to compare on")
    parser.add_argument("--images", type=Path, required=True, help="with lesions")
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32, help="healthy slices to compare on")
    parser.add_argument("--threads", type=int, help="default: one per core")
    return parser.parse_args()


def main() -> None:
    args = parse()
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines))
    rows = []
    for row in measure(args):
        rows.append(row)
        lines.append("| " + " | ".join(show(row) for show in COLUMNS.values()) + " |")
        print(lines[-1], flush=True)
    about = {"berdiff": __version__, "onnxruntime": version("onnxruntime")}
    content = json.dumps({**about, "rows": rows}, indent=2) + "\n"
    write_atomic(args.output / "precision.json", content.encode())
    write_atomic(args.output / "table.md", ("\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main()
