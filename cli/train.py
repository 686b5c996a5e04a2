"""``berdiff train``: from healthy images to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


class Stages(str, Enum):
    """What to train."""

    autoencoder = "autoencoder"
    denoiser = "denoiser"
    all = "all"


class Precision(str, Enum):
    """Automatic mixed precision."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


def train(
    stages: Annotated[
        Stages, typer.Argument(help="Stage one, stage two (needs stage one), or both.")
    ],
    input: Annotated[
        Path,
        typer.Option("--input", "-i", exists=True, help="Folder of healthy slices or volumes."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    preset: Annotated[
        str, typer.Option(help="brats, flair, oct, phantom, or a YAML file of the same form.")
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: key=value, like autoencoder.steps=2000."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**22 - 1, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option("--device", "-d", help="cpu or cuda.")] = "cpu",
    precision: Annotated[Precision, typer.Option(help="Mixed precision.")] = Precision.no,
    resume: Annotated[
        bool, typer.Option("--continue", help="Continue a run that was stopped.")
    ] = False,
    patience: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.05,
            help="Of several processes, each waits so many minutes for another.",
        ),
    ] = 30.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store the checkpoint's weights in float16.")
    ] = False,
) -> None:
    """Train a detector on healthy images.

    The checkpoint is written to OUTPUT/checkpoint; logs, sample pictures and the state a stopped
    run continues from lie beside it.
    """
    from berdiff.runtime.errors import optional

    torch = optional("torch", "train")
    from berdiff.train_processes import BEHIND, StoppedByAnother, make_accelerator, one_job

    if half and stages is Stages.autoencoder:
        raise typer.BadParameter("stage one alone writes no checkpoint", param_hint="--half")
    if threads:
        torch.set_num_threads(threads)
    try:
        accelerator = make_accelerator(device, precision.value, patience)
        with one_job(accelerator):
            _train(accelerator, stages, (input, output), (preset, changes), seed, resume, half)
    except StoppedByAnother:
        time.sleep(BEHIND)
        raise typer.Exit(1) from None


def _train(
    accelerator: Any,
    stages: Stages,
    folders: tuple[Path, Path],
    recipe: tuple[str, list[str] | None],
    seed: int,
    resume: bool,
    half: bool,
) -> None:
    """Prepare the run, in one of several processes, and train the stages."""
    from berdiff.data import load_healthy
    from berdiff.train_processes import agreed, check_batch
    from berdiff.trainer import RunSettings
    from berdiff.training import prepare_folder, train_autoencoder, train_denoiser
    from berdiff.training_config import load_preset

    source, output = folders
    main = accelerator.is_main_process
    with agreed(accelerator):
        config = load_preset(*recipe)
        if stages is not Stages.denoiser:
            check_batch("autoencoder", config.autoencoder, accelerator.num_processes)
        if stages is not Stages.autoencoder:
            check_batch("denoiser", config.denoiser, accelerator.num_processes)
        images = load_healthy(source, config.model.preprocessing, config.validation_fraction)
        if main:
            # Stage two always stands in the folder of stage one.
            prepare_folder(output, config, resume=resume or stages is Stages.denoiser)
    announce = partial(typer.echo, err=True)
    if main:
        announce(
            f"{len(images.train)} healthy images to train on, {len(images.validation)} held out"
        )
    run = RunSettings(output, accelerator, seed, resume, _Progress(), announce)
    if stages is not Stages.denoiser:
        train_autoencoder(config, images, run)
        accelerator.print(f"autoencoder: {output / 'autoencoder.safetensors'}")
    if stages is not Stages.autoencoder:
        accelerator.print(f"checkpoint: {train_denoiser(config, images, run, half=half)}")


class _Progress:
    """A bar on a terminal; elsewhere one line per validation."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, stage: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        import sys

        shown = {name: f"{value:.4g}" for name, value in figures.items()}
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=steps, initial=step - 1, desc=stage, unit="step")
            self._bar.update()
            self._bar.set_postfix(shown)
            if step == steps:
                self._bar.close()
                self._bar = None
        elif any(name.startswith("validation") for name in figures):
            text = " ".join(f"{name}={value}" for name, value in shown.items())
            typer.echo(f"{stage} {step}/{steps} {text}", err=True)
