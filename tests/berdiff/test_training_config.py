"""Presets and their changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.strict import from_json, to_json
from berdiff.training_config import (
    AutoencoderStage,
    DenoiserStage,
    StageSettings,
    TrainingConfig,
    changed_keys,
    load_preset,
    preset_names,
)

LEAST = """
model:
  preprocessing: {channels: 1, modalities: [flair], size: [64, 64]}
  autoencoder: {in_channels: 1, channel_multipliers: [1, 1]}
  denoiser: {channel_multipliers: [1, 1]}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_presets_that_ship() -> None:
    assert preset_names() == ["brats", "flair", "oct", "phantom"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    config = load_preset(name)
    assert config.model.name == name
    assert config.model.code_shape.channels == config.model.denoiser.code_channels
    assert from_json(TrainingConfig, json.loads(to_json(config)), name) == config


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    """What it does not say has the published value."""
    config = load_preset(written(tmp_path, LEAST))
    assert config.model.preprocessing.size == (64, 64)
    assert config.autoencoder == AutoencoderStage(steps=12000, batch_size=24, ema=0.995)
    assert config.denoiser == DenoiserStage(batch_size=36, learning_rate=1e-4, ema=0.999)


# --- changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("autoencoder.steps=2000", 2000),
        (" autoencoder.learning_rate = 1e-4", 1e-4),
        ("autoencoder.learning_rate=1E+0", 1.0),
        ("autoencoder.learning_rate=.5e-3", 5e-4),
        ("denoiser.max_timestep=null", None),
        ("denoiser.max_timestep=299", 299),
        ("augmentation.flip=false", False),
        ("model.preprocessing.size=[128, 64]", (128, 64)),
        ("model.provenance={of: me}", {"of": "me"}),
        ("model.name=a=b", "a=b"),
        ("validation_fraction=0.25", 0.25),
    ],
)
def test_a_setting_can_be_changed(change: str, expected: Any) -> None:
    value: Any = load_preset("phantom", [change])
    for key in change.partition("=")[0].strip().split("."):
        value = getattr(value, key)
    assert value == expected
    assert type(value) is type(expected)


def test_only_what_was_named_changes_and_the_last_word_counts() -> None:
    plain = load_preset("flair")
    changed = load_preset("flair", ["denoiser.steps=7", "autoencoder.ema=0.5", "denoiser.steps=8"])
    assert changed_keys(plain, changed) == ["autoencoder.ema", "denoiser.steps"]
    assert changed.denoiser.steps == 8
    assert changed_keys(plain, load_preset("flair", [])) == []


def test_a_section_the_preset_leaves_out_can_be_set(tmp_path: Path) -> None:
    config = load_preset(written(tmp_path, LEAST), ["augmentation.rotation=3"])
    assert config.augmentation.rotation == 3.0


def test_changed_keys_names_what_was_added_and_lost() -> None:
    one = load_preset("phantom", ["model.provenance={a: x}"])
    other = load_preset("phantom", ["model.provenance={b: x}"])
    assert changed_keys(one, other) == ["model.provenance.a", "model.provenance.b"]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("autoencoder.stepz=3", r"preset phantom: autoencoder: unknown key 'stepz'"),
        ("autoencoder.adversarial.start=3", r"autoencoder: unknown key 'adversarial'"),
        ("autoencoder.steps.more=3", r"preset phantom: no key 'autoencoder\.steps\.more'"),
        ("training.steps=3", r"preset phantom: unknown key 'training'"),
        ("autoencoder.steps=many", r'autoencoder: steps: expected int, got "many"'),
        ("autoencoder.steps=0", "autoencoder: steps must be at least 1, got 0"),
        ("autoencoder.steps=1.5", r"expected int, got 1\.5"),
        ("autoencoder.steps=", "expected int, got null"),
        ("autoencoder.steps", r"--set takes key=value, got 'autoencoder\.steps'"),
        ("=3", "--set takes key=value"),
        ("autoencoder..steps=3", "--set takes key=value"),
        ("model.preprocessing.size=[1", r"--set model\.preprocessing\.size=\[1: not valid YAML"),
        ("model.name=2024-13-01", "not valid YAML"),
        ("model.name=2024-12-01", "model: name: expected str, got"),
        ("denoiser.ema=1", r"denoiser: ema must lie in \[0, 1\), got 1"),
        ("denoiser.learning_rate=0", "learning_rate must be positive"),
        ("denoiser.learning_rate=.nan", "expected float, got NaN"),
        ("denoiser.max_timestep=1000", "max_timestep must lie between 1 and 999, got 1000"),
        ("denoiser.max_timestep=198", "untrained at steps up to 199, .* at noise_level 200"),
        ("validation_fraction=1", r"validation_fraction must lie in \(0, 1\), got 1"),
        ("model.sampling.noise_level=1000", "noise level must lie between 1 and 999"),
        ("model.autoencoder.in_channels=4", "takes 4 channels, the preprocessing makes 1"),
    ],
)
def test_refused_changes_name_the_key(change: str, message: str) -> None:
    with pytest.raises(BerdiffError, match=message):
        load_preset("phantom", [change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", r"mine\.yaml: not valid YAML"),
        ("", r"mine\.yaml: expected an object, got null"),
        ("- model", r"mine\.yaml: expected an object, got \[\"model\"\]"),
        ("model: {}", r"mine\.yaml: model: missing key 'preprocessing'"),
        (LEAST + "autoencoder:", r"mine\.yaml: autoencoder: expected an object, got null"),
        (LEAST + "seed: 3", r"mine\.yaml: unknown key 'seed'"),
        (LEAST + "1: 3", r"mine\.yaml: unknown key '1'"),
        ("model: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_files_that_are_no_preset_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BerdiffError, match=message):
        load_preset(written(tmp_path, text))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(BerdiffError, match=r"cannot read the preset .*nowhere\.yaml"):
        load_preset(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
    with pytest.raises(BerdiffError, match=r"cannot read the preset .*latin\.yaml"):
        load_preset(str(tmp_path / "latin.yaml"))


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(BerdiffError, match="unknown preset 'mri'; there are brats, flair, oct, ph"):
        load_preset("mri")


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"validate_every": 0},
        {"save_every": -1},
        {"ema": -0.1},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"warmup_steps": -1},
        {"final_learning_rate": 1.5},
        {"final_learning_rate": -0.1},
    ],
)
def test_stages_that_cannot_train_are_refused(change: Any) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(StageSettings(), **change)


@pytest.mark.parametrize(
    "change", ["rotation=-5", "scale=1", "shift=-0.1", "intensity=-1", "scale=-0.1"]
)
def test_augmentations_that_mean_nothing_are_refused(change: str) -> None:
    name = change.partition("=")[0]
    with pytest.raises(BerdiffError, match=f"augmentation: {name} must"):
        load_preset("phantom", [f"augmentation.{change}"])


@pytest.mark.parametrize(
    "change", ["model.preprocessing.size=[16, 16]", "autoencoder.discriminator_channels=6"]
)
def test_adversarial_training_that_could_not_start_is_refused_at_once(
    change: str, tmp_path: Path
) -> None:
    preset = written(tmp_path, LEAST)
    start = "autoencoder.adversarial_start=10"
    with pytest.raises(BerdiffError, match="24 x 24"):
        load_preset(preset, [change, start])
    load_preset(preset, [change, start, "autoencoder.adversarial_weight=0"])
