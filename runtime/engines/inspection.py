"""In which types a built engine computes, as the library itself tells."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ..errors import BackendError

# Type of convolutions and matrix products by precision of the bundle.
TYPE_OF = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}

# What the libraries call the types, in several versions: "Half", "Row major linear FP16 format".
_NAMES = {
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("half", "fp16", "float16"), "float16"),
    **dict.fromkeys(("float", "fp32", "float32"), "float32"),
    **dict.fromkeys(("fp8", "fp8e4m3"), "float8"),
    **{name: name for name in ("int4", "int8", "uint8", "int32", "int64", "bool")},
}
_TYPE = re.compile(rf"\b({'|'.join(sorted(_NAMES, key=len, reverse=True))})\b", re.IGNORECASE)
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1, "uint8": 1,
          "int32": 4, "int64": 8, "bool": 1}  # fmt: skip
# Types products are computed in, narrow to wide.
WIDTHS = ("int8", "float8", "float16", "bfloat16", "float32")

_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?\])(?:, [A-Z]\w+: |$)"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[(.*?)\].*?Datatype: (\w+)")
_IO = re.compile(r"Name: (.*?), IOMode: (\w+), DataType: (\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
# Layers that hold a product, by kind or, where a compiler made them, by name.
_PRODUCT = re.compile(r"corr|conv|gemm|mat_?mul|matrix|mha|fusion|cask|myl_\w*Fc", re.IGNORECASE)
_COPIES = ("Reformat", "NoOp", "Constant")


@dataclass(frozen=True)
class Tensor:
    """An operand of an engine's layer: type, and number of elements with a batch of 1."""

    name: str
    type: str
    elements: int


@dataclass(frozen=True)
class Layer:
    """A layer of an engine, and the ONNX nodes it computes or helps to."""

    name: str
    kind: str
    onnx: frozenset[str]
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]

    def type(self) -> str | None:
        """Type a product of this layer is computed in: the wider of weights and data."""
        data = [tensor.type for tensor in self.inputs if tensor.type in WIDTHS]
        weights = [t for t in self.constants if t.elements > 1 and t.type in WIDTHS]
        found = [min(data, key=WIDTHS.index)] if data else []
        if weights:
            found.append(max(weights, key=lambda tensor: tensor.elements).type)
        return max(found, key=WIDTHS.index) if found else None


def layers_from_log(messages: Iterable[str]) -> list[Layer]:
    """Read the layers that a builder lists at its highest verbosity."""
    found = []
    for line in "\n".join(messages).splitlines():
        match = _LAYER.match(line)
        if match:
            inputs, constants = (
                tuple(_tensor(*parts) for parts in _TENSOR.findall(match[section] or ""))
                for section in ("inputs", "constants")
            )
            onnx = frozenset(onnx_nodes(line))
            found.append(Layer(match["name"], match["kind"], onnx, inputs, constants))
    return found


def layers_from_json(text: str) -> list[Layer]:
    """Read the layers that an engine inspector lists in JSON.

    Raises
    ------
    BackendError
        If the text is not what inspectors write.
    """
    try:
        listed = json.loads(text)["Layers"]
        return [_layer_from_json(item) for item in listed if isinstance(item, dict)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f"the engine inspector's answer cannot be read ({type(error).__name__}: {error}): "
            f"{text[:200]!r}"
        ) from error


