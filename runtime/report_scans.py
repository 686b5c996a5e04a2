"""Sections of ``report.html`` about scans: suspect ones, failed ones, cards, and a plain list."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .components import MAX_COMPONENTS as MOST_FOUND
from .report_figures import Picture, pictures, profile
from .report_run import Row, Run, number, shown, text

MAX_PICTURES = 200  # scans that are shown with pictures
MAX_PICTURE_BYTES = 6_500_000  # base64 makes a third more of it
MAX_ROWS = 5000

_VERDICTS = ("ok", "suspect", "rejected")


def controls(run: Run) -> Iterator[str]:
    """What finds, filters and sorts; the script shows it."""
    yield '<div id="controls" role="search" aria-label="Scans shown" hidden>'
    yield '<label>Find <input id="find" type="search" autocomplete="off"></label>'
    if run.verdicts:
        yield '<label>Verdict <select id="verdict"><option value="">any</option>'
        for verdict in run.verdicts:
            yield f'<option value="{verdict}">{verdict} ({run.count(verdict)})</option>'
        yield "</select></label>"
    yield '<label>Sort by <select id="sort"><option value="score">score</option>'
    yield '<option value="name">name</option><option value="mask">mask size</option></select>'
    yield '</label><span id="found" role="status"></span></div>'


def suspects(run: Run) -> Iterator[str]:
    """Scans that were processed and are to be doubted, each with its reason."""
    rows = [(rank, row) for rank, row in enumerate(run.done, 1) if row.get("verdict") == "suspect"]
    if not rows:
        return
    yield f'<section data-list><h2 id="suspect">Suspect scans ({len(rows)})</h2>'
    yield "<p>They were processed, but their input is to be doubted, and so are their results.</p>"
    yield from _table("suspect", ("Scan", "Reason", "Score"), "suspects")
    for rank, row in rows[:MAX_ROWS]:
        name, reason = text(row["name"]), text(row.get("verdict_reason", ""))
        yield (
            f'<tr data-name="{name}" data-verdict="suspect">'
            f'<td class="text"><a href="#scan-{rank}">{name}</a></td>'
            f'<td class="text">{reason}</td><td>{shown(row["score"])}</td></tr>'
        )
    yield from _end(len(rows))


def failures(run: Run) -> Iterator[str]:
    """Scans without results: rejected, or failed for reasons that are not theirs."""
    if not run.failed:
        return
    judged = any(row.get("verdict") for row in run.failed)
    yield f'<section data-list><h2 id="failed">Failed scans ({len(run.failed)})</h2>'
    columns = ("Scan", "Reason", "Verdict") if judged else ("Scan", "Reason")
    yield from _table("failed", columns, "failures")
    for row in run.failed[:MAX_ROWS]:
        verdict = f"<td>{_badge(row) or 'none'}</td>" if judged else ""
        yield (
            f'<tr data-name="{text(row["input"])}" data-verdict="{text(_verdict(row))}">'
            f'<td class="text">{text(row["input"])}</td>'
            f'<td class="text">{text(row["reason"])}</td>{verdict}</tr>'
        )
    yield from _end(len(run.failed))


def scans(run: Run) -> Iterator[str]:
    """Cards with pictures for the highest scores, rows without for the rest."""
    done = run.done
    yield f'<section id="scans" tabindex="-1" data-list><h2>Scans ({len(done)})</h2>'
    if not done:
        yield "<p>No scan was processed.</p></section>"
        return
    cards, spent = [], 0
    share = MAX_PICTURE_BYTES // min(len(done), MAX_PICTURES)
    for rank, row in enumerate(done[:MAX_PICTURES], start=1):
        found = pictures(run.folder, row["name"], share)
        size = sum(len(picture.data) for picture in found)
        if spent + size > MAX_PICTURE_BYTES:
            break
        spent += size
        cards.append("".join(_card(run, rank, row, found)))
    rest = done[len(cards) :]
    if rest:
        yield (
            f"<p>Pictures of the {len(cards)} highest scores are shown, so that this page stays "
            f'small; <a href="#rest">the other {len(rest)}</a> are listed below, and their '
            "pictures lie in the folders <code>overlays</code> and <code>volumes</code>.</p>"
        )
    yield '<ol id="cards" class="cards">'
    yield from cards
    yield "</ol></section>"
    yield from _rest(rest, len(cards) + 1)


def _verdict(row: Row) -> str:
    verdict = row.get("verdict", "")
    return verdict if verdict in _VERDICTS else ""


def _badge(row: Row) -> str:
    verdict = _verdict(row)
    return f'<span class="badge {verdict}">{verdict}</span>' if verdict else ""


def _table(heading: str, columns: Sequence[str], body: str) -> Iterator[str]:
    """Open a table that scrolls sideways where it has to, by keyboard too."""
    yield f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{heading}">'
    names = "".join(f'<th scope="col">{column}</th>' for column in columns)
    yield f'<table><thead><tr>{names}</tr></thead><tbody id="{body}">'


def _end(count: int) -> Iterator[str]:
    yield "</tbody></table></div>"
    if count > MAX_ROWS:
        yield f"<p>And {count - MAX_ROWS} more: see results.csv.</p>"
    yield "</section>"


def _card(run: Run, rank: int, row: Row, found: Sequence[Picture]) -> Iterator[str]:
    name, raw = text(row["name"]), row["name"]
    drawn = "".join(profile(run.slices.get(raw, {}), _worst(row)))
    wide = ' class="wide"' if drawn or len(found) > 1 else ""
    yield (
        f'<li id="scan-{rank}"{wide} data-name="{name}" data-score="{text(row["score"])}" '
        f'data-mask="{text(row["mask_pixels"])}" data-verdict="{_verdict(row)}"><article>'
    )
    yield f'<h3><span class="rank">{rank}</span> {name} {_badge(row)}</h3>'
    if row.get("verdict") == "suspect" and row.get("verdict_reason"):
        yield f'<p class="doubt"><strong>Suspect:</strong> {text(row["verdict_reason"])}</p>'
    if found:
        yield f'<div class="pictures">{"".join(picture.tag(raw) for picture in found)}</div>'
    else:
        yield '<p class="missing">no picture</p>'
    yield '<div class="findings"><dl>'
    for label, value in _details(row):
        yield f"<div><dt>{label}</dt><dd>{text(value)}</dd></div>"
    yield f"</dl>{drawn}</div>"
    yield from _components(run.components.get(raw, []), row, rank)
    yield "</article></li>\n"


def _worst(row: Row) -> int | None:
    worst = row.get("worst_slice", "")
    return int(worst) if worst.isdecimal() and len(worst) < 8 else None


def _details(row: Row) -> Iterator[tuple[str, str]]:
    yield "score", shown(row["score"])
    volume = row.get("volume_ml")
    yield "mask", f"{row['mask_pixels']} px" + (f", {shown(volume)} ml" if volume else "")
    if row.get("components"):
        largest = row.get("largest_ml")
        yield "components", _how_many(row) + (f", largest {shown(largest)} ml" if largest else "")
    if row.get("slice_axis"):
        yield "slice shown", f"{row.get('worst_slice')}, counted from 0, of {row.get('slices')}"
    if row.get("ood"):
        yield "unlike training", f"{shown(row['ood'])} (suspect above 1)"
    if row.get("format"):
        yield "format", row["format"]
    if row.get("notes"):
        yield "note", row["notes"]


def _how_many(row: Row) -> str:
    count = row.get("components", "")
    return f"{count} or more" if number(count) == MOST_FOUND else count


def _components(rows: Sequence[Row], row: Row, rank: int) -> Iterator[str]:
    """Where the parts of the mask lie, unfolded on demand."""
    if not rows:
        return
    world = any(part.get("centroid_mm") for part in rows)
    unit, size = ("mm", "ml") if world else ("index", "Pixels")
    columns = ("No.", size, f"Centre ({unit})", "Peak", f"Peak at ({unit})")
    yield (
        f'<details class="parts"><summary id="parts-{rank}">Components of the mask: '
        f"{text(_how_many(row) or len(rows))}</summary>"
    )
    yield from _table(f"parts-{rank}", columns, f"parts-of-{rank}")
    for part in rows:
        size = shown(part.get("volume_ml")) if world else text(part.get("voxels", ""))
        yield (
            f"<tr><td>{text(part['number'])}</td><td>{size}</td>"
            f"<td>{_place(part.get(f'centroid_{unit}'))}</td><td>{shown(part.get('peak'))}</td>"
            f"<td>{_place(part.get(f'peak_{unit}'))}</td></tr>"
        )
    yield "</tbody></table></div>"
    more = min(number(row.get("components")), MOST_FOUND) - len(rows)
    rest = f" {more:.0f} more are in components.csv." if 0 < more < math.inf else ""
    meaning = (
        "Millimetres of the scan's world, to the patient's right, front and head."
        if world
        else "Indices of the file's array, counted from 0."
    )
    yield f"<p>{meaning}{rest}</p></details>"


def _place(value: str | None) -> str:
    """Three numbers, shortened; anything else as it is."""
    numbers = [number(part) for part in (value or "").split()]
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        return text(value or "")
    return ", ".join(f"{round(found, 1):g}".replace("-", "−") for found in numbers)


def _rest(rows: Sequence[Row], first: int) -> Iterator[str]:
    if not rows:
        return
    judged = any(_verdict(row) for row in rows)
    yield '<section data-list><h2 id="rest">Other scans</h2>'
    columns = ("Rank", "Scan", "Score", "Mask pixels", *(("Verdict",) if judged else ()))
    yield from _table("rest", columns, "rows")
    for rank, row in enumerate(rows[:MAX_ROWS], start=first):
        name = text(row["name"])
        verdict = f"<td>{_badge(row)}</td>" if judged else ""
        yield (
            f'<tr id="scan-{rank}" data-name="{name}" data-verdict="{_verdict(row)}">'
            f'<td>{rank}</td><td class="text">{name}</td><td>{shown(row["score"])}</td>'
            f"<td>{text(row['mask_pixels'])}</td>{verdict}</tr>"
        )
    yield from _end(len(rows))
