"""Import of checkpoints written by the authors' public PyTorch code (Wolleb et al. 2024).

An upstream file is a state dict and says nothing of its own configuration, so that is read from
the names and shapes of the arrays; then every name and shape is checked against the network it
implies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import sha256_file
from berdiff.runtime.preprocessing import Preprocessing

from .autoencoder import BinaryAutoencoder
from .config import AutoencoderConfig, DenoiserConfig, ModelConfig
from .denoiser import Denoiser
from .upstream_files import Weights, choose_file, read_weights

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)

BRATS_MODALITIES = ("t1", "t1ce", "t2", "flair")
OCT_MODALITIES = ("oct",)

# Upstream stores a 1x1 convolution in every residual block, used or not, and a predicted variance.
_UNUSED = re.compile(r"(encoder|generator)\.blocks\.\d+\.conv_out\.|generator\.logsigma\.")


@dataclass(frozen=True)
class Imported:
    """A model read from upstream's files.

    Attributes
    ----------
    config : ModelConfig
        Configuration read from the weights, upstream's preprocessing, and where it came from.
    autoencoder, denoiser : BinaryAutoencoder, Denoiser
        The networks, float32, on the CPU, in evaluation mode.
    notes : tuple of str
        What the user should know: which files were taken, and doubts about them.
    """

    config: ModelConfig
    autoencoder: BinaryAutoencoder
    denoiser: Denoiser
    notes: tuple[str, ...]


def import_upstream(
    autoencoder: Path,
    denoiser: Path,
    *,
    name: str = "imported",
    modalities: tuple[str, ...] | None = None,
    image_size: int = 256,
) -> Imported:
    """Read a model from the two files (or folders of files) upstream's training leaves behind.

    Parameters
    ----------
    autoencoder : Path
        ``binaryae_ema_<step>.th`` or ``binaryae_<step>.th``, or the log folder that holds them;
        of a folder the newest EMA file is taken.
    denoiser : Path
        ``ema{brats,OCT}0.999_<step>.pt`` or ``{brats,OCT}<step>.pt``, or their folder.
    name : str
        Name of the model, for people.
    modalities : tuple of str, optional
        One name per image channel. Needed unless the autoencoder has four channels (BraTS: t1,
        t1ce, t2, flair) or one (OCT).
    image_size : int
        Side of the square model grid in pixels; the weights do not tell it.

    Returns
    -------
    Imported

    Raises
    ------
    BerdiffError
        If a file is missing, unreadable, no state dict of its kind, of an architecture other than
        upstream's, or holds values that are not finite; or if the two files do not fit together.
    """
    autoencoder, ae_notes = choose_file(autoencoder, "autoencoder")
    denoiser, unet_notes = choose_file(denoiser, "denoiser")
    ae_weights = read_weights(autoencoder, "autoencoder")
    ae_config = _inferred(autoencoder_config, ae_weights, autoencoder)
    unet_weights = read_weights(denoiser, "denoiser")
    unet_config = _inferred(denoiser_config, unet_weights, denoiser)
    try:
        config = ModelConfig(
            preprocessing=_preprocessing(ae_config.in_channels, modalities, image_size),
            autoencoder=ae_config,
            denoiser=unet_config,
            forward_noise="upstream",
            name=name,
            provenance={
                "origin": "imported from upstream's PyTorch files",
                "autoencoder_file": autoencoder.name,
                "autoencoder_sha256": sha256_file(autoencoder),
                "denoiser_file": denoiser.name,
                "denoiser_sha256": sha256_file(denoiser),
            },
        )
    except ValueError as error:
        raise BerdiffError(f"{autoencoder.name} and {denoiser.name}: {error}") from error
    with torch.device("meta"):  # shapes without memory, until the weights are known to fit
        ae_module, unet_module = BinaryAutoencoder(ae_config), Denoiser(unet_config)
    return Imported(
        config,
        _filled(ae_module, ae_weights, autoencoder),
        _filled(unet_module, unet_weights, denoiser),
        (*ae_notes, *unet_notes),
    )


def _inferred(infer: Callable[[Weights], Config], weights: Weights, path: Path) -> Config:
    """Infer a configuration, and name the file where that fails."""
    try:
        return infer(weights)
    except KeyError as error:
        raise BerdiffError(f"{path}: '{error.args[0]}' is missing") from error
    except (ValueError, IndexError) as error:
        raise BerdiffError(f"{path}: not the architecture of upstream: {error}") from error


def autoencoder_config(weights: Mapping[str, Tensor]) -> AutoencoderConfig:
    """Infer an autoencoder's configuration from the shapes of its arrays.

    What is inferred is only as good as the arrays it looks at: check all of them against the
    network it describes.

    Raises
    ------
    KeyError, ValueError, IndexError
        If an array that is looked at is missing or of an impossible shape.
    """
    base, in_channels = _shape(weights, "encoder.blocks.0.weight", 4)[:2]
    code_channels, embedding = _shape(weights, "quantize.embed.weight", 2)
    # Blocks: one convolution, per level residual blocks and (but for the last) a downsampling,
    # then residual, attention, residual.
    downsamplings = _block_numbers(weights, r"encoder\.blocks\.(\d+)\.conv\.weight")
    attentions = _block_numbers(weights, r"encoder\.blocks\.(\d+)\.q\.weight")
    if not attentions:
        raise ValueError("the encoder has no attention block")
    residual = downsamplings[0] - 1 if downsamplings else attentions[0] - 2
    firsts = [1 + level * (residual + 1) for level in range(len(downsamplings) + 1)]
    widths = [_shape(weights, f"encoder.blocks.{n}.conv1.weight", 4)[0] for n in firsts]
    return AutoencoderConfig(
        in_channels=in_channels,
        base_channels=base,
        channel_multipliers=_multipliers(widths, base),
        residual_blocks=residual,
        code_channels=code_channels,
        embedding_channels=embedding,
    )


def denoiser_config(weights: Mapping[str, Tensor]) -> DenoiserConfig:
    """Infer a denoiser's configuration from the shapes of its arrays.

    The number of attention heads leaves no trace in the shapes; upstream has one. See
    `autoencoder_config`.
    """
    base, code_channels = _shape(weights, "input_blocks.0.0.weight", 4)[:2]
    downsamplings = _block_numbers(weights, r"input_blocks\.(\d+)\.0\.op\.weight")
    blocks = _block_numbers(weights, r"input_blocks\.(\d+)\.0\.in_layers\.2\.weight")
    residual = downsamplings[0] - 1 if downsamplings else len(blocks)
    firsts = [1 + level * (residual + 1) for level in range(len(downsamplings) + 1)]
    widths = [_shape(weights, f"input_blocks.{n}.0.in_layers.2.weight", 4)[0] for n in firsts]
    attended = [f"input_blocks.{n}.1.norm.weight" in weights for n in firsts]
    return DenoiserConfig(
        code_channels=code_channels,
        base_channels=base,
        channel_multipliers=_multipliers(widths, base),
        residual_blocks=residual,
        attention_downsampling=tuple(2**level for level, yes in enumerate(attended) if yes),
        heads=1,
    )


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise ValueError(f"'{name}' has shape {list(shape)}, expected {dimensions} dimensions")
    return shape


def _block_numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    return sorted(int(match[1]) for name in weights if (match := re.fullmatch(pattern, name)))


def _multipliers(widths: list[int], base: int) -> tuple[int, ...]:
    if any(width % base for width in widths):
        raise ValueError(f"features per level {widths} are no multiples of the first, {base}")
    return tuple(width // base for width in widths)


def _preprocessing(
    channels: int, modalities: tuple[str, ...] | None, image_size: int
) -> Preprocessing:
    """Upstream's preparation of images: OCT is resized, everything else padded at 1 mm."""
    defaults = {len(BRATS_MODALITIES): BRATS_MODALITIES, len(OCT_MODALITIES): OCT_MODALITIES}
    if modalities is None and channels not in defaults:
        raise ValueError(f"the model takes {channels} channels; name them with --modalities")
    modalities = modalities or defaults[channels]
    resize = modalities == OCT_MODALITIES
    return Preprocessing(
        channels=channels,
        modalities=modalities,
        size=(image_size, image_size),
        fit="resize" if resize else "pad",
        spacing=None if resize else 1.0,
        orientation="LPS",
        normalisation="minmax",
    )


def _filled(module: Module, weights: Weights, path: Path) -> Module:
    """Give a network its weights, after every name, shape and value has been checked."""
    wanted = {name: list(value.shape) for name, value in module.state_dict().items()}
    got = {name: list(value.shape) for name, value in weights.items()}
    unexpected = [n for n in got if n not in wanted and not _UNUSED.match(n)]
    differing = [
        f"{n} {got[n]} instead of {wanted[n]}" for n in wanted if n in got and got[n] != wanted[n]
    ]
    for what, names in (
        ("missing", [name for name in wanted if name not in got]),
        ("unexpected", unexpected),
        ("of another shape", differing),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BerdiffError(
                f"{path}: not the architecture of upstream: {len(names)} of {len(wanted)} arrays "
                f"{what}: {', '.join(names[:3])}{more}"
            )
    # Copies: arrays of one file may share memory, and may be views of larger ones.
    tensors = {name: weights[name].float().clone() for name in wanted}
    for name, values in tensors.items():
        if not torch.isfinite(values).all():
            raise BerdiffError(
                f"{path}: '{name}' holds NaN or infinity; training had diverged, or the file is "
                "damaged. Take an earlier checkpoint"
            )
    module.load_state_dict(tensors, assign=True)
    return module.eval()
