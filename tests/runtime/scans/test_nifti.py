"""NIfTI files: what is read, how results come back, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import Scan, read_scan
from berdiff.runtime.writers.nifti import write_nifti

ONE = Preprocessing(1, ("flair",), (32, 40))
FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 40))
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "AP", "IS"))
    for codes in itertools.product(*axes)
]
RAS = np.diag([2.0, 3.0, 4.0, 1.0])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = RAS, **header: object) -> Path:
    image = nibabel.Nifti1Image(data, affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def write(path: Path, scan: Scan, values: np.ndarray) -> Path:
    """Write ``[S, C, H0, W0]`` on the scan's grid."""
    write_nifti(path, scan.grid.arrange(values), scan.grid, "berdiff test")
    return path


def round_trip(scan: Scan, folder: Path, values: np.ndarray | None = None) -> nibabel.Nifti1Image:
    values = scan.slices[:, 0] if values is None else values
    return nibabel.load(write(folder / "map.nii.gz", scan, values[:, None].astype(np.float32)))


# Volumes and their orientation


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_any_orientation_is_read_alike_and_written_back(codes: str, tmp_path: Path):
    ras = nibabel.Nifti1Image(noise(18, 20, 17), RAS)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(ras.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    stored = ras.as_reoriented(turn)
    nibabel.save(stored, tmp_path / "scan.nii.gz")

    scan = read_scan(tmp_path / "scan.nii.gz", ONE)

    # PRS: rows grow to the back (y falls), columns to the right, slices to the head.
    np.testing.assert_array_equal(
        scan.slices[:, 0], np.asarray(ras.dataobj)[:, ::-1].transpose(2, 1, 0)
    )
    assert scan.spacing == pytest.approx((3.0, 2.0))
    assert scan.voxel_mm3 == pytest.approx(24.0)
    back = round_trip(scan, tmp_path)
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(stored.dataobj))
    np.testing.assert_array_equal(back.affine, stored.affine)
    for index in (0, 5, 16):
        plane = np.take(
            np.asarray(stored.dataobj), scan.grid.file_index(index), scan.grid.slice_axis
        )
        assert sorted(plane.ravel()) == sorted(scan.slices[index].ravel())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    codes=st.sampled_from(ORIENTATIONS),
    model=st.sampled_from(ORIENTATIONS),
    tilt=st.floats(-0.5, 0.5),
    voxel=st.tuples(st.integers(0, 15), st.integers(0, 16), st.integers(0, 17)),
)
def test_a_marked_voxel_comes_back_where_it_was(
    codes: str, model: str, tilt: float, voxel: tuple[int, int, int], tmp_path: Path
):
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    own = nibabel.orientations.axcodes2ornt(codes)
    affine = rotation @ RAS @ nibabel.orientations.inv_ornt_aff(own, (16, 17, 18))
    data = noise(16, 17, 18)
    data[voxel] = 7.0
    save(tmp_path / "scan.nii", data, affine)

    scan = read_scan(
        tmp_path / "scan.nii", Preprocessing(1, ("flair",), (32, 40), orientation=model)
    )
    marked = (scan.slices[:, 0] == 7.0).astype(np.float32)
    assert marked.sum() == 1
    back = round_trip(scan, tmp_path, marked)

    assert np.argwhere(np.asarray(back.dataobj)).tolist() == [list(voxel)]
    np.testing.assert_array_equal(back.affine, nibabel.load(tmp_path / "scan.nii").affine)


def test_scaling_and_trailing_axes(tmp_path: Path):
    stored = np.arange(16 * 17 * 3, dtype=np.int16).reshape(16, 17, 3, 1)
    image = nibabel.Nifti1Image(stored, RAS)
    image.header.set_slope_inter(0.5, 10.0)
    nibabel.save(image, tmp_path / "scan.nii")
    with open(tmp_path / "scan.nii", "r+b") as stream:  # nibabel scaled the values to keep them
        stream.seek(352)
        stream.write(stored.tobytes(order="F"))

    scan = read_scan(tmp_path / "scan.nii", ONE)

    expected = stored[..., 0].astype(np.float32) * 0.5 + 10
    np.testing.assert_array_equal(scan.slices[:, 0], expected[:, ::-1].transpose(2, 1, 0))
    assert round_trip(scan, tmp_path).shape == (16, 17, 3, 1)


