"""From a folder of healthy images to a checkpoint: both stages, in one folder.

The run's folder holds ``training.json`` (the settings), one folder per stage (state, logs, sample
pictures), ``autoencoder.safetensors`` after the first stage and ``checkpoint/`` after the second.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import atomic_file, write_atomic
from berdiff.runtime.strict import read_json, to_json

from .autoencoder import BinaryAutoencoder
from .checkpoint import AUTOENCODER_NAME, load_weights, save_checkpoint, save_weights
from .data import HealthyImages
from .train_autoencoder import AutoencoderTraining
from .train_denoiser import DenoiserTraining
from .train_processes import agreed
from .trainer import RunSettings, Stage, Trainer
from .training_config import TrainingConfig, changed_keys

SETTINGS_NAME = "training.json"
CHECKPOINT_NAME = "checkpoint"


def prepare_folder(folder: Path, config: TrainingConfig, *, resume: bool) -> None:
    """Create a run's folder, or check that the one to continue is of the same model.

    In a run of several processes, the main one does this.

    Raises
    ------
    BerdiffError
        If the folder holds a run and `resume` is False, or holds a run of another model or with
        other augmentation.
    """
    source = folder / SETTINGS_NAME
    if source.is_file():
        if not resume:
            raise BerdiffError(
                f"{folder} holds a training run already; continue it with --continue, "
                "or choose another folder"
            )
        old = read_json(TrainingConfig, source)
        # Each stage compares its own settings with those of the state it continues from.
        changed = [
            key for key in changed_keys(old, config) if key.startswith(("model.", "augmentation."))
        ]
        if changed:
            raise BerdiffError(
                f"{folder} holds another run: {', '.join(changed)} differ; "
                "continue with the same settings, or choose another folder"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise BerdiffError(f"{folder} is not empty and holds no training run; choose another")
    else:
        _record(folder, config)


def _record(folder: Path, config: TrainingConfig) -> None:
    write_atomic(folder / SETTINGS_NAME, to_json(config).encode())


def _run_stage(
    stage: Stage, config: TrainingConfig, images: HealthyImages, run: RunSettings
) -> nn.Module:
    """Train one stage to its end; its settings are recorded once its state has accepted them."""
    trainer = Trainer(stage, images, config.augmentation, run)
    if run.accelerator.is_main_process:
        _record(run.folder, config)
    return trainer.train()


def train_autoencoder(config: TrainingConfig, images: HealthyImages, run: RunSettings) -> None:
    """Train stage one and write its averaged weights into the run's folder."""
    torch.manual_seed(run.seed)
    stage = AutoencoderTraining(config, run.accelerator)
    network = _run_stage(stage, config, images, run)
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
    target = run.folder / CHECKPOINT_NAME
    with agreed(run.accelerator):
        autoencoder = _trained_autoencoder(config, run.folder)
        if target.exists():
            raise BerdiffError(f"{target} exists already: this run has been trained to its end")
    torch.manual_seed(run.seed + 1)
    stage = DenoiserTraining(config, autoencoder, run.accelerator)
    logits = _run_stage(stage, config, images, run)
    if run.accelerator.is_main_process:
        provenance = {
            "trained_on": f"{len(images.train)} healthy images, sha256 {images.digest}",
            "seed": str(run.seed),
            "torch": torch.__version__,
        }
        model = dataclasses.replace(
            config.model,
            provenance={**config.model.provenance, **provenance},
            input_statistics=images.statistics(config.model.preprocessing.modalities),
        )
        save_checkpoint(target, model, autoencoder, logits.denoiser, half=half)  # type: ignore[arg-type]
    run.accelerator.wait_for_everyone()
    return target


def _trained_autoencoder(config: TrainingConfig, folder: Path) -> BinaryAutoencoder:
    weights = folder / AUTOENCODER_NAME
    if not weights.is_file():
        raise BerdiffError(
            f"{weights} is missing: train the autoencoder first, "
            f"with: berdiff train autoencoder -o {folder}"
        )
    autoencoder = BinaryAutoencoder(config.model.autoencoder)
    load_weights(weights, autoencoder)
    return autoencoder
