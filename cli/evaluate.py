"""``berdiff evaluate``: figures of merit against masks, beside simple baselines."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import Backend, BatchSize, Device, FlipThreshold, NoiseLevel, Seed, Steps, Threads


class MapKind(str, Enum):
    """Kinds of anomaly map."""

    squared = "squared"
    signed = "signed"
    absolute = "absolute"
    change = "change"
    flips = "flips"


def evaluate(
    model: Annotated[Path, typer.Option("--model", "-m", help="Bundle: the detector to measure.")],
    images: Annotated[Path, typer.Option("--input", "-i", help="Folder of scans with lesions.")],
    masks: Annotated[
        Path, typer.Option(help="Folder of their masks, of the same names; any suffix but JPEG.")
    ],
    healthy: Annotated[Path, typer.Option(help="Folder of scans without lesions.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New folder for figures and plots. Default: print."),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Healthy training images, to fit the z-score baseline on."),
    ] = None,
    anomaly_map: Annotated[
        list[MapKind] | None,
        typer.Option(
            "--anomaly-map",
            help="Map to measure; repeat for several, the main one first. Default: all.",
        ),
    ] = None,
    healthy_rate: Annotated[
        float,
        typer.Option(
            "--false-positive-rate",
            min=0,
            max=1,
            help="Share of healthy pixels above the threshold of the fairly chosen Dice.",
        ),
    ] = 0.01,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    steps: Steps = None,
    noise_level: NoiseLevel = None,
    flip_threshold: FlipThreshold = None,
    device: Device = "cpu",
    backend: Backend = "onnxruntime",
    threads: Threads = None,
) -> None:
    """Measure how well a detector finds what masks show.

    Prints pixel average precision and AUROC inside the foreground, Dice, and AUROC of the image
    score for every kind of anomaly map, and the same for two simple baselines: a z-score per pixel
    (with --train) and brightness.
    """
    from berdiff.evaluation import evaluate as measure
    from berdiff.evaluation_cases import KINDS, EvaluationOptions
    from berdiff.evaluation_report import table, write_evaluation
    from berdiff.runtime.detector import Detector
    from berdiff.runtime.errors import BerdiffError, optional

    from .progress import scan_progress

    if output is not None:
        optional("matplotlib.figure", "report")
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise BerdiffError(f"{output} exists already; remove it or choose another output")
    known = {str(kind): kind for kind in KINDS}
    kinds = tuple(dict.fromkeys(known[kind.value] for kind in anomaly_map or ())) or None
    with Detector.open(model, backend, device, threads) as detector:
        settings = detector.settings(noise_level, steps, flip_threshold)
        options = EvaluationOptions(kinds, seed, batch_size, healthy_rate)
        with scan_progress() as progress:
            evaluation = measure(
                detector, images, masks, healthy, train, settings, options, progress
            )
        if output is not None:
            write_evaluation(output, evaluation, detector)
    typer.echo(table(evaluation))
    if output is not None:
        typer.echo(f"\nfigures, plots and one row per image in {output}")
