"""``report.html``: one self-contained page about a run, to look at and to hand on.

The page loads nothing from anywhere: pictures are data URIs, style and script are inline. Names
come from files of strangers and are escaped; a content security policy allows this page's own
script and nothing else.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from .errors import BerdiffError, optional
from .files import write_atomic
from .overlays import split_overlay
from .report_page import SCRIPT, STYLE

MAX_PICTURES = 200
MAX_PICTURE_BYTES = 6_500_000  # base64 makes a third more of it
MAX_ROWS = 5000

# Width and JPEG quality of a picture: the first with which it keeps to its share of the page.
_SIZES = ((480, 82), (480, 65), (360, 60), (320, 40))
_BINS = 30

Row = Mapping[str, str]


@dataclass(frozen=True)
class _Picture:
    """A small JPEG and its size in pixels."""

    data: bytes
    width: int
    height: int


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
    record, rows = _read_run(folder)
    done = sorted(
        (row for row in rows if row["status"] == "ok"),
        key=lambda row: (-_number(row["score"]), row["name"]),
    )
    failed = [row for row in rows if row["status"] != "ok"]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{_text(_get(record, 'bundle', 'name'))}: anomaly report</title>",
        f"<style>{STYLE}</style></head><body>",
        *_header(record, done, failed),
        "<main>",
        *_histogram([_number(row["score"]) for row in done]),
        *_failures(failed),
        *_scans(folder, done),
        "</main>",
        *_footer(record),
        f"<script>{SCRIPT}</script></body></html>",
    ]
    target = folder / "report.html"
    write_atomic(target, ("\n".join(parts) + "\n").encode("utf-8", errors="backslashreplace"))
    return target


def _read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    needed = {"name", "input", "status", "reason", "score", "mask_pixels"}
    for name in ("results.csv", "run.json"):
        if not (folder / name).is_file():
            raise BerdiffError(
                f"{folder} has no {name}: a report is made of a finished run of berdiff infer"
            )
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BerdiffError(f"{folder / 'run.json'} is not valid JSON: {error}") from error
    with open(folder / "results.csv", encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
    missing = needed - set(reader.fieldnames or ())
    if missing:
        raise BerdiffError(f"{folder / 'results.csv'}: missing column {', '.join(sorted(missing))}")
    return record, rows


def _get(record: Mapping[str, Any], *keys: str) -> Any:
    """Look a nested key up; "not recorded" where the run did not say."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "not recorded" if value is None else value


def _text(value: Any) -> str:
    return escape(str(value), quote=True)


def _number(text: str) -> float:
    """Read a number; what is empty or none sorts last."""
    try:
        value = float(text)
    except ValueError:
        return -math.inf
    return value if math.isfinite(value) else -math.inf


def _shown(text: str) -> str:
    value = _number(text)
    return f"{value:.4g}" if math.isfinite(value) else "none"


def _header(record: Mapping[str, Any], done: Sequence[Row], failed: Sequence[Row]) -> Iterator[str]:
    masked = sum(1 for row in done if _number(row["mask_pixels"]) > 0)
    yield "<header>"
    yield f"<h1>Anomaly report <small>{_text(_get(record, 'bundle', 'name'))}</small></h1>"
    yield '<p class="notice"><strong>Research use, not for clinical decisions.</strong></p>'
    yield '<ul class="counts">'
    counts = (
        (len(done) + len(failed), "scans", ""),
        (len(done), "processed", ""),
        (masked, "with a mask", ""),
        (len(failed), "failed", "bad" if failed else ""),
    )
    for count, label, kind in counts:
        yield f'<li class="{kind}"><b>{count}</b> {label}</li>'
    yield "</ul>"
    for warning in record.get("warnings") or ():
        yield f'<p class="warning"><strong>Warning:</strong> {_text(warning)}</p>'
    yield f'<p class="gist">{" · ".join(_text(part) for part in _gist(record))}</p>'
    yield '<details class="facts"><summary>How this run was made</summary><dl>'
    for name, value in _facts(record):
        yield f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
    yield "</dl></details></header>"


