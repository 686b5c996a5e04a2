"""What `engines.py` times, each in a process of its own.

A process per contender keeps memory and start-up apart, and lets one that fails or dies leave the
others alone. Those that wait take no time: the parent asks one after another.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

STAGES = ("encode", "loop", "decode")


@dataclass(frozen=True)
class Spec:
    """One contender: what it is called, what it runs, how.

    Attributes
    ----------
    name : str
        In tables.
    family : str
        "published", "torch", "compiled", or a backend's name.
    precision : str
        Of the arithmetic.
    folder : str
        Checkpoint, or bundle for a backend.
    device : str
        "cpu" or "cuda:0".
    noise_level, steps : int
        Of the loop.
    threads : int or None
        CPU threads.
    """

    name: str
    family: str
    precision: str
    folder: str
    device: str
    noise_level: int
    steps: int
    threads: int | None = None


class Contender(Protocol):
    shape: tuple[int, int, int]
    one_at_a_time: bool

    def warm_up(self) -> None: ...

    def run(self, images: NDArray[np.float32]) -> dict[str, float]: ...

    def describe(self) -> dict[str, str]: ...


class Torch:
    """PyTorch on a checkpoint: as published (fp32, one image at a time), in batches, compiled.

    Convolutions in fp32 may use TF32 on a GPU, which is what PyTorch does if nobody forbids it; the
    compiled denoiser records CUDA graphs. Half precisions are PyTorch's autocast.
    """

    def __init__(self, spec: Spec) -> None:
        import torch

        from berdiff.checkpoint import load_checkpoint
        from berdiff.runtime.sampler import Sampler
        from berdiff.runtime.schedule import Schedule

        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self._torch = torch
        self.one_at_a_time = spec.family == "published"
        self._device = torch.device(spec.device)
        config, autoencoder, denoiser = load_checkpoint(Path(spec.folder))
        self._autoencoder = autoencoder.to(self._device)
        self._denoiser = denoiser.to(self._device)
        self._predict: Callable[..., Any] = self._denoiser
        if spec.family == "compiled":
            compiled = torch.compile(self._denoiser, mode="reduce-overhead", dynamic=False)

            def predict(code: Any, timesteps: Any) -> Any:
                torch.compiler.cudagraph_mark_step_begin()
                return compiled(code, timesteps).float()

            self._predict = predict
        types = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
        self._type = types[spec.precision]
        pre, schedule = config.preprocessing, config.schedule
        self.shape = (pre.channels, *pre.size)
        self._sampler = Sampler(
            schedule=Schedule.linear(
                schedule.num_timesteps, schedule.beta_start, schedule.beta_end
            ),
            noise_level=spec.noise_level,
            steps=spec.steps,
            flip_threshold=config.sampling.flip_threshold,
            forward_noise=config.forward_noise,
        )

    def _time(self) -> float:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def warm_up(self) -> None:
        """Load the library's kernels; compilation belongs to the first run of a batch size."""
        with self._torch.inference_mode(), self._autocast():
            image = self._torch.zeros(1, *self.shape, device=self._device)
            code = (self._autoencoder.encode(image) > 0.5).float()
            self._denoiser(code, self._torch.zeros(1, device=self._device))
            self._autoencoder.decode(code)
        self._time()

    def _autocast(self) -> Any:
        if self._type is None:
            return nullcontext()
        return self._torch.autocast(self._device.type, self._type)

    def run(self, images: NDArray[np.float32]) -> dict[str, float]:
        from berdiff.diffusion import reverse_loop

        torch = self._torch
        with torch.inference_mode(), self._autocast():
            times = [self._time()]
            held = torch.from_numpy(images).to(self._device)
            code = (self._autoencoder.encode(held) > 0.5).float()
            times.append(self._time())
            healthy, _ = reverse_loop(
                self._predict,
                code,
                self._sampler,
                lambda _, shape: torch.rand(shape, device=self._device),
            )
            times.append(self._time())
            self._autoencoder.decode(healthy).clamp(0, 1).float().cpu()
            times.append(self._time())
        return dict(zip(STAGES, np.diff(times).tolist(), strict=True))

    def describe(self) -> dict[str, str]:
        return {"torch": self._torch.__version__, "cuda": str(self._torch.version.cuda)}


