"""detector.onnx in Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import EXAMPLES, ID, SEED, Case, done, need

pytestmark = pytest.mark.slow


def test_node_finds_what_the_runtime_finds(case: Case, node_modules: Path, tmp_path: Path) -> None:
    node = need("node", "nodejs")
    script = shutil.copy(EXAMPLES / "node" / "detect.mjs", node_modules)
    image, found = case.raw(tmp_path / "image.f32"), tmp_path / "map.f32"
    said = done([node, script, case.file, image, found, str(ID), str(SEED)])
    anomaly_map = np.fromfile(found, "<f4").reshape(case.image.shape)
    case.agrees(anomaly_map, float(said.removeprefix("score ")))

    image.write_bytes(image.read_bytes()[:-4])
    ended = subprocess.run(
        [node, script, case.file, image, found], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "expected 1 x 64 x 64 floats" in ended.stderr
