"""What the tests share: the optional data beside the project, and a real installation.

`make pytest` runs the tests in several workers at once. A worker takes whole files, so that what a
file shares is made once; what all files share is made by the worker that needs it first, and the
others wait for it.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

    from xdist.scheduler import LoadScopeScheduling

    from berdiff.config import ModelConfig
    from berdiff.runtime.bundle import Bundle
    from berdiff.runtime.precision import Precision

    MadeOnce = Callable[[str, Callable[[Path], object]], Path]

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "berdiff", "runtime", "export", "cli")
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IN_WORKER:  # there is a worker for every core, also for what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # tests that import ONNX Runtime themselves report nothing
)
CLUSTERS = "clusters"


def _share(nodeid: str) -> str:
    """Name of the tests that one worker runs one after another."""
    file = nodeid.partition("::")[0]
    # A test of clusters may look for processes of Ray, and must find none of another test's.
    return CLUSTERS if re.search("cluster|fleet|distributed", file) else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Dear shares come first, so that no worker is left with one when the others have finished."""
    if IN_WORKER:
        count = Counter(_share(item.nodeid) for item in items)
        dear = {_share(item.nodeid) for item in items if item.get_closest_marker("slow")}

        def place(item: pytest.Item) -> tuple[bool, bool, int]:
            share = _share(item.nodeid)
            return share != CLUSTERS, share not in dear, -count[share]

        items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """Give out what `_share` names, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _share(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> "MadeOnce":
    """Make a folder, by its name, once for all workers. Do not write into it later."""
    base = tmp_path_factory.getbasetemp()
    parent = (base.parent if IN_WORKER else base) / "made-once"
    parent.mkdir(exist_ok=True)

    def made(name: str, make: "Callable[[Path], object]") -> Path:
        folder, finished = parent / name, parent / f"{name}.finished"
        with FileLock(parent / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return made


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
def source(made_once: "MadeOnce") -> Path:
    """A clean copy of what the wheel is made of.

    In the checkout itself, setuptools would put what an earlier build left in ``build/`` into the
    wheel.
    """

    def copy(target: Path) -> None:
        for name in SOURCES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, target / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, target / name)

    return made_once("source", copy)


@pytest.fixture(scope="session")
def wheel(source: Path, made_once: "MadeOnce") -> Path:
    """The wheel of this checkout."""

    def build(target: Path) -> None:
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)

    (built,) = made_once("wheel", build).glob("berdiff-*.whl")
    return built


@pytest.fixture(scope="session")
def base_python(wheel: Path, made_once: "MadeOnce") -> Path:
    """Interpreter of an environment with the wheel and its base dependencies, and no extra."""

    def install(environment: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        options = ["--no-compile", "--constraint", ROOT / "constraints.txt"]
        options += shlex.split(os.environ.get("PIP_ARGS", ""))
        _pip("--python", environment / "bin" / "python", "install", *options, wheel)

    return made_once("base-environment", install) / "bin" / "python"


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
def tiny_checkpoint(tiny_config: "ModelConfig", made_once: "MadeOnce") -> Path:
    """A checkpoint of `tiny_config` with random weights. Do not write into it."""

    def save(folder: Path) -> None:
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
        save_checkpoint(folder / "checkpoint", tiny_config, autoencoder, denoiser)

    return made_once("tiny", save) / "checkpoint"


@pytest.fixture(scope="session")
def tiny_scans(made_once: "MadeOnce") -> Path:
    """A folder of healthy phantoms that fit `tiny_config`. Do not write into it."""
    from berdiff.phantoms import write_phantoms

    def write(folder: Path) -> None:
        write_phantoms(folder / "heads", 12, size=(32, 32))

    return made_once("phantoms", write) / "heads" / "images"


@pytest.fixture(scope="session")
def tiny_bundle_at(
    tiny_checkpoint: Path, tiny_scans: Path, made_once: "MadeOnce"
) -> "Callable[[Precision], Bundle]":
    """The bundle of `tiny_checkpoint` at a precision. Do not write into it: copy its ``path``."""
    from berdiff.runtime.bundle import Bundle

    @functools.cache
    def exported(precision: "Precision") -> "Bundle":
        def export(folder: Path) -> None:
            from berdiff.export import write_bundle

            def copied(target: Path, *of: object) -> None:
                assert of[-2:] == (write_bundle.DEFAULT_OPSET, "fp32")
                shutil.copytree(exported("fp32").path / "onnx", target)

            with pytest.MonkeyPatch.context() as patch:
                calibration = None
                if precision == "int8":  # made from float32's graphs, which are there already
                    calibration = tiny_scans
                    patch.setattr(write_bundle, "_write_graphs", copied)
                write_bundle.export_bundle(
                    tiny_checkpoint, folder / "bundle", precision=precision, calibration=calibration
                )

        return Bundle.open(made_once(f"tiny-{precision}", export) / "bundle")

    return exported


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_at: "Callable[[Precision], Bundle]") -> "Bundle":
    """The bundle of `tiny_checkpoint` in float32. Do not write into it."""
    return tiny_bundle_at("fp32")
