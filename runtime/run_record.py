"""``run.json``: what ran, on what, with which options, and how long it took."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from .detector_record import DetectorRecord
from .environment import machine, software
from .files import write_atomic
from .results import RunSummary
from .run_plan import RunPlan


def write_run_record(
    folder: Path,
    detector: DetectorRecord,
    plan: RunPlan,
    summary: RunSummary,
    source: Path,
    ignored: tuple[tuple[str, str], ...],
    started: float,
    timings: Mapping[str, float],
    cluster: Mapping[str, object] | None = None,
) -> None:
    """Write ``run.json``.

    Parameters
    ----------
    folder : Path
        The output folder.
    detector : Detector
        What ran.
    plan : RunPlan
        The resolved options.
    summary : RunSummary
        The outcome.
    source : Path
        The input.
    ignored : tuple of (str, str)
        Files that are no scan, and why.
    started : float
        Start of the run, seconds since the epoch.
    timings : mapping of str to float
        Seconds per stage, over all scans of this run.
    cluster : mapping, optional
        Where it ran, and what was lost there, where that was not one process.
    """
    now = datetime.now(timezone.utc)
    begin = datetime.fromtimestamp(started, timezone.utc)
    bundle = detector.bundle
    record = {
        "software": software(),
        "platform": machine(),
        "backend": detector.backend,
        "device": detector.engine.get("device", detector.device),
        "engine": detector.engine,
        "bundle": {
            "path": str(bundle.path),
            "name": bundle.manifest.name,
            "digest": bundle.digest,
        },
        "input": str(source),
        "output": str(folder),
        "seed": plan.options.seed,
        "options": dataclasses.asdict(plan.options),
        "settings": dataclasses.asdict(plan.settings),
        "threshold": dict(zip(("value", "source"), plan.threshold or (None, "otsu"), strict=True)),
        "warnings": list(summary.warnings),
        "maps": {
            "anomaly_map": plan.settings.anomaly_map,
            "png": "value = grey / 65535 * full scale; full scale stands in the PNG's text "
            "'berdiff:full-scale' and in results.csv, column full_scale",
        },
        "started": begin.isoformat(timespec="seconds"),
        "ended": now.isoformat(timespec="seconds"),
        "seconds": round((now - begin).total_seconds(), 3),
        "timings": {name: round(seconds, 3) for name, seconds in timings.items()},
        "counts": {
            "scans": len(summary.results),
            "ok": len(summary.ok),
            "failed": len(summary.failed),
            "suspect": len(summary.suspect),
            "rejected": sum(result.verdict == "rejected" for result in summary.results),
            "reused": summary.reused,
            "slices": sum(result.slices for result in summary.results),
            "empty_slices": sum(result.empty_slices for result in summary.results),
            "ignored_files": len(ignored),
        },
        "failed": {result.input: result.reason for result in summary.failed},
        "cluster": cluster,
        # Counted, not named: folders of scans are named after people all too often.
        "ignored_files": dict(Counter(reason for _, reason in ignored)),
    }
    write_atomic(folder / "run.json", (json.dumps(record, indent=2) + "\n").encode("ascii"))