def test_units_are_converted_and_stated(tmp_path: Path):
    image = nibabel.Nifti1Image(noise(16, 17, 3), np.diag([500.0, 500.0, 2000.0, 1.0]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "micron.nii")
    scan = read_scan(tmp_path / "micron.nii", ONE)
    assert scan.spacing == pytest.approx((0.5, 0.5))
    assert scan.voxel_mm3 == pytest.approx(0.5)
    assert round_trip(scan, tmp_path).header.get_xyzt_units()[0] == "micron"

    plain = read_scan(save(tmp_path / "plain.nii", noise(16, 17, 3)), ONE)
    assert round_trip(plain, tmp_path).header.get_xyzt_units()[0] == "mm"


def test_a_volume_that_states_no_orientation_is_noted(tmp_path: Path):
    scan = read_scan(save(tmp_path / "scan.nii", noise(16, 17, 18), None), ONE)
    assert "no orientation" in scan.notes[0]
    assert read_scan(save(tmp_path / "scan.nii", noise(16, 17, 18)), ONE).notes == ()


def test_nifti2_and_big_endian(tmp_path: Path):
    data = noise(16, 17, 18)
    nibabel.save(nibabel.Nifti2Image(data, RAS), tmp_path / "two.nii.gz")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    nibabel.save(nibabel.Nifti1Image(data, RAS, header), tmp_path / "big.nii.gz")
    save(tmp_path / "one.nii.gz", data)

    one, two, big = (read_scan(tmp_path / f"{name}.nii.gz", ONE) for name in ("one", "two", "big"))

    np.testing.assert_array_equal(one.image_ids, two.image_ids)
    np.testing.assert_array_equal(one.image_ids, big.image_ids)
    np.testing.assert_array_equal(one.slices, big.slices)
    assert isinstance(round_trip(two, tmp_path), nibabel.Nifti2Image)
    for scan in (one, two, big):
        np.testing.assert_array_equal(np.asarray(round_trip(scan, tmp_path).dataobj), data)


def test_content_decides_whether_a_file_is_compressed(tmp_path: Path):
    save(tmp_path / "scan.nii", noise(16, 17, 18))
    packed = tmp_path / "packed.nii"
    packed.write_bytes(gzip.compress((tmp_path / "scan.nii").read_bytes()))
    plain = tmp_path / "plain.nii.gz"
    plain.write_bytes((tmp_path / "scan.nii").read_bytes())
    np.testing.assert_array_equal(read_scan(packed, ONE).slices, read_scan(plain, ONE).slices)


# Slices


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1), (1, 20, 24), (20, 24, 1, 1)])
@pytest.mark.parametrize("affine", [None, np.eye(4)])
def test_one_slice_as_stored(shape: tuple[int, ...], affine: np.ndarray | None, tmp_path: Path):
    data = noise(*shape)
    scan = read_scan(save(tmp_path / "scan.nii", data, affine), ONE)
    assert scan.kind == "slice"
    np.testing.assert_array_equal(scan.slices[0, 0], data.reshape(20, 24))
    back = round_trip(scan, tmp_path)
    np.testing.assert_array_equal(np.asarray(back.dataobj), data)


