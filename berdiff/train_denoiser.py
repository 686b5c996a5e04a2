"""Stage two: the denoiser, on codes of healthy images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from berdiff.runtime.sampler import Sampler
from berdiff.runtime.schedule import Schedule

from .autoencoder import BinaryAutoencoder
from .denoiser import Denoiser
from .diffusion import reverse_loop, training_loss
from .train_processes import accumulated
from .trainer import Batch
from .training_config import DenoiserStage, TrainingConfig

# Reverse steps of the sample pictures; enough to look at, few enough not to slow training.
PICTURE_STEPS = 20


class _Logits(nn.Module):
    """Gives flip logits as its forward pass, so that wrappers for several processes see it."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, code: Tensor, timesteps: Tensor) -> Tensor:
        return self.denoiser.logits(code, timesteps)


class DenoiserTraining:
    """The denoiser stage; see `berdiff.trainer.Stage`.

    Parameters
    ----------
    config : TrainingConfig
        Sizes and settings.
    autoencoder : BinaryAutoencoder
        Trained; kept as it is.
    accelerator : accelerate.Accelerator
        Prepares network and optimiser.
    """

    name = "denoiser"

    def __init__(
        self, config: TrainingConfig, autoencoder: BinaryAutoencoder, accelerator: Any
    ) -> None:
        self.settings: DenoiserStage = config.denoiser
        model = config.model
        spec = model.schedule
        self.schedule = Schedule.linear(spec.num_timesteps, spec.beta_start, spec.beta_end)
        self.forward_noise = model.forward_noise
        self.sampling = model.sampling
        self.last_timestep = self.settings.max_timestep or spec.num_timesteps - 1
        digest = hashlib.sha256()
        for tensor in autoencoder.state_dict().values():
            digest.update(tensor.detach().cpu().numpy().tobytes())
        self.built_on = digest.hexdigest()
        self.autoencoder = autoencoder.eval().requires_grad_(False).to(accelerator.device)
        network: nn.Module = _Logits(Denoiser(model.denoiser, spec.num_timesteps))
        optimizer = torch.optim.AdamW(
            network.parameters(),
            self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )
        self.network, self.optimizer = accelerator.prepare(network, optimizer)

    def parts(self) -> dict[str, nn.Module]:
        """Return the denoiser."""
        return {"denoiser": self.network}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW."""
        return {"denoiser": self.optimizer}

    def step(self, batches: Sequence[Batch], step: int, accelerator: Any) -> dict[str, Tensor]:
        """One step on codes of augmented images, each noised to a random timestep."""
        total = torch.zeros((), device=accelerator.device)
        self.optimizer.zero_grad()
        for batch in accumulated(batches, self.network, accelerator):
            code = self._code(batch)
            timesteps = batch.timesteps(self.last_timestep + 1)
            with accelerator.autocast():
                loss = self._loss(self.network, batch, code, timesteps).mean() / len(batches)
            accelerator.backward(loss)
            total += loss.detach()
        self.optimizer.step()
        return {"loss": total}

    def validate(self, network: nn.Module, batch: Batch) -> dict[str, float]:
        """Loss at random steps of the trained range, in nats per bit."""
        timesteps = batch.timesteps(self.last_timestep + 1)
        loss = self._loss(network, batch, self._code(batch), timesteps)
        return {"loss": float(loss.mean())}

    def pictures(self, network: nn.Module, batch: Batch) -> Tensor:
        """Held-out images, their plain reconstructions, and what the loop makes of them."""
        assert isinstance(network, _Logits)
        code = self._code(batch)
        level = self.sampling.noise_level
        sampler = Sampler(
            self.schedule,
            level,
            min(PICTURE_STEPS, level),
            self.sampling.flip_threshold,
            self.forward_noise,
        )
        final, _ = reverse_loop(
            network.denoiser, code, sampler, lambda _, shape: batch.uniforms(tuple(shape[1:]))
        )
        decode = self.autoencoder.decode
        return torch.stack([batch.images[:, 0], decode(code)[:, 0], decode(final)[:, 0]])

    @torch.no_grad()
    def _code(self, batch: Batch) -> Tensor:
        """Thresholded codes, as inference uses them."""
        return (self.autoencoder.encode(batch.images) > 0.5).float()

    def _loss(self, network: nn.Module, batch: Batch, code: Tensor, timesteps: Tensor) -> Tensor:
        uniforms = batch.uniforms(tuple(code.shape[1:]))
        return training_loss(network, code, timesteps, uniforms, self.schedule, self.forward_noise)
