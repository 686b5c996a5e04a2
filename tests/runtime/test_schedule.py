"""The noise schedule: choosing steps keeps cumulative noise and original step numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from berdiff.runtime.schedule import Schedule, spread


@settings(deadline=None)
@given(num_timesteps=st.integers(21, 2000))
def test_a_longer_schedule_ends_at_about_the_same_noise(num_timesteps: int) -> None:
    """The betas are scaled by 1000/T, so that the last abar stays within a factor of e."""
    schedule = Schedule.linear(num_timesteps)
    assert len(schedule) == num_timesteps
    assert schedule.abar.dtype == np.float64
    assert np.all(np.diff(schedule.abar) < 0)
    assert schedule.abar[0] == 1 - 1000 / num_timesteps * 1e-4
    assert schedule.abar[-1] < np.exp(-10)
    np.testing.assert_array_equal(schedule.timesteps, np.arange(num_timesteps))


@settings(deadline=None)
@given(st.data())
def test_respacing_keeps_abar_and_the_original_steps(data: st.DataObject) -> None:
    schedule = Schedule.linear()
    keep = sorted(data.draw(st.sets(st.integers(0, 999), min_size=2, max_size=20)))
    shorter = schedule.respaced(keep)
    assert shorter.timesteps.tolist() == keep
    np.testing.assert_array_equal(shorter.abar, schedule.abar[keep])
    # The alpha of one long step is the product of those it leaps over.
    betas = np.linspace(1e-4, 0.02, 1000)
    product = np.prod(1 - betas[keep[0] + 1 : keep[1] + 1])
    assert shorter.alpha_between(1, 0) == pytest.approx(product, rel=1e-12)
    # Respacing twice is choosing among the original steps.
    assert shorter.respaced([1]).timesteps.tolist() == keep[1:2]


@settings(deadline=None)
@given(st.data())
def test_spread_steps_increase_from_end_to_end(data: st.DataObject) -> None:
    stop = data.draw(st.integers(2, 1200))
    count = data.draw(st.integers(2, stop))
    steps = spread(count, stop)
    assert len(steps) == count
    assert (steps[0], steps[-1]) == (0, stop - 1)
    gaps = np.diff(steps)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1 or count == 2  # even, but for rounding to whole steps


def test_every_step_is_kept_where_none_is_left_out() -> None:
    assert spread(7, 7) == list(range(7))
    assert spread(1, 1) == [0]


def test_upstreams_respacing() -> None:
    """``timestep_respacing=[5]`` of 1000 steps."""
    assert Schedule.linear().evenly_respaced(5).timesteps.tolist() == [0, 250, 500, 749, 999]


@pytest.mark.parametrize(("count", "stop"), [(0, 5), (1, 5), (6, 5), (2, 1), (-3, 5)])
def test_steps_that_do_not_fit_are_refused(count: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and {stop}, got {count}"):
        spread(count, stop)


@pytest.mark.parametrize("keep", [[], [-1, 5], [3, 1000], [4, 4], [5, 2]])
def test_only_increasing_steps_of_the_schedule_can_be_kept(keep: list[int]) -> None:
    with pytest.raises(ValueError, match=r"within 0\.\.999"):
        Schedule.linear().respaced(keep)


@pytest.mark.parametrize(
    "arguments", [(1,), (0,), (10,), (1000, 0.0), (1000, -1e-4), (1000, 1e-4, 1.0)]
)
def test_schedules_without_valid_betas_are_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"betas must lie in|at least 2"):
        Schedule.linear(*arguments)  # type: ignore[arg-type]
