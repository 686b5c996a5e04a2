"""The detector that ships in the package, in one file, and images for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from programs import EXAMPLES, ID, ROOT, SEED, Case, done, need

from berdiff.runtime import Bundle, Detector

MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def case(made_once: MadeOnce) -> Case:
    def make(folder: Path) -> None:
        from berdiff.export.whole.write import write_single_file
        from berdiff.export.write_bundle import export_bundle

        bundle = export_bundle(ROOT / "berdiff" / "pretrained" / "phantom", folder / "bundle")
        write_single_file(bundle, folder)

    folder = made_once("demo-single-file", make)
    detector = Detector.open(Bundle.open(folder / "bundle"), threads=1)
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    image = (0.35 + 0.1 * np.sin(9 * rows) * np.cos(7 * columns)).astype(np.float32)
    image[(rows - 0.3) ** 2 + (columns + 0.2) ** 2 < 0.02] = 0.9
    image[rows**2 + columns**2 > 0.7] = 0
    found = detector.detect(image[None, None], [ID], SEED)
    file = folder / "detector.onnx"
    return Case(file, detector, image, found.anomaly_map[0], float(found.score[0]))


@pytest.fixture(scope="session")
def node_modules(made_once: MadeOnce) -> Path:
    """ONNX Runtime for Node and for browsers, in the versions that the examples name."""
    npm = need("npm", "npm")

    def install(folder: Path) -> None:
        wanted: dict[str, str] = {}
        for example in ("node", "browser"):
            package = json.loads((EXAMPLES / example / "package.json").read_text())
            wanted |= package["dependencies"]
        (folder / "package.json").write_text(json.dumps({"dependencies": wanted}))
        done([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder)

    return made_once("node-modules", install)
