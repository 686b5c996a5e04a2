"""``berdiff import``: from upstream's PyTorch files to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_checkpoint(
    autoencoder: Annotated[
        Path, typer.Argument(help="binaryae_ema_STEP.th, or the log folder it lies in.")
    ],
    denoiser: Annotated[
        Path, typer.Argument(help="emabrats0.999_STEP.pt or emaOCT0.999_STEP.pt, or their folder.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Checkpoint to write; empty or not there yet.")
    ],
    modalities: Annotated[
        str | None,
        typer.Option(
            help="Names of the image channels, separated by commas. Default: t1,t1ce,t2,flair "
            "for four channels, oct for one."
        ),
    ] = None,
    image_size: Annotated[
        int, typer.Option(min=1, help="Rows and columns of the images the model was trained on.")
    ] = 256,
) -> None:
    """Make a checkpoint of weights trained with the method authors' public code.

    Give the autoencoder first, then the denoiser. Of a folder, the newest averaged (EMA) file is
    taken. Files are read without running any code in them.
    """
    from berdiff.runtime.errors import optional

    optional("torch", "export")
    optional("safetensors", "export")
    from berdiff.checkpoint import save_checkpoint
    from berdiff.upstream import import_upstream

    names = None if modalities is None else tuple(m.strip().lower() for m in modalities.split(","))
    imported = import_upstream(
        autoencoder,
        denoiser,
        name=output.resolve().name,
        modalities=names,
        image_size=image_size,
    )
    for note in imported.notes:
        typer.echo(note, err=True)
    save_checkpoint(output, imported.config, imported.autoencoder, imported.denoiser)
    config = imported.config
    shape, prepared = config.code_shape, config.preprocessing
    typer.echo(
        f"images: {prepared.size[0]} x {prepared.size[1]}, {', '.join(prepared.modalities)} "
        f"({prepared.fit}); code: {shape.channels} x {shape.height} x {shape.width}; "
        f"noise: {config.forward_noise}"
    )
    typer.echo(f"checkpoint: {output}")
