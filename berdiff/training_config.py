"""Settings of a training run: presets in YAML, changed one key at a time by ``--set``."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from berdiff.runtime.errors import BerdiffError, optional
from berdiff.runtime.strict import from_json

from .config import ModelConfig


@dataclass(frozen=True)
class Augmentation:
    """Random changes of healthy training images; each is drawn anew for every image and step.

    Attributes
    ----------
    flip : bool
        Mirror left and right (columns), half of the time.
    rotation : float
        Largest rotation, in degrees.
    scale : float
        Largest relative change of size.
    shift : float
        Largest shift, as a fraction of the image's height and width.
    intensity : float
        Largest relative change of brightness.
    """

    flip: bool = True
    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    intensity: float = 0.0

    def __post_init__(self) -> None:
        """Refuse amounts that mean nothing."""
        for name in ("rotation", "shift", "intensity"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.scale < 1:
            raise ValueError(f"scale must lie in [0, 1), got {self.scale}")


@dataclass(frozen=True)
class StageSettings:
    """What both stages of training share.

    Attributes
    ----------
    steps : int
        Optimiser steps.
    batch_size : int
        Images per step, over all processes together.
    accumulate : int
        Parts in which each process takes its share of the batch, one after the other: the same
        step with less memory.
    learning_rate : float
        Adam's (autoencoder) or AdamW's (denoiser), after a linear warm-up; for the whole batch,
        however many processes share it.
    warmup_steps : int
        Steps over which the learning rate rises from 0.
    final_learning_rate : float
        The learning rate falls to this fraction, along a cosine, by the last step; 1 keeps it.
    ema : float
        Decay of the exponential moving average of the weights.
    validate_every, save_every : int
        Steps between validations (with sample pictures), and between saved states.
    """

    steps: int = 12000
    batch_size: int = 24
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    final_learning_rate: float = 1.0
    ema: float = 0.995
    validate_every: int = 1000
    save_every: int = 500

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        for name in ("steps", "batch_size", "accumulate", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(
                f"final_learning_rate must lie in [0, 1], got {self.final_learning_rate}"
            )


@dataclass(frozen=True)
class AutoencoderStage(StageSettings):
    """Training of the autoencoder.

    Attributes
    ----------
    adversarial_start : int
        Step from which the discriminator takes part.
    adversarial_weight : float
        Factor on the adaptive weight of the adversarial loss; 0 trains without it.
    commitment_weight : float
        Weight of the mean of p (1 - p), which pushes bit probabilities away from 0.5.
    discriminator_channels : int
        Features of the discriminator's first layer.
    """

    adversarial_start: int = 30001
    adversarial_weight: float = 1.0
    commitment_weight: float = 0.0
    discriminator_channels: int = 64


@dataclass(frozen=True)
class DenoiserStage(StageSettings):
    """Training of the denoiser.

    Attributes
    ----------
    weight_decay : float
        AdamW's.
    max_timestep : int or None
        Largest step to train on, so that a small model spends its training on the noise levels it
        will be used at; None trains on all.
    """

    batch_size: int = 36
    ema: float = 0.999
    weight_decay: float = 0.0
    max_timestep: int | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """A whole training run.

    Attributes
    ----------
    model : ModelConfig
        What is trained.
    autoencoder, denoiser : AutoencoderStage, DenoiserStage
        How.
    augmentation : Augmentation
        Applied in both stages.
    validation_fraction : float
        Part of the healthy images held out for validation.
    """

    model: ModelConfig
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    denoiser: DenoiserStage = field(default_factory=DenoiserStage)
    augmentation: Augmentation = field(default_factory=Augmentation)
    validation_fraction: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie in (0, 1), got {self.validation_fraction}"
            )
        stage, shortest = self.autoencoder, min(self.model.preprocessing.size)
        adversarial = stage.adversarial_weight > 0 and stage.adversarial_start <= stage.steps
        if adversarial and (shortest < 24 or stage.discriminator_channels % 4):
            raise ValueError(
                "adversarial training needs images of at least 24 x 24 pixels and "
                f"discriminator_channels divisible by 4, got {self.model.preprocessing.size} and "
                f"{stage.discriminator_channels}; adversarial_weight=0 trains without it"
            )
        limit, total = self.denoiser.max_timestep, self.model.schedule.num_timesteps
        if limit is not None and not 1 <= limit < total:
            raise ValueError(f"max_timestep must lie between 1 and {total - 1}, got {limit}")
        level = self.model.sampling.noise_level
        if limit is not None and limit < level - 1:
            raise ValueError(
                f"max_timestep {limit} would leave the denoiser untrained at steps up to "
                f"{level - 1}, which the loop takes at noise_level {level}"
            )


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("berdiff") / "presets"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str, changes: list[str] | None = None) -> TrainingConfig:
    """Read a preset and apply ``key=value`` changes.

    Parameters
    ----------
    name : str
        One of `preset_names`, or the path of a YAML file of the same form.
    changes : list of str, optional
        For example ``["autoencoder.steps=2000", "model.sampling.noise_level=300"]``; values are
        YAML.

    Raises
    ------
    BerdiffError
        If the preset is unknown, a key does not exist, or a value has the wrong type.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise BerdiffError(f"cannot read the preset {name}: {error}") from error
    elif name in preset_names():
        text = (resources.files("berdiff") / "presets" / f"{name}.yaml").read_text("utf-8")
    else:
        raise BerdiffError(
            f"unknown preset '{name}'; there are {', '.join(preset_names())}, or give a .yaml file"
        )
    content = _parse(text, f"preset {name}")
    for change in changes or []:
        _assign(content, change, f"preset {name}")
    return from_json(TrainingConfig, content, f"preset {name}")


def changed_keys(old: TrainingConfig, new: TrainingConfig) -> list[str]:
    """Dotted names of the settings in which two configurations differ."""
    before, after = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _parse(text: str, where: str) -> Any:
    """Read YAML, taking 1e-4 for a number as YAML 1.2 does (PyYAML's 1.1 takes it for a string)."""
    yaml = optional("yaml", "train")

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Knows one kind of number more."""

    exponent = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates such as 2024-13-01
        raise BerdiffError(f"{where}: not valid YAML: {error}") from error


def _assign(tree: Any, change: str, where: str) -> None:
    """Apply one ``key=value``."""
    name, equals, value = change.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise BerdiffError(f"--set takes key=value, got {change!r}")
    for key in keys[:-1]:
        tree = tree.setdefault(key, {}) if isinstance(tree, dict) else None
    if not isinstance(tree, dict):
        raise BerdiffError(f"{where}: no key '{name.strip()}'")
    tree[keys[-1]] = _parse(value, f"--set {change}")
