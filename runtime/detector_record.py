"""Which detector a run uses, for its plan and its records: on this machine, or on many."""

from __future__ import annotations

from dataclasses import dataclass

from .bundle import Bundle
from .detector import Detector


@dataclass(frozen=True)
class DetectorRecord:
    """A detector without its engines.

    Attributes
    ----------
    bundle : Bundle
        The bundle.
    backend : str
        Name of the engine backend.
    device : str
        "cpu" or "cuda". Which GPU of a machine, no result depends on.
    engine : dict of str to str
        What runs, as the backend describes it.
    """

    bundle: Bundle
    backend: str
    device: str
    engine: dict[str, str]

    @classmethod
    def of(cls, detector: Detector) -> DetectorRecord:
        """Describe an opened detector."""
        backend = detector.backend
        kind = backend.device.split(":")[0]
        return cls(detector.bundle, backend.name, kind, backend.describe())
