"""The largest batch is found from figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from berdiff.runtime.cuda.device import OutOfDeviceMemory
from berdiff.runtime.cuda.memory import largest_batch

MIB = 2**20


@dataclass
class Figures:
    """Networks that are asked for their figures only."""

    weights: int
    scratch: dict[int, int]
    max_batch: int = 32
    asked: list[int] = field(default_factory=list)

    def device_bytes(self, batch: int) -> int:
        self.asked.append(batch)
        return self.weights + max((s for b, s in self.scratch.items() if b <= batch), default=0)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used: nothing is to be tried")


STEPS = {batch: batch * 5 * MIB for batch in range(1, 33)}


@pytest.mark.parametrize(
    ("free", "expected"), [(7, 1), (13, 1), (14, 2), (7 * 9, 9), (7 * 32 - 1, 31), (7 * 500, 32)]
)
def test_takes_what_fits_to_the_byte(free: int, expected: int) -> None:
    networks = Figures(100 * MIB, STEPS)
    assert largest_batch(networks, 2 * MIB, free * MIB) == expected
    short = free * MIB - 1
    if expected == 1 and free == 7:
        with pytest.raises(OutOfDeviceMemory):
            largest_batch(networks, 2 * MIB, short)
    elif free % 7 == 0 and expected < 32:
        assert largest_batch(networks, 2 * MIB, short) == expected - 1


def test_the_reserve_stays_free() -> None:
    assert largest_batch(Figures(0, STEPS), 2 * MIB, 70 * MIB) == 10
    assert largest_batch(Figures(0, STEPS), 2 * MIB, 70 * MIB, reserve=21 * MIB) == 7


def test_scratch_need_not_grow_evenly() -> None:
    networks = Figures(0, {1: 10 * MIB, 4: 11 * MIB, 5: 40 * MIB})
    assert largest_batch(networks, MIB, 15 * MIB) == 4
    assert largest_batch(networks, MIB, 14 * MIB) == 3
    assert largest_batch(networks, MIB, 10_000 * MIB) == 32


def test_asks_for_few_figures() -> None:
    networks = Figures(0, STEPS, max_batch=1 << 20)
    assert largest_batch(networks, 0, 200 * MIB) == 1 << 20
    assert len(networks.asked) < 30


def test_says_what_is_missing() -> None:
    networks = Figures(120 * MIB, STEPS)
    expected = r"needs 7 MiB .* 120 MiB .* 8 MiB are free.* 2 MiB"
    with pytest.raises(OutOfDeviceMemory, match=expected):
        largest_batch(networks, 2 * MIB, 8 * MIB, reserve=2 * MIB)