def io_from_log(messages: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read types of inputs and outputs that a builder lists at its highest verbosity."""
    found: dict[str, dict[str, str]] = {"Input": {}, "Output": {}}
    for name, mode, kind in _IO.findall("\n".join(messages)):
        found.setdefault(mode, {})[name] = type_name(kind)
    return found["Input"], found["Output"]


def memory_from_log(messages: Iterable[str], what: str) -> int | None:
    """Read a total that a builder tells, in bytes: "Weights" or "Activation"."""
    found = re.findall(rf"Total {what} Memory: (\d+) bytes", "\n".join(messages))
    return int(found[-1]) if found else None


def onnx_nodes(metadata: str) -> list[str]:
    """Read the ONNX nodes that a layer's metadata names."""
    return _ONNX_NODE.findall(metadata)


def type_name(text: str) -> str:
    """Name a type as NumPy would, from the words of a library: "Half" is "float16"."""
    match = _TYPE.search(text)
    return _NAMES[match[1].lower()] if match else text


def computed_types(expected: Mapping[str, str], layers: list[Layer], what: str) -> dict[str, int]:
    """Count products by the type the engine computes them in, and hold that against the ONNX.

    Parameters
    ----------
    expected : mapping of str to str
        From `berdiff.runtime.engines.graph.products`.
    layers : list of Layer
        Of the engine.
    what : str
        Name of the engine, for errors.

    Returns
    -------
    dict of str to int
        By type; "unknown" are those that the engine's layers do not name.

    Raises
    ------
    BackendError
        If a product is computed in another type than the ONNX says, or the layers do not tell.
    """
    if not any(layer.inputs for layer in layers):
        raise BackendError(
            f"the library tells nothing about the layers of the {what} engine, so whether it "
            "computes in the bundle's precision cannot be checked; nothing was written"
        )
    found = {node: _type_of(node, layers) for node in expected}
    wrong = [
        f"{node} in {found[node]} instead of {kind}"
        for node, kind in expected.items()
        if found[node] not in (None, kind)
    ]
    unknown = [node for node, kind in found.items() if kind is None]
    if unknown:
        # A product nobody names can only be in a layer that holds one: none of those may be wide.
        allowed = set(expected.values())
        wrong += [
            f"layer {layer.name} in {layer.type()}"
            for layer in layers
            if _holds_product(layer) and layer.type() not in (None, *allowed)
        ]
    if wrong:
        raise BackendError(
            f"the {what} engine does not compute in the types of the ONNX file: "
            f"{', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if wrong[3:] else ''}; "
            "nothing was written"
        )
    if 2 * len(unknown) > len(expected):
        raise BackendError(
            f"the layers of the {what} engine do not name {len(unknown)} of its {len(expected)} "
            f"convolutions and matrix products ({', '.join(unknown[:3])}), so its types cannot be "
            "checked; nothing was written"
        )
    return dict(Counter(kind or "unknown" for kind in found.values()))


def weight_bytes_by_type(layers: list[Layer]) -> dict[str, int]:
    """Bytes of constants that the layers read, each counted once."""
    constants = {tensor.name: tensor for layer in layers for tensor in layer.constants}
    counted: Counter[str] = Counter()
    for tensor in constants.values():
        counted[tensor.type] += tensor.elements * _BYTES.get(tensor.type, 1)
    return dict(sorted(counted.items()))


def _tensor(name: str, dimensions: str, kind: str) -> Tensor:
    lengths = [abs(int(length)) for length in re.findall(r"-?\d+", dimensions)]
    return Tensor(name, type_name(kind), prod(lengths))


def _layer_from_json(item: Mapping[str, Any]) -> Layer:
    def tensors(section: str) -> list[Tensor]:
        return [
            _tensor(
                str(tensor.get("Name", "")),
                str(tensor.get("Dimensions", "")),
                str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""),
            )
            for tensor in item.get(section) or ()
        ]

    name, constants = str(item.get("Name", "")), tensors("Constants")
    weights = item.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Count"):
        # Named by the layer: older inspectors do not name weights.
        constants.append(Tensor(name, type_name(str(weights.get("Type"))), int(weights["Count"])))
    kind, onnx = str(item.get("LayerType", "")), onnx_nodes(str(item.get("Metadata", "")))
    if not onnx and kind not in _COPIES:
        onnx = re.split(r" \+ | \|\| ", name)
    return Layer(name, kind, frozenset(onnx), tuple(tensors("Inputs")), tuple(constants))


def _holds_product(layer: Layer) -> bool:
    text = f"{layer.kind} {layer.name}"
    return layer.kind not in _COPIES and _PRODUCT.search(text) is not None


def _type_of(node: str, layers: list[Layer]) -> str | None:
    """Type of a product, or None where no layer names it."""
    naming = [layer for layer in layers if node in layer.onnx and layer.kind not in _COPIES]
    holding = [layer for layer in naming if _holds_product(layer)]
    types = [kind for layer in holding or naming if (kind := layer.type()) is not None]
    if not types:
        return None
    # Beside the product itself, layers before and after it name the node too and may be wider.
    return (max if holding else min)(types, key=WIDTHS.index)
