"""Nothing that runs a detector talks to anybody: no packet, no name asked for, nothing kept.

What native libraries do is seen from outside: in a network namespace of its own every attempt to
reach another machine is counted by the kernel as a packet without a route.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from berdiff.phantoms import write_phantoms
from berdiff.runtime.bundle import Bundle

ROOT = Path(__file__).resolve().parents[2]
IMPORTERS = {"optional", "import_module", "importorskip"}

# Ends the process at the first attempt from Python, whatever the address.
NO_SOCKETS = """
import os, re, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
                 "socket.gethostbyname", "socket.bind"):
        os.write(2, f"{event} {arguments}\\n".encode())
        os._exit(7)
sys.addaudithook(refuse)
"""
COUNT = """
names, values = re.findall(r"^Ip: (.*)$", open("/proc/net/snmp").read(), re.M)
counted = dict(zip(names.split(), map(int, values.split())))
print("attempts", counted["OutNoRoutes"] + counted["OutRequests"])
"""
ASKS = """
import re, socket
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 53))
except OSError:
    pass
"""
USES = """
from berdiff.cli.main import run
from berdiff.runtime import Detector
import numpy as np

bundle, scans, results = sys.argv[1:]
for words in (["verify", bundle], ["infer", "-m", bundle, "-i", scans, "-o", results]):
    try:
        run(words)
    except SystemExit as end:
        assert end.code in (0, None), words
with Detector.open(bundle) as detector:
    pre = detector.bundle.manifest.preprocessing
    detector.detect(np.full((1, pre.channels, *pre.size), 0.5, np.float32), ids=[1])
"""


@functools.cache
def unshare() -> tuple[str, ...]:
    """How this user gets a network namespace: as root, or as root of a user namespace."""
    ways = (("unshare", "--net"), ("unshare", "--map-root-user", "--net"))
    for way in ways if shutil.which("unshare") else ():
        if subprocess.run([*way, "true"], capture_output=True).returncode == 0:
            return way
    return ()


def alone(code: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python without a network and with a home of its own, as a user's shell would."""
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = [*unshare(), sys.executable, "-c", code, *arguments]
    return subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )


def attempts(done: subprocess.CompletedProcess[str]) -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.findall(r"^attempts (\d+)$", done.stdout, re.M)[0])


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module", autouse=True)
def namespace(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where processes cannot get a network of their own, or the kernel does not count."""
    problem = "network namespaces need unshare, and user namespaces or root"
    if unshare():
        done = alone(ASKS + COUNT, tmp_path_factory.mktemp("home"))
        if done.returncode == 0 and attempts(done):
            return
        problem = f"packets without a route are not counted: {done.stdout}{done.stderr}"
    if os.environ.get("CI") == "true":
        pytest.fail(problem)
    pytest.skip(problem)


def test_verify_infer_and_detect_work_alone(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "heads", 1, size=(32, 32))
    arguments = (tiny_bundle.path, tmp_path / "heads" / "images", tmp_path / "results")
    done = alone(NO_SOCKETS + USES + COUNT, tmp_path / "home", *arguments)
    assert attempts(done) == 0
    assert (tmp_path / "results" / "report.html").is_file()
    assert files(tmp_path / "home") == []


def test_a_socket_would_have_been_noticed(tmp_path: Path) -> None:
    done = alone(NO_SOCKETS + ASKS, tmp_path / "home")
    assert done.returncode == 7
    assert "socket.connect" in done.stderr


def test_onnxruntime_keeps_nothing_to_report(tmp_path: Path) -> None:
    # The library by itself: official builds since 1.29 give the machine an identity at once.
    raw = alone("import onnxruntime", tmp_path / "raw")
    assert raw.returncode == 0, raw.stderr
    ours = "from berdiff.runtime.backends.onnxruntime_session import load; load()"
    done = alone(ours, tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "ours") == []
    if not files(tmp_path / "raw"):
        pytest.skip("the installed ONNX Runtime reports nothing by itself: nothing to turn off")


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            yield from [str(node.args[0].value)] if called in IMPORTERS else []


@pytest.mark.parametrize(
    "folder", ["runtime", "berdiff", "export", "cli", "benchmarks", "examples"]
)
def test_onnxruntime_is_imported_where_its_reports_are_turned_off(folder: str) -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for file in (ROOT / folder).rglob("*.py")
        if "ORT_DISABLE_TELEMETRY" not in file.read_text()
        and any(re.fullmatch(r"onnxruntime(\.\w+)*", name) for name in _imported(file))
    ]
    assert wrong == []


LOADS_ONNXRUNTIME = re.compile(r"#include.*onnxruntime_c(xx)?_api\.h|[\"']onnxruntime-node[\"']")


def test_examples_in_other_languages_turn_its_reports_off_too() -> None:
    sources = [f for f in (ROOT / "examples").rglob("*") if f.suffix in (".c", ".cpp", ".mjs")]
    loading = [f for f in sources if LOADS_ONNXRUNTIME.search(f.read_text())]
    wrong = [f.name for f in loading if "ORT_DISABLE_TELEMETRY" not in f.read_text()]
    assert wrong == []
    assert loading or not sources
