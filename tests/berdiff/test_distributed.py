"""Training on two processes, started as users start them: the same run as on one, or a clear end.

Two processes on the CPU, which talk through gloo. Dropout is off: its draws depend on how a batch
is shared. All else is the same but for the order of sums: figures of float32 agree to 1e-4 of
themselves, and weights to a tenth of the learning rate, after nine steps.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from berdiff.cli.main import app
from berdiff.phantoms import write_phantoms

PRESET = """
model:
  name: tiny
  preprocessing: {channels: 1, modalities: [flair], size: [24, 24], fit: resize}
  autoencoder: {in_channels: 1, channel_multipliers: [1, 1], residual_blocks: 1, code_channels: 8,
                embedding_channels: 32}
  denoiser: {code_channels: 8, base_channels: 32, channel_multipliers: [1, 1], residual_blocks: 1}
  sampling: {noise_level: 50, steps: 3}
autoencoder: {steps: 9, batch_size: 8, learning_rate: 1e-3, adversarial_start: 3, ema: 0.5,
              commitment_weight: 0.1, discriminator_channels: 8, validate_every: 3, save_every: 3}
denoiser: {steps: 9, batch_size: 8, learning_rate: 1e-3, ema: 0.5, validate_every: 3,
           save_every: 3}
augmentation: {flip: true, rotation: 5}
validation_fraction: 0.3
"""
STAGES = ("autoencoder", "denoiser")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
              "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
              "--main_process_port=0")  # fmt: skip
# Of what takes a few seconds on two idle cores: a job that hangs waits for half an hour.
PATIENCE = 300


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Fifteen synthetic slices; the four held out are a whole share, and leave the second none."""
    folder = tmp_path_factory.mktemp("healthy")
    write_phantoms(folder / "set", 15, size=(32, 32))
    (folder / "tiny.yaml").write_text(PRESET)
    return ["-i", str(folder / "set" / "images"), "--preset", str(folder / "tiny.yaml")]


def alone(*words: object) -> None:
    """Run the command in this process."""
    result = CliRunner().invoke(app, ["train", *map(str, words)])
    assert result.exit_code == 0, result.output


