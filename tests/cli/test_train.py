"""The verb `berdiff train`: a folder of pictures becomes a checkpoint, whatever happens between."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from berdiff.checkpoint import load_checkpoint
from berdiff.cli.train import train
from berdiff.phantoms import write_phantoms
from berdiff.runtime.errors import BerdiffError, InputError

PRESET = """
model:
  name: tiny
  preprocessing: {channels: 1, modalities: [flair], size: [24, 24], fit: resize}
  autoencoder: {in_channels: 1, channel_multipliers: [1, 1], residual_blocks: 1, code_channels: 8,
                embedding_channels: 32}
  denoiser: {code_channels: 8, base_channels: 32, channel_multipliers: [1, 1], residual_blocks: 1,
             dropout: 0.1}
  sampling: {noise_level: 50, steps: 3}
autoencoder: {steps: 4, batch_size: 3, learning_rate: 1e-3, adversarial_start: 2,
              discriminator_channels: 8, validate_every: 4, save_every: 3}
denoiser: {steps: 4, batch_size: 3, learning_rate: 1e-3, validate_every: 4, save_every: 3}
augmentation: {flip: true, rotation: 5}
validation_fraction: 0.3
"""
WEIGHTS = ("autoencoder.safetensors", "denoiser.safetensors", "config.json")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven synthetic slices."""
    folder = tmp_path_factory.mktemp("healthy")
    write_phantoms(folder / "set", 7, size=(32, 32))
    return folder / "set" / "images"


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    path.write_text(PRESET)
    return path


