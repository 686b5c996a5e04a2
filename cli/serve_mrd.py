"""``berdiff serve mrd``: a server for FIRE, OpenRecon and Gadgetron clients."""

from __future__ import annotations

import contextlib
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
    from berdiff.runtime.services.mrd.image import Limits
    from berdiff.runtime.services.mrd.parameters import Request
    from berdiff.runtime.services.mrd.server import Manners

_MIB = 2**20


def serve_mrd(
    model: Annotated[Path, typer.Option("--model", "-m", help="Bundle: the detector to run.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on. MRD has no encryption and no passwords.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 9002,
    max_clients: Annotated[
        int, typer.Option(min=1, max=256, help="Sessions at a time; more are refused.")
    ] = 4,
    max_images: Annotated[int, typer.Option(min=1, help="Images of a session.")] = 4096,
    max_session: Annotated[int, typer.Option(min=1, help="MiB of images of a session.")] = 128,
    idle: Annotated[
        float, typer.Option(min=0.1, help="Seconds a client may send nothing between messages.")
    ] = 600,
    patience: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a message must have come or gone.")
    ] = 60,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of one detection.")] = 600,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running sessions get at the end.")
    ] = 8,
    health_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Answer /live, /ready and /metrics on this port."),
    ] = None,
    health_host: Annotated[str, typer.Option(help="Address for health checks.")] = "127.0.0.1",
    audit: Annotated[Path | None, typer.Option(help="Append to this audit log.")] = None,
    originals: Annotated[bool, typer.Option(help="Send back the images that came.")] = True,
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
    """Receive images over MRD, and send back anomaly maps that lie where the images do.

    Listens once the bundle's digests and golden vectors have been checked on this device. Clients
    may ask for other settings: docs/mrd.md. Ends with SIGTERM or Ctrl-C.
    """
    from berdiff.runtime.services.mrd.image import Limits
    from berdiff.runtime.services.mrd.parameters import Request
    from berdiff.runtime.services.mrd.server import Manners

    request = Request(
        seed=seed,
        steps=steps,
        noiselevel=noise_level,
        flipthreshold=flip_threshold,
        threshold=threshold,
        sendoriginals=originals,
    )
    manners = Manners(host, port, max_clients, idle, patience, grace)
    limits = Limits(images=max_images, total=max_session * _MIB)
    watched = (health_host, health_port, audit)
    _serve(
        model, request, manners, limits, (batch_size, timeout), (backend, device, threads), watched
    )


def _serve(
    model: Path,
    request: Request,
    manners: Manners,
    limits: Limits,
    pace: tuple[int, float],
    engine: tuple[str, str, int | None],
    watched: tuple[str, int | None, Path | None],
) -> None:
    import logging

    from berdiff.runtime.services.audit import AuditLog
    from berdiff.runtime.services.health import Health
    from berdiff.runtime.services.mrd.server import Server, Stopping
    from berdiff.runtime.services.mrd.session import Work
    from berdiff.runtime.services.self_test import open_proven

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stopping, health = Stopping(), Health("mrd")
    end_when_asked(lambda: sys.exit(0))
    health_host, health_port, audit_path = watched
    with contextlib.ExitStack() as opened:
        if health_port is not None:
            at = opened.enter_context(health.serving(health_port, health_host))
            typer.echo(f"health on {health_host}:{at}", err=True)
        audit = opened.enter_context(AuditLog.open(audit_path)) if audit_path else None
        typer.echo(f"checking {model} on this device", err=True)
        detector, proof = open_proven(model, *engine, batch_size=pace[0])
        opened.enter_context(detector)
        request.settings(detector)
        if audit is not None:
            audit.append("start", service="mrd", **proof.facts())
            opened.callback(audit.append, "stop", service="mrd")
        work = Work(detector, request, limits, *pace, stopping.now)
        server = Server(work, manners, health, audit, stopping)
        end_when_asked(stopping.begin)
        with server.serving() as port:
            typer.echo(f"listening on {manners.host}:{port}", err=True)
            server.wait()
    typer.echo("stopped", err=True)
