"""Every dependency of a machine that runs bundles has a wheel for 64-bit ARM.

What is asked is the package index, so that this says whether `pip install` will work on a Jetson
today, without a compiler.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# JetPack 6 is Ubuntu 22.04 with glibc 2.35; what runs there runs on JetPack 7 too.
GLIBC = 35
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)]
PLATFORMS.append("manylinux2014_aarch64")

# Python of JetPack 6, and of JetPack 7. The loop on a GPU needs the CUDA of the driver.
PYTHONS = {"3.10": ["cuda-bindings<13"], "3.12": ["cuda-bindings>=13"]}


def _requirements(*extras: str) -> list[Requirement]:
    """What the project asks for, with the extras that its extras name written out."""
    wanted, found = {"", *extras}, []
    everything = [Requirement(line) for line in metadata.requires("berdiff") or []]
    while True:
        before = len(wanted)
        found = [
            item
            for item in everything
            if item.marker is None
            or any(item.marker.evaluate({"extra": extra}) for extra in wanted)
        ]
        wanted |= {extra for item in found if item.name == "berdiff" for extra in item.extras}
        if len(wanted) == before:
            return [item for item in found if item.name != "berdiff"]


def _pip(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--target", folder]
    command += ["--ignore-installed", "--only-binary", ":all:", "--disable-pip-version-check"]
    command += shlex.split(os.environ.get("PIP_ARGS", ""))
    return subprocess.run([*map(str, command), *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module", autouse=True)
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where no package index answers, but not in continuous integration."""
    done = _pip(tmp_path_factory.mktemp("index"), "--no-deps", "typer")
    if done.returncode:
        message = f"no package index can be reached: {done.stderr.strip().splitlines()[-1:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def _wheels(folder: Path, python: str, wanted: list[str]) -> dict[str, str]:
    """Wheel of every package that a 64-bit ARM machine would install, by name.

    pip judges conditions such as ``python_version < "3.11"`` by the interpreter it runs on; so
    what they ask for on the target is added until nothing new turns up.
    """
    target = {
        "python_version": python,
        "python_full_version": f"{python}.12",
        "platform_machine": "aarch64",
        "extra": "",
    }
    report = folder / "report.json"
    while True:
        options = ["--python-version", python, "--implementation", "cp", "--report", str(report)]
        options += [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = _pip(folder / "target", *options, *wanted)
        assert done.returncode == 0, f"Python {python}: {done.stderr}"
        installed = json.loads(report.read_text())["install"]
        wheels = {
            canonicalize_name(item["metadata"]["name"]): Path(item["download_info"]["url"]).name
            for item in installed
        }
        asked = [
            Requirement(line)
            for item in installed
            for line in item["metadata"].get("requires_dist", [])
        ]
        more = sorted(
            {
                f"{item.name}{item.specifier}"
                for item in asked
                if canonicalize_name(item.name) not in wheels
                and item.marker is not None
                and item.marker.evaluate(target)
            }
        )
        if not more:
            return wheels
        wanted = wanted + more


def _wanted(python: str, extras: tuple[str, ...]) -> list[str]:
    found = [f"{item.name}{item.specifier}" for item in _requirements(*extras)]
    return found + (PYTHONS[python] if "cuda" in extras else [])


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extras", [(), ("cpu",), ("cuda",)], ids=lambda e: "+".join(e) or "base")
def test_every_dependency_has_a_wheel(tmp_path: Path, python: str, extras: tuple[str, ...]) -> None:
    wheels = _wheels(tmp_path, python, _wanted(python, extras))
    assert wheels.keys() >= {"numpy", "nibabel", "typer"}
    assert all(name.endswith(("-any.whl", "_aarch64.whl")) for name in wheels.values()), wheels