def test_a_single_slice_with_an_orientation_is_turned(tmp_path: Path):
    data = noise(20, 24, 1)
    scan = read_scan(save(tmp_path / "scan.nii", data), ONE)
    assert scan.kind == "volume"
    np.testing.assert_array_equal(scan.slices[0, 0], data[:, ::-1, 0].T)
    np.testing.assert_array_equal(np.asarray(round_trip(scan, tmp_path).dataobj), data)


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 20, 24), 0), ((20, 24, 4), 2), ((4, 20, 24, 1), 0)]
)
def test_channels(shape: tuple[int, ...], axis: int, tmp_path: Path):
    data = noise(*shape)
    scan = read_scan(save(tmp_path / "scan.nii", data), FOUR)

    np.testing.assert_array_equal(scan.slices[0], np.moveaxis(data.reshape(shape[:3]), axis, 0))
    assert scan.spacing == ((3.0, 4.0) if axis == 0 else (2.0, 3.0))
    write(tmp_path / "same.nii.gz", scan, scan.slices)
    np.testing.assert_array_equal(np.asarray(nibabel.load(tmp_path / "same.nii.gz").dataobj), data)
    assert round_trip(scan, tmp_path).shape == tuple(
        1 if index == axis else size for index, size in enumerate(shape)
    )


# Identity


def test_image_ids_depend_on_stored_voxels_only(tmp_path: Path):
    data = np.arange(16 * 17 * 3, dtype=np.int16).reshape(16, 17, 3)
    first = read_scan(save(tmp_path / "a.nii", data), ONE)
    renamed = read_scan(save(tmp_path / "b.nii.gz", data, descrip=b"other"), ONE)
    other = read_scan(save(tmp_path / "c.nii", data + 1), ONE)
    np.testing.assert_array_equal(first.image_ids, renamed.image_ids)
    assert not set(first.image_ids.tolist()) & set(other.image_ids.tolist())

    import hashlib

    base = int.from_bytes(hashlib.sha256(data.tobytes(order="F")).digest()[:8], "little")
    assert first.image_ids.tolist() == [(base + index) % 2**64 for index in range(3)]


# Written files


def test_written_files_hold_neither_name_nor_time_nor_private_text(tmp_path: Path):
    image = nibabel.Nifti1Image(noise(16, 17, 18), RAS)
    image.header["descrip"] = b"DOE^JANE"
    image.header["db_name"] = b"DOE^JANE"
    image.header["cal_max"] = 4000
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"DOE^JANE"))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz", ONE)

    write(tmp_path / "one.nii.gz", scan, scan.slices)
    write(tmp_path / "two.nii.gz", scan, scan.slices)

    content = (tmp_path / "one.nii.gz").read_bytes()
    assert content == (tmp_path / "two.nii.gz").read_bytes()
    assert content[3] == 0  # no flags: no name
    assert content[4:8] == bytes(4)  # no time
    assert b"JANE" not in gzip.decompress(content)
    assert nibabel.load(tmp_path / "one.nii.gz").header["cal_max"] == 0


def test_masks_are_uint8(tmp_path: Path):
    scan = read_scan(save(tmp_path / "scan.nii", noise(16, 17, 18)), ONE)
    write(tmp_path / "mask.nii.gz", scan, (scan.slices > 0.5).astype(np.uint8))
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), noise(16, 17, 18) > 0.5)


# Refusals


def cut(data: bytes, count: int) -> bytes:
    return data[:-count]


def with_dim(data: bytes, *dims: int) -> bytes:
    return data[:40] + struct.pack("<8h", *dims) + data[56:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "empty"),
        (lambda data: b"this is a text file, renamed by someone\n" * 20, "no NIfTI"),
        (lambda data: data[:200], "truncated"),
        (lambda data: cut(data, 1), "truncated"),
        (lambda data: cut(gzip.compress(data), 100), "NIfTI"),
        (lambda data: cut(gzip.compress(data), 5), "NIfTI"),
        (lambda data: cut(gzip.compress(data), 8) + bytes(8), "NIfTI"),
        (lambda data: gzip.compress(cut(data, 1)), "truncated"),
        (lambda data: gzip.compress(with_dim(data, 3, 600, 600, 600, 1, 1, 1, 1)), "promises"),
        (lambda data: with_dim(data, 7, *[32767] * 7), "limit"),
        (lambda data: gzip.compress(with_dim(data, 3, 32767, 32767, 32767, 1, 1, 1, 1)), "limit"),
        (lambda data: with_dim(data, 3, 16, -17, 18, 1, 1, 1, 1), "empty|cannot read"),
        (lambda data: with_dim(data, 3, 16, 0, 18, 1, 1, 1, 1), "empty"),
        (lambda data: with_dim(data, 1, 16, 1, 1, 1, 1, 1, 1), "shape"),
        (lambda data: data[:108] + struct.pack("<f", 1e30) + data[112:], "byte"),
        (lambda data: data[:108] + struct.pack("<f", np.nan) + data[112:], "cannot read"),
        (lambda data: gzip.compress(data + bytes(2**27)), "goes on"),
    ],
)
def test_damaged_files(damage, message: str, tmp_path: Path):
    whole = save(tmp_path / "whole.nii", noise(16, 17, 18)).read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(damage(whole))
    with pytest.raises(InputError, match=message):
        read_scan(tmp_path / "scan.nii.gz", ONE)


