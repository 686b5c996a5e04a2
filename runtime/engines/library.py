"""TensorRT and TensorRT for RTX: two libraries with one interface."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ..errors import BackendError, MissingDependency, optional


@dataclass(frozen=True)
class Library:
    """A library that builds engines from ONNX and runs them.

    Attributes
    ----------
    name : str
        As users write it.
    module : str
        As Python imports it.
    extra : str
        The extra of this distribution that brings it.
    installation : str
        Where it comes from, for those who lack it.
    """

    name: str
    module: str
    extra: str
    installation: str

    def load(self) -> ModuleType:
        """Import the library.

        Raises
        ------
        MissingDependency
            If it is not installed; says where it comes from.
        BackendError
            If it is installed and cannot be loaded.
        """
        try:
            return optional(self.module, self.extra)
        except MissingDependency as error:
            raise MissingDependency(self.module, self.extra, self.installation) from error
        except Exception as error:  # its loader raises several kinds: a library not found, ...
            raise BackendError(
                f"the Python package '{self.module}' is installed and cannot be loaded: {error}. "
                f"{self.installation}"
            ) from error

    @property
    def version(self) -> str:
        """Version of the installed library; engines run on no other."""
        return str(self.load().__version__)


TENSORRT = Library(
    "tensorrt",
    "tensorrt",
    "tensorrt",
    "Its wheels hold nothing but what fetches the libraries from NVIDIA's own package index, so "
    "the machine must reach that. On a Jetson it is part of JetPack: sudo apt install "
    "python3-libnvinfer, in an environment made with --system-site-packages.",
)
TENSORRT_RTX = Library(
    "tensorrt-rtx",
    "tensorrt_rtx",
    "rtx",
    "There are wheels for Linux on x86-64 and aarch64; no GPU is needed to build.",
)
LIBRARIES = {library.name: library for library in (TENSORRT, TENSORRT_RTX)}


class BuildLog:
    """What a library said while it worked.

    Only what is of use afterwards is kept: a build says tens of thousands of lines.

    Attributes
    ----------
    errors, warnings : list of str
        Messages of these severities.
    facts : list of str
        Other messages about the finished engine: layers, inputs and outputs, memory.
    interruption : BaseException or None
        What was raised in our code while the library called it, Ctrl-C for example: to be raised
        again when the library is done.
    """

    _FACTS = ("LayerType: ", "IOMode: ", "Total Weights Memory: ", "Total Activation Memory: ")

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.facts: list[str] = []
        self.interruption: BaseException | None = None

    def note(self, severity: str, message: str) -> None:
        """Take in one message; `severity` as the library names it."""
        if "ERROR" in severity:
            self.errors.append(message.strip())
        elif severity == "WARNING":
            self.warnings.append(message.strip())
        elif any(fact in message for fact in self._FACTS):
            self.facts.append(message)

    def reasons(self) -> str:
        """The errors as one text, for a message of ours."""
        return "; ".join(self.errors) or "the library gave no reason"


def make_logger(trt: ModuleType, log: BuildLog) -> Any:
    """Let `log` take in what a library says from now on, for as long as `log` exists.

    A library has one logger per process: while anything of it is alive, it ignores every other. So
    there is one here, which passes on to all who listen; each also hears what the others caused.

    Returns
    -------
    ILogger
        The logger to give to the library's objects.
    """
    with _LOCK:
        logger = _LOGGERS.get(trt.ILogger)
        if logger is None:
            logger = _LOGGERS[trt.ILogger] = _logger(trt)
        logger.listeners = (
            *(listener for listener in logger.listeners if listener() is not None),
            weakref.ref(log),
        )
    return logger


_LOCK = threading.Lock()
_LOGGERS: dict[type, Any] = {}


def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.listeners: tuple[weakref.ref[BuildLog], ...] = ()

        def log(self, severity: Any, message: str) -> None:
            for listener in self.listeners:
                log = listener()
                if log is not None:
                    try:
                        log.note(severity.name, message)
                    except BaseException as error:  # must not travel through the library
                        log.interruption = error

    return Logger()
