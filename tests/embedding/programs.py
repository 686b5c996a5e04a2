"""Programs that run detector.onnx, and what they are to find."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from berdiff.runtime import Detector

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PATIENCE = 300  # seconds; npm and compilers are slow on a busy machine
ID, SEED = 123456789012345678, 2**63 + 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A detector, an image for it, and what the runtime finds there.

    Attributes
    ----------
    file : Path
        ``detector.onnx``.
    detector : Detector
        The same, on the runtime.
    image : ndarray of float32, shape (64, 64)
        In [0, 1].
    anomaly_map : ndarray of float32, shape (64, 64)
        For `ID` and `SEED`.
    score : float
        The same.
    """

    file: Path
    detector: Detector
    image: NDArray[np.float32]
    anomaly_map: NDArray[np.float32]
    score: float

    def raw(self, path: Path) -> Path:
        """Write the image as programs here read it."""
        self.image.astype("<f4").tofile(path)
        return path

    def agrees(self, anomaly_map: NDArray[np.float32], score: float) -> None:
        """All that may differ is rounding; a single other bit would show in the second digit."""
        np.testing.assert_allclose(anomaly_map, self.anomaly_map, rtol=0, atol=1e-5)
        assert score == pytest.approx(self.score, abs=1e-5)


def need(program: str, package: str) -> str:
    """A program's path; without it the test is skipped, or fails where `CI` says it has to be."""
    if path := shutil.which(program):
        return path
    return missing(f"{program} is not installed (Debian: {package})")


def missing(what: str) -> str:
    """Skip, or fail where `CI` says that everything has to be there."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def done(command: Sequence[str | Path], **options: object) -> str:
    """What a program says that ends well."""
    ended = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=PATIENCE, check=False,
        **options,  # type: ignore[call-overload]
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return str(ended.stdout)
