"""INT8: a float32 graph with its convolutions between QuantizeLinear and DequantizeLinear nodes.

Explicit quantisation, in the one form that ONNX Runtime and NVIDIA's engines share: weights int8
with a scale for each output channel, inputs and results of convolutions int8 with a scale for each
tensor, all zero points 0. All else stays float32: group norms, SiLU, attention's products, and the
sums in which blocks pass their input on, where errors would pile up.

The ranges are measured by ONNX Runtime's calibrator. Its `quantize_static` is not used: it hands
the quantised value to every reader of a tensor, norms and sums included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from berdiff.runtime.backends.onnxruntime_session import load
from berdiff.runtime.errors import BerdiffError

Feed = dict[str, NDArray[Any]]
Constants = dict[str, TensorProto]

ACTIVATION_MAX = 127
# x86 processors without VNNI add two products of an activation, up to 255 there, and a weight in
# 16 bits, and clip what does not fit. With weights up to 64 it always fits.
WEIGHT_MAX = 64
# ONNX Runtime makes biases int32, in units of the input's scale times the weight's.
_BIAS_MAX = 2**30


def quantize_graph(source: Path, target: Path, feeds: Iterable[Feed]) -> None:
    """Write a float32 graph with all convolutions but the first and the last in int8.

    Parameters
    ----------
    source : Path
        ONNX file in float32.
    target : Path
        File to write.
    feeds : iterable of dict
        Inputs by name, on which the ranges of the activations are measured.

    Raises
    ------
    BerdiffError
        If there are no feeds, or they drive an activation to infinity.
    """
    model = onnx.load(str(source))
    graph = model.graph
    chosen = {node.name for node in [n for n in graph.node if n.op_type == "Conv"][1:-1]}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    _replace(graph, constants, list(_with_biases_apart(graph, constants, chosen)))
    ranges = _measure(model, feeds)
    _replace(graph, constants, list(_Int8(constants, ranges).nodes(graph, chosen)))
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(target))


def _replace(graph: GraphProto, constants: Constants, nodes: list[NodeProto]) -> None:
    """Give a graph other nodes, and those of the constants that they use."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in constants.items() if name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _constant(constants: Constants, name: str, values: NDArray[Any]) -> str:
    constants[name] = numpy_helper.from_array(values, name)
    return name


def _with_biases_apart(
    graph: GraphProto, constants: Constants, chosen: set[str]
) -> Iterator[NodeProto]:
    """Add the bias after a convolution, not in it, unless a sum is its result's only reader.

    ONNX Runtime convolves in int8 where one operator reads the dequantised result, and it moves
    quantisation past reshapes and slices, which costs time. The sum with the bias is that one
    operator, and nothing is moved past it.
    """
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for node in graph.node:
        yield node
        result = node.output[0]
        if node.name in chosen and len(node.input) > 2 and readers[result] != ["Add"]:
            bias = numpy_helper.to_array(constants[node.input.pop()])
            rank = len(constants[node.input[1]].dims)
            column = _constant(constants, f"{result}/bias", bias.reshape(-1, *[1] * (rank - 2)))
            node.output[0] = f"{result}/unbiased"
            yield _node("Add", [node.output[0], column], result)


def _measure(model: ModelProto, feeds: Iterable[Feed]) -> dict[str, float]:
    """Largest magnitude of each convolution's input and result over all feeds."""
    quantization = load("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float32.onnx")
        onnx.save_model(model, str(path))
        calibrator = quantization.create_calibrator(
            path,
            op_types_to_calibrate=["Conv"],
            augmented_model_path=str(Path(folder, "measured.onnx")),
            calibrate_method=quantization.CalibrationMethod.MinMax,
            extra_options={"symmetric": True},
        )
        reader = _Reader(feeds)
        if reader.next is None:
            raise BerdiffError("int8 needs inputs to measure the networks' ranges on, got none")
        calibrator.collect_data(reader)
        found = calibrator.compute_data()
    ranges = {name: float(np.max(found[name].range_value)) for name in found}
    for name, largest in ranges.items():
        if not np.isfinite(largest):
            raise BerdiffError(
                f"in the {model.graph.name}, {name} reaches {largest} on healthy images: "
                "such a network cannot be quantised"
            )
    return ranges


class _Reader:
    """Feeds as the calibrator takes them: one by one, then None."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)
        self.next = next(self._feeds, None)

    def get_next(self) -> Feed | None:
        """Return the next feed, None after the last."""
        feed, self.next = self.next, next(self._feeds, None)
        return feed


class _Int8:
    """Nodes and constants of int8.

    Parameters
    ----------
    constants : dict of str to TensorProto
        The graph's; what the nodes need is added to them.
    ranges : dict of str to float
        Largest magnitude of activations.
    """

    def __init__(self, constants: Constants, ranges: dict[str, float]) -> None:
        self._constants = constants
        self._ranges = ranges
        self._zero = _constant(constants, "int8/zero", np.zeros((), np.int8))

    def nodes(self, graph: GraphProto, chosen: set[str]) -> Iterator[NodeProto]:
        """Go through a graph; quantise and dequantise before and after the chosen nodes."""
        for node in graph.node:
            if node.name in chosen:
                yield from self._convolution(node)
            else:
                yield node

    def _convolution(self, node: NodeProto) -> Iterator[NodeProto]:
        name, source, result = node.name, node.input[0], node.output[0]
        weight = self._weight(node)
        node.input[0], node.input[1] = f"{name}/input", f"{name}/weight"
        node.output[0] = f"{name}/result"
        yield from self._rounded(source, node.input[0], self._step(source))
        yield weight
        yield node
        yield from self._rounded(node.output[0], result, self._step(result))

    def _step(self, name: str) -> float:
        # What is 0 throughout stays so at any scale.
        return (self._ranges[name] or 1.0) / ACTIVATION_MAX

    def _rounded(self, source: str, target: str, step: float) -> Iterator[NodeProto]:
        scale = _constant(self._constants, f"{target}/scale", np.array(step, np.float32))
        small = f"{target}/int8"
        yield _node("QuantizeLinear", [source, scale, self._zero], small)
        yield _node("DequantizeLinear", [small, scale, self._zero], target)

    def _weight(self, node: NodeProto) -> NodeProto:
        """Replace a convolution's weight by int8 with a scale for each output channel."""
        values = numpy_helper.to_array(self._constants[node.input[1]])
        channels = len(values)
        steps = np.abs(values).reshape(channels, -1).max(axis=1) / WEIGHT_MAX
        if len(node.input) > 2:
            bias = np.abs(numpy_helper.to_array(self._constants[node.input[2]]))
            steps = np.maximum(steps, bias / (self._step(node.input[0]) * _BIAS_MAX))
        steps = np.where(steps > 0, steps, 1).astype(np.float32)
        small = np.rint(values / steps.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
        name = f"{node.name}/weight"
        inputs = [
            _constant(self._constants, f"{name}/int8", small),
            _constant(self._constants, f"{name}/scale", steps),
            _constant(self._constants, f"int8/zeros{channels}", np.zeros(channels, np.int8)),
        ]
        return _node("DequantizeLinear", inputs, name, axis=0)


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [output], output, **attributes)
