"""Results sent to real peers and fetched back: dcmtk's receiver, and an Orthanc server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_peers import Network, Orthanc, network, orthanc, send, storescp
from dicom_results import (
    assert_same_places,
    by_place,
    complaints,
    expected_by_place,
    read,
    results,
    write,
)
from dicom_sources import ORIENTATIONS, SHAPE, classic, multi_frame

from berdiff.runtime.scans.dicom import DicomImage, read_series
from berdiff.runtime.scans.source import FileRef


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as opened:
        yield opened


@pytest.fixture(scope="module")
def pacs(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(net, tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer


def after_header(path: Path) -> bytes:
    """The data set's bytes; what lies before them, whoever stores the file writes anew."""
    content = path.read_bytes()
    length = int.from_bytes(content[140:144], "little")
    assert content[128:136] == b"DICM\x02\x00\x00\x00"
    return content[144 + length :]


def written(folder: Path, image: DicomImage) -> dict[str, Path]:
    paths = {kind: folder / f"{kind}.dcm" for kind in ("seg", "pmap")}
    for kind, path in paths.items():
        write(kind, path, image)
    return paths


@pytest.mark.parametrize("enhanced", [False, True])
def test_dcmtk_receives_what_was_written_byte_by_byte(
    net: Network, enhanced: bool, tmp_path: Path
) -> None:
    turn = ORIENTATIONS["oblique"]
    sources = [multi_frame(turn)] if enhanced else classic(turn)
    paths = written(tmp_path, read(tmp_path / "in", *sources))
    with storescp(net, tmp_path / "peer") as port:
        sent = send(net, port, "PEER", *paths.values())
    assert sent.returncode == 0, sent.stderr.decode()
    received = {
        pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path
        for path in (tmp_path / "peer" / "received").iterdir()
    }
    assert len(received) == len(paths)
    for path in paths.values():
        data = pydicom.dcmread(path)
        there = received[data.SOPInstanceUID]
        assert after_header(there) == after_header(path)
        np.testing.assert_array_equal(pydicom.dcmread(there).pixel_array, data.pixel_array)


@pytest.mark.parametrize("enhanced", [False, True])
def test_orthanc_files_results_under_their_study_and_gives_them_back(
    pacs: Orthanc, enhanced: bool, tmp_path: Path
) -> None:
    turn = ORIENTATIONS["flipped" if enhanced else "oblique flipped"]
    sources = [multi_frame(turn)] if enhanced else classic(turn)
    for source in sources:  # the server is shared by the tests, and this study is this test's
        source.StudyInstanceUID += f".{int(enhanced)}"
        source.SeriesInstanceUID += f".{int(enhanced)}"
        source.SOPInstanceUID += f".{int(enhanced)}"
        source.file_meta.MediaStorageSOPInstanceUID = source.SOPInstanceUID
    image = read(tmp_path / "in", *sources)
    paths = written(tmp_path, image)
    sent = send(
        pacs.net, pacs.dicom_port, pacs.title, *(tmp_path / "in").iterdir(), *paths.values()
    )
    assert sent.returncode == 0, sent.stderr.decode()

    (study,) = pacs.find("Study", StudyInstanceUID=sources[0].StudyInstanceUID)
    assert study["PatientMainDicomTags"]["PatientID"] == "P-17"
    series = {
        found["MainDicomTags"]["Modality"]: found
        for found in (pacs.json(f"/series/{name}") for name in study["Series"])
    }
    assert set(series) == {"MR", "SEG", "OT"}
    assert len(series["MR"]["Instances"]) == len(sources)
    for kind, modality in (("seg", "SEG"), ("pmap", "OT")):
        (instance,) = series[modality]["Instances"]
        there = tmp_path / f"{kind}-back.dcm"
        there.write_bytes(pacs.get(f"/instances/{instance}/file"))
        assert after_header(there) == after_header(paths[kind])
        assert_same_places(
            by_place(pydicom.dcmread(there)),
            expected_by_place(results(SHAPE)[kind], image.affine),
        )
        assert complaints(there) == []


@pytest.mark.parametrize("kind", ["seg", "pmap"])
def test_a_real_series_has_valid_results(kind: str, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "data" / "dicom" / "siemens_t1_hfs"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    image = read_series([FileRef(path) for path in sorted(folder.iterdir())])
    data = write(kind, tmp_path / "out.dcm", image)
    assert complaints(tmp_path / "out.dcm") == []
    expected = results(image.values.shape)[kind]
    uids = [str(source.SOPInstanceUID) for source in image.origin.datasets]
    for pixels, frame in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        index = uids.index(reference.ReferencedSOPInstanceUID)
        np.testing.assert_array_equal(pixels, expected[:, :, index].T)
