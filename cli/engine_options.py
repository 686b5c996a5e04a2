"""Options of the verbs that build engines, and the building itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.engines.build import Built
    from berdiff.runtime.engines.options import BuildOptions


class Engine(str, Enum):
    """Libraries that build engines."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class HardwareCompatibility(str, Enum):
    """Which other GPUs a TensorRT engine runs on."""

    none = "none"
    same_cc = "same-cc"
    ampere_plus = "ampere+"


Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="sm_NN",
        help="GPU architecture to build for, with tensorrt-rtx; once for each. Default: one "
        "engine for all from Ampere on. TensorRT builds for this machine's GPU only.",
    ),
]
Workspace = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most scratch memory a layer may use, like 2GiB or 512MiB; a bare number is MiB. "
        "Default: all of the GPU's.",
    ),
]
TimingCache = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache",
        metavar="FILE",
        help="Where TensorRT keeps what it has timed, so that the next build is quicker.",
    ),
]
OptimizationLevel = Annotated[
    int | None,
    typer.Option(
        "--builder-optimization-level",
        min=0,
        max=5,
        help="With TensorRT: higher builds longer for a faster engine. Default: the library's.",
    ),
]
Compatibility = Annotated[
    HardwareCompatibility,
    typer.Option(
        "--hardware-compatibility",
        help="With TensorRT: the GPUs an engine runs on, besides the kind it was built on.",
    ),
]


def parse_batches(text: str) -> tuple[int, int, int]:
    """Read MIN,OPT,MAX."""
    try:
        smallest, usual, largest = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"expected three numbers like 1,8,32, got {text!r}", param_hint="--dynamic-batch"
        ) from None
    return smallest, usual, largest


@dataclass(frozen=True)
class EngineRequest:
    """What was asked for on the command line."""

    engine: Engine
    targets: list[str] | None
    workspace: str | None = None
    timing_cache: Path | None = None
    level: int | None = None
    compatibility: HardwareCompatibility = HardwareCompatibility.none
    device: str = "cuda:0"

    def check(self, batches: tuple[int, int, int]) -> None:
        """Refuse, before any work is done, what this machine or the library cannot do."""
        from berdiff.runtime.engines.build import check_build
        from berdiff.runtime.engines.library import LIBRARIES

        for target in self._each():
            check_build(
                LIBRARIES[self.engine.value],
                target=target,
                options=self._options(batches),
                device=self.device,
                timing_cache=self.timing_cache,
            )

    def build(self, bundle: Bundle, batches: tuple[int, int, int]) -> None:
        """Build what is not there yet, and say what there is then."""
        from berdiff.runtime.engines.build import build_engines
        from berdiff.runtime.engines.library import LIBRARIES

        for target in self._each():
            with _progress() as progress:
                built = build_engines(
                    bundle,
                    LIBRARIES[self.engine.value],
                    target=target,
                    options=self._options(batches),
                    device=self.device,
                    timing_cache=self.timing_cache,
                    progress=progress,
                )
            _show(built)

    def _each(self) -> list[str | None]:
        """Targets, None being the library's default."""
        return [*self.targets] if self.targets else [None]

    def _options(self, batches: tuple[int, int, int]) -> BuildOptions:
        from berdiff.runtime.engines.options import BuildOptions, parse_bytes

        try:
            workspace = None if self.workspace is None else parse_bytes(self.workspace)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--workspace") from None
        try:
            return BuildOptions(batches, workspace, self.level, self.compatibility.value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None


def engine_request(engine: Engine | None, *options: Any) -> EngineRequest | None:
    """What was asked for, where engines are optional; their options need one."""
    if engine is not None:
        return EngineRequest(engine, *options)
    if any(option not in (None, HardwareCompatibility.none) for option in options):
        raise typer.BadParameter("is missing; other options need it", param_hint="--engine")
    return None


def _show(built: Built) -> None:
    sidecar = built.engine.sidecar
    smallest, _, largest = sidecar.options.dynamic_batch
    typer.echo(
        f"{sidecar.library} {sidecar.library_version}, {sidecar.target}, {sidecar.precision}, "
        f"batches of {smallest} to {largest}"
    )
    for name, network in sidecar.networks.items():
        compute = ", ".join(f"{count} in {kind}" for kind, count in network.compute.items())
        typer.echo(
            f"  {name:9}{network.size / 1e6:7.1f} MB  products: {compute}; weights "
            f"{network.weight_bytes / 1e6:.1f} MB, scratch {network.scratch_bytes / 1e6:.1f} MB; "
            f"built in {network.build_seconds:.1f} s"
        )
        for warning in network.warnings:
            typer.echo(f"warning: {name}: {warning}", err=True)
    found = "" if built.new else f" (built {sidecar.created}; nothing to do)"
    typer.echo(f"engine: {built.engine.folder}{found}")


@contextmanager
def _progress() -> Iterator[Callable[[str, str, float], None] | None]:
    """Yield a function to call with (network, phase, share of it done), or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def show(network: str, phase: str, share: float) -> None:
            bar.update(task, completed=share, description=f"{network}: {phase}")

        yield show