@pytest.fixture(scope="module", autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def arguments(healthy: Path, preset: Path) -> list[str]:
    return ["-i", str(healthy), "--preset", str(preset), "--threads", "1"]


@pytest.fixture(scope="module")
def whole(
    healthy: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    """An uninterrupted run of both stages, and what it printed. Do not write into it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = call("all", "-o", folder, "-i", healthy, "--preset", preset, "--threads", "1")
    assert result.exit_code == 0, result.output
    return folder, result


def call(*words: object) -> Result:
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [str(word) for word in words])


def refusal(*words: object) -> str:
    """The message of a run that ends with an expected error."""
    error = call(*words).exception
    assert isinstance(error, BerdiffError), repr(error)
    return str(error)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "checkpoint" / name).read_bytes() for name in WEIGHTS}


def rows(folder: Path) -> list[str]:
    """Steps in a stage's log."""
    try:
        with open(folder / "log.csv", newline="") as stream:
            return [row["step"] for row in csv.DictReader(stream)]
    except FileNotFoundError:
        return []


def test_pictures_become_a_checkpoint(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    assert f"checkpoint: {folder / 'checkpoint'}\n" in result.stdout
    assert f"autoencoder: {folder / 'autoencoder.safetensors'}\n" in result.stdout
    assert "5 healthy images to train on, 2 held out" in result.stderr
    assert "autoencoder 4/4 l1=" in result.stderr
    assert "validation_loss=" in result.stderr.partition("denoiser 4/4 ")[2]

    config, autoencoder, _ = load_checkpoint(folder / "checkpoint")
    assert config.name == "tiny"
    assert config.provenance["seed"] == "0"
    assert "5 healthy images" in config.provenance["trained_on"]
    assert autoencoder.encode(torch.zeros(1, 1, 24, 24)).shape == (1, 8, 12, 12)
    assert json.loads((folder / "training.json").read_text())["autoencoder"]["steps"] == 4
    for stage in ("autoencoder", "denoiser"):
        assert rows(folder / stage) == ["1", "2", "3", "4"]
        assert (folder / stage / "samples" / "step-0000004.png").is_file()


def test_stages_one_by_one_are_the_same_run(
    whole: tuple[Path, Result], arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for stage in ("autoencoder", "denoiser"):
        result = call(stage, "-o", run, *arguments)
        assert result.exit_code == 0, result.output
    assert contents(run) == contents(whole[0])


def test_seed_and_settings_count(
    whole: tuple[Path, Result], arguments: list[str], tmp_path: Path
) -> None:
    weights = {(whole[0] / WEIGHTS[0]).read_bytes()}
    for number, change in enumerate((["--seed", "1"], ["--set", "autoencoder.learning_rate=1e-4"])):
        run = tmp_path / str(number)
        assert call("autoencoder", "-o", run, *arguments, *change).exit_code == 0
        weights.add((run / WEIGHTS[0]).read_bytes())
    assert len(weights) == 3


def test_a_finished_stage_can_be_trained_further(
    whole: tuple[Path, Result], arguments: list[str], tmp_path: Path
) -> None:
    """Half as many steps, then the rest: the same weights as in one go."""
    run = tmp_path / "run"
    few = ["--set", "autoencoder.steps=2"]
    assert call("autoencoder", "-o", run, *arguments, *few).exit_code == 0
    assert (run / WEIGHTS[0]).read_bytes() != (whole[0] / WEIGHTS[0]).read_bytes()
    assert call("autoencoder", "-o", run, *arguments, "--continue").exit_code == 0
    assert (run / WEIGHTS[0]).read_bytes() == (whole[0] / WEIGHTS[0]).read_bytes()
    assert rows(run / "autoencoder") == ["1", "2", "3", "4"]


def test_half_precision_halves_the_checkpoint(
    whole: tuple[Path, Result], arguments: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    few = ["--set", "autoencoder.steps=1", "--set", "denoiser.steps=1"]
    result = call("all", "-o", run, *arguments, *few, "--half")
    assert result.exit_code == 0, result.output
    assert len(contents(run)[WEIGHTS[1]]) < 0.6 * len(contents(whole[0])[WEIGHTS[1]])


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_to_the_same_checkpoint(
    arguments: list[str], tmp_path: Path
) -> None:
    longer = ["--set", "autoencoder.steps=30", "--set", "denoiser.steps=30"]
    expected = tmp_path / "expected"
    assert call("all", "-o", expected, *arguments, *longer).exit_code == 0

    run = tmp_path / "run"
    stage, after, moment = (
        random.choice(["autoencoder", "denoiser"]), random.randrange(25), random.random() / 20
    )  # fmt: skip
    code = "import sys; from berdiff.cli.main import run; run(['train', *sys.argv[1:]])"
    command = [sys.executable, "-c", code, "all", "-o", str(run), *arguments, *longer]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(rows(run / stage)) <= after:
            time.sleep(0.002)
        time.sleep(moment)
        process.kill()
        _, errors = process.communicate()
    where = f"killed {moment:.3f} s after step {after} of the {stage} was logged"
    assert process.returncode == -signal.SIGKILL, f"{where}: {errors.decode()}"

    result = call("all", "-o", run, *arguments, *longer, "--continue")
    assert result.exit_code == 0, f"{where}: {result.output}"
    assert contents(run) == contents(expected), where
    for name in ("autoencoder", "denoiser"):
        assert rows(run / name) == rows(expected / name), where


# --- refusals ------------------------------------------------------------------------------------


def test_a_run_is_neither_started_over_nor_finished_twice(
    whole: tuple[Path, Result], arguments: list[str]
) -> None:
    folder, _ = whole
    before = contents(folder)
    assert "continue it with --continue" in refusal("all", "-o", folder, *arguments)
    assert "trained to its end" in refusal("denoiser", "-o", folder, *arguments)
    assert "trained to its end" in refusal("all", "-o", folder, *arguments, "--continue")
    assert contents(folder) == before


def test_a_half_trained_denoiser_is_not_started_over(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage two alone enters the folder of stage one without --continue: once."""
    run = tmp_path / "run"
    few = ["--set", "autoencoder.steps=1"]
    assert call("autoencoder", "-o", run, *arguments, *few).exit_code == 0

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("berdiff.training.save_checkpoint", interrupted)
        call("denoiser", "-o", run, *arguments, *few)
    state = (run / "denoiser" / "state.pt").read_bytes()
    assert "continue it with --continue" in refusal("denoiser", "-o", run, *arguments, *few)
    assert (run / "denoiser" / "state.pt").read_bytes() == state
    result = call("denoiser", "-o", run, *arguments, *few, "--continue")
    assert result.exit_code == 0, result.output


def test_another_model_or_seed_cannot_continue_a_run(
    whole: tuple[Path, Result], arguments: list[str]
) -> None:
    onto = ("all", "-o", whole[0], *arguments, "--continue")
    recorded = (whole[0] / "training.json").read_bytes()
    for change, message in (
        (["--set", "model.name=other"], "model.name differ"),
        (["--set", "augmentation.rotation=9"], "augmentation.rotation differ"),
        (["--set", "autoencoder.batch_size=2"], "other settings"),
        (["--set", "validation_fraction=0.5"], "other images"),
        (["--seed", "1"], "other seed"),
    ):
        assert message in refusal(*onto, *change)
    assert (whole[0] / "training.json").read_bytes() == recorded


def test_the_record_follows_a_continuation(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps, resume in ((1, []), (2, ["--continue"])):
        change = ["--set", f"autoencoder.steps={steps}"]
        assert call("autoencoder", "-o", run, *arguments, *change, *resume).exit_code == 0
        recorded = json.loads((run / "training.json").read_text())
        assert recorded["autoencoder"]["steps"] == steps


def test_a_damaged_record_is_named(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{")
    message = refusal("all", "-o", tmp_path, *arguments, "--continue")
    assert "training.json is not valid JSON" in message


def test_the_denoiser_needs_an_autoencoder(arguments: list[str], tmp_path: Path) -> None:
    message = refusal("denoiser", "-o", tmp_path / "run", *arguments)
    assert "train the autoencoder first, with: berdiff train autoencoder" in message


def test_what_is_wrong_is_said_before_anything_is_written(
    healthy: Path, preset: Path, tmp_path: Path
) -> None:
    good = {"-i": healthy, "-o": tmp_path / "run", "--preset": preset}
    empty = tmp_path / "empty"
    empty.mkdir()
    for change, message in (
        ({"--preset": "mri"}, "unknown preset 'mri'"),
        ({"--set": "denoiser.stepz=3"}, "unknown key 'stepz'"),
        ({"--device": "tpu"}, "unknown device 'tpu'"),
        ({"--precision": "fp16"}, "fp16 training needs a GPU"),
        ({"-i": empty}, "found no scan"),
    ):
        words = [word for pair in (good | change).items() for word in pair]
        assert message in refusal("all", *words)
        assert not (tmp_path / "run").exists()


def test_an_unusable_scan_is_named_and_leaves_no_run(
    preset: Path, healthy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number, path in enumerate(sorted(healthy.glob("*.png"))[:2]):
        (folder / f"{number}.png").write_bytes(path.read_bytes()[: -50 * number or None])
    result = call("all", "-i", folder, "-o", tmp_path / "run", "--preset", preset)
    assert isinstance(result.exception, InputError)
    assert "1.png: " in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things_is_left_alone(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is not empty and holds no training run" in refusal("all", "-o", tmp_path, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["both", "-o", "run"], "'both' is not one of"),
        (["all", "-o", "run", "--seed", "-1"], "--seed"),
        (["all", "-o", "run", "--precision", "int8"], "--precision"),
        (["all", "-o", "run", "-i", "nowhere"], "does not exist"),
        (["all"], "--output"),
        (["autoencoder", "-o", "run", "--half"], "stage one alone writes no checkpoint"),
    ],
)
def test_wrong_usage_exits_2(
    words: list[str], message: str, arguments: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = call(*arguments, *words)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []
