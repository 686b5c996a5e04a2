"""Checkpoints: what is written is read back, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from berdiff import checkpoint
from berdiff.checkpoint import (
    AUTOENCODER_NAME,
    CONFIG_NAME,
    DENOISER_NAME,
    load_checkpoint,
    load_config,
    save_checkpoint,
    shipped_checkpoint,
)
from berdiff.config import ModelConfig
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.strict import to_json
from berdiff.training_config import load_preset

NAMES = [AUTOENCODER_NAME, CONFIG_NAME, DENOISER_NAME]


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_a_checkpoint_comes_back_to_the_bit(
    tiny_checkpoint: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    config, autoencoder, denoiser = loaded
    assert config == tiny_config == load_config(tiny_checkpoint)
    for network in (autoencoder, denoiser):
        assert not network.training
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        assert {p.device.type for p in network.parameters()} == {"cpu"}
    save_checkpoint(tmp_path / "again", *loaded)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == NAMES
    for name in NAMES:
        assert (tmp_path / "again" / name).read_bytes() == (tiny_checkpoint / name).read_bytes()


def test_half_precision_takes_half_the_space_and_loads_as_float32(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config, autoencoder, denoiser = load_checkpoint(tiny_checkpoint)
    save_checkpoint(tmp_path / "half", config, autoencoder, denoiser, half=True)
    _, _, loaded = load_checkpoint(tmp_path / "half")
    for name, value in denoiser.state_dict().items():
        again = loaded.state_dict()[name]
        assert again.dtype == torch.float32
        assert torch.equal(again, value.half().float())
    sizes = [(f / DENOISER_NAME).stat().st_size for f in (tmp_path / "half", tiny_checkpoint)]
    assert sizes[0] < 0.6 * sizes[1]
    # Writing does not touch the networks themselves.
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}


def test_a_checkpoint_is_never_overwritten(copy: Path) -> None:
    before = {name: (copy / name).read_bytes() for name in NAMES}
    loaded = load_checkpoint(copy)
    with pytest.raises(BerdiffError, match="exists already"):
        save_checkpoint(copy, *loaded)
    assert {name: (copy / name).read_bytes() for name in NAMES} == before


def test_a_write_that_fails_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    write = checkpoint.save_weights

    def full(path: Path, *arguments: object, **keywords: bool) -> None:
        if path.name == DENOISER_NAME:
            raise OSError("no space left on device")
        write(path, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_weights", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path / "new", *loaded)
    assert list(tmp_path.iterdir()) == []


# --- refusals ------------------------------------------------------------------------------------


def test_a_folder_that_is_no_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(BerdiffError, match=r"has no config\.json\. Make one with: berdiff train"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "expected an object"),
        (b"{}", "missing key 'preprocessing'"),
    ],
)
def test_configurations_that_cannot_be_read_are_named(
    copy: Path, content: bytes, message: str
) -> None:
    (copy / CONFIG_NAME).write_bytes(content)
    with pytest.raises(BerdiffError, match=rf"config\.json.*{message}"):
        load_checkpoint(copy)


def test_a_key_of_a_newer_version_is_named(copy: Path, tiny_config: ModelConfig) -> None:
    content = json.loads(to_json(tiny_config))
    content["denoiser"]["flash"] = True
    (copy / CONFIG_NAME).write_text(json.dumps(content))
    with pytest.raises(BerdiffError, match=r"denoiser: unknown key 'flash'.*newer berdiff"):
        load_checkpoint(copy)


def drop(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors, in memory: those of `load_file` may be maps of the file."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def pickled(path: Path) -> None:
    torch.save(read(path), path)


def _edited(change: Callable[[dict[str, torch.Tensor], str], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        tensors = read(path)
        change(tensors, sorted(tensors)[0])
        save_file(tensors, path)

    return edit


def _lose(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def _add(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors["another"] = torch.zeros(1)


def _widen(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros(7, 7)


@pytest.mark.parametrize("name", [AUTOENCODER_NAME, DENOISER_NAME])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, "is missing; the checkpoint is incomplete"),
        (cut, "is not a readable safetensors file"),
        (pickled, "is not a readable safetensors file"),
        (_edited(_lose), r"does not fit config\.json:[\s\S]*Missing key"),
        (_edited(_add), r"does not fit config\.json:[\s\S]*Unexpected key.*another"),
        (_edited(_widen), r"does not fit config\.json:[\s\S]*size mismatch"),
    ],
    ids=["missing", "cut", "pickled", "key lost", "key added", "shape"],
)
def test_weights_that_do_not_fit_are_refused(
    copy: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(copy / name)
    with pytest.raises(BerdiffError, match=rf"{name} {message}"):
        load_checkpoint(copy)


def test_the_shipped_checkpoint_is_small_and_of_its_preset() -> None:
    folder = shipped_checkpoint("phantom")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4_000_000
    config, autoencoder, denoiser = load_checkpoint(folder)
    plain = dataclasses.replace(config, provenance={}, input_statistics=None)
    assert plain == load_preset("phantom").model
    assert config.input_statistics is not None
    assert config.input_statistics.images == 3000
    assert "healthy images" in config.provenance["trained_on"]
    # Trained: the last layers of both networks started out elsewhere (the denoiser's at zero).
    assert all(float(p.abs().max()) > 0 for p in denoiser.out[-1].parameters())
    assert autoencoder.encode(torch.zeros(1, 1, 64, 64)).shape == (1, 16, 16, 16)


def test_there_is_no_other_shipped_checkpoint() -> None:
    with pytest.raises(BerdiffError, match="phantom"):
        shipped_checkpoint("../presets")
