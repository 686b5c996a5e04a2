"""Figures of ``report.html``: small JPEGs of the run's pictures, and drawings as inline SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import optional
from .overlays import split_overlay
from .report_run import text
from .volume_picture import split_volume_picture

# Width and JPEG quality of a picture: the first with which it keeps to its share of the page.
SIZES = ((480, 82), (480, 65), (360, 60), (320, 40))

_BINS = 30
_MAX_BARS = 300  # of a profile; where there are more slices, a bar is the highest of several
_PROFILE = 600, 90

_OVERLAY = "input, healthy reconstruction, anomaly map, mask"
_PLANES = ("axial plane", "coronal plane", "sagittal plane")


@dataclass(frozen=True)
class Picture:
    """A small JPEG, its size in pixels, and what it shows."""

    data: bytes
    width: int
    height: int
    shows: str

    def tag(self, name: str) -> str:
        """HTML element with the picture inside."""
        data = base64.b64encode(self.data).decode()
        return (
            f'<img width="{self.width}" height="{self.height}" '
            f'alt="{text(name)}: {self.shows}" src="data:image/jpeg;base64,{data}">'
        )


def pictures(folder: Path, name: str, share: int) -> list[Picture]:
    """Pictures of a scan: the planes of a volume, then the four panels of its worst slice.

    Parameters
    ----------
    folder : Path
        The output folder.
    name : str
        Name of the scan; one that leads out of the folder has no pictures.
    share : int
        Bytes they should keep to; the smallest size is given where none does.
    """
    sheets = []
    planes = _open(folder / "volumes", name)
    if planes is not None:
        sheets += list(zip(split_volume_picture(planes), _PLANES, strict=True))
    overlay = _open(folder / "overlays", name)
    if overlay is not None:
        sheets.append((_two_by_two(split_overlay(overlay)), _OVERLAY))
    found: list[Picture] = []
    for largest, quality in SIZES:
        found = [_small(sheet, largest, quality, shows) for sheet, shows in sheets]
        if sum(len(picture.data) for picture in found) <= share:
            break
    return found


def _open(folder: Path, name: str) -> Any:
    path = folder / f"{name}.png"
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        return None
    with optional("PIL.Image", "images").open(path) as picture:
        return picture.convert("RGB")


def _two_by_two(panels: Sequence[Any]) -> Any:
    width, height = panels[0].size
    sheet = optional("PIL.Image", "images").new("RGB", (2 * width, 2 * height))
    for index, panel in enumerate(panels):
        sheet.paste(panel, (index % 2 * width, index // 2 * height))
    return sheet


def _small(sheet: Any, largest: int, quality: int, shows: str) -> Picture:
    pillow = optional("PIL.Image", "images")
    scale = min(1.0, largest / sheet.width)
    size = round(sheet.width * scale), max(1, round(sheet.height * scale))
    buffer = io.BytesIO()
    sheet.resize(size, pillow.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
    return Picture(buffer.getvalue(), *size, shows)


def histogram(scores: Sequence[float]) -> Iterator[str]:
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


def profile(scores: Mapping[int, float | None], worst: int | None) -> Iterator[str]:
    """Score of every slice as bars of an inline SVG, with a gap where a slice is empty.

    Parameters
    ----------
    scores : mapping of int to float or None
        Score by slice index in the file.
    worst : int or None
        The slice to mark.
    """
    known = {index: score for index, score in scores.items() if score is not None}
    if len(scores) < 2 or not known:
        return
    first, last = min(scores), max(scores)
    highest = max(known.values())
    empty = len(scores) - len(known)
    caption = f"Score of each of {len(scores)} slices" + (f"; {empty} are empty" if empty else "")
    label = f"{caption}; from {min(known.values()):.4g} to {highest:.4g}"
    marked = ""
    if worst in known:
        marked = f"most anomalous: slice {worst}, {known[worst]:.4g}"
        label += f"; {marked}"
    plain, strong = _bars(known, first, last, highest, worst)
    width, height = _PROFILE
    yield f'<figure class="profile"><figcaption>{caption}. <b>{marked}</b></figcaption>'
    yield (
        f'<svg viewBox="0 0 {width} {height + 2}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}"><path class="bars" d="{plain}"/>'
        f'<path class="worst" d="{strong}"/><path class="line" d="M0 {height + 1}h{width}"/></svg>'
    )
    yield f'<div class="ends" aria-hidden="true"><span>{first}</span><span>{last}</span></div>'
    yield "</figure>"


def _bars(
    known: Mapping[int, float], first: int, last: int, highest: float, worst: int | None
) -> tuple[str, str]:
    """Two paths: all bars, and the marked one."""
    width, height = _PROFILE
    count = min(_MAX_BARS, last - first + 1)
    values: dict[int, float] = {}
    place = {index: (index - first) * count // (last - first + 1) for index in known}
    for index, bar in place.items():
        values[bar] = max(values.get(bar, 0.0), known[index])
    step = width / count
    gap = min(1.0, step / 6)
    paths = {False: "", True: ""}
    marked = place.get(worst) if worst is not None else None
    for bar, value in sorted(values.items()):
        tall = max(0.5, height * max(0.0, value) / highest) if highest > 0 else 0.5
        paths[bar == marked] += (
            f"M{bar * step:.1f} {height}v-{tall:.1f}h{step - gap:.1f}v{tall:.1f}z"
        )
    return paths[False], paths[True]
