"""``berdiff phantoms``: synthetic brain images with exact lesion masks."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class FileFormat(str, Enum):
    """How the images are stored."""

    png = "png"
    nifti = "nifti"


def phantoms(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; empty or not there yet.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    size: Annotated[int, typer.Option(min=24, help="Rows and columns of a slice.")] = 96,
    contrast: Annotated[
        str, typer.Option(help="Contrasts, separated by commas: flair, t1, t2, t1ce.")
    ] = "flair",
    lesions: Annotated[
        bool, typer.Option("--lesions/--healthy", help="With lesions and their masks, or without.")
    ] = False,
    volumes: Annotated[bool, typer.Option("--volumes", help="Volumes, not single slices.")] = False,
    slices: Annotated[int, typer.Option(min=1, help="Slices of a volume.")] = 24,
    file_format: Annotated[
        FileFormat | None,
        typer.Option("--format", help="Default: png for slices of one contrast, otherwise nifti."),
    ] = None,
) -> None:
    """Write synthetic brain images to try the software on.

    They are drawn from a seed and not measured from anybody: they show what the software does,
    not how well it works on real images.
    """
    from berdiff.phantoms import write_phantoms

    contrasts = tuple(name.strip().lower() for name in contrast.split(","))
    if file_format is None:
        file_format = FileFormat.nifti if volumes or len(contrasts) > 1 else FileFormat.png
    write_phantoms(
        output,
        count,
        seed=seed,
        size=(size, size),
        contrasts=contrasts,
        lesions=lesions,
        slices=slices if volumes else None,
        file_format=file_format.value,
    )
    kind = "volumes" if volumes else "slices"
    typer.echo(f"wrote {count} synthetic {kind} to {output}")
