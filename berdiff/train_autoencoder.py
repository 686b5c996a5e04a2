"""Stage one: the binary autoencoder, with L1, a commitment penalty and an adversarial loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import BinaryAutoencoder
from .discriminator import PatchDiscriminator, adaptive_weight, discriminator_loss
from .trainer import Batch
from .training_config import AutoencoderStage, TrainingConfig


class AutoencoderTraining:
    """The autoencoder stage; see `berdiff.trainer.Stage`.

    Parameters
    ----------
    config : TrainingConfig
        Sizes and settings.
    device : torch.device
        Where the networks live.
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

    def step(self, batch: Batch, step: int, accelerator: Any) -> dict[str, Tensor]:
        """One step of the autoencoder, and of the discriminator once it takes part."""
        with accelerator.autocast():
            reconstruction, probabilities = self.network(batch.images, self._uniforms(batch))
            pixel = F.l1_loss(reconstruction, batch.images)
            commitment = (probabilities * (1 - probabilities)).mean()
            loss = pixel + self.settings.commitment_weight * commitment
        figures = {"l1": pixel, "p(1-p)": commitment}
        adversarial = self.settings.adversarial_weight > 0 and (
            step + 1 >= self.settings.adversarial_start
        )
        if adversarial:
            last = accelerator.unwrap_model(self.network).last_layer.weight
            with accelerator.autocast():
                fooling = -self.critic(reconstruction).mean()
            weight = self.settings.adversarial_weight * adaptive_weight(pixel, fooling, last)
            loss = loss + weight * fooling
            figures |= {"adversarial": fooling, "adversarial_weight": weight}
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        self.optimizer.step()
        if adversarial:
            with accelerator.autocast():
                judged = discriminator_loss(
                    self.critic(batch.images), self.critic(reconstruction.detach())
                )
            self.critic_optimizer.zero_grad()
            accelerator.backward(judged)
            self.critic_optimizer.step()
            figures["discriminator"] = judged
        return {name: value.detach() for name, value in figures.items()}

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
