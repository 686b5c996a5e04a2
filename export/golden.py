"""Golden vectors: example images, and what PyTorch computes from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from berdiff.autoencoder import BinaryAutoencoder
from berdiff.config import ModelConfig
from berdiff.denoiser import Denoiser
from berdiff.diffusion import reverse_loop
from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.sampler import Sampler
from berdiff.runtime.schedule import Schedule
from berdiff.runtime.verify import Golden

SEED = 2411667
IMAGES = 2
LOOP_STEPS = 8


def example_images(preprocessing: Preprocessing, count: int = IMAGES) -> NDArray[np.float32]:
    """Smooth random texture inside an ellipse on black, ``[count, C, H, W]`` in [0, 1].

    Values are multiples of 1/255, which keeps a stored example small.
    """
    height, width = preprocessing.size
    random = np.random.Generator(np.random.Philox(key=SEED))
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    images = np.zeros((count, preprocessing.channels, height, width))
    for _ in range(24):
        angle, phase = random.uniform(0, 2 * np.pi, (2, count, preprocessing.channels, 1, 1))
        frequency = random.uniform(1, 16, angle.shape)
        wave = np.cos(angle) * rows + np.sin(angle) * columns
        images += np.cos(2 * frequency * wave + phase) / np.sqrt(frequency)
    images = np.clip(0.5 + 0.12 * images, 0.02, 1)
    images[..., (rows / 0.9) ** 2 + (columns / 0.8) ** 2 > 1] = 0
    return (np.round(images * 255) / 255).astype(np.float32)


@torch.no_grad()
def make_golden(config: ModelConfig, autoencoder: BinaryAutoencoder, denoiser: Denoiser) -> Golden:
    """Run the networks and a short loop in eager PyTorch.

    Parameters
    ----------
    config : ModelConfig
        Of the checkpoint.
    autoencoder, denoiser : Module
        In evaluation mode, float32, on the CPU.
    """
    images = example_images(config.preprocessing)
    probability = autoencoder.encode(torch.from_numpy(images))
    code = (probability > 0.5).float()

    spec, sampling = config.schedule, config.sampling
    schedule = Schedule.linear(spec.num_timesteps, spec.beta_start, spec.beta_end)
    timesteps = np.array([sampling.noise_level - 1, spec.num_timesteps - 1], np.int64)
    flips = [denoiser(code, torch.full((len(code),), int(step))) for step in timesteps]

    sampler = Sampler(
        schedule=schedule,
        noise_level=sampling.noise_level,
        steps=min(LOOP_STEPS, sampling.noise_level),
        flip_threshold=sampling.flip_threshold,
        forward_noise=config.forward_noise,
    )
    ids = np.arange(1, len(images) + 1, dtype=np.uint64)
    loop = _record_loop(denoiser, code, sampler, PhiloxNoise(SEED, ids))
    return Golden(
        image=images,
        probability=probability.numpy(),
        code=code.numpy().astype(bool),
        decoded=autoencoder.decode(code).numpy(),
        timesteps=timesteps,
        flip_probability=torch.stack(flips).numpy(),
        image_ids=ids,
        seed=SEED,
        noise_level=sampler.noise_level,
        steps=len(sampler.kept),
        flip_threshold=sampler.flip_threshold,
        loop_image=autoencoder.decode(torch.from_numpy(loop["loop_code"])).numpy(),
        **loop,
    )


def _record_loop(
    denoiser: Denoiser, code: Tensor, sampler: Sampler, noise: PhiloxNoise
) -> dict[str, NDArray[Any]]:
    """Run PyTorch's loop, noting code and mask before every step."""
    bits: list[NDArray[np.bool_]] = []
    masks = [np.zeros(tuple(code.shape), np.bool_)]

    def note(_: nn.Module, inputs: tuple[Tensor, Tensor], eps: Tensor) -> None:
        bits.append(inputs[0].numpy() > 0.5)
        masks.append(masks[-1] | (eps.numpy() > np.float32(sampler.flip_threshold)))

    hook = denoiser.register_forward_hook(note)
    try:
        healthy, mask = reverse_loop(
            denoiser, code, sampler, lambda step, shape: torch.from_numpy(noise(step, shape))
        )
    finally:
        hook.remove()
    masks[len(bits) - 1] = mask.numpy()  # the loop's own word on its mask
    return {
        "loop_bits": np.stack(bits),
        "loop_mask": np.stack(masks[: len(bits)]),
        "loop_code": healthy.numpy(),
    }
