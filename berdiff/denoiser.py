"""The denoiser: the guided-diffusion UNet (Dhariwal and Nichol 2021) on binary codes.

It predicts, for each bit of a noised code, the probability that noise has flipped it. Parameter
names are those of the authors' checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .autoencoder import Upsample
from .config import NORM_GROUPS, DenoiserConfig


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels)


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Cosines then sines of geometrically spaced frequencies.

    Parameters
    ----------
    timesteps : Tensor, shape (N,)
        Timesteps on the scale of 1000.
    channels : int
        Even number of features.

    Returns
    -------
    Tensor of float32, shape (N, channels)
    """
    half = channels // 2
    positions = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(10000.0) * positions / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


class ResidualBlock(nn.Module):
    """Two convolutions with the time embedding added between them, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float):
        super().__init__()
        self.in_layers = nn.Sequential(
            _norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.out_layers = nn.Sequential(
            _norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def shift(self, embedding: Tensor) -> Tensor:
        """Per-channel shift ``[N, out]`` that a time embedding ``[N, time]`` stands for."""
        return self.emb_layers(embedding)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Map ``[N, in, h, w]`` and a shift ``[N or 1, out]`` to ``[N, out, h, w]``."""
        h = self.in_layers(x) + shift[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all positions, plus the input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, h, w]`` to the same shape."""
        _, channels, height, width = x.shape
        width_of_head = channels // self.heads
        flat = x.flatten(2)
        # Channels of qkv are ordered head by head, and within a head q, then k, then v.
        qkv = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3 * width_of_head))
        q = qkv[:, :, :width_of_head]
        k = qkv[:, :, width_of_head : 2 * width_of_head]
        v = qkv[:, :, 2 * width_of_head :]
        scale = width_of_head**-0.25
        scores = torch.matmul((q * scale).transpose(2, 3), k * scale)
        weights = torch.softmax(scores.float(), dim=-1).to(v.dtype)
        h = torch.matmul(v, weights.transpose(2, 3)).flatten(1, 2)
        return (flat + self.proj_out(h)).unflatten(2, (height, width))


class Downsample(nn.Module):
    """Halve the code with a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, h, w]`` to ``[N, C, h/2, w/2]``."""
        return self.op(x)


class Denoiser(nn.Module):
    """The UNet.

    Parameters
    ----------
    config : DenoiserConfig
        Sizes.
    num_timesteps : int
        T of the schedule; timesteps are scaled by ``1000 / T`` before they are embedded.
    """

    def __init__(self, config: DenoiserConfig, num_timesteps: int = 1000) -> None:
        super().__init__()
        self.config = config
        self.num_timesteps = num_timesteps
        base, time_channels = config.base_channels, 4 * config.base_channels
        self.time_embed = nn.Sequential(
            nn.Linear(base, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        channels = base
        skips = [channels]
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(config.code_channels, channels, 3, padding=1)])]
        )
        last = len(config.channel_multipliers) - 1
        for level, multiplier in enumerate(config.channel_multipliers):
            for _ in range(config.residual_blocks):
                self.input_blocks.append(self._layers(channels, base * multiplier, level))
                channels = base * multiplier
                skips.append(channels)
            if level < last:
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
        self.middle_block = nn.ModuleList(
            [
                ResidualBlock(channels, channels, time_channels, config.dropout),
                AttentionBlock(channels, config.heads),
                ResidualBlock(channels, channels, time_channels, config.dropout),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            for block in range(config.residual_blocks + 1):
                layers = self._layers(channels + skips.pop(), base * multiplier, level)
                channels = base * multiplier
                if level > 0 and block == config.residual_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(layers)
        self.out = nn.Sequential(
            _norm(channels),
            nn.SiLU(),
            _zeroed(nn.Conv2d(channels, config.code_channels, 3, padding=1)),
        )

    def _layers(self, in_channels: int, out_channels: int, level: int) -> nn.ModuleList:
        """Build a residual block, with attention after it where the configuration asks for it."""
        config = self.config
        layers = nn.ModuleList(
            [ResidualBlock(in_channels, out_channels, 4 * config.base_channels, config.dropout)]
        )
        if 2**level in config.attention_downsampling:
            layers.append(AttentionBlock(out_channels, config.heads))
        return layers

    @property
    def residual_blocks(self) -> list[ResidualBlock]:
        """The residual blocks in the order in which `denoise` takes their shifts."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def shifts(self, timesteps: Tensor) -> list[Tensor]:
        """Per-channel shifts of all residual blocks, which depend on nothing but the step.

        Parameters
        ----------
        timesteps : Tensor, shape (N,)
            Original steps, 0 to T - 1.

        Returns
        -------
        list of Tensor, shapes (N, channels of the block)
        """
        scaled = timesteps.float() * (1000.0 / self.num_timesteps)
        features = timestep_embedding(scaled, self.config.base_channels)
        embedding = self.time_embed(features.to(next(self.time_embed.parameters()).dtype))
        return [block.shift(embedding) for block in self.residual_blocks]

    def denoise(self, code: Tensor, shifts: list[Tensor]) -> Tensor:
        """Flip logits ``[N, K, h, w]`` of codes ``[N, K, h, w]``, given the steps' shifts."""
        queue = iter(shifts)
        h, skips = code, []
        for layers in self.input_blocks:
            h = _apply(layers, h, queue)
            skips.append(h)
        h = _apply(self.middle_block, h, queue)
        for layers in self.output_blocks:
            h = _apply(layers, torch.cat([h, skips.pop()], dim=1), queue)
        return self.out(h)

    def logits(self, code: Tensor, timesteps: Tensor) -> Tensor:
        """Flip logits; see `forward`."""
        return self.denoise(code, self.shifts(timesteps))

    def forward(self, code: Tensor, timesteps: Tensor) -> Tensor:
        """Probability that each bit was flipped by noise.

        Parameters
        ----------
        code : Tensor, shape (N, K, h, w)
            Noised code, 0 or 1.
        timesteps : Tensor, shape (N,)
            Original steps, 0 to T - 1.

        Returns
        -------
        Tensor, shape (N, K, h, w)
            In [0, 1].
        """
        return torch.sigmoid(self.logits(code, timesteps).float())


def _apply(layers: nn.Module, h: Tensor, shifts: object) -> Tensor:
    for layer in layers.children():
        if isinstance(layer, ResidualBlock):
            h = layer(h, next(shifts))  # type: ignore[call-overload]
        else:
            h = layer(h)
    return h


def _zeroed(module: nn.Module) -> nn.Module:
    """Start at zero, so that a fresh block passes its input through."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
