"""Checkpoints as upstream's training saves them, of a model with the oracle's weights."""

from __future__ import annotations

import torch
from numpy_networks import AutoencoderSpec, DenoiserSpec, named_weights
from parameter_shapes import autoencoder_shapes, denoiser_shapes

StateDict = dict[str, torch.Tensor]

SMALL_AUTOENCODER = AutoencoderSpec(
    in_channels=4, base=32, multipliers=(1, 2, 2), blocks=1, code_channels=8, embedding=64
)
SMALL_DENOISER = DenoiserSpec(
    code_channels=8, base=32, multipliers=(1, 2), blocks=2, attention_levels=(1,)
)


def autoencoder_file(spec: AutoencoderSpec = SMALL_AUTOENCODER) -> StateDict:
    """The autoencoder's state dict, with what else upstream saves beside it."""
    weights = named_weights(autoencoder_shapes(spec))
    state = {f"ae.{name}": torch.from_numpy(values) for name, values in weights.items()}
    state["disc.main.0.weight"] = torch.zeros(64, spec.in_channels, 4, 4)
    # The discriminator's batch normalisation counts its steps in integers.
    state["disc.main.3.num_batches_tracked"] = torch.tensor(7)
    state["perceptual.lin0.model.1.weight"] = torch.full((1, 64, 1, 1), torch.nan)
    return state


def denoiser_file(spec: DenoiserSpec = SMALL_DENOISER) -> StateDict:
    weights = named_weights(denoiser_shapes(spec))
    return {name: torch.from_numpy(values) for name, values in weights.items()}
