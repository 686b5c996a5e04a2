"""The house: what the wheel holds, that imports only point down, a light ground floor.

Everything here looks at an installation from the wheel, since that is what users get: four folders
of the checkout become one package only there.
"""

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from berdiff.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"berdiff": "berdiff", "runtime": "berdiff/runtime", "export": "berdiff/export",
           "cli": "berdiff/cli"}  # fmt: skip
FLOORS = {"runtime": 1, "berdiff": 2, "export": 3, "cli": 4}

# Libraries that have no place on the ground floor, and those that must wait for their first use.
TRAINING_LIBRARIES = {"torch", "onnx", "onnxscript", "accelerate", "tensorboard"}
HEAVY_LIBRARIES = TRAINING_LIBRARIES | {
    "onnxruntime", "tensorrt", "tensorrt_rtx", "scipy", "sklearn", "matplotlib", "PIL"
}  # fmt: skip
MODULE_LEVEL_LIBRARIES = {"runtime": {"numpy"}, "cli": {"typer"}}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def _all_verbs() -> list[list[str]]:
    """Every verb and sub-verb as the words that name it."""

    def walk(command: object, words: list[str]) -> Iterator[list[str]]:
        if words:
            yield words
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*words, name])

    return list(walk(typer.main.get_command(app), []))


@dataclass(frozen=True)
class Import:
    """One import found in a file."""

    file: str
    line: int
    module: str
    at_module_level: bool

    @property
    def library(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _modules_named(node: ast.AST, package: list[str]) -> list[str]:
    """The modules that a node imports, by statement or by name in a string."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        base += node.module.split(".") if node.module else []
        # `from berdiff import export` names a package; `from .x import y` names at least x.
        return [".".join([*base, alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        if name in {"optional", "import_module"}:
            return [str(node.args[0].value)]
    return []


def _walk(node: ast.AST, at_module_level: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        here = at_module_level and not inside and not _is_type_checking(child)
        yield child, here
        yield from _walk(child, here)


def _imports(site: Path, file: Path) -> list[Import]:
    name = file.relative_to(site)
    return [
        Import(str(name), node.lineno, module, at_module_level)  # type: ignore[attr-defined]
        for node, at_module_level in _walk(ast.parse(file.read_text()), at_module_level=True)
        for module in _modules_named(node, list(name.parts[:-1]))
    ]


def _floor(parts: tuple[str, ...]) -> str:
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "berdiff"


@pytest.fixture(scope="module")
def site(base_python: Path) -> Path:
    """The site-packages folder with the installed package."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([base_python, "-c", code], text=True).strip())


@pytest.fixture(scope="module")
def imports(site: Path) -> list[Import]:
    """Every import of the installed package."""
    files = sorted((site / "berdiff").rglob("*.py"))
    assert len(files) >= len(FLOORS)
    return [found for file in files for found in _imports(site, file)]


def _of_floor(imports: list[Import], floor: str) -> list[Import]:
    return [found for found in imports if _floor(Path(found.file).parts) == floor]


@pytest.mark.slow
def test_imports_only_point_down(imports: list[Import]) -> None:
    upwards = [
        str(found)
        for found in imports
        if found.library == "berdiff"
        and found.module != "berdiff.__version__"
        and FLOORS[_floor(tuple(found.module.split(".")))] > FLOORS[_floor(Path(found.file).parts)]
    ]
    assert not upwards


@pytest.mark.slow
def test_ground_floor_never_names_a_training_library(imports: list[Import]) -> None:
    named = [str(i) for i in _of_floor(imports, "runtime") if i.library in TRAINING_LIBRARIES]
    assert not named


@pytest.mark.slow
@pytest.mark.parametrize("floor", MODULE_LEVEL_LIBRARIES)
def test_other_libraries_are_imported_where_they_are_used(
    imports: list[Import], floor: str
) -> None:
    allowed = MODULE_LEVEL_LIBRARIES[floor] | {"berdiff"} | set(sys.stdlib_module_names)
    eager = [
        str(found)
        for found in _of_floor(imports, floor)
        if found.at_module_level and found.library not in allowed
    ]
    assert not eager


EVERY_MODULE_OF_THE_RUNTIME = """
import importlib, pkgutil, berdiff.runtime
for module in pkgutil.walk_packages(berdiff.runtime.__path__, "berdiff.runtime."):
    importlib.import_module(module.name)
"""
HELP = """
from berdiff.cli.main import run
try:
    run(["--help"])
except SystemExit as end:
    assert end.code in (0, None)
"""


# Run where the heavy libraries are installed: elsewhere they could not be loaded anyway.
@pytest.mark.parametrize(
    ("code", "unwanted"),
    [(EVERY_MODULE_OF_THE_RUNTIME, HEAVY_LIBRARIES), (HELP, HEAVY_LIBRARIES | {"numpy"})],
    ids=["import berdiff.runtime", "berdiff --help"],
)
def test_start_loads_nothing_heavy(code: str, unwanted: set[str]) -> None:
    listing = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.check_output([sys.executable, "-c", code + listing], text=True)
    loaded = {name.split(".")[0] for name in json.loads(out.splitlines()[-1])}
    assert "berdiff" in loaded
    assert not loaded & unwanted


@pytest.mark.slow
@pytest.mark.parametrize("verb", [[], *_all_verbs()], ids=" ".join)
def test_help_works_without_any_extra(base_python: Path, verb: list[str]) -> None:
    command = [base_python.with_name("berdiff"), *verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" ".join(["Usage: berdiff", *verb]))


@pytest.mark.slow
def test_runtime_works_without_any_extra(base_python: Path) -> None:
    # Not from the checkout, whose folder `berdiff` would hide the installed package.
    elsewhere = base_python.parent
    subprocess.run([base_python, "-c", EVERY_MODULE_OF_THE_RUNTIME], check=True, cwd=elsewhere)


@pytest.mark.slow
def test_wheel_holds_the_whole_package_and_nothing_else(source: Path, wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    top = {name.split("/")[0] for name in names}
    assert top == {"berdiff", wheel.name.split("-py3")[0] + ".dist-info"}

    expected = {
        f"{package}/{file.relative_to(source / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for file in (source / folder).rglob("*")
        if file.is_file()
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "berdiff/py.typed" in expected
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def _sources() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


def test_files_stay_readable() -> None:
    lines = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in _sources()}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines after the signature, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_stay_readable() -> None:
    long = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": _body_lines(node)
        for file in _sources()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _body_lines(node) > MAX_FUNCTION_LINES
    }
    assert long == {}
