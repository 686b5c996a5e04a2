"""What is opened is closed, at the latest by the end of a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

Opened = TypeVar("Opened", bound="Closing")


class Closing:
    """Something that holds files, memory or a library until it is closed."""

    def close(self) -> None:
        """Let go of everything."""
        raise NotImplementedError

    def __enter__(self: Opened) -> Opened:
        """Return it itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()