def with_value(value: float) -> np.ndarray:
    data = noise(16, 17, 18)
    data[3, 4, 5] = value
    return data


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (with_value(np.nan), ONE, "1 of 4896 values are NaN"),
        (with_value(np.inf), ONE, "NaN or infinite"),
        (with_value(0).astype(np.float64) * 1e300, ONE, "infinite"),
        (np.full((16, 17, 18), 3, np.float32), ONE, "constant"),
        (np.ones((16, 17, 18)) * np.arange(18), ONE, "every slice is constant"),
        (noise(16, 17, 18).astype(np.complex64), ONE, "type complex64"),
        (np.zeros((16, 17, 18), RGB), ONE, "type"),
        (noise(16, 17, 18, 2), ONE, "4-D"),
        (noise(16, 17, 18), FOUR, "takes 4 channels"),
        (noise(5, 20, 24), FOUR, "takes 4 channels"),
        (noise(20, 24), FOUR, "takes 4 channels"),
        (noise(4, 200, 240), ONE, "takes 1"),
        (noise(1, 40, 40), ONE, "whose slices"),
    ],
)
def test_unusable_content(data: np.ndarray, model: Preprocessing, message: str, tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(data, RAS), tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=message):
        read_scan(tmp_path / "scan.nii.gz", model)


def test_a_sheared_affine_is_refused(tmp_path: Path):
    affine = RAS.copy()
    affine[0, 1] = 0.2
    path = save(tmp_path / "scan.nii", noise(16, 17, 18), affine)
    with pytest.raises(InputError, match=r"sheared: two axes meet at 86\.2 degrees"):
        read_scan(path, ONE)


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 0, 0], [1, 0, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 1], [0, 0, 1e-9]],
    ],
)
def test_singular_affines(rows: list[list[float]], tmp_path: Path):
    path = save(tmp_path / "scan.nii", noise(16, 17, 18))
    content = bytearray(path.read_bytes())
    for number, row in enumerate(rows):
        content[280 + 16 * number : 296 + 16 * number] = struct.pack("<4f", *row, 0)
    path.write_bytes(content)
    with pytest.raises(InputError, match="singular"):
        read_scan(path, ONE)


def test_masks_may_be_constant(tmp_path: Path):
    path = save(tmp_path / "mask.nii", np.zeros((16, 17, 18), np.uint8))
    assert read_scan(path, ONE, allow_constant=True).slices.max() == 0


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_a_damaged_header_is_refused_or_survives_the_round_trip(
    changes: list[tuple[int, int]], tmp_path: Path
):
    content = bytearray(nibabel.Nifti1Image(noise(16, 17, 18), RAS).to_bytes())
    for position, value in changes:
        content[position] = value
    (tmp_path / "scan.nii").write_bytes(content)
    try:
        scan = read_scan(tmp_path / "scan.nii", ONE)
    except InputError:
        return
    shape = scan.slices.shape
    back = round_trip(scan, tmp_path, np.zeros((shape[0], *shape[2:]), np.float32))
    assert back.shape == nibabel.load(tmp_path / "scan.nii").shape
