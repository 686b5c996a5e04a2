"""From a folder of healthy images to a checkpoint: both stages, in one folder.

The run's folder holds ``training.json`` (the settings), one folder per stage (state, logs, sample
pictures), ``autoencoder.safetensors`` after the first stage and ``checkpoint/`` after the second.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import atomic_file, write_atomic
from berdiff.runtime.strict import from_json, to_json

from .autoencoder import BinaryAutoencoder
from .checkpoint import AUTOENCODER_NAME, load_weights, save_checkpoint, save_weights
from .data import HealthyImages
from .train_autoencoder import AutoencoderTraining
from .train_denoiser import DenoiserTraining
from .trainer import RunSettings, Trainer
from .training_config import TrainingConfig, changed_keys

SETTINGS_NAME = "training.json"
CHECKPOINT_NAME = "checkpoint"


def prepare_folder(folder: Path, config: TrainingConfig, *, resume: bool) -> None:
    """Create a run's folder, or check that the one to continue has the same settings.

    Raises
    ------
    BerdiffError
        If the folder holds a run and `resume` is False, or holds a run of another model.
    """
    source = folder / SETTINGS_NAME
    if source.is_file():
        if not resume:
            raise BerdiffError(
                f"{folder} holds a training run already; continue it with --continue, "
                "or choose another folder"
            )
        old = from_json(TrainingConfig, json.loads(source.read_text()), str(source))
        changed = [key for key in changed_keys(old, config) if key.startswith("model.")]
        if changed:
            raise BerdiffError(
                f"{folder} holds a run of another model: {', '.join(changed)} differ; "
                "continue with the same settings, or choose another folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise BerdiffError(f"{folder} is not empty and holds no training run; choose another")
    write_atomic(source, to_json(config).encode())


def train_autoencoder(config: TrainingConfig, images: HealthyImages, run: RunSettings) -> None:
    """Train stage one and write its averaged weights into the run's folder."""
    torch.manual_seed(run.seed)
    stage = AutoencoderTraining(config, run.accelerator)
    network = Trainer(stage, images, config.augmentation, run).train()
    if run.accelerator.is_main_process:
        with atomic_file(run.folder / AUTOENCODER_NAME) as part:
            save_weights(part, network)
    run.accelerator.wait_for_everyone()


def train_denoiser(
    config: TrainingConfig, images: HealthyImages, run: RunSettings, *, half: bool = False
) -> Path:
    """Train stage two on the codes of stage one's autoencoder and write the checkpoint.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    BerdiffError
        If the run's folder has no trained autoencoder.
    """
    weights = run.folder / AUTOENCODER_NAME
    if not weights.is_file():
        raise BerdiffError(
            f"{weights} is missing: train the autoencoder first, "
            "with: berdiff train autoencoder -o " + str(run.folder)
        )
    target = run.folder / CHECKPOINT_NAME
    if target.exists():
        raise BerdiffError(f"{target} exists already: this run has been trained to its end")
    autoencoder = BinaryAutoencoder(config.model.autoencoder)
    load_weights(weights, autoencoder)
    torch.manual_seed(run.seed + 1)
    stage = DenoiserTraining(config, autoencoder, run.accelerator)
    logits = Trainer(stage, images, config.augmentation, run).train()
    if run.accelerator.is_main_process:
        provenance = {
            "trained_on": f"{len(images.train)} healthy images, sha256 {images.digest}",
            "seed": str(run.seed),
            "torch": torch.__version__,
        }
        model = dataclasses.replace(
            config.model, provenance={**config.model.provenance, **provenance}
        )
        save_checkpoint(target, model, autoencoder, logits.denoiser, half=half)  # type: ignore[arg-type]
    run.accelerator.wait_for_everyone()
    return target
