"""Nothing is served before the detector has shown, on this device, that it is the approved one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from berdiff import __version__

from ..backends import open_backend
from ..bundle import Bundle
from ..detector import Detector
from ..verify import Check, refuse_failed, verify


@dataclass(frozen=True)
class Proof:
    """What was checked before a detector was used.

    Attributes
    ----------
    model : str
        Name of the bundle.
    digest : str
        Digest of the bundle, 64 hexadecimal digits.
    engine : dict of str to str
        What runs: backend, device, versions.
    checks : tuple of Check
        The golden vectors' figures, each within its limit.
    seconds : float
        What the checks and the warm-up took.
    """

    model: str
    digest: str
    engine: dict[str, str]
    checks: tuple[Check, ...]
    seconds: float

    def facts(self) -> dict[str, object]:
        """What an audit log keeps of it."""
        return {
            "berdiff": __version__,
            "model": self.model,
            "bundle": self.digest,
            "engine": self.engine,
            "checks": {check.name: check.value for check in self.checks},
            "seconds": round(self.seconds, 3),
        }


def open_proven(
    model: str | Path,
    backend: str = "onnxruntime",
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int = 1,
) -> tuple[Detector, Proof]:
    """Open a detector that computes here what it was exported to compute, warmed up.

    Parameters
    ----------
    model : str or Path
        Bundle; the digest of every file in it is checked.
    backend, device, threads
        As for `Detector.open`.
    batch_size : int
        Images at a time, for the warm-up.

    Raises
    ------
    BundleError
        If the bundle is incomplete or altered.
    BackendError
        If the backend is not available here, or a golden vector's result is off.
    """
    start = time.perf_counter()
    bundle = Bundle.open(model)
    detector = Detector(bundle, open_backend(bundle, backend, device, threads))
    try:
        checks = verify(bundle, detector.backend)
        engine = detector.backend.describe()
        refuse_failed(checks, engine, model)
        detector.warm_up(batch_size)
    except BaseException:
        detector.close()
        raise
    seconds = time.perf_counter() - start
    return detector, Proof(bundle.manifest.name, bundle.digest, engine, tuple(checks), seconds)
