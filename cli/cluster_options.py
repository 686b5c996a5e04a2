"""Options of runs on clusters, the cluster they name, and how such a run is followed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from berdiff.runtime.cluster.cluster_run import ClusterOptions
    from berdiff.runtime.cluster.connection import Cluster
    from berdiff.runtime.cluster.tally import Tally

_EVERY = 30.0  # seconds between lines where there is no terminal

ClusterAddress = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        help="Run on a Ray cluster: local (this machine, several processes), auto (the cluster it "
        "is part of), HOST:PORT, or ray://HOST:PORT.",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="0,1,...",
        help="GPUs of this machine, a detector on each; --cluster local is implied.",
    ),
]
Detectors = Annotated[
    int | None,
    typer.Option(
        "--detectors",
        min=1,
        help="Detectors on the cluster. Default: as many as there is room for.",
    ),
]
GpusPerDetector = Annotated[
    float,
    typer.Option(
        "--gpus-per-detector",
        min=0.01,
        help="With -d cuda: GPUs that a detector takes on a cluster; 0.5 puts two on each.",
    ),
]


@dataclass(frozen=True)
class ClusterRequest:
    """What the options of a run on a cluster ask for.

    Raises
    ------
    BadParameter
        If they contradict each other.
    """

    address: str | None
    devices: str | None
    detectors: int | None
    gpus_per_detector: float
    device: str
    threads: int | None

    def __post_init__(self) -> None:
        """Refuse what could not be meant."""
        if self.device.startswith("cuda:") and self.asked:
            raise typer.BadParameter(
                f"got '{self.device}': on a cluster Ray chooses the GPUs. Use -d cuda, and name "
                "GPUs of this machine with --devices",
                param_hint="--device",
            )
        if not self.asked and self.detectors is not None:
            raise typer.BadParameter("needs --cluster or --devices", param_hint="--detectors")
        whole = self.gpus_per_detector.is_integer()
        if self.gpus_per_detector > 1 and not whole:
            raise typer.BadParameter(
                f"got {self.gpus_per_detector:g}: a share of one GPU, or a whole number",
                param_hint="--gpus-per-detector",
            )

    @property
    def asked(self) -> bool:
        """Whether the run is to be on a cluster."""
        return self.address is not None or self.devices is not None

    @property
    def on_gpu(self) -> bool:
        """Whether detectors need GPUs."""
        return self.device == "cuda" or self.devices is not None

    @contextmanager
    def connect(self) -> Iterator[tuple[Cluster, ClusterOptions]]:
        """Connect to the cluster, for the block."""
        from berdiff.runtime.cluster.cluster_run import ClusterOptions, cpu_need
        from berdiff.runtime.cluster.connection import Cluster
        from berdiff.runtime.cluster.crew import Need

        gpus = None if self.devices is None else _numbers(self.devices)
        with Cluster.open(self.address or "local", gpus=gpus) as cluster, _followed() as show:
            need = Need(self.gpus_per_detector, 1)
            if not self.on_gpu:
                need = cpu_need(cluster, self.threads)
            yield cluster, ClusterOptions(need, self.detectors, show)


def conclude_cluster(tally: Tally) -> None:
    """Say what ran where, and what was lost."""
    for node in tally.nodes.values():
        typer.echo(
            f"{node.name}: {node.scans} scans, {node.slices} slices, networks busy "
            f"{node.utilisation:.0%} of the time",
            err=True,
        )
    if tally.lost_workers:
        typer.echo(
            f"{tally.lost_workers} workers were lost, {tally.lost_nodes} of them with their node; "
            f"{tally.retried} scans were given out again, {len(tally.quarantined)} set aside",
            err=True,
        )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise typer.BadParameter(
            f"got '{text}', expected numbers of GPUs, each once, as 0,1", param_hint="--devices"
        )
    return numbers


@contextmanager
def _followed() -> Iterator[Callable[[Tally], None]]:
    """Yield what is to be called with the state of a run: a bar, or now and then a line."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from .progress import scan_progress

    with scan_progress() as bar:

        def show(tally: Tally) -> None:
            if bar is not None:
                bar(tally.done, tally.total, tally.slices, describe(tally))

        yield show


class _Lines:
    """One line from time to time."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        if time.monotonic() - self._last < _EVERY:
            return
        self._last = time.monotonic()
        typer.echo(f"{tally.done} of {tally.total} scans, {describe(tally)}", err=True)


def describe(tally: Tally) -> str:
    """Throughput, and how busy each node is."""
    if not tally.detectors:
        return "waiting for a node with room for a detector"
    nodes = [node for node in tally.nodes.values() if node.detectors]
    shown = ", ".join(
        f"{node.name} {node.detectors} detectors {node.utilisation:.0%}" for node in nodes[:8]
    )
    more = f", and {len(nodes) - 8} nodes" if len(nodes) > 8 else ""
    lost = f", {tally.lost_workers} workers lost" if tally.lost_workers else ""
    return f"{tally.scans_per_second:.2f} scans/s{lost}; {shown}{more}"
