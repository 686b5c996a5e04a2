"""What a node does for one target, up to the golden vectors.

The node is this process, its GPU the host, and the libraries are stand-ins whose engines are ONNX
files: see `stand_ins`. Real engines are built by nodes of their own in `test_fleet`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt as fake
import onnx
import pytest
import stand_ins
from onnx import numpy_helper

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.cluster import fleet_task
from berdiff.runtime.cluster.bundles import SharedBundle
from berdiff.runtime.cluster.fleet_plan import FleetTarget
from berdiff.runtime.cluster.fleet_task import Answer, Order, build_target
from berdiff.runtime.engines import build
from berdiff.runtime.engines.store import NETWORKS, NetworkEngine, Sidecar, onnx_digests
from berdiff.runtime.engines.verification import Verification
from berdiff.runtime.errors import BackendError
from berdiff.runtime.files import sha256_file
from berdiff.runtime.precision import FIGURES
from berdiff.runtime.strict import from_json

HOST = stand_ins.GPU  # sm_89


def altered(model: bytes) -> bytes:
    """The network with every weight a little larger: it runs, and computes something else."""
    graph = onnx.load_from_string(model)
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor) * 1.01
            tensor.CopyFrom(numpy_helper.from_array(array.astype("float32"), tensor.name))
    return bytes(graph.SerializeToString())


@pytest.fixture
def network_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[bytes], bytes]], None]:
    """Give this machine a GPU and libraries; returns what makes the engines of something else."""
    stand_ins.install(monkeypatch)
    for module in (build, fleet_task):
        monkeypatch.setattr(module, "gpu_here", lambda device: HOST)

    def use(change: Callable[[bytes], bytes]) -> None:
        def build_network(job: Any, network: str, folder: Path) -> NetworkEngine:
            model = change(job.bundle.file(f"onnx/{network}.onnx").read_bytes())
            facts = {"batches": job.options.dynamic_batch, "weights": 9, "scratch": 300}
            file = folder / f"{network}.engine"
            file.write_bytes(fake.engine_bytes(model, **facts))
            digest, size = onnx_digests(job.bundle)[network], file.stat().st_size
            count = {"float32": 3}
            return NetworkEngine(
                *(digest, sha256_file(file), size, {}, {}, count, {}, 1, 2, 3, (), 4.0)
            )

        monkeypatch.setattr(build, "build_network", build_network)

    use(lambda model: model)
    return use


@pytest.fixture
def order(tiny_bundle: Bundle, network_of: Any) -> Callable[..., Order]:
    """Make an order for this node, as `share` makes one on a single machine."""
    shared = SharedBundle(str(tiny_bundle.path), tiny_bundle.digest, "key", {})

    def make(have: frozenset[str] = frozenset(), **keys: Any) -> Order:
        return Order(FleetTarget("name", **keys), shared, have)

    return make


def answered(order: Order) -> tuple[Answer, Sidecar, Verification]:
    """What came of an order: all that a build sends, whole."""
    answer, *engines = build_target(order, "node")
    assert isinstance(answer, Answer)
    sidecar = from_json(Sidecar, json.loads(answer.sidecar), "sidecar")
    found = from_json(Verification, json.loads(answer.verification), "verification")
    assert answer.node == "node"
    assert answer.built
    assert answer.key == sidecar.key
    assert [len(engine) for engine in engines] == [sidecar.networks[n].size for n in NETWORKS]
    return answer, sidecar, found


def test_an_engine_of_tensorrt_is_verified_where_it_was_built(
    order: Callable[..., Order], tiny_bundle: Bundle
) -> None:
    answer, sidecar, found = answered(order(engine="tensorrt", target="sm_89"))
    assert sidecar.gpu == found.gpu == HOST
    assert [figure.name for figure in found.figures] == list(FIGURES)
    assert all(figure.value <= figure.limit for figure in found.figures)
    assert found.summary.startswith("verified on host (sm_89), 20")
    assert answer.seconds > 0
    assert not (tiny_bundle.path / "engines").exists()


@pytest.mark.parametrize("target", [None, "sm_89"])
def test_an_engine_of_rtx_is_verified_where_there_is_such_a_gpu(
    order: Callable[..., Order], target: str | None
) -> None:
    _, sidecar, found = answered(order(engine="tensorrt-rtx", target=target, gpu="L4"))
    assert sidecar.gpu is None
    assert found.gpu == HOST
    assert found.figures


def test_an_engine_for_another_gpu_is_not_verified(order: Callable[..., Order]) -> None:
    _, _, found = answered(order(engine="tensorrt-rtx", target="sm_120", gpu="L4"))
    assert found.gpu is None
    assert found.figures == ()
    said = "not verified: built for sm_120, and the node's GPU is host (sm_89)"
    assert found.summary == said


def test_without_a_gpu_nothing_is_claimed(order: Callable[..., Order]) -> None:
    _, _, found = answered(order(engine="tensorrt-rtx", target="sm_89"))
    assert found.summary == "not verified: built without a GPU"
    with pytest.raises(ValueError, match="or a reason"):
        dataclasses.replace(found, reason="")
    with pytest.raises(ValueError, match="or a reason"):
        dataclasses.replace(found, gpu=HOST)


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_that_computes_something_else_is_a_failure(
    order: Callable[..., Order], network_of: Any, library: str
) -> None:
    network_of(altered)
    with pytest.raises(BackendError, match=r"does not compute what .* denoiser_error .*\(limit"):
        build_target(order(engine=library, gpu="L4"), "node")


def test_what_is_there_is_not_built(order: Callable[..., Order], network_of: Any) -> None:
    key = answered(order(engine="tensorrt"))[0].key
    network_of(lambda model: pytest.fail("was built"))
    answer, *engines = build_target(order(frozenset([key]), engine="tensorrt"), "node")
    assert answer == Answer("node", key)
    assert engines == [b""] * 3


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"engine": "tensorrt", "target": "sm_90"},
            r"the node's GPU is host \(sm_89\), expected sm_90",
        ),
        (
            {"engine": "tensorrt", "library_version": "10.3.0"},
            r"the node has tensorrt 10\.16\.0, expected 10\.3\.0",
        ),
        (
            {"engine": "tensorrt-rtx", "library_version": "1.0"},
            r"the node has tensorrt-rtx 1\.7\.1, expected 1\.0",
        ),
    ],
)
def test_a_node_that_is_not_as_the_target_says(
    order: Callable[..., Order], network_of: Any, keys: dict[str, str], said: str
) -> None:
    network_of(lambda model: pytest.fail("was built"))
    with pytest.raises(BackendError, match=said):
        build_target(order(**keys), "node")


def test_a_node_with_another_release(order: Callable[..., Order]) -> None:
    other = dataclasses.replace(order(engine="tensorrt"), version="0.0.1")
    with pytest.raises(BackendError, match=r"the node has berdiff .*, expected 0\.0\.1"):
        build_target(other, "node")
