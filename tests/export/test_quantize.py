"""INT8 in the form every engine takes, close to float32, and nowhere it does harm."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from berdiff.export.calibration_set import CalibrationSet, calibration_set
from berdiff.export.golden import example_images
from berdiff.export.onnx_export import PORTABLE_OPERATORS
from berdiff.export.quantize import WEIGHT_MAX, quantize_graph
from berdiff.runtime.backends import open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import BerdiffError


class Graph:
    """A graph with its constants, and which node makes and which read each value."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes = list(onnx.load(path).graph.node)
        initializers = onnx.load(path).graph.initializer
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}
        self.maker = {name: node for node in self.nodes for name in node.output}

    def of_kind(self, *kinds: str) -> list[NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def readers(self, name: str) -> list[NodeProto]:
        return [node for node in self.nodes if name in node.input]


@pytest.fixture(scope="module")
def inputs(tiny_bundle: Bundle) -> CalibrationSet:
    with open_backend(tiny_bundle, threads=1) as backend:
        images = example_images(tiny_bundle.manifest.preprocessing)
        return calibration_set(tiny_bundle, backend, images)


@pytest.fixture(scope="module")
def before(tiny_bundle: Bundle) -> Graph:
    return Graph(tiny_bundle.file("onnx/denoiser.onnx"))


@pytest.fixture(scope="module")
def after(before: Graph, inputs: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    target = tmp_path_factory.mktemp("int8") / "denoiser.onnx"
    quantize_graph(before.path, target, inputs.feeds())
    return Graph(target)


def session(path: Path, **settings: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_everything_is_symmetric_int8(after: Graph) -> None:
    nodes = after.of_kind("QuantizeLinear", "DequantizeLinear")
    assert len(nodes) > 50
    for node in nodes:
        zero = after.constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        scale = after.constants[node.input[1]]
        assert scale.shape == zero.shape
        assert scale.dtype == np.float32
        assert (scale > 0).all()


def test_all_convolutions_but_the_ends_are_int8(before: Graph, after: Graph) -> None:
    first, *inner, last = zip(before.of_kind("Conv"), after.of_kind("Conv"), strict=True)
    for old, new in (first, last):
        assert new == old
        np.testing.assert_array_equal(after.constants[new.input[1]], before.constants[old.input[1]])
    assert len(inner) > 10
    for old, new in inner:
        assert [after.maker[name].op_type for name in new.input[:2]] == ["DequantizeLinear"] * 2
        assert after.maker[after.maker[new.input[0]].input[0]].op_type == "QuantizeLinear"
        (reader,) = after.readers(new.output[0])
        assert reader.op_type == "QuantizeLinear"
        check_weight(after, after.maker[new.input[1]], before.constants[old.input[1]])


def check_weight(graph: Graph, node: NodeProto, exact: NDArray[np.float32]) -> None:
    small, scale, _ = (graph.constants[name] for name in node.input)
    assert [helper.get_attribute_value(each) for each in node.attribute] == [0]
    assert scale.shape == (len(exact),)
    assert small.dtype == np.int8
    assert (np.abs(small).reshape(len(small), -1).max(axis=1) == WEIGHT_MAX).all()
    scale = scale.reshape(-1, *[1] * (small.ndim - 1))
    assert (np.abs(small * scale - exact) <= scale * 0.501).all()


def test_only_convolutions_see_rounded_values(before: Graph, after: Graph) -> None:
    """Norms, products and the sums along the network read what they read before."""
    added = {node.name for node in after.nodes} - {node.name for node in before.nodes}
    for node in before.of_kind("InstanceNormalization", "MatMul", "Concat", "Resize", "Sigmoid"):
        assert any(node == same for same in after.of_kind(node.op_type))
    for node in after.of_kind("DequantizeLinear"):
        (reader,) = after.readers(node.output[0])
        assert reader.op_type in ("Conv", "Add")  # a sum with a result, or with its bias
    kinds = Counter(node.op_type for node in after.nodes if node.name in added)
    assert set(kinds) == {"QuantizeLinear", "DequantizeLinear", "Add"}


def test_is_a_portable_file(after: Graph) -> None:
    model = onnx.load(after.path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in after.nodes} <= PORTABLE_OPERATORS
    assert len({node.name for node in after.nodes}) == len(after.nodes)
    used = {name for node in after.nodes for name in node.input}
    assert set(after.constants) <= used
    assert model.graph.name == "denoiser"


def test_onnx_runtime_computes_in_int8(after: Graph, tmp_path: Path) -> None:
    optimised = tmp_path / "optimised.onnx"
    session(after.path, optimized_model_filepath=str(optimised), log_severity_level=3)
    kinds = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert kinds["QLinearConv"] == len(after.of_kind("Conv")) - 2
    assert kinds["Conv"] == 2
    # One before each and one after, no more: none was moved to where it would cost time.
    assert kinds["QuantizeLinear"] <= kinds["QLinearConv"] + 1
    assert kinds["DequantizeLinear"] <= kinds["QLinearConv"] + 1


def test_flip_probabilities_are_close(before: Graph, after: Graph, inputs: CalibrationSet) -> None:
    exact, rounded = session(before.path), session(after.path)
    errors = [
        np.abs(rounded.run(None, feed)[0] - exact.run(None, feed)[0]) for feed in inputs.feeds()
    ]
    assert 0 < np.mean(errors) < 0.01
    assert np.max(errors) < 0.1


def test_a_code_alone_and_in_a_batch(after: Graph, inputs: CalibrationSet) -> None:
    net, t = session(after.path), np.array([20])
    codes = inputs.codes[:3].astype(np.float32)
    (together,) = net.run(None, {"code": codes, "t": t})
    (alone,) = net.run(None, {"code": codes[1:2], "t": t})
    np.testing.assert_array_equal(alone, together[1:2])


def test_the_same_inputs_give_the_same_file(
    before: Graph, after: Graph, inputs: CalibrationSet, tmp_path: Path
) -> None:
    quantize_graph(before.path, tmp_path / "denoiser.onnx", inputs.feeds())
    assert (tmp_path / "denoiser.onnx").read_bytes() == after.path.read_bytes()


def test_nothing_to_measure_on_is_refused(before: Graph, tmp_path: Path) -> None:
    with pytest.raises(BerdiffError, match="got none"):
        quantize_graph(before.path, tmp_path / "denoiser.onnx", [])
    assert list(tmp_path.iterdir()) == []


def three_convolutions(path: Path, weight: float, bias: float) -> Path:
    """Write x -> conv -> conv of one weight and bias -> conv, two channels each."""
    eye = np.eye(2, dtype=np.float32)[:, :, None, None]
    constants = {
        "eye": eye,
        "weight": np.full_like(eye, weight),
        "bias": np.full(2, bias, np.float32),
    }
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "eye"], ["a"], "first"),
            helper.make_node("Conv", ["a", "weight", "bias"], ["b"], "second"),
            helper.make_node("Conv", ["b", "eye"], ["y"], "third"),
        ],
        "three",
        [value("x", onnx.TensorProto.FLOAT, ["N", 2, 4, 4])],
        [value("y", onnx.TensorProto.FLOAT, ["N", 2, 4, 4])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path
    )
    return path


