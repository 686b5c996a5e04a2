"""A bundle is written whole and right, or not at all."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from berdiff.checkpoint import load_config
from berdiff.config import ModelConfig
from berdiff.export import write_bundle
from berdiff.export.golden import example_images
from berdiff.export.parity import ParityError
from berdiff.export.write_bundle import export_bundle
from berdiff.runtime import errors
from berdiff.runtime.bundle import GRAPHS, Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BerdiffError, MissingDependency
from berdiff.runtime.files import sha256_file
from berdiff.runtime.intake import fit
from berdiff.runtime.precision import limits
from berdiff.runtime.strict import to_json


@pytest.fixture
def graphs_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Take the graphs from a folder instead of PyTorch: what the gate sees is ours to choose."""

    def use(source: Path) -> None:
        monkeypatch.setattr(
            write_bundle,
            "_write_graphs",
            lambda folder, *_: shutil.copytree(source, folder),
        )

    return use


def perturbed(bundle: Bundle, target: Path, name: str) -> Path:
    """Copy a bundle's graphs, one weight of one of them changed by a thousandth."""
    folder = Path(shutil.copytree(bundle.path / "onnx", target))
    file = folder / Path(name).name
    model = onnx.load(file)
    weight = next(t for t in model.graph.initializer if t.name.endswith("weight"))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, file)
    return folder


def test_the_manifest_tells_what_the_checkpoint_says(
    tiny_bundle: Bundle, tiny_config: ModelConfig, tiny_checkpoint: Path
) -> None:
    manifest = tiny_bundle.manifest
    assert manifest.name == "tiny"
    assert manifest.preprocessing == tiny_config.preprocessing
    assert manifest.code == tiny_config.code_shape
    assert manifest.schedule == tiny_config.schedule
    assert manifest.sampling == tiny_config.sampling
    assert manifest.forward_noise == "bernoulli"
    assert manifest.threshold is None
    assert manifest.dynamic_batch == (1, 8, 32)
    assert manifest.precision == "fp32"
    assert manifest.parity_limits == limits("fp32")
    assert set(manifest.files) == {*GRAPHS, "golden/vectors.npz"}
    assert manifest.provenance["opset"] == "20"
    assert manifest.provenance.keys() >= {"berdiff", "torch", "onnx"}
    for name in ("config.json", "autoencoder.safetensors", "denoiser.safetensors"):
        assert manifest.provenance[f"sha256 of {name}"] == sha256_file(tiny_checkpoint / name)


def test_what_healthy_input_looks_like_comes_along(
    tiny_bundle: Bundle,
    tiny_checkpoint: Path,
    tmp_path: Path,
    graphs_from: Callable[[Path], None],
) -> None:
    assert tiny_bundle.manifest.input_statistics is None
    rows = np.random.default_rng(0).normal(0.5, 0.1, (30, 15))
    found = fit(rows, ("flair",))
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    config = dataclasses.replace(load_config(folder), input_statistics=found)
    (folder / "config.json").write_text(to_json(config))
    graphs_from(tiny_bundle.path / "onnx")
    assert export_bundle(folder, tmp_path / "bundle").manifest.input_statistics == found


def test_every_file_in_the_folder_is_in_the_manifest(tiny_bundle: Bundle) -> None:
    found = {
        file.relative_to(tiny_bundle.path).as_posix()
        for file in tiny_bundle.path.rglob("*")
        if file.is_file()
    }
    assert found == {*tiny_bundle.manifest.files, "bundle.json"}


def test_the_same_checkpoint_gives_the_same_bundle(
    tiny_bundle: Bundle,
    tiny_checkpoint: Path,
    tmp_path: Path,
    graphs_from: Callable[[Path], None],
) -> None:
    graphs_from(tiny_bundle.path / "onnx")
    assert export_bundle(tiny_checkpoint, tmp_path / "again").digest == tiny_bundle.digest
    other = export_bundle(tiny_checkpoint, tmp_path / "other", dynamic_batch=(2, 4, 4))
    assert other.manifest.dynamic_batch == (2, 4, 4)
    assert other.digest != tiny_bundle.digest


@pytest.mark.parametrize("name", GRAPHS)
def test_a_wrong_graph_breaches_the_gate_and_leaves_nothing(
    tiny_bundle: Bundle,
    tiny_checkpoint: Path,
    tmp_path: Path,
    graphs_from: Callable[[Path], None],
    name: str,
) -> None:
    graphs_from(perturbed(tiny_bundle, tmp_path / "graphs", name))
    network = Path(name).stem
    with pytest.raises(ParityError, match=rf"{network}_error is .*, limit 0.0001"):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_graph_that_cannot_be_loaded_leaves_nothing(
    tiny_bundle: Bundle,
    tiny_checkpoint: Path,
    tmp_path: Path,
    graphs_from: Callable[[Path], None],
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.path / "onnx", tmp_path / "graphs"))
    (folder / "decoder.onnx").write_bytes(b"no graph")
    graphs_from(folder)
    with pytest.raises(BerdiffError, match=r"decoder\.onnx cannot be loaded"):
        export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("batches", [(0, 1, 2), (4, 2, 8), (1, 9, 8)])
def test_impossible_batches(
    tiny_checkpoint: Path, tmp_path: Path, batches: tuple[int, int, int]
) -> None:
    with pytest.raises(BerdiffError, match="MIN,OPT,MAX"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", dynamic_batch=batches)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "unknown precision 'half'; expected one of fp32, fp16, bf16, int8"),
        ({"precision": "int8"}, "int8 needs healthy scans, .* --calibration"),
        ({"calibration": Path("scans")}, "another --precision, or leave --calibration out"),
        ({"precision": "bf16", "opset": 20}, "bf16 needs opset 22 or later, got 20"),
        ({"precision": "int8", "calibration": Path("nowhere")}, "nowhere does not exist"),
    ],
)
def test_options_that_do_not_fit(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BerdiffError, match=message):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_use_is_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "notes.txt").write_text("mine")
    with pytest.raises(BerdiffError, match="exists already"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")
    assert [file.name for file in tmp_path.rglob("*")] == ["bundle", "notes.txt"]


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BerdiffError, match=r"no config\.json"):
        export_bundle(tmp_path / "nothing", tmp_path / "bundle")


def test_a_missing_runtime_is_noticed_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> object:
        if name == "onnxruntime":
            raise ModuleNotFoundError(name=name)
        return real(name, package)

    monkeypatch.setattr(errors.importlib, "import_module", without)
    with pytest.raises(MissingDependency, match=r"berdiff\[cpu\]"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle")


def test_example_images_are_usable_input(tiny_config: ModelConfig) -> None:
    images = example_images(tiny_config.preprocessing)
    assert images.shape == (2, 1, 32, 32)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() <= 1
    assert not np.array_equal(images[0], images[1])
    assert (images[:, :, 0, 0] == 0).all()


def test_the_bundle_is_a_detector(tiny_bundle: Bundle, tiny_checkpoint: Path) -> None:
    images = example_images(load_config(tiny_checkpoint).preprocessing)
    with Detector.open(tiny_bundle.path, threads=1) as detector:
        detector.warm_up()
        detection = detector.detect(images, ids=[1, 2])
    assert detection.anomaly_map.shape == (2, 32, 32)
    assert np.isfinite(detection.anomaly_map).all()
    assert json.loads((tiny_bundle.path / "bundle.json").read_text())["schema_version"] == 3
