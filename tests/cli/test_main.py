"""How the command ends: exit codes and what is printed where."""

import re
from importlib.metadata import version

import pytest
import typer

import berdiff
from berdiff.cli import main
from berdiff.runtime.errors import InputError, PartialFailure


def _end(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main.run(arguments)
    return int(end.value.code or 0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command line whose only verb raises what the test puts into the list."""
    raised: list[BaseException] = []
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(main, "app", app)
    return raised


def test_version_is_that_of_the_installed_distribution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _end(["--version"]) == 0
    assert capsys.readouterr().out == f"berdiff {berdiff.__version__}\n"
    assert version("berdiff") == berdiff.__version__


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_verbs_with_one_line_each(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _end([flag]) == 0
    listing = capsys.readouterr().out.partition("Commands:\n")[2]
    for verb in typer.main.get_command(main.app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"^  {verb} +\S", listing, re.MULTILINE), verb


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["--no-such-option"]])
def test_wrong_usage_exits_2_on_stderr(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _end(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error: " in captured.err


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("first\nsecond"), 1), (PartialFailure("2 of 3 failed"), 3)]
)
def test_expected_errors_are_printed_without_a_traceback(
    failing: list[BaseException],
    error: Exception,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    assert _end([]) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_interruption_exits_130(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert _end([]) == 130


def test_defects_keep_their_traceback(failing: list[BaseException]) -> None:
    failing.append(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError):
        main.run([])
