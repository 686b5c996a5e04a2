"""``berdiff calibrate``: a threshold for the mask, from healthy images only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Slices at a time; changes no result.")
    ] = 8,
    seed: Annotated[
        int, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same maps.")
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Reverse steps, spread over the noise level. Default: bundle's."),
    ] = None,
    noise_level: Annotated[
        int | None,
        typer.Option("--noise-level", min=1, help="Step to noise to. Default: bundle's."),
    ] = None,
    flip_threshold: Annotated[
        float | None,
        typer.Option(
            "--flip-threshold",
            min=0,
            max=1,
            help="Flip probability that releases a bit. Default: bundle's.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="Device to run on.")] = "cpu",
    backend: Annotated[str, typer.Option(help="Engine backend.")] = "onnxruntime",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: one per physical core.")
    ] = None,
) -> None:
    """Choose the threshold of the mask on healthy scans, and write it into the bundle.

    The threshold is the lowest that at most the given share of the healthy scans' foreground
    pixels exceeds. Specks are dropped after that, so fewer pixels end up in masks. It holds for
    the settings it was made with: `infer` falls back to Otsu's threshold, and says so, when it is
    called with others.
    """
    from berdiff.runtime.calibration import calibrate as choose
    from berdiff.runtime.detector import Detector

    from .progress import scan_progress

    with Detector.open(model, backend, device, threads) as detector:
        usual = detector.settings()
        settings = detector.settings(noise_level, steps, flip_threshold)
        with scan_progress() as progress:
            result = choose(detector, source, rate, settings, seed, batch_size, progress)
        detector.bundle.with_threshold(result.threshold)
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
