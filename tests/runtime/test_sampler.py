"""The masked loop: what must hold for every denoiser, whatever its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from berdiff.runtime.philox import PhiloxNoise
from berdiff.runtime.sampler import Coefficients, Sampler, State, posterior
from berdiff.runtime.schedule import Schedule

FloatArray = NDArray[np.float32]
SHAPE = (4, 3, 2)  # K, h, w
IDS = np.array([3, 2**63, 7, 1, 2**40], np.uint64)
SCHEDULE = Schedule.linear()
THRESHOLDS = st.floats(0, 1, width=32)
FORWARD = st.sampled_from(["bernoulli", "upstream"])


def codes(count: int = len(IDS), seed: int = 0) -> FloatArray:
    """Random bits."""
    return (np.random.default_rng(seed).random((count, *SHAPE)) < 0.5).astype(np.float32)


def uneven(z: FloatArray, t: int) -> FloatArray:
    """A denoiser that treats each element by itself, each one differently at each step."""
    place = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    return np.abs(np.sin(place * np.float32(0.7) + np.float32(t) + z)).astype(np.float32)


def walk(
    sampler: Sampler,
    z_org: FloatArray,
    denoiser: Callable[[FloatArray, int], FloatArray] = uneven,
    ids: NDArray[np.uint64] = IDS,
) -> list[State]:
    """Every state of a run."""
    noise = PhiloxNoise(11, ids)
    states = [sampler.init(z_org, noise)]
    while states[-1].remaining:
        states.append(sampler.step(states[-1], denoiser, noise))
    return states


@settings(deadline=None, max_examples=25)
@given(
    order=st.permutations(range(len(IDS))),
    cut=st.integers(1, len(IDS) - 1),
    threshold=THRESHOLDS,
    forward=FORWARD,
)
def test_a_result_does_not_depend_on_its_batch(
    order: list[int], cut: int, threshold: float, forward: str
) -> None:
    sampler = Sampler(SCHEDULE, 60, 6, threshold, forward)  # type: ignore[arg-type]
    z_org = codes()
    whole = sampler.run(z_org, uneven, PhiloxNoise(11, IDS))
    for chosen in (order[:cut], order[cut:]):
        part = sampler.run(z_org[chosen], uneven, PhiloxNoise(11, IDS[chosen]))
        for name in ("z", "mask", "flips"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[chosen])


@settings(deadline=None, max_examples=25)
@given(level=st.integers(2, 300), threshold=THRESHOLDS, forward=FORWARD, data=st.data())
def test_what_holds_in_every_state(
    level: int, threshold: float, forward: str, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(2, min(level, 12)))
    sampler = Sampler(SCHEDULE, level, steps, threshold, forward)  # type: ignore[arg-type]
    z_org = codes()
    states = walk(sampler, z_org)
    assert [state.remaining for state in states] == list(range(steps, -1, -1))
    for before, after in itertools.pairwise(states):
        assert np.all(after.mask >= before.mask)
        rise = after.flips - before.flips
        assert rise.min() >= 0
        assert rise.max() <= 1 + 1e-5
    for state in states:
        np.testing.assert_array_equal(state.z_org, z_org)
        assert (state.z.dtype, state.flips.dtype, state.mask.dtype) == ("f4", "f4", bool)
        assert state.z.min() >= 0
        assert state.z.max() <= 1
        if state.remaining:
            assert np.all((state.z == 0) | (state.z == 1))


def test_the_first_and_the_last_step_are_those_the_method_names() -> None:
    """Noise at L, steps L-1 to 0, draws at each but 0; the denoiser is told the original steps."""
    asked: list[int] = []
    drawn: list[int] = []

    def denoiser(z: FloatArray, t: int) -> FloatArray:
        asked.append(t)
        return uneven(z, t)

    def noise(t: int, shape: tuple[int, ...]) -> FloatArray:
        drawn.append(t)
        return PhiloxNoise(0, IDS)(t, shape)

    Sampler(SCHEDULE, noise_level=5).run(codes(), denoiser, noise)
    assert (asked, drawn) == ([4, 3, 2, 1, 0], [5, 4, 3, 2, 1])

    asked.clear()
    drawn.clear()
    Sampler(SCHEDULE, noise_level=101, steps=3).run(codes(), denoiser, noise)
    assert (asked, drawn) == ([100, 50, 0], [101, 100, 50])

    # In a respaced schedule L counts kept steps, as upstream's does.
    asked.clear()
    drawn.clear()
    respaced = SCHEDULE.respaced([0, 10, 20, 30])
    Sampler(respaced, noise_level=3).run(codes(), denoiser, noise)
    assert (asked, drawn) == ([20, 10, 0], [30, 20, 10])


def test_a_single_step_only_undoes_the_noise() -> None:
    sampler = Sampler(SCHEDULE, noise_level=1)
    states = walk(sampler, codes())
    assert sampler.kept == (0,)
    np.testing.assert_array_equal(states[1].z, np.abs(states[0].z - uneven(states[0].z, 0)))
    assert not states[1].mask.any()


@settings(deadline=None, max_examples=25)
@given(forward=FORWARD, steps=st.integers(2, 8))
def test_with_threshold_1_nothing_is_released(forward: str, steps: int) -> None:
    """Before the last step, every code is drawn from the posterior of the image's own code."""
    sampler = Sampler(SCHEDULE, 90, steps, 1.0, forward)  # type: ignore[arg-type]
    z_org = codes()
    states = walk(sampler, z_org, lambda z, t: np.ones_like(z))
    assert not states[-1].mask.any()
    noise = PhiloxNoise(11, IDS)
    for before, after in itertools.pairwise(states[:-1]):
        step, previous = (sampler.kept[s.remaining - 1] for s in (before, after))
        alpha, abar = SCHEDULE.alpha_between(step, previous), float(SCHEDULE.abar[previous])
        probability = posterior(before.z, z_org, Coefficients.of(alpha, abar))
        np.testing.assert_array_equal(after.z, noise(step, z_org.shape) < probability)
    # The last step is not masked, as upstream's: here it flips every bit.
    np.testing.assert_array_equal(states[-1].z, 1 - states[-2].z)


