"""The PatchGAN discriminator (Isola et al. 2017) that sharpens the autoencoder, and its losses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of an image; three strided layers.

    Group norm stands in for the original's batch norm, so that the result does not depend on how a
    batch is divided among processes.

    Parameters
    ----------
    in_channels : int
        Image channels.
    base_channels : int
        Features of the first layer.
    """

    def __init__(self, in_channels: int, base_channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        channels = base_channels
        for factor, stride in ((2, 2), (4, 2), (8, 1)):
            layers += [
                nn.Conv2d(
                    channels, base_channels * factor, 4, stride=stride, padding=1, bias=False
                ),
                nn.GroupNorm(8, base_channels * factor),
                nn.LeakyReLU(0.2),
            ]
            channels = base_channels * factor
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Map ``[N, C, H, W]`` to patch scores ``[N, 1, H/8 - 2, W/8 - 2]``."""
        return self.layers(images)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator on its scores of real and reconstructed images."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(pixel: Tensor, critic: Tensor) -> Tensor:
    """Balance of the two losses: |pixel| / (|critic| + 1e-4), in [0, 1] (Esser et al. 2021, eq. 7).

    Parameters
    ----------
    pixel, critic : Tensor
        Gradients of the reconstruction loss and of the adversarial loss of the *whole* batch at the
        decoder's last weights. The ratio of their norms is not linear: the mean of weights of parts
        of a batch is another weight.
    """
    return (pixel.norm() / (critic.norm() + 1e-4)).clamp(0, 1).detach()
