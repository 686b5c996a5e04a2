"""A PyTorch module as one self-contained ONNX file: dynamic batch, everything else fixed."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn

from berdiff import __version__
from berdiff.runtime.errors import BerdiffError

DEFAULT_OPSET = 20
# 18 is the first that PyTorch's exporter writes.
OPSETS = range(18, 24)

# Operators that NVIDIA's ONNX parsers accept (TensorRT 10.3 and later, TensorRT for RTX).
PORTABLE_OPERATORS = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "Conv", "Div", "Gather", "InstanceNormalization"),
        *("MatMul", "Mul", "Pad", "ReduceMean", "Reshape", "Resize", "Sigmoid", "Slice"),
        *("Softmax", "Sqrt", "Sub", "Transpose", "Unsqueeze"),
        # Where int8 begins and ends.
        *("DequantizeLinear", "QuantizeLinear"),
    )
)

# Values per group up to which InstanceNormalization is used, which engines know as one operation.
# ONNX Runtime sums it in one go: over 131072 values (256 x 256) its results are off by 5e-4.
_INSTANCE_NORM_LIMIT = 8192


def export_graph(
    module: nn.Module,
    inputs: dict[str, Tensor],
    output: str,
    path: Path,
    opset: int = DEFAULT_OPSET,
) -> None:
    """Write a module as ONNX, checked, with its weights inside.

    Parameters
    ----------
    module : Module
        Takes the inputs in order, returns one tensor.
    inputs : dict of str to Tensor
        Example inputs by name. Float inputs ``[N, C, H, W]`` get a dynamic batch N; all other
        dimensions are fixed to the example's. The example batch must be larger than 1.
    output : str
        Name of the output.
    path : Path
        File to write.
    opset : int
        ONNX operator set.

    Raises
    ------
    BerdiffError
        If the operator set is not supported, or the graph uses an operator outside
        `PORTABLE_OPERATORS`.
    """
    if opset not in OPSETS:
        raise BerdiffError(f"opset must lie between {OPSETS[0]} and {OPSETS[-1]}, got {opset}")
    batch = torch.export.Dim("N", min=1)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            dynamo=True,
            external_data=False,
            optimize=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} if t.ndim == 4 else None for t in inputs.values()),
            custom_translation_table={torch.ops.aten.group_norm.default: _group_norm},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _tidy(model, Path(path).stem)
    _check(model)
    onnx.save_model(model, str(path))


def _group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Group norm out of operators that every opset and parser knows, with all shapes constant."""
    channels, *plane = (int(length) for length in x.shape[1:])
    of_groups = _ints(0, num_groups, -1, plane[-1])
    of_input = _ints(0, channels, *plane)
    if channels // num_groups * math.prod(plane) <= _INSTANCE_NORM_LIMIT:
        ones = op.Constant(value_floats=[1.0] * num_groups)
        zeros = op.Constant(value_floats=[0.0] * num_groups)
        groups = op.Reshape(x, of_groups)
        normal = op.Reshape(op.InstanceNormalization(groups, ones, zeros, epsilon=eps), of_input)
    else:
        groups = op.Reshape(x, of_groups)
        centred = op.Sub(groups, _mean(groups))
        variance = _mean(op.Mul(centred, centred))
        deviation = op.Sqrt(op.Add(variance, op.Constant(value_floats=[eps])))
        normal = op.Reshape(op.Div(centred, deviation), of_input)
    per_channel = _ints(channels, *[1] * len(plane))
    return op.Add(op.Mul(normal, op.Reshape(weight, per_channel)), op.Reshape(bias, per_channel))


def _mean(groups: Any) -> Any:
    """Mean of each group ``[N, G, rows, columns]``, along columns first: short sums are exact."""
    return op.ReduceMean(op.ReduceMean(groups, _ints(3)), _ints(2))


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=values)


def _tidy(model: onnx.ModelProto, name: str) -> None:
    """Drop the exporter's notes (they hold paths of this machine) and repeated weights."""
    graph = model.graph
    graph.name = name
    model.producer_name, model.producer_version = "berdiff", __version__
    # The shapes of intermediate values stay: ONNX Runtime fuses more when it is told them.
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for item in (*graph.node, *values, graph, model):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    _share_weights(graph)


def _share_weights(graph: onnx.GraphProto) -> None:
    """Keep one of each set of equal initializers."""
    first: dict[tuple[Any, ...], str] = {}
    kept, renamed = [], {}
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key in first:
            renamed[tensor.name] = first[key]
        else:
            first[key] = tensor.name
            kept.append(tensor)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    foreign = {node.op_type for node in model.graph.node} - PORTABLE_OPERATORS
    if foreign or any(node.domain for node in model.graph.node):
        raise BerdiffError(
            f"the {model.graph.name} graph uses operators that not every engine accepts: "
            f"{', '.join(sorted(foreign)) or 'of another domain'}; "
            "another torch or onnxscript release may translate it differently"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about libraries this project does not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
