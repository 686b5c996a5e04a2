"""``python -m berdiff.cli``: the same command, for launchers that start modules.

A launcher starts it several times: wrong usage is said by the first process only.
"""

import os

import typer

from .main import run

if __name__ == "__main__":
    if int(os.environ.get("RANK") or 0) > 0:
        # The base of all usage errors, in click or in typer's copy of it. The exit code stays.
        typer.BadParameter.__base__.show = lambda *_, **__: None  # type: ignore[union-attr, attr-defined]
    run()