def start(launcher: tuple[str, ...], *words: object, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "berdiff.cli", "train", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip


def ended(job: subprocess.Popen[str]) -> str:
    """What a job has printed, once it has ended."""
    with job:
        try:
            return job.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            job.terminate()  # a launcher ends what it has started
            raise


def processes(job: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started, the first one first."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = {}
    for pid in children:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        variables = dict(entry.partition(b"=")[::2] for entry in environment.split(b"\0"))
        if b"RANK" in variables:
            ranks[int(variables[b"RANK"])] = int(pid)
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for_step(job: subprocess.Popen[str], stage: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while job.poll() is None and len(log(stage)) < step:
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.02)


def log(stage: Path) -> list[dict[str, str]]:
    try:
        with open(stage / "log.csv", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        return []


def assert_same_run(run: Path, expected: Path) -> None:
    """Every figure of every step, and the weights that come out."""
    for stage in STAGES:
        rows, reference = log(run / stage), log(expected / stage)
        assert [row["step"] for row in rows] == [row["step"] for row in reference]
        for row, other in zip(rows, reference, strict=True):
            assert row.keys() == other.keys()
            for name in row.keys() - {"step", "seconds"}:
                where = f"{stage} {name} at step {row['step']}"
                assert bool(row[name]) == bool(other[name]), where
                if row[name]:
                    assert float(row[name]) == pytest.approx(
                        float(other[name]), rel=1e-4, abs=1e-5
                    ), where
        found, weights = (
            load_file(folder / "checkpoint" / f"{stage}.safetensors") for folder in (run, expected)
        )
        assert found.keys() == weights.keys()
        # Not biases: before a group norm of single channels they have no effect, and no gradient
        # but rounding errors, which Adam makes steps of.
        for name in (name for name in weights if name.endswith(".weight")):
            np.testing.assert_allclose(found[name], weights[name], atol=1e-4, err_msg=name)


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    alone("all", "-o", folder, *arguments)
    return folder


def test_the_settings_compared_with_train_something(expected: Path) -> None:
    """A run that stands still would agree with anything."""
    losses = [float(row["loss"]) for row in log(expected / "denoiser")]
    assert losses[-1] < 0.97 * losses[0]
    adversarial = [float(row["adversarial_weight"] or 0) for row in log(expected / "autoencoder")]
    assert adversarial[:2] == [0, 0]
    assert all(0 < weight < 1 for weight in adversarial[2:])


def test_accumulation_takes_the_same_steps(
    expected: Path, arguments: list[str], tmp_path: Path
) -> None:
    """One process, batches in two and in four parts."""
    parts = ["--set", "autoencoder.accumulate=2", "--set", "denoiser.accumulate=4"]
    alone("all", "-o", tmp_path / "run", *arguments, *parts)
    assert_same_run(tmp_path / "run", expected)
    recorded = json.loads((tmp_path / "run" / "training.json").read_text())
    assert recorded["denoiser"]["accumulate"] == 4


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(
    expected: Path, arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = start(TORCHRUN, "all", "-o", run, *arguments)
    output = ended(job)
    assert job.returncode == 0, output
    assert_same_run(run, expected)
    shared = (
        "denoiser: global batch 8 = 2 process(es) x 1 part(s) x 4 image(s); learning rate 0.001, "
        "for the global batch; device cpu, gloo, waiting at most 30 min"
    )
    assert output.count(shared) == 1
    assert (run / "denoiser" / "starts.txt").read_text() == f"after step 0: {shared}\n"
    assert output.count("checkpoint: ") == 1
    names = {path.relative_to(run) for path in run.rglob("*") if "tensorboard" not in path.parts}
    once = {path.relative_to(expected) for path in expected.rglob("*")}
    assert names == {path for path in once if "tensorboard" not in path.parts}
    assert len(list((run / "denoiser" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_more_processes_continue_what_one_began(
    expected: Path, arguments: list[str], tmp_path: Path
) -> None:
    """With accelerate, and in parts."""
    run = tmp_path / "run"
    alone("autoencoder", "-o", run, *arguments, "--set", "autoencoder.steps=3")
    parts = ["--set", "autoencoder.accumulate=2", "--set", "denoiser.accumulate=4"]
    job = start(ACCELERATE, "all", "-o", run, *arguments, *parts, "--continue")
    output = ended(job)
    assert job.returncode == 0, output
    assert_same_run(run, expected)
    starts = (run / "autoencoder" / "starts.txt").read_text().splitlines()
    assert [line[:53] for line in starts] == [
        "after step 0: autoencoder: global batch 8 = 1 process",
        "after step 3: autoencoder: global batch 8 = 2 process",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of a launcher in /proc")
def test_a_killed_process_ends_the_job_and_one_alone_continues_it(
    expected: Path, arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    endless = ["--set", "autoencoder.steps=100000"]
    job = start(TORCHRUN, "all", "-o", run, *arguments, *endless)
    wait_for_step(job, run / "autoencoder", 4)
    first, second = processes(job)
    os.kill(second, signal.SIGKILL)
    output = ended(job)
    assert job.returncode == 1, output
    assert f"Signal 9 (SIGKILL) received by PID {second}" in output  # torchrun's, with the rank
    assert "process 0 of 2 " in output
    assert "the same command with --continue goes on from there" in output
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    alone("all", "-o", run, *arguments, "--set", "autoencoder.steps=9", "--continue")
    assert_same_run(run, expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="stops a process with a signal")
def test_a_process_that_hangs_ends_the_other_after_the_time_out(
    arguments: list[str], tmp_path: Path
) -> None:
    """Started without a launcher, which would end the other one anyway, but later."""
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as server:
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    endless = ["--set", "autoencoder.steps=100000", "--timeout", "0.2"]
    first, second = (
        start((), "autoencoder", "-o", run, *arguments, *endless,
              **variables, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        for rank in "01"
    )  # fmt: skip
    try:
        wait_for_step(first, run / "autoencoder", 2)
        second.send_signal(signal.SIGSTOP)
        output = ended(first)
    finally:
        second.kill()
        ended(second)
    assert first.returncode == 1, output
    assert "error: process 0 of 2 has lost another one" in output
    assert "has not answered for 0.2 min" in output


@pytest.mark.slow
def test_wrong_usage_is_said_once(arguments: list[str], tmp_path: Path) -> None:
    job = start(TORCHRUN, "all", "-o", tmp_path / "run", *arguments, "--sed", "1")
    output = ended(job)
    assert job.returncode == 1, output
    assert output.count("No such option: --sed") == 1, output


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_both(expected: Path, arguments: list[str]) -> None:
    """The second one has nothing against the folder, and would wait for the first."""
    job = start(TORCHRUN, "all", "-o", expected, *arguments)
    output = ended(job)
    assert job.returncode == 1, output
    assert output.count("holds a training run already; continue it with --continue") == 1, output
    assert "told to end" not in output
