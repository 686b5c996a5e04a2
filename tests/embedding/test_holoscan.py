"""The Holoscan example, run by Holoscan in an environment of its own."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from berdiff.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "holoscan"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="Holoscan has packages for Linux on x86_64 and aarch64 only",
)

# The pipeline, what its sink received, and what the detector says without it. The second image
# shows nothing.
COMPARE = """
import sys
import numpy as np
import anomaly_pipeline as example
from berdiff.runtime import Detector

drawn = example.draw
example.draw = lambda *about: drawn(*about) * np.uint16(about[-1] != 1)
received = []

class Keep(example.ShowOp):
    def compute(self, op_input, op_output, context):
        result = op_input.receive("result")
        received.append({name: np.array(np.asarray(value)) for name, value in result.items()})

example.ShowOp = Keep
example.AnomalyApp(sys.argv[1]).run()
first, second, third = received
assert list(second) == ["suspect"] and second["suspect"] == [1], second
with Detector.open(sys.argv[1]) as detector:
    model = detector.bundle.manifest.preprocessing
    spacing = None if model.spacing is None else (model.spacing, model.spacing)
    for number, got in ((0, first), (2, third)):
        slices = example.draw(model.channels, model.size, number)
        found = detector.detect_slices(slices, spacing, seed=0)
        assert got["anomaly_map"].tobytes() == found.anomaly_map.tobytes()
        assert np.array_equal(got["mask"], found.mask)
        assert got["score"] == [found.score]
        assert got["suspect"] == [found.verdict != "ok"]
print("the same")
"""


@pytest.fixture(scope="module")
def environment(wheel: Path, made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """An environment with what the example asks for."""

    def install(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        command = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
        command += ["--quiet", "--disable-pip-version-check", "--no-compile"]
        command += ["--constraint", ROOT / "constraints.txt"]
        command += shlex.split(os.environ.get("PIP_ARGS", ""))
        command += ["--requirement", EXAMPLE / "requirements.txt", f"{wheel}[cpu]"]
        subprocess.run([str(word) for word in command], check=True)

    return made_once("holoscan", install)


def run(environment: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python there as the example's README says."""
    (libraries,) = environment.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    shell = 'ulimit -s 32768 && exec "$@"'
    command = ["sh", "-c", shell, "sh", environment / "bin" / "python", *arguments]
    variables = {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(EXAMPLE)}
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        cwd=environment,
    )


@pytest.mark.slow
def test_it_runs_as_its_readme_says(environment: Path, tiny_bundle: Bundle) -> None:
    done = run(environment, EXAMPLE / "anomaly_pipeline.py", tiny_bundle.path)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.findall(r"^score \d\.\d+, most anomalous at \(0, \d+, \d+\)$", done.stdout, re.M)
    assert len(shown) == 3
    assert "stack size" not in done.stderr


@pytest.mark.slow
def test_it_gives_what_the_detector_gives(environment: Path, tiny_bundle: Bundle) -> None:
    done = run(environment, "-c", COMPARE, tiny_bundle.path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same" in done.stdout
