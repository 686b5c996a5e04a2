"""An MRD server under load: is everything answered, does memory stay, how long does it take.

    python benchmarks/serve_mrd.py BUNDLE
    python benchmarks/serve_mrd.py BUNDLE --minutes 10 --clients 4 -o figures.json

Starts ``berdiff serve mrd`` with a bundle of one channel, and clients that each send a volume and
wait for its answer before they send the next; every eighth is cut off in the middle, and every
eighth sends noise. Ends with an error if a sound session has not led to all of its images, or if
the same volume has not always given the same maps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from berdiff.runtime.bundle import Bundle

PATIENCE = 300.0  # seconds for the answer of one session
VOLUMES = 8  # different ones
_MIB = 2**20


def made_volume(bundle: Bundle, number: int, slices: int) -> bytes:
    """A whole session: a disc with a spot, where the model's field of view is."""
    pre = bundle.manifest.preprocessing
    (rows, columns), size = pre.size, pre.spacing or 1.0
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:rows, :columns] / np.array([rows, columns])[:, None, None]
    head = np.hypot(x - 0.5, y - 0.5) < 0.35
    spot = np.hypot(x - 0.5 - 0.2 * rng.random(), y - 0.5) < 0.08
    header = b"Dummy XML header\0"
    data = struct.pack("<H1024sHI", 1, b"berdiff", 3, len(header)) + header
    for index in range(slices):
        values = head * 300 + spot * 200 + rng.integers(0, 30, head.shape) * head
        image = ismrmrd.Image.from_array(
            values.astype(np.uint16),
            image_type=ismrmrd.IMTYPE_MAGNITUDE,
            image_series_index=1,
            slice=index,
            field_of_view=(columns * size, rows * size, 2.0),
            position=(0.0, 0.0, 2.0 * index),
            read_dir=(1.0, 0.0, 0.0),
            phase_dir=(0.0, 1.0, 0.0),
            slice_dir=(0.0, 0.0, 1.0),
        )
        data += struct.pack("<H", 1022) + image.to_bytes()
    return data + struct.pack("<H", 4)


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service as users start it."""
    command = [sys.executable, "-m", "berdiff.cli", "serve", "mrd", "-m", str(arguments.bundle)]
    command += ["--port", "0", "--max-clients", str(4 * arguments.clients), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        for line in process.stderr:
            if line.startswith("listening on"):
                break
        else:
            raise SystemExit("the server did not start")
        port = int(line.rsplit(":", 1)[1])
        log = threading.Thread(target=process.stderr.read)  # or its pipe would fill up
        log.start()
        yield process, port
        process.send_signal(signal.SIGTERM)
        if process.wait(PATIENCE):
            raise SystemExit(f"the server ended with {process.returncode}")
        log.join()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


class Load:
    """What clients have sent and got."""

    def __init__(self, sessions: Sequence[bytes], port: int, slices: int) -> None:
        self.sessions, self.port, self.slices = sessions, port, slices
        self.seconds: list[float] = []
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self._maps: dict[int, str] = {}
        self._lock = threading.Lock()

    def client(self, number: int, end: float) -> None:
        """Send one session after the other until the time is over."""
        chance = random.Random(number)
        while time.monotonic() < end:
            kind = chance.choices(("sound", "cut off", "noise"), (6, 1, 1))[0]
            which = chance.randrange(len(self.sessions))
            data = self.sessions[which]
            if kind == "cut off":
                data = data[: chance.randrange(1, len(data) - 2)]
            elif kind == "noise":
                data = chance.randbytes(chance.randrange(1, 5000))
            try:
                self._session(kind, which, data)
            except Exception as error:
                with self._lock:
                    self.lost.append(f"{kind}: {type(error).__name__}: {error}")

    def _session(self, kind: str, which: int, data: bytes) -> None:
        start = time.perf_counter()
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as peer:
            if kind != "sound":
                try:
                    peer.sendall(data)
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(2**16):
                        pass
                except ConnectionError:
                    pass  # hung up on, as it should be
                got, digest = 0, ""
            else:
                peer.sendall(data)
                got, digest = self._answer(peer)
        with self._lock:
            self.counts[kind] += 1
            if kind == "sound":
                self.seconds.append(time.perf_counter() - start)
                if got != 2 * self.slices or self._maps.setdefault(which, digest) != digest:
                    self.lost.append(f"volume {which}: {got} images, or other maps than before")

    @staticmethod
    def _answer(peer: socket.socket) -> tuple[int, str]:
        stream = peer.makefile("rb")
        count, digest = 0, hashlib.sha256()
        while (number := struct.unpack("<H", stream.read(2))[0]) != 4:
            if number == 5:
                text = stream.read(struct.unpack("<I", stream.read(4))[0])
                if text.startswith(b"ERROR"):
                    raise RuntimeError(text.decode())
            else:
                image = ismrmrd.Image.deserialize_from(stream.read)
                digest.update(image.data.tobytes())
                count += 1
        return count, digest.hexdigest()


def resident(process: int) -> float:
    """MiB of a process that are in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    bundle = Bundle.open(arguments.bundle)
    sessions = [made_volume(bundle, number, arguments.slices) for number in range(VOLUMES)]
    with server(arguments) as (process, port):
        load = Load(sessions, port, arguments.slices)
        start = time.monotonic()
        end = start + 60 * arguments.minutes
        clients = [
            threading.Thread(target=load.client, args=(number, end))
            for number in range(arguments.clients)
        ]
        memory = [(0.0, resident(process.pid))]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            time.sleep(min(5.0, 3 * arguments.minutes))
            memory.append((round(time.monotonic() - start, 1), round(resident(process.pid), 1)))
    return {
        "clients": arguments.clients,
        "slices": arguments.slices,
        "minutes": round((time.monotonic() - start) / 60, 2),
        "sessions": dict(load.counts),
        "lost": load.lost,
        "seconds": sorted(round(value, 4) for value in load.seconds),
        "memory_mib": memory,
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(measured: dict[str, Any]) -> str:
    seconds, memory = measured["seconds"], [mib for _, mib in measured["memory_mib"]]
    # What the first sessions take is taken once; after a quarter of the time it should stay.
    settled = memory[len(memory) // 4 :]
    half = len(settled) // 2
    means = [statistics.mean(part) for part in (settled[:half] or settled, settled[half:])]
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(measured["sessions"].items()))
    rows = [
        ("sessions", counted),
        ("lost", str(len(measured["lost"]))),
        ("latency p50 / p95 / p99 / max, s", " / ".join(
            f"{value:.2f}"
            for value in (*(percentile(seconds, p) for p in (0.5, 0.95, 0.99)), seconds[-1])
        )),
        ("resident at the start / highest, MiB", f"{memory[0]:.0f} / {max(memory):.0f}"),
        ("resident, mean of 2nd and of 3rd part, MiB", f"{means[0]:.0f} / {means[1]:.0f}"),
    ]  # fmt: skip
    title = (
        f"{measured['clients']} clients, {measured['slices']} slices each, "
        f"{measured['minutes']:g} minutes"
    )
    return "\n".join([title, *(f"  {name:44}{value}" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    measured = measure(arguments)
    print(table(measured))
    if arguments.output:
        arguments.output.write_text(json.dumps(measured, indent=1) + "\n")
    if measured["lost"]:
        raise SystemExit("\n".join(measured["lost"][:20]))


if __name__ == "__main__":
    main()
