"""The report page in a real browser: looks, keyboard, filters, its policy, and on paper."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from PIL import Image
from report_runs import NASTY, failure, judged_run, ok, output, small_run

from berdiff.runtime.report import write_report


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_run(tmp_path / "out")


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return judged_run(tmp_path / "out")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(find_chromium(), tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def focused(browser: Browser) -> str:
    return browser.run(
        "(({tagName, id, hash}) => tagName.toLowerCase() + (id ? '#' + id : hash || ''))"
        "(document.activeElement)"
    )


def tab(browser: Browser) -> str:
    browser.press("Tab", 9)
    return focused(browser)


@pytest.mark.slow
def test_browser_notices_what_the_policy_forbids(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    policy = "default-src 'none'"
    bad.write_text(
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><img src="x.png">'
        "<script>document.title = 'owned'</script>"
    )
    browser.open(bad)
    assert len(browser.complaints()) >= 2
    bad.write_text('<img src="x.png"><script>throw new Error("no")</script>')
    browser.open(bad)
    assert any("no" in text for text in browser.complaints())
    assert any(url.endswith("x.png") for url in browser.requests())


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1300])
def test_page_fits_the_window(
    browser: Browser, judged: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    rows = [ok("n" * 200, 0.5), failure("f" * 200, "r" * 300)]
    with open(judged / "results.csv", "a") as stream:
        for row in rows:
            csv.writer(stream, lineterminator="\n").writerow(dataclasses.astuple(row))
    report = write_report(judged)
    browser.open(report, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [report.as_uri()]
    browser.run("document.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    browser.screenshot(tmp_path / "shot.png", whole=True)
    with Image.open(tmp_path / "shot.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] == width
    # Nothing reaches into the margins, and something is drawn.
    for margin in (pixels[:, :5], pixels[:, -5:]):
        assert (margin == margin[0, 0]).all()
    assert (pixels[0, 0].mean() < 60) == dark
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


CONTRAST = """(() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const level = (colour) => {
    const [r, g, b] = parse(colour).map((v) => v / 255).map(
      (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    const [, , , alpha = 1] = parse(colour);
    return alpha === 0 && element.parentElement ? behind(element.parentElement) : colour;
  };
  const ratio = (element) => {
    const [low, high] = [getComputedStyle(element).color, behind(element)].map(level).sort(
      (a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) &&
    !element.closest("svg, script, style"));
  return [texts.length, Math.min(...texts.map(ratio))];
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out(browser: Browser, judged: Path, dark: bool) -> None:
    browser.open(write_report(judged), dark=dark)
    count, least = browser.run(CONTRAST)
    assert count > 50
    assert least >= 4.5  # WCAG 2, level AA


@pytest.mark.slow
def test_all_of_it_is_reached_by_keyboard(browser: Browser, judged: Path) -> None:
    browser.open(write_report(judged))
    assert tab(browser) == "a#scans"
    assert browser.run("document.activeElement.getBoundingClientRect().left >= 0")
    order = []
    while (now := tab(browser)) != "body" and len(order) < 40:
        order.append(now)
        # What has the focus shows it.
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == [
        "a#suspect", "a#failed", "a#failed",  # the counts
        "summary", "input#find", "select#verdict", "select#sort",
        "div", "a#scan-1",  # suspect scans: a table that may scroll, and the link in it
        "div",  # failed scans
        "summary#parts-1",
    ]  # fmt: skip


@pytest.mark.slow
def test_keys_unfold_skip_and_filter(browser: Browser, judged: Path) -> None:
    browser.open(write_report(judged))
    tab(browser)
    browser.press("Enter", 13, "\r")
    assert focused(browser) == "section#scans"
    assert tab(browser) == "summary#parts-1"
    browser.press("Enter", 13, "\r")
    assert browser.run("document.activeElement.parentElement.open")
    assert tab(browser) == "div"  # the table inside
    browser.run("document.getElementById('sort').focus()")
    browser.press("Tab", 9)
    browser.run("document.getElementById('verdict').focus()")
    browser.press("r", 82, "r")
    assert browser.run("document.getElementById('verdict').value") == "rejected"
    assert browser.run("document.getElementById('found').textContent") == "1 of 5 scans"


def visible(browser: Browser) -> list[str]:
    return browser.run(
        "[...document.querySelectorAll('[data-name]')].filter((item) => item.offsetHeight)"
        ".map((item) => item.dataset.name)"
    )


def change(browser: Browser, name: str, value: str, event: str = "change") -> list[str]:
    browser.run(
        f"(({{ control }}) => {{ control.value = {json.dumps(value)};"
        f" control.dispatchEvent(new Event('{event}')); }})"
        f"({{ control: document.getElementById('{name}') }})"
    )
    return visible(browser)


@pytest.mark.slow
def test_filtering_by_verdict_and_name(browser: Browser, judged: Path) -> None:
    browser.open(write_report(judged))
    everything = ["head", "sheared.png", "late.png", "head", "fine", "plain"]
    assert visible(browser) == everything
    assert change(browser, "verdict", "suspect") == ["head", "head"]
    headings = "[...document.querySelectorAll('h2')].filter((h) => h.offsetHeight).map((h) => h.id)"
    assert browser.run(headings) == ["", "suspect", ""]
    assert change(browser, "verdict", "ok") == ["fine", "plain"]
    assert change(browser, "find", " LAI", "input") == ["plain"]
    assert browser.run("document.getElementById('found').textContent") == "1 of 5 scans"
    assert change(browser, "verdict", "") == ["plain"]
    assert change(browser, "find", "", "input") == everything
    assert browser.run("document.getElementById('found').textContent") == ""


@pytest.mark.slow
def test_sorting(browser: Browser, small: Path) -> None:
    browser.open(write_report(small))
    assert change(browser, "sort", "name")[1:] == ["high", "low", "mid"]
    assert change(browser, "sort", "score")[1:] == ["high", "mid", "low"]
    assert change(browser, "sort", "mask")[-1] == "low"


@pytest.mark.slow
def test_script_runs_under_the_policy_and_nothing_else_does(
    browser: Browser, tmp_path: Path
) -> None:
    results = [ok(NASTY, 0.5), ok("plain", 0.4)]
    browser.open(write_report(output(tmp_path / "out", results)))
    assert browser.run("document.getElementById('controls').hidden") is False
    assert browser.run("document.title") == "head <b>model</b>: anomaly report"
    assert browser.complaints() == []


@pytest.mark.slow
def test_print_shows_what_is_folded(browser: Browser, judged: Path, tmp_path: Path) -> None:
    browser.open(write_report(judged), dark=True)
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.run("[...document.querySelectorAll('details')].every((folded) => folded.open)")
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.getElementById('controls')).display") == "none"
    assert browser.run("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    browser.call("Emulation.setEmulatedMedia", media="")
