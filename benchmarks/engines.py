r"""How fast each engine is beside the published way, on the published architecture, in one run.

Run it as::

    python benchmarks/engines.py                 # this machine's GPU, or its CPU where it has none
    python benchmarks/engines.py --device cpu --threads 2 --batch-sizes 1,4 --steps 10

or as ``make bench-gpu`` and ``make bench``, which make the environment first. The model has random
weights unless ``--checkpoint`` names a trained one: speed does not depend on them. Bundles and
engines go to ``--work`` and are used again. What cannot run here is listed with its reason.

Contenders take turns (A B C A B C ...), so that all meet the same disturbances; each has a process
of its own, so that start-up and memory are its own. Results: ``engines.json``, ``engines.md`` and
``engines.png`` in ``--output``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engines_prepare as prepare
from engines_contenders import Spec, Worker
from engines_figures import PUBLISHED, Peak, as_json, markdown, peak_of, plot, rows

from berdiff.runtime.backends import available, gpu_obstacle
from berdiff.runtime.environment import machine, software
from berdiff.runtime.nvidia import driver

DEFAULTS = {
    "cpu": {"batch_sizes": "1,4", "steps": 10, "precisions": "fp32,int8"},
    "cuda": {"batch_sizes": "1,8,32,64,128", "steps": 200, "precisions": "fp32,fp16,bf16,int8"},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--device", help="cpu, cuda:0, ... Default: the first GPU, or the CPU.")
    add("--checkpoint", type=Path, help="Default: random weights, made in --work.")
    add("--work", type=Path, default=Path("build/bench"), help="Bundles and engines are kept here.")
    add("--output", "-o", type=Path, help="Folder for the results. Default: --work.")
    add("--batch-sizes", help="Default: 1,8,32,64,128 on a GPU, 1,4 on a CPU.")
    add("--noise-level", type=int, default=200, help="L. Default: 200.")
    add("--steps", type=int, help="Reverse steps. Default: 200 on a GPU, 10 on a CPU.")
    add("--precisions", help="Default: fp32,fp16,bf16,int8 on a GPU, fp32,int8 on a CPU.")
    add("--rounds", type=int, default=5, help="Runs that count, of each contender. Default: 5.")
    add("--threads", type=int, help="CPU threads. Default: each library's own.")
    add("--only", help="Contenders to time, by parts of their names, separated by commas.")
    add("--compile", action="store_true", help="torch.compile on a CPU too; it needs a compiler.")
    add("--calibration", type=Path, help="Healthy images for int8. Default: drawn heads.")
    add(
        "--peak",
        action="append",
        default=[],
        metavar="PRECISION=TFLOPS",
        help="What the machine can do at best. Default: by the GPU's name, else measured.",
    )
    add("--bandwidth", type=float, metavar="GB/S", help="Memory bandwidth. Default: as --peak.")
    options = parser.parse_args()
    if options.device is None:
        options.device = "cuda:0" if driver().gpus else "cpu"
    defaults = DEFAULTS["cpu" if options.device == "cpu" else "cuda"]
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.batch_sizes = sorted({int(size) for size in options.batch_sizes.split(",")})
    options.precisions = options.precisions.split(",")
    options.output = options.output or options.work
    return options


def contenders(
    options: argparse.Namespace, checkpoint: Path, left_out: dict[str, str]
) -> Iterator[Spec]:
    """Everything that can be timed here; what cannot goes into `left_out`."""
    gpu = options.device != "cpu"
    wanted = [word.strip() for word in options.only.split(",")] if options.only else [""]

    def spec(name: str, family: str, precision: str, folder: Path) -> Iterator[Spec]:
        if any(word in name for word in wanted):
            loop = options.noise_level, options.steps
            yield Spec(name, family, precision, str(folder), options.device, *loop, options.threads)

    yield from spec("PyTorch eager, one at a time", PUBLISHED, "fp32", checkpoint)
    halves = [name for name in ("fp16", "bf16") if gpu and name in options.precisions]
    for precision in ("fp32", *halves):
        yield from spec(f"PyTorch eager {precision}", "torch", precision, checkpoint)
    for precision in ("fp32", *halves) if gpu or options.compile else ():
        yield from spec(f"PyTorch compiled {precision}", "compiled", precision, checkpoint)
    if not (gpu or options.compile):
        left_out["PyTorch compiled"] = "on a CPU only with --compile"

    bundles: dict[str, Path | str] = {}
    for backend, found in available().items():
        if options.device not in found.devices:
            reason = (gpu_obstacle(backend) if gpu else None) or found.reason
            left_out[backend] = reason or f"it has no device '{options.device}' here"
            continue
        for precision in options.precisions:
            name = f"{backend} {precision}"
            if not any(word in name for word in wanted):
                continue
            if precision not in bundles:
                bundles[precision] = prepare.bundle(checkpoint, precision, options)
            folder = bundles[precision]
            problem = folder if isinstance(folder, str) else None
            if problem is None and gpu:
                problem = prepare.engine(
                    Path(folder), backend, options.device, max(options.batch_sizes)
                )
            if problem is not None:
                left_out[name] = problem
                continue
            yield from spec(name, backend, precision, Path(folder))


def measure(
    specs: list[Spec], batch_sizes: list[int], rounds: int, left_out: dict[str, str]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Open all contenders, then time them in turns; returns runs and openings, by name."""
    workers, openings, runs = {}, {}, []
    try:
        for spec in specs:
            worker = workers[spec.name] = Worker(spec)
            if "error" in worker.opening:
                left_out[spec.name] = worker.opening["error"]
                workers.pop(spec.name).close()
            else:
                openings[spec.name] = worker.opening
                tell(f"{spec.name}: open after {worker.opening['open_s']:.1f} s")
        for batch in batch_sizes:
            for turn in range(rounds + 1):  # the first does not count
                for name, worker in list(workers.items()):
                    run = worker.run(batch)
                    if "error" in run:
                        left_out[f"{name} from batch {batch} on"] = run["error"]
                        tell(f"{name}, batch {batch}: {run['error']}")
                        workers.pop(name).close()
                        continue
                    spec = worker.spec
                    run |= {"contender": name, "batch": batch, "turn": turn}
                    runs.append(run | {"family": spec.family, "precision": spec.precision})
                tell(f"batch {batch}, round {turn} of {rounds}")
    finally:
        for worker in workers.values():
            worker.close()
    return runs, openings


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def peak(options: argparse.Namespace, gpu: str | None) -> Peak:
    """The machine's best: by name, else measured; arguments go before both."""
    found = peak_of(gpu) if gpu else None
    given = dict(item.split("=") for item in options.peak)
    everything = options.bandwidth and set(given) >= set(options.precisions)
    if found is None and not everything:
        tell("measuring what the machine can do at best")
        found = prepare.measured_peak(options.device, options.threads)
    tflops = {} if found is None else dict(found.tflops)
    tflops |= {name: float(value) for name, value in given.items()}
    source = "given" if found is None else found.source
    if found is not None and (given or options.bandwidth):
        source += "; " + ", ".join([*given, *(["bandwidth"] if options.bandwidth else [])])
        source += " given"
    return Peak(tflops, options.bandwidth or (found.gbs if found else 0), source)


