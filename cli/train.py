"""``berdiff train``: from healthy images to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Train on healthy images.")

Input = Annotated[
    Path, typer.Option("--input", "-i", help="Folder of healthy slices or volumes.", exists=True)
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
Preset = Annotated[
    str, typer.Option(help="brats, flair, oct, phantom, or a YAML file of the same form.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: key=value, e.g. autoencoder.steps=2000."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", "-d", help="cpu or cuda.")]
Precision = Annotated[str, typer.Option(help="Mixed precision: no, bf16 or fp16.")]
Continue = Annotated[bool, typer.Option("--continue", help="Continue a run that was stopped.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Half = Annotated[bool, typer.Option("--half", help="Store the checkpoint's weights in float16.")]


@app.command()
def autoencoder(
    input: Input,
    output: Output,
    preset: Preset = "flair",
    changes: Changes = None,
    seed: Seed = 0,
    device: Device = "cpu",
    precision: Precision = "no",
    resume: Continue = False,
    threads: Threads = None,
) -> None:
    """Train the binary autoencoder (stage one)."""
    _train(input, output, preset, changes, seed, device, precision, resume, threads, ("autoencoder",))


@app.command()
def denoiser(
    input: Input,
    output: Output,
    preset: Preset = "flair",
    changes: Changes = None,
    seed: Seed = 0,
    device: Device = "cpu",
    precision: Precision = "no",
    resume: Continue = False,
    threads: Threads = None,
    half: Half = False,
) -> None:
    """Train the denoiser (stage two) in a run whose autoencoder is trained."""
    _train(
        input, output, preset, changes, seed, device, precision, resume, threads, ("denoiser",), half
    )


@app.command("all")
def both(
    input: Input,
    output: Output,
    preset: Preset = "flair",
    changes: Changes = None,
    seed: Seed = 0,
    device: Device = "cpu",
    precision: Precision = "no",
    resume: Continue = False,
    threads: Threads = None,
    half: Half = False,
) -> None:
    """Train both stages, one after the other."""
    stages = ("autoencoder", "denoiser")
    _train(input, output, preset, changes, seed, device, precision, resume, threads, stages, half)


def _train(
    input: Path,
    output: Path,
    preset: str,
    changes: list[str] | None,
    seed: int,
    device: str,
    precision: str,
    resume: bool,
    threads: int | None,
    stages: tuple[str, ...],
    half: bool = False,
) -> None:
    from berdiff.runtime.errors import optional

    torch = optional("torch", "train")
    from berdiff.data import load_healthy
    from berdiff.trainer import RunSettings, make_accelerator
    from berdiff.training import prepare_folder, train_autoencoder, train_denoiser
    from berdiff.training_config import load_preset

    if threads:
        torch.set_num_threads(threads)
    config = load_preset(preset, changes)
    accelerator = make_accelerator(device, precision)
    # The second stage on its own always stands in the folder of the first.
    prepare_folder(output, config, resume=resume or stages == ("denoiser",))
    images = load_healthy(input, config.model.preprocessing, config.validation_fraction)
    typer.echo(
        f"{len(images.train)} healthy images to train on, {len(images.validation)} held out",
        err=True,
    )
    run = RunSettings(output, accelerator, seed, resume, _ProgressBar())
    if "autoencoder" in stages:
        train_autoencoder(config, images, run)
        typer.echo(f"autoencoder: {output / 'autoencoder.safetensors'}")
    if "denoiser" in stages:
        checkpoint = train_denoiser(config, images, run, half=half)
        typer.echo(f"checkpoint: {checkpoint}")


class _ProgressBar:
    """A bar on a terminal, one line per validation elsewhere."""

    def __init__(self) -> None:
        self._bar = None
        self._stage = ""

    def __call__(self, stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        import sys

        shown = {name: f"{value:.4g}" for name, value in figures.items()}
        if sys.stderr.isatty():
            if self._bar is None or stage != self._stage:
                from tqdm import tqdm

                self._bar = tqdm(total=steps, initial=step - 1, desc=stage, unit="step")
                self._stage = stage
            self._bar.update()
            self._bar.set_postfix(shown)
            if step == steps:
                self._bar.close()
        elif any(name.startswith("validation") for name in figures):
            text = " ".join(f"{name}={value}" for name, value in shown.items())
            typer.echo(f"{stage} {step}/{steps} {text}", err=True)
