"""The types a parsed network is to be computed in: what its engine is held against."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .inspection import WIDTHS, onnx_nodes, type_name


def products(trt: ModuleType, graph: Any) -> dict[str, str]:
    """Type of every convolution and matrix product of a parsed network, by ONNX node.

    Parameters
    ----------
    trt : module
        The library.
    graph : INetworkDefinition
        Strongly typed: its types are those that the engine must have.
    """
    kinds = trt.LayerType
    shaping = (kinds.SHUFFLE, kinds.SLICE, kinds.CONCATENATION, kinds.IDENTITY)
    shaping += tuple(getattr(kinds, n) for n in ("SQUEEZE", "UNSQUEEZE") if hasattr(kinds, n))
    layers = [graph.get_layer(index) for index in range(graph.num_layers)]
    maker = {
        layer.get_output(index).name: layer
        for layer in layers
        for index in range(layer.num_outputs)
    }

    def operand(tensor: Any) -> str:
        """Type of what a product reads: that before dequantisation, where there is one."""
        layer = maker.get(tensor.name)
        while layer is not None and layer.type in shaping:
            tensor = layer.get_input(0)
            layer = maker.get(tensor.name)
        if layer is not None and layer.type == kinds.DEQUANTIZE:
            tensor = layer.get_input(0)
        return type_name(tensor.dtype.name)

    found = {}
    for layer in layers:
        if layer.type in (kinds.CONVOLUTION, kinds.DECONVOLUTION, kinds.MATRIX_MULTIPLY):
            types = [operand(layer.get_input(index)) for index in range(min(layer.num_inputs, 2))]
            name = (onnx_nodes(layer.metadata) or [layer.name])[0]
            found[name] = max(types, key=WIDTHS.index)
    return found
