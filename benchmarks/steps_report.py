"""Tables and plot of what ``benchmarks/steps.py`` measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff.evaluation_cases import SMOOTHED
from berdiff.runtime import metrics
from berdiff.runtime.files import write_atomic

Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Everything measured for one map, by (level, spacing, steps)."""

    rows: dict[tuple[int, str, int], Row]
    map: str

    def value(self, key: tuple[int, str, int], figure: str) -> float:
        return float(self.rows[key]["maps"][self.map][figure])

    def interval(
        self, key: tuple[int, str, int], figure: str, other: tuple[int, str, int] | None = None
    ) -> tuple[float, float]:
        """95 % interval of a figure, or of its paired difference from another combination."""
        resampled = self._resampled(key, figure)
        if other is not None:
            resampled = resampled - self._resampled(other, figure)
        return metrics.percentile_interval(resampled)

    def difference(
        self, key: tuple[int, str, int], figure: str, other: tuple[int, str, int]
    ) -> str:
        """A paired difference, in words."""
        if key == other:
            return ""
        low, high = self.interval(key, figure, other)
        change = self.value(key, figure) - self.value(other, figure)
        return f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"

    def most(self, level: int) -> tuple[int, str, int]:
        """The combination with the most steps at this noise level, equally spaced."""
        return max(key for key in self.rows if key[:2] == (level, "uniform"))

    def levels(self) -> list[int]:
        return sorted({level for level, _, _ in self.rows if level})

    def steps(self, level: int, spacing: str = "uniform") -> list[int]:
        """Numbers of steps that were measured, most first."""
        return sorted((key[2] for key in self.rows if key[:2] == (level, spacing)), reverse=True)

    def _resampled(self, key: tuple[int, str, int], figure: str) -> NDArray[np.float64]:
        return np.array(self.rows[key]["maps"][self.map][figure + "_resampled"])


def read_rows(folder: Path) -> dict[tuple[int, str, int], Row]:
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("L*.json"))]
    return {(row["level"], row["spacing"], row["steps"]): row for row in rows}


def table(curve: Curve) -> str:
    """Equal gaps: one row per noise level and number of steps."""
    lines = [
        "| L | steps | pixel AP | difference [95 %] | image AUROC | difference [95 %] |",
        "|---|---|---|---|---|---|",
    ]
    for level in [0, *curve.levels()]:
        for steps in curve.steps(level):
            key, most = (level, "uniform", steps), curve.most(level)
            cells: list[object] = [level, steps]
            for figure in ("pixel_ap", "image_auroc"):
                cells += [f"{curve.value(key, figure):.3f}", curve.difference(key, figure, most)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def spacing_table(curve: Curve, spacings: list[str]) -> str:
    """Other gaps: paired differences of pixel AP from equal gaps, of as many steps."""
    lines = [f"| L | steps | {' | '.join(spacings)} |", "|---" * (2 + len(spacings)) + "|"]
    for level in curve.levels():
        for steps in curve.steps(level):
            keys = [(level, name, steps) for name in spacings]
            if all(key in curve.rows for key in keys):  # else only equal gaps were measured
                uniform_key = (level, "uniform", steps)
                cells = [curve.difference(key, "pixel_ap", uniform_key) for key in keys]
                lines.append(f"| {level} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, curves: list[Curve]) -> None:
    """Pixel AP of each map against the number of steps, one line per noise level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        alone = curve.value((0, "uniform", 0), "pixel_ap")
        axes.axhline(alone, color="0.5", ls=":", label="without the loop")
        for number, level in enumerate(curve.levels()):
            steps = curve.steps(level)
            keys = [(level, "uniform", count) for count in steps]
            values = np.array([curve.value(key, "pixel_ap") for key in keys])
            # Bars are of the difference from the most steps: the last point has none.
            bars = np.array([curve.interval(key, "pixel_ap", keys[0]) for key in keys])
            bars = np.abs(bars.T - (values - values[0]))
            x = np.array(steps) * 1.04 ** (number - 1.5)  # so that bars do not overlap
            axes.errorbar(x, values, bars, marker="o", ms=3.5, capsize=2, label=f"L = {level}")
        counts = sorted({steps for level, _, steps in curve.rows if level})
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(xlabel="reverse steps", ylabel="pixel AP", title=curve.map)
        axes.grid(alpha=0.3)
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]), fontsize="small")
    figure.savefig(path, dpi=110)


def report(folder: Path) -> None:
    """Print the tables and draw the plot from what was measured so far."""
    rows = read_rows(folder)
    subject = json.loads((folder / "subject.json").read_text())
    names = (subject["main_map"], "squared" + SMOOTHED, "change" + SMOOTHED)
    curves = [Curve(rows, name) for name in names]
    counts = f"{subject['images']} images with masks, {subject['healthy']} healthy"
    text = [f"{counts}, seed {subject['seed']}, P = {subject['flip_threshold']:g}"]
    for curve in curves:
        text += [f"Map: {curve.map}", table(curve)]
    spacings = sorted({spacing for _, spacing, _ in rows} - {"uniform"})
    for curve in curves if spacings else ():
        text += [f"Other spacings, pixel AP: {curve.map}", spacing_table(curve, spacings)]
    if (folder / "time.json").exists():
        text.append(time_table(json.loads((folder / "time.json").read_text())))
    write_atomic(folder / "table.md", ("\n\n".join(text) + "\n").encode())
    print("\n\n".join(text))
    draw(folder / "steps.png", [curves[0], curves[-1]])


def time_table(milliseconds: dict[str, dict[str, float]]) -> str:
    """Milliseconds of CPU time per image, by batch size and number of steps."""
    counts = next(iter(milliseconds.values()))
    lines = [
        "| CPU ms per image | " + " | ".join(f"{count} steps" for count in counts) + " |",
        "|---" * (1 + len(counts)) + "|",
    ]
    for size, row in milliseconds.items():
        lines.append(
            f"| batch {size} | " + " | ".join(f"{row[count]:.0f}" for count in counts) + " |"
        )
    return "\n".join(lines)
