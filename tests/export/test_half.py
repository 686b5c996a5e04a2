"""Half precision: what is in half and what is not, and what an accelerator will make of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from berdiff.checkpoint import load_checkpoint
from berdiff.export.emulation import emulated, open_emulated
from berdiff.export.golden import make_golden
from berdiff.export.graphs import EncoderGraph
from berdiff.export.half import HALF_TYPES, halved
from berdiff.export.onnx_export import PORTABLE_OPERATORS, export_graph
from berdiff.runtime.backends import open_backend
from berdiff.runtime.bundle import GRAPHS, Bundle
from berdiff.runtime.errors import BackendError
from berdiff.runtime.precision import Precision, limits
from berdiff.runtime.verify import GOLDEN_NAME, Golden, verify

Types = dict[str, int]

ONNX_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DELICATE = {"InstanceNormalization", "Sigmoid", "Softmax", "Gather", "ReduceMean", "Sqrt", "Div"}


@pytest.fixture(params=["fp16", "bf16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param


@pytest.fixture
def half_bundle(tiny_bundle_at: Callable[[Precision], Bundle], precision: Precision) -> Bundle:
    return tiny_bundle_at(precision)


def typed(model: onnx.ModelProto) -> Types:
    """Type of every value, as ONNX itself infers it."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


# --- the graphs ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_products_are_in_half_and_what_is_delicate_is_not(
    half_bundle: Bundle, precision: Precision, name: str
) -> None:
    model, half = onnx.load(half_bundle.file(name)), ONNX_TYPES[precision]
    types = typed(model)
    met = set()
    for node in model.graph.node:
        assert node.op_type in PORTABLE_OPERATORS
        kinds = {types[value] for value in (*node.input, *node.output) if value}
        if node.op_type in ("Conv", "MatMul"):
            assert kinds == {half}, node.name
        elif node.op_type in DELICATE:
            assert TensorProto.FLOAT in kinds, node.name
            assert half not in kinds, node.name
        met.add(node.op_type)
    assert met >= {"Conv", "InstanceNormalization", "Cast"}
    assert ("Softmax" in met) == ("denoiser" not in name or "MatMul" in met)
    for value in (*model.graph.input, *model.graph.output):
        assert types[value.name] == (TensorProto.INT64 if value.name == "t" else TensorProto.FLOAT)


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_are_stored_in_half(
    half_bundle: Bundle, tiny_bundle: Bundle, precision: Precision, name: str
) -> None:
    model = onnx.load(half_bundle.file(name))
    products = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {kinds[weight] for weight in products} == {ONNX_TYPES[precision]}
    if "denoiser" in name:  # the table of the steps stays in float32
        assert kinds["table"] == TensorProto.FLOAT
    else:
        sizes = [bundle.manifest.files[name].size for bundle in (half_bundle, tiny_bundle)]
        assert sizes[0] < 0.6 * sizes[1]


def test_float32_has_no_casts(tiny_bundle: Bundle) -> None:
    for name in GRAPHS:
        model = onnx.load(tiny_bundle.file(name))
        assert "Cast" not in {node.op_type for node in model.graph.node}


def test_the_networks_themselves_are_left_alone(tiny_checkpoint: Path) -> None:
    _, autoencoder, _ = load_checkpoint(tiny_checkpoint)
    images = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = autoencoder.encode(images)
        halved(autoencoder, torch.float16).encode(images)
        assert torch.equal(autoencoder.encode(images), before)
    assert {p.dtype for p in autoencoder.parameters()} == {torch.float32}


# --- what an accelerator will make of it ---------------------------------------------------


def test_the_emulation_errs_as_pytorch_does_in_half(
    half_bundle: Bundle, tiny_checkpoint: Path, precision: Precision
) -> None:
    """PyTorch has half-precision kernels for the CPU, which round each result once as well.

    The errors are equal in size, not value by value: sums in another order round otherwise.
    """
    golden = Golden.load(half_bundle)
    code = golden.code.astype(np.float32)
    images, codes = torch.from_numpy(golden.image), torch.from_numpy(code)
    step = torch.full((len(code),), 40)
    _, *exact = load_checkpoint(tiny_checkpoint)
    wide, half = (
        [autoencoder.encode(images), denoiser(codes, step), autoencoder.decode(codes).float()]
        for autoencoder, denoiser in (exact, [halved(n, HALF_TYPES[precision]) for n in exact])
    )
    with open_emulated(half_bundle, threads=1) as backend:
        got = [
            backend.encode(golden.image),
            backend.flip_probability(code, 40),
            backend.decode(code),
        ]
    for expected, of_torch, of_emulation in zip(wide, half, got, strict=True):
        errors = [
            (torch.as_tensor(values) - expected).abs().mean().item()
            for values in (of_torch, of_emulation)
        ]
        assert errors[1] == pytest.approx(errors[0], rel=0.15)


