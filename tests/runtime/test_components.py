"""Connected parts of a mask, against a search that goes voxel by voxel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import berdiff.runtime.components as components
from berdiff.runtime.components import Component, find_components
from berdiff.runtime.strict import from_json

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def brute_force(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    left = {tuple(int(x) for x in place) for place in np.argwhere(mask)}
    parts = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            place = edge.pop()
            part.add(place)
            for step in STEPS:
                beside = tuple(a + b for a, b in zip(place, step, strict=True))
                if beside in left:
                    left.remove(beside)
                    edge.append(beside)
        parts.append(part)
    return parts


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 0.5),
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 6)),
)
def test_parts_are_those_of_a_search(seed: int, share: float, shape: tuple[int, int, int]):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < share
    anomaly = rng.integers(0, 5, shape).astype(np.float32)  # with ties
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (1.0, 2.0, 0.5), rng.normal(size=3) * 50
    found = find_components(mask, anomaly, affine, 1.0)

    expected = sorted(
        (
            (-len(part), *min((-float(anomaly[place]), place) for place in part), part)
            for part in brute_force(mask)
        ),
        key=lambda item: item[:3],
    )
    assert [item.number for item in found] == list(range(1, len(expected) + 1))
    for item, (size, peak, place, part) in zip(found, expected, strict=True):
        assert (item.voxels, item.peak, item.peak_index) == (-size, -peak, place)
        assert item.volume_ml == pytest.approx(-size / 1000)
        centre = np.mean(sorted(part), axis=0)
        np.testing.assert_allclose(item.centroid_index, centre, atol=6e-4)
        np.testing.assert_allclose(
            item.centroid_mm, affine[:3, :3] @ centre + affine[:3, 3], atol=6e-4
        )
        np.testing.assert_allclose(item.peak_mm, (affine @ [*place, 1])[:3], atol=6e-4)
        assert item.mean == pytest.approx(np.mean([anomaly[p] for p in part]))


def test_an_image_has_places_in_pixels_only():
    mask = np.zeros((6, 7, 1), bool)
    mask[2:4, 3:6] = True
    (item,) = find_components(mask, mask.astype(np.float32), None, None)
    assert (item.voxels, item.volume_ml, item.centroid_mm, item.peak_mm) == (6, None, None, None)
    assert item.centroid_index == (2.5, 4.0, 0.0)


def test_nothing_and_too_much(monkeypatch: pytest.MonkeyPatch):
    empty = np.zeros((4, 4, 4), bool)
    assert find_components(empty, np.zeros((4, 4, 4), np.float32), None, None) == ()
    monkeypatch.setattr(components, "MAX_COMPONENTS", 3)
    mask = np.zeros((20, 1, 1), bool)
    for start, length in ((0, 1), (3, 2), (7, 3), (12, 4)):
        mask[start : start + length] = True
    found = find_components(mask, mask.astype(np.float32), None, None)
    assert [item.voxels for item in found] == [4, 3, 2]
    assert found.left_out == 1
    assert find_components(mask[:11], mask[:11].astype(np.float32), None, None).left_out == 0


def test_it_survives_json():
    import dataclasses
    import json

    mask = np.ones((2, 2, 2), bool)
    (item,) = find_components(mask, mask.astype(np.float32), np.eye(4), 1.0)
    assert from_json(Component, json.loads(json.dumps(dataclasses.asdict(item))), "x") == item
