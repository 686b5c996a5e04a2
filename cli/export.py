"""``berdiff export``: from a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .engine_options import (
    Compatibility,
    Engine,
    EngineRequest,
    HardwareCompatibility,
    OptimizationLevel,
    Targets,
    TimingCache,
    Workspace,
    engine_request,
    parse_batches,
)

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle


def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint, from `train` or `import`; for a single file also a bundle."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Bundle to write; empty or not there yet. Of a bundle's single file: its folder.",
        ),
    ],
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|fp16|bf16|int8", help="What the networks compute in, on every engine."
        ),
    ] = "fp32",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Folder of healthy scans, on which a precision is compared with fp32; "
            "int8 needs it."
        ),
    ] = None,
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
    single_file: Annotated[
        bool,
        typer.Option(
            "--single-file",
            help="Also write detector.onnx: the whole detector, loop and noise, in one ONNX file.",
        ),
    ] = False,
    noise_input: Annotated[
        bool,
        typer.Option(
            "--noise-input",
            help="The single file takes the noise as an input, as engines for GPUs need it: "
            "detector-noise.onnx.",
        ),
    ] = False,
    engine: Annotated[
        Engine | None, typer.Option(help="Also build engines, as `berdiff build` does.")
    ] = None,
    target: Targets = None,
    workspace: Workspace = None,
    timing_cache: TimingCache = None,
    builder_optimization_level: OptimizationLevel = None,
    hardware_compatibility: Compatibility = HardwareCompatibility.none,
) -> None:
    """Write a checkpoint as a bundle: the folder that is the deployable detector.

    The exported networks, and a short loop with them, are compared with PyTorch; with
    `--calibration`, whole detections with those of fp32 too. Where they differ by more than a
    limit, the export fails and leaves nothing behind. What `--engine` cannot
    do on this machine is said before the export begins; where an engine fails afterwards, the
    bundle stays, complete but for it.
    """
    if noise_input and not single_file:
        raise typer.BadParameter("goes with --single-file", param_hint="--noise-input")
    batches = parse_batches(dynamic_batch)
    request = engine_request(
        engine,
        target,
        workspace,
        timing_cache,
        builder_optimization_level,
        hardware_compatibility,
    )
    if request is not None:
        request.check(batches)

    from berdiff.runtime.errors import optional

    if single_file and (checkpoint / "bundle.json").is_file():
        optional("onnx", "export")
        _write_single_file(checkpoint, output, noise_input)
        return
    for module in ("torch", "onnx", "onnxscript", "safetensors"):
        optional(module, "export")
    from berdiff.export.write_bundle import export_bundle

    bundle = export_bundle(
        checkpoint,
        output,
        precision=precision,  # type: ignore[arg-type]  # checked there
        calibration=calibration,
        dynamic_batch=batches,
        opset=opset,
    )
    _show_parity(bundle)
    typer.echo(f"bundle: {output}")
    if single_file:
        _write_single_file(output, output, noise_input)
    if request is not None:
        _build(request, bundle, batches)


def _write_single_file(bundle: Path, folder: Path, noise_input: bool) -> None:
    from berdiff.export.whole.write import write_single_file
    from berdiff.runtime.bundle import Bundle

    record = write_single_file(Bundle.open(bundle), folder, noise_input)
    for name, error in record.agreement.items():
        typer.echo(f"{name:22} {error:9.2e}  from what the runtime finds")
    typer.echo(f"single file: {folder / record.file} (SHA-256 {record.sha256})")


def _show_parity(bundle: Bundle) -> None:
    from berdiff.runtime.precision import CALIBRATION_FIGURES, FIGURES, LOOP_FIGURES

    figures = FIGURES | CALIBRATION_FIGURES | LOOP_FIGURES
    for name, value in bundle.manifest.parity.items():
        limit = bundle.manifest.parity_limits[name]
        typer.echo(f"{name:22} {value:9.2e}  limit {limit:.1e}  {figures[name].meaning}")


def _build(request: EngineRequest, bundle: Bundle, batches: tuple[int, int, int]) -> None:
    from berdiff.runtime.errors import BackendError

    try:
        request.build(bundle, batches)
    except BackendError as error:
        raise BackendError(
            f"{error}\n{bundle.path} is complete and can be used; it only lacks this engine"
        ) from error