def run(nodes: list[onnx.NodeProto], weight: float, kind: int, x: float) -> float:
    """Run a small graph from float32 x to float32 y through the emulation."""
    shape = ["N", 1, 1, 1]
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    between = [helper.make_tensor_value_info(name, kind, shape) for name in "abc"]
    weights = [helper.make_tensor("w", kind, [1, 1, 1, 1], [weight])]
    start, end = ends
    graph = helper.make_graph(nodes, "g", [start], [end], weights, value_info=between)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    rewritten = emulated(model)
    onnx.checker.check_model(rewritten, full_check=True)
    session = onnxruntime.InferenceSession(
        rewritten.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": np.full((1, 1, 1, 1), x, np.float32)})
    return y.item()


def twice(kind: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", ["x"], ["a"], to=kind),
        helper.make_node("Conv", ["a", "w"], ["b"]),
        helper.make_node("Mul", ["b", "w"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]


def test_every_result_is_rounded() -> None:
    x, weight = np.float16(1.2345), np.float16(0.9877)
    assert run(twice(TensorProto.FLOAT16), float(weight), TensorProto.FLOAT16, 1.2345) == float(
        (x * weight) * weight
    )
    a = torch.tensor(1.2345).bfloat16()
    w = torch.tensor(0.9877).bfloat16()
    got = run(twice(TensorProto.BFLOAT16), 0.9877, TensorProto.BFLOAT16, 1.2345)
    assert got == ((a * w) * w).float().item()
    assert got != pytest.approx(float((x * weight) * weight), rel=1e-4)


def test_what_overflows_is_seen() -> None:
    """ONNX Runtime's CPU would keep 300 x 300 between two fp16 operators, and show nothing."""
    assert run(twice(TensorProto.FLOAT16), 300, TensorProto.FLOAT16, 300) == np.inf
    assert np.isfinite(run(twice(TensorProto.BFLOAT16), 300, TensorProto.BFLOAT16, 300))


# --- the gate ------------------------------------------------------------------------------


def test_the_gate_was_passed_and_has_seen_half(half_bundle: Bundle, precision: Precision) -> None:
    manifest = half_bundle.manifest
    assert manifest.precision == precision
    assert manifest.parity_limits == limits(precision)
    assert all(manifest.parity[name] <= limit for name, limit in manifest.parity_limits.items())
    # Rounded to half indeed, and more coarsely in bf16.
    floor = 2e-4 if precision == "fp16" else 2e-3
    assert all(
        manifest.parity[f"{name}_error"] > floor for name in ("encoder", "denoiser", "decoder")
    )


def test_the_cpu_runs_fp16(tiny_bundle_at: Callable[[Precision], Bundle]) -> None:
    bundle = tiny_bundle_at("fp16")
    with open_backend(bundle, threads=1) as backend:
        checks = verify(bundle, backend)
    assert {check.name: check.limit for check in checks} == limits("fp16")
    assert all(check.passed for check in checks)
    assert {check.name: check.value for check in checks}["batch_error"] == 0


def test_the_cpu_has_no_bf16(tiny_bundle_at: Callable[[Precision], Bundle]) -> None:
    with pytest.raises(BackendError, match=r"is in bf16, .*--precision fp32, fp16 or int8"):
        open_backend(tiny_bundle_at("bf16"))


def test_coarser_rounding_than_claimed_breaches_the_gate(
    tiny_bundle_at: Callable[[Precision], Bundle],
) -> None:
    """A wrong cast: one network of an fp16 bundle goes through the eight bits of bf16."""
    bundle, coarse = tiny_bundle_at("fp16"), tiny_bundle_at("bf16")
    for name in GRAPHS:
        with open_emulated(Patched(bundle, {name: coarse.file(name)})) as backend:
            failed = [check.name for check in verify(bundle, backend) if not check.passed]
        assert f"{Path(name).stem}_error" in failed


def test_norms_in_half_breach_the_gate(
    tiny_bundle_at: Callable[[Precision], Bundle], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Activations of some hundreds, whose squares overflow: the classic black image."""
    config, autoencoder, denoiser = load_checkpoint(tiny_checkpoint)
    with torch.no_grad():
        for parameter in autoencoder.encoder.blocks[0].parameters():
            parameter *= 600
    bundle = tiny_bundle_at("fp16")
    make_golden(config, autoencoder, denoiser).save(tmp_path / "golden.npz")
    careful = halved(autoencoder, torch.float16)
    careless = copy.deepcopy(careful)
    for module in list(careless.encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, HalfNorm(child))
    failed = {}
    for network in (careful, careless):
        path = tmp_path / "encoder.onnx"
        image = {"image": torch.zeros(2, 1, 32, 32)}
        export_graph(EncoderGraph(network), image, "probability", path)
        files = {GRAPHS[0]: path, GOLDEN_NAME: tmp_path / "golden.npz"}
        patched = Patched(bundle, files)
        with open_emulated(patched) as backend:
            failed[network] = {c.name for c in verify(patched, backend) if not c.passed}
    assert "encoder_error" not in failed[careful]
    assert "encoder_error" in failed[careless]


class Patched(Bundle):
    """A bundle with some of its files taken from elsewhere."""

    def __init__(self, bundle: Bundle, files: dict[str, Path]) -> None:
        super().__init__(bundle.path, bundle.manifest, bundle.digest)
        object.__setattr__(self, "files", files)

    def file(self, name: str) -> Path:
        return self.files.get(name) or super().file(name)


class HalfNorm(nn.Module):
    """Group norm in the type of what comes in."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(1, (self.norm.num_groups, -1))
        centred = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
        variance = (centred * centred).mean(dim=(2, 3, 4), keepdim=True)
        normal = (centred / torch.sqrt(variance + self.norm.eps)).flatten(1, 2)
        return normal * self.norm.weight[:, None, None] + self.norm.bias[:, None, None]
