"""Options that several verbs share, so that they mean the same everywhere."""

from __future__ import annotations

from typing import Annotated

import typer

BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Slices at a time; changes no result.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same maps.")]
Steps = Annotated[
    int | None,
    typer.Option(min=2, help="Reverse steps, spread over the noise level. Default: bundle's."),
]
NoiseLevel = Annotated[
    int | None,
    typer.Option("--noise-level", min=1, help="Step to noise to. Default: bundle's."),
]
FlipThreshold = Annotated[
    float | None,
    typer.Option(
        "--flip-threshold",
        min=0,
        max=1,
        help="Flip probability that releases a bit. Default: bundle's.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="Threshold of the mask. Default: the bundle's, or Otsu's per scan."),
]
Device = Annotated[str, typer.Option("--device", "-d", help="Device to run on.")]
Backend = Annotated[str, typer.Option(help="Engine backend.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads. Default: one per physical core.")
]
