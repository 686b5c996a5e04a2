"""From a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import onnx
import torch

from berdiff import __version__
from berdiff.autoencoder import BinaryAutoencoder
from berdiff.checkpoint import checkpoint_digests, load_checkpoint
from berdiff.config import ModelConfig
from berdiff.denoiser import Denoiser
from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.backends.onnxruntime_session import load
from berdiff.runtime.bundle import Bundle, record_files, write_manifest
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import atomic_folder
from berdiff.runtime.manifest import SCHEMA_VERSION, Manifest
from berdiff.runtime.precision import PRECISIONS, Precision
from berdiff.runtime.verify import GOLDEN_NAME, Check

from .emulation import open_emulated
from .golden import make_golden
from .graphs import DecoderGraph, DenoiserGraph, EncoderGraph
from .half import HALF_TYPES, halved
from .onnx_export import DEFAULT_OPSET, export_graph
from .parity import check_calibration, check_parity
from .reference import Reference, read_healthy

# The first operator set in which convolutions may be bfloat16.
BF16_OPSET = 22


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    precision: Precision = "fp32",
    calibration: Path | None = None,
    dynamic_batch: tuple[int, int, int] = (1, 8, 32),
    opset: int | None = None,
) -> Bundle:
    """Write a checkpoint as a bundle; whole and matching PyTorch, or not at all.

    Parameters
    ----------
    checkpoint : Path
        Folder written by training or import.
    output : Path
        Folder to make; must not exist, or be empty.
    precision : {"fp32", "fp16", "bf16", "int8"}
        What the networks compute in.
    calibration : Path, optional
        Healthy scans, on which the precision is compared with fp32. int8 needs them: the ranges
        of the networks' values are measured on them. Nothing of them is stored.
    dynamic_batch : tuple of int
        Smallest, usual and largest batch, for engines built from the graphs later. The graphs
        themselves take any batch.
    opset : int, optional
        ONNX operator set; None takes 20, or 22 at bf16.

    Raises
    ------
    BerdiffError
        If the options do not fit each other, the checkpoint or the calibration images cannot be
        read, the output exists, or the graphs breach a parity limit.
    """
    load()  # needed at the end: say so at the start
    _check_options(precision, calibration, dynamic_batch, opset)
    opset = opset or (BF16_OPSET if precision == "bf16" else DEFAULT_OPSET)
    checkpoint = Path(checkpoint)
    config, autoencoder, denoiser = load_checkpoint(checkpoint)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=config.name,
        preprocessing=config.preprocessing,
        code=config.code_shape,
        schedule=config.schedule,
        forward_noise=config.forward_noise,
        sampling=config.sampling,
        input_statistics=config.input_statistics,
        precision=precision,
        dynamic_batch=dynamic_batch,
        provenance=_provenance(checkpoint, config, opset),
        files={},
    )
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(Path(output)) as part:
        reference = None
        if calibration is not None:
            images = read_healthy(calibration, config.preprocessing)
            _write_graphs(Path(scratch, "onnx"), config, autoencoder, denoiser, opset, "fp32")
            exact = _signed(Path(scratch), dataclasses.replace(manifest, precision="fp32"))
            reference = Reference(exact, images)
        if reference is not None and precision == "int8":
            reference.quantise(part / "onnx")
        else:
            _write_graphs(part / "onnx", config, autoencoder, denoiser, opset, precision)
        make_golden(config, autoencoder, denoiser).save(part / GOLDEN_NAME)
        checks = _gated(_signed(part, manifest), reference)
        manifest = dataclasses.replace(
            manifest,
            parity={check.name: check.value for check in checks},
            parity_limits={check.name: check.limit for check in checks},
        )
        _signed(part, manifest)
    return Bundle.open(output)


def _check_options(
    precision: Precision,
    calibration: Path | None,
    dynamic_batch: tuple[int, int, int],
    opset: int | None,
) -> None:
    if precision not in PRECISIONS:
        raise BerdiffError(
            f"unknown precision '{precision}'; expected one of {', '.join(PRECISIONS)}"
        )
    if precision == "int8" and calibration is None:
        raise BerdiffError(
            "int8 needs healthy scans, on which the ranges of the networks' values are measured; "
            "name a folder of them with --calibration"
        )
    if precision == "fp32" and calibration is not None:
        raise BerdiffError(
            "calibration images compare a precision with fp32: give another --precision, or leave "
            "--calibration out"
        )
    if not 1 <= dynamic_batch[0] <= dynamic_batch[1] <= dynamic_batch[2]:
        raise BerdiffError(
            f"dynamic batch must be MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, got {dynamic_batch}"
        )
    if precision == "bf16" and opset is not None and opset < BF16_OPSET:
        raise BerdiffError(f"bf16 needs opset {BF16_OPSET} or later, got {opset}")


def _signed(folder: Path, manifest: Manifest) -> Bundle:
    """Write the manifest of a folder with its files recorded, and read the bundle back."""
    write_manifest(folder, dataclasses.replace(manifest, files=record_files(folder)))
    return Bundle.open(folder)


def _gated(bundle: Bundle, reference: Reference | None) -> list[Check]:
    """Pass the gates; return what they measured."""
    with _open(bundle) as backend:
        checks = check_parity(bundle, backend)
        if reference is not None:
            with open_backend(reference.bundle) as exact:
                checks += check_calibration(bundle, exact, backend, reference.judged)
    return checks


def _open(bundle: Bundle) -> Backend:
    """Open the networks as they will be computed where they are meant to run."""
    half = bundle.manifest.precision in HALF_TYPES
    return open_emulated(bundle) if half else open_backend(bundle)


def _write_graphs(
    folder: Path,
    config: ModelConfig,
    autoencoder: BinaryAutoencoder,
    denoiser: Denoiser,
    opset: int,
    precision: Precision,
) -> None:
    folder.mkdir()
    if precision in HALF_TYPES:
        dtype = HALF_TYPES[precision]
        autoencoder, denoiser = halved(autoencoder, dtype), halved(denoiser, dtype)
    pre, shape = config.preprocessing, config.code_shape
    image = torch.zeros(2, pre.channels, *pre.size)
    code = torch.zeros(2, shape.channels, shape.height, shape.width)
    step = torch.zeros(1, dtype=torch.int64)
    export_graph(
        EncoderGraph(autoencoder), {"image": image}, "probability", folder / "encoder.onnx", opset
    )
    export_graph(
        DenoiserGraph(denoiser),
        {"code": code, "t": step},
        "flip_probability",
        folder / "denoiser.onnx",
        opset,
    )
    export_graph(DecoderGraph(autoencoder), {"code": code}, "image", folder / "decoder.onnx", opset)


def _provenance(checkpoint: Path, config: ModelConfig, opset: int) -> dict[str, str]:
    """Where the weights came from, and what wrote the bundle."""
    return {
        **config.provenance,
        "berdiff": __version__,
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "opset": str(opset),
        **checkpoint_digests(checkpoint),
    }
