"""When a call must end: after some time, or when another thread says so."""

from __future__ import annotations

import time
from typing import Protocol

from .errors import Cancelled, DeadlineExceeded, InputError


class Cancel(Protocol):
    """What can call a detection off: a `threading.Event`, or anything that has its `is_set`."""

    def is_set(self) -> bool:
        """Whether the call is to end."""
        ...


class Deadline:
    """Asked between the steps of a call, ends it where it has run out.

    Parameters
    ----------
    timeout : float, optional
        Seconds from now; None: no limit.
    cancel : Cancel, optional
        Ends the call once it is set.

    Raises
    ------
    InputError
        If the timeout is no positive number.
    """

    def __init__(self, timeout: float | None = None, cancel: Cancel | None = None) -> None:
        if timeout is not None and not timeout > 0:
            raise InputError(f"timeout must be a positive number of seconds, got {timeout}")
        self._timeout = timeout
        self._cancel = cancel
        self._start = time.monotonic()

    @property
    def limited(self) -> bool:
        """Whether there is anything that could end the call."""
        return self._timeout is not None or self._cancel is not None

    def check(self) -> None:
        """Go on, or end the call.

        Raises
        ------
        Cancelled
            If it was called off.
        DeadlineExceeded
            If its time is over.
        """
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("the detection was cancelled")
        if self._timeout is not None and time.monotonic() - self._start > self._timeout:
            raise DeadlineExceeded(
                f"the detection did not end within {self._timeout:g} s; take fewer steps, smaller "
                "batches or a faster device, or allow more time"
            )


UNLIMITED = Deadline()