def _gist(record: Mapping[str, Any]) -> Iterator[str]:
    """The facts that stand open; the rest unfolds."""
    yield f"bundle {str(_get(record, 'bundle', 'digest'))[:12]}"
    yield f"{_get(record, 'backend')} on {_get(record, 'device')}"
    yield f"seed {_get(record, 'seed')}"
    yield str(_get(record, "started"))
    yield f"took {_shown(str(_get(record, 'seconds')))} s"
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
    yield "Took", f"{_shown(str(_get(record, 'seconds')))} s"
    timings = record.get("timings")
    if isinstance(timings, Mapping) and timings:
        yield "Of that", ", ".join(f"{name} {seconds} s" for name, seconds in timings.items())
    counts = record.get("counts")
    if isinstance(counts, Mapping):
        yield "Slices", f"{counts.get('slices')} ({counts.get('empty_slices')} of them empty)"
    software = record.get("software")
    if isinstance(software, Mapping):
        yield "Software", ", ".join(f"{name} {version}" for name, version in software.items())


def _histogram(scores: Sequence[float]) -> Iterator[str]:
    """Distribution of the scores as an inline SVG with the same content as text."""
    scores = [score for score in scores if math.isfinite(score)]
    if len(scores) < 2 or min(scores) == max(scores):
        return
    low, high = min(scores), max(scores)
    bins = min(_BINS, max(5, math.ceil(2 * math.sqrt(len(scores)))))
    counts = [0] * bins
    for score in scores:
        counts[min(bins - 1, int((score - low) / (high - low) * bins))] += 1
    width, height, top = 720.0, 150.0, max(counts)
    step = width / bins
    yield '<section class="histogram"><h2>Scores</h2>'
    yield f'<svg viewBox="-34 -14 {width + 68:g} {height + 46:g}" role="img" aria-labelledby="ht">'
    yield (
        f'<title id="ht">Histogram of {len(scores)} scores from {low:.4g} to {high:.4g}; '
        f"at most {top} scans in one bar</title>"
    )
    for index, count in enumerate(counts):
        tall = height * count / top
        first, last = low + (high - low) * index / bins, low + (high - low) * (index + 1) / bins
        yield (
            f'<rect x="{index * step + 1:.1f}" y="{height - tall:.1f}" width="{step - 2:.1f}" '
            f'height="{tall:.1f}"><title>{first:.4g} to {last:.4g}: {count}</title></rect>'
        )
    yield f'<path d="M0 {height:g}H{width:g}"/>'
    yield f'<text x="-6" y="8" text-anchor="end">{top}</text>'
    yield f'<text x="-6" y="{height:g}" text-anchor="end">0</text>'
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = low + (high - low) * share
        yield (
            f'<text x="{width * share:g}" y="{height + 24:g}" '
            f'text-anchor="{anchor}">{value:.4g}</text>'
        )
    yield "</svg>"
    yield (
        "<p>An image's score is the mean of the highest 1 % of its anomaly map inside the "
        "foreground; a volume has the score of its most anomalous slice.</p></section>"
    )


def _failures(failed: Sequence[Row]) -> Iterator[str]:
    if not failed:
        return
    yield f'<section><h2 id="failed">Failed scans ({len(failed)})</h2>'
    yield '<div class="scroll" tabindex="0" role="region" aria-labelledby="failed">'
    yield '<table><thead><tr><th scope="col">Scan</th><th scope="col">Reason</th></tr></thead>'
    yield "<tbody>"
    for row in failed[:MAX_ROWS]:
        yield f"<tr><td>{_text(row['input'])}</td><td>{_text(row['reason'])}</td></tr>"
    yield "</tbody></table></div>"
    if len(failed) > MAX_ROWS:
        yield f"<p>And {len(failed) - MAX_ROWS} more: see results.csv.</p>"
    yield "</section>"


