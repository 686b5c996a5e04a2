"""``berdiff infer``: anomaly maps for a folder of scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Backend, BatchSize, Device, FlipThreshold, NoiseLevel, Seed, Steps, Threads

if TYPE_CHECKING:
    from berdiff.runtime.results import RunSummary


def infer(
    model: Annotated[Path, typer.Option("--model", "-m", help="Bundle: the detector to run.")],
    source: Annotated[
        Path,
        typer.Option("--input", "-i", help="A scan or a folder of scans: NIfTI, PNG, JPEG, TIFF."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the results; empty or not there yet.")
    ],
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    steps: Steps = None,
    noise_level: NoiseLevel = None,
    flip_threshold: FlipThreshold = None,
    device: Device = "cpu",
    backend: Backend = "onnxruntime",
    threads: Threads = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Threshold of the mask. Default: the bundle's, or Otsu's per scan."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on with a run that was interrupted.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
) -> None:
    """Find anomalies in a scan or a folder of scans.

    Writes, per scan, anomaly map, flip map, mask and reconstruction on the scan's own grid, and
    for the run results.csv, slices.csv, run.json and report.html. A scan that cannot be used is
    listed with its reason and does not stop the others (exit code 3).
    """
    from berdiff.runtime.detector import Detector
    from berdiff.runtime.folder_run import run_folder
    from berdiff.runtime.run_plan import RunOptions

    from .progress import scan_progress

    options = RunOptions(
        batch_size=batch_size,
        seed=seed,
        noise_level=noise_level,
        steps=steps,
        flip_threshold=flip_threshold,
        threshold=threshold,
        resume=resume,
    )
    with Detector.open(model, backend, device, threads) as detector, scan_progress() as progress:
        summary = run_folder(detector, source, output, options, progress)
    if report and summary.ok:
        from berdiff.runtime.report import write_report

        write_report(output)
    _conclude(summary)


def _conclude(summary: RunSummary) -> None:
    """Say what was done; raise where something failed."""
    from berdiff.runtime.errors import BerdiffError, PartialFailure

    for warning in summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    reused = f", {summary.reused} of them by an earlier run" if summary.reused else ""
    typer.echo(
        f"{len(summary.ok)} of {len(summary.results)} scans processed{reused}; "
        f"results in {summary.output}"
    )
    if not summary.failed:
        return
    reasons = "".join(f"\n  {_printable(r.input)}: {r.reason}" for r in summary.failed)
    if not summary.ok:
        raise BerdiffError(f"none of {len(summary.results)} scans could be processed:{reasons}")
    raise PartialFailure(
        f"{len(summary.failed)} of {len(summary.results)} scans could not be processed:{reasons}"
    )


def _printable(name: str) -> str:
    """Show a file name that may hold anything a file system allows."""
    return name.encode("utf-8", errors="backslashreplace").decode("utf-8")
