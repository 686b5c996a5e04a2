import json
import shutil
from pathlib import Path

import onnx
import pytest

from berdiff.runtime.bundle import Bundle, record_files, write_manifest
from berdiff.runtime.errors import BackendError, BundleError
from berdiff.runtime.services.audit import AuditLog
from berdiff.runtime.services.self_test import open_proven


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))


def test_a_sound_detector_comes_with_its_proof(bundle: Path, tmp_path: Path) -> None:
    detector, proof = open_proven(bundle, batch_size=2)
    with detector:
        assert proof.digest == detector.bundle.digest == Bundle.open(bundle).digest
    assert proof.engine["device"] == "cpu"
    assert {check.name for check in proof.checks} >= {"encoder_error", "loop_mask_rate"}
    assert all(check.passed for check in proof.checks)
    with AuditLog.open(tmp_path / "audit.log") as log:
        log.append("start", **proof.facts())
    facts = json.loads((tmp_path / "audit.log").read_text())["facts"]
    assert facts["bundle"] == proof.digest
    assert facts["checks"]["decoder_error"] < 1e-4


def test_an_altered_file_is_refused(bundle: Path) -> None:
    weights = bundle / "onnx" / "decoder.onnx"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.onnx was altered"):
        open_proven(bundle)


def test_other_weights_with_the_right_digests_are_refused(bundle: Path) -> None:
    """Who changes weights and digests alike has not changed what they are to compute."""
    opened = Bundle.open(bundle)
    path = bundle / "onnx" / "decoder.onnx"
    model = onnx.load(str(path))
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(largest) * 1.01
    largest.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), largest.name))
    onnx.save(model, str(path))
    opened.manifest.files.update(record_files(bundle))
    write_manifest(bundle, opened.manifest)
    Bundle.open(bundle)
    with pytest.raises(BackendError, match=r"does not compute.*decoder_error.*do not use it"):
        open_proven(bundle)