class Engine:
    """A bundle on one of berdiff's backends."""

    one_at_a_time = False

    def __init__(self, spec: Spec) -> None:
        from berdiff.runtime.detector import Detector

        self._detector = Detector.open(spec.folder, spec.family, spec.device, spec.threads)
        pre = self._detector.bundle.manifest.preprocessing
        self.shape = (pre.channels, *pre.size)
        self._settings = self._detector.settings(noise_level=spec.noise_level, steps=spec.steps)

    def warm_up(self) -> None:
        self._detector.warm_up(1)

    def run(self, images: NDArray[np.float32]) -> dict[str, float]:
        ids = np.arange(len(images), dtype=np.uint64)
        timings = self._detector.detect(images, ids, settings=self._settings).timings
        return {stage: timings[stage] for stage in STAGES}

    def describe(self) -> dict[str, str]:
        return self._detector.backend.describe()


class DeviceMemory:
    """Memory taken on a GPU since this was made, beyond the bare CUDA context.

    Only one contender works at a time, so that what is gone is what it took.
    """

    def __init__(self, device: str) -> None:
        self._driver: Any = None
        if not device.startswith("cuda"):
            return
        from berdiff.runtime.nvidia import load_driver

        self._driver = load_driver()
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(handle), int(device.partition(":")[2] or 0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._call("cuCtxSetCurrent", context)
        self._before = self._free()

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._driver, name)(*arguments):
            raise RuntimeError(f"{name} of the driver answers {status}")

    def _free(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def taken_mib(self) -> float | None:
        """MiB taken; None on a CPU."""
        return None if self._driver is None else (self._before - self._free()) / (1 << 20)


def host_peak_mib() -> float | None:
    """Highest resident memory of this process; None where the system does not tell."""
    # Not getrusage: its figure is inherited from the process that started this one.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")] or [""]
    return int(line.split()[1]) / 1024 if line else None


def _serve(connection: Connection, spec: Spec, started: float) -> None:
    """Open a contender, then answer each batch size with the times of one run."""
    try:
        memory = DeviceMemory(spec.device)
        make = Torch if spec.family in ("published", "torch", "compiled") else Engine
        contender: Contender = make(spec)
        opened = time.time()
        contender.warm_up()
        connection.send(
            {
                "open_s": opened - started,
                "warm_up_s": time.time() - opened,
                "engine": contender.describe(),
            }
        )
    except BaseException as error:
        connection.send({"error": _one_line(error)})
        return
    random = np.random.Generator(np.random.Philox(key=0))
    while (batch := _next(connection)) is not None:
        images = random.random((batch, *contender.shape), np.float32)
        if contender.one_at_a_time:
            images = images[:1]
        try:
            answer: dict[str, Any] = {**contender.run(images), "images": len(images)}
        except BaseException as error:
            answer = {"error": _one_line(error)}
        answer["host_mib"], answer["device_mib"] = host_peak_mib(), memory.taken_mib()
        answer["largest_batch"] = contender.describe().get("largest batch")
        connection.send(answer)


def _next(connection: Connection) -> int | None:
    """Batch size asked for; None at the end, and where the parent has gone."""
    try:
        batch: int | None = connection.recv()
    except EOFError:
        return None
    return batch


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


class Worker:
    """A contender's process, seen from the parent."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, spec, time.time()))
        self._process.start()
        theirs.close()
        self.opening = self._receive()

    def run(self, batch: int) -> dict[str, Any]:
        """Seconds of each stage for one run, with memory; or ``{"error": ...}``."""
        try:
            self._connection.send(batch)
        except OSError:
            return {"error": "its process has ended"}
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._connection.recv()
        except EOFError:
            self._process.join()
            return {"error": f"its process ended with status {self._process.exitcode}"}
        return answer

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._connection.send(None)
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.terminate()
