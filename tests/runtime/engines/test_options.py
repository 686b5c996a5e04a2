"""What an engine may be built for."""

from __future__ import annotations

from typing import Any

import pytest

from berdiff.runtime.engines.library import TENSORRT, TENSORRT_RTX, Library
from berdiff.runtime.engines.options import BuildOptions, check_target, parse_bytes
from berdiff.runtime.errors import BackendError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 << 30),
        ("512MiB", 512 << 20),
        ("512", 512 << 20),  # as trtexec reads it
        ("0.5g", 1 << 29),
        ("64 kb", 64 << 10),
        ("4096B", 4096),
        ("1M", 1 << 20),
    ],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1TiB", "0", "0.1b", "1 000", "2GiBs", "1e3"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="expected an amount of memory like 2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"dynamic_batch": (0, 1, 2)}, "1 <= MIN <= OPT <= MAX"),
        ({"dynamic_batch": (1, 4, 2)}, "1 <= MIN <= OPT <= MAX"),
        ({"workspace": 0}, "workspace"),
        ({"builder_optimization_level": 6}, "level must lie between 0 and 5"),
        ({"hardware_compatibility": "all"}, "none, same-cc, ampere+"),
    ],
)
def test_options_that_mean_nothing(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named.replace("+", r"\+")):
        BuildOptions(**({"dynamic_batch": (1, 1, 1)} | values))


@pytest.mark.parametrize("target", ["sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121", None])
def test_targets_of_tensorrt_for_rtx(target: str | None) -> None:
    check_target(TENSORRT_RTX, target)


@pytest.mark.parametrize(
    ("library", "target", "parts"),
    [
        (TENSORRT_RTX, "sm_87", ["no kernels", "sm_89", "--engine tensorrt"]),
        (TENSORRT_RTX, "sm_90", ["no kernels", "H100", "--engine tensorrt"]),
        (TENSORRT_RTX, "sm_110", ["no kernels", "Thor", "--engine tensorrt"]),
        (TENSORRT_RTX, "ada", ["'ada'", "as sm_89"]),
        (TENSORRT_RTX, "89", ["'89'", "as sm_89"]),
        (TENSORRT, "sm_89", ["timing kernels on the GPU", "cannot be built elsewhere"]),
    ],
)
def test_targets_that_are_refused(library: Library, target: str, parts: list[str]) -> None:
    with pytest.raises(BackendError) as caught:
        check_target(library, target)
    for part in parts:
        assert part in str(caught.value)
