"""Types an engine computes in, read from what libraries write about it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from berdiff.runtime.engines.inspection import (
    Layer,
    Tensor,
    computed_types,
    io_from_log,
    layers_from_json,
    layers_from_log,
    memory_from_log,
    type_name,
    weight_bytes_by_type,
)
from berdiff.runtime.engines.library import BuildLog
from berdiff.runtime.errors import BackendError

# As TensorRT for RTX 1.7 writes it, shortened.
LOG = """Layers:
Name: node_conv_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,32,10,8], \
Strides: [2560,1,256,32], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major \
format }], Constants: [ { Name: weight, Dimensions: [64,32,3,3], Strides: [288,1,96,32], \
StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }, { Name: one, \
Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major \
linear format }], Outputs: [ { Name: b, Dimensions: [-1,64,10,8], Strides: [5120,1,512,64], \
StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: \
__myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_conv][ONNX Layer: cast]
Name: __myl_Move_myl0_3, LayerType: kgen, Inputs: [], Constants: [], Outputs: [ { Name: c, \
Dimensions: [-1], Strides: [1], StrideOrder: [0], Datatype: Int32, Format: (Linear) Row major \
linear format }], TacticName: , StreamId: 0, Metadata: \

"""
IO = """I/O Tensors:
 Name: code, IOMode: Input, DataType: Float, Dimensions: [-1,32,10,8], Location: Device
 Name: t, IOMode: Input, DataType: Int64, Dimensions: [1], Location: Device
 Name: flip_probability, IOMode: Output, DataType: Half, Dimensions: [-1,32,10,8]
"""


def tensor(kind: str, *shape: int) -> dict[str, Any]:
    return {"Name": "x", "Dimensions": list(shape), "Format/Datatype": kind}


def entry(name: str, kind: str = "CaskConvolution", **changes: Any) -> dict[str, Any]:
    """A layer as TensorRT's inspector writes it."""
    usual = {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor("Channel major FP16 format where channel % 8 == 0", 1, 8, 4, 4)],
        "Outputs": [tensor("Row major linear FP32", 1, 8, 4, 4)],
        "Weights": {"Type": "Half", "Count": 576},
        "Bias": {"Type": "Float", "Count": 8},
        "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: relu]",
    }
    return usual | changes


def from_json(*entries: Any) -> list[Layer]:
    return layers_from_json(json.dumps({"Layers": list(entries), "Bindings": ["a", "b"]}))


def layer(onnx: str, data: str, weight: str | None, kind: str = "correlation") -> Layer:
    constants = (Tensor("w", weight, 576),) if weight else ()
    return Layer("name", kind, frozenset({onnx}), (Tensor("x", data, 128),), constants)


# --- reading -------------------------------------------------------------------------------


def test_layers_of_a_build_log() -> None:
    conv, move = layers_from_log(["something else", LOG])
    assert conv.name == "node_conv_myl0_2"
    assert conv.kind == "correlation"
    assert conv.onnx == {"node_conv", "cast"}
    assert conv.inputs == (Tensor("a", "float16", 32 * 80),)
    assert conv.constants == (Tensor("weight", "float16", 64 * 288), Tensor("one", "float32", 1))
    assert conv.type() == "float16"
    assert move == Layer("__myl_Move_myl0_3", "kgen", frozenset(), (), ())
    assert weight_bytes_by_type([conv, conv, move]) == {"float16": 2 * 64 * 288, "float32": 4}


def test_inputs_and_outputs_of_a_build_log() -> None:
    inputs, outputs = io_from_log([IO])
    assert inputs == {"code": "float32", "t": "int64"}
    assert outputs == {"flip_probability": "float16"}
    assert io_from_log([]) == ({}, {})


def test_memory_in_a_build_log() -> None:
    said = ["Total Weights Memory: 5 bytes", "Total Activation Memory: 7 bytes"]
    assert memory_from_log([*said, "Total Weights Memory: 6 bytes"], "Weights") == 6
    assert memory_from_log(said, "Activation") == 7
    assert memory_from_log([], "Activation") is None


def test_a_build_log_keeps_what_is_read_later() -> None:
    log = BuildLog()
    for severity, message in (
        ("VERBOSE", "Applying generic optimizations"),
        ("VERBOSE", LOG),
        ("VERBOSE", IO),
        ("INFO", "Total Weights Memory: 6 bytes"),
        ("WARNING", " careful\n"),
        ("ERROR", "broken"),
        ("INTERNAL_ERROR", "very"),
    ):
        log.note(severity, message)
    assert log.facts == [LOG, IO, "Total Weights Memory: 6 bytes"]
    assert log.warnings == ["careful"]
    assert log.reasons() == "broken; very"
    assert BuildLog().reasons() == "the library gave no reason"


def test_layers_of_an_inspector() -> None:
    conv, other = from_json(
        entry("conv"),
        entry("gemm", "gemm", Weights=None, Inputs=[tensor("Int8", 2, 2)], Metadata=""),
    )
    assert conv.onnx == {"conv", "relu"}
    assert conv.inputs == (Tensor("x", "float16", 128),)
    assert conv.constants == (Tensor("conv", "float16", 576),)
    assert other.onnx == {"gemm"}
    assert other.type() == "int8"


