"""``berdiff serve dicom`` between real peers: dcmtk and Orthanc."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from dicom_nodes import SHAPE, series, wait_for
from dicom_peers import Network, Orthanc, free_port, network, orthanc, program
from dicom_results import complaints
from dicom_sources import save
from pydicom.dataset import Dataset

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.services.audit import check

SLICES = 5


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as opened:
        yield opened


@pytest.fixture(scope="module")
def pacs(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    script = Path(__file__).resolve().parents[2] / "examples" / "dicom" / "route.lua"
    folder = tmp_path_factory.mktemp("orthanc")
    with orthanc(net, folder, LuaScripts=[str(script)], StableAge=1) as peer:
        yield peer


@dataclass
class Served:
    """A node in the peers' network."""

    net: Network
    process: subprocess.Popen[bytes]
    port: int
    health_port: int
    log: Path

    def ready(self) -> bool:
        url = f"http://127.0.0.1:{self.health_port}/ready"
        code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=30)"
        return self.net.run(sys.executable, "-c", code).returncode == 0

    def send(self, folder: Path, calling: str = "SCANNER") -> subprocess.CompletedProcess[bytes]:
        storescu = program("storescu", "dcmtk")
        where = ("-aet", calling, "-aec", "BERDIFF", "127.0.0.1", str(self.port))
        return self.net.run(storescu, "-R", *where, "+sd", str(folder))


@contextlib.contextmanager
def served(
    net: Network, folder: Path, bundle: Path, destination: dict[str, Any]
) -> Iterator[Served]:
    """Run the command until the block ends."""
    config = {
        "listen": {"title": "BERDIFF", "callers": ["SCANNER", "ORTHANC"], "port": free_port()},
        "series": {"minimum_slices": SLICES, "settle_seconds": 0},
        "spool": {"folder": "spool", "minimum_free_mib": 1},
        "destinations": [{"name": "archive", "host": "127.0.0.1", **destination}],
        "health_port": free_port(),
    }
    folder.mkdir(exist_ok=True)
    (folder / "node.yaml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    words = ("serve", "dicom", "-m", str(bundle), "--config", str(folder / "node.yaml"))
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [*net.prefix, sys.executable, "-m", "berdiff.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    node = Served(net, process, config["listen"]["port"], config["health_port"], log)
    try:
        yield node
    finally:
        process.kill()
        process.wait()


def made(folder: Path, number: int) -> list[Dataset]:
    """Write a series that fits the tiny model."""
    datasets = series(number, slices=SLICES)
    columns, rows = SHAPE[0] - 8, SHAPE[1]
    for data in datasets:  # cut to the model's field of view
        data.PixelData = data.pixel_array[:, :columns].tobytes()
        data.Columns, data.Rows = columns, rows
    save(folder, *datasets)
    return datasets


def results(pacs: Orthanc, source: Dataset) -> dict[str, list[str]]:
    """Instances in Orthanc that belong to a study, by modality, without the source."""
    found: dict[str, list[str]] = {}
    for study in pacs.find("Study", StudyInstanceUID=str(source.StudyInstanceUID)):
        for name in study["Series"]:
            one = pacs.json(f"/series/{name}")
            if one["MainDicomTags"]["SeriesInstanceUID"] != source.SeriesInstanceUID:
                modality = one["MainDicomTags"]["Modality"]
                found[modality] = found.get(modality, []) + one["Instances"]
    return found


def complete(pacs: Orthanc, source: Dataset) -> bool:
    found = results(pacs, source)
    return {modality: len(found[modality]) for modality in found} == {"SEG": 1, "OT": 2}


def test_from_dcmtk_and_orthanc_back_to_orthanc(
    net: Network, pacs: Orthanc, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """Results of what dcmtk and Orthanc send are found by REST; a kill and a resend change none."""
    first, second = made(tmp_path / "a", 51), made(tmp_path / "b", 52)
    destination = {"port": pacs.dicom_port, "title": pacs.title}
    with served(net, tmp_path / "node", tiny_bundle.path, destination) as node:
        wait_for(node.ready, "the node")
        assert node.send(tmp_path / "a", calling="NOBODY").returncode != 0
        sent = node.send(tmp_path / "a")
        assert sent.returncode == 0, sent.stderr.decode()
        # Killed from outside, wherever it is just now; the sender has been told of success.
        node.process.kill()
        node.process.wait()
    with served(net, tmp_path / "node", tiny_bundle.path, destination) as node:
        wait_for(node.ready, "the node")
        wait_for(lambda: complete(pacs, first[0]), "the first results")

        # Orthanc routes what comes to rest by examples/dicom/route.lua.
        where = {"AET": "BERDIFF", "Host": "127.0.0.1", "Port": node.port}
        pacs.put("/modalities/berdiff", where)
        scanner = ("-aet", "SCANNER", "-aec", pacs.title, "127.0.0.1", str(pacs.dicom_port))
        storescu = program("storescu", "dcmtk")
        assert net.run(storescu, *scanner, "+sd", str(tmp_path / "b")).returncode == 0
        wait_for(lambda: complete(pacs, second[0]), "the second results")

        assert node.send(tmp_path / "a").returncode == 0  # once more: nothing new comes of it
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(60) == 0

    for modality, instances in results(pacs, first[0]).items():
        for number, instance in enumerate(instances):
            path = tmp_path / f"{modality}{number}.dcm"
            path.write_bytes(pacs.get(f"/instances/{instance}/file"))
            assert complaints(path) == []
            assert pydicom.dcmread(path).PatientName == first[0].PatientName
    with contextlib.closing(sqlite3.connect(tmp_path / "node/spool/spool.sqlite3")) as database:
        assert [row[0] for row in database.execute("SELECT state FROM jobs")] == ["done"] * 2
    said = node.log.read_text()
    assert "rejected an association of NOBODY" in said
    audit = tmp_path / "node/spool/audit.jsonl"
    check(audit)
    lines = [json.loads(line) for line in audit.open()]
    assert [line["event"] for line in lines][-1] == "stop"
    assert lines[0]["facts"]["bundle"] == tiny_bundle.digest
    for name in ("rgen", "P-17", "75Y", str(first[0].SeriesInstanceUID)):
        assert name not in said + audit.read_text()
    assert (os.stat(tmp_path / "node/spool").st_mode & 0o077) == 0


def test_an_altered_bundle_is_never_ready(
    net: Network, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    with open(bundle / "onnx" / "decoder.onnx", "ab") as stream:
        stream.write(b"x")
    with served(net, tmp_path / "node", bundle, {"port": 1, "title": "PEER"}) as node:
        assert node.process.wait(60) == 1
        assert "listens" not in node.log.read_text()
        assert "decoder.onnx" in node.log.read_text()


def test_a_wrong_file_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text("listen: {title: A, callers: [B], prot: 1}\n")
    words = ("serve", "dicom", "-m", "nothing", "--config", str(tmp_path / "node.yaml"))
    done = subprocess.run(
        [sys.executable, "-m", "berdiff.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "node.yaml: listen: unknown key 'prot'" in done.stderr
