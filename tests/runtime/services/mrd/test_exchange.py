"""What a client gets for the images it sends."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ismrmrd
import nibabel
import numpy as np
import pytest
from fakes import fake_detector
from mrd_peer import AXIAL, Client, Lie, Served, exchange, heads, images_of, serving, until
from numpy.typing import NDArray

from berdiff.runtime.detection import ScanDetection
from berdiff.runtime.detector import Detector
from berdiff.runtime.manifest import Threshold
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.scans import Grid, read_scan
from berdiff.runtime.services.audit import check
from berdiff.runtime.services.mrd.image import DATA_TYPES, HEADER

GEOMETRY = (
    "version flags measurement_uid field_of_view position read_dir phase_dir slice_dir "
    "patient_table_position average slice contrast phase repetition set acquisition_time_stamp "
    "physiology_time_stamp image_index user_int user_float"
).split()
THRESHOLD = Threshold(0.05, "test", "squared", 100, 10, 0.5)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fake_detector(threshold=THRESHOLD)


@pytest.fixture(scope="module")
def server(detector: Detector) -> Iterator[Served]:
    with serving(detector) as served:
        yield served


def stacked(images: list[ismrmrd.Image]) -> NDArray[Any]:
    return np.concatenate([image.data[0] for image in images])


def from_nifti(
    detector: Detector, values: NDArray[Any], lie: Lie, folder: Path, **options: Any
) -> tuple[ScanDetection, Grid]:
    """The same voxels as a file, and what the way of `berdiff infer` makes of them."""
    path = folder / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(values.T, lie.affine()), path)
    scan = read_scan(path, detector.bundle.manifest.preprocessing)
    return detector.detect_slices(scan.slices, scan.spacing, scan.image_ids, **options), scan.grid


def test_the_header_is_the_one_of_the_standard() -> None:
    assert HEADER.itemsize == ctypes.sizeof(ismrmrd.ImageHeader) == 198
    for name, _ in ismrmrd.ImageHeader._fields_:
        assert HEADER.fields[name][1] == getattr(ismrmrd.ImageHeader, name).offset, name
    assert set(DATA_TYPES) == set(range(1, 9))


def test_maps_come_back_on_the_place_of_their_originals(server: Served) -> None:
    images = images_of(
        heads(), meta={"IceMiniHead": "xyz", "DataRole": "Image", "RescaleSlope": 2.5}
    )
    for number, image in enumerate(images):
        image.user_int[3] = number + 5
        image.patient_table_position = (1.0, 2.0, 3.0)
        image.acquisition_time_stamp = 1000 + number
    answer = exchange(server.port, images)
    assert answer.closed
    assert [image.to_bytes() for image in answer.originals()] == [i.to_bytes() for i in images]
    maps = answer.series("anomaly")
    assert len(maps) == 3
    for before, after in zip(images, maps, strict=True):
        for name in GEOMETRY:
            assert np.array_equal(getattr(before, name), getattr(after, name)), name
        assert after.image_series_index == 2
        assert after.image_type == ismrmrd.IMTYPE_MAGNITUDE
        meta = after.meta
        assert meta["DataRole"] == ["Image", "Quantitative"]
        assert meta["ImageComments"].startswith("RESEARCH - not for clinical use")
        assert meta["ImageComment"][0] == "RESEARCH - not for clinical use"
        assert (meta["RescaleSlope"], meta["RescaleIntercept"]) == ("1", "0")
        assert meta["IceMiniHead"] == "xyz"
        assert meta["Keep_image_geometry"] == "1"
        assert [float(v) for v in meta["ImageRowDir"]] == [1, 0, 0]
        assert meta["BerdiffBundle"] == "d" * 64
        assert meta["BerdiffThresholdSource"] == "bundle"
        # What exceeds the threshold is brighter than the middle of the window.
        stored = float(meta["WindowCenter"]) * float(meta["BerdiffScale"])
        assert stored == pytest.approx(THRESHOLD.value, rel=1e-4)
    assert any(text.startswith("INFO     series 1: score") for text in answer.texts)


@pytest.mark.parametrize(
    "lie",
    [
        AXIAL,
        Lie(across=(-1, 0, 0), down=(0, -1, 0)),
        Lie(across=(0, 1, 0), down=(1, 0, 0), through=(0, 0, -1)),
        Lie(through=(0, 0, -1)),
        Lie(across=(0, 1, 0), down=(0, 0, -1), through=(-1, 0, 0), sizes=(1, 1, 1)),
        Lie(across=(np.cos(0.2), np.sin(0.2), 0), down=(-np.sin(0.2), np.cos(0.2), 0)),
    ],
    ids=["axial", "turned", "transposed", "upside-down", "sagittal", "oblique"],
)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_same_voxels_in_a_file_give_the_same_maps(
    server: Served, detector: Detector, tmp_path: Path, lie: Lie, dtype: str
) -> None:
    sagittal = lie.through[2] == 0
    values = heads((18, 24, 32) if sagittal else (3, 32, 40), dtype)
    if lie.across[1] == 1 and not sagittal:
        values = np.ascontiguousarray(values.transpose(0, 2, 1))
    images = images_of(values, lie)
    order = np.random.default_rng(0).permutation(len(images))
    answer = exchange(
        server.port,
        [images[i] for i in order],
        maptype="float32",
        sendmask="true",
        sendflips=True,
        seed="7",
    )
    found, grid = from_nifti(detector, values, lie, tmp_path, seed=7)
    for kind, expected in (
        ("anomaly", found.anomaly_map),
        ("flips", found.flip_map),
        ("mask", found.mask),
    ):
        got = stacked(sorted(answer.series(kind), key=lambda image: image.slice))
        assert got.shape == values.shape
        assert np.array_equal(got, grid.volume(expected).T), kind
    assert found.mask.any()
    assert found.anomaly_map.any()


def test_what_the_attributes_say_of_directions_holds(server: Served) -> None:
    """A scanner may turn an image and leave the header's directions as they were measured."""
    values = heads()
    turned = {"ImageRowDir": [-1, 0, 0], "ImageColumnDir": [0, -1, 0]}
    stated = exchange(server.port, images_of(values, meta=turned), maptype="float32")
    lie = Lie(across=(-1, 0, 0), down=(0, -1, 0))
    meant = exchange(server.port, images_of(values, lie), maptype="float32")
    ignored = exchange(server.port, images_of(values), maptype="float32")
    maps = [stacked(answer.series("anomaly")) for answer in (stated, meant, ignored)]
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])


