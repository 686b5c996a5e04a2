"""detector.onnx finds what the runtime finds, whatever the bundle's settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper
from typer.testing import CliRunner

from berdiff.cli.main import app
from berdiff.export.whole import write as writing
from berdiff.export.whole.builder import BOOL, FLOAT
from berdiff.export.whole.graph import detector_graph
from berdiff.export.whole.write import SingleFile, draw_noise, write_single_file
from berdiff.runtime.backends import open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import sha256_file
from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.precision import Precision
from berdiff.runtime.sampling_settings import make_sampler
from berdiff.runtime.strict import read_json
from berdiff.runtime.walk import own_code

OUTPUTS = ("anomaly_map", "flip_map", "reconstruction", "score")
IDS = [2**64 - 1, 2**32, 7]
SEED = 2**63 + 11


def variant(bundle: Bundle, forward_noise: str | None = None, **settings: Any) -> Bundle:
    """The same networks under other settings."""
    manifest = bundle.manifest
    manifest = dataclasses.replace(
        manifest,
        sampling=dataclasses.replace(manifest.sampling, **settings),
        forward_noise=forward_noise or manifest.forward_noise,
    )
    return Bundle(bundle.path, manifest, bundle.digest)


def images(bundle: Bundle, count: int = 3) -> NDArray[np.float32]:
    """Noise inside a frame of zeros: not every pixel is foreground."""
    pre = bundle.manifest.preprocessing
    made = np.zeros((count, pre.channels, *pre.size), np.float32)
    inner = made[:, :, 4:-3, 5:-6]
    inner[:] = np.random.default_rng(8).random(inner.shape, np.float32)
    return made


def opened(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def feeds(
    pixels: NDArray[np.float32], ids: list[int] = IDS, seed: int = 0, **settings: Any
) -> dict[str, Any]:
    kinds = {"noise_level": np.int64, "steps": np.int64, "flip_threshold": np.float32}
    given = {name: np.array(value, kinds[name]) for name, value in settings.items()}
    return {
        "image": pixels,
        "image_id": np.array(ids[: len(pixels)], np.uint64),
        "seed": np.array(seed, np.uint64),
        **given,
    }


def run(session: onnxruntime.InferenceSession, given: dict[str, Any]) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def agree(found: dict[str, Any], expected: Any, within: float = 2e-5) -> None:
    for name in OUTPUTS:
        assert found[name].shape == getattr(expected, name).shape
        np.testing.assert_allclose(
            found[name], getattr(expected, name), rtol=0, atol=within, err_msg=name
        )


@pytest.mark.parametrize(
    ("forward_noise", "settings"),
    [
        ("bernoulli", {"anomaly_map": "squared"}),
        ("upstream", {"anomaly_map": "signed", "code": "sample"}),
        ("bernoulli", {"anomaly_map": "absolute", "smoothing": 0.05}),
        ("bernoulli", {"anomaly_map": "change", "steps": None, "noise_level": 25}),
        ("upstream", {"anomaly_map": "flips", "flip_threshold": 0.45}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["anomaly_map"],
)
def test_it_finds_what_the_runtime_finds(
    tiny_bundle: Bundle, forward_noise: str, settings: dict[str, Any]
) -> None:
    bundle = variant(tiny_bundle, forward_noise, **settings)
    pixels = images(bundle)
    with Detector.open(bundle) as detector:
        expected = detector.detect(pixels, IDS, SEED)
    agree(run(opened(detector_graph(bundle)), feeds(pixels, seed=SEED)), expected)
    noise = draw_noise(bundle, IDS, SEED)
    given = opened(detector_graph(bundle, noise_input=True))
    agree(run(given, {"image": pixels, "noise": noise}), expected)


def test_every_bit_is_that_of_the_runtime(tiny_bundle: Bundle) -> None:
    """The rate of bits that differ, on which everything else rests, is 0."""
    model = detector_graph(tiny_bundle)
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    code = tiny_bundle.manifest.code
    shape = ("N", code.channels, code.height, code.width)
    for name, kind in zip(loop.output[:2], (FLOAT, BOOL), strict=True):
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    pixels = images(tiny_bundle)
    found = run(opened(model), feeds(pixels, seed=SEED))
    with open_backend(tiny_bundle) as backend:
        settings, noise = tiny_bundle.manifest.sampling, PhiloxNoise(SEED, IDS)
        z_org = own_code(backend.encode(pixels), noise, settings.code)
        sampler = make_sampler(tiny_bundle, settings)
        state = sampler.run(z_org, backend.flip_probability, noise)
    assert 0.01 < state.mask.mean() < 0.99
    np.testing.assert_array_equal(found[loop.output[1]], state.mask)
    np.testing.assert_allclose(found[loop.output[0]], state.z, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def session(tiny_bundle: Bundle) -> onnxruntime.InferenceSession:
    return opened(detector_graph(tiny_bundle))


def test_settings_are_inputs(session: onnxruntime.InferenceSession, tiny_bundle: Bundle) -> None:
    pixels = images(tiny_bundle)
    with Detector.open(tiny_bundle) as detector:
        for level, steps, threshold in ((30, 5, 0.3), (12, 12, 0.7), (600, 3, 0.5)):
            asked = 0 if steps == level else steps  # every one
            given = feeds(pixels, seed=1, noise_level=level, steps=asked, flip_threshold=threshold)
            settings = detector.settings(level, steps, threshold)
            agree(run(session, given), detector.detect(pixels, IDS, 1, settings))
        assert not np.array_equal(
            run(session, feeds(pixels, seed=1))["flip_map"],
            run(session, feeds(pixels, seed=2))["flip_map"],
        )
        # What is left away are the bundle's own.
        agree(run(session, feeds(pixels)), detector.detect(pixels, IDS))
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        run(session, feeds(pixels, noise_level=1000))


def test_an_image_gets_what_it_would_get_alone(
    session: onnxruntime.InferenceSession, tiny_bundle: Bundle
) -> None:
    pixels = images(tiny_bundle)
    together = run(session, feeds(pixels))
    for number in range(3):
        alone = run(session, feeds(pixels[number : number + 1], IDS[number:]))
        for name in OUTPUTS:
            np.testing.assert_array_equal(alone[name][0], together[name][number])


def test_images_of_zeros_and_answers_that_are_no_numbers(
    session: onnxruntime.InferenceSession, tiny_bundle: Bundle
) -> None:
    pixels = images(tiny_bundle)
    expected = run(session, feeds(pixels))
    pixels[0] = 0
    pixels[2, 0, 9, 9] = np.nan  # what a broken network would make of an image
    found = run(session, feeds(pixels))
    for name in OUTPUTS:
        assert not found[name][0].any()
        np.testing.assert_array_equal(found[name][1], expected[name][1])
        assert np.isnan(found[name][2]).all()


def test_the_file_says_what_it_takes(tiny_bundle: Bundle) -> None:
    model = detector_graph(tiny_bundle)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["berdiff.bundle"] == tiny_bundle.digest
    assert json.loads(said["berdiff.preprocessing"])["size"] == [
        *tiny_bundle.manifest.preprocessing.size
    ]
    assert json.loads(said["berdiff.sampling"])["steps"] == tiny_bundle.manifest.sampling.steps
    assert json.loads(said["berdiff.threshold"]) is None
    assert "RESEARCH" in said["berdiff.use"]
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    assert model.graph.input[0].name == "image"


def test_networks_are_held_once(tiny_bundle: Bundle) -> None:
    """Also where the decoder runs twice."""
    parts = sum(
        tiny_bundle.manifest.files[f"onnx/{name}.onnx"].size
        for name in ("encoder", "denoiser", "decoder")
    )
    for kind in ("squared", "change"):
        whole = detector_graph(variant(tiny_bundle, anomaly_map=kind)).ByteSize()
        weights = sum(
            len(tensor.raw_data)
            for name in ("encoder", "denoiser", "decoder")
            for tensor in onnx.load(str(tiny_bundle.file(f"onnx/{name}.onnx"))).graph.initializer
        )
        assert weights < whole < parts + 400_000


@pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=pytest.mark.slow) for name in ("fp16", "int8")]
)
def test_other_precisions(
    tiny_bundle_at: Callable[[Precision], Bundle], tmp_path: Path, precision: Precision
) -> None:
    record = write_single_file(tiny_bundle_at(precision), tmp_path)
    assert record.precision == precision
    assert record.agreement["map_error"] <= record.limit


@pytest.mark.slow
def test_bf16_is_refused(tiny_bundle_at: Callable[[Precision], Bundle], tmp_path: Path) -> None:
    with pytest.raises(BerdiffError, match=r"could not be checked.*--precision"):
        write_single_file(tiny_bundle_at("bf16"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_finds_something_else_is_not_written(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(bundle: Bundle, noise_input: bool) -> onnx.ModelProto:
        return detector_graph(variant(bundle, anomaly_map="flips"), noise_input)

    monkeypatch.setattr(writing, "detector_graph", spoilt)
    with pytest.raises(BerdiffError, match="does not find what the runtime finds"):
        write_single_file(tiny_bundle, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("noise_input", [False, True], ids=["drawn", "given"])
def test_export_of_a_bundle(tiny_bundle: Bundle, tmp_path: Path, noise_input: bool) -> None:
    words = ["export", str(tiny_bundle.path), "-o", str(tmp_path), "--single-file"]
    done = CliRunner().invoke(app, [*words, *["--noise-input"][: int(noise_input)]])
    assert done.exit_code == 0, done.output
    name = "detector-noise" if noise_input else "detector"
    record = read_json(SingleFile, tmp_path / f"{name}.json")
    assert record.sha256 == sha256_file(tmp_path / record.file)
    assert record.sha256 in done.output
    assert (record.bundle, record.noise_input) == (tiny_bundle.digest, noise_input)
    assert max(record.agreement.values()) < 1e-5


def test_noise_input_goes_with_the_single_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    words = ["export", str(tiny_bundle.path), "-o", str(tmp_path), "--noise-input"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "--single-file" in done.output


def test_tensorrt_for_rtx_builds_the_file_whose_noise_is_given(tiny_bundle: Bundle) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    data = detector_graph(tiny_bundle, noise_input=True).SerializeToString()
    errors = [] if parser.parse(data) else [parser.get_error(i) for i in range(parser.num_errors)]
    assert errors == []
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [[n if side == -1 else side for side in tensor.shape] for n in (1, 2, 4)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    assert engine.nbytes > 100_000
