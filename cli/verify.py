"""``berdiff verify``: does a bundle compute here what it should?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Backend, Device, Steps, Threads

if TYPE_CHECKING:
    from berdiff.runtime.verification_report import GoldenResult, Latency, VerificationReport
    from berdiff.runtime.verify import Check


def verify(
    model: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to check.")],
    device: Device = "cpu",
    backend: Backend = "onnxruntime",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also time detections, and write versions, device, digests, results and times "
            "into this JSON file, whether the check passes or not.",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(min=200, help="Detections to time for the report. Default: 200."),
    ] = None,
    steps: Steps = None,
) -> None:
    """Check every file of a bundle, and replay its golden vectors on this machine.

    Exit code 1 if a file was altered or a result differs by more than its limit. With --report,
    --steps shortens the detections that are timed.
    """
    from berdiff.runtime.backends import open_backend
    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.errors import BerdiffError
    from berdiff.runtime.verify import refuse_failed
    from berdiff.runtime.verify import verify as replay

    if report is not None:
        result = _report(report, model, backend, device, threads, steps, runs)
        if result.engine:
            facts = {"name": result.bundle.name, "digest": result.bundle.digest}
            _show(facts, result.engine, result.golden, as_json)
        if result.latency is not None and not as_json:
            _show_latency(result.latency)
        typer.echo(f"report: {report}", err=as_json)
        if not result.passed:
            raise BerdiffError("; ".join(result.failures))
        return
    for name, value in (("--runs", runs), ("--steps", steps)):
        if value is not None:
            raise typer.BadParameter(
                "is for a report; name its file with --report", param_hint=name
            )
    bundle = Bundle.open(model)
    with open_backend(bundle, backend, device, threads) as opened:
        engine, checks = opened.describe(), replay(bundle, opened)
    _show({"name": bundle.manifest.name, "digest": bundle.digest}, engine, checks, as_json)
    refuse_failed(checks, engine, model)


def _report(
    path: Path,
    model: Path,
    backend: str,
    device: str,
    threads: int | None,
    steps: int | None,
    runs: int | None,
) -> VerificationReport:
    import tempfile

    from berdiff.runtime.errors import BerdiffError
    from berdiff.runtime.files import write_atomic
    from berdiff.runtime.strict import to_json
    from berdiff.runtime.verification_report import MIN_RUNS, verification_report

    from .progress import scan_progress

    if path.resolve().is_relative_to(model.resolve()):
        raise BerdiffError(f"{path} lies in the bundle; a report is written beside it")
    if path.is_dir():
        raise BerdiffError(f"{path} is a folder; name a file for the report")
    try:  # before minutes of timing, not after
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise BerdiffError(f"cannot write {path}: {error.strerror}") from error
    with scan_progress("runs") as progress:
        result = verification_report(
            model, backend, device, threads, steps, runs or MIN_RUNS, progress
        )
    write_atomic(path, to_json(result).encode("ascii"))
    return result


def _show(
    bundle: dict[str, str | None],
    engine: dict[str, str],
    checks: Sequence[Check | GoldenResult],
    as_json: bool,
) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        result = {
            "bundle": bundle,
            "engine": engine,
            "checks": [{**asdict(check), "passed": check.passed} for check in checks],
            "passed": all(check.passed for check in checks),
        }
        typer.echo(json.dumps(result, indent=2))
        return
    typer.echo(", ".join(f"{key} {value}" for key, value in engine.items()))
    for check in checks:
        verdict = "ok" if check.passed else "FAILED"
        value = float("nan") if check.value is None else check.value
        typer.echo(
            f"{verdict:7}{check.name:18}{value:9.2e}  limit {check.limit:.0e}  {check.meaning}"
        )


def _show_latency(latency: Latency) -> None:
    typer.echo(
        f"{latency.runs} detections of one image, {latency.network_calls} calls of the denoiser "
        f"each, in {latency.seconds:.1f} s"
    )
    typer.echo(f"{'ms':10}{'p50':>10}{'p95':>10}{'p99':>10}{'max':>10}")
    for name, times in {"total": latency.total, **latency.stages}.items():
        typer.echo(f"{name:10}{times.p50:10.2f}{times.p95:10.2f}{times.p99:10.2f}{times.max:10.2f}")
