"""What the tests share: the optional data beside the project, and a real installation."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from berdiff.config import ModelConfig
    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.precision import Precision

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "berdiff", "runtime", "export", "cli")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans and reference numbers, which is not part of the project."""
    folder = Path(os.environ.get("BERDIFF_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}; BERDIFF_SHARED names another place")
    return folder


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> Path:
    """Folder of numbers computed with the reference implementation."""
    folder = shared_data / "reference"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of what the wheel is made of.

    In the checkout itself, setuptools would put what an earlier build left in ``build/`` into the
    wheel.
    """
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    target = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    (built,) = target.glob("berdiff-*.whl")
    return built


@pytest.fixture(scope="session")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with the wheel and its base dependencies, and no extra."""
    environment = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    extra = shlex.split(os.environ.get("PIP_ARGS", ""))
    _pip("--python", python, "install", "--no-compile", "--constraint", constraints, *extra, wheel)
    return python


@pytest.fixture(scope="session")
def tiny_config() -> "ModelConfig":
    """One channel of 32 x 32 pixels, codes of 8 x 16 x 16 bits."""
    from berdiff.config import AutoencoderConfig, DenoiserConfig, ModelConfig
    from berdiff.runtime.manifest import SamplingDefaults
    from berdiff.runtime.preprocessing import Preprocessing

    return ModelConfig(
        name="tiny",
        preprocessing=Preprocessing(channels=1, modalities=("flair",), size=(32, 32)),
        autoencoder=AutoencoderConfig(
            in_channels=1,
            base_channels=32,
            channel_multipliers=(1, 1),
            residual_blocks=1,
            code_channels=8,
            embedding_channels=32,
        ),
        # 64 channels: with 32, every group norm has one channel per group and takes away the
        # time shift.
        denoiser=DenoiserConfig(
            code_channels=8, base_channels=32, channel_multipliers=(2, 2), residual_blocks=1
        ),
        sampling=SamplingDefaults(noise_level=50, steps=5),
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config: "ModelConfig", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `tiny_config` with random weights. Do not write into it."""
    from numpy_networks import named_weights
    from torch_models import fill

    from berdiff.autoencoder import BinaryAutoencoder
    from berdiff.checkpoint import save_checkpoint
    from berdiff.denoiser import Denoiser

    autoencoder = BinaryAutoencoder(tiny_config.autoencoder)
    denoiser = Denoiser(tiny_config.denoiser, tiny_config.schedule.num_timesteps)
    for network in (autoencoder, denoiser):
        # None of these weights is zero, as some are before training.
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        fill(network, named_weights(shapes))
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_checkpoint(folder, tiny_config, autoencoder, denoiser)
    return folder


@pytest.fixture(scope="session")
def tiny_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of healthy phantoms that fit `tiny_config`. Do not write into it."""
    from berdiff.phantoms import write_phantoms

    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder / "heads", 12, size=(32, 32))
    return folder / "heads" / "images"


@pytest.fixture(scope="session")
def tiny_bundle_at(
    tiny_checkpoint: Path, tiny_scans: Path, tmp_path_factory: pytest.TempPathFactory
) -> "Callable[[Precision], Bundle]":
    """The bundle of `tiny_checkpoint` at a precision. Do not write into it: copy its ``path``."""
    from berdiff.export.write_bundle import export_bundle

    @functools.cache
    def exported(precision: "Precision") -> "Bundle":
        folder = tmp_path_factory.mktemp(f"tiny-{precision}")
        calibration = tiny_scans if precision == "int8" else None
        return export_bundle(
            tiny_checkpoint, folder / "bundle", precision=precision, calibration=calibration
        )

    return exported


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_at: "Callable[[Precision], Bundle]") -> "Bundle":
    """The bundle of `tiny_checkpoint` in float32. Do not write into it."""
    return tiny_bundle_at("fp32")
