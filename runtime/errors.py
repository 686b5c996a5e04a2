"""Errors a user can act on, and the import of optional libraries."""

from __future__ import annotations

import importlib
from types import ModuleType


class BerdiffError(Exception):
    """Base of every expected error: says what was got, what was expected and what to do."""


class InputError(BerdiffError):
    """A scan or image that cannot be used as it is."""


class BundleError(BerdiffError):
    """A bundle that is incomplete, altered, or written for another version."""


class BackendError(BerdiffError):
    """An engine backend that is unknown, unavailable, or cannot do what was asked."""


class DeadlineExceeded(BerdiffError):
    """A detection took longer than the caller allowed; nothing came of it."""


class Cancelled(BerdiffError):
    """A detection was called off by another thread; nothing came of it."""


class PartialFailure(BerdiffError):
    """Some of the scans of a run could not be processed; the others were."""


class MissingDependency(BerdiffError):
    """An optional library is needed and not installed."""

    def __init__(self, module: str, extra: str, hint: str = "") -> None:
        self._given = (module, extra, hint)
        super().__init__(
            f"this needs the Python package '{module}', which is not installed; "
            f"install it with: pip install 'berdiff[{extra}]'" + (f". {hint}" if hint else "")
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Let it travel between processes."""
        return type(self), self._given


def optional(module: str, extra: str) -> ModuleType:
    """Import an optional library when it is first used.

    Parameters
    ----------
    module : str
        Dotted module name, for example ``"PIL.Image"``.
    extra : str
        The extra of this distribution that installs it.

    Returns
    -------
    ModuleType
        The imported module.

    Raises
    ------
    MissingDependency
        If the library is not installed. An installed library that fails while it is imported
        raises its own error, which says more.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise MissingDependency(module.split(".")[0], extra) from error
        raise
