"""Half precision on a machine without it: float32 arithmetic, every half value rounded to half.

ONNX Runtime on the CPU does not compute in half: of float16 graphs it drops the rounding between
operators, so that nothing overflows there, and bfloat16 graphs it cannot run. What an accelerator
will make of them is seen by rounding where the graph says so.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import GRAPHS, Bundle

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Their results are among their inputs: nothing to round.
_MOVERS = frozenset(("Concat", "Gather", "Pad", "Reshape", "Resize", "Slice", "Transpose"))


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a half-precision graph into one that ONNX Runtime's CPU kernels compute exactly.

    Weights keep their values. Every operator that computes in half takes float32 and has its
    result rounded to half, as one that accumulates in float32 does on an accelerator.

    Parameters
    ----------
    model : ModelProto
        A graph this project has exported: all its values have their types noted.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    weights = [_widened(tensor) for tensor in graph.initializer]
    nodes = [new for node in graph.node for new in _rewritten(node, types)]
    for field, content in ((graph.initializer, weights), (graph.node, nodes)):
        del field[:]
        field.extend(content)
    for value in graph.value_info:
        if value.type.tensor_type.elem_type in HALF_TYPES:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return result


def _rewritten(node: onnx.NodeProto, types: dict[str, int]) -> Iterator[onnx.NodeProto]:
    (output,) = node.output
    kind = types[output]
    if node.op_type == "Constant":
        yield _constant(node)
    elif kind not in HALF_TYPES:
        yield node  # a cast back to float32, or no business of ours
    elif node.op_type in _MOVERS:
        yield node
    elif node.op_type == "Cast":
        yield from _rounded(node.input[0], output, kind)
    else:
        wide = onnx.NodeProto()
        wide.CopyFrom(node)
        wide.output[0] = f"{output}_unrounded"
        yield wide
        yield from _rounded(wide.output[0], output, kind)


def _rounded(value: str, name: str, kind: int) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Cast", [value], [f"{name}_half"], to=kind)
    yield helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)


def _widened(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in HALF_TYPES:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _constant(node: onnx.NodeProto) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    for attribute in result.attribute:
        if attribute.name == "value":
            attribute.t.CopyFrom(_widened(attribute.t))
    return result


def open_emulated(bundle: Bundle, threads: int | None = None) -> Backend:
    """Open a half-precision bundle on ONNX Runtime's CPU, rounding as an accelerator would.

    For checking and measuring only: it is slower than float32.
    """
    manifest = dataclasses.replace(bundle.manifest, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        stand_in = Bundle(Path(folder), manifest, bundle.digest)
        (stand_in.path / GRAPHS[0]).parent.mkdir()
        for name in GRAPHS:
            onnx.save_model(emulated(onnx.load(bundle.file(name))), stand_in.file(name))
        return open_backend(stand_in, threads=threads)
