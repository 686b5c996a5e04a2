"""What a training run leaves to look at: ``log.csv``, TensorBoard, and sample pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from berdiff.runtime.errors import optional
from berdiff.runtime.files import atomic_file

LOG_NAME = "log.csv"
STARTS_NAME = "starts.txt"


class TrainingLog:
    """One row per step in ``log.csv``, the same in TensorBoard, and sample pictures.

    Parameters
    ----------
    folder : Path
        Folder of the stage.
    done : int
        Steps that the run continues after; later rows of an earlier log are dropped, since these
        steps are taken again.
    enabled : bool
        False on all processes but the first, which then write nothing.
    """

    def __init__(self, folder: Path, done: int, *, enabled: bool = True) -> None:
        self.folder, self.enabled = folder, enabled
        if not enabled:
            return
        self._rows = _rows_until(folder / LOG_NAME, done)
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        if self._columns:
            self._rewrite()
        self._board = optional("torch.utils.tensorboard", "train").SummaryWriter(
            str(folder / "tensorboard"), purge_step=done + 1 if done else None
        )

    def __enter__(self) -> TrainingLog:
        """Return the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close TensorBoard's file."""
        if self.enabled:
            self._board.close()

    def start(self, step: int, line: str) -> None:
        """Record what goes on after `step` and on how many processes, one line per start."""
        if self.enabled:
            with open(self.folder / STARTS_NAME, "a", encoding="utf-8") as stream:
                stream.write(f"after step {step}: {line}\n")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a row; a figure that was not there before adds a column."""
        if not self.enabled:
            return
        row = {"step": str(step)} | {name: f"{value:.6g}" for name, value in figures.items()}
        self._rows.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            with open(self.folder / LOG_NAME, "a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns, restval="").writerow(row)
        for name, value in figures.items():
            self._board.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Tensor) -> None:
        """Save sample pictures ``[rows, columns, H, W]`` in [0, 1] as one sheet."""
        if not self.enabled:
            return
        rows, columns, height, width = pictures.shape
        sheet = pictures.permute(0, 2, 1, 3).reshape(rows * height, columns * width)
        grey = (sheet.clamp(0, 1) * 255).round().byte().cpu().numpy()
        with atomic_file(self.folder / "samples" / f"step-{step:07d}.png") as part:
            optional("PIL.Image", "train").fromarray(grey).save(part)
        self._board.add_image("samples", grey[None], step)

    def _rewrite(self) -> None:
        with (
            atomic_file(self.folder / LOG_NAME) as part,
            open(part, "w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)


def _rows_until(path: Path, done: int) -> list[dict[str, str]]:
    """Rows of an earlier log up to the step that is continued from."""
    if not done or not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return [
            row
            for row in csv.DictReader(stream)
            if (row.get("step") or "").isdigit() and int(row["step"]) <= done
        ]
