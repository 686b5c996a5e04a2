"""Healthy images: what is read, what is held out, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from berdiff.data import HealthyImages, load_healthy
from berdiff.runtime.errors import InputError
from berdiff.runtime.image_features import describe
from berdiff.runtime.intake import SCORED_FOREGROUND, distances
from berdiff.runtime.preprocessing import Preprocessing

SIDE = 16
MODEL = Preprocessing(1, ("flair",), (SIDE, SIDE), normalisation="none", spacing=1.0)
PICTURES = Preprocessing(1, ("flair",), (SIDE, SIDE))


def add_picture(folder: Path, name: str, corner: int = 0) -> None:
    """An 8-bit picture that is 255 in one pixel and `corner` in another."""
    pixels = np.full((SIDE, SIDE), 40, np.uint8)
    pixels[0, 0], pixels[2, 3], pixels[7, 7] = corner, 255, 0
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def add_volume(folder: Path, name: str, level: float, shown: list[int]) -> None:
    """A volume in PRS of 1 mm with, in slice i, `shown[i]` pixels of `level + i / 1000`."""
    slices = np.zeros((SIDE * SIDE, len(shown)), np.float32)
    for index, count in enumerate(shown):
        slices[:count, index] = level + index / 1000
    # PRS: rows grow to P, columns to R, slices to S.
    affine = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(slices.reshape(SIDE, SIDE, -1), affine)
    nib.save(image, folder / name)


@pytest.fixture
def twenty(tmp_path: Path) -> Path:
    """Twenty pictures, told apart by the value of their first pixel."""
    folder = tmp_path / "healthy"
    for number in range(20):
        add_picture(folder, f"site{number % 2}/{number:02d}.png", corner=100 + number)
    return folder


def corners(images: NDArray[np.float32]) -> set[int]:
    """Which of the pictures these are."""
    return {round(float(image[0, 0, 0]) * 255) for image in images}


def levels(images: NDArray[np.float32]) -> list[float]:
    return sorted(round(float(image.max()), 3) for image in images)


def held_out(folder: Path, fraction: float = 0.2) -> set[int]:
    return corners(load_healthy(folder, PICTURES, fraction).validation)


def test_pictures_come_on_the_models_grid(twenty: Path) -> None:
    images = load_healthy(twenty, PICTURES, 0.2)
    assert images.train.shape == (16, 1, SIDE, SIDE)
    assert images.validation.shape == (4, 1, SIDE, SIDE)
    assert images.train.dtype == np.float32
    assert (images.train.min(), images.train.max()) == (0, 1)
    assert corners(images.train) | corners(images.validation) == set(range(100, 120))


def test_progress_is_told(twenty: Path) -> None:
    told: list[tuple[int, int]] = []
    load_healthy(twenty, PICTURES, 0.2, lambda *counts: told.append(counts))
    assert told == [(number + 1, 20) for number in range(20)]


def test_a_volume_is_held_out_whole(tmp_path: Path) -> None:
    """Neighbouring slices of one head must not stand on both sides."""
    for number in range(6):
        add_volume(tmp_path, f"{number}.nii.gz", 0.1 * (number + 1), [30, 40, 30])
    images = load_healthy(tmp_path, MODEL, 0.34)
    heads = [{int(level * 10 + 0.01) for level in levels(part)} for part in (
        images.train, images.validation)]  # fmt: skip
    assert [len(part) for part in heads] == [4, 2]
    assert not heads[0] & heads[1]
    assert (len(images.train), len(images.validation)) == (12, 6)


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.12, 2), (0.5, 10), (0.999, 19)])
def test_each_side_gets_at_least_one(twenty: Path, fraction: float, count: int) -> None:
    assert len(held_out(twenty, fraction)) == count


def test_the_choice_depends_on_names_below_the_folder_only(twenty: Path, tmp_path: Path) -> None:
    before = load_healthy(twenty, PICTURES, 0.2)
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(twenty, moved)
    again = load_healthy(moved, PICTURES, 0.2)
    assert again.digest == before.digest
    np.testing.assert_array_equal(again.validation, before.validation)
    # Other content under the same names: the same files are held out.
    shutil.rmtree(moved)
    for number in range(20):
        add_picture(moved, f"site{number % 2}/{number:02d}.png", corner=200 + number)
    assert held_out(moved) == {corner + 100 for corner in corners(before.validation)}


def test_adding_scans_moves_few_others(twenty: Path) -> None:
    before = held_out(twenty)
    larger = held_out(twenty, 0.5)
    assert before < larger  # a larger fraction only adds
    for number in (20, 21):
        add_picture(twenty, f"{number}.png", corner=100 + number)
    assert len(before - held_out(twenty)) <= 2


def test_nearly_empty_slices_of_a_volume_are_left_out(tmp_path: Path) -> None:
    """Less than a fifth of what the fullest slice shows."""
    assert SCORED_FOREGROUND == 0.2
    add_volume(tmp_path, "a.nii", 0.3, [0, 9, 10, 50, 10, 9])
    add_volume(tmp_path, "b.nii", 0.6, [3, 4, 4])  # little in all of it: nothing to compare with
    images = load_healthy(tmp_path, MODEL, 0.5)
    assert levels(np.concatenate([images.train, images.validation])) == [
        0.302, 0.303, 0.304, 0.6, 0.601, 0.602
    ]  # fmt: skip


def digest(folder: Path, fraction: float = 0.2) -> str:
    return load_healthy(folder, PICTURES, fraction).digest


def test_the_digest_is_of_pixels_and_split(twenty: Path) -> None:
    first = digest(twenty)
    (twenty / "site0" / "00.png").touch()
    assert digest(twenty) == first
    assert digest(twenty, 0.4) != first
    add_picture(twenty, "site0/00.png", corner=99)
    assert digest(twenty) != first


def test_statistics_are_of_all_images(twenty: Path) -> None:
    images = load_healthy(twenty, PICTURES, 0.2)
    statistics = images.statistics(("flair",))
    assert statistics is not None
    assert statistics.images == 20
    everything = np.concatenate([images.train, images.validation])
    assert (distances(statistics, describe(everything)) <= statistics.limit).all()
    rotated = np.ascontiguousarray(np.rot90(everything, axes=(2, 3)))
    described = describe(rotated)
    assert statistics.mean == pytest.approx(describe(everything).mean(axis=0), rel=1e-5)
    assert statistics.mean != pytest.approx(described.mean(axis=0), rel=1e-5)
    few = HealthyImages(images.train[:10], images.validation, "digest")
    assert few.statistics(("flair",)) is None


# --- refusals ------------------------------------------------------------------------------------


def test_one_scan_cannot_be_split(tmp_path: Path) -> None:
    add_picture(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"holds 1 scan\(s\); training needs at least 2"):
        load_healthy(tmp_path, PICTURES, 0.1)
    with pytest.raises(InputError, match="training needs at least 2"):
        load_healthy(tmp_path / "a.png", PICTURES, 0.1)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"found no scan in {tmp_path}"):
        load_healthy(tmp_path, PICTURES, 0.1)


def load_with(folder: Path, spoil: str) -> HealthyImages:
    """Load two good volumes and one that cannot be used."""
    for name in ("a.nii", "c.nii"):
        add_volume(folder, name, 0.4, [40, 40, 40])
    if spoil == "not a number":
        add_volume(folder, "b.nii", np.nan, [40, 40, 40])
    elif spoil == "out of range":
        add_volume(folder, "b.nii", 3.0, [40, 40, 40])
    elif spoil == "constant":
        add_volume(folder, "b.nii", 0.0, [0, 0, 0])
    else:
        (folder / "b.nii").write_bytes(b"no image at all")
    return load_healthy(folder, MODEL, 0.3)


@pytest.mark.parametrize("spoil", ["not a number", "out of range", "constant", "damaged"])
def test_a_scan_that_cannot_be_used_stops_everything_and_is_named(
    tmp_path: Path, spoil: str
) -> None:
    """Training on the rest of what was given would go unnoticed."""
    with pytest.raises(InputError, match=r"b\.nii: "):
        load_with(tmp_path, spoil)
