"""Folder runs on a real Ray cluster of several nodes: same bytes, nothing lost, nothing twice."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fakes import FakeEverywhere, fake_detector
from PIL import Image
from ray_cluster import SETTINGS, ray_cluster

from berdiff.runtime.cluster.cluster_run import ClusterOptions, run_on_cluster
from berdiff.runtime.cluster.connection import Cluster
from berdiff.runtime.cluster.crew import Need
from berdiff.runtime.cluster.tally import Tally
from berdiff.runtime.errors import BackendError, BerdiffError, InputError
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.run_plan import RunOptions

PICTURES, VOLUMES = 21, 3
SCANS = PICTURES + VOLUMES


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, Any]]:
    with ray_cluster([{"num_cpus": 2}, {"num_cpus": 2, "num_gpus": 1}]) as found:  # it says
        yield found


@pytest.fixture(scope="module")
def cluster(nodes: tuple[str, Any]) -> Iterator[Cluster]:
    with Cluster.open(nodes[0]) as connected:
        yield connected


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and volumes, one of them in another orientation."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(PICTURES):
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(1, 256, (30, 36), np.uint8)).save(folder / f"{seed:02}.png")
    for seed, axes in enumerate([(2, 2, 3), (-2, 2, 3), (2, -2, 3)]):
        rng = np.random.default_rng(100 + seed)
        data = rng.integers(1, 256, (36, 30, 5)).astype(np.int16)
        nib.save(nib.Nifti1Image(data, np.diag([*axes, 1])), folder / f"volume{seed}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def alone(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the scans."""
    out = tmp_path_factory.mktemp("alone") / "out"
    run_folder(fake_detector(), scans, out)
    return out


def files(out: Path) -> dict[str, bytes]:
    """Every result for a scan."""
    parts = ("maps", "overlays", "volumes", "bids")
    found = (path for part in parts for path in sorted((out / part).rglob("*")))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found if path.is_file()}