def test_a_field_of_view_the_wrong_way_round() -> None:
    """FIRE's dicom2mrd.py gives the extent of the rows first."""
    values, size, flat = heads(), Lie(sizes=(0.8, 0.8, 4)), Lie(sizes=(0.8, 1.2, 4))
    field = (32 * 0.8, 40 * 0.8, 4.0)
    with serving(fake_detector(Preprocessing(1, ("flair",), (32, 40), spacing=1.0))) as server:
        right, swapped, other = (
            exchange(server.port, images, maptype="float32")
            for images in (
                images_of(values, size),
                images_of(values, size, field_of_view=field),
                images_of(values, flat),
            )
        )
    maps = [stacked(answer.series("anomaly")) for answer in (right, swapped, other)]
    assert np.array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])
    assert swapped.series("anomaly")[0].field_of_view[:] == pytest.approx(field)
    assert any(t.startswith("WARNING  series 1: its field of view gives") for t in swapped.texts)
    assert not any(text.startswith("WARNING") for text in (*right.texts, *other.texts))


def test_counts_and_scale_give_the_map(server: Served) -> None:
    images = images_of(heads())
    exact = stacked(exchange(server.port, images, maptype="float32").series("anomaly"))
    counted = exchange(server.port, images).series("anomaly")
    scale = float(counted[0].meta["BerdiffScale"])
    assert counted[0].data.dtype == np.uint16
    assert np.abs(stacked(counted) * scale - exact).max() <= scale / 2 * 1.001


def test_one_image_may_hold_a_volume(server: Served) -> None:
    values = heads()
    volume = ismrmrd.Image.from_array(
        values,
        image_type=1,
        image_series_index=1,
        field_of_view=(40.0, 32.0, 12.0),
        read_dir=AXIAL.across,
        phase_dir=AXIAL.down,
        slice_dir=AXIAL.through,
    )
    whole = exchange(server.port, [volume], maptype="float32", sendreconstruction=True)
    single = exchange(server.port, images_of(values), maptype="float32")
    (map_,) = whole.series("anomaly")
    assert map_.data.shape == (1, 3, 32, 40)
    assert np.array_equal(map_.data[0], stacked(single.series("anomaly")))
    (healthy,) = whole.series("reconstruction")
    assert 0 < healthy.data.max() <= 1


def test_contrasts_and_series_are_volumes_of_their_own(server: Served) -> None:
    first = images_of(heads(seed=1), contrast=0)
    second = images_of(heads(seed=2), contrast=1)
    third = images_of(heads((2, 40, 40), seed=3), image_series_index=4)
    answer = exchange(server.port, [*second, *third, *first], sendflips=True)
    maps = answer.series("anomaly")
    assert [(i.image_series_index, i.contrast, i.slice) for i in maps] == [
        *((5, 0, s) for s in range(3)),
        *((5, 1, s) for s in range(3)),
        *((7, 0, s) for s in range(2)),
    ]
    assert {i.image_series_index for i in answer.series("flips")} == {6, 8}
    alone = stacked(exchange(server.port, second).series("anomaly"))
    assert np.array_equal(stacked(maps[3:6]), alone)


