"""The binary autoencoder: image to bit probabilities, code to image.

Wang et al., "Binary Latent Diffusion" (CVPR 2023), as Wolleb et al. (MICCAI 2024) use it. Parameter
names are those of the authors' checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import NORM_GROUPS, AutoencoderConfig

_EPS = 1e-6


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=_EPS)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after group norm and SiLU, plus the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_out: nn.Module = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.conv_out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, in, H, W]`` to ``[N, out, H, W]``."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.conv_out(x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to the same shape."""
        _, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = self.q(h).flatten(2), self.k(h).flatten(2), self.v(h).flatten(2)
        scores = torch.matmul(q.transpose(1, 2), k) * channels**-0.5
        weights = torch.softmax(scores.float(), dim=-1).to(v.dtype)
        h = torch.matmul(v, weights.transpose(1, 2)).unflatten(2, (height, width))
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halve the image: one pixel of padding right and below, then a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, H/2, W/2]``."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the image by nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, C, 2H, 2W]``."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Image to features at code resolution."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.base_channels
        blocks: list[nn.Module] = [nn.Conv2d(config.in_channels, channels, 3, padding=1)]
        for level, multiplier in enumerate(config.channel_multipliers):
            for _ in range(config.residual_blocks):
                blocks.append(ResidualBlock(channels, config.base_channels * multiplier))
                channels = config.base_channels * multiplier
            if level < len(config.channel_multipliers) - 1:
                blocks.append(Downsample(channels))
        blocks += [
            ResidualBlock(channels, channels),
            AttentionBlock(channels),
            ResidualBlock(channels, channels),
            _norm(channels),
            nn.Conv2d(channels, config.embedding_channels, 3, padding=1),
        ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to ``[N, embedding, h, w]``."""
        return self.blocks(x)


class Quantizer(nn.Module):
    """Features to bit probabilities, and codes to their linear embedding."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(config.embedding_channels, config.code_channels, 1))
        self.embed = nn.Embedding(config.code_channels, config.embedding_channels)

    def probabilities(self, features: Tensor) -> Tensor:
        """Bit probabilities ``[N, K, h, w]`` of features ``[N, embedding, h, w]``."""
        return torch.sigmoid(self.proj(features).float())

    def embedding(self, code: Tensor) -> Tensor:
        """Sum of the embedding rows a code ``[N, K, h, w]`` selects: ``[N, embedding, h, w]``."""
        weight = self.embed.weight.t()[:, :, None, None]
        return F.conv2d(code.to(weight.dtype), weight)


class Generator(nn.Module):
    """Embedding to image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.base_channels * config.channel_multipliers[-1]
        blocks: list[nn.Module] = [
            _norm(config.embedding_channels),
            nn.Conv2d(config.embedding_channels, channels, 3, padding=1),
            ResidualBlock(channels, channels),
            AttentionBlock(channels),
            ResidualBlock(channels, channels),
        ]
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            for _ in range(config.residual_blocks):
                blocks.append(ResidualBlock(channels, config.base_channels * multiplier))
                channels = config.base_channels * multiplier
            if level > 0:
                blocks.append(Upsample(channels))
        blocks += [_norm(channels), nn.Conv2d(channels, config.in_channels, 3, padding=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, embedding: Tensor) -> Tensor:
        """Map ``[N, embedding, h, w]`` to ``[N, C, H, W]``."""
        return self.blocks(embedding)


class BinaryAutoencoder(nn.Module):
    """Encoder, quantiser and decoder.

    Parameters
    ----------
    config : AutoencoderConfig
        Sizes.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantize = Quantizer(config)
        self.generator = Generator(config)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, where the adversarial weight is measured."""
        last = self.generator.blocks[-1]
        assert isinstance(last, nn.Conv2d)
        return last

    def encode(self, images: Tensor) -> Tensor:
        """Bit probabilities.

        Parameters
        ----------
        images : Tensor, shape (N, C, H, W)
            In [0, 1].

        Returns
        -------
        Tensor, shape (N, K, h, w)
            In [0, 1].
        """
        return self.quantize.probabilities(self.encoder(images))

    def decode(self, code: Tensor) -> Tensor:
        """Image of a code; soft codes are fine, since the embedding is linear.

        Parameters
        ----------
        code : Tensor, shape (N, K, h, w)
            In [0, 1].

        Returns
        -------
        Tensor, shape (N, C, H, W)
            About [0, 1], not clamped.
        """
        return self.generator(self.quantize.embedding(code))

    def forward(self, images: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images through a sampled code, with a straight-through gradient.

        Parameters
        ----------
        images : Tensor, shape (N, C, H, W)
            In [0, 1].
        uniforms : Tensor, shape (N, K, h, w)
            In [0, 1); a bit is 1 where its uniform lies below its probability.

        Returns
        -------
        reconstruction : Tensor, shape (N, C, H, W)
        probabilities : Tensor, shape (N, K, h, w)
        """
        probabilities = self.encode(images)
        bits = (uniforms < probabilities).to(probabilities.dtype)
        code = bits.detach() + probabilities - probabilities.detach()
        return self.decode(code), probabilities