def main() -> None:
    options = arguments()
    gpus = {gpu.device: gpu.name for gpu in driver().gpus}
    if options.device != "cpu" and options.device not in gpus:
        sys.exit(
            f"there is no '{options.device}' here: {driver().problem or ', '.join(gpus)}; "
            "`berdiff info --system` says what is missing. On the CPU: --device cpu"
        )
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    gpu = None if options.device == "cpu" else gpus[options.device]
    checkpoint = options.checkpoint or prepare.checkpoint(options.work / "checkpoint")
    network = prepare.network(checkpoint, options.work / "network.json")
    left_out: dict[str, str] = {}
    specs = list(contenders(options, checkpoint, left_out))
    best = peak(options, gpu)
    started = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    runs, openings = measure(specs, options.batch_sizes, options.rounds, left_out)
    found = rows(runs, options.steps, network, best)
    result = {
        "conditions": {
            "command": shlex.join(["python", *sys.argv]),
            "date": started,
            "device": gpu or prepare.processor(),
            "threads": options.threads,
            "denoiser": f"{network.parameters / 1e6:.1f} M parameters, "
            f"{network.step_gflop:.1f} GFLOP per step and image",
            "loop": f"L = {options.noise_level}, {options.steps} reverse steps",
            "rounds": options.rounds,
            "at best": ", ".join(f"{key} {value:.4g}" for key, value in best.tflops.items())
            + f" TFLOP/s, {best.gbs:.4g} GB/s ({best.source})",
        },
        "machine": machine(),
        "software": software(),
        "driver": driver().version,
        "openings": openings,
        "rows": as_json(found),
        "runs": runs,
        "left_out": left_out,
    }
    (options.output / "engines.json").write_text(json.dumps(result, indent=2) + "\n")
    table = markdown(result)
    (options.output / "engines.md").write_text(table)
    print(table)
    if found:
        try:
            plot(result, options.output / "engines.png")
        except ImportError as error:
            tell(f"no plot: {error}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{shlex.join(map(str, error.cmd))} failed:\n{error.stderr}")
