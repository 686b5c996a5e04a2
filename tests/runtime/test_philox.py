"""The noise: every draw is a function of seed, image, step and element, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_diffusion import philox, philox_uniforms

from berdiff.runtime.philox import CODE_STEP, PhiloxNoise, philox4x32

WORDS = st.integers(0, 2**32 - 1)
LONGS = st.integers(0, 2**64 - 1)
SHAPE = (3, 4, 5)  # of one code; 60 elements are 15 counters

# Published with the generator (Salmon et al. 2011): counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    drawn = philox4x32(words(counter), words(key))
    assert drawn.dtype == np.uint32
    assert drawn.tolist() == words(answer)


@settings(deadline=None, max_examples=50)
@given(
    counters=st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), min_size=1, max_size=4),
    key=st.tuples(WORDS, WORDS),
)
def test_counters_are_independent_of_each_other(
    counters: list[tuple[int, int, int, int]], key: tuple[int, int]
) -> None:
    drawn = philox4x32(np.array(counters, np.uint32)[:, None], key)
    assert drawn.shape == (len(counters), 1, 4)
    assert drawn[:, 0].tolist() == [list(philox(counter, key)) for counter in counters]


@settings(deadline=None, max_examples=30)
@given(seed=LONGS, image_id=LONGS, step=WORDS, size=st.integers(1, 9))
def test_elements_are_lanes_of_counters_in_c_order(
    seed: int, image_id: int, step: int, size: int
) -> None:
    drawn = PhiloxNoise(seed, [image_id])(step, (1, size, 3, 1))
    np.testing.assert_array_equal(drawn[0], philox_uniforms(seed, image_id, step, (size, 3, 1)))


def test_one_element_by_hand() -> None:
    """Element (1, 2, 3) of [3, 4, 5] is number 33: lane 1 of counter 8."""
    seed, image_id, step = 0x11223344_55667788, 0x99AABBCC_DDEEFF00, 7
    key = (0x55667788, 0x11223344)
    word = philox((8, step, 0xDDEEFF00, 0x99AABBCC), key)[1]
    drawn = PhiloxNoise(seed, [image_id])(step, (1, *SHAPE))
    assert float(drawn[0, 1, 2, 3]) == (word >> 8) / 2**24


@settings(deadline=None, max_examples=30)
@given(
    seed=LONGS,
    ids=st.lists(LONGS, min_size=2, max_size=5, unique=True),
    order=st.permutations([0, 1]),
)
def test_a_draw_does_not_depend_on_the_batch(seed: int, ids: list[int], order: list[int]) -> None:
    together = PhiloxNoise(seed, ids)(3, (len(ids), *SHAPE))
    for row, image_id in zip(together, ids, strict=True):
        np.testing.assert_array_equal(row, PhiloxNoise(seed, [image_id])(3, (1, *SHAPE))[0])
    chosen = [ids[i] for i in order]
    np.testing.assert_array_equal(PhiloxNoise(seed, chosen)(3, (2, *SHAPE)), together[order])


def test_the_order_of_the_draws_plays_no_part() -> None:
    noise = PhiloxNoise(5, [1, 2])
    first = noise(9, (2, *SHAPE))
    noise(8, (2, *SHAPE))
    np.testing.assert_array_equal(noise(9, (2, *SHAPE)), first)


def test_seed_image_and_step_each_change_the_draw() -> None:
    """Also where only the upper halves differ."""
    draws = [
        PhiloxNoise(seed, [image_id])(step, (1, *SHAPE)).tobytes()
        for seed in (0, 1, 1 << 32)
        for image_id in (0, 1, 1 << 32)
        for step in (0, 1, CODE_STEP)
    ]
    assert len(set(draws)) == 27


def test_uniforms_are_24_bit_fractions_spread_evenly() -> None:
    drawn = PhiloxNoise(3, np.arange(4, dtype=np.uint64))(1, (4, 16, 32, 32))
    assert drawn.dtype == np.float32
    steps = drawn.astype(np.float64) * 2**24
    np.testing.assert_array_equal(steps, np.floor(steps))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.any(steps % 2 == 1)  # all 24 bits are used
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    expected = drawn.size / 64
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert 20 < chi_squared < 130  # 63 degrees of freedom: outside once in a million
    pairs = np.corrcoef(drawn[:, ::2].ravel(), drawn[:, 1::2].ravel())[0, 1]
    assert abs(pairs) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        PhiloxNoise(seed, [0])


@pytest.mark.parametrize("ids", [[0.5], np.array([1.0]), [2**64], np.array([-1])])
def test_ids_that_are_no_64_bit_integers_are_refused(ids: object) -> None:
    """A float holds 53 bits of an id: two images would share their noise unnoticed."""
    with pytest.raises(ValueError, match="64-bit"):
        PhiloxNoise(0, ids)  # type: ignore[arg-type]


def test_noise_for_another_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images was asked for 2"):
        PhiloxNoise(0, [1, 2, 3])(0, (2, *SHAPE))
