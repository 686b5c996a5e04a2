"""``berdiff build``: engines for a bundle, on the machine that will run them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    parse_batches,
)


def build(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to build engines for.")],
    engine: Annotated[Engine, typer.Option(help="Library that builds and runs them.")],
    target: Targets = None,
    dynamic_batch: Annotated[
        str | None,
        typer.Option(
            "--dynamic-batch",
            metavar="MIN,OPT,MAX",
            help="Smallest, usual and largest batch. Default: the bundle's.",
        ),
    ] = None,
    workspace: Workspace = None,
    timing_cache: TimingCache = None,
    builder_optimization_level: OptimizationLevel = None,
    hardware_compatibility: Compatibility = HardwareCompatibility.none,
    device: Annotated[
        str, typer.Option("--device", "-d", help="GPU that TensorRT builds on and for.")
    ] = "cuda:0",
) -> None:
    """Build engines from a bundle's ONNX files and store them in the bundle.

    What was built is inspected: an engine that does not compute in the bundle's precision is an
    error, and leaves nothing behind. Engines that are there already are not built again. The
    bundle's other files, and its digest, stay as they are.
    """
    from berdiff.runtime.bundle import Bundle

    batches = None if dynamic_batch is None else parse_batches(dynamic_batch)
    request = EngineRequest(
        engine,
        target,
        workspace,
        timing_cache,
        builder_optimization_level,
        hardware_compatibility,
        device,
    )
    bundle = Bundle.open(model)
    request.build(bundle, batches or bundle.manifest.dynamic_batch)
