"""Strict JSON: what is not exactly as expected is refused with file and key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.strict import from_json, to_json


@dataclass(frozen=True)
class Inner:
    count: int
    label: str = "none"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")


@dataclass(frozen=True)
class Outer:
    ratio: float
    inner: Inner
    on: bool = True
    kind: Literal["a", "b"] = "a"
    size: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    spacing: float | None = None
    files: dict[str, Inner] = field(default_factory=dict)


LEAST: dict[str, Any] = {"ratio": 0.5, "inner": {"count": 1}}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
INNERS = st.builds(Inner, st.integers(0), st.text())


def test_defaults_fill_what_is_absent() -> None:
    assert from_json(Outer, LEAST, "x.json") == Outer(0.5, Inner(1))


def test_whole_numbers_serve_as_floats() -> None:
    loaded = from_json(Outer, LEAST | {"ratio": 2, "spacing": 3}, "x.json")
    assert (type(loaded.ratio), type(loaded.spacing)) == (float, float)


@settings(deadline=None, max_examples=40)
@given(
    st.builds(
        Outer,
        ratio=FINITE,
        inner=INNERS,
        on=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        size=st.tuples(st.integers(), st.integers()),
        names=st.lists(st.text()).map(tuple),
        spacing=st.none() | FINITE,
        files=st.dictionaries(st.text(), INNERS, max_size=2),
    )
)
def test_what_was_written_is_read_back(value: Outer) -> None:
    text = to_json(value)
    assert text.endswith("}\n")
    assert from_json(Outer, json.loads(text), "x.json") == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"x\.json: unknown key 'extra'; expected only files, inner, kind"),
        ({"inner": {}}, r"x\.json: inner: missing key 'count'"),
        ({"inner": {"count": 1, "size": 2}}, r"x\.json: inner: unknown key 'size'"),
        ({"inner": 3}, r"x\.json: inner: expected an object, got 3"),
        ({"inner": {"count": -1}}, r"x\.json: inner: count must not be negative, got -1"),
        ({"inner": {"count": 1.0}}, r"inner: count: expected int, got 1\.0"),
        ({"inner": {"count": True}}, r"inner: count: expected int, got true"),
        ({"inner": {"count": None}}, r"inner: count: expected int, got null"),
        ({"ratio": "0.5"}, r'ratio: expected float, got "0\.5"'),
        ({"ratio": True}, r"ratio: expected float, got true"),
        ({"ratio": float("nan")}, r"ratio: expected float, got NaN"),
        ({"ratio": float("-inf")}, r"ratio: expected float, got -Infinity"),
        ({"ratio": 10**400}, r"ratio: expected float, got 1000"),
        ({"on": 1}, r"on: expected bool, got 1"),
        ({"kind": "c"}, r"kind: expected one of \['a', 'b'\], got \"c\""),
        ({"kind": ["a"]}, r"kind: expected one of"),
        ({"size": [1]}, r"size: expected 2 values, got \[1\]"),
        ({"size": [1, 2, 3]}, r"size: expected 2 values"),
        ({"size": [1, "2"]}, r'size\[1\]: expected int, got "2"'),
        ({"size": "12"}, r'size: expected a list, got "12"'),
        ({"names": ["a", 2]}, r"names\[1\]: expected str, got 2"),
        ({"spacing": "1"}, r"spacing: expected float"),
        ({"files": []}, r"files: expected an object, got \[\]"),
        ({"files": {"a": {"count": "x"}}}, r"files\.a: count: expected int"),
        ({"files": {1: {"count": 1}}}, r"files: expected names as keys, got 1"),
    ],
)
def test_refusals_name_file_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BerdiffError, match=message):
        from_json(Outer, LEAST | change, "x.json")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BerdiffError, match=r"x\.json: missing key 'inner'"):
        from_json(Outer, {"ratio": 1.0}, "x.json")


def test_long_values_are_shown_in_part() -> None:
    with pytest.raises(BerdiffError) as caught:
        from_json(Outer, LEAST | {"ratio": "x" * 1000}, "x.json")
    assert len(str(caught.value)) < 120


@settings(deadline=None, max_examples=100)
@given(data=JSON, key=st.sampled_from(list(Outer.__dataclass_fields__)))
def test_no_content_escapes_as_another_error(data: Any, key: str) -> None:
    for content in (data, LEAST | {key: data}, LEAST | {"files": {"a": data}}):
        try:
            loaded = from_json(Outer, content, "x.json")
        except BerdiffError:
            continue
        assert isinstance(loaded, Outer)


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json(Outer(float("nan"), Inner(0)))
