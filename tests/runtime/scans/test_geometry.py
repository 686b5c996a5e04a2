"""Where things are: a mark comes back to its place, whatever way the array lies in the world."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import file_source, read_scan
from berdiff.runtime.scans.geometry import Grid, check_affine, cut

ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "AP", "IS"))
    for codes in itertools.product(*axes)
]
SHAPE = (26, 24, 22)


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix (3, 3) about x, y and z, one after another."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = [a for a in range(3) if a != axis]
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def oriented(codes: str, sizes: tuple[float, ...], angles: tuple[float, float, float]):
    """An affine whose array axes grow towards `codes`, tilted, about the middle of the head."""
    own = nibabel.orientations.axcodes2ornt(codes)
    axes = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(own):
        axes[int(world), axis] = sign * sizes[axis]
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ axes
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + (5.0, -12.0, 20.0)
    return affine


tilts = st.tuples(*[st.floats(-0.6, 0.6)] * 3)
sizes = st.tuples(*[st.floats(0.7, 2.5)] * 3)
voxels = st.tuples(*(st.integers(4, length - 5) for length in SHAPE))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    codes=st.sampled_from(ORIENTATIONS),
    model=st.sampled_from(ORIENTATIONS),
    angles=tilts,
    size=sizes,
    voxel=voxels,
)
def test_a_mark_comes_back_within_half_a_voxel(
    codes: str,
    model: str,
    angles: tuple[float, float, float],
    size: tuple[float, ...],
    voxel: tuple[int, int, int],
    tmp_path: Path,
):
    """Through reading, the model's grid at another spacing, and back onto the file's own grid."""
    affine = oriented(codes, size, angles)
    data = np.zeros(SHAPE, np.float32)
    data[tuple(slice(v - 1, v + 2) for v in voxel)] = 1.0
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "scan.nii")
    preprocessing = Preprocessing(
        1, ("flair",), (96, 80), spacing=1.0, orientation=model, normalisation="none"
    )
    scan = read_scan(file_source(tmp_path / "scan.nii"), preprocessing)
    own = scan.slices.shape[2:]
    back = np.zeros((len(scan.slices), *own), np.float32)
    for index, image in enumerate(scan.slices):
        if image.any():
            placed = preprocessing.to_grid(image, scan.spacing)
            back[index] = preprocessing.from_grid(placed, own, scan.spacing)[0]

    volume = scan.grid.volume(back)
    assert volume.shape == SHAPE
    places = np.argwhere(volume > 0)
    centre = np.average(places, axis=0, weights=volume[volume > 0])
    np.testing.assert_array_less(np.abs(centre - voxel), 0.5)
    # ... and in the world: the grid's affine is the file's own.
    np.testing.assert_allclose(scan.grid.affine, affine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("model", ["PRS", "LPS", "AIL"])
def test_left_stays_left(codes: str, model: str):
    """A mark in the patient's left, front and upper part lies there in the slices too."""
    affine = oriented(codes, (1.0, 1.5, 2.0), (0.1, -0.05, 0.08))
    index = np.indices(SHAPE).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    centre = world.mean(axis=1)
    marks = {
        "L": world[0] < centre[0] - 8,
        "A": world[1] > centre[1] + 8,
        "S": world[2] > centre[2] + 8,
    }
    opposite = {"L": "R", "A": "P", "S": "I"}
    for side, where in marks.items():
        slices, _, _ = cut(where.reshape(SHAPE).astype(np.float32), affine, model)
        for axis, code in zip((1, 2, 0), model, strict=True):
            if code in (side, opposite[side]):
                place = np.argwhere(slices)[:, axis].mean()
                upper = place > (slices.shape[axis] - 1) / 2
                assert upper == (code == side)


def test_the_way_back_undoes_the_cut():
    data = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    for codes in ORIENTATIONS:
        affine = oriented(codes, (1.0, 1.5, 2.0), (0.0, 0.0, 0.0))
        slices, _, to_file = cut(data, affine, "PRS")
        grid = Grid("volume", SHAPE, affine, to_file)
        np.testing.assert_array_equal(grid.volume(slices), data)
        two = grid.arrange(np.stack([slices, slices + 1], axis=1))
        np.testing.assert_array_equal(two, np.stack([data, data + 1], axis=-1))
        for index in (0, 3, len(slices) - 1):
            plane = np.take(data, grid.file_index(index), axis=grid.slice_axis)
            assert sorted(plane.ravel()) == sorted(slices[index].ravel())


@given(angles=tilts, size=sizes, shear=st.floats(-0.5, 0.5), axes=st.permutations(range(3)))
def test_what_is_not_at_right_angles_is_refused(
    angles: tuple[float, float, float], size: tuple[float, ...], shear: float, axes: list[int]
):
    affine = oriented("RAS", size, angles)
    first, second = axes[:2]
    affine[:3, first] += shear * affine[:3, second]
    cosine = abs(
        np.dot(affine[:3, first], affine[:3, second])
        / np.linalg.norm(affine[:3, first])
        / np.linalg.norm(affine[:3, second])
    )
    if cosine > 0.011:
        with pytest.raises(InputError, match="sheared"):
            check_affine(affine)
    elif cosine < 0.009:
        check_affine(affine)