def test_a_model_of_several_channels(tmp_path: Path) -> None:
    model = fake_detector(Preprocessing(2, ("t1", "flair"), (32, 40)))
    one, other = heads(seed=1), heads(seed=2)
    images = images_of(one, contrast=0) + images_of(other, image_series_index=2)
    with serving(model) as server:
        assert "name in the parameter channels" in exchange(server.port, images).error
        named = {"maptype": "float32", "sendreconstruction": True}
        right = exchange(server.port, images, channels="t1, flair", **named)
        swapped = exchange(server.port, images, channels="flair, t1", **named)
        few = exchange(server.port, images[:3], channels="t1,flair")
        apart = images_of(one) + images_of(other, Lie(sizes=(1, 1, 5)), image_series_index=2)
        assert "does not lie on the grid" in exchange(server.port, apart, channels="t1,flair").error
    assert "names 2 volumes, the session has 1" in few.error
    path = tmp_path / "scan.nii"
    both = np.stack([one.T, other.T], axis=-1)
    nibabel.save(nibabel.Nifti1Image(both, AXIAL.affine()), path)
    scan = read_scan(path, model.bundle.manifest.preprocessing)
    found = model.detect_slices(scan.slices, scan.spacing, scan.image_ids)
    got = stacked(right.series("anomaly"))
    assert np.array_equal(got, scan.grid.volume(found.anomaly_map).T)
    assert len(right.series("anomaly")) == 3
    assert len(right.series("reconstruction")) == 6
    assert not np.array_equal(got, stacked(swapped.series("anomaly")))


def test_other_images_pass_by(server: Served) -> None:
    phases = images_of(heads(seed=5), image_type=ismrmrd.IMTYPE_PHASE, image_series_index=2)
    answer = exchange(server.port, images_of(heads()) + phases)
    assert len(answer.originals()) == 6
    assert len(answer.series("anomaly")) == 3
    assert "none of the images is a magnitude" in exchange(server.port, phases).error


def test_a_volume_that_cannot_be_used_does_not_spoil_the_others(server: Served) -> None:
    gap = images_of(heads((4, 32, 40)), image_series_index=2)
    del gap[1]
    answer = exchange(server.port, images_of(heads()) + gap, sendoriginals="false")
    assert len(answer.images) == len(answer.series("anomaly")) == 3
    assert "series 2: its 3 slices are not equally spaced" in answer.error


def test_the_header_and_waveforms_are_read_past(server: Served, tmp_path: Path) -> None:
    waveform = ismrmrd.Waveform.from_array(np.ones((3, 50), np.uint32))
    with Client(server.port) as client:
        client.begin(config="openrecon", header="<ismrmrdHeader>DOE^JANE</ismrmrdHeader>")
        for image in images_of(heads()):
            client.socket.sendall((1026).to_bytes(2, "little"))
            waveform.serialize_into(client.socket.sendall)
            client.image(image)
        client.close()
        assert len(client.answer().images) == 6


def test_a_configuration_sent_as_gadgetron_does(server: Served) -> None:
    with Client(server.port) as client:
        client.text(2, "<configuration><name>any</name></configuration>")
        client.text(3, "<ismrmrdHeader/>")
        for image in images_of(heads()):
            client.image(image)
        client.close()
        assert len(client.answer().series("anomaly")) == 3


def test_a_client_that_asks_nothing_is_let_go(server: Served) -> None:
    """Gadgetron clients ask so whether somebody is there."""
    with Client(server.port) as client:
        client.text(2, "berdiff")
        client.close()
        answer = client.answer()
    assert answer.closed
    assert not answer.texts


def test_the_audit_log_and_metrics_say_what_was_done(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    secret = images_of(heads(), meta={"PatientName": "DOE^JANE"})
    with serving(detector, audit=path) as server:
        exchange(server.port, secret, seed=3, steps=5)
        # The line follows the answer: the next session must not be quicker.
        until(lambda: path.read_bytes().count(b"\n") == 1)
        exchange(server.port, secret, nonsense="DOE^JANE")
    # The lines are written before the server has ended.
    assert check(path).entries == 2
    text = path.read_text()
    assert "DOE" not in text
    done, refused = (json.loads(line)["facts"] for line in text.splitlines())
    assert (done["outcome"], done["images"], done["sent"]) == ("answered", 3, 6)
    assert (done["seed"], done["steps"], len(done["inputs"])) == (3, 5, 1)
    assert refused["outcome"] == "refused"
    assert server.metric("sessions_total", outcome="answered") == 1
    assert server.metric("images_sent_total") == 6
    assert server.metric("clients") == 0
