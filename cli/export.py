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
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|fp16|bf16|int8", help="What the networks compute in, on every engine."
        ),
    ] = "fp32",
    dynamic_batch: Annotated[
        str,
        typer.Option(
            "--dynamic-batch",
            metavar="MIN,OPT,MAX",
            help="Smallest, usual and largest batch, for engines built from the bundle.",
        ),
    ] = "1,8,32",
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set. Default: 20, for bf16 22.")
    ] = None,
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
    from berdiff.runtime.precision import FIGURES

    bundle = export_bundle(
        checkpoint, output, precision=precision, dynamic_batch=batches, opset=opset
    )
    limits = bundle.manifest.parity_limits
    for name, value in bundle.manifest.parity.items():
        meaning, _ = FIGURES[name]
        typer.echo(f"{name:18} {value:9.2e}  limit {limits[name]:.0e}  {meaning}")
    typer.echo(f"bundle: {output}")


def _batches(text: str) -> tuple[int, int, int]:
    try:
        smallest, usual, largest = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected three numbers like 1,8,32, got {text!r}", param_hint="--dynamic-batch"
        ) from None
    return smallest, usual, largest
