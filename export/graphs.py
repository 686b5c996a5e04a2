"""The three networks as what is exported: plain functions of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from berdiff.autoencoder import BinaryAutoencoder
from berdiff.denoiser import Denoiser


class EncoderGraph(nn.Module):
    """``image [N, C, H, W]`` in [0, 1] to ``probability [N, K, h, w]``."""

    def __init__(self, autoencoder: BinaryAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> Tensor:
        """Bit probabilities in [0, 1]."""
        return self.autoencoder.encode(image)


class DenoiserGraph(nn.Module):
    """``code [N, K, h, w]`` and ``t [1]`` to ``flip_probability [N, K, h, w]``.

    What depends on the step alone, from the time embedding to each block's shift, is computed here
    once for every step and kept as one table, a row per step.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        with torch.no_grad():
            shifts = denoiser.shifts(torch.arange(denoiser.num_timesteps))
        self.widths = [shift.shape[1] for shift in shifts]
        self.table: Tensor
        self.register_buffer("table", torch.cat(shifts, dim=1))

    def forward(self, code: Tensor, t: Tensor) -> Tensor:
        """Probability in [0, 1] that noise has flipped each bit."""
        row = torch.index_select(self.table, 0, t)
        shifts, start = [], 0
        for width in self.widths:  # slices: a split would become a sequence in ONNX
            shifts.append(row[:, start : start + width])
            start += width
        return torch.sigmoid(self.denoiser.denoise(code, shifts).float())


class DecoderGraph(nn.Module):
    """``code [N, K, h, w]`` in [0, 1] to ``image [N, C, H, W]``, not clamped."""

    def __init__(self, autoencoder: BinaryAutoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, code: Tensor) -> Tensor:
        """Image about [0, 1]."""
        return self.autoencoder.decode(code).float()
