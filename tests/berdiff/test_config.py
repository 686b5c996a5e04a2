"""Configurations of the networks: the published one, and what is refused before anything runs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from berdiff.config import AutoencoderConfig, DenoiserConfig, ModelConfig
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.intake import fit
from berdiff.runtime.manifest import CodeShape, SamplingDefaults, ScheduleSpec
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.strict import from_json, to_json

BRATS = ModelConfig(Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (256, 256)))


def test_the_defaults_are_the_published_model() -> None:
    """256 x 256 pixels to 128 x 32 x 32 bits."""
    assert BRATS.code_shape == CodeShape(128, 32, 32)
    assert (BRATS.autoencoder.downsampling, BRATS.denoiser.downsampling) == (8, 8)
    assert BRATS.denoiser.heads == 1
    assert BRATS.sampling == SamplingDefaults(200, None, 0.5)


def test_the_code_follows_height_and_width() -> None:
    config = dataclasses.replace(
        BRATS,
        preprocessing=dataclasses.replace(BRATS.preprocessing, size=(128, 192)),
        autoencoder=AutoencoderConfig(channel_multipliers=(1, 2)),
    )
    assert config.code_shape == CodeShape(128, 64, 96)


def test_a_configuration_survives_its_file() -> None:
    assert from_json(ModelConfig, json.loads(to_json(BRATS)), "config.json") == BRATS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_channels": 48}, "base_channels must be a multiple of 32 .* got 48"),
        ({"embedding_channels": 100}, "embedding_channels must be a multiple of 32"),
        ({"code_channels": 0}, "code_channels must be positive, got 0"),
        ({"channel_multipliers": (1, 0)}, r"channel_multipliers must be positive, got \(1, 0\)"),
        ({"channel_multipliers": ()}, "channel_multipliers must name at least one level"),
        ({"residual_blocks": -1}, "residual_blocks must be positive"),
    ],
)
def test_autoencoders_that_cannot_be_built_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_channels": 16}, "base_channels must be a multiple of 32"),
        ({"heads": 3}, "3 heads do not divide 128 channels"),
        ({"heads": 0}, "heads must be positive"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1"),
        ({"dropout": -0.1}, "dropout"),
        ({"channel_multipliers": ()}, "at least one level"),
        ({"attention_downsampling": (0,)}, "attention_downsampling must be positive"),
    ],
)
def test_denoisers_that_cannot_be_built_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(**change)


def test_statistics_of_other_channels_are_refused() -> None:
    rows = np.random.default_rng(0).normal(0.5, 0.1, (30, 15))
    with pytest.raises(ValueError, match="input_statistics are of coverage"):
        dataclasses.replace(BRATS, input_statistics=fit(rows, ("flair",)))


def test_a_denoiser_may_have_no_attention() -> None:
    assert DenoiserConfig(attention_downsampling=()).downsampling == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": AutoencoderConfig(in_channels=1)}, "takes 1 channels, .* makes 4"),
        ({"denoiser": DenoiserConfig(code_channels=64)}, "codes of 64 channels, .* makes 128"),
        (
            {"preprocessing": dataclasses.replace(BRATS.preprocessing, size=(240, 256))},
            r"size \(240, 256\) must be a multiple of 64",
        ),
        ({"sampling": SamplingDefaults(noise_level=1000)}, "noise level .* 1 and 999, got 1000"),
        ({"sampling": SamplingDefaults(steps=1)}, "steps must lie between 2 and 200"),
        ({"sampling": SamplingDefaults(flip_threshold=2)}, "flip threshold"),
        ({"schedule": ScheduleSpec(num_timesteps=150)}, "1 and 149, got 200"),
        ({"schedule": ScheduleSpec(beta_end=2.0)}, "betas must lie in"),
        ({"forward_noise": "paper"}, "forward noise"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BRATS, **change)


def test_a_file_with_such_parts_is_named() -> None:
    content = json.loads(to_json(BRATS))
    content["autoencoder"]["base_channels"] = 40
    with pytest.raises(BerdiffError, match=r"config\.json: autoencoder: base_channels .* got 40"):
        from_json(ModelConfig, content, "config.json")
