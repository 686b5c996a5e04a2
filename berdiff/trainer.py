"""The training loop both stages share: steps, EMA, logs, validation, and resuming exactly.

Everything random is drawn from generators that depend on the seed and the step only (`Batches`), so
the state to save is weights, optimisers, averages and the step number, and a run continued after a
kill takes the same steps as one that was never killed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import atomic_file

from .data import Batches, HealthyImages, augment
from .train_processes import (
    agreed,
    check_batch,
    check_same,
    describe,
    mean_figures,
    refuse,
    sum_figures,
)
from .training_config import Augmentation, StageSettings
from .training_log import TrainingLog

STATE_NAME = "state.pt"


@dataclass(frozen=True)
class Batch:
    """Images of a step, or of a part of it, and the generators that all randomness comes from.

    Attributes
    ----------
    images : Tensor, shape (N, C, H, W)
        On the training device.
    generators : list of numpy.random.Generator
        One per image.
    """

    images: Tensor
    generators: list[np.random.Generator]

    def uniforms(self, shape: tuple[int, ...]) -> Tensor:
        """Uniforms in [0, 1), one row of `shape` per image, from the image's own generator."""
        drawn = [rng.random(shape, dtype=np.float32) for rng in self.generators]
        return torch.from_numpy(np.stack(drawn)).to(self.images.device)

    def timesteps(self, stop: int) -> Tensor:
        """One step per image, uniform over 0 to stop - 1."""
        drawn = [int(rng.integers(stop)) for rng in self.generators]
        return torch.tensor(drawn, device=self.images.device)


class Stage(Protocol):
    """What a stage of training provides to the loop.

    Attributes
    ----------
    name : str
        Folder name of the stage.
    network : Module
        The network whose moving average is the result.
    built_on : str
        SHA-256 of the weights of the earlier stage that this one depends on, or empty.
    """

    name: str
    network: nn.Module
    built_on: str

    @property
    def settings(self) -> StageSettings:
        """Steps, batch size, learning rate."""

    def parts(self) -> dict[str, nn.Module]:
        """All modules that are trained, by name."""

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers, by name."""

    def step(self, batches: Sequence[Batch], step: int, accelerator: Any) -> dict[str, Tensor]:
        """Take one optimiser step on parts of equal size; return means over them, to log."""

    def validate(self, network: nn.Module, batch: Batch) -> dict[str, float]:
        """Return figures of the averaged network on held-out images; lower "loss" is better."""

    def pictures(self, network: nn.Module, batch: Batch) -> Tensor:
        """Rows of sample pictures, ``[rows, columns, H, W]`` in [0, 1]."""


class Progress(Protocol):
    """Receives the state of a run after each step."""

    def __call__(self, stage: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Show it."""


@dataclass(frozen=True)
class RunSettings:
    """Where and how a stage runs.

    Attributes
    ----------
    folder : Path
        Folder of the whole run; the stage gets a folder of its name inside.
    seed : int
        Seed of the run.
    accelerator : accelerate.Accelerator
        Device, precision and processes; see `make_accelerator`.
    resume : bool
        Continue from the saved state where there is one.
    progress : callable, optional
        Called after each step, in the first process.
    announce : callable, optional
        Called at the start of each stage, in the first process, with a line that says on how many
        processes, images per step, and so on.
    """

    folder: Path
    accelerator: Any
    seed: int = 0
    resume: bool = False
    progress: Progress | None = None
    announce: Callable[[str], None] | None = None


