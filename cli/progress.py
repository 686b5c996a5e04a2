"""Progress of long verbs: a bar on a terminal, nothing in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def scan_progress(counted: str = "scans") -> Iterator[Callable[..., None] | None]:
    """Yield a function to call with (scans done, scans in all, slices done, a few words).

    Of other things that are counted there are no slices.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(counted),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int, slices: int | None = None, more: str = "") -> None:
            words = [f"{slices} slices"] if slices is not None else []
            described = ", ".join([*words, more] if more else words)
            bar.update(task, completed=done, total=total, description=described)

        yield show
