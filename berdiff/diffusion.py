"""Bernoulli diffusion in PyTorch: forward process, training loss, and the masked loop.

The loop here is the eager counterpart of `berdiff.runtime.sampler`: exports are checked against it
and benchmarks compare with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from berdiff.runtime.sampler import ForwardNoise, Sampler
from berdiff.runtime.schedule import Schedule

from .denoiser import Denoiser

TorchNoise = Callable[[int, torch.Size], Tensor]


def forward_mean(code: Tensor, abar: Tensor, forward_noise: ForwardNoise) -> Tensor:
    """Probability that each bit of the noised code is 1.

    Parameters
    ----------
    code : Tensor, shape (N, K, h, w)
        Clean bits z_0.
    abar : Tensor, broadcastable to `code`
        Cumulative alpha of the step.
    forward_noise : {"bernoulli", "upstream"}
        ``abar z + (1 - abar) / 2``, or the authors' ``abar z``.
    """
    return abar * code if forward_noise == "upstream" else abar * code + (1 - abar) / 2


def posterior(code: Tensor, clean: Tensor, alpha: float, abar_previous: float) -> Tensor:
    """q(z_{t-1} = 1 | z_t, z_0) for a soft z_0; see `berdiff.runtime.sampler.posterior`."""
    one = (alpha * code + (1 - alpha) / 2) * (abar_previous * clean + (1 - abar_previous) / 2)
    zero = (alpha * (1 - code) + (1 - alpha) / 2) * (
        abar_previous * (1 - clean) + (1 - abar_previous) / 2
    )
    return one / (one + zero)


def training_loss(
    denoiser: Callable[[Tensor, Tensor], Tensor],
    code: Tensor,
    timesteps: Tensor,
    uniforms: Tensor,
    schedule: Schedule,
    forward_noise: ForwardNoise,
) -> Tensor:
    """Binary cross entropy of the predicted flips against the flips the noise made.

    Parameters
    ----------
    denoiser : callable
        Returns flip *logits* for (noised code, timesteps).
    code : Tensor, shape (N, K, h, w)
        Clean bits.
    timesteps : Tensor of int64, shape (N,)
        Steps to noise to.
    uniforms : Tensor, shape (N, K, h, w)
        In [0, 1).
    schedule : Schedule
        Noise levels.
    forward_noise : {"bernoulli", "upstream"}
        Forward process.

    Returns
    -------
    Tensor, shape (N,)
        Mean loss per sample, in nats per bit.
    """
    abar = torch.as_tensor(schedule.abar, dtype=code.dtype, device=code.device)[timesteps]
    mean = forward_mean(code, abar[:, None, None, None], forward_noise)
    noised = (uniforms < mean).to(code.dtype)
    flipped = (noised - code).abs()
    logits = denoiser(noised, timesteps)
    return F.binary_cross_entropy_with_logits(logits, flipped, reduction="none").mean((1, 2, 3))


@torch.no_grad()
def reverse_loop(
    denoiser: Denoiser, z_org: Tensor, sampler: Sampler, noise: TorchNoise
) -> tuple[Tensor, Tensor]:
    """Run the masked loop on the device of `z_org`.

    Parameters
    ----------
    denoiser : Denoiser
        In evaluation mode.
    z_org : Tensor of float32, shape (N, K, h, w)
        The images' own codes.
    sampler : Sampler
        Its settings and schedule are used, not its NumPy arithmetic.
    noise : callable
        ``noise(timestep, shape)`` returns uniforms in [0, 1).

    Returns
    -------
    final : Tensor, shape (N, K, h, w)
        The soft healthy code.
    mask : Tensor of bool, shape (N, K, h, w)
        Bits released from the image's own code.
    """
    schedule, kept = sampler.schedule, sampler.kept
    start = sampler.noise_level
    abar = torch.tensor(schedule.abar[start], dtype=z_org.dtype, device=z_org.device)
    mean = forward_mean(z_org, abar, sampler.forward_noise)
    z = (noise(int(schedule.timesteps[start]), z_org.shape) < mean).to(z_org.dtype)
    mask = torch.zeros_like(z_org, dtype=torch.bool)
    for index in range(len(kept) - 1, -1, -1):
        timestep = int(schedule.timesteps[kept[index]])
        eps = denoiser(z, torch.full((len(z),), timestep, device=z.device))
        clean = (z - eps).abs()
        if index == 0:
            break
        mask = mask | (eps > sampler.flip_threshold)
        clean = torch.where(mask, clean, z_org)
        previous = kept[index - 1]
        mean = posterior(
            z,
            clean,
            schedule.alpha_between(kept[index], previous),
            float(schedule.abar[previous]),
        )
        z = (noise(timestep, z.shape) < mean).to(z.dtype)
    return clean, mask
