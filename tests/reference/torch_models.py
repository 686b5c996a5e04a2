"""The package's PyTorch networks, filled with the oracle's weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy_networks import AutoencoderSpec, DenoiserSpec, Weights, named_weights
from parameter_shapes import autoencoder_shapes, denoiser_shapes

from berdiff.autoencoder import BinaryAutoencoder
from berdiff.config import AutoencoderConfig, DenoiserConfig
from berdiff.denoiser import Denoiser


def tensor(values: Any) -> torch.Tensor:
    """Array of any dtype as a float32 tensor."""
    return torch.from_numpy(np.asarray(values, np.float32))


def fill(module: torch.nn.Module, weights: Weights) -> None:
    """Load exactly the module's own parameters; a name the oracle lacks is an error."""
    module.load_state_dict({name: tensor(weights[name]) for name in module.state_dict()})
    module.eval()


def autoencoder_config(spec: AutoencoderSpec) -> AutoencoderConfig:
    return AutoencoderConfig(
        in_channels=spec.in_channels,
        base_channels=spec.base,
        channel_multipliers=spec.multipliers,
        residual_blocks=spec.blocks,
        code_channels=spec.code_channels,
        embedding_channels=spec.embedding,
    )


def denoiser_config(spec: DenoiserSpec) -> DenoiserConfig:
    return DenoiserConfig(
        code_channels=spec.code_channels,
        base_channels=spec.base,
        channel_multipliers=spec.multipliers,
        residual_blocks=spec.blocks,
        attention_downsampling=tuple(2**level for level in spec.attention_levels),
    )


def torch_autoencoder(spec: AutoencoderSpec) -> BinaryAutoencoder:
    model = BinaryAutoencoder(autoencoder_config(spec))
    fill(model, named_weights(autoencoder_shapes(spec)))
    return model


def torch_denoiser(spec: DenoiserSpec) -> Denoiser:
    model = Denoiser(denoiser_config(spec), spec.num_timesteps)
    fill(model, named_weights(denoiser_shapes(spec)))
    return model
