"""Channels in files of their own: one grid, and what does not belong together."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import FileRef, Scan, ScanSource, read_scan
from berdiff.runtime.scans.channels import resample

MODEL = Preprocessing(2, ("t1", "flair"), (32, 40))
SHAPE = (30, 28, 12)
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
AFFINE[:3, 3] = (-20, -21, -15)


def blob(affine: np.ndarray, shape: tuple[int, ...], centre: tuple[float, ...]) -> np.ndarray:
    """A ball of 10 mm about a place in the world, smooth, on any grid."""
    index = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    distance = np.linalg.norm(world - np.array(centre)[:, None], axis=0)
    return np.exp(-((distance / 7) ** 2)).reshape(shape).astype(np.float32)


def save(folder: Path, name: str, data: np.ndarray, affine: np.ndarray) -> FileRef:
    nibabel.save(nibabel.Nifti1Image(data, affine), folder / name)
    return FileRef(folder / name)


def read(*files: FileRef) -> Scan:
    return read_scan(ScanSource("case", "case", "brats", files, ("t1", "flair")), MODEL)


def centre_of(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    places = np.argwhere(values > 0.3)
    index = np.average(places, axis=0, weights=values[values > 0.3])
    return affine[:3, :3] @ index + affine[:3, 3]


def test_channels_on_one_grid_are_taken_as_they_are(tmp_path: Path):
    rng = np.random.default_rng(0)
    data = [rng.integers(1, 900, SHAPE).astype(np.int16) for _ in range(2)]
    files = [save(tmp_path, f"{i}.nii.gz", d, AFFINE) for i, d in enumerate(data)]
    scan = read(*files)
    assert scan.slices.shape == (12, 2, 28, 30)
    for channel, values in enumerate(data):
        np.testing.assert_array_equal(scan.grid.volume(scan.slices[:, channel]), values)
    assert scan.notes == ()
    other = read(*files[::-1])
    assert scan.sha256 != other.sha256
    assert scan.image_ids[0] != other.image_ids[0]


def test_a_channel_on_another_grid_is_brought_to_the_first(tmp_path: Path):
    """Flipped, tilted, with other voxels: the ball lies where it lay."""
    place = (3.0, -2.0, 4.0)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    other = tilt @ np.diag([-1.0, 0.9, 1.8, 1.0])
    other[:3, 3] = place + tilt[:3, :3] @ np.array([27.0, -24.0, -26.0])
    first = save(tmp_path, "t1.nii.gz", blob(AFFINE, SHAPE, place), AFFINE)
    second = save(tmp_path, "flair.nii.gz", blob(other, (54, 52, 30), place), other)
    scan = read(first, second)
    assert scan.notes == ("flair was resampled to the grid of t1",)
    moved = scan.grid.volume(scan.slices[:, 1])
    assert moved.shape == SHAPE
    np.testing.assert_allclose(centre_of(moved, AFFINE), place, atol=0.3)
    np.testing.assert_allclose(moved, blob(AFFINE, SHAPE, place), atol=0.08)


def test_resampling_agrees_with_the_interpolation_of_scipy():
    from scipy import ndimage

    rng = np.random.default_rng(1)
    values = rng.random((14, 15, 16), np.float32)
    own = np.diag([2.0, 1.5, 1.0, 1.0])
    own[:3, 3] = (3, -4, 5)
    onto = np.diag([1.0, -1.2, 1.1, 1.0])
    onto[:3, 3] = (8, 10, 8)
    shape = (12, 9, 8)
    index = np.indices(shape).reshape(3, -1)
    there = np.linalg.inv(own) @ np.vstack(
        [onto[:3, :3] @ index + onto[:3, 3:], np.ones(index.shape[1])]
    )
    expected = ndimage.map_coordinates(values, there[:3], order=1, mode="constant").reshape(shape)
    np.testing.assert_allclose(resample(values, own, onto, shape), expected, atol=1e-5)


def test_what_shows_another_place_is_refused(tmp_path: Path):
    away = AFFINE.copy()
    away[:3, 3] += 300
    first = save(tmp_path, "t1.nii.gz", blob(AFFINE, SHAPE, (0, 0, 0)), AFFINE)
    second = save(tmp_path, "flair.nii.gz", blob(AFFINE, SHAPE, (0, 0, 0)), away)
    with pytest.raises(InputError, match=r"flair \(flair.nii.gz\): it shows 0% of the first"):
        read(first, second)


def test_a_file_that_cannot_be_used_is_named_with_its_modality(tmp_path: Path):
    first = save(tmp_path, "t1.nii.gz", blob(AFFINE, SHAPE, (0, 0, 0)), AFFINE)
    (tmp_path / "flair.nii.gz").write_bytes(b"no scan at all")
    with pytest.raises(InputError, match=r"flair \(flair.nii.gz\): this is no NIfTI"):
        read(first, FileRef(tmp_path / "flair.nii.gz"))
    plane = save(tmp_path, "plane.nii.gz", np.ones((30, 28), np.float32), AFFINE)
    with pytest.raises(InputError, match="expected one volume"):
        read(first, plane)


def test_one_file_with_channels_last_is_a_volume_too(tmp_path: Path):
    rng = np.random.default_rng(2)
    data = rng.random((*SHAPE, 2), np.float32)
    file = save(tmp_path, "both.nii.gz", data, AFFINE)
    scan = read_scan(ScanSource("both", "both", "nifti", (file,)), MODEL)
    assert scan.kind == "volume"
    np.testing.assert_array_equal(scan.grid.arrange(scan.slices), data)


def test_freesurfer_volumes(tmp_path: Path):
    rng = np.random.default_rng(3)
    data = rng.random((30, 28, 26), np.float32)
    nibabel.save(nibabel.MGHImage(data, AFFINE), tmp_path / "brain.mgz")
    model = Preprocessing(1, ("t1",), (32, 40))
    source = ScanSource("brain.mgz", "brain", "nifti", (FileRef(tmp_path / "brain.mgz"),))
    scan = read_scan(source, model)
    np.testing.assert_array_equal(scan.grid.arrange(scan.slices), data)
    np.testing.assert_allclose(scan.grid.affine, AFFINE, atol=1e-4)
    content = (tmp_path / "brain.mgz").read_bytes()
    (tmp_path / "brain.mgz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read it as NIfTI or MGH|truncated"):
        read_scan(source, model)
