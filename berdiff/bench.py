"""The eager PyTorch loop as a contender in `berdiff bench --against torch`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.manifest import Manifest, SamplingDefaults
from berdiff.runtime.sampler import Sampler
from berdiff.runtime.schedule import Schedule

from .checkpoint import checkpoint_digests, load_checkpoint
from .diffusion import reverse_loop


class EagerTorch:
    """A checkpoint run by PyTorch on the CPU, as a user of PyTorch would run it.

    Parameters
    ----------
    checkpoint : Path
        Folder of the checkpoint.
    manifest : Manifest
        Of the bundle it is compared with.
    settings : SamplingDefaults
        Of the loop.
    threads : int, optional
        CPU threads, for the whole process; None leaves PyTorch's default.

    Raises
    ------
    BerdiffError
        If the bundle was exported from another checkpoint.
    """

    def __init__(
        self,
        checkpoint: Path,
        manifest: Manifest,
        settings: SamplingDefaults,
        threads: int | None = None,
    ) -> None:
        config, self._autoencoder, self._denoiser = load_checkpoint(checkpoint)
        for key, digest in checkpoint_digests(checkpoint).items():
            if manifest.provenance.get(key) != digest:
                raise BerdiffError(
                    f"the bundle was exported from another checkpoint than {checkpoint} "
                    f"({key} differs); compare it with its own"
                )
        if threads is not None:
            torch.set_num_threads(threads)
        self.name = f"torch {torch.__version__}"
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
