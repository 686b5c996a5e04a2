"""Training on several processes: joining them, sharing a step, and ending as one.

A launcher (torchrun, accelerate) starts the same command several times. The processes take the same
steps on shares of the same batches; the first one writes and speaks. What is wrong is said once,
and none is left waiting for a process that is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from berdiff.runtime.errors import BerdiffError, optional

from .training_config import StageSettings

# Seconds that a process with nothing to say waits before it ends: once one has ended, the launcher
# ends all others, and the one with something to say has to come to it.
BEHIND = 10
# Minutes that a process waits for another one: longer than any two need to differ, reading images
# from slow disks included; short enough that a night is not lost to a process that hangs.
PATIENCE = 30.0

Part = TypeVar("Part")


class StoppedByAnother(BerdiffError):
    """Another process of the job has said what is wrong; this one only ends."""


def make_accelerator(device: str, precision: str, patience: float = PATIENCE) -> Any:
    """Return an `accelerate.Accelerator` on exactly the device that was asked for.

    Where a launcher has started several processes, this joins them.

    Parameters
    ----------
    device : str
        ``cpu`` or ``cuda``.
    precision : str
        ``no``, ``bf16`` or ``fp16``.
    patience : float
        Minutes that a process waits for another one before it gives up.

    Raises
    ------
    BerdiffError
        If the device is not there (nothing falls back to the CPU), has fewer GPUs than the launcher
        has started processes, or the launcher was told to do what berdiff does itself.
    """
    accelerate = optional("accelerate", "train")
    with _said_by("RANK"):
        if device not in ("cpu", "cuda"):
            raise BerdiffError(f"unknown device '{device}'; there are cpu and cuda")
        if precision not in ("no", "fp16", "bf16"):
            raise BerdiffError(f"unknown precision '{precision}'; there are no, fp16 and bf16")
        if precision == "fp16" and device == "cpu":
            raise BerdiffError("fp16 training needs a GPU; use bf16 or no on the CPU")
        _check_launcher(precision)
    with _said_by("LOCAL_RANK"):
        if device == "cuda":
            _check_gpus()
    wait = accelerate.InitProcessGroupKwargs(timeout=timedelta(minutes=patience))
    accelerator = accelerate.Accelerator(
        cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[wait]
    )
    if accelerator.device.type != device:
        raise BerdiffError(
            f"device {device} was asked for, but the launcher chose {accelerator.device}; "
            "tell it the same, or use torchrun"
        )
    return accelerator


@contextmanager
def _said_by(variable: str) -> Iterator[None]:
    """Leave an error that all processes (of a machine) see alike to the first of them."""
    try:
        yield
    except BerdiffError as error:
        if int(os.environ.get(variable) or 0) > 0:
            raise StoppedByAnother(str(error)) from error
        raise


def _check_gpus() -> None:
    if not torch.cuda.is_available():
        raise BerdiffError("device cuda was asked for, but PyTorch sees no CUDA GPU here; use cpu")
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE") or 1), torch.cuda.device_count()
    if processes > gpus:
        raise BerdiffError(
            f"the launcher started {processes} processes on {socket.gethostname()}, where PyTorch "
            f"sees {gpus} GPU(s); start one per GPU, with --nproc-per-node={gpus}"
        )


def _check_launcher(precision: str) -> None:
    """Refuse what `accelerate launch` was told and would be ignored, or done twice."""
    given = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if given not in ("no", precision):
        raise BerdiffError(
            f"accelerate launch was told --mixed_precision {given}, berdiff --precision "
            f"{precision}; give --precision {given} to berdiff"
        )
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") != "1":
        raise BerdiffError(
            "accelerate launch was told --gradient_accumulation_steps; "
            "set it in berdiff instead, as in --set denoiser.accumulate=4"
        )
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise BerdiffError(
                f"{name} is set, but berdiff trains with DistributedDataParallel only; "
                "configure accelerate without it"
            )
    # With --cpu, accelerate starts one process, however many it is told.
    launched_by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    several = {
        "LOCAL_RANK",
        "WORLD_SIZE",
        "PMI_SIZE",
        "OMPI_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_SIZE",
    }
    if launched_by_accelerate and "MASTER_ADDR" in os.environ and not several & set(os.environ):
        raise BerdiffError(
            "accelerate launch --cpu was told to start several processes and started one; "
            "for several on the CPU use accelerate launch --multi_gpu with -d cpu, or torchrun"
        )


def check_batch(name: str, settings: StageSettings, processes: int) -> None:
    """Refuse a batch that cannot be shared equally, which the mean of the gradients needs.

    Raises
    ------
    BerdiffError
        If the batch size is no multiple of processes times `accumulate`.
    """
    parts = processes * settings.accumulate
    if settings.batch_size % parts:
        below = settings.batch_size // parts * parts
        close = " or ".join(str(size) for size in (below, below + parts) if size)
        raise BerdiffError(
            f"{name}.batch_size {settings.batch_size} does not divide among {processes} "
            f"process(es) that take it in {settings.accumulate} part(s) each; with so many it may "
            f"be {close}, as in --set {name}.batch_size={below + parts}"
        )


def describe(name: str, settings: StageSettings, accelerator: Any) -> str:
    """Return what a stage trains on, in a line: processes, batch, learning rate, device."""
    processes = accelerator.num_processes
    share = settings.batch_size // (processes * settings.accumulate)
    line = (
        f"{name}: global batch {settings.batch_size} = {processes} process(es) x "
        f"{settings.accumulate} part(s) x {share} image(s); learning rate "
        f"{settings.learning_rate:g}, for the global batch; device {accelerator.device.type}"
    )
    if processes > 1:
        line += f", {accelerator.state.backend}, waiting at most {_patience(accelerator)}"
    return line


def _patience(accelerator: Any) -> str:
    return f"{accelerator.init_handler.timeout.total_seconds() / 60:g} min"


@contextmanager
def agreed(accelerator: Any) -> Iterator[None]:
    """Let an expected error of one process end all of them, and be said once.

    Afterwards all have come through the block. It must hold nothing in which processes wait for
    each other: one that fails goes on to the end of the block.

    Raises
    ------
    BerdiffError
        In the first process that failed, its own error; `StoppedByAnother` in all others.
    """
    error: BerdiffError | None = None
    try:
        yield
    except BerdiffError as caught:
        error = caught
    messages = _gather(accelerator, str(error) if error else None)
    failed = [rank for rank, message in enumerate(messages) if message is not None]
    if failed and error and accelerator.process_index == failed[0]:
        raise error
    if failed:
        raise StoppedByAnother(f"process {failed[0]}: {messages[failed[0]]}")


def check_same(accelerator: Any, found: Mapping[str, object], advice: str) -> None:
    """Refuse to go on with processes that have found different things.

    Raises
    ------
    BerdiffError
        In the first process; `StoppedByAnother` in all others.
    """
    everywhere = _gather(accelerator, dict(found))
    for rank, there in enumerate(everywhere):
        differ = [name for name in found if there[name] != everywhere[0][name]]
        if differ:
            refuse(
                accelerator,
                f"process {rank} found other {' and '.join(differ)} than process 0; {advice}",
            )


def refuse(accelerator: Any, message: str) -> None:
    """Raise an error that all processes have come to alike; only the first one says it."""
    raise (BerdiffError if accelerator.is_main_process else StoppedByAnother)(message)


def _gather(accelerator: Any, item: Any) -> list[Any]:
    """One object of each process, in their order."""
    if accelerator.num_processes == 1:
        return [item]
    return list(optional("accelerate.utils", "train").gather_object([item]))


def mean_figures(accelerator: Any, figures: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean over all processes of figures that each has of its share."""
    if not figures:
        return {}
    mean = accelerator.reduce(torch.stack([v.float() for v in figures.values()]), "mean")
    return dict(zip(figures, mean.tolist(), strict=True))


