"""What `engines.py` needs before it can measure: a model, bundles, engines, the machine's best."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from engines_figures import Network, Peak

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.library import LIBRARIES
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.files import sha256_file

BERDIFF = str(Path(sys.executable).with_name("berdiff"))

# In a process of its own, like everything that loads PyTorch: the parent stays small.
CHECKPOINT = """
import sys
from pathlib import Path
import torch
from berdiff.autoencoder import BinaryAutoencoder
from berdiff.checkpoint import save_checkpoint
from berdiff.config import ModelConfig
from berdiff.denoiser import Denoiser
from berdiff.runtime.manifest import SamplingDefaults
from berdiff.runtime.preprocessing import Preprocessing

torch.manual_seed(0)
images = Preprocessing(channels=4, modalities=("t1", "t1ce", "t2", "flair"), size=(256, 256))
# Few steps, so that the comparisons of the export do not take longer than the benchmark.
loop = SamplingDefaults(noise_level=200, steps=20)
config = ModelConfig(images, sampling=loop, name="published architecture, random weights")
networks = BinaryAutoencoder(config.autoencoder), Denoiser(config.denoiser)
for network in networks:
    for name, tensor in network.named_parameters():
        # No zeros, which fresh networks have, so that every layer does something.
        with torch.no_grad():
            if tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            else:
                tensor.normal_(mean=float(name.endswith("weight")), std=0.1)
save_checkpoint(Path(sys.argv[1]), config, *networks)
"""
NETWORK = """
import json, sys
from pathlib import Path
import torch
from torch.utils.flop_counter import FlopCounterMode
from berdiff.autoencoder import BinaryAutoencoder
from berdiff.checkpoint import load_config
from berdiff.denoiser import Denoiser

config = load_config(Path(sys.argv[1]))
with torch.device("meta"):
    autoencoder, denoiser = BinaryAutoencoder(config.autoencoder), Denoiser(config.denoiser)
    pre, code = config.preprocessing, config.code_shape
    image = torch.zeros(1, pre.channels, *pre.size)
    bits = torch.zeros(1, code.channels, code.height, code.width)

    def gflop(function, *inputs):
        with FlopCounterMode(display=False) as counter:
            function(*inputs)
        return counter.get_total_flops() / 1e9

    print(json.dumps({
        "parameters": sum(tensor.numel() for tensor in denoiser.parameters()),
        "step_gflop": gflop(denoiser, bits, torch.zeros(1)),
        "encode_gflop": gflop(autoencoder.encode, image),
        "decode_gflop": gflop(autoencoder.decode, bits),
    }))
"""
PEAK = """
import json, sys, time
import torch

device, threads = sys.argv[1], int(sys.argv[2])
if threads:
    torch.set_num_threads(threads)
torch.backends.cuda.matmul.allow_tf32 = True
gpu = device != "cpu"

def best(work, repeats=20 if gpu else 5):
    times = []
    for _ in range(repeats):
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)

size = 8192 if gpu else 2048
tflops = {}
for name, kind in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
    if gpu or name == "fp32":
        a, b = (torch.rand(size, size, device=device).to(kind) for _ in range(2))
        tflops[name] = 2 * size**3 / best(lambda: a @ b) / 1e12
if gpu:
    a, b = (torch.ones(size, size, device=device, dtype=torch.int8) for _ in range(2))
    try:
        tflops["int8"] = 2 * size**3 / best(lambda: torch._int_mm(a, b.t())) / 1e12
    except RuntimeError:  # older GPUs have none: float16 stands for it
        tflops["int8"] = tflops["fp16"]
source = torch.rand(1 << (30 if gpu else 26), device=device)
target = torch.empty_like(source)
gbs = 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9
print(json.dumps({"tflops": tflops, "gbs": gbs}))
"""


def _python(code: str, *words: str) -> str:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def checkpoint(folder: Path) -> Path:
    """Make a checkpoint of the published architecture with random weights, once."""
    if not (folder / "config.json").is_file():
        _python(CHECKPOINT, str(folder))
    return folder


def network(folder: Path, kept: Path) -> Network:
    """Size of a checkpoint's networks, kept for machines without PyTorch."""
    digest = sha256_file(folder / "config.json")
    if kept.is_file():
        content = json.loads(kept.read_text())
        if content.pop("of") == digest:
            return Network(**content)
    content = json.loads(_python(NETWORK, str(folder)))
    kept.write_text(json.dumps({"of": digest, **content}) + "\n")
    return Network(**content)


def measured_peak(device: str, threads: int | None) -> Peak:
    """Best matrix product and copy that PyTorch manages here.

    On a CPU only float32 is measured, and stands for all: its halves are slower, and int8 has no
    matrix product there. A share above 1 then means: faster than float32 could be.
    """
    found = json.loads(_python(PEAK, device, str(threads or 0)))
    tflops = found["tflops"]
    if device == "cpu":
        tflops = dict.fromkeys(("fp32", "fp16", "bf16", "int8"), tflops["fp32"])
    source = "measured" if device != "cpu" else "measured, fp32 for all precisions"
    return Peak(tflops, found["gbs"], source)


def bundle(folder: Path, precision: str, options: argparse.Namespace) -> Path | str:
    """Export a checkpoint, once; or say why that failed."""
    target: Path = options.work / f"bundle-{precision}"
    if _is_bundle_of(target, folder):
        return target
    shutil.rmtree(target, ignore_errors=True)
    command = [BERDIFF, "export", str(folder), "-o", str(target), "--precision", precision]
    if precision == "int8":
        command += ["--calibration", str(options.calibration or _heads(options.work / "heads"))]
    return _failure(command) or target


def _is_bundle_of(target: Path, folder: Path) -> bool:
    """Whether a bundle is there, whole, and was exported from this checkpoint."""
    try:
        provenance = Bundle.open(target).manifest.provenance
    except BerdiffError:
        return False
    files = ("config.json", "autoencoder.safetensors", "denoiser.safetensors")
    return all(provenance.get(f"sha256 of {name}") == sha256_file(folder / name) for name in files)


def _heads(folder: Path) -> Path:
    """Drawn healthy heads of the published architecture's four contrasts, made once."""
    if not folder.is_dir():
        command = [BERDIFF, "phantoms", "-o", str(folder), "--count", "8", "--healthy"]
        command += ["--size", "256", "--contrast", "t1,t1ce,t2,flair"]
        subprocess.run(command, capture_output=True, text=True, check=True)
    return folder / "images"


def engine(folder: Path, backend: str, device: str, largest: int) -> str | None:
    """Build a bundle's engines where the backend needs some; or say why that failed."""
    if backend not in LIBRARIES:
        return None
    command = [BERDIFF, "build", str(folder), "--engine", backend]
    command += ["--dynamic-batch", f"1,{max(1, largest // 2)},{largest}"]
    if backend == "tensorrt":
        cache = folder.parent / "tensorrt.timing"
        command += ["--device", device, "--timing-cache", str(cache)]
    return _failure(command)


def _failure(command: list[str]) -> str | None:
    print(" ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return " ".join((done.stderr or done.stdout).split())[-300:]


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} processors" if names else platform.processor()
