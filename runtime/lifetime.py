"""Open, in use, closed: shared by any number of threads, and by one process only."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BackendError


class Lifetime:
    """Keeps engines open while calls are in them.

    Parameters
    ----------
    engines : object
        What is open.
    """

    def __init__(self, engines: object) -> None:
        self._engines = engines
        _alive.add(self)
        self._process = os.getpid()
        self._calls = 0
        self._closed = False
        self._change = threading.Condition()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Keep it open for the block.

        Raises
        ------
        BackendError
            If it is closed, or belongs to another process.
        """
        if os.getpid() != self._process:
            raise BackendError(
                f"the detector was opened in process {self._process} and is used in {os.getpid()}: "
                "engines do not survive a fork; open a detector in each process"
            )
        with self._change:
            if self._closed:
                raise BackendError("the detector is closed; open another one")
            self._calls += 1
        try:
            yield
        finally:
            with self._change:
                self._calls -= 1
                self._change.notify_all()

    def end(self) -> bool:
        """Let no further call in, wait for those inside, and say whether there is work to do.

        False where it was ended before, or in the child of a fork, which must not touch the
        parent's engines.
        """
        if os.getpid() != self._process:
            return False  # nor its lock, which another thread may have held
        with self._change:
            first, self._closed = not self._closed, True
            self._change.wait_for(lambda: not self._calls)
        return first


_alive: weakref.WeakSet[Lifetime] = weakref.WeakSet()


def _abandon() -> None:
    """Never destroy the parent's engines in the child of a fork.

    They wait for their threads when they go, and a child has none of those: it would hang at its
    end. One reference that nobody gives back keeps them.
    """
    for lifetime in list(_alive):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(lifetime._engines))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
