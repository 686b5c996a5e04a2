"""What the tests share: the optional data beside the project, and a real installation."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "berdiff", "runtime", "export", "cli")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans and reference numbers, which is not part of the project."""
    folder = Path(os.environ.get("BERDIFF_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; BERDIFF_SHARED names another place")
    return folder


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Path:
    """Folder of numbers computed with the reference implementation."""
    folder = shared_data / "reference"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what the wheel is made of.

    In the checkout itself, setuptools would put what an earlier build left in ``build/`` into the
    wheel.
    """
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    target = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    (built,) = target.glob("berdiff-*.whl")
    return built


@pytest.fixture(scope="session")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with the wheel and its base dependencies, and no extra."""
    environment = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    extra = shlex.split(os.environ.get("PIP_ARGS", ""))
    _pip("--python", python, "install", "--no-compile", "--constraint", constraints, *extra, wheel)
    return python