def table(out: Path) -> list[dict[str, str]]:
    """Rows of results.csv but for the time they took."""
    with open(out / "results.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        del row["seconds"]
    return rows


def journal(out: Path) -> list[str]:
    """Keys of the scans in the journal, in its order."""
    lines = (out / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["result"]["input"] for line in lines]


def assert_same(out: Path, alone: Path) -> None:
    """The results are those of one process, and each scan was finished once."""
    assert files(out) == files(alone)
    assert table(out) == table(alone)
    assert (out / "slices.csv").read_bytes() == (alone / "slices.csv").read_bytes()
    assert (out / "components.csv").read_bytes() == (alone / "components.csv").read_bytes()
    assert sorted(journal(out)) == sorted(journal(alone))
    assert not list(out.rglob(".part-*"))


def bright(path: Path) -> None:
    """Save a picture that is brighter than noise can be."""
    stored = np.full((30, 36), 255, np.uint8)
    stored[:, :9] = 1
    Image.fromarray(stored).save(path)


def workers() -> list[int]:
    """Processes of workers of this test's cluster: no other has its token."""
    found, token = [], SETTINGS["RAY_AUTH_TOKEN"].encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            own = token in (folder / "environ").read_bytes()
        except OSError:
            continue
        if own and command.startswith(b"ray::Worker"):
            found.append(int(folder.name))
    return found


class Gate:
    """Keeps the networks from answering until so many workers are there."""

    def __init__(self, file: Path, detectors: int) -> None:
        self.file, self.detectors = file, detectors
        self.close()

    def close(self) -> None:
        self.file.touch()

    def open(self) -> None:
        self.file.unlink(missing_ok=True)

    def __call__(self, now: Tally) -> None:
        if now.detectors >= self.detectors:
            self.open()

    def detector(self, **behaviour: float) -> FakeEverywhere:
        return FakeEverywhere(behaviour={"hold": str(self.file), **behaviour})


TWO = ClusterOptions(Need(0, 1), 2)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_bytes_do_not_depend_on_where_they_were_made(
    batch_size: int, cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    gate, seen = Gate(tmp_path / "gate", 4), []

    def look(now: Tally) -> None:
        gate(now)
        seen.append(now.done)

    options, where = RunOptions(batch_size=batch_size), ClusterOptions(Need(0, 1), 4, look)
    summary, tally = run_on_cluster(
        cluster, gate.detector(), scans, tmp_path / "out", options, where
    )
    assert_same(tmp_path / "out", alone)
    assert len(summary.ok) == SCANS
    assert seen == sorted(seen)
    assert seen[-1] == SCANS
    assert len(tally.nodes) == 2
    assert sum(node.scans for node in tally.nodes.values()) == SCANS
    assert all(node.scans > 0 and 0 < node.utilisation <= 1 for node in tally.nodes.values())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["counts"]["slices"] == PICTURES + 5 * VOLUMES
    assert record["cluster"]["lost_workers"] == 0
    assert {node["scans"] for node in record["cluster"]["nodes"]} == {
        node.scans for node in tally.nodes.values()
    }


def test_either_way_of_running_continues_the_other(
    cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    def stop(done: int, *_: int) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    out, go_on = tmp_path / "out", RunOptions(resume=True)
    with pytest.raises(KeyboardInterrupt):
        run_folder(fake_detector(delay=0.05), scans, out, RunOptions(batch_size=1), stop)
    before = len(journal(out))
    assert 5 <= before < SCANS
    summary, tally = run_on_cluster(cluster, FakeEverywhere(), scans, out, go_on, TWO)
    assert summary.reused == before
    assert sum(node.scans for node in tally.nodes.values()) == SCANS - before
    assert_same(out, alone)
    assert run_folder(fake_detector(), scans, out, go_on).reused == SCANS
    assert_same(out, alone)


def test_killed_workers_cost_a_retry_and_no_result(
    cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    gate, killed = Gate(tmp_path / "gate", 4), []

    def kill(now: Tally) -> None:
        """Kill two that have begun; those that come after them may have a scan alone."""
        if now.detectors == 4 and not killed:
            killed.extend(workers()[:2])
            for victim in killed:
                os.kill(victim, signal.SIGKILL)
        elif now.lost_workers == 2:
            gate.open()

    where = ClusterOptions(Need(0, 1), 4, kill)
    detector = gate.detector(delay=0.1)
    summary, tally = run_on_cluster(
        cluster, detector, scans, tmp_path / "out", RunOptions(batch_size=2), where
    )
    assert_same(tmp_path / "out", alone)
    assert (tally.lost_workers, tally.lost_nodes, tally.quarantined) == (2, 0, [])
    assert tally.retried > 0
    assert len(summary.ok) == SCANS


def test_a_scan_that_kills_its_workers_is_set_aside(
    cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    source = tmp_path / "in"
    shutil.copytree(scans, source)
    bright(source / "05b.png")
    detector = FakeEverywhere(behaviour={"delay": 0.02, "deadly_above": 0.6})
    summary, tally = run_on_cluster(
        cluster, detector, source, tmp_path / "out", RunOptions(batch_size=4), TWO
    )
    assert tally.quarantined == ["05b.png"]
    assert tally.lost_workers == 2
    (failed,) = summary.failed
    assert (failed.input, failed.verdict) == ("05b.png", "")
    assert failed.reason.startswith("set aside: its worker died")
    assert files(tmp_path / "out") == files(alone)
    assert sorted(journal(tmp_path / "out")) == sorted(journal(alone))
    # It is tried again by the next run.
    again = RunOptions(resume=True)
    summary, _ = run_on_cluster(cluster, FakeEverywhere(), source, tmp_path / "out", again, TWO)
    assert (summary.reused, len(summary.ok)) == (SCANS, SCANS + 1)


def test_networks_that_fail(cluster: Cluster, scans: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        shutil.copy(scans / name, source)
    bright(source / "bright.png")
    one = FakeEverywhere(behaviour={"broken_above": 0.6})
    summary, tally = run_on_cluster(cluster, one, source, tmp_path / "one", None, TWO)
    assert [result.input for result in summary.failed] == ["bright.png"]
    assert "the fake network is broken" in summary.failed[0].reason
    assert tally.lost_workers == 0
    everything = FakeEverywhere(behaviour={"broken_above": 0.0})
    with pytest.raises(BackendError, match="the fake network is broken"):
        run_on_cluster(cluster, everything, source, tmp_path / "all", None, TWO)


def test_a_node_that_goes_costs_a_retry_and_one_that_comes_gets_work(
    nodes: tuple[str, Any], cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    extra = nodes[1].add_node(num_cpus=2)
    nodes[1].wait_for_nodes()
    gate = Gate(tmp_path / "gate", 6)
    gone: list[str] = []
    came: list[Any] = []

    def change(now: Tally) -> None:
        """Take a node away while its workers are busy, and go on when another one has work."""
        if not gone:
            gate(now)
        if now.done >= 4 and not gone:
            gate.close()
            nodes[1].remove_node(extra, allow_graceful=False)
            gone.append(extra.node_id)
            came.append(nodes[1].add_node(num_cpus=1))
        elif came and came[0].node_id in now.nodes and now.lost_workers == 2:
            gate.open()

    where = ClusterOptions(Need(0, 1), None, change)
    detector = gate.detector(delay=0.3)
    try:
        summary, tally = run_on_cluster(
            cluster, detector, scans, tmp_path / "out", RunOptions(batch_size=1), where
        )
    finally:
        for node in came:
            nodes[1].remove_node(node)
    assert_same(tmp_path / "out", alone)
    assert len(summary.ok) == SCANS
    assert tally.lost_workers == tally.lost_nodes == 2
    assert tally.quarantined == []
    assert tally.nodes[gone[0]].detectors == 0
    assert tally.nodes[came[0].node_id].scans > 0


# `ray start` on the loopback interface, where it does not expect clusters.
JOIN = """
import ray._private.services as services
services.get_node_ip_address = lambda address=None: "127.0.0.1"
from ray.scripts.scripts import main
main()
"""


def may_mount() -> bool:
    """Whether this user may mount something where nobody else sees it."""
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def background(command: list[str], ready: Callable[[], bool]) -> Iterator[None]:
    """Run a command beside the block, which begins once it is ready.

    A busy machine may not start Ray's processes in the time Ray gives them: then once more.
    """
    for left in (2, 1, 0):
        child = subprocess.Popen(
            command,
            env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},  # may join others
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline and not ready():
            time.sleep(0.2)
        if child.poll() is None and ready():
            break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        assert left, "it did not start"
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@pytest.mark.skipif(not may_mount(), reason="may not mount file systems")
def test_a_node_without_the_files_is_sent_them_and_sends_results_back(
    nodes: tuple[str, Any], cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    """A node for which the folders of input and output are empty: a machine without the share."""
    out, study = tmp_path / "out", tmp_path / "study"
    out.mkdir()
    for subject in range(10):
        image = study / f"sub-{subject:02}" / "anat" / f"sub-{subject:02}_FLAIR.nii.gz"
        image.parent.mkdir(parents=True)
        shutil.copy(scans / f"volume{subject % VOLUMES}.nii.gz", image)
    described = {"Name": "study", "BIDSVersion": "1.9.0"}
    (study / "dataset_description.json").write_text(json.dumps(described))
    hidden = [str(scans), str(study), str(out)]
    hide = 'for f in "$1" "$2" "$3"; do mount -t tmpfs tmpfs "$f" || exit; done; shift 3; '
    start = [sys.executable, "-c", JOIN, "start", "--address", nodes[0], "--block"]
    start += ["--num-cpus", "1", "--resources", '{"far": 1}', "--node-ip-address", "127.0.0.1"]
    command = ["unshare", "-m", "sh", "-c", hide + 'exec "$@"', "sh", *hidden, *map(str, start)]
    with background(command, lambda: any("far" in node.resources for node in cluster.nodes())):
        (name,) = [node.id for node in cluster.nodes() if "far" in node.resources]
        gate = Gate(tmp_path / "gate", 5)
        where, options = ClusterOptions(Need(0, 1), 5, gate), RunOptions(batch_size=2)
        summary, tally = run_on_cluster(cluster, gate.detector(), scans, out, options, where)
        gate.close()
        bids = RunOptions(output_types=("bids",))
        _, of_study = run_on_cluster(cluster, gate.detector(), study, out / "study", bids, where)
    assert len(summary.ok) == SCANS
    assert tally.nodes[name].scans > 0
    assert of_study.nodes[name].scans > 0
    of_one = out / "study-alone"
    run_folder(fake_detector(), study, of_one, bids)
    assert_same(out / "study", of_one)
    assert files(out) == files(alone)
    assert table(out) == table(alone)


def test_prometheus_finds_what_workers_count(cluster: Cluster, scans: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(scans / "volume0.nii.gz", source)

    def counted() -> float:
        total = 0.0
        for node in (node for node in cluster.nodes() if "far" not in node.resources):
            with urllib.request.urlopen(f"http://{node.metrics}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            for line in text.splitlines():
                if line.startswith("ray_berdiff_slices_total{") and 'model="fake"' in line:
                    total += float(line.rsplit(" ", 1)[1])
        return total

    before = counted()
    seen: list[float] = []

    # Workers report every few seconds; they have to be there still.
    def look(now: Tally) -> None:
        seen.append(counted())

    shutil.copy(scans / "volume1.nii.gz", source)
    for number in range(6):
        shutil.copy(scans / f"{number:02}.png", source)
    slow = FakeEverywhere(behaviour={"delay": 1.2})
    options = ClusterOptions(Need(0, 1), 1, look)
    run_on_cluster(cluster, slow, source, tmp_path / "out", RunOptions(batch_size=1), options)
    assert max(seen) > before


def test_detectors_share_a_gpu_and_other_nodes_get_none(
    cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    options = ClusterOptions(Need(0.5, 0.5))
    slow = FakeEverywhere(behaviour={"delay": 0.05})
    _, tally = run_on_cluster(cluster, slow, scans, tmp_path / "out", None, options)
    assert_same(tmp_path / "out", alone)
    (node,) = tally.nodes.values()
    (gpu,) = [found for found in cluster.nodes() if found.resources.get("GPU")]
    assert node.id == gpu.id
    assert options.need.room(gpu) == 2


def test_what_is_refused(cluster: Cluster, scans: Path, tmp_path: Path):
    with pytest.raises(InputError, match="batch size must be 1 or more"):
        run_on_cluster(cluster, FakeEverywhere(), scans, tmp_path / "a", RunOptions(batch_size=0))
    greedy = ClusterOptions(Need(2, 1))
    with pytest.raises(BerdiffError, match=r"has 1 CPU cores and 2 GPU.*there are: .* 0 GPU"):
        run_on_cluster(cluster, FakeEverywhere(), scans, tmp_path / "b", None, greedy)
    assert not (tmp_path / "b").exists()
    with pytest.raises(BerdiffError, match="expected local, auto, HOST:PORT or ray://"):
        Cluster.open("http://somewhere")
    with pytest.raises(BerdiffError, match="connected to a Ray cluster already"):
        Cluster.open("local")
    with pytest.raises(BerdiffError, match="whose nodes have their own"):
        Cluster.open("auto", gpus=(0, 1))


def test_a_detector_that_opens_nowhere(cluster: Cluster, scans: Path, tmp_path: Path):
    @dataclasses.dataclass
    class Missing(FakeEverywhere):
        def share(self, cluster: object) -> Any:
            def fail() -> None:
                raise BackendError("no such device")

            return fail

    with pytest.raises(BerdiffError, match=r"no detector could be opened.*no such device"):
        run_on_cluster(cluster, Missing(), scans, tmp_path / "out", None, TWO)
    assert not (tmp_path / "out").exists()
