"""Writing an ONNX graph node by node, and taking exported networks into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Type = int  # of TensorProto
Values = Sequence[tuple[str, Type, Sequence[int | str]]]  # name, element type, shape


class Builder:
    """A graph being written; values are known by their names.

    Parameters
    ----------
    name : str
        Of the graph; its values carry it as a prefix, so that a loop's body can be a builder of
        its own whose nodes also read values of the graph around it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: list[onnx.TensorProto] = []
        self._count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; return the name of its output, or a tuple of names where there are more."""
        names = [self._fresh(kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value: Any, dtype: Any) -> str:
        """Name of a constant array; equal ones are kept once."""
        array = np.array(value, dtype, order="C")  # a scalar stays one
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = name = self._fresh("constant")
            self._tensors.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def cast(self, value: str, to: Type) -> str:
        """Convert to another element type."""
        name: str = self.op("Cast", value, to=to)
        return name

    def ints(self, *values: int) -> str:
        """Name of a constant list of int64, as shapes and axes are given."""
        return self.constant(values, np.int64)

    def cut(self, value: str, axis: int, start: int, stop: int) -> str:
        """Part of a value along one axis."""
        name: str = self.op("Slice", value, self.ints(start), self.ints(stop), self.ints(axis))
        return name

    def network(self, model: onnx.ModelProto, inputs: Mapping[str, str], prefix: str = "") -> str:
        """Take an exported network in; return its output.

        Parameters
        ----------
        model : ModelProto
            One graph with one output. Its weights are taken over once, however often.
        inputs : mapping of str to str
            Its inputs, by their names there, as values here.
        prefix : str
            Set apart from another copy of the same network, with which it shares its weights.
        """
        graph, place = model.graph, f"{self.name}/{model.graph.name}"
        held = {tensor.name for tensor in self._tensors}
        renamed = dict(inputs)
        for tensor in graph.initializer:
            renamed[tensor.name] = f"{place}/{tensor.name}"
            if renamed[tensor.name] not in held:
                weight = onnx.TensorProto()
                weight.CopyFrom(tensor)
                weight.name = renamed[tensor.name]
                self._tensors.append(weight)
        for node in graph.node:
            own = onnx.NodeProto()
            own.CopyFrom(node)
            for output in node.output:
                renamed[output] = f"{place}/{prefix}{output}"
            own.input[:] = [renamed[name] if name else "" for name in node.input]
            own.output[:] = [renamed[name] for name in node.output]
            own.name = f"{place}/{prefix}{node.name}"
            self._nodes.append(own)
        return renamed[graph.output[0].name]

    def alias(self, value: str, name: str) -> None:
        """Give a value a name of the caller's own."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def give_default(self, name: str, value: Any, dtype: Any) -> None:
        """Let an input have a value where the caller gives none."""
        self._tensors.append(numpy_helper.from_array(np.asarray(value, dtype), name))

    def graph(self, inputs: Values, outputs: Values) -> onnx.GraphProto:
        """Return the graph; inputs and outputs are name, element type and shape."""
        took = [helper.make_tensor_value_info(*value) for value in inputs]
        gave = [helper.make_tensor_value_info(*value) for value in outputs]
        return helper.make_graph(self._nodes, self.name, took, gave, initializer=self._tensors)

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{self.name}/{kind.lower()}_{self._count}"


FLOAT, DOUBLE, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL
INT64, UINT64 = TensorProto.INT64, TensorProto.UINT64