@settings(deadline=None, max_examples=25)
@given(forward=FORWARD, steps=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_perfect_denoiser_arrives_at_its_target(forward: str, steps: int, seed: int) -> None:
    level = 400 if steps > 1 else 1
    target, z_org = codes(seed=seed + 1), codes(seed=seed)
    sampler = Sampler(SCHEDULE, level, steps, 0.0, forward)  # type: ignore[arg-type]
    states = walk(sampler, z_org, lambda z, t: np.abs(z - target))
    final = states[-1]
    np.testing.assert_array_equal(final.z, target)
    # Each step wants the same bits changed, and counts them; only bits once away from the target
    # were released.
    np.testing.assert_array_equal(final.flips, steps * np.abs(target - z_org))
    never = np.zeros(z_org.shape, bool)
    away = np.any([never, *(s.z != target for s in states if s.remaining > 1)], axis=0)
    np.testing.assert_array_equal(final.mask, away)


def test_a_flip_probability_equal_to_the_threshold_releases_nothing() -> None:
    """``eps > P``, compared in float32."""
    sampler = Sampler(SCHEDULE, 20, 4, flip_threshold=0.1)
    same = np.float32(0.1)
    above = np.nextafter(same, np.float32(1))
    assert not walk(sampler, codes(), lambda z, t: np.full_like(z, same))[-1].mask.any()
    assert walk(sampler, codes(), lambda z, t: np.full_like(z, above))[-1].mask.all()


def test_the_first_draw_clears_only_for_upstream() -> None:
    """Upstream's noise never sets a bit; the paper's sets as many as it clears."""
    zeros, ones = np.zeros((1, 16, 32, 32), np.float32), np.ones((1, 16, 32, 32), np.float32)
    expected = float(SCHEDULE.abar[300])
    for forward, of_zero, of_one in (
        ("upstream", 0.0, expected),
        ("bernoulli", (1 - expected) / 2, (1 + expected) / 2),
    ):
        sampler = Sampler(SCHEDULE, 300, forward_noise=forward)  # type: ignore[arg-type]
        for code, share in ((zeros, of_zero), (ones, of_one)):
            drawn = sampler.init(code, PhiloxNoise(0, [1])).z.mean(dtype=np.float64)
            assert drawn == pytest.approx(share, abs=0.02)
    assert (
        not Sampler(SCHEDULE, 300, forward_noise="upstream")
        .init(zeros, PhiloxNoise(0, [1]))
        .z.any()
    )


@settings(deadline=None, max_examples=50)
@given(
    st.data(),
    st.sampled_from([0.0, 1.0]),
    THRESHOLDS,
    st.integers(1, 998),
)
def test_the_posterior_is_a_probability_and_follows_both_codes(
    data: st.DataObject, z: float, z0: float, step: int
) -> None:
    previous = data.draw(st.integers(0, step - 1))
    coefficients = Coefficients.of(
        SCHEDULE.alpha_between(step, previous), float(SCHEDULE.abar[previous])
    )

    def at(z: float, z0: float) -> float:
        return float(posterior(np.float32([z]), np.float32([z0]), coefficients)[0])

    assert 0 <= at(z, z0) <= 1
    assert at(1, z0) >= at(0, z0)
    assert at(z, 1) >= at(z, 0)
    # 0 and 1 are alike, as far as 1 - z0 can be told in float32 beside the smallest floor, 5e-5.
    assert at(z, z0) + at(1 - z, 1 - z0) == pytest.approx(1, abs=1e-3)


def test_a_step_leaves_its_state_alone() -> None:
    """So that the loop can be written, forked and restarted in user code."""
    sampler, noise = Sampler(SCHEDULE, 30, 5), PhiloxNoise(11, IDS)
    state = sampler.step(sampler.init(codes(), noise), uneven, noise)
    arrays = (state.z_org, state.z, state.mask, state.flips)
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    first = sampler.step(state, uneven, noise)
    again = sampler.step(state, uneven, noise)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    for name in ("z", "mask", "flips"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def test_no_step_follows_the_last() -> None:
    sampler = Sampler(SCHEDULE, 3)
    final = walk(sampler, codes())[-1]
    with pytest.raises(ValueError, match="no step remains"):
        sampler.step(final, uneven, PhiloxNoise(11, IDS))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"noise_level": 0}, "noise level must lie between 1 and 999, got 0"),
        ({"noise_level": 1000}, "noise level must lie between 1 and 999, got 1000"),
        ({"flip_threshold": -0.1}, "flip threshold"),
        ({"flip_threshold": 1.1}, "flip threshold"),
        ({"flip_threshold": float("nan")}, "flip threshold"),
        ({"steps": 1}, "steps must lie between 2 and 200, got 1"),
        ({"steps": 201}, "steps must lie between 2 and 200, got 201"),
        ({"forward_noise": "paper"}, "forward noise.*'paper'"),
    ],
)
def test_settings_out_of_range_are_refused(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(SCHEDULE, **settings_)  # type: ignore[arg-type]
