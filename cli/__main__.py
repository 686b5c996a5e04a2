"""``python -m berdiff.cli``: the same command, for launchers that start modules.

A launcher starts it several times: wrong usage is said by the first process only.
"""

import os
import time

import typer

from .main import run


def _let_the_first_say_it(*_: object, **__: object) -> None:
    time.sleep(10)  # once one process has ended, the launcher ends the others, speaking or not


if __name__ == "__main__":
    if int(os.environ.get("RANK") or 0) > 0:
        # The base of all usage errors, in click or in typer's copy of it. The exit code stays.
        usage_error = typer.BadParameter.__base__
        usage_error.show = _let_the_first_say_it  # type: ignore[union-attr, attr-defined]
    run()
