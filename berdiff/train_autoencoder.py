"""Stage one: the binary autoencoder, with L1, a commitment penalty and an adversarial loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import BinaryAutoencoder
from .discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from .train_processes import accumulated
from .trainer import Batch
from .training_config import AutoencoderStage, TrainingConfig

# Images, and the uniforms that their bits are drawn with.
Part = tuple[Tensor, Tensor]


class _Losses(NamedTuple):
    """What the autoencoder makes of a part of a batch; `fooling` is 0 without the critic."""

    reconstruction: Tensor
    pixel: Tensor
    commitment: Tensor
    fooling: Tensor


class AutoencoderTraining:
    """The autoencoder stage; see `berdiff.trainer.Stage`.

    Parameters
    ----------
    config : TrainingConfig
        Sizes and settings.
    accelerator : accelerate.Accelerator
        Prepares networks and optimisers.
    """

    name = "autoencoder"
    built_on = ""

    def __init__(self, config: TrainingConfig, accelerator: Any) -> None:
        self.settings: AutoencoderStage = config.autoencoder
        self.code_shape = config.model.code_shape
        channels = config.model.preprocessing.channels
        network: nn.Module = BinaryAutoencoder(config.model.autoencoder)
        critic: nn.Module = PatchDiscriminator(channels, self.settings.discriminator_channels)
        rate = self.settings.learning_rate
        optimizer = torch.optim.Adam(network.parameters(), rate)
        critic_optimizer = torch.optim.Adam(critic.parameters(), rate)
        self.network, self.critic, self.optimizer, self.critic_optimizer = accelerator.prepare(
            network, critic, optimizer, critic_optimizer
        )

    def parts(self) -> dict[str, nn.Module]:
        """Return the autoencoder and the discriminator."""
        return {"autoencoder": self.network, "discriminator": self.critic}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One Adam each."""
        return {"autoencoder": self.optimizer, "discriminator": self.critic_optimizer}

    def step(self, batches: Sequence[Batch], step: int, accelerator: Any) -> dict[str, Tensor]:
        """One step of the autoencoder, and of the discriminator once it takes part."""
        parts = [(batch.images, self._uniforms(batch)) for batch in batches]
        adversarial = self.settings.adversarial_weight > 0 and (
            step + 1 >= self.settings.adversarial_start
        )
        figures, reconstructions = self._step_network(parts, adversarial, accelerator)
        if adversarial:
            images = [part[0] for part in parts]
            figures["discriminator"] = self._step_critic(images, reconstructions, accelerator)
        return figures

    def _step_network(
        self, parts: list[Part], adversarial: bool, accelerator: Any
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return figures and reconstructions, from before the step."""
        # The critic judges here and does not learn: nothing of it is exchanged between processes.
        self.critic.requires_grad_(False)
        weight: Tensor | None = None if adversarial else torch.zeros((), device=accelerator.device)
        if weight is None and len(parts) > 1:
            # It depends on the whole batch: all of that is looked at before the first part counts.
            plain = accelerator.unwrap_model(self.network)
            seen = (self._losses(plain, part, adversarial, accelerator) for part in parts)
            weight = self._weight(seen, accelerator)
        figures, reconstructions = [], []
        self.optimizer.zero_grad()
        for part in accumulated(parts, self.network, accelerator):
            losses = self._losses(self.network, part, adversarial, accelerator)
            if weight is None:
                weight = self._weight([losses], accelerator)
            loss = losses.pixel + self.settings.commitment_weight * losses.commitment
            accelerator.backward((loss + weight * losses.fooling) / len(parts))
            shown = {"l1": losses.pixel, "p(1-p)": losses.commitment}
            if adversarial:
                shown |= {"adversarial": losses.fooling, "adversarial_weight": weight}
            figures.append({name: value.detach() for name, value in shown.items()})
            reconstructions.append(losses.reconstruction.detach())
        self.optimizer.step()
        self.critic.requires_grad_(True)
        means = {name: torch.stack([f[name] for f in figures]).mean() for name in figures[0]}
        return means, reconstructions

    def _step_critic(
        self, images: list[Tensor], reconstructions: list[Tensor], accelerator: Any
    ) -> Tensor:
        pairs = list(zip(images, reconstructions, strict=True))
        total = torch.zeros((), device=accelerator.device)
        self.critic_optimizer.zero_grad()
        for real, fake in accumulated(pairs, self.critic, accelerator):
            with accelerator.autocast():
                # Both in one pass: of several, only the last would be prepared for the exchange.
                scores = self.critic(torch.cat([real, fake.to(real.dtype)]))
                judged = discriminator_loss(*scores.chunk(2)) / len(pairs)
            accelerator.backward(judged)
            total += judged.detach()
        self.critic_optimizer.step()
        return total

    def _losses(
        self, network: nn.Module, part: Part, adversarial: bool, accelerator: Any
    ) -> _Losses:
        images, uniforms = part
        with accelerator.autocast():
            reconstruction, probabilities = network(images, uniforms)
            pixel = F.l1_loss(reconstruction, images)
            commitment = (probabilities * (1 - probabilities)).mean()
            fooling = torch.zeros_like(pixel)
            if adversarial:
                fooling = -accelerator.unwrap_model(self.critic)(reconstruction).mean()
        return _Losses(reconstruction, pixel, commitment, fooling)

    def _weight(self, parts: Iterable[_Losses], accelerator: Any) -> Tensor:
        """Adaptive weight of the adversarial loss, from the gradients of the whole batch."""
        last = accelerator.unwrap_model(self.network).last_layer.weight
        gradients = []
        for losses in parts:
            both = (losses.pixel, losses.fooling)
            taken = [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in both]
            gradients.append(torch.stack(taken))
        pixel, critic = accelerator.reduce(torch.stack(gradients).mean(0), "mean")
        return self.settings.adversarial_weight * adaptive_weight(pixel, critic)

    def validate(self, network: nn.Module, batch: Batch) -> dict[str, float]:
        """L1 through thresholded codes (as at inference), and how decided the bits are."""
        assert isinstance(network, BinaryAutoencoder)
        probabilities = network.encode(batch.images)
        decoded = network.decode((probabilities > 0.5).float()).clamp(0, 1)
        return {
            "loss": float(F.l1_loss(decoded, batch.images)),
            "p(1-p)": float((probabilities * (1 - probabilities)).mean()),
            "ones": float((probabilities > 0.5).float().mean()),
        }

    def pictures(self, network: nn.Module, batch: Batch) -> Tensor:
        """Held-out images above, their reconstructions below (first channel)."""
        assert isinstance(network, BinaryAutoencoder)
        code = (network.encode(batch.images) > 0.5).float()
        return torch.stack([batch.images[:, 0], network.decode(code)[:, 0]])

    def _uniforms(self, batch: Batch) -> Tensor:
        code = self.code_shape
        return batch.uniforms((code.channels, code.height, code.width))
