"""``report.html``: one self-contained page about a run, to look at and to hand on.

The page loads nothing from anywhere: pictures are data URIs, style and script are inline. Names
come from files of strangers and are escaped; a content security policy allows this page's own
script and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .files import write_atomic
from .report_figures import histogram
from .report_page import SCRIPT, STYLE
from .report_run import Run, number, read_run, shown, text
from .report_scans import MAX_PICTURES, controls, failures, scans, suspects


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the output folder of `berdiff infer`.

    Parameters
    ----------
    folder : str or Path
        Holds ``results.csv``, ``run.json`` and ``overlays/``.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    BerdiffError
        If a file of the run is missing or cannot be read.
    MissingDependency
        If Pillow is not installed.
    """
    folder = Path(folder)
    run = read_run(folder, MAX_PICTURES)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{text(_get(run.record, 'bundle', 'name'))}: anomaly report</title>",
        f"<style>{STYLE}</style></head><body>",
        '<a class="skip" href="#scans">Skip to the scans</a>',
        *_header(run),
        "<main>",
        *histogram([number(row["score"]) for row in run.done]),
        *controls(run),
        *suspects(run),
        *failures(run),
        *scans(run),
        "</main>",
        *_footer(run.record),
        f"<script>{SCRIPT}</script></body></html>",
    ]
    target = folder / "report.html"
    write_atomic(target, ("\n".join(parts) + "\n").encode("utf-8", errors="backslashreplace"))
    return target


def _get(record: Mapping[str, Any], *keys: str) -> Any:
    """Look a nested key up; "not recorded" where the run did not say."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "not recorded" if value is None else value


def _header(run: Run) -> Iterator[str]:
    record = run.record
    yield "<header>"
    yield f"<h1>Anomaly report <small>{text(_get(record, 'bundle', 'name'))}</small></h1>"
    yield '<p class="notice"><strong>Research use, not for clinical decisions.</strong></p>'
    yield '<ul class="counts">'
    for count, label, kind, place in _counts(run):
        label = f'<a href="#{place}">{label}</a>' if place and count else label
        yield f'<li class="{kind}"><b>{count}</b> {label}</li>'
    yield "</ul>"
    for warning in record.get("warnings") or ():
        yield f'<p class="warning"><strong>Warning:</strong> {text(warning)}</p>'
    yield f'<p class="gist">{" · ".join(text(part) for part in _gist(record))}</p>'
    yield '<details class="facts"><summary>How this run was made</summary><dl>'
    for name, value in _facts(record):
        yield f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>"
    yield "</dl></details></header>"


def _counts(run: Run) -> Iterator[tuple[int, str, str, str]]:
    """Number, what of, its looks, and the section that lists them."""
    yield len(run.done) + len(run.failed), "scans", "", ""
    yield len(run.done), "processed", "", ""
    yield sum(number(row["mask_pixels"]) > 0 for row in run.done), "with a mask", "", ""
    if run.verdicts:
        count = sum(row.get("verdict") == "suspect" for row in run.done)
        yield count, "suspect", "doubtful" if count else "", "suspect"
    yield len(run.failed), "failed", "bad" if run.failed else "", "failed"
    rejected = run.count("rejected")
    if rejected:
        yield rejected, "of them rejected", "bad", "failed"


def _gist(record: Mapping[str, Any]) -> Iterator[str]:
    """The facts that stand open; the rest unfolds."""
    yield f"bundle {str(_get(record, 'bundle', 'digest'))[:12]}"
    yield f"{_get(record, 'backend')} on {_get(record, 'device')}"
    yield f"seed {_get(record, 'seed')}"
    yield str(_get(record, "started"))
    yield f"took {shown(str(_get(record, 'seconds')))} s"
    yield f"berdiff {_get(record, 'software', 'berdiff')}"


def _facts(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Detector", str(_get(record, "bundle", "name"))
    yield "Bundle digest (SHA-256)", str(_get(record, "bundle", "digest"))
    yield "Engine", f"{_get(record, 'backend')} on {_get(record, 'device')}"
    yield "Input", str(_get(record, "input"))
    settings = record.get("settings")
    if isinstance(settings, Mapping):
        yield (
            "Settings",
            ", ".join(
                f"{key.replace('_', ' ')} {'all' if value is None else value}"
                for key, value in settings.items()
            ),
        )
    value, source = _get(record, "threshold", "value"), _get(record, "threshold", "source")
    by_scan = source == "otsu"
    yield "Threshold", "Otsu's, chosen for each scan" if by_scan else f"{value} (from: {source})"
    yield "Seed", str(_get(record, "seed"))
    yield "Batch size", str(_get(record, "options", "batch_size"))
    yield "Started", str(_get(record, "started"))
    yield "Took", f"{shown(str(_get(record, 'seconds')))} s"
    timings = record.get("timings")
    if isinstance(timings, Mapping) and timings:
        yield "Of that", ", ".join(f"{name} {seconds} s" for name, seconds in timings.items())
    counts = record.get("counts")
    if isinstance(counts, Mapping):
        yield "Slices", f"{counts.get('slices')} ({counts.get('empty_slices')} of them empty)"
    software = record.get("software")
    if isinstance(software, Mapping):
        yield "Software", ", ".join(f"{name} {version}" for name, version in software.items())


def _footer(record: Mapping[str, Any]) -> Iterator[str]:
    version = text(_get(record, "software", "berdiff"))
    yield (
        f"<footer><p>Made by berdiff {version} from results.csv and run.json. The maps lie in the "
        "folder maps. Research use, not for clinical decisions.</p></footer>"
    )
