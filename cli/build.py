"""``berdiff build``: engines for a bundle, on the machine that will run them or on a fleet."""

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
    parse_batches,
)

if TYPE_CHECKING:
    from berdiff.runtime.cluster.fleet import TargetResult

_SAID_BY_TARGETS = (
    *("engine", "target", "dynamic_batch", "workspace", "timing_cache"),
    *("builder_optimization_level", "hardware_compatibility", "device"),
)


def build(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to build engines for.")],
    engine: Annotated[
        Engine | None,
        typer.Option(help="Library that builds and runs them. Needed, unless --fleet says it."),
    ] = None,
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
    fleet: Annotated[
        Path | None,
        typer.Option(
            "--fleet",
            metavar="FILE",
            help="Build every engine that this YAML file lists, each on a node that has its GPU.",
        ),
    ] = None,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            help="With --fleet, the Ray cluster that builds: local (this machine), auto (the "
            "cluster it is part of), HOST:PORT, or ray://HOST:PORT.",
        ),
    ] = "local",
    wait: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="With --fleet: how long a target waits for a node that could build it, where "
            "the cluster has none.",
        ),
    ] = 0.0,
) -> None:
    """Build engines from a bundle's ONNX files and store them in the bundle.

    What was built is inspected: an engine that does not compute in the bundle's precision is an
    error, and leaves nothing behind. Engines that are there already are not built again. The
    bundle's other files, and its digest, stay as they are. Exit code 3: some engines of a fleet
    failed, and are listed.
    """
    if fleet is None:
        _refuse(context, ("cluster", "wait"), "needs --fleet")
        if engine is None:
            raise typer.BadParameter(
                "is missing: name the library, or give --fleet", param_hint="--engine"
            )
        request = EngineRequest(
            engine,
            target,
            workspace,
            timing_cache,
            builder_optimization_level,
            hardware_compatibility,
            device,
        )
        _build_here(model, request, dynamic_batch)
    else:
        _refuse(context, _SAID_BY_TARGETS, f"is said for each target in {fleet}; leave it away")
        _build_fleet(model, fleet, cluster, wait)


def _refuse(context: typer.Context, names: tuple[str, ...], reason: str) -> None:
    """Refuse options that were given and would do nothing."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise typer.BadParameter(reason, param_hint="--" + name.replace("_", "-"))


def _build_here(model: Path, request: EngineRequest, dynamic_batch: str | None) -> None:
    from berdiff.runtime.bundle import Bundle

    batches = None if dynamic_batch is None else parse_batches(dynamic_batch)
    bundle = Bundle.open(model)
    request.build(bundle, batches or bundle.manifest.dynamic_batch)


def _build_fleet(model: Path, file: Path, address: str, wait: float) -> None:
    import signal

    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.cluster.fleet import build_fleet
    from berdiff.runtime.cluster.fleet_plan import read_fleet

    # Schedulers ask with SIGTERM before they kill: end as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fleet, bundle = read_fleet(file), Bundle.open(model)
    results = build_fleet(bundle, fleet, address, wait=wait, done=_show)
    _conclude(results)


def _show(result: TargetResult) -> None:
    """Say at once what came of a target: others may take long."""
    said = {
        "built": f"built in {result.seconds:.1f} s",
        "there": "is there already",
        "failed": "failed, see below",
    }[result.status]
    typer.echo(f"{result.name}: {said}", err=True)


def _conclude(results: list[TargetResult]) -> None:
    """Print what there is now, and raise where something failed."""
    from berdiff.runtime.errors import BerdiffError, PartialFailure

    rows = [("target", "result", "node", "seconds", "engine", "verified")]
    for result in results:
        seconds = f"{result.seconds:.1f}" if result.seconds else ""
        node = f"{result.host}/{result.node[:6]}" if result.node else ""
        verified = result.verified or "-"
        rows.append((result.name, result.status, node, seconds, result.key or "-", verified))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
    built = sum(result.status == "built" for result in results)
    failed = [result for result in results if result.status == "failed"]
    typer.echo(
        f"{built or 'no'} engine{'' if built == 1 else 's'} built, "
        f"{len(results) - built - len(failed)} there already, {len(failed)} failed"
    )
    if not failed:
        return
    reasons = "".join(f"\n  {result.name}: {result.reason}" for result in failed)
    if len(failed) == len(results):
        raise BerdiffError(f"none of {len(results)} engines could be built:{reasons}")
    raise PartialFailure(f"{len(failed)} of {len(results)} engines could not be built:{reasons}")
