"""``berdiff export``: from a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, from `train` or `import`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Bundle to write; empty or not there yet.")
    ],
    dynamic_batch: Annotated[
        str,
        typer.Option(
            "--dynamic-batch",
            metavar="MIN,OPT,MAX",
            help="Smallest, usual and largest batch, for engines built from the bundle.",
        ),
    ] = "1,8,32",
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
) -> None:
    """Write a checkpoint as a bundle: the folder that is the deployable detector.

    The exported networks, and a short loop with them, are compared with PyTorch. Where they
    differ by more than a limit, the export fails and leaves nothing behind.
    """
    batches = _batches(dynamic_batch)

    from berdiff.runtime.errors import optional

    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        optional(module, "export")
    from berdiff.export.write_bundle import export_bundle
    from berdiff.runtime.verify import FIGURES

    bundle = export_bundle(checkpoint, output, dynamic_batch=batches, opset=opset)
    for name, value in bundle.manifest.parity.items():
        meaning, limit = FIGURES[name]
        typer.echo(f"{name:18} {value:9.2e}  limit {limit:.0e}  {meaning}")
    typer.echo(f"bundle: {output}")


def _batches(text: str) -> tuple[int, int, int]:
    try:
        smallest, usual, largest = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected three numbers like 1,8,32, got {text!r}", param_hint="--dynamic-batch"
        ) from None
    return smallest, usual, largest