def test_an_inspector_of_the_compiler_lists_constants() -> None:
    weight = {"Name": "w", "Dimensions": [8, 8, 3, 3], "Datatype": "BFloat16"}
    data = {"Name": "x", "Dimensions": [-1, 8, 4, 4], "Datatype": "BFloat16"}
    (found,) = from_json(entry("conv", "correlation", Inputs=[data], Constants=[weight], Weights=0))
    assert found.constants == (Tensor("w", "bfloat16", 576),)
    assert found.type() == "bfloat16"


def test_names_stand_for_metadata_where_there_is_none() -> None:
    fused, copy = from_json(
        entry("conv + relu || other", Metadata=""),
        entry("Reformatting CopyNode for Input Tensor 0 to a + conv", "Reformat", Metadata=""),
    )
    assert fused.onnx == {"conv", "relu", "other"}
    assert copy.onnx == set()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"Layers": 1}', '{"Layers": [{"Inputs": [1]}]}']
)
def test_an_answer_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BackendError, match="inspector's answer cannot be read"):
        layers_from_json(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Float", "float32"),
        ("FLOAT", "float32"),
        ("Row major linear FP32", "float32"),
        ("Half", "float16"),
        ("Two wide channel vectorized row major FP16 format", "float16"),
        ("BFloat16", "bfloat16"),
        ("BF16", "bfloat16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("UINT8", "uint8"),
        ("Int64", "int64"),
        ("FP4", "FP4"),
    ],
)
def test_names_of_types(text: str, name: str) -> None:
    assert type_name(text) == name


# --- judging -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "weight", "kind"),
    [
        ("float16", "float16", "float16"),
        ("float16", None, "float16"),
        ("int8", "int8", "int8"),
        ("float32", "float16", "float32"),  # weights stored narrow, computed wide
        ("float16", "float32", "float32"),
        ("int64", None, None),
    ],
)
def test_a_layer_computes_in_the_wider_of_data_and_weights(
    data: str, weight: str | None, kind: str | None
) -> None:
    assert layer("a", data, weight).type() == kind


def test_a_layer_with_a_wide_residual_computes_in_its_narrow_input() -> None:
    fused = Layer(
        "CorrAdd",
        "runtime_fusion",
        frozenset({"a"}),
        (Tensor("residual", "float32", 128), Tensor("x", "float16", 128)),
        (Tensor("w", "float16", 576), Tensor("scale", "float32", 1)),
    )
    assert fused.type() == "float16"


def test_products_are_counted_by_type() -> None:
    expected = {"a": "int8", "b": "int8", "c": "float32"}
    layers = [layer("a", "int8", "int8"), layer("b", "int8", "int8"), layer("c", "float32", None)]
    assert computed_types(expected, layers, "denoiser") == {"int8": 2, "float32": 1}


def test_layers_around_a_product_do_not_count() -> None:
    before, after = layer("a", "float32", None, "kgen"), layer("a", "float32", "float32", "kgen")
    layers = [before, layer("a", "int8", "int8"), after]
    assert computed_types({"a": "int8"}, layers, "denoiser") == {"int8": 1}


def test_a_product_inside_a_compiled_kernel_counts() -> None:
    attention = layer("a", "float16", None, "kgen")
    assert computed_types({"a": "float16"}, [attention], "denoiser") == {"float16": 1}


def test_an_engine_that_is_silently_float32_is_an_error() -> None:
    expected = {f"conv{index}": "float16" for index in range(5)}
    layers = [layer(name, "float32", "float32") for name in expected]
    with pytest.raises(BackendError) as caught:
        computed_types(expected, layers, "denoiser")
    said = str(caught.value)
    assert "the denoiser engine does not compute in the types of the ONNX file" in said
    assert "conv0 in float32 instead of float16" in said
    assert "and 2 more" in said
    assert "nothing was written" in said


def test_one_wide_product_is_enough() -> None:
    layers = [layer("a", "float16", "float16"), layer("b", "float16", "float32")]
    with pytest.raises(BackendError, match="b in float32 instead of float16"):
        computed_types({"a": "float16", "b": "float16"}, layers, "denoiser")


def test_an_engine_narrower_than_its_onnx_is_an_error() -> None:
    with pytest.raises(BackendError, match="a in float16 instead of float32"):
        computed_types({"a": "float32"}, [layer("a", "float16", "float16")], "denoiser")


@pytest.mark.parametrize(
    "layers", [[], from_json("conv", "relu"), [Layer("a", "b", frozenset({"a"}), (), ())]]
)
def test_an_engine_that_tells_nothing_is_an_error(layers: list[Layer]) -> None:
    with pytest.raises(BackendError, match="tells nothing about the layers of the decoder engine"):
        computed_types({"a": "float16"}, layers, "decoder")


def test_a_few_products_may_go_unnamed() -> None:
    layers = [layer(name, "float16", "float16") for name in "abc"]
    expected = dict.fromkeys("abcd", "float16")
    assert computed_types(expected, layers, "decoder") == {"float16": 3, "unknown": 1}
    with pytest.raises(BackendError, match=r"do not name 4 of its 7 .* \(d, e, f\)"):
        computed_types(dict.fromkeys("abcdefg", "float16"), layers, "decoder")


def test_an_unnamed_product_may_not_hide_in_a_wide_layer() -> None:
    layers = [layer(name, "float16", "float16") for name in "abc"]
    hidden = Layer("other", "gemm", frozenset(), (Tensor("x", "float32", 4),), ())
    with pytest.raises(BackendError, match="layer other in float32"):
        computed_types(dict.fromkeys("abcd", "float16"), [*layers, hidden], "decoder")
