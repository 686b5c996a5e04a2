"""``berdiff infer``: anomaly maps for a folder of scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cluster_options import (
    ClusterAddress,
    ClusterRequest,
    Detectors,
    Devices,
    GpusPerDetector,
    conclude_cluster,
)
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

if TYPE_CHECKING:
    from berdiff.runtime.results import RunSummary
    from berdiff.runtime.run_plan import RunOptions

_MIB = 2**20


def infer(
    model: Annotated[
        Path,
        typer.Option(
            "--model", "-m", envvar="HOLOSCAN_MODEL_PATH", help="Bundle: the detector to run."
        ),
    ],
    source: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            envvar=["MERCURE_IN_DIR", "HOLOSCAN_INPUT_PATH"],
            help="A scan or a folder of scans: NIfTI, MGH, DICOM (zipped too), PNG, JPEG, TIFF; "
            "BraTS, nnU-Net and BIDS folders.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            envvar=["MERCURE_OUT_DIR", "HOLOSCAN_OUTPUT_PATH"],
            help="Folder for the results; empty or not there yet.",
        ),
    ],
    output_type: Annotated[
        list[str] | None,
        typer.Option(
            "--output-type",
            "-ot",
            help="nifti, bids, dicom-seg, dicom-pmap, dicom-sc, png; several with commas, or "
            "repeated. Default: png for pictures, nifti for everything else.",
        ),
    ] = None,
    input_format: Annotated[
        str,
        typer.Option(help="auto, nifti, picture, dicom, brats, nnunet or bids: what to look for."),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what was found and stop.")
    ] = False,
    accept_contrast: Annotated[
        bool,
        typer.Option(
            "--accept-contrast",
            help="Process series whose header names another contrast than the model takes, as "
            "suspect.",
        ),
    ] = False,
    min_slices: Annotated[int, typer.Option(min=1, help="Refuse volumes with fewer slices.")] = 1,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    steps: Steps = None,
    noise_level: NoiseLevel = None,
    flip_threshold: FlipThreshold = None,
    device: Device = "cpu",
    backend: Backend = "onnxruntime",
    threads: Threads = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that read, and as many that write.")
    ] = 2,
    memory: Annotated[
        int,
        typer.Option(
            min=1, help="MiB of scans between reading and writing above which no more are read."
        ),
    ] = 2048,
    threshold: Threshold = None,
    num_parts: Annotated[
        int, typer.Option(min=1, help="Jobs that share this input; each takes its part.")
    ] = 1,
    part_id: Annotated[int, typer.Option(min=0, help="Which part this job takes, from 0.")] = 0,
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on with a run that was interrupted.")
    ] = False,
    cluster: ClusterAddress = None,
    devices: Devices = None,
    detectors: Detectors = None,
    gpus_per_detector: GpusPerDetector = 1.0,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
) -> None:
    """Find anomalies in a scan or a folder of scans.

    Writes, per scan, anomaly map, flip map, mask and reconstruction on the scan's own grid, and
    for the run results.csv, slices.csv, components.csv, results.json, run.json and report.html. A
    scan that cannot be used is listed with its reason and does not stop the others (exit code 3).
    """
    from berdiff.runtime.run_plan import RunOptions

    options = RunOptions(
        batch_size=batch_size,
        seed=seed,
        noise_level=noise_level,
        steps=steps,
        flip_threshold=flip_threshold,
        threshold=threshold,
        resume=resume,
        output_types=_output_types(output_type),  # type: ignore[arg-type] # checked there
        input_format=input_format,  # type: ignore[arg-type] # checked where it is used
        accept_contrast=accept_contrast,
        min_slices=min_slices,
        num_parts=num_parts,
        part_id=part_id,
        workers=workers,
        memory=memory * _MIB,
    )
    request = ClusterRequest(cluster, devices, detectors, gpus_per_detector, device, threads)
    if dry_run:
        _list(model, source, options)
        return
    if request.asked:
        summary = _run_on_cluster(model, source, output, options, backend, request)
    else:
        summary = _run(model, source, output, options, (backend, device, threads))
    if report and summary.ok:
        from berdiff.runtime.report import write_report

        write_report(summary.output)
    _conclude(summary)


def _run(
    model: Path,
    source: Path,
    output: Path,
    options: RunOptions,
    engine: tuple[str, str, int | None],
) -> RunSummary:
    """Run in this process."""
    from berdiff.runtime.detector import Detector
    from berdiff.runtime.folder_run import run_folder
    from berdiff.runtime.scans import hide_names

    from .progress import scan_progress

    hide_names()
    _end_when_asked()
    with Detector.open(model, *engine) as detector, scan_progress() as progress:
        return run_folder(detector, source, output, options, progress)


def _run_on_cluster(
    model: Path,
    source: Path,
    output: Path,
    options: RunOptions,
    backend: str,
    request: ClusterRequest,
) -> RunSummary:
    """Run on the nodes of a cluster."""
    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.cluster.cluster_run import BundleEverywhere, run_on_cluster
    from berdiff.runtime.scans import hide_names

    hide_names()
    bundle = Bundle.open(model)
    with request.connect() as (cluster, where):
        _end_when_asked()  # after Ray, which has its own idea of it
        threads = None if request.on_gpu else int(where.need.cpus)
        device = "cuda" if request.on_gpu else request.device
        detector = BundleEverywhere(bundle, backend, device, threads)
        summary, tally = run_on_cluster(cluster, detector, source, output, options, where)
    conclude_cluster(tally)
    return summary


def _end_when_asked() -> None:
    """Schedulers ask with SIGTERM before they kill: end as with Ctrl-C."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _output_types(given: list[str] | None) -> tuple[str, ...]:
    names = [name.strip() for item in given or () for name in item.split(",")]
    return tuple(dict.fromkeys(name for name in names if name))


def _list(model: Path, source: Path, options: RunOptions) -> None:
    """Say what a run would take, and what it would not."""
    from collections import Counter

    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.errors import PartialFailure
    from berdiff.runtime.run_ledger import find_for
    from berdiff.runtime.writers import check_types

    options.check()
    preprocessing = Bundle.open(model).manifest.preprocessing
    found = find_for(preprocessing, source, options)
    unusable = 0
    for scan in found.sources:
        check_types(scan, options.output_types, preprocessing.modalities)
        reason = scan.problem or ("" if options.accept_contrast else scan.mismatch)
        unusable += bool(reason)
        files = f"{len(scan.files)} file" + ("s" if len(scan.files) != 1 else "")
        typer.echo(f"{_printable(scan.name)}\t{scan.format}\t{files}\t{scan.summary}")
        if reason:
            typer.echo(f"  cannot be used: {_printable(reason)}")
    for reason, count in Counter(reason for _, reason in found.ignored).most_common():
        typer.echo(f"{count} files left out: {reason}", err=True)
    typer.echo(f"{len(found.sources)} scans found, {unusable} of them cannot be used")
    if unusable:
        raise PartialFailure(f"{unusable} of {len(found.sources)} scans cannot be used")


def _conclude(summary: RunSummary) -> None:
    """Say what was done; raise where something failed."""
    from berdiff.runtime.errors import BerdiffError, PartialFailure

    for warning in summary.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for result in summary.suspect:
        typer.echo(f"suspect: {_printable(result.input)}: {result.verdict_reason}", err=True)
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
