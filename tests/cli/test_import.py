"""The verb `berdiff import`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from upstream_checkpoints import autoencoder_file, denoiser_file

from berdiff.checkpoint import load_checkpoint
from berdiff.cli.main import run


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder as upstream's training leaves it."""
    folder = tmp_path_factory.mktemp("upstream")
    (folder / "saved_models").mkdir()
    torch.save(autoencoder_file(), folder / "saved_models" / "binaryae_ema_12000.th")
    torch.save(denoiser_file(), folder / "brats100000.pt")
    torch.save(denoiser_file(), folder / "emabrats0.999_100000.pt")
    return folder


def end(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        run(["import", *map(str, arguments)])
    return int(end.value.code or 0)


def test_folders_become_a_checkpoint(
    upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "brats"
    assert end(upstream, upstream, "-o", target, "--image-size", 32) == 0
    shown = capsys.readouterr()
    assert "32 x 32, t1, t1ce, t2, flair (pad); code: 8 x 8 x 8; noise: upstream" in shown.out
    assert shown.out.endswith(f"checkpoint: {target}\n")
    assert "binaryae_ema_12000.th, the newest of 1" in shown.err
    assert "emabrats0.999_100000.pt, the newest of 1" in shown.err
    config, _, denoiser = load_checkpoint(target)
    assert config.name == "brats"
    assert torch.equal(denoiser.state_dict()["out.2.weight"], denoiser_file()["out.2.weight"])


def test_raw_weights_and_other_modalities_can_be_asked_for(
    upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, raw = tmp_path / "model", upstream / "brats100000.pt"
    options = ("--image-size", 32, "--modalities", "T1, t2,PD,flair")
    assert end(upstream, raw, "-o", target, *options) == 0
    assert "holds raw weights" in capsys.readouterr().err
    config = load_checkpoint(target)[0]
    assert config.preprocessing.modalities == ("t1", "t2", "pd", "flair")
    assert config.provenance["denoiser_file"] == "brats100000.pt"


def test_an_existing_checkpoint_is_kept(
    upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("mine")
    assert end(upstream, upstream, "-o", tmp_path, "--image-size", 32) == 1
    assert "exists already" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_nothing_is_written_when_a_file_is_refused(
    upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    denoiser = upstream / "emabrats0.999_100000.pt"
    assert end(denoiser, denoiser, "-o", tmp_path / "model", "--image-size", 32) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
