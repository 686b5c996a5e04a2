"""Parametric maps: the anomaly map on the frames of its source, to the bit."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_results import (
    MADE_BY,
    assert_same_places,
    by_place,
    complaints,
    expected_by_place,
    read,
    results,
    write,
)
from dicom_sources import (
    CT,
    ENHANCED_MR,
    MR,
    OPHTHALMIC_TOMOGRAPHY,
    ORIENTATIONS,
    SHAPE,
    classic,
    multi_frame,
)

from berdiff.runtime.errors import InputError
from berdiff.runtime.writers.dicom_pmap import write_parametric_map


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("sop_class", [MR, CT, ENHANCED_MR])
def test_every_value_lies_where_it_lay_in_the_scan(
    name: str, sop_class: str, tmp_path: Path
) -> None:
    turn = ORIENTATIONS[name]
    sources = [multi_frame(turn)] if sop_class == ENHANCED_MR else classic(turn, sop_class)
    image = read(tmp_path / "in", *sources)
    data = write("pmap", tmp_path / "map.dcm", image)
    assert_same_places(by_place(data), expected_by_place(results(SHAPE)["pmap"], image.affine))


def test_highdicom_reads_the_same_volume(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic(ORIENTATIONS["oblique"]))
    write("pmap", tmp_path / "map.dcm", image)
    volume = highdicom.imread(tmp_path / "map.dcm").get_volume()
    values = results(SHAPE)["pmap"]
    assert volume.array.size == values.size
    for index in np.ndindex(*SHAPE):
        place = np.diag([-1, -1, 1, 1]) @ image.affine @ [*index, 1]
        there = np.rint(volume.map_reference_to_indices(place[None, :3])[0]).astype(int)
        assert volume.array[tuple(there)] == values[index]


def test_values_have_no_unit_and_a_window_over_their_range(tmp_path: Path) -> None:
    data = write("pmap", tmp_path / "map.dcm", read(tmp_path / "in", *classic()))
    high = float(results(SHAPE)["pmap"].max())
    shared = data.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert (mapping.LUTLabel, mapping.RealWorldValueSlope) == ("Anomaly", 1)
    assert mapping.RealWorldValueIntercept == 0
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == 0
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == high
    (window,) = shared.FrameVOILUTSequence
    assert window.VOILUTFunction == "LINEAR_EXACT"
    assert window.WindowWidth == pytest.approx(high)
    assert window.WindowCenter == pytest.approx(high / 2)
    assert data.ContentQualification == "RESEARCH"


@pytest.mark.parametrize("sop_class", [MR, CT, ENHANCED_MR])
@pytest.mark.parametrize("body", ["HEAD", None])
def test_dciodvfy_finds_no_error(sop_class: str, body: str | None, tmp_path: Path) -> None:
    turn = ORIENTATIONS["oblique"]
    sources = [multi_frame(turn)] if sop_class == ENHANCED_MR else classic(turn, sop_class)
    for source in sources:
        if body is None:
            del source.BodyPartExamined
    write("pmap", tmp_path / "map.dcm", read(tmp_path / "in", *sources))
    assert complaints(tmp_path / "map.dcm") == []


@pytest.mark.parametrize("kind", ["seg", "pmap"])
def test_b_scans_lie_where_their_headers_say(kind: str, tmp_path: Path) -> None:
    source = multi_frame(ORIENTATIONS["oblique"], OPHTHALMIC_TOMOGRAPHY)
    image = read(tmp_path / "in", source)
    data = write(kind, tmp_path / "result.dcm", image)
    expected = results(SHAPE)[kind]
    rows, columns = data.Rows, data.Columns
    assert (columns, rows) == SHAPE[:2]
    for pixels, frame in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        number = reference.ReferencedFrameNumber - 1
        np.testing.assert_array_equal(pixels, expected[:, :, number].T)
        theirs = source.PerFrameFunctionalGroupsSequence[number]
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == pytest.approx(
            list(theirs.PlanePositionSequence[0].ImagePositionPatient)
        )
    assert data.ImageLaterality == "R"
    assert complaints(tmp_path / "result.dcm") == []


def test_a_map_of_zeros_can_be_written(tmp_path: Path) -> None:
    image = read(tmp_path / "in", *classic())
    zeros = np.zeros(SHAPE, np.float32)
    write_parametric_map(tmp_path / "map.dcm", image.origin, zeros, image.affine, MADE_BY)
    assert not pydicom.dcmread(tmp_path / "map.dcm").pixel_array.any()
    assert complaints(tmp_path / "map.dcm") == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_refused_and_nothing_written(
    bad: float, tmp_path: Path
) -> None:
    image = read(tmp_path / "in", *classic())
    values = results(SHAPE)["pmap"]
    values[1, 2, 3] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        write_parametric_map(tmp_path / "out.dcm", image.origin, values, image.affine, MADE_BY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