def _scans(folder: Path, done: Sequence[Row]) -> Iterator[str]:
    """Cards with pictures for the highest scores, rows without for the rest."""
    yield f'<section id="scans"><h2>Scans ({len(done)})</h2>'
    if not done:
        yield "<p>No scan was processed.</p></section>"
        return
    cards, spent = [], 0
    share = MAX_PICTURE_BYTES // min(len(done), MAX_PICTURES)
    for rank, row in enumerate(done[:MAX_PICTURES], start=1):
        picture = _picture(folder / "overlays", row["name"], share)
        size = len(picture.data) if picture else 0
        if spent + size > MAX_PICTURE_BYTES:
            break
        spent += size
        cards.append("".join(_card(rank, row, picture)))
    rest = done[len(cards) :]
    if rest:
        yield (
            f"<p>Pictures of the {len(cards)} highest scores are shown, so that this page stays "
            f'small; <a href="#rest">the other {len(rest)}</a> are listed below, and their '
            "pictures lie in the folder <code>overlays</code>.</p>"
        )
    yield '<div id="controls" hidden><label>Find <input id="find" type="search"></label>'
    yield '<label>Sort by <select id="sort"><option value="score">score</option>'
    yield '<option value="name">name</option><option value="mask">mask size</option></select>'
    yield '</label><span id="found" role="status"></span></div>'
    yield '<ol id="cards" class="cards">'
    yield from cards
    yield "</ol>"
    yield from _rest(rest, len(cards) + 1)
    yield "</section>"


def _card(rank: int, row: Row, picture: _Picture | None) -> Iterator[str]:
    name = _text(row["name"])
    yield (
        f'<li data-name="{name}" data-score="{_text(row["score"])}" '
        f'data-mask="{_text(row["mask_pixels"])}"><article>'
    )
    if picture:
        data = base64.b64encode(picture.data).decode()
        yield (
            f'<img loading="lazy" width="{picture.width}" height="{picture.height}" '
            f'alt="{name}: input, healthy reconstruction, anomaly map, mask" '
            f'src="data:image/jpeg;base64,{data}">'
        )
    else:
        yield '<p class="missing">no picture</p>'
    yield f'<h3><span class="rank">{rank}</span> {name}</h3><dl>'
    for label, value in _details(row):
        yield f"<div><dt>{label}</dt><dd>{_text(value)}</dd></div>"
    yield "</dl></article></li>\n"


def _details(row: Row) -> Iterator[tuple[str, str]]:
    yield "score", _shown(row["score"])
    volume = row.get("volume_ml")
    yield "mask", f"{row['mask_pixels']} px" + (f", {_shown(volume)} ml" if volume else "")
    if row.get("slice_axis"):
        yield "slice shown", f"{row.get('worst_slice')}, counted from 0, of {row.get('slices')}"
    yield "status", row["status"]
    if row.get("notes"):
        yield "note", row["notes"]


def _rest(rows: Sequence[Row], first: int) -> Iterator[str]:
    if not rows:
        return
    yield '<h2 id="rest">Other scans</h2>'
    yield '<div class="scroll" tabindex="0" role="region" aria-labelledby="rest"><table>'
    yield '<thead><tr><th scope="col">Rank</th><th scope="col">Scan</th>'
    yield '<th scope="col">Score</th><th scope="col">Mask pixels</th></tr></thead>'
    yield '<tbody id="rows">'
    for rank, row in enumerate(rows[:MAX_ROWS], start=first):
        name = _text(row["name"])
        yield (
            f'<tr data-name="{name}"><td>{rank}</td><td>{name}</td>'
            f"<td>{_shown(row['score'])}</td><td>{_text(row['mask_pixels'])}</td></tr>"
        )
    yield "</tbody></table></div>"
    if len(rows) > MAX_ROWS:
        yield f"<p>And {len(rows) - MAX_ROWS} more: see results.csv.</p>"


def _footer(record: Mapping[str, Any]) -> Iterator[str]:
    version = _text(_get(record, "software", "berdiff"))
    yield (
        f"<footer><p>Made by berdiff {version} from results.csv and run.json. The maps lie in the "
        "folder maps. Research use, not for clinical decisions.</p></footer>"
    )


def _picture(folder: Path, name: str, share: int) -> _Picture | None:
    """Lay the four panels of an overlay out two by two, small; None where there is none."""
    path = folder / f"{name}.png"
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        return None
    pillow = optional("PIL.Image", "images")
    with pillow.open(path) as overlay:
        panels = split_overlay(overlay.convert("RGB"))
    width, height = panels[0].size
    sheet = pillow.new("RGB", (2 * width, 2 * height))
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index % 2 * width, index // 2 * height))
    for largest, quality in _SIZES:
        scale = min(1.0, largest / sheet.width)
        size = round(sheet.width * scale), max(1, round(sheet.height * scale))
        buffer = io.BytesIO()
        sheet.resize(size, pillow.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= share:
            break
    return _Picture(buffer.getvalue(), *size)