class Trainer:
    """Runs one stage to its end.

    Parameters
    ----------
    stage : Stage
        What is trained.
    images : HealthyImages
        Training and validation images.
    augmentation : Augmentation
        Changes of the training images.
    run : RunSettings
        Where and how.

    Raises
    ------
    BerdiffError
        If there is a saved state and the run is not to continue it, or it belongs to another run;
        if the batch cannot be shared, or the processes have found different images or states.
    """

    def __init__(
        self, stage: Stage, images: HealthyImages, augmentation: Augmentation, run: RunSettings
    ) -> None:
        self.stage, self.images, self.augmentation, self.run = stage, images, augmentation, run
        self.folder = run.folder / stage.name
        self.accelerator = run.accelerator
        settings = stage.settings
        with agreed(self.accelerator):
            check_batch(stage.name, settings, self.accelerator.num_processes)
        self.batches = Batches(
            count=len(images.train),
            batch_size=settings.batch_size,
            seed=run.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.average = AveragedModel(
            self.accelerator.unwrap_model(stage.network),
            multi_avg_fn=get_ema_multi_avg_fn(settings.ema),
            use_buffers=True,
        ).to(self.accelerator.device)
        self._optimizers = stage.optimizers()
        self._learning_rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self._optimizers.items()
        }
        with agreed(self.accelerator):
            self.done = self._restore()
        check_same(
            self.accelerator,
            {"images": images.digest, "saved state": self.done},
            "all must read the same images, and the run's folder must be one that all share",
        )

    def train(self) -> nn.Module:
        """Run all remaining steps.

        Returns
        -------
        Module
            The averaged network, in evaluation mode.

        Raises
        ------
        BerdiffError
            If the loss is no longer finite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.stage.settings
        main = self.accelerator.is_main_process
        with TrainingLog(self.folder, self.done, enabled=main) as logs:
            line = describe(self.stage.name, settings, self.accelerator)
            logs.start(self.done, line)
            if self.run.announce and main:
                self.run.announce(line)
            for step in range(self.done, settings.steps):
                figures = self._step(step)
                last = step + 1 == settings.steps
                if last or (step + 1) % settings.validate_every == 0:
                    figures |= self._validate(step, logs)
                logs.write(step + 1, figures)
                if self.run.progress and main:
                    self.run.progress(self.stage.name, step + 1, settings.steps, figures)
                if last or (step + 1) % settings.save_every == 0:
                    self._save(step + 1)
        return self.average.module.eval()

    def _step(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        self._set_learning_rate(step)
        # Dropout is the one thing that draws from PyTorch's own generator, and so the one thing
        # that depends on how a batch is shared.
        torch.manual_seed(
            (self.run.seed << 40) + step * self.batches.world_size + self.batches.rank
        )
        generators = self.batches.generators(step)
        images = [
            augment(self.images.train[index], self.augmentation, rng)
            for index, rng in zip(self.batches.indices(step), generators, strict=True)
        ]
        size = len(images) // self.stage.settings.accumulate
        batches = [
            Batch(self._to_device(np.stack(images[at : at + size])), generators[at : at + size])
            for at in range(0, len(images), size)
        ]
        for part in self.stage.parts().values():
            part.train()
        figures = mean_figures(self.accelerator, self.stage.step(batches, step, self.accelerator))
        if not all(math.isfinite(value) for value in figures.values()):
            refuse(
                self.accelerator,
                f"{self.stage.name}: step {step + 1} gave {figures}; training has diverged. "
                "Lower the learning rate, or continue from the last saved state with --continue",
            )
        self.average.update_parameters(self.accelerator.unwrap_model(self.stage.network))
        return figures | {"seconds": time.perf_counter() - started}

    def _set_learning_rate(self, step: int) -> None:
        factor = learning_rate_factor(self.stage.settings, step)
        for name, optimizer in self._optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._learning_rates[name], strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _validate(self, step: int, logs: TrainingLog) -> dict[str, float]:
        """Mean figures over the held-out images, with the same draws every time.

        Each process takes its share: all have the same averaged weights.
        """
        network = self.average.module.eval()
        images, accelerator = self.images.validation, self.accelerator
        settings, processes = self.stage.settings, accelerator.num_processes
        size = settings.batch_size // (processes * settings.accumulate)
        sums: dict[str, float] = {}
        for start in range(size * accelerator.process_index, len(images), size * processes):
            chunk = images[start : start + size]
            for name, value in self.stage.validate(network, self._held_out(start, chunk)).items():
                sums[name] = sums.get(name, 0.0) + value * len(chunk)
        if accelerator.is_main_process:
            pictures = self.stage.pictures(network, self._held_out(0, images[:8]))
            logs.pictures(step + 1, pictures)
        total = sum_figures(accelerator, sums)
        return {f"validation_{name}": value / len(images) for name, value in total.items()}

    def _held_out(self, start: int, images: NDArray[np.float32]) -> Batch:
        generators = [
            np.random.default_rng([self.run.seed, 3, start + index]) for index in range(len(images))
        ]
        return Batch(self._to_device(images), generators)

    def _to_device(self, images: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(images)).to(self.accelerator.device)

    def _identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation.

        The number of processes may, and the parts they take a batch in: the steps are the same.
        """
        settings = dataclasses.asdict(self.stage.settings)
        for name in ("steps", "validate_every", "save_every", "accumulate"):
            if name != "steps" or self.stage.settings.final_learning_rate == 1:
                del settings[name]
        return {
            "images": self.images.digest,
            "seed": self.run.seed,
            "settings": settings,
            "autoencoder": self.stage.built_on,
        }

    def _save(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        unwrap = self.accelerator.unwrap_model
        state = {
            "step": step,
            "identity": self._identity(),
            "parts": {name: unwrap(part).state_dict() for name, part in self.stage.parts().items()},
            "optimizers": {name: item.state_dict() for name, item in self._optimizers.items()},
            "average": self.average.state_dict(),
        }
        with atomic_file(self.folder / STATE_NAME) as part:
            torch.save(state, part)

    def _restore(self) -> int:
        """Load the saved state, if there is one; return how many steps it has behind it."""
        source = self.folder / STATE_NAME
        if not source.is_file():
            return 0
        if not self.run.resume:
            raise BerdiffError(
                f"{self.folder} holds a training that was begun already; continue it with "
                "--continue, or choose another folder"
            )
        state = torch.load(source, map_location="cpu", weights_only=True)
        if state["identity"] != self._identity():
            old, new = state["identity"], self._identity()
            changed = [key for key in new if old.get(key) != new[key]]
            raise BerdiffError(
                f"{source} was written by a run with other {' and '.join(changed)}; "
                "continue with the same, or train into another folder"
            )
        unwrap = self.accelerator.unwrap_model
        for name, part in self.stage.parts().items():
            unwrap(part).load_state_dict(state["parts"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.average.load_state_dict(state["average"])
        return int(state["step"])


def learning_rate_factor(settings: StageSettings, step: int) -> float:
    """Linear warm-up to 1, then a cosine down to `final_learning_rate` at the last step."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - settings.warmup_steps)
    done = min(1.0, (step - settings.warmup_steps) / span)
    low = settings.final_learning_rate
    return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
