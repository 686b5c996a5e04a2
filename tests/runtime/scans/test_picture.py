"""PNG, JPEG and TIFF: what is read, how results are written, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from berdiff.runtime.errors import InputError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import read_scan
from berdiff.runtime.scans.picture import full_scale
from berdiff.runtime.writers.picture import write_image, write_map, write_mask

ONE = Preprocessing(1, ("oct",), (32, 40))
RGB = Preprocessing(3, ("red", "green", "blue"), (32, 40))
FOUR = Preprocessing(4, ("t1", "t1ce", "t2", "flair"), (32, 40))


def grey(dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, (20, 24), dtype, endpoint=True)


def colours() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (20, 24, 3), np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


# What is read


@pytest.mark.parametrize("name", ["scan.png", "scan.tif", "scan.TIFF"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_is_read_as_stored(name: str, dtype: type, tmp_path: Path):
    scan = read_scan(save(tmp_path / name, grey(dtype)), ONE)
    assert (scan.kind, scan.spacing, scan.voxel_mm3) == ("picture", None, None)
    np.testing.assert_array_equal(scan.slices, grey(dtype)[None, None].astype(np.float32))


def test_jpeg(tmp_path: Path):
    path = save(tmp_path / "scan.JPG", grey(), quality=95)
    np.testing.assert_array_equal(read_scan(path, ONE).slices[0, 0], np.asarray(Image.open(path)))


def test_float_tiff(tmp_path: Path):
    pixels = grey().astype(np.float32) / 7
    path = save(tmp_path / "scan.tif", pixels)
    np.testing.assert_array_equal(read_scan(path, ONE).slices[0, 0], pixels)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_other_ways_to_store_grey(mode: str, tmp_path: Path):
    plain = read_scan(save(tmp_path / "grey.png", grey()), ONE)
    Image.fromarray(grey()).convert(mode).save(tmp_path / "other.png")
    other = read_scan(tmp_path / "other.png", ONE)
    np.testing.assert_array_equal(other.slices, plain.slices)
    np.testing.assert_array_equal(other.image_ids, plain.image_ids)


def test_colour_for_a_model_of_three_channels(tmp_path: Path):
    scan = read_scan(save(tmp_path / "scan.png", colours()), RGB)
    np.testing.assert_array_equal(scan.slices[0], np.moveaxis(colours(), -1, 0))


def test_image_ids_ignore_the_container(tmp_path: Path):
    paths = [save(tmp_path / name, grey(np.uint16)) for name in ("a.png", "b.tif")]
    first, second = (read_scan(path, ONE).image_ids.tolist() for path in paths)
    assert first == second


# What is written


def map_of(path: Path, values: np.ndarray) -> tuple[np.ndarray, float]:
    write_map(path, values)
    with Image.open(path) as image:
        scale = full_scale(values)
        assert image.text["berdiff:full-scale"] == repr(scale)
        return np.asarray(image), scale


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(largest=st.floats(0, 1e6, width=32))
def test_maps_come_back_from_sixteen_bits(largest: float, tmp_path: Path):
    values = (np.linspace(0, 1, 480, dtype=np.float32) * np.float32(largest)).reshape(20, 24)
    stored, scale = map_of(tmp_path / "map.png", values)
    assert stored.dtype == np.uint16
    assert scale >= values.max()
    assert scale == 1 or scale < 2 * values.max()
    np.testing.assert_allclose(stored / 65535 * scale, values, rtol=0, atol=0.51 / 65535 * scale)


def test_masks_and_reconstructions(tmp_path: Path):
    scan = read_scan(save(tmp_path / "scan.png", grey()), ONE)
    mask = grey() > 100
    write_mask(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "mask.png")), mask * np.uint8(255)
    )
    write_image(tmp_path / "image.png", scan.slices[0] / 255)
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "image.png")), grey().astype(np.uint16) * 257
    )

    coloured = read_scan(save(tmp_path / "scan.png", colours()), RGB)
    write_image(tmp_path / "colour.png", coloured.slices[0] / 255)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "colour.png")), colours())


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a text file that somebody renamed", "cannot read"),
        (b"\x89PNG\r\n\x1a\n", "cannot read"),
        (b"GIF89a" + bytes(100), "cannot read"),
    ],
)
@pytest.mark.parametrize("name", ["scan.png", "scan.jpg", "scan.tif"])
def test_files_that_are_no_picture(content: bytes, message: str, name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_scan(tmp_path / name, ONE)


@pytest.mark.parametrize("name", ["scan.png", "scan.jpg", "scan.tif"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_pictures(name: str, share: float, tmp_path: Path):
    content = save(tmp_path / name, grey()).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="cannot read"):
        read_scan(tmp_path / name, ONE)


def test_a_header_that_promises_a_huge_picture(tmp_path: Path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    (tmp_path / "scan.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    )
    with pytest.raises(InputError, match="10000000000 pixels"):
        read_scan(tmp_path / "scan.png", ONE)


def test_several_pages(tmp_path: Path):
    pages = [Image.fromarray(grey()) for _ in range(3)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="3 pages"):
        read_scan(tmp_path / "scan.tif", ONE)


@pytest.mark.parametrize("name", ["scan.png", "scan.jpg", "scan.tif"])
def test_a_picture_that_asks_to_be_turned(name: str, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(InputError, match="orientation 6"):
        read_scan(save(tmp_path / name, grey(), exif=exif), ONE)


def test_transparency(tmp_path: Path):
    pixels = np.dstack([colours(), np.full((20, 24), 255, np.uint8)])
    pixels[3, 4, 3] = 0
    with pytest.raises(InputError, match="transparent"):
        read_scan(save(tmp_path / "scan.png", pixels), RGB)


def test_sixteen_bit_colour(tmp_path: Path):
    rows = b"".join(b"\0" + row.tobytes() for row in colours().astype(">u2") * 257)
    header = struct.pack(">IIBBBBB", 24, 20, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    (tmp_path / "scan.png").write_bytes(content)
    with pytest.raises(InputError, match="16-bit colour"):
        read_scan(tmp_path / "scan.png", RGB)


@pytest.mark.parametrize(
    ("pixels", "model", "message"),
    [
        (colours(), ONE, "colour picture; the model takes one channel"),
        (colours(), FOUR, "takes 4 channels"),
        (grey(), FOUR, "takes 4 channels"),
        (grey(), RGB, "grey picture; the model takes 3 channels"),
        (np.full((20, 24), 9, np.uint8), ONE, "constant"),
        (grey()[:1], ONE, "24 x 1 pixels"),
    ],
)
def test_unusable_content(pixels: np.ndarray, model: Preprocessing, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        read_scan(save(tmp_path / "scan.png", pixels), model)


def test_nan_in_a_tiff(tmp_path: Path):
    pixels = grey().astype(np.float32)
    pixels[0, 0] = np.nan
    with pytest.raises(InputError, match="1 of 480 values are NaN"):
        read_scan(save(tmp_path / "scan.tif", pixels), ONE)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(["png", "jpg", "tif"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_pictures_are_refused_or_read(
    suffix: str, changes: list[tuple[float, int]], tmp_path: Path
):
    content = bytearray(save(tmp_path / f"scan.{suffix}", grey()).read_bytes())
    for place, value in changes:
        content[min(int(place * len(content)), len(content) - 1)] = value
    (tmp_path / f"scan.{suffix}").write_bytes(content)
    try:
        scan = read_scan(tmp_path / f"scan.{suffix}", ONE)
    except InputError:
        return
    assert np.isfinite(scan.slices).all()
