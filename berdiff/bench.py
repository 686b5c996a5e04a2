"""The eager PyTorch loop as a contender in `berdiff bench --against torch`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from berdiff.runtime.manifest import SamplingDefaults
from berdiff.runtime.sampler import Sampler
from berdiff.runtime.schedule import Schedule

from .checkpoint import load_checkpoint
from .diffusion import reverse_loop


class EagerTorch:
    """A checkpoint run by PyTorch on the CPU, as a user of PyTorch would run it.

    Parameters
    ----------
    checkpoint : Path
        Folder of the checkpoint.
    settings : SamplingDefaults
        Of the loop.
    threads : int, optional
        CPU threads, for the whole process; None leaves PyTorch's default.
    """

    def __init__(
        self, checkpoint: Path, settings: SamplingDefaults, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.name = f"torch {torch.__version__}"
        config, self._autoencoder, self._denoiser = load_checkpoint(checkpoint)
        spec = config.schedule
        self._sampler = Sampler(
            schedule=Schedule.linear(spec.num_timesteps, spec.beta_start, spec.beta_end),
            noise_level=settings.noise_level,
            steps=settings.steps,
            flip_threshold=settings.flip_threshold,
            forward_noise=config.forward_noise,
        )

    @torch.inference_mode()
    def run(self, images: NDArray[np.float32]) -> dict[str, float]:
        """Encode, walk back and decode; see `berdiff.runtime.bench.Contender.run`."""
        times = [time.perf_counter()]
        code = (self._autoencoder.encode(torch.from_numpy(images)) > 0.5).float()
        times.append(time.perf_counter())
        healthy, _ = reverse_loop(
            self._denoiser, code, self._sampler, lambda _, shape: torch.rand(shape)
        )
        times.append(time.perf_counter())
        self._autoencoder.decode(healthy).clamp(0, 1)
        times.append(time.perf_counter())
        return dict(zip(("encode", "loop", "decode"), np.diff(times).tolist(), strict=True))
