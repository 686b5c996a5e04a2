"""The report page: what it says, that it trusts no name, loads nothing, and works in a browser."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_detector
from PIL import Image

from berdiff.runtime import report
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.overlays import write_overlay
from berdiff.runtime.report import write_report
from berdiff.runtime.results import ScanResult, write_results

NASTY = "a\"b'><img src=x onerror=alert(1)></script><script>document.title='owned'</script>&amp;"
RECORD = {
    "software": {"berdiff": "9.8.7", "numpy": "2.0"},
    "backend": "onnxruntime",
    "device": "cpu",
    "bundle": {"name": "head <b>model</b>", "digest": "ab" * 32},
    "input": "scans & more",
    "seed": 42,
    "options": {"batch_size": 8},
    "settings": {"noise_level": 200, "steps": None},
    "threshold": {"value": 0.125, "source": "bundle"},
    "warnings": ["mind the <gap>"],
    "started": "2024-01-02T03:04:05+00:00",
    "seconds": 12.5,
    "timings": {"loop": 9.5},
    "counts": {"slices": 7, "empty_slices": 1},
}


class Page(HTMLParser):
    """Tags and text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += data + " "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def ok(name: str, score: float, mask: int = 5) -> ScanResult:
    return ScanResult(name, f"{name}.png", "ok", slices=1, score=score, mask_pixels=mask)


def failure(name: str, reason: str) -> ScanResult:
    return ScanResult(name, f"{name}.png", "failed", reason)


def overlay(folder: Path, name: str, seed: int = 0, size: int = 40) -> None:
    random = np.random.default_rng(seed)
    image = random.random((size, size)).astype(np.float32)
    write_overlay(folder / "overlays" / f"{name}.png", image, image**4, image > 0.99, image)


def output(folder: Path, results: list[ScanResult]) -> Path:
    folder.mkdir(exist_ok=True)
    write_results(folder, results)
    (folder / "run.json").write_text(json.dumps(RECORD))
    return folder


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = output(
        tmp_path / "out",
        [
            ok("low", 0.1, 0),
            failure("bad", "cannot <i>read</i> it"),
            ok("high", 0.9),
            ok("mid", 0.5),
        ],
    )
    for seed, name in enumerate(("low", "high", "mid")):
        overlay(folder, name, seed)
    return folder


def test_scans_come_highest_score_first_with_their_picture(small: Path) -> None:
    found = page(small)
    assert [li["data-name"] for li in found.named("li") if "data-name" in li] == [
        "high", "mid", "low"
    ]  # fmt: skip
    pictures = found.named("img")
    assert [str(image["alt"]).split(":")[0] for image in pictures] == ["high", "mid", "low"]
    for image in pictures:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
            assert [str(side) for side in shown.size] == [image["width"], image["height"]]


def test_header_states_the_facts_of_the_run(small: Path) -> None:
    text = re.sub(r"\s+", " ", page(small).text)
    for fact in (
        "head <b>model</b>", "ab" * 32, "onnxruntime on cpu", "scans & more", "42",
        "noise level 200, steps all", "0.125 (from: bundle)", "12.5 s", "loop 9.5 s",
        "7 (1 of them empty)", "berdiff 9.8.7", "numpy 2.0", "Warning: mind the <gap>",
        "4 scans", "3 processed", "2 with a mask", "1 failed",
    ):  # fmt: skip
        assert fact in text, fact
    assert text.count("Research use, not for clinical decisions.") == 2


def test_failed_scans_are_listed_with_their_reason(small: Path) -> None:
    found = page(small)
    assert re.search(r"bad\.png\s+cannot <i>read</i> it", found.text)
    assert not found.named("i")


