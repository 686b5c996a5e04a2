r"""What a run over a folder of scans spends its time on, and the memory it takes.

Run it as::

    python benchmarks/stages.py               # one case, networks that cost next to nothing
    python benchmarks/stages.py --cases 100
    python benchmarks/stages.py --cases 2 --bundle BUNDLE --device cuda

Cases are made up: an egg of 240 x 240 x 155 voxels of 1 mm in four contrasts, int16, compressed, in
folders as BraTS has them. Of many cases only four differ; the others are links to them.

Without ``--bundle`` the networks are stand-ins for those of the published model: images and codes
of its shape, and a few lines of NumPy. What is left is then what everything else costs. Stages are
those of ``run.json``. They overlap, and reading and writing have several threads: their seconds add
up to more than the run took. The CPU time is that of the whole process, networks included.
Libraries are loaded beforehand; what that takes, ``startup.py`` measures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.detector import Detector
from berdiff.runtime.files import write_atomic
from berdiff.runtime.folder_run import run_folder
from berdiff.runtime.manifest import (
    SCHEMA_VERSION,
    CodeShape,
    Manifest,
    SamplingDefaults,
    ScheduleSpec,
)
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.run_plan import RunOptions

FloatArray = NDArray[np.float32]

CONTRASTS = {"t1": 600, "t1ce": 700, "t2": 400, "flair": 500}  # and how bright tissue is in them
DIFFERENT = 4
NETWORKS = ("encode", "loop", "decode")
LIBRARIES = (
    "nibabel",
    "scipy.ndimage",
    "PIL.Image",
    "PIL.ImageDraw",
    "PIL.ImageFont",
    "isal.igzip",
)
FACTOR = 8
CODE_CHANNELS = 128


class StandIn:
    """Networks of the published model's shapes: means of blocks there, repetition back."""

    name = "stand-in"
    device = "cpu"

    def encode(self, images: FloatArray) -> FloatArray:
        n, c, h, w = images.shape
        blocks = images.reshape(n, c, h // FACTOR, FACTOR, w // FACTOR, FACTOR)
        return blocks.mean(axis=(3, 5), dtype=np.float32).repeat(CODE_CHANNELS // c, axis=1)

    def flip_probability(self, code: FloatArray, t: int) -> FloatArray:
        return np.float32(0.1) + np.float32(0.2) * code.astype(np.float32)

    def decode(self, code: FloatArray) -> FloatArray:
        n, _, h, w = code.shape
        means = code.reshape(n, len(CONTRASTS), -1, h, w).mean(axis=2, dtype=np.float32)
        return means.repeat(FACTOR, axis=2).repeat(FACTOR, axis=3)

    def describe(self) -> dict[str, str]:
        return {"backend": self.name, "device": self.device}

    def close(self) -> None: ...

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None: ...


def stand_in() -> Detector:
    """A detector of the published model's shapes whose networks cost next to nothing."""
    size = 256, 256
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="stand-in",
        preprocessing=Preprocessing(
            len(CONTRASTS), tuple(CONTRASTS), size, spacing=1.0, orientation="LPS"
        ),
        code=CodeShape(CODE_CHANNELS, size[0] // FACTOR, size[1] // FACTOR),
        schedule=ScheduleSpec(),
        forward_noise="bernoulli",
        sampling=SamplingDefaults(noise_level=200, steps=2),
        files={},
    )
    return Detector(Bundle(Path("stand-in"), manifest, "0" * 64), StandIn())


def make_cases(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Write BraTS-like case folders; from the fifth on, they are links to the first four."""
    import nibabel

    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[1, 3] = shape[1] - 1
    x, y, z = np.ogrid[tuple(slice(-1, 1, 1j * length) for length in shape)]
    radius = ((x / 0.58) ** 2 + (y / 0.72) ** 2 + (z / 0.85) ** 2).astype(np.float32)
    layers = 1 + np.float32(0.3) * np.cos(np.float32(7) * radius)
    for number in range(count):
        case = folder / f"case_{number:03d}"
        case.mkdir(parents=True)
        rng = np.random.default_rng(number)
        for contrast, level in CONTRASTS.items():
            file = case / f"{case.name}_{contrast}.nii.gz"
            if number >= DIFFERENT:
                like = f"case_{number % DIFFERENT:03d}"
                os.link(folder / like / f"{like}_{contrast}.nii.gz", file)
                continue
            values = level * layers + rng.normal(0, 0.05 * level, shape)
            stored = np.where(radius < 1, np.maximum(values, 1), 0).astype(np.int16)
            nibabel.Nifti1Image(stored, affine).to_filename(file)


def measure(options: argparse.Namespace, cases: Path, output: Path) -> dict[str, Any]:
    """One run, in a process of its own, whose memory is then that of the run."""
    run = RunOptions(batch_size=options.batch_size)
    bundle, engine = options.bundle, (options.backend, options.device, options.threads)
    with Detector.open(bundle, *engine) if bundle else stand_in() as detector:
        for library in LIBRARIES:
            importlib.import_module(library)
        detector.warm_up(run.batch_size)
        before = _peak_mib()
        wall, cpu = time.perf_counter(), time.process_time()
        summary = run_folder(detector, cases, output, run)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if summary.failed:
        raise SystemExit(f"{summary.failed[0].name} failed: {summary.failed[0].reason}")
    record = json.loads((output / "run.json").read_text())
    return {
        "bundle": str(bundle) if bundle else None,
        "backend": record["backend"],
        "device": record["device"],
        "cases": len(summary.ok),
        "slices": sum(result.slices - result.empty_slices for result in summary.ok),
        "batch_size": run.batch_size,
        "steps": record["settings"]["steps"],
        "cpus": len(os.sched_getaffinity(0)),
        "timings": record["timings"],
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "mib_before": before,
        "mib_at_most": _peak_mib(),
        "written_mib": round(sum(f.stat().st_size for f in output.rglob("*.*")) / 2**20),
    }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def table(measured: dict[str, Any]) -> str:
    """The figures, for people."""
    cases, wall = measured["cases"], measured["wall_s"]
    networks = sum(measured["timings"].get(stage, 0.0) for stage in NETWORKS)
    conditions = (
        f"{cases} case(s), {measured['slices']} slices that show something, batches of "
        f"{measured['batch_size']}, {measured['backend']} on {measured['device']}, "
        f"{measured['steps']} steps, {measured['cpus']} CPUs"
    )
    lines = [conditions, f"{'stage':32}{'seconds':>10}{'per case':>10}"]
    rows = {
        **measured["timings"],
        "the run (wall)": wall,
        "the run but for the networks": wall - networks,
        "CPU time of the process": measured["cpu_s"],
    }
    lines += [f"{name:32}{spent:10.2f}{spent / cases:10.3f}" for name, spent in rows.items()]
    lines.append(
        f"memory: {measured['mib_at_most']} MiB at most, {measured['mib_before']} before the run; "
        f"{measured['written_mib']} MiB written"
    )
    return "\n".join(lines)


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--cases", type=int, default=1)
    add("--bundle", type=Path, help="Default: stand-ins that cost next to nothing.")
    add("--backend", default="onnxruntime", help="Of the bundle. Default: onnxruntime.")
    add("--device", default="cpu", help="Of the bundle. Default: cpu.")
    add("--threads", type=int, help="CPU threads of the bundle's networks.")
    add("--batch-size", type=int, default=8)
    add("--shape", type=int, nargs=3, default=(240, 240, 155), metavar=("X", "Y", "Z"))
    add("--work", type=Path, help="Where cases and results go, and are deleted. Default: /tmp.")
    add("--output", "-o", type=Path, help="JSON file for the figures.")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    options = arguments(words)
    apart = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        cases, output = Path(folder, "cases"), Path(folder, "results")
        with ProcessPoolExecutor(1, mp_context=apart) as process:
            process.submit(make_cases, cases, options.cases, tuple(options.shape)).result()
        with ProcessPoolExecutor(1, mp_context=apart) as process:
            measured = process.submit(measure, options, cases, output).result()
    if options.output:
        write_atomic(options.output, (json.dumps(measured, indent=2) + "\n").encode())
    print(table(measured))


if __name__ == "__main__":
    main()
