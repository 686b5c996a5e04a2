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
from ray_cluster import ray_cluster

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
    with ray_cluster([{"num_cpus": 2}, {"num_cpus": 2}]) as found:
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
    """Processes of workers that run on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::Worker"):
            found.append(int(folder.name))
    return found


def four(progress: Callable[[Tally], None] | None = None) -> ClusterOptions:
    return ClusterOptions(Need(0, 1), 4, progress)


TWO = ClusterOptions(Need(0, 1), 2)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_bytes_do_not_depend_on_where_they_were_made(
    batch_size: int, cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    options = RunOptions(batch_size=batch_size)
    seen: list[int] = []
    summary, tally = run_on_cluster(
        cluster,
        FakeEverywhere(behaviour={"delay": 0.05}),
        scans,
        tmp_path / "out",
        options,
        four(lambda now: seen.append(now.done)),
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
    killed: list[int] = []

    def kill(now: Tally) -> None:
        if len(killed) < 2 and now.done > 3 * len(killed) and now.detectors == 4:
            victim = next(pid for pid in workers() if pid not in killed)
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    summary, tally = run_on_cluster(
        cluster,
        FakeEverywhere(behaviour={"delay": 0.1}),
        scans,
        tmp_path / "out",
        RunOptions(batch_size=2),
        four(kill),
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
    gone: list[str] = []
    came: list[Any] = []

    def change(now: Tally) -> None:
        if now.done >= 4 and len(now.nodes) == 3 and not gone:
            nodes[1].remove_node(extra, allow_graceful=False)
            gone.append(extra.node_id)
            came.append(nodes[1].add_node(num_cpus=1))

    try:
        summary, tally = run_on_cluster(
            cluster,
            FakeEverywhere(behaviour={"delay": 0.6}),
            scans,
            tmp_path / "out",
            RunOptions(batch_size=1),
            ClusterOptions(Need(0, 1), None, change),
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


@pytest.mark.skipif(not may_mount(), reason="may not mount file systems")
def test_a_node_without_the_files_is_sent_them_and_sends_results_back(
    nodes: tuple[str, Any], cluster: Cluster, scans: Path, alone: Path, tmp_path: Path
):
    """A node for which the folders of input and output are empty: a machine without the share."""
    out = tmp_path / "out"
    out.mkdir()
    script = 'mount -t tmpfs tmpfs "$1" && mount -t tmpfs tmpfs "$2" && shift 2 && exec "$@"'
    start = [sys.executable, "-c", JOIN, "start", "--address", nodes[0], "--block"]
    start += ["--num-cpus", "1", "--resources", '{"far": 1}', "--node-ip-address", "127.0.0.1"]
    far = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", str(scans), str(out), *map(str, start)],
        env={**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},  # may join others
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any("far" in node.resources for node in cluster.nodes()):
            assert far.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (name,) = [node.id for node in cluster.nodes() if "far" in node.resources]
        summary, tally = run_on_cluster(
            cluster,
            FakeEverywhere(behaviour={"delay": 0.1}),
            scans,
            out,
            RunOptions(batch_size=2),
            ClusterOptions(Need(0, 1), 5),
        )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(far.pid, signal.SIGKILL)
        far.wait()
    assert len(summary.ok) == SCANS
    assert tally.nodes[name].scans > 0
    assert_same(out, alone)


def test_prometheus_finds_what_workers_count(cluster: Cluster, scans: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(scans / "volume0.nii.gz", source)

    def counted() -> float:
        total = 0.0
        for node in cluster.nodes():
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


def test_what_is_refused(cluster: Cluster, scans: Path, tmp_path: Path):
    with pytest.raises(InputError, match="batch size must be 1 or more"):
        run_on_cluster(cluster, FakeEverywhere(), scans, tmp_path / "a", RunOptions(batch_size=0))
    greedy = ClusterOptions(Need(1, 1))
    with pytest.raises(BerdiffError, match=r"has 1 CPU cores and 1 GPU.*there are: .* 0 GPU"):
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
