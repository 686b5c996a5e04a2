"""What an evaluation leaves behind: a table to read, figures for programs, pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff import __version__
from berdiff.runtime import metrics
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import optional
from berdiff.runtime.files import atomic_folder

from .evaluation import Evaluation, Figures
from .evaluation_cases import INTENSITY, SMOOTHED, ZSCORE, Case, main_map

_LESION, _HEALTHY = "#c2410c", "#1d4ed8"
_LINES = ("#c2410c", "#ea9a3e", "#15803d", "#6b7280")


def table(evaluation: Evaluation) -> str:
    """Render the figures as a Markdown table, columns aligned, with the notes below it."""
    share = f"{evaluation.options.rate * 100:g} %"
    rows = [
        (
            "map",
            "pixel AP [95 %]",
            "pixel AUROC",
            "best Dice",
            f"Dice at {share} FP",
            "image AUROC [95 %]",
        )
    ]
    rows += [
        (
            figures.map,
            _with_interval(figures.pixel_ap, figures.pixel_ap_interval),
            _three(figures.pixel_auroc),
            _three(figures.best_dice),
            _three(figures.healthy_dice),
            _with_interval(figures.image_auroc, figures.image_auroc_interval),
        )
        for figures in evaluation.figures
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *_remarks(evaluation)])


def write_evaluation(folder: str | Path, evaluation: Evaluation, detector: Detector) -> None:
    """Write an evaluation into a new folder, whole or not at all.

    ``summary.md`` and ``summary.json`` hold the figures, ``images.csv`` one row per scan;
    ``precision_recall.png``, ``images.png`` and ``cases.png`` show them.

    Parameters
    ----------
    folder : str or Path
        New or empty.
    evaluation : Evaluation
        What to write.
    detector : Detector
        The detector that was evaluated.

    Raises
    ------
    BerdiffError
        If the folder is not empty.
    MissingDependency
        If matplotlib is not installed.
    """
    optional("matplotlib.figure", "report")
    with atomic_folder(Path(folder)) as part:
        (part / "summary.json").write_text(_summary(evaluation, detector), encoding="utf-8")
        (part / "summary.md").write_text(table(evaluation) + "\n", encoding="utf-8")
        content = _per_image(evaluation).encode("utf-8", errors="backslashreplace")
        (part / "images.csv").write_bytes(content)
        _save(part / "precision_recall.png", _precision_recall(evaluation))
        _save(part / "images.png", _image_scores(evaluation))
        _save(part / "cases.png", _contact_sheet(evaluation))


def _three(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    return _three(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _remarks(evaluation: Evaluation) -> Iterator[str]:
    counts, settings = evaluation.counts, evaluation.settings
    share = counts["lesion_pixels"] / counts["foreground_pixels"]
    yield (
        f"* {counts['images_with_masks']} images with masks, {counts['healthy_images']} healthy; "
        f"{share:.1%} of the foreground pixels belong to lesions, which is the pixel AP of a guess."
    )
    yield (
        f"* Noise level {settings.noise_level}, {settings.steps or settings.noise_level} steps, "
        f"flip threshold {settings.flip_threshold:g}, seed {evaluation.options.seed}."
    )
    yield (
        "* Best Dice: threshold chosen with the masks, an upper bound. Dice at "
        f"{evaluation.options.rate * 100:g} % FP: threshold that this share of the healthy "
        "images' foreground pixels exceeds."
    )
    if evaluation.calibrated_dice is not None:
        yield (
            f"* Dice of the map '{main_map(settings)}' at the bundle's own threshold, without "
            f"specks: {evaluation.calibrated_dice:.3f}."
        )
    for note in evaluation.notes:
        yield f"* Note: {note}."


def _summary(evaluation: Evaluation, detector: Detector) -> str:
    bundle = detector.bundle
    content = {
        "berdiff": __version__,
        "bundle": {"name": bundle.manifest.name, "digest": bundle.digest},
        "backend": detector.backend.describe(),
        "settings": dataclasses.asdict(evaluation.settings),
        "options": dataclasses.asdict(evaluation.options),
        "counts": evaluation.counts,
        "figures": [dataclasses.asdict(figures) for figures in evaluation.figures],
        "calibrated_dice": evaluation.calibrated_dice,
        "notes": evaluation.notes,
        "seconds": round(evaluation.seconds, 3),
    }
    return json.dumps(content, indent=2) + "\n"


def _per_image(evaluation: Evaluation) -> str:
    """One row per scan: counts, then score and pixel AP by each map (empty: not defined)."""
    names = [figures.map for figures in evaluation.figures]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{figure}: {name}" for name in names for figure in ("score", "AP")]
    writer.writerow(["name", "group", "foreground_pixels", "lesion_pixels", *columns])
    for case in evaluation.cases:
        row: list[Any] = [
            case.name,
            "with mask" if case.masked else "healthy",
            int(case.inside.sum()),
            int(case.labels.sum()),
        ]
        for name in names:
            precision = metrics.average_precision(case.values[name], case.labels)
            row += [case.scores[name], precision]
        writer.writerow(row)
    return text.getvalue()


def _save(path: Path, figure: Any) -> None:
    # Without the version of matplotlib inside, equal figures are equal files for longer.
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _new_figure(width: float, height: float) -> Any:
    return optional("matplotlib.figure", "report").Figure((width, height), layout="constrained")


def _drawn(evaluation: Evaluation) -> list[Figures]:
    """The main map, as it is and smoothed, and the baselines: few enough lines to tell apart."""
    kind = evaluation.settings.anomaly_map
    wanted = (kind, kind + SMOOTHED, ZSCORE, INTENSITY)
    by_name = {figures.map: figures for figures in evaluation.figures}
    return [by_name[name] for name in wanted if name in by_name]


def _precision_recall(evaluation: Evaluation) -> Any:
    sklearn = optional("sklearn.metrics", "report")
    figure = _new_figure(6.4, 5)
    axes = figure.add_subplot()
    masked = [case for case in evaluation.cases if case.masked]
    labels = np.concatenate([case.labels for case in masked])
    for figures, colour in zip(_drawn(evaluation), _LINES, strict=False):
        values = np.concatenate([case.values[figures.map] for case in masked])
        precision, recall, _ = sklearn.precision_recall_curve(labels, values)
        # A curve has a point per pixel; a picture does not.
        chosen = np.unique(np.linspace(0, len(recall) - 1, 2000).astype(int))
        label = f"{figures.map}: {_three(figures.pixel_ap)}"
        axes.plot(recall[chosen], precision[chosen], color=colour, label=label)
    axes.axhline(labels.mean(), color="0.6", linestyle=":", label=f"guess: {labels.mean():.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Foreground pixels of all images with masks")
    axes.legend(title="average precision", fontsize="small")
    return figure


def _image_scores(evaluation: Evaluation) -> Any:
    sklearn = optional("sklearn.metrics", "report")
    figure = _new_figure(10, 4.4)
    left, right = figure.subplots(1, 2)
    sick = np.array([case.has_lesion for case in evaluation.cases])
    for figures, colour in zip(_drawn(evaluation), _LINES, strict=False):
        scores = np.array([case.scores[figures.map] for case in evaluation.cases])
        if figures.image_auroc is not None:
            false, true, _ = sklearn.roc_curve(sick, scores)
            label = f"{figures.map}: {_three(figures.image_auroc)}"
            left.plot(false, true, color=colour, label=label)
    left.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    left.set(xlabel="healthy images flagged", ylabel="images with lesions flagged")
    left.set_title("Image scores: ROC")
    if left.get_legend_handles_labels()[0]:
        left.legend(title="AUROC", fontsize="small", loc="lower right")
    main = main_map(evaluation.settings)
    scores = np.array([case.scores[main] for case in evaluation.cases])
    edges = np.linspace(scores.min(), max(scores.max(), np.nextafter(scores.min(), np.inf)), 31)
    groups = ((sick, _LESION, "with lesion"), (~sick, _HEALTHY, "healthy"))
    for chosen, colour, label in groups:
        if chosen.any():
            share = np.full(chosen.sum(), 1 / chosen.sum())
            right.hist(scores[chosen], edges, weights=share, color=colour, alpha=0.6, label=label)
    right.set(xlabel=f"score by the map '{main}'", ylabel="share of its group")
    right.set_title("Image scores")
    right.legend(fontsize="small")
    return figure


def _contact_sheet(evaluation: Evaluation) -> Any:
    """Some cases, from the best to the worst found, and the healthy ones that look sickest."""
    main = main_map(evaluation.settings)
    best = next(figures for figures in evaluation.figures if figures.map == main)
    cases = _chosen_cases(evaluation, main)
    figure = _new_figure(10.4, 2.75 * len(cases))
    grid = figure.subplots(len(cases), 4, squeeze=False)
    top = max(float(np.percentile(case.values[main], 99.5)) for case, _ in cases)
    for axes, (case, title) in zip(grid, cases, strict=True):
        anomaly = case.volume(main)[case.shown]
        brightest = max(1, np.percentile(case.image[case.image > 0], 99.5))
        grey = {"cmap": "gray", "vmin": 0, "vmax": brightest}
        axes[0].imshow(case.image, **grey)
        axes[1].imshow(case.reconstruction, **grey)
        axes[2].imshow(anomaly, cmap="inferno", vmin=0, vmax=top or 1)
        axes[3].imshow(case.image, **grey)
        _outline(axes[0], case.truth[case.shown], "#22d3ee")
        if best.best_threshold is not None:
            _outline(axes[3], anomaly > best.best_threshold, "#facc15")
        # A dollar sign would start a formula.
        name = case.name.replace("$", r"\$")
        axes[0].set_ylabel(f"{name[-32:]}\n{title}", fontsize="small")
        for panel in axes:
            panel.set(xticks=[], yticks=[])
    headings = ("image and true mask", "reconstruction", f"map '{main}'", "found at best Dice")
    for panel, heading in zip(grid[0], headings, strict=True):
        panel.set_title(heading, fontsize="medium")
    return figure


def _chosen_cases(evaluation: Evaluation, main: str) -> list[tuple[Case, str]]:
    """Cases to show, each with its figure: found by AP, healthy by score."""
    found = []
    for case in evaluation.cases:
        precision = metrics.average_precision(case.values[main], case.labels)
        if precision is not None:
            found.append((precision, case))
    found.sort(key=lambda pair: -pair[0])
    places = np.unique(np.linspace(0, len(found) - 1, 6).astype(int))
    chosen = [(found[place][1], f"AP {found[place][0]:.2f}") for place in places]
    healthy = [case for case in evaluation.cases if not case.has_lesion]
    healthy.sort(key=lambda case: -case.scores[main])
    return chosen + [(case, f"healthy, score {case.scores[main]:.3g}") for case in healthy[:2]]


def _outline(axes: Any, mask: NDArray[np.bool_], colour: str) -> None:
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=colour, linewidths=1)
