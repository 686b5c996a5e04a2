"""Real DICOM peers for tests: dcmtk's receiver and an Orthanc server, apart from the network.

They run in a network namespace of their own where the system permits one, because neither can be
told to listen on one interface only; otherwise they listen on this machine's, while a test runs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Not the PATH: pynetdicom puts a storescu of its own into an environment's bin.
_PLACES = "/usr/bin:/usr/sbin:/usr/local/bin"
_PATIENCE = 60.0  # seconds until a peer that does not answer is given up

# Brings the loopback device up, says so, and waits until we close its input.
_HOLDER = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
print("up", flush=True)
sys.stdin.read()
"""

_FETCH = """
import sys, urllib.request
url, method = sys.argv[1:]
data = sys.stdin.buffer.read() if method in ("POST", "PUT") else None
with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=30) as reply:
    sys.stdout.buffer.write(reply.read())
"""


def program(name: str, package: str) -> str:
    """Where a program of the system lies; skips the test where it is not installed."""
    found = shutil.which(name, path=_PLACES)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: {package})")
    return found


@dataclass(frozen=True)
class Network:
    """Where peers run and meet.

    Attributes
    ----------
    prefix : tuple of str
        Put before a command to run it there.
    """

    prefix: tuple[str, ...] = ()

    def run(self, *command: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end."""
        return subprocess.run(
            [*self.prefix, *command], input=data, capture_output=True, timeout=120, check=False
        )

    def fetch(self, url: str, method: str = "GET", data: bytes = b"") -> bytes:
        """Ask a web server."""
        done = self.run(sys.executable, "-c", _FETCH, url, method, data=data)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    @contextlib.contextmanager
    def running(
        self, *command: str, log: Path, ready: Callable[[], bool]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a program until the block ends; wait first until it is ready."""
        # A test run that is killed takes its peers with it, where setpriv can see to that.
        leash = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
        with open(log, "wb") as stream:
            process = subprocess.Popen(
                [*self.prefix, *leash, *command],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            limit = time.monotonic() + _PATIENCE
            while not ready():
                text = log.read_text(errors="replace")[-2000:]
                assert process.poll() is None, f"{command[0]} ended: {text}"
                assert time.monotonic() < limit, f"{command[0]} does not answer: {text}"
                time.sleep(0.1)
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that we started, whatever it does."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Open a network namespace, or this machine's own network where that is not permitted."""
    for unshare, enter in (
        (("-n",), ("-n",)),
        (("-r", "-n"), ("-U", "-n", "--preserve-credentials")),
    ):
        if not (shutil.which("unshare") and shutil.which("nsenter")):
            break
        holder = subprocess.Popen(
            ["unshare", *unshare, sys.executable, "-c", _HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() == b"up\n":
                opened = Network(("nsenter", "-t", str(holder.pid), *enter))
                if opened.run("true").returncode == 0:
                    yield opened
                    return
        finally:
            for stream in (holder.stdin, holder.stdout):
                if stream is not None:
                    stream.close()
            stop(holder)
    yield Network()


def free_port() -> int:
    """Choose a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def send(net: Network, port: int, title: str, *files: Path) -> subprocess.CompletedProcess[bytes]:
    """Send files with dcmtk; ``-R``: offer what the files are, and nothing else."""
    storescu = program("storescu", "dcmtk")
    where = ("-R", "-aet", "BERDIFF", "-aec", title, "127.0.0.1", str(port))
    return net.run(storescu, "-v", *where, *map(str, files))


def _answers(net: Network, port: int, title: str) -> bool:
    echo = program("echoscu", "dcmtk")
    done = net.run(echo, "-to", "2", "-aec", title, "127.0.0.1", str(port))
    return done.returncode == 0


@contextlib.contextmanager
def storescp(net: Network, folder: Path) -> Iterator[int]:
    """Run dcmtk's receiver; yields its port. What it receives lies in ``folder/received``."""
    receiver, port = program("storescp", "dcmtk"), free_port()
    received = folder / "received"
    received.mkdir(parents=True)
    # +B: write what was received byte by byte, without decoding it.
    command = (receiver, "-v", "-pm", "+B", "-aet", "PEER", "-od", str(received), str(port))
    with net.running(
        *command, log=folder / "storescp.log", ready=lambda: _answers(net, port, "PEER")
    ):
        yield port


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc.

    Attributes
    ----------
    net : Network
        Where it runs.
    dicom_port, http_port : int
        Its ports.
    """

    net: Network
    dicom_port: int
    http_port: int
    title: str = "ORTHANC"

    def get(self, path: str) -> bytes:
        """What its REST interface answers."""
        return self.net.fetch(f"http://127.0.0.1:{self.http_port}{path}")

    def json(self, path: str) -> Any:
        """The same, parsed."""
        return json.loads(self.get(path))

    def put(self, path: str, content: object) -> None:
        """Configure something."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        self.net.fetch(url, "PUT", json.dumps(content).encode())

    def find(self, level: str, **query: str) -> list[dict[str, Any]]:
        """Find resources by tags."""
        body = json.dumps({"Level": level, "Query": query, "Expand": True}).encode()
        url = f"http://127.0.0.1:{self.http_port}/tools/find"
        return list(json.loads(self.net.fetch(url, "POST", body)))


@contextlib.contextmanager
def orthanc(net: Network, folder: Path, **more: Any) -> Iterator[Orthanc]:
    """Run an Orthanc server that is empty and forgets all when it ends; `more` configures it."""
    server = program("Orthanc", "orthanc")
    folder.mkdir(parents=True, exist_ok=True)
    peer = Orthanc(net, free_port(), free_port())
    settings = {
        "Name": "berdiff test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpPort": peer.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": peer.title,
        "DicomPort": peer.dicom_port,
        "DicomCheckCalledAet": True,
        "WebDavEnabled": False,
        "HttpDescribeErrors": True,
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))

    def ready() -> bool:
        url = f"http://127.0.0.1:{peer.http_port}/system"
        done = net.run(sys.executable, "-c", _FETCH, url, "GET")
        return done.returncode == 0 and _answers(net, peer.dicom_port, peer.title)

    with net.running(server, str(folder / "orthanc.json"), log=folder / "orthanc.log", ready=ready):
        yield peer
