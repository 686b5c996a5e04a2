"""``berdiff calibrate``: a threshold for the mask, from healthy images only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Backend, BatchSize, Device, FlipThreshold, NoiseLevel, Seed, Steps, Threads


def calibrate(
    model: Annotated[
        Path, typer.Option("--model", "-m", help="Bundle to write the threshold into.")
    ],
    source: Annotated[
        Path,
        typer.Option("--input", "-i", help="Healthy scans, not those the model was trained on."),
    ],
    rate: Annotated[
        float,
        typer.Option(
            "--false-positive-rate",
            min=0,
            max=1,
            help="Share of healthy foreground pixels that may lie above the threshold.",
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
    """Choose the threshold of the mask on healthy scans, and write it into the bundle.

    The threshold is the lowest that at most the given share of the healthy scans' foreground
    pixels exceeds. Specks are dropped after that, so fewer pixels end up in masks. It holds for
    the settings it was made with: `infer` falls back to Otsu's threshold, and says so, when it is
    called with others.

    A bundle that has no statistics of its training images, with which `infer` tells unusual input,
    gets those of these scans.
    """
    from berdiff.runtime.calibration import calibrate as choose
    from berdiff.runtime.detector import Detector
    from berdiff.runtime.intake import MIN_IMAGES

    from .progress import scan_progress

    with Detector.open(model, backend, device, threads) as detector:
        usual = detector.settings()
        settings = detector.settings(noise_level, steps, flip_threshold)
        with scan_progress() as progress:
            result = choose(detector, source, rate, settings, seed, batch_size, progress)
        known = detector.bundle.manifest.input_statistics is not None
        bundle = detector.bundle.with_threshold(result.threshold, result.input_statistics)
    if settings != usual:
        typer.echo(
            "warning: these are not the bundle's own settings; the threshold is used only where "
            "infer gets the same options",
            err=True,
        )
    typer.echo(
        f"threshold {result.threshold.value:.6g} for the map '{settings.anomaly_map}' written "
        f"into {model}\n"
        f"  {result.scans} healthy scans, {result.pixels} foreground pixels: {result.above:.3%} "
        f"above it\n"
        f"  {result.masked} of {result.scans} healthy scans still get a mask"
    )
    if known:
        return
    statistics = bundle.manifest.input_statistics
    typer.echo(
        f"  too few slices to tell unusual input from healthy: at least {MIN_IMAGES} are needed"
        if statistics is None
        else f"  what healthy input looks like was learnt from {statistics.images} slices"
    )
