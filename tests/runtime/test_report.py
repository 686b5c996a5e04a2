"""The report page: what it says, that it trusts no name, loads nothing, and works in a browser."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel
import numpy as np
import pytest
from fakes import fake_detector
from PIL import Image
from report_runs import NASTY, failure, judged_run, ok, output, overlay, small_run, volume

from berdiff.runtime import report_figures, report_scans
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.report import write_report


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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_run(tmp_path / "out")


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return judged_run(tmp_path / "out")


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


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
    monkeypatch.setattr(report_scans, "MAX_PICTURE_BYTES", limit)
    sizes = _jpeg_sizes(page(small))
    assert len(sizes) == 3
    assert sum(sizes) <= limit


def test_pictures_that_cannot_shrink_end_where_the_page_is_full(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = _jpeg_sizes(page(small))
    monkeypatch.setattr(report_scans, "MAX_PICTURE_BYTES", sizes[0] + sizes[1])
    monkeypatch.setattr(report_figures, "SIZES", report_figures.SIZES[:1])
    found = page(small)
    assert _jpeg_sizes(found) == sizes[:2]
    assert [row["data-name"] for row in found.named("tr") if "id" in row] == ["low"]


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


# Volumes, components, verdicts.


def flat(found: Page) -> str:
    return re.sub(r"\s+", " ", found.text)


def test_a_volume_has_three_planes_and_its_worst_slice(judged: Path) -> None:
    shown = [str(image["alt"]) for image in page(judged).named("img")]
    assert shown[:4] == [
        "head: axial plane", "head: coronal plane", "head: sagittal plane",
        "head: input, healthy reconstruction, anomaly map, mask",
    ]  # fmt: skip
    assert shown[4:] == ["fine: input, healthy reconstruction, anomaly map, mask"]


def test_profile_has_a_bar_for_each_slice_that_is_not_empty(judged: Path) -> None:
    found = page(judged)
    (drawing,) = [svg for svg in found.named("svg") if "aria-label" in svg]
    assert drawing["aria-label"] == (
        "Score of each of 4 slices; 1 are empty; from 0.2 to 0.8; most anomalous: slice 2, 0.8"
    )
    paths = {path.get("class"): str(path["d"]) for path in found.named("path")}

    def bars(drawn: str) -> list[tuple[float, float]]:
        pattern = r"M([\d.]+) 90v-([\d.]+)h"
        return [(float(left), float(tall)) for left, tall in re.findall(pattern, drawn)]

    assert bars(paths["bars"]) == [(150, 22.5), (450, 45)]
    assert bars(paths["worst"]) == [(300, 90)]


def test_profile_of_many_slices_keeps_the_highest(tmp_path: Path) -> None:
    scores = dict.fromkeys(range(1500), 0.1)
    scores[777] = 0.9
    drawn = "".join(report_figures.profile(scores, 777))
    assert drawn.count("90v") == 300
    (worst,) = re.findall(r'class="worst" d="M([\d.]+) 90v-90.0h', drawn)
    assert float(worst) == 777 // 5 * 2
    assert len(drawn) < 10_000


def test_components_are_listed_with_their_place_in_the_world(judged: Path) -> None:
    text = flat(page(judged))
    # Slice 1, rows and columns 4 to 7: 90 - 5.5 to the right, 5.5 - 120.5 to the front, 7 + 5 up.
    assert re.search(r"Components of the mask: 2 No\. ml Centre \(mm\) Peak", text)
    assert re.search(r" 1 0\.08 84\.5, −115, 12 0\.\d+ ", text)
    assert re.search(r" 2 0\.03 69\.5, −89\.5, 22 0\.\d+ ", text)
    assert "components.csv" not in text


def test_more_components_than_fit_are_counted(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("berdiff.runtime.report_run.MAX_COMPONENTS", 1)
    text = flat(page(judged))
    assert "1 more are in components.csv." in text
    assert "−89.5, 22" not in text


def test_verdicts_are_shown_and_doubtful_scans_listed(judged: Path) -> None:
    found = page(judged)
    text = flat(found)
    for fact in (
        "5 scans", "1 suspect", "2 failed", "1 of them rejected", "Suspect scans (1)",
        "Suspect: unlike <b>heads</b>", "unlike training 1.5 (suspect above 1)",
        "late.png the model answered with NaN none",
        "sheared.png axes <i>meet</i> rejected",
    ):  # fmt: skip
        assert fact in text, fact
    assert [item["data-verdict"] for item in found.named("li") if "data-verdict" in item] == [
        "suspect", "ok", "ok"
    ]  # fmt: skip
    assert [a["href"] for a in found.named("a") if str(a["href"]).startswith("#scan-")] == [
        "#scan-1"
    ]
    options = [option["value"] for option in found.named("option")]
    assert options[:4] == ["", "ok", "suspect", "rejected"]


def test_places_named_by_links_exist_once(judged: Path) -> None:
    found = page(judged)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(a["href"])[1:] for a in found.named("a")}
    named = {
        str(attributes[key])
        for _, attributes in found.tags
        for key in ("aria-labelledby", "aria-describedby")
        if key in attributes
    }
    assert targets | named <= set(ids)


def test_a_folder_of_an_earlier_version_makes_a_report(judged: Path) -> None:
    kept = ("name", "input", "status", "reason", "score", "mask_pixels")
    with open(judged / "results.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with open(judged / "results.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for name in ("slices.csv", "components.csv"):
        (judged / name).unlink()
    shutil.rmtree(judged / "volumes")
    found = page(judged)
    assert len(found.named("img")) == 2
    assert not [select for select in found.named("select") if select["id"] == "verdict"]
    assert "Verdict" not in found.text
    assert "Suspect" not in found.text


def test_hostile_tables_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    result = volume(folder, "x", [0.5, 0.4])
    fields = ("verdict_reason", "format", "notes", "components", "worst_slice", "slices", "ood")
    nasty = dict.fromkeys(fields, NASTY)
    nasty |= {"name": NASTY, "verdict": "suspect"}
    output(folder, [dataclasses.replace(result, **nasty), ok(NASTY + "2", 0.1)])
    for name in ("slices.csv", "components.csv"):
        with open(folder / name, newline="") as stream:
            header = next(csv.reader(stream))
        with open(folder / name, "w", newline="") as stream:
            csv.writer(stream).writerows([header, [NASTY] * len(header)])
    found = page(folder)
    assert not found.named("img")
    assert len(found.named("script")) == 1
    assert not [a for _, a in found.tags for key in a if key.startswith("on")]
    assert found.text.count(NASTY) >= 10
    assert len(found.named("details")) == 2


def test_endless_text_is_cut(tmp_path: Path) -> None:
    found = page(output(tmp_path / "out", [failure("a", "z" * 100_000)]))
    assert len(found.text) < 5000


def test_a_table_that_ends_within_a_cell_is_refused(small: Path) -> None:
    with open(small / "results.csv", "a") as stream:
        stream.write('cut,"off')
    with pytest.raises(BerdiffError, match=r"results\.csv is damaged"):
        write_report(small)


def test_report_of_a_real_run_over_a_volume(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    data = np.random.default_rng(0).random((40, 32, 5)).astype(np.float32)
    data[:, :, 4] = 0  # an empty slice
    image = nibabel.Nifti1Image(data, np.diag([-1.0, 1.0, 4.0, 1.0]))
    nibabel.save(image, tmp_path / "scans" / "v.nii.gz")
    summary = run_folder(fake_detector(), tmp_path / "scans", tmp_path / "out")
    found = page(tmp_path / "out")
    assert [image["alt"] for image in found.named("img")][:3] == [
        "v: axial plane", "v: coronal plane", "v: sagittal plane"
    ]  # fmt: skip
    (drawing,) = [svg for svg in found.named("svg") if "aria-label" in svg]
    worst = f"most anomalous: slice {summary.ok[0].worst_slice}, {summary.ok[0].score:.4g}"
    assert str(drawing["aria-label"]).startswith("Score of each of 5 slices; 1 are empty")
    assert str(drawing["aria-label"]).endswith(worst)
