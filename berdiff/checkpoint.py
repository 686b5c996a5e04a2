"""Checkpoints: a folder with ``config.json`` and one safetensors file per network."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from berdiff.runtime.errors import BerdiffError, optional
from berdiff.runtime.files import atomic_folder, sha256_file
from berdiff.runtime.strict import read_json, to_json

from .autoencoder import BinaryAutoencoder
from .config import ModelConfig
from .denoiser import Denoiser

CONFIG_NAME = "config.json"
AUTOENCODER_NAME = "autoencoder.safetensors"
DENOISER_NAME = "denoiser.safetensors"


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    autoencoder: BinaryAutoencoder,
    denoiser: Denoiser,
    *,
    half: bool = False,
) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    folder : Path
        Must not exist, or be empty.
    config : ModelConfig
        Written as ``config.json``.
    autoencoder, denoiser : Module
        The networks.
    half : bool
        Store the weights in float16: half the size, loaded back as float32.
    """
    with atomic_folder(Path(folder)) as part:
        (part / CONFIG_NAME).write_text(to_json(config))
        save_weights(part / AUTOENCODER_NAME, autoencoder, half=half)
        save_weights(part / DENOISER_NAME, denoiser, half=half)


def load_checkpoint(folder: Path) -> tuple[ModelConfig, BinaryAutoencoder, Denoiser]:
    """Read a checkpoint; the networks come back in evaluation mode, in float32, on the CPU.

    Raises
    ------
    BerdiffError
        If the folder is no checkpoint, or a file is missing, altered in shape or of another model.
    """
    folder = Path(folder)
    config = load_config(folder)
    autoencoder = BinaryAutoencoder(config.autoencoder)
    denoiser = Denoiser(config.denoiser, config.schedule.num_timesteps)
    load_weights(folder / AUTOENCODER_NAME, autoencoder)
    load_weights(folder / DENOISER_NAME, denoiser)
    return config, autoencoder.eval(), denoiser.eval()


def shipped_checkpoint(name: str) -> Path:
    """Folder of a checkpoint that ships in the package.

    Parameters
    ----------
    name : str
        "phantom": trained on synthetic heads by the preset of the same name, for demonstrations
        and tests only.

    Raises
    ------
    BerdiffError
        If there is none of that name.
    """
    folder = Path(__file__).parent / "pretrained" / name
    if not (folder / CONFIG_NAME).is_file():
        raise BerdiffError(f"the package ships no checkpoint '{name}'; there is: phantom")
    return folder


def load_config(folder: Path) -> ModelConfig:
    """Read the ``config.json`` of a checkpoint."""
    source = Path(folder) / CONFIG_NAME
    if not source.is_file():
        raise BerdiffError(
            f"{folder} is not a checkpoint: it has no {CONFIG_NAME}. "
            "Make one with: berdiff train, or berdiff import"
        )
    return read_json(ModelConfig, source)


def checkpoint_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each of a checkpoint's files, as a bundle's provenance records them."""
    return {
        f"sha256 of {name}": sha256_file(Path(folder) / name)
        for name in (CONFIG_NAME, AUTOENCODER_NAME, DENOISER_NAME)
    }


def save_weights(path: Path, module: nn.Module, *, half: bool = False) -> None:
    """Write a network's parameters as safetensors."""
    safetensors = optional("safetensors.torch", "train")
    tensors = {
        name: (tensor.half() if half else tensor).detach().cpu().contiguous()
        for name, tensor in module.state_dict().items()
    }
    path.write_bytes(safetensors.save(tensors))  # save_file makes the file private


def load_weights(path: Path, module: nn.Module) -> None:
    """Read a network's parameters, refusing any that are missing, unknown or of another shape."""
    safetensors = optional("safetensors.torch", "train")
    if not path.is_file():
        raise BerdiffError(f"{path} is missing; the checkpoint is incomplete")
    try:
        tensors = safetensors.load_file(path)
    except Exception as error:
        raise BerdiffError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise BerdiffError(f"{path} does not fit {CONFIG_NAME}: {error}") from error
