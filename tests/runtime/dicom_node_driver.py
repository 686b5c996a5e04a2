"""A node with a fake detector that may kill itself: run as a program by test_kill.py.

Arguments: spool folder, port of the peer, and where to die, as ``module:Class.method:before``,
``:after``, or ``:after N`` for the N-th call; nothing: nowhere. Prints its port.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dicom_nodes import configured, running


def die_at(place: str) -> None:
    """Let the process be killed, as from outside, around a call."""
    module, name, moment = place.split(":")
    holder: Any = importlib.import_module(f"berdiff.runtime.services.dicom.{module}")
    *path, name = name.split(".")
    for part in path:
        holder = getattr(holder, part)
    original = getattr(holder, name)
    when, _, number = moment.partition(" ")
    left = int(number or 1)

    @functools.wraps(original)
    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **named)
        left -= bool(result is not None or name != "claim")  # a claim may find nothing
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, name, deadly)


if __name__ == "__main__":
    folder, port, *places = sys.argv[1:]
    for place in places:
        die_at(place)
    with running(configured(Path(folder), int(port))) as node:
        sys.stdout.write(f"{node.port}\n")
        sys.stdout.flush()
        node.node.wait()
