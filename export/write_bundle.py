"""From a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import torch

from berdiff import __version__
from berdiff.autoencoder import BinaryAutoencoder
from berdiff.checkpoint import checkpoint_digests, load_checkpoint
from berdiff.config import ModelConfig
from berdiff.denoiser import Denoiser
from berdiff.runtime.backends import Backend, open_backend
from berdiff.runtime.bundle import Bundle, record_files, write_manifest
from berdiff.runtime.errors import BerdiffError, optional
from berdiff.runtime.files import atomic_folder
from berdiff.runtime.manifest import SCHEMA_VERSION, Manifest
from berdiff.runtime.precision import PRECISIONS, Precision, limits
from berdiff.runtime.verify import GOLDEN_NAME

from .emulation import open_emulated
from .golden import make_golden
from .graphs import DecoderGraph, DenoiserGraph, EncoderGraph
from .half import HALF_TYPES, halved
from .onnx_export import DEFAULT_OPSET, export_graph
from .parity import check_parity

# The first operator set in which convolutions may be bfloat16.
BF16_OPSET = 22


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    precision: Precision = "fp32",
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
    dynamic_batch : tuple of int
        Smallest, usual and largest batch, for engines built from the graphs later. The graphs
        themselves take any batch.
    opset : int, optional
        ONNX operator set; None takes 20, or 22 at bf16.

    Raises
    ------
    BerdiffError
        If the checkpoint cannot be read, the output exists, or the graphs breach a parity limit.
    """
    optional("onnxruntime", "cpu")  # needed at the end: say so at the start
    if precision not in PRECISIONS:
        raise BerdiffError(
            f"unknown precision '{precision}'; expected one of {', '.join(PRECISIONS)}"
        )
    if not 1 <= dynamic_batch[0] <= dynamic_batch[1] <= dynamic_batch[2]:
        raise BerdiffError(
            f"dynamic batch must be MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, got {dynamic_batch}"
        )
    opset = _opset(opset, precision)
    checkpoint = Path(checkpoint)
    config, autoencoder, denoiser = load_checkpoint(checkpoint)
    with atomic_folder(Path(output)) as part:
        _write_graphs(part / "onnx", config, autoencoder, denoiser, opset, precision)
        make_golden(config, autoencoder, denoiser).save(part / GOLDEN_NAME)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=config.name,
            preprocessing=config.preprocessing,
            code=config.code_shape,
            schedule=config.schedule,
            forward_noise=config.forward_noise,
            sampling=config.sampling,
            precision=precision,
            dynamic_batch=dynamic_batch,
            provenance=_provenance(checkpoint, config, opset),
            files=record_files(part),
        )
        write_manifest(part, manifest)
        bundle = Bundle.open(part)
        with _open(bundle) as backend:
            parity = check_parity(bundle, backend)
        manifest = dataclasses.replace(manifest, parity=parity, parity_limits=limits(precision))
        write_manifest(part, manifest)
    return Bundle.open(output)


def _opset(opset: int | None, precision: Precision) -> int:
    least = BF16_OPSET if precision == "bf16" else DEFAULT_OPSET
    if opset is None:
        return least
    if precision == "bf16" and opset < BF16_OPSET:
        raise BerdiffError(f"bf16 needs opset {BF16_OPSET} or later, got {opset}")
    return opset


def _open(bundle: Bundle) -> Backend:
    """Open the networks as they will be computed where they are meant to run."""
    return (
        open_emulated(bundle) if bundle.manifest.precision in HALF_TYPES else open_backend(bundle)
    )


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
        autoencoder, denoiser = (
            halved(network, HALF_TYPES[precision]) for network in (autoencoder, denoiser)
        )
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
