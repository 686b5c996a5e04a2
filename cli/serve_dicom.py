"""``berdiff serve dicom``: a DICOM node that receives series and sends what was found in them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    Backend,
    BatchSize,
    Device,
    FlipThreshold,
    NoiseLevel,
    Seed,
    Steps,
    Threads,
    Threshold,
)
from .stopping import end_when_asked

if TYPE_CHECKING:
    from berdiff.runtime.run_plan import RunOptions
    from berdiff.runtime.services.dicom.config import NodeConfig


def serve_dicom(
    model: Annotated[Path, typer.Option("--model", "-m", help="Bundle: the detector to run.")],
    config: Annotated[
        Path, typer.Option("--config", help="What the node is told, in YAML: docs/dicom-node.md.")
    ],
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    steps: Steps = None,
    noise_level: NoiseLevel = None,
    flip_threshold: FlipThreshold = None,
    threshold: Threshold = None,
    device: Device = "cpu",
    backend: Backend = "onnxruntime",
    threads: Threads = None,
) -> None:
    """Receive series by C-STORE, and send what was found to the destinations of the file.

    Ready once the bundle's digests and golden vectors have been checked on this device: /live,
    /ready and /metrics answer on loopback. Ends with SIGTERM or Ctrl-C; what was received and not
    sent is done when it is started again.
    """
    from berdiff.runtime.run_plan import RunOptions
    from berdiff.runtime.services.dicom.config import read_config

    options = RunOptions(
        batch_size=batch_size,
        seed=seed,
        noise_level=noise_level,
        steps=steps,
        flip_threshold=flip_threshold,
        threshold=threshold,
    )
    _serve(model, read_config(config), options, (backend, device, threads))


def _serve(
    model: Path, config: NodeConfig, options: RunOptions, engine: tuple[str, str, int | None]
) -> None:
    from berdiff.runtime.services.audit import AuditLog
    from berdiff.runtime.services.dicom.node import Node
    from berdiff.runtime.services.dicom.quiet import keep_names_out
    from berdiff.runtime.services.health import Health
    from berdiff.runtime.services.self_test import open_proven

    keep_names_out()
    end_when_asked(lambda: sys.exit(0))
    config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds patients' images
    health = Health("dicom")
    with (
        health.serving(config.health_port) as health_port,
        AuditLog.open(config.audit_path) as audit,
    ):
        typer.echo(f"checking {model} on this device; health on port {health_port}", err=True)
        detector, proof = open_proven(model, *engine, batch_size=options.batch_size)
        with detector:
            node = Node(detector, options, config, health, audit)
            end_when_asked(node.stop)
            audit.append("start", service="dicom", **proof.facts())
            try:
                with node.serving() as port:
                    for warning in node.warnings:
                        typer.echo(f"warning: {warning}", err=True)
                    listen = config.listen
                    typer.echo(f"{listen.title} listens on {listen.host}:{port}", err=True)
                    node.wait()
            finally:
                audit.append("stop", service="dicom")
    typer.echo("stopped", err=True)
