"""Engines of TensorRT for RTX, really built on the nodes of a real cluster, and gathered.

The nodes are raylets on this machine, with processes and object stores of their own; what they have
is made up.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fleet_nodes
import pytest
from ray_cluster import ray_cluster

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cluster import fleet
from berdiff.runtime.cluster.connection import Cluster
from berdiff.runtime.cluster.fleet import TargetResult, build_fleet
from berdiff.runtime.cluster.fleet_plan import Fleet, FleetTarget
from berdiff.runtime.engines.gpu import Gpu
from berdiff.runtime.engines.library import TENSORRT_RTX
from berdiff.runtime.engines.store import find_engine, stored_engines
from berdiff.runtime.engines.verification import read_verification
from berdiff.runtime.errors import BackendError, BerdiffError

trt = pytest.importorskip("tensorrt_rtx")
# Not imported here: Ray decides when it is loaded whether it uses tokens.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]

NODES: list[dict[str, Any]] = [
    {"num_cpus": 1, "resources": {"bench_a": 1}, "labels": {"board": "a"}},
    {"num_cpus": 1, "resources": {"bench_b": 1}, "labels": {"board": "b"}},
    {"num_cpus": 1, "resources": {"bench_c": 1}, "labels": {"board": "c"}},
]

Shipped = tuple[Bundle, dict[str, TargetResult], list[str]]


def rtx(name: str, target: str | None = None, **keys: Any) -> FleetTarget:
    return FleetTarget(name, "tensorrt-rtx", target, **keys)


SOUND = (
    rtx("ampere server", "sm_80", resources={"bench_a": 1}, library_version=trt.__version__),
    rtx("ampere", "sm_86", labels={"board": "b"}, library_version=trt.__version__),
    rtx("ada", "sm_89", resources={"bench_c": 0.5}, library_version=trt.__version__),
    rtx("blackwell", "sm_120", labels={"board": "in(a, c)"}),
)
BAD = (
    rtx("no such node", "sm_121", resources={"bench_z": 1}),
    FleetTarget("no such gpu", "tensorrt", "sm_90", gpu="H100"),
    rtx("cannot be built", "sm_75", labels={"board": "a"}),
    rtx("other version", "sm_121", library_version="0.9"),
    rtx("other precision", "sm_121", precision="fp16"),
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, Any]]:
    with ray_cluster(NODES) as found:
        yield found


@pytest.fixture(scope="module")
def cluster(nodes: tuple[str, Any]) -> Iterator[Cluster]:
    with Cluster.open(nodes[0]) as connected:
        yield connected


@pytest.fixture(scope="module")
def boards(cluster: Cluster) -> dict[str, str]:
    """Ray's identities of the nodes, by their label."""
    return {node.labels["board"]: node.id for node in cluster.nodes() if "board" in node.labels}


