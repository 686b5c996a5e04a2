"""``berdiff demo``: the whole road on made-up heads, from a checkpoint to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write; empty or not there yet.")
    ] = Path("berdiff-demo"),
    count: Annotated[
        int, typer.Option(min=2, help="Synthetic heads of each kind, with and without lesions.")
    ] = 24,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything.")] = 0,
) -> None:
    """Find lesions in synthetic heads with the small detector that ships in the package.

    Draws heads with and without lesions, exports the shipped checkpoint to a bundle, checks it
    against its golden vectors, calibrates a threshold on healthy heads, runs the heads with
    lesions through it, and measures how well the lesions were found. The heads are drawn, not
    measured: the figures show what the software does, not what it is worth on real scans.
    """
    from berdiff.runtime.errors import optional

    for library, extra in (("torch", "export"), ("sklearn", "report"), ("onnxruntime", "cpu")):
        optional(library, extra)
    from berdiff.checkpoint import shipped_checkpoint
    from berdiff.evaluation import evaluate
    from berdiff.evaluation_report import table, write_evaluation
    from berdiff.export.write_bundle import export_bundle
    from berdiff.phantoms import write_phantoms
    from berdiff.runtime.calibration import calibrate
    from berdiff.runtime.detector import Detector
    from berdiff.runtime.files import atomic_folder
    from berdiff.runtime.folder_run import run_folder
    from berdiff.runtime.report import write_report

    with atomic_folder(output):
        pass  # refuses a folder that holds something, before any work is done
    scans, bundle = output / "scans", output / "bundle"
    typer.echo(f"drawing {3 * count} synthetic heads into {scans}")
    # Seeds far from those of the training heads, so that no head here was trained on.
    first = 1_000_000 + 3 * seed
    write_phantoms(scans / "lesions", count, seed=first, lesions=True)
    write_phantoms(scans / "healthy", count, seed=first + 1)
    write_phantoms(scans / "calibration", count, seed=first + 2)

    typer.echo(f"exporting the shipped checkpoint to {bundle}, checking it against PyTorch")
    export_bundle(shipped_checkpoint("phantom"), bundle)
    with Detector.open(bundle) as detector:
        calibration = calibrate(detector, scans / "calibration" / "images")
        detector.bundle.with_threshold(calibration.threshold)
        typer.echo(f"threshold {calibration.threshold.value:.4g} from healthy heads")
    with Detector.open(bundle) as detector:
        results = output / "results"
        typer.echo(f"running the heads with lesions; maps in {results}")
        run_folder(detector, scans / "lesions" / "images", results)
        write_report(results)
        typer.echo("measuring, beside two simple baselines")
        evaluation = evaluate(
            detector,
            scans / "lesions" / "images",
            scans / "lesions" / "masks",
            scans / "healthy" / "images",
            train=scans / "calibration" / "images",
        )
        write_evaluation(output / "evaluation", evaluation, detector)
    typer.echo("\n" + table(evaluation))
    typer.echo(f"\nopen in a browser: {(results / 'report.html').resolve()}")
