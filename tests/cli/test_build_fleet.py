"""``berdiff build --fleet``: what is refused, what is said, and how it ends.

Engines are built for real, by a cluster that the command starts on this machine. What happens on
clusters of several nodes is tested in tests/runtime/cluster.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from berdiff.cli import main
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import TENSORRT_RTX
from berdiff.runtime.engines.store import find_engine

Capture = pytest.CaptureFixture[str]
FLEET = """
targets:
  - {name: ada, engine: tensorrt-rtx, target: sm_89}
  - {name: server, engine: tensorrt, gpu: H100}
  - {name: blackwell, engine: tensorrt-rtx, target: sm_120}
"""


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET)
    return file


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as Ray wants it."""
    code = "from berdiff.cli.main import run; run()"
    command = [sys.executable, "-c", code, "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_what_can_be_built_is_built_and_what_cannot_is_said(
    bundle: Path, fleet: Path, capsys: Capture
) -> None:
    first = run(bundle, "--fleet", fleet)
    assert first.returncode == 3, first.stderr
    head, *rows, last = first.stdout.splitlines()
    assert head.split() == ["target", "result", "node", "seconds", "engine", "verified"]
    assert [row.split()[:2] for row in rows] == [
        ["ada", "built"],
        ["server", "failed"],
        ["blackwell", "built"],
    ]
    engine = find_engine(Bundle.open(bundle), TENSORRT_RTX, Gpu("any", (8, 9)))
    assert engine.folder.name in rows[0]
    assert rows[0].endswith("not verified: built without a GPU")
    assert last == "2 engines built, 0 there already, 1 failed"
    assert "error: 1 of 3 engines could not be built:\n  server: no node of the clu" in first.stderr
    for name in ("ada: built in", "server: failed, see below", "blackwell: built in"):
        assert name in first.stderr

    with pytest.raises(SystemExit):
        main.run(["info", str(bundle)])
    line = f"  {engine.folder.name}: not verified: built without a GPU"
    assert line in capsys.readouterr().out.splitlines()

    fleet.write_text(FLEET.replace("  - {name: server, engine: tensorrt, gpu: H100}\n", ""))
    again = run(bundle, "--fleet", fleet)
    assert (again.returncode, again.stderr) == (
        0,
        "ada: is there already\nblackwell: is there already\n",
    )
    assert again.stdout.endswith("no engines built, 2 there already, 0 failed\n")


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main.run(["build", *map(str, arguments)])
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--engine", "tensorrt"),
        ("--target", "sm_89"),
        ("--dynamic-batch", "1,8,32"),
        ("--workspace", "2GiB"),
        ("--timing-cache", "cache"),
        ("--builder-optimization-level", "3"),
        ("--hardware-compatibility", "none"),
        ("--device", "cuda:0"),
    ],
)
def test_what_targets_say_is_refused(
    bundle: Path, fleet: Path, capsys: Capture, option: str, value: str
) -> None:
    assert end(bundle, "--fleet", fleet, option, value) == 2
    said = capsys.readouterr().err
    assert f"{option}: is said for each target in {fleet}; leave it away" in said


@pytest.mark.parametrize(("option", "value"), [("--cluster", "local"), ("--wait", "0")])
def test_what_only_a_fleet_needs_is_refused(
    bundle: Path, capsys: Capture, option: str, value: str
) -> None:
    assert end(bundle, "--engine", "tensorrt-rtx", option, value) == 2
    assert f"{option}: needs --fleet" in capsys.readouterr().err


def test_no_library_and_no_fleet(bundle: Path, capsys: Capture) -> None:
    assert end(bundle) == 2
    assert "--engine: is missing: name the library, or give --fleet" in capsys.readouterr().err


def test_when_nothing_can_be_built(bundle: Path, fleet: Path, capsys: Capture) -> None:
    """What is known without a cluster is told without one."""
    fleet.write_text("targets: [{name: a, engine: tensorrt-rtx, precision: int8}]")
    assert end(bundle, "--fleet", fleet, "--cluster", "localhost:1") == 1
    shown = capsys.readouterr()
    assert shown.out.endswith("no engines built, 0 there already, 1 failed\n")
    assert "error: none of 1 engines could be built:\n  a: the bundle is in fp32" in shown.err


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("targets: []", (), "fleet.yaml: targets: expected at least one"),
        (FLEET, ("--cluster", "somewhere"), "got the cluster address 'somewhere'"),
    ],
)
def test_what_cannot_begin(
    bundle: Path, fleet: Path, capsys: Capture, text: str, arguments: tuple[str, ...], said: str
) -> None:
    fleet.write_text(text)
    assert end(bundle, "--fleet", fleet, *arguments) == 1
    assert said in capsys.readouterr().err
    assert not (bundle / "engines").exists()