@pytest.fixture(scope="module")
def shipped(
    tiny_bundle: Bundle, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Shipped:
    """A bundle with what could be built, what came of each target, and in what order."""
    folder = tmp_path_factory.mktemp("shipped") / "bundle"
    bundle = Bundle.open(Path(shutil.copytree(tiny_bundle.path, folder)))
    order: list[str] = []
    results = build_fleet(
        bundle, Fleet(SOUND + BAD), cluster.address, done=lambda result: order.append(result.name)
    )
    assert [result.name for result in results] == [target.name for target in SOUND + BAD]
    return bundle, {result.name: result for result in results}, order


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    return Bundle.open(Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle")))


def times(bundle: Bundle) -> dict[Path, int]:
    files = (bundle.path / "engines").rglob("*")
    return {file: file.stat().st_mtime_ns for file in files}


# --- built ---------------------------------------------------------------------------------


def test_each_engine_is_built_where_it_should_be(shipped: Shipped, boards: dict[str, str]) -> None:
    _, results, _ = shipped
    for target in SOUND:
        result = results[target.name]
        assert (result.status, result.reason) == ("built", "")
        assert result.seconds > 0
        assert result.host
    assert results["ampere server"].node == boards["a"]
    assert results["ampere"].node == boards["b"]
    assert results["ada"].node == boards["c"]
    assert results["blackwell"].node in (boards["a"], boards["c"])


def test_the_engines_are_whole_and_say_what_they_are(shipped: Shipped, tiny_bundle: Bundle) -> None:
    bundle, results, _ = shipped
    assert Bundle.open(bundle.path).digest == tiny_bundle.digest
    stored = {engine.sidecar.target: engine for engine in stored_engines(bundle)}
    assert sorted(stored) == sorted(target.target or "" for target in SOUND)
    for target in SOUND:
        engine = stored[target.target or ""]
        engine.check()
        assert engine.sidecar.key == results[target.name].key
        assert read_verification(engine).reason == "built without a GPU"
        assert results[target.name].verified == "not verified: built without a GPU"


def test_every_gpu_finds_its_own(
    shipped: Shipped,
) -> None:
    bundle, _, _ = shipped
    for capability in ((8, 0), (8, 6), (8, 9), (12, 0)):
        gpu = Gpu("any", capability)
        assert find_engine(bundle, TENSORRT_RTX, gpu).sidecar.target == gpu.architecture
    with pytest.raises(BackendError, match="holds no tensorrt-rtx engine for any"):
        find_engine(bundle, TENSORRT_RTX, Gpu("any", (12, 1)))


def test_failures_are_told_and_stop_nothing(shipped: Shipped, boards: dict[str, str]) -> None:
    _, results, order = shipped
    assert all(results[target.name].status == "failed" for target in BAD)
    said = {target.name: results[target.name].reason for target in BAD}
    assert "no node of the cluster had what it takes: " in said["no such node"]
    assert "resource bench_z: 1; there are: " in said["no such node"]
    assert "bench_c 1, board=c" in said["no such node"]
    assert "a GPU, accelerator type H100" in said["no such gpu"]
    assert "FP32 GEMM is not supported" in said["cannot be built"]
    assert results["cannot be built"].node == boards["a"]
    assert f"the node has tensorrt-rtx {trt.__version__}, expected 0.9" in said["other version"]
    assert "the bundle is in fp32, and fp16 was asked for" in said["other precision"]
    # What no node has is known before anything is built.
    assert set(order[:3]) == {"other precision", "no such node", "no such gpu"}


def test_a_second_call_builds_nothing(shipped: Shipped, cluster: Cluster) -> None:
    bundle, first, _ = shipped
    before = times(bundle)
    again = build_fleet(bundle, Fleet(SOUND), cluster.address)
    assert [result.status for result in again] == ["there"] * len(SOUND)
    assert [result.key for result in again] == [first[target.name].key for target in SOUND]
    assert times(bundle) == before


def test_keys_that_are_known_need_no_cluster(
    shipped: Shipped,
) -> None:
    bundle, _, _ = shipped
    here = Fleet(SOUND[:3])
    assert {result.status for result in build_fleet(bundle, here, "no cluster")} == {"there"}
    with pytest.raises(BerdiffError, match="got the cluster address 'no cluster'"):
        build_fleet(bundle, Fleet(SOUND), "no cluster")


def test_what_was_damaged_is_built_again(
    shipped: Shipped,
    bundle: Bundle,
    cluster: Cluster,
) -> None:
    shutil.copytree(shipped[0].path / "engines", bundle.path / "engines")
    before = times(bundle)
    damaged = bundle.path / "engines" / shipped[1]["ada"].key
    (damaged / "decoder.engine").write_bytes(b"damaged")
    results = build_fleet(bundle, Fleet(SOUND[:3]), cluster.address)
    assert [result.status for result in results] == ["there", "there", "built"]
    changed = {file for file, when in times(bundle).items() if when != before[file]}
    assert changed == {damaged, *damaged.iterdir()}
    assert find_engine(bundle, TENSORRT_RTX, Gpu("any", (8, 9))).folder == damaged


# --- what goes wrong -----------------------------------------------------------------------


def test_what_goes_wrong_for_one_stops_no_other(
    shipped: Shipped, bundle: Bundle, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shipped[0].path / "engines", bundle.path / "engines")
    before = times(bundle)
    monkeypatch.setattr(fleet, "build_on_node", fleet_nodes.going_wrong)
    targets = (rtx("altered"), rtx("defect", "sm_121"), rtx("death", "sm_75"), SOUND[3])
    altered, defect, death, sound = build_fleet(bundle, Fleet(targets), cluster.address)
    assert altered.status == defect.status == death.status == "failed"
    assert "the decoder engine did not arrive as it was built" in altered.reason
    assert defect.reason == "ZeroDivisionError: a defect"
    assert "died unexpectedly" in death.reason or "crashed" in death.reason
    assert sound.status == "there"
    assert times(bundle) == before


@pytest.fixture
def losing(
    nodes: tuple[str, Any], bundle: Bundle, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[TargetResult, str]]]:
    """Build on nodes that come early or late; one is lost with the build; returns which."""
    monkeypatch.setattr(fleet, "build_on_node", fleet_nodes.stuck_at_first)
    marker = bundle.path.with_name(fleet_nodes.STARTED)
    target = rtx("spare", "sm_89", resources={"spare": 1})
    spare = []

    def add(count: int) -> None:
        spare.extend(nodes[1].add_node(num_cpus=1, resources={"spare": 1}) for _ in range(count))

    def build(early: int, late: int, wait: float) -> tuple[TargetResult, str]:
        add(early)
        with ThreadPoolExecutor(1) as pool:  # Ray starts nodes in the main thread only
            results = pool.submit(build_fleet, bundle, Fleet((target,)), cluster.address, wait=wait)
            add(late)
            while not marker.exists():
                assert not results.done(), results.result()
                time.sleep(0.1)
            lost = marker.read_text()
            (node,) = [node for node in spare if node.node_id == lost]
            spare.remove(node)
            nodes[1].remove_node(node, allow_graceful=False)
            (result,) = results.result()
            return result, lost

    yield build
    for node in spare:
        nodes[1].remove_node(node, allow_graceful=False)


def test_a_lost_node_costs_a_retry(losing: Callable[..., tuple[TargetResult, str]]) -> None:
    result, lost = losing(early=0, late=2, wait=60)
    assert (result.status, result.reason) == ("built", "")
    assert lost
    assert result.node != lost


def test_the_last_node_that_could_is_lost(
    losing: Callable[..., tuple[TargetResult, str]], bundle: Bundle
) -> None:
    result, _ = losing(early=1, late=0, wait=0)
    assert result.status == "failed"
    assert "no node of the cluster had what it takes: " in result.reason
    assert not (bundle.path / "engines").exists()