@pytest.mark.parametrize(("weight", "bias"), [(0, 0), (0, 3), (1e-30, 3), (1, -100), (2, 0)])
def test_weights_of_any_size(tmp_path: Path, weight: float, bias: float) -> None:
    """Convolutions start at zero; a bias must fit into int32 however small the weights are."""
    source = three_convolutions(tmp_path / "exact.onnx", weight, bias)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 2, 4, 4)).astype(np.float32)
    quantize_graph(source, tmp_path / "int8.onnx", [{"x": x}])
    (exact,), (rounded,) = (
        session(path).run(None, {"x": x}) for path in (source, tmp_path / "int8.onnx")
    )
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=np.abs(exact).max() / 50)


def test_largest_products_are_not_clipped(tmp_path: Path) -> None:
    """Processors without VNNI add two products in 16 bits."""
    assert 2 * 255 * WEIGHT_MAX <= np.iinfo(np.int16).max
    source = three_convolutions(tmp_path / "exact.onnx", 1, 0)
    x = np.ones((1, 2, 4, 4), np.float32)
    quantize_graph(source, tmp_path / "int8.onnx", [{"x": x}])
    (result,) = session(tmp_path / "int8.onnx").run(None, {"x": x})
    np.testing.assert_allclose(result, 2 * x, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_an_infinite_activation_is_refused(tmp_path: Path) -> None:
    source = three_convolutions(tmp_path / "exact.onnx", 1e30, 0)
    x = np.full((1, 2, 4, 4), 1e30, np.float32)
    with pytest.raises(BerdiffError, match=r"reaches (inf|nan) on healthy images"):
        quantize_graph(source, tmp_path / "int8.onnx", [{"x": x}])
