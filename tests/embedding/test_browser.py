"""detector.onnx in a page of a real browser."""

from __future__ import annotations

import base64
import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import PATIENCE, Browser, find_chromium
from PIL import Image
from programs import EXAMPLES, ID, SEED, Case

pytestmark = pytest.mark.slow


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def site(case: Case, node_modules: Path, tmp_path: Path) -> Iterator[str]:
    """Address of the example's folder, as its page says it has to be."""
    folder = tmp_path / "site"
    shutil.copytree(EXAMPLES / "browser", folder)
    (folder / "ort").symlink_to(node_modules / "node_modules" / "onnxruntime-web" / "dist")
    (folder / "detector.onnx").symlink_to(case.file)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def settled(page: Browser, expression: str) -> object:
    """Value of a JavaScript expression once it is one."""
    limit = time.monotonic() + PATIENCE
    while not (value := page.run(expression)):
        assert time.monotonic() < limit, page.complaints()
        time.sleep(0.05)
    return value


def test_a_page_finds_what_the_runtime_finds(case: Case, site: str, tmp_path: Path) -> None:
    page = Browser(find_chromium(), tmp_path / "profile")
    try:
        page.visit(f"{site}/index.html")
        status = "document.getElementById('status').textContent"
        settled(page, f"{status}.startsWith('Ready')")
        pixels = base64.b64encode(case.image.astype("<f4").tobytes()).decode()
        page.run(
            "void (async () => {"
            f"  const bytes = Uint8Array.from(atob('{pixels}'), (c) => c.charCodeAt(0));"
            f"  const found = await window.detect(new Float32Array(bytes.buffer), {ID}n, {SEED}n);"
            "  window.found = { map: Array.from(found.map), score: found.score };"
            "})()"
        )
        settled(page, "Boolean(window.found)")
        found = page.run("window.found")
        anomaly_map = np.array(found["map"], np.float32).reshape(case.image.shape)
        case.agrees(anomaly_map, found["score"])

        # And as a user does it: a file chosen in the page.
        picture = tmp_path / "head.png"
        Image.fromarray((255 * case.image).astype(np.uint8)).save(picture)
        page.choose("#file", picture)
        assert settled(page, f"{status}.startsWith('Score') && {status}")
        shades = page.run(
            "Array.from(document.getElementById('map').getContext('2d')"
            ".getImageData(0, 0, 64, 64).data.filter((_, i) => i % 4 === 0))"
        )
        assert len(set(shades)) > 20
        assert page.complaints() == []
        assert {url.split("/")[2] for url in page.requests()} == {site.split("/")[2]}
    finally:
        page.close()
