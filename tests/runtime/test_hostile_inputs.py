"""Hostile inputs: refused or read; no crash, no unbounded memory, no file outside the output."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import hostile
import nibabel
import numpy as np
import pytest
from fakes import fake_detector
from hypothesis import given, settings
from hypothesis import strategies as st

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.errors import BerdiffError, BundleError
from berdiff.runtime.folder_run import run_folder

HERE = Path(__file__).parent

changes = st.lists(
    st.tuples(
        st.sampled_from(["byte", "bit", "token", "insert", "cut", "repeat"]),
        st.floats(0, 1),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=6,
)
# Headers are where parsers decide: half of the changes land in the first few hundred bytes.
in_header = st.lists(
    st.tuples(st.sampled_from(["byte", "bit", "token"]), st.floats(0, 0.08), st.integers(0, 2**16)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_the_valid_file_is_taken(kind: str):
    assert hostile.consume(kind, hostile.valid(kind)) == (kind != "json")  # no networks in it


@pytest.mark.parametrize("kind", hostile.KINDS)
@settings(max_examples=250, deadline=None)
@given(steps=changes | in_header)
def test_damaged_files_are_refused_or_read(kind: str, steps: list[tuple[str, float, int]]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parsers warn of what they repair
        hostile.consume(kind, hostile.damage(hostile.valid(kind), steps))


@pytest.mark.parametrize("kind", hostile.KINDS)
@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=600))
def test_noise_is_refused(kind: str, content: bytes):
    assert not hostile.consume(kind, content)


def peak_of(tmp_path: Path, name: str, content: bytes) -> int:
    """Most memory (bytes) a process needs that looks at one file, beyond one that looks at none."""
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_bytes(content)
    code = (
        "import re, sys; sys.path.insert(0, sys.argv[1])\n"
        "import hostile, pathlib, pydicom, highdicom, PIL.Image, SimpleITK\n"
        "from berdiff.runtime.errors import BerdiffError\n"
        "for kind in ('nii', 'dcm'):\n"
        "    hostile.consume(kind, hostile.valid(kind))\n"
        # Not getrusage: its peak is inherited from the process that started this one.
        "def peak():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "before = peak()\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "try:\n"
        "    for source in hostile.find_scans(folder, hostile.MODEL).sources:\n"
        "        hostile.ScanJob.read(source, hostile.MODEL)\n"
        "    print('accepted')\n"
        "except BerdiffError as error:\n"
        "    print(str(error)[:300].replace(chr(10), ' '))\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, more = done.stdout.rsplit("\n", 2)[0], done.stdout.split()[-1]
    assert said != "accepted"
    return int(more) * 1024


def nifti_claiming(*shape: int) -> bytes:
    data = bytearray(nibabel.Nifti2Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes())
    data[16:80] = struct.pack("<8q", len(shape), *shape, *[1] * (7 - len(shape)))
    return bytes(data)


def gzip_bomb() -> bytes:
    """A header that asks for little, and 2 GiB of zeros behind it."""
    block = gzip.compress(bytes(2**28))
    return gzip.compress(hostile.valid("nii")) + block * 8


def zip_of(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def deflated_bomb() -> bytes:
    """A deflated DICOM file whose dataset is half a GiB of zeros."""
    import zlib

    from pydicom.uid import DeflatedExplicitVRLittleEndian

    head = hostile.valid("dcm")
    plain = b"1.2.840.10008.1.2.1\x00"
    deflated = DeflatedExplicitVRLittleEndian.encode().ljust(
        len(DeflatedExplicitVRLittleEndian) + 1, b"\0"
    )
    at = head.index(plain)
    length = struct.unpack("<H", head[at - 2 : at])[0]
    assert length == len(plain)
    meta = head[: at - 2] + struct.pack("<H", len(deflated)) + deflated
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = b"".join(packer.compress(bytes(2**24)) for _ in range(33)) + packer.flush()
    group = struct.unpack("<I", meta[140:144])[0] + len(deflated) - len(plain)
    return meta[:140] + struct.pack("<I", group) + meta[144:] + body


BOMBS = {
    "voxels.nii": lambda: nifti_claiming(10**4, 10**4, 10**4),
    "overflow.nii": lambda: nifti_claiming(2**32, 2**32, 2**32),
    "voxels.nii.gz": lambda: gzip.compress(nifti_claiming(10**4, 10**4, 10**4)),
    "bomb.nii.gz": gzip_bomb,
    "bomb.zip": lambda: zip_of(("a.dcm", hostile.valid("dcm") + bytes(2**29))),
    "many.zip": lambda: zip_of(*((f"{n}.dcm", b"") for n in range(100_001))),
    "deflated.dcm": deflated_bomb,
    "rows.dcm": lambda: hostile.dicom_slice(0, Rows=65535, Columns=65535),
    "frames.dcm": lambda: hostile.dicom_slice(0, NumberOfFrames=2**31 - 1),
}


measured = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")


@pytest.mark.slow
@measured
@pytest.mark.parametrize("name", BOMBS)
def test_what_claims_or_unpacks_to_huge_sizes_takes_little_memory(name: str, tmp_path: Path):
    """Bounded by the size of the file and a fixed allowance, not by what it promises."""
    content = BOMBS[name]()
    assert peak_of(tmp_path, name, content) < 300 * 2**20 + 4 * len(content)


def test_members_of_archives_name_no_paths(tmp_path: Path):
    """Results are named after what is inside the files; nothing is unpacked to the disk."""
    names = ["../../escaped.dcm", "/tmp/escaped.dcm", "C:\\escaped.dcm", "a/../../b.dcm"]
    members = [(name, hostile.dicom_slice(number)) for number, name in enumerate(names)]
    source = tmp_path / "in"
    source.mkdir()
    (source / "study.zip").write_bytes(zip_of(*members))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    summary = run_folder(fake_detector(), source, tmp_path / "out")
    assert len(summary.ok) == 1, summary.failed
    new = {path.resolve() for path in tmp_path.rglob("*") if path.name not in before}
    assert new
    assert all(path.is_relative_to((tmp_path / "out").resolve()) for path in new)
    assert not Path("/tmp/escaped.dcm").exists()


def test_links_lead_nowhere(tmp_path: Path):
    """Links to folders are not followed; a link in the output folder is not written through."""
    outside, source, out = (tmp_path / name for name in ("outside", "in", "out"))
    for folder in (outside, source):
        folder.mkdir()
    (outside / "scan.nii").write_bytes(hostile.valid("nii"))
    (source / "own.nii").write_bytes(hostile.valid("nii"))
    os.symlink(outside, source / "linked")
    summary = run_folder(fake_detector(), source, out)
    assert [result.input for result in summary.results] == ["own.nii"]


def test_names_of_bundle_files_stay_inside(tmp_path: Path):
    record = {"sha256": "0" * 64, "size": 1}
    for name in ("../secret.onnx", "/etc/passwd", "onnx/../../x", "C:/x", "onnx\\..\\x", ""):
        content = json.loads(hostile.valid("json"))
        content["files"] = {name: record}
        (tmp_path / "bundle.json").write_text(json.dumps(content))
        with pytest.raises(BundleError):
            Bundle.open(tmp_path)


def test_a_bundle_cannot_lead_out_through_a_link(tmp_path: Path):
    bundle, outside = tmp_path / "bundle", tmp_path / "outside"
    for folder in (bundle, outside):
        folder.mkdir()
    (outside / "encoder.onnx").write_bytes(b"x")
    os.symlink(outside, bundle / "onnx")
    content = json.loads(hostile.valid("json"))
    record = {"sha256": "0" * 64, "size": 1}
    content["files"] = {f"onnx/{n}.onnx": record for n in ("encoder", "denoiser", "decoder")}
    (bundle / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(BerdiffError):
        Bundle.open(bundle)


def test_deep_json_is_no_crash(tmp_path: Path):
    (tmp_path / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(BerdiffError):
        Bundle.open(tmp_path)


@measured
def test_memory_is_counted(tmp_path: Path):
    """The measure above would notice: a file that is read whole shows up in it."""
    assert peak_of(tmp_path, "text.png", os.urandom(200 * 2**20)) > 150 * 2**20
