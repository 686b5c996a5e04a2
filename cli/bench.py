"""``berdiff bench``: timings of a bundle on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from berdiff.runtime.bench import Bench, Contender
    from berdiff.runtime.manifest import Manifest, SamplingDefaults


def bench(
    model: Annotated[Path, typer.Option("--model", "-m", help="Bundle to time.")],
    against: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="torch CHECKPOINT",
            help="Also time eager PyTorch on the checkpoint the bundle was exported from, in "
            "turns with the bundle.",
        ),
    ] = None,
    batch_sizes: Annotated[
        str, typer.Option("--batch-sizes", help="Batch sizes, separated by commas.")
    ] = "1,4,8",
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Reverse steps, spread over the noise level. Default: the bundle's, at most 20.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs; the median counts.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. Default: one per physical core.")
    ] = None,
    device: Annotated[str, typer.Option("--device", "-d", help="Device to run on.")] = "cpu",
    backend: Annotated[str, typer.Option(help="Engine backend.")] = "onnxruntime",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a bundle: per step, per image, by batch size; start-up and peak memory.

    A timed image is encoded, walked back and decoded; reading files and making maps is not
    counted.
    """
    import json

    from berdiff.runtime.bench import run_bench
    from berdiff.runtime.detector import Detector

    result = run_bench(
        lambda: Detector.open(model, backend, device, threads),
        _sizes(batch_sizes),
        steps=steps,
        repeats=repeats,
        rival=None if against is None else _rival(*against, threads),
    )
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        _show(result)


def _rival(
    name: str, checkpoint: Path, threads: int | None
) -> Callable[[Manifest, SamplingDefaults], Contender]:
    if name != "torch":
        raise typer.BadParameter(f"{name!r} is unknown; known is: torch", param_hint="--against")

    from berdiff.runtime.errors import optional

    optional("torch", "export")
    optional("safetensors", "export")

    def load(manifest: Manifest, settings: SamplingDefaults) -> Contender:
        from berdiff.bench import EagerTorch

        return EagerTorch(checkpoint, manifest, settings, threads)

    return load


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise typer.BadParameter(
            f"expected numbers from 1 up, like 1,4,8, got {text!r}", param_hint="--batch-sizes"
        )
    return sizes


def _show(result: Bench) -> None:
    memory = result.peak_memory_mib
    typer.echo(", ".join(f"{key} {value}" for key, value in result.engine.items()))
    typer.echo(f"noise level {result.noise_level}, {result.steps} reverse steps")
    typer.echo(
        f"start-up {result.open_s + result.warm_up_s:.2f} s "
        f"(open {result.open_s:.2f} s, warm-up {result.warm_up_s:.2f} s); peak memory "
        + ("unknown" if memory is None else f"{memory:.0f} MiB")
    )
    typer.echo(f"\n{'':20}{'batch':>6}{'ms/step':>11}{'ms/image':>11}{'images/s':>10}")
    for timing in result.timings:
        typer.echo(
            f"{timing.name:20}{timing.batch_size:6d}{timing.step_ms:11.2f}"
            f"{timing.image_ms:11.1f}{timing.images_per_second:10.2f}"
        )
    for size, ratio in result.speedups().items():
        typer.echo(f"batch {size}: {ratio:.2f} times as fast, end to end")
