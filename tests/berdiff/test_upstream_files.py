"""Which of upstream's files a path stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from berdiff.runtime.errors import BerdiffError
from berdiff.upstream_files import choose_file


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_newest_averaged_file_of_a_folder_is_taken(tmp_path: Path) -> None:
    touch(
        tmp_path / "saved_models",
        "binaryae_ema_9000.th",
        "binaryae_ema_12000.th",
        "binaryae_15000.th",
        "ae_optim_15000.th",
    )
    for folder in (tmp_path, tmp_path / "saved_models"):
        file, notes = choose_file(folder, "autoencoder")
        assert file == tmp_path / "saved_models" / "binaryae_ema_12000.th"
        assert notes == [f"autoencoder: took {file}, the newest of 2"]


@pytest.mark.parametrize("data", ["brats", "OCT"])
def test_newest_averaged_denoiser_is_taken(tmp_path: Path, data: str) -> None:
    names = [f"{data}200000.pt", f"ema{data}0.999_000500.pt", f"ema{data}0.999_100000.pt"]
    touch(tmp_path, *names, "opt200000.pt")
    file, notes = choose_file(tmp_path, "denoiser")
    assert file.name == names[2]
    assert notes == [f"denoiser: took {file}, the newest of 2"]


def test_without_averaged_files_the_newest_raw_one_is_taken_with_a_warning(tmp_path: Path) -> None:
    touch(tmp_path, "brats000010.pt", "brats000009.pt")
    file, notes = choose_file(tmp_path, "denoiser")
    assert file.name == "brats000010.pt"
    assert notes[0].startswith("denoiser: took")
    assert notes[1].endswith("holds raw weights; the authors use the averaged ones (EMA)")


def test_a_raw_file_that_was_named_is_taken_with_a_warning(tmp_path: Path) -> None:
    touch(tmp_path, "brats000010.pt", "emabrats0.999_000010.pt", "emaOCT0.999_000010.pt")
    file, (note,) = choose_file(tmp_path / "brats000010.pt", "denoiser")
    assert file.name == "brats000010.pt"
    assert note.endswith("averaged ones (EMA), here emabrats0.999_000010.pt")
    assert choose_file(tmp_path / "emaOCT0.999_000010.pt", "denoiser")[1] == []


def test_a_folder_of_two_data_sets_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "emabrats0.999_000010.pt", "emaOCT0.999_000020.pt")
    with pytest.raises(BerdiffError, match="models of OCT and brats; give the denoiser file"):
        choose_file(tmp_path, "denoiser")


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt", "binaryae_ema_latest.th")
    with pytest.raises(BerdiffError, match=r"no autoencoder file.*binaryae_ema_<step>.th"):
        choose_file(tmp_path, "autoencoder")
    with pytest.raises(BerdiffError, match="no such file or folder"):
        choose_file(tmp_path / "nowhere", "denoiser")