def test_names_and_reasons_of_strangers_stay_text(tmp_path: Path) -> None:
    results = [ok(NASTY, 0.5), ok("plain", 0.4), failure(NASTY + "2", NASTY)]
    results[0] = dataclasses.replace(results[0], notes=NASTY)
    found = page(output(tmp_path / "out", results))
    assert not found.named("img")
    assert len(found.named("script")) == 1
    assert not [a for _, a in found.tags for key in a if key.startswith("on")]
    assert next(li["data-name"] for li in found.named("li") if "data-name" in li) == NASTY
    assert found.text.count(NASTY) == 4


def test_page_loads_nothing_and_allows_only_its_own_script(small: Path) -> None:
    found = page(small)
    for _, attributes in found.tags:
        for key in ("href", "src", "action", "data", "srcset", "poster", "background"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), value
    text = (small / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|//[a-z]", re.sub(r'src="[^"]*"', "", text))
    (script,) = found.scripts
    policy = next(str(m["content"]) for m in found.named("meta") if "http-equiv" in m)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


def test_histogram_counts_every_score(tmp_path: Path) -> None:
    scores = [0.0, 0.1, 0.1, 0.5, 1.0, 1.0, 1.0]
    results = [ok(f"s{i}", score) for i, score in enumerate(scores)]
    text = write_report(output(tmp_path / "out", results)).read_text()
    bars = re.findall(r"<rect [^>]*><title>([\d.]+) to ([\d.]+): (\d+)</title></rect>", text)
    counts, _ = np.histogram(scores, bins=len(bars), range=(0, 1))
    assert [int(count) for _, _, count in bars] == counts.tolist()


@pytest.mark.parametrize("scores", [[0.3], [0.3, 0.3]])
def test_one_value_makes_no_histogram(tmp_path: Path, scores: list[float]) -> None:
    results = [ok(f"s{i}", score) for i, score in enumerate(scores)]
    assert not page(output(tmp_path / "out", results)).named("svg")


@pytest.mark.slow
def test_thousands_of_scans_give_200_pictures_and_a_list(tmp_path: Path) -> None:
    folder = output(tmp_path / "out", [ok(f"s{i:04}", i / 3000) for i in range(3000)])
    overlay(folder, "s2999", size=256)  # noise is the largest JPEG there is
    for i in range(2700, 2999):
        shutil.copy(folder / "overlays" / "s2999.png", folder / "overlays" / f"s{i:04}.png")
    found = page(folder)
    pictures, rows = found.named("img"), [t for t in found.named("tr") if "data-name" in t]
    assert len(pictures) == 200
    assert len(rows) == 2800
    assert rows[0]["data-name"] == "s2799"
    assert "Pictures of the 200 highest scores are shown" in found.text
    assert (folder / "report.html").stat().st_size < 10_000_000


def _jpeg_sizes(found: Page) -> list[int]:
    return [len(base64.b64decode(str(i["src"]).partition(",")[2])) for i in found.named("img")]


def test_pictures_shrink_to_their_share_of_the_page(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = int(0.8 * sum(_jpeg_sizes(page(small))))
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", limit)
    sizes = _jpeg_sizes(page(small))
    assert len(sizes) == 3
    assert sum(sizes) <= limit


def test_pictures_that_cannot_shrink_end_where_the_page_is_full(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = _jpeg_sizes(page(small))
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", sizes[0] + sizes[1])
    monkeypatch.setattr(report, "_SIZES", report._SIZES[:1])
    found = page(small)
    assert _jpeg_sizes(found) == sizes[:2]
    assert [row["data-name"] for row in found.named("tr") if "data-name" in row] == ["low"]


def test_a_name_cannot_lead_out_of_the_overlays(tmp_path: Path) -> None:
    folder = output(tmp_path / "out", [ok("../../secret", 0.5), ok("gone", 0.4)])
    overlay(tmp_path, "x")
    shutil.copy(tmp_path / "overlays" / "x.png", tmp_path / "secret.png")
    (folder / "overlays").mkdir()
    found = page(folder)
    assert not found.named("img")
    assert found.text.count("no picture") == 2


@pytest.mark.parametrize("missing", ["results.csv", "run.json"])
def test_a_folder_without_a_finished_run_is_refused(small: Path, missing: str) -> None:
    (small / missing).unlink()
    with pytest.raises(BerdiffError, match=f"has no {missing}"):
        write_report(small)
    assert not (small / "report.html").exists()


def test_damaged_files_are_named(small: Path) -> None:
    with open(small / "results.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    (small / "results.csv").write_text("\n".join(",".join(row[:2]) for row in rows))
    with pytest.raises(BerdiffError, match=r"results\.csv: missing column .*score"):
        write_report(small)
    (small / "run.json").write_text("{")
    with pytest.raises(BerdiffError, match=r"run\.json is not valid JSON"):
        write_report(small)


def test_report_of_a_real_run(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40), np.uint8)
    Image.fromarray(pixels).save(scans / "a.png")
    Image.fromarray(pixels[::-1]).save(scans / "b.png")
    (scans / "c.png").write_bytes(b"no picture")
    summary = run_folder(fake_detector(), scans, tmp_path / "out")
    found = page(tmp_path / "out")
    ranked = sorted(summary.ok, key=lambda result: -(result.score or 0))
    assert [li["data-name"] for li in found.named("li") if "data-name" in li] == [
        result.name for result in ranked
    ]
    assert len(found.named("img")) == 2
    assert "not recorded" not in found.text
    assert "c.png" in found.text


# In a browser. `CI` set means: it has to be there.


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no Chromium on this machine; install the package chromium")
    pytest.skip("no Chromium on this machine")


def browse(chromium: str, page: Path, profile: Path, *options: str) -> str:
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", "--virtual-time-budget=2000", f"--user-data-dir={profile}",
        *options, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1300])
def test_page_fits_the_window(chromium: str, small: Path, tmp_path: Path, width: int) -> None:
    folder = output(small, [ok("high", 0.9), ok("n" * 200, 0.5), failure("f" * 200, "r" * 300)])
    shot = tmp_path / "shot.png"
    size = f"--window-size={width},2000"
    browse(chromium, write_report(folder), tmp_path / "p", size, f"--screenshot={shot}")
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == width
    # Nothing reaches into the margins, and something is drawn.
    for margin in (pixels[:, :5], pixels[:, -5:]):
        assert (margin == margin[0, 0]).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


@pytest.mark.slow
def test_script_runs_under_the_policy_and_nothing_else_does(chromium: str, tmp_path: Path) -> None:
    folder = output(tmp_path / "out", [ok(NASTY, 0.5), ok("plain", 0.4)])
    found = Page(browse(chromium, write_report(folder), tmp_path / "p", "--dump-dom"))
    (controls,) = [div for div in found.named("div") if div.get("id") == "controls"]
    assert "hidden" not in controls  # the script showed it
    assert "anomaly report" in found.text
    assert "owned" not in found.text.replace(NASTY, "")


@pytest.mark.slow
def test_sorting_and_finding(chromium: str, small: Path, tmp_path: Path) -> None:
    text = write_report(small).read_text()
    drive = """<script>
    const change = (id, value, event) => {
      document.getElementById(id).value = value;
      document.getElementById(id).dispatchEvent(new Event(event));
      return [...document.querySelectorAll("#cards > li:not([hidden])")].map(
        (item) => item.dataset.name).join();
    };
    const seen = [change("sort", "name", "change"), change("sort", "score", "change"),
      change("sort", "mask", "change"), change("find", " HI", "input")];
    document.body.setAttribute("data-seen", seen.join(" | "));
    </script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text(re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", drive))
    found = Page(browse(chromium, driven, tmp_path / "p", "--dump-dom"))
    (body,) = found.named("body")
    by_name, by_score, by_mask, wanted = str(body["data-seen"]).split(" | ")
    assert by_name == "high,low,mid"
    assert by_score == "high,mid,low"
    assert by_mask.split(",")[-1] == "low"
    assert wanted == "high"
    assert "1 of 3 scans" in found.text
