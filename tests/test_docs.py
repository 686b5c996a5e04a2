"""What the documentation tells people to type and to open is there."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from berdiff.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#]+)")


def _lines(page: Path) -> list[str]:
    """Command lines of a page, those continued with a backslash put together."""
    blocks = FENCED.findall(page.read_text())
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def _commands(name: str) -> list[pytest.param]:
    return [
        pytest.param(shlex.split(line, comments=True)[1:], id=f"{page.name}: {line}")
        for page in PAGES
        for line in _lines(page)
        if line.startswith(name + " ")
    ]


@pytest.mark.parametrize("words", _commands("berdiff"))
def test_documented_command_has_these_options(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    given = {word.split("=")[0] for word in words if word.startswith("-")}
    if given == {"--help"}:
        return
    options = {n: p for p in command.params for n in (*p.opts, *p.secondary_opts)}
    assert given - set(options) == set()
    required = {p.name for p in command.params if p.required and p.param_type_name == "option"}
    assert required - {options[name].name for name in given} == set()
    assert not hasattr(command, "commands") or not words or given, f"no such verb: {words}"


@pytest.mark.parametrize("words", _commands("make"))
def test_documented_make_target_exists(words: list[str]) -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= rules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    # mkdocs checks the pages in docs/, with their anchors; it does not see those beside it.
    targets = LINK.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []
