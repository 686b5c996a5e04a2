"""A DICOM node under load: is everything delivered, does memory stay, how long does it take.

    python benchmarks/serve_dicom.py BUNDLE
    python benchmarks/serve_dicom.py BUNDLE --minutes 10 --clients 4 -o figures.json

Starts ``berdiff serve dicom`` with a bundle of one channel, a peer that receives, and clients that
each send a series and wait for its results before they send the next. Ends with an error if a
series has not led to exactly one segmentation, map and summary.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config, evt

from berdiff.runtime.bundle import Bundle

MR = "1.2.840.10008.5.1.4.1.1.4"
RESULTS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.30": "pmap",
    "1.2.840.10008.5.1.4.1.1.7": "sc",
}
PATIENCE = 300.0  # seconds for the results of one series


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def made_series(bundle: Bundle, number: int, slices: int) -> list[Dataset]:
    """A disc with a spot, where the model's field of view is; no two series are alike."""
    pre = bundle.manifest.preprocessing
    rows, columns = pre.size
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:rows, :columns] / np.array([rows, columns])[:, None, None]
    head = np.hypot(x - 0.5, y - 0.5) < 0.35
    spot = np.hypot(x - 0.5 - 0.2 * rng.random(), y - 0.5) < 0.08
    made = []
    for index in range(slices):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MR
        uid = f"1.2.826.0.1.3680043.10.999.{number}"
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{uid}.3.{index}"
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.StudyInstanceUID, data.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
        data.FrameOfReferenceUID, data.Modality = f"{uid}.4", "MR"
        data.PatientName, data.PatientID, data.StudyID = "Load^Test", str(number), "1"
        data.PatientBirthDate = data.PatientSex = data.AccessionNumber = ""
        data.StudyDate, data.StudyTime, data.ReferringPhysicianName = "20250101", "120000", ""
        data.SeriesNumber, data.InstanceNumber = 1, index + 1
        data.SeriesDescription, data.BodyPartExamined = pre.modalities[0], "HEAD"
        data.ImagePositionPatient = [0, 0, 2 * index]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [pre.spacing or 1.0] * 2, 2
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation, data.Rows, data.Columns = 0, rows, columns
        pixels = head * (400 + 200 * spot + rng.integers(0, 60, (rows, columns)))
        data.PixelData = pixels.astype("<u2").tobytes()
        made.append(data)
    return made


class Receiver:
    """Counts what comes, by study, and says when a study has all of its results."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.times: dict[str, float] = {}
        self._changed = threading.Condition()
        entity = AE(ae_title="PEER")
        for uid in RESULTS:
            entity.add_supported_context(uid)
        self._server: Any = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.port = int(self._server.server_address[1])

    def _store(self, event: Any) -> int:
        data = event.dataset
        with self._changed:
            counts = self.counts[str(data.StudyInstanceUID)]
            counts[RESULTS[str(data.SOPClassUID)]] += 1
            if len(counts) == len(RESULTS):
                self.times.setdefault(str(data.StudyInstanceUID), time.monotonic())
                self._changed.notify_all()
        return 0

    def wait(self, study: str) -> float | None:
        """When a study had all of its results; None if that never was."""
        with self._changed:
            self._changed.wait_for(lambda: study in self.times, PATIENCE)
            return self.times.get(study)

    def close(self) -> None:
        self._server.shutdown()


class Load:
    """Clients that send series until the time is over."""

    def __init__(self, bundle: Bundle, port: int, receiver: Receiver, slices: int) -> None:
        self.bundle, self.port, self.receiver, self.slices = bundle, port, receiver, slices
        self.lock = threading.Lock()
        self.sent: list[str] = []
        self.refused = 0
        self.store_s: list[float] = []
        self.turnaround_s: list[float] = []
        self._number = 0

    def run(self, clients: int, end: float) -> None:
        threads = [threading.Thread(target=self._client, args=(end,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, end: float) -> None:
        entity = AE(ae_title="SCANNER")
        entity.add_requested_context(MR)
        while time.monotonic() < end:
            with self.lock:
                self._number += 1
                number = self._number
            datasets = made_series(self.bundle, number, self.slices)
            association = entity.associate("127.0.0.1", self.port, ae_title="BERDIFF")
            times = []
            for data in datasets:
                start = time.monotonic()
                status = association.send_c_store(data)
                times.append(time.monotonic() - start)
                self.refused += getattr(status, "Status", 1) != 0
            association.release()
            released = time.monotonic()
            done = self.receiver.wait(str(datasets[0].StudyInstanceUID))
            with self.lock:
                self.sent.append(str(datasets[0].StudyInstanceUID))
                self.store_s += times
                if done is not None:
                    self.turnaround_s.append(max(0.0, done - released))


@contextlib.contextmanager
def served(bundle: Path, folder: Path, destination: int, words: Sequence[str]) -> Iterator[Any]:
    """Run the node; yields its process, its port and its metrics' address."""
    port, health = free_port(), free_port()
    config = {
        "listen": {"title": "BERDIFF", "callers": ["SCANNER"], "port": port},
        "series": {"minimum_slices": 2, "settle_seconds": 0.0},
        "spool": {"folder": "spool", "minimum_free_mib": 100},
        "destinations": [
            {"name": "peer", "host": "127.0.0.1", "port": destination, "title": "PEER"}
        ],
        "health_port": health,
    }
    (folder / "node.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "berdiff.cli", "serve", "dicom", "-m", str(bundle)]
    command += ["--config", str(folder / "node.yaml"), *words]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        address = f"http://127.0.0.1:{health}"
        while process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/ready", timeout=10)
                break
            time.sleep(0.2)
        if process.poll() is not None:
            raise SystemExit((folder / "log").read_text())
        yield process, port
    finally:
        process.terminate()
        process.wait(60)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, in milliseconds."""
    ordered = np.sort(np.asarray(seconds)) * 1000
    names = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(ordered, at)), 1) for name, at in names.items()}


def growth(memory: Sequence[float]) -> tuple[float, float]:
    """Median memory of the second tenth, when all is warm, and of the last."""
    tenth = max(1, len(memory) // 10)
    return statistics.median(memory[tenth : 2 * tenth] or memory), statistics.median(
        memory[-tenth:]
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    bundle, receiver, memory = Bundle.open(options.bundle), Receiver(), []
    words = ["--steps", str(options.steps)] if options.steps else []
    with tempfile.TemporaryDirectory() as name:
        with served(options.bundle, Path(name), receiver.port, words) as (process, port):
            load, over = Load(bundle, port, receiver, options.slices), threading.Event()

            def watch() -> None:
                while not over.wait(0.5):
                    memory.append(resident_mib(process.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            start = time.monotonic()
            load.run(options.clients, start + 60 * options.minutes)
            seconds = time.monotonic() - start
            over.set()
            watcher.join()
        ended = process.returncode
    receiver.close()
    once = dict.fromkeys(RESULTS.values(), 1)
    early, late = growth(memory)
    return {
        "seconds": round(seconds, 1),
        "clients": options.clients,
        "slices": options.slices,
        "series": len(load.sent),
        "refused": load.refused,
        "without_results": sum(study not in receiver.times for study in load.sent),
        "not_exactly_once": sum(receiver.counts[study] != once for study in load.sent),
        "store_ms": percentiles(load.store_s),
        "release_to_delivered_ms": percentiles(load.turnaround_s),
        "resident_mib": {"early": round(early, 1), "late": round(late, 1)},
        "exit_status": ended,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="of one channel")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--slices", type=int, default=10, help="of a series")
    parser.add_argument("--steps", type=int, help="of the loop; default: the bundle's")
    parser.add_argument("-o", "--output", type=Path, help="also write the figures as JSON")
    options = parser.parse_args()
    _config.LOG_HANDLER_LEVEL = "none"
    figures = measure(options)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    bad = ("refused", "without_results", "not_exactly_once", "exit_status")
    if any(figures[key] for key in bad):
        raise SystemExit("something was lost, refused or repeated")


if __name__ == "__main__":
    main()
