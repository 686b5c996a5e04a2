"""How what serves is asked to end."""

from __future__ import annotations

import signal
from collections.abc import Callable


def end_when_asked(stop: Callable[[], object]) -> None:
    """Both Ctrl-C and what ends services ask for a clean end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