def sum_figures(accelerator: Any, figures: Mapping[str, float]) -> dict[str, float]:
    """Sum over all processes; one that had nothing to do may have no figures."""
    sums: dict[str, float] = {}
    for there in _gather(accelerator, dict(figures)):
        for name, value in there.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def accumulated(parts: Sequence[Part], network: nn.Module, accelerator: Any) -> Iterator[Part]:
    """Go through the parts of a batch; gradients are exchanged once, with those of the last."""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(network):
            yield part


GO_ON = "nothing that was saved is lost: the same command with --continue goes on from there"


@contextmanager
def one_job(accelerator: Any) -> Iterator[None]:
    """Within the block, a process that loses another one, or is ended by the launcher, says so.

    Raises
    ------
    BerdiffError
        If another process is gone or does not answer.
    """
    if accelerator.num_processes == 1:
        yield
        return
    who = f"process {accelerator.process_index} of {accelerator.num_processes}"
    # Not undone when the block fails: the launcher may end this process before its error is read.
    undo = _say_when_ended(
        f"{who} was told to end: another process has failed, which the launcher names, or the job "
        f"was cancelled; {GO_ON}"
    )
    try:
        yield
    except StoppedByAnother:
        undo()
        raise
    except RuntimeError as error:
        if not _of_communication(error):
            raise
        cause = str(error).partition(" This is typically")[
            0
        ]  # advice to those who wrote the program
        raise BerdiffError(
            f"{who} has lost another one, which was killed, has failed or has not answered for "
            f"{_patience(accelerator)} (a process that does not say this is the one to look at; "
            f"the launcher names one that died); {GO_ON}. The cause: {cause}"
        ) from error
    accelerator.end_training()
    undo()


def _of_communication(error: RuntimeError) -> bool:
    """Whether an error comes from the exchange between processes; gloo's has no own type."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error)
    return any(word in text for word in ("gloo", "NCCL", "Connection closed by peer"))


def _say_when_ended(message: str) -> Callable[[], None]:
    """Print a message on SIGTERM, then end; return what undoes this.

    A thread does it: the main one may be inside a call that waits for other processes, where
    Python's own handlers do not run.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def wait() -> None:
        while number := reader.recv(1):
            if number[0] == signal.SIGTERM:
                sys.stderr.write(message + "\n")
                sys.stderr.flush()
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()

    def undo() -> None:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGTERM, before)
        writer.close()

    return undo
