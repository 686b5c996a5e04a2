"""NVIDIA's parser takes the exported graphs, and its builder builds them in their precision.

TensorRT for RTX needs no GPU for that. Every build is inspected by the code that builds: it fails
where a product is computed in another type than the ONNX file says, or the library warns of
something unsupported or of a fallback.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.build import build_engines
from berdiff.runtime.engines.inspection import TYPE_OF
from berdiff.runtime.engines.library import TENSORRT_RTX
from berdiff.runtime.engines.store import NETWORKS
from berdiff.runtime.precision import Precision

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize(
    "precision",
    ["fp32", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "bf16", "int8"))],
)
def test_engines_compute_in_the_bundles_precision(
    tiny_bundle_at: Callable[[Precision], Bundle], tmp_path: Path, precision: Precision
) -> None:
    source = tiny_bundle_at(precision)
    bundle = Bundle.open(Path(shutil.copytree(source.path, tmp_path / "bundle")))
    engine = build_engines(bundle, TENSORRT_RTX, target="sm_89").engine

    assert engine.sidecar.precision == precision
    for name in NETWORKS:
        network = engine.sidecar.networks[name]
        assert network.compute == Counter(product_types(bundle.file(f"onnx/{name}.onnx")))
        assert {*network.inputs.values(), *network.outputs.values()} <= {"float32", "int64"}
        assert network.warnings == ()
    denoiser = engine.sidecar.networks["denoiser"]
    assert 2 * denoiser.compute[TYPE_OF[precision]] > sum(denoiser.compute.values())


def product_types(file: Path) -> list[str]:
    """Types of the weights, or second operands, of a graph's convolutions and matrix products."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kinds[value.name] = value.type.tensor_type.elem_type
    maker = {name: node for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul"):
            source = node.input[1]
            if source in maker and maker[source].op_type == "DequantizeLinear":
                source = maker[source].input[0]
            found.append(onnx.TensorProto.DataType.Name(kinds[source]))
    names = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT8": "int8"}
    return [names[kind] for kind in found]
