"""The masked Bernoulli sampling loop (Wolleb et al. 2024), with state and noise made explicit.

The whole method is `Sampler.init` and `Sampler.step`; every array is float32 and the order of the
float32 operations is part of the specification, so that other devices can reproduce it exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .schedule import Schedule, spread

FloatArray = NDArray[np.float32]
FlipProbability = Callable[[FloatArray, int], FloatArray]
Noise = Callable[[int, tuple[int, ...]], FloatArray]
ForwardNoise = Literal["bernoulli", "upstream"]

_ONE = np.float32(1)


@dataclass(frozen=True)
class State:
    """Where the loop stands between two steps.

    Attributes
    ----------
    z_org : ndarray of float32, shape (N, K, h, w)
        The image's own code, 0 or 1.
    z : ndarray of float32, shape (N, K, h, w)
        The current code: 0 or 1 while steps remain, then soft in [0, 1].
    mask : ndarray of bool, shape (N, K, h, w)
        Bits that any step so far wanted to flip.
    flips : ndarray of float32, shape (N, K, h, w)
        Sum over the steps so far of the probability, in [0, 1], that the healthy bit differs from
        the image's own bit.
    remaining : int
        Reverse steps still to take; 0 when `z` is the result.
    """

    z_org: FloatArray
    z: FloatArray
    mask: NDArray[np.bool_]
    flips: FloatArray
    remaining: int


class Coefficients(NamedTuple):
    """Factors of one reverse step's posterior, rounded to float32 once.

    Attributes
    ----------
    alpha, alpha_rest : float32
        1 - beta of the step, and (1 - alpha) / 2.
    abar, abar_rest : float32
        Cumulative alpha of the step before, and (1 - abar) / 2.
    """

    alpha: np.float32
    alpha_rest: np.float32
    abar: np.float32
    abar_rest: np.float32

    @classmethod
    def of(cls, alpha: float, abar: float) -> Coefficients:
        """Round; the differences are taken in float64."""
        values = alpha, (1 - alpha) / 2, abar, (1 - abar) / 2
        return cls(*map(np.float32, values))


@dataclass(frozen=True)
class Sampler:
    """Settings of the loop.

    Attributes
    ----------
    schedule : Schedule
        The (possibly respaced) schedule whose steps `noise_level` counts.
    noise_level : int
        L: the code is noised to this step and walked back from the one below, 1 <= L < T.
    steps : int or None
        Number of reverse steps, spread over ``[0, L)``; None takes every step.
    flip_threshold : float
        P: a bit whose flip probability ever exceeds it is released from the image's own code.
    forward_noise : {"bernoulli", "upstream"}
        "bernoulli" is the paper's B(abar z + (1 - abar) / 2); "upstream" is what the authors' code
        trains with, B(abar z), and what its checkpoints expect.
    """

    schedule: Schedule
    noise_level: int = 200
    steps: int | None = None
    flip_threshold: float = 0.5
    forward_noise: ForwardNoise = "bernoulli"
    kept: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Check the settings and choose the kept steps, ascending."""
        if not 1 <= self.noise_level < len(self.schedule):
            raise ValueError(
                f"noise level must lie between 1 and {len(self.schedule) - 1}, "
                f"got {self.noise_level}"
            )
        if not 0 <= self.flip_threshold <= 1:
            raise ValueError(f"flip threshold must lie in [0, 1], got {self.flip_threshold}")
        if self.forward_noise not in get_args(ForwardNoise):
            raise ValueError(
                f"forward noise must be one of {', '.join(get_args(ForwardNoise))}, "
                f"got {self.forward_noise!r}"
            )
        count = self.noise_level if self.steps is None else self.steps
        object.__setattr__(self, "kept", tuple(spread(count, self.noise_level)))

    def forward(self) -> tuple[int, np.float32, np.float32]:
        """Return the step noised to, and keep and floor of q(z_L = 1 | z) = keep z + floor."""
        abar = self.schedule.abar[self.noise_level]
        floor = 0 if self.forward_noise == "upstream" else (1 - abar) / 2
        timestep = int(self.schedule.timesteps[self.noise_level])
        return timestep, np.float32(abar), np.float32(floor)

    def reverse(self, index: int) -> tuple[int, Coefficients | None]:
        """Return timestep and posterior of the reverse step before which `index` others remain.

        The last step, index 0, has no posterior: nothing is drawn.
        """
        step = self.kept[index]
        timestep = int(self.schedule.timesteps[step])
        if index == 0:
            return timestep, None
        previous = self.kept[index - 1]
        alpha = self.schedule.alpha_between(step, previous)
        return timestep, Coefficients.of(alpha, float(self.schedule.abar[previous]))

    def init(self, z_org: FloatArray, noise: Noise) -> State:
        """Noise the code to step L: z ~ q(z_L | z_org).

        Parameters
        ----------
        z_org : ndarray of float32, shape (N, K, h, w)
            The image's own code, 0 or 1.
        noise : callable
            ``noise(timestep, shape)`` returns float32 uniforms in [0, 1).
        """
        z_org = np.asarray(z_org, np.float32)
        timestep, keep, floor = self.forward()
        z = noise(timestep, z_org.shape) < keep * z_org + floor
        return State(
            z_org=z_org,
            z=z.astype(np.float32),
            mask=np.zeros(z_org.shape, np.bool_),
            flips=np.zeros(z_org.shape, np.float32),
            remaining=len(self.kept),
        )

    def step(self, state: State, flip_probability: FlipProbability, noise: Noise) -> State:
        """Take one reverse step.

        Parameters
        ----------
        state : State
            Left unchanged; ``state.remaining`` must be positive.
        flip_probability : callable
            ``flip_probability(z, timestep)`` returns the denoiser's float32 output in [0, 1].
        noise : callable
            As for `init`. Not called on the last step, which draws nothing.
        """
        if state.remaining < 1:
            raise ValueError("the loop has ended: no step remains")
        index = state.remaining - 1
        timestep, coefficients = self.reverse(index)

        eps = flip_probability(state.z, timestep)
        z0 = np.abs(state.z - eps)  # what the denoiser takes for the healthy code
        flips = state.flips + np.abs(z0 - state.z_org)
        if coefficients is None:
            return State(state.z_org, z0, state.mask, flips, 0)

        # What nobody wants to flip stays as it was: anatomy is kept.
        mask = state.mask | (eps > np.float32(self.flip_threshold))
        z0 = np.where(mask, z0, state.z_org)
        probability = posterior(state.z, z0, coefficients)
        z = (noise(timestep, z0.shape) < probability).astype(np.float32)
        return State(state.z_org, z, mask, flips, index)

    def run(self, z_org: FloatArray, flip_probability: FlipProbability, noise: Noise) -> State:
        """Noise a code and walk it all the way back; see `init` and `step`."""
        state = self.init(z_org, noise)
        while state.remaining:
            state = self.step(state, flip_probability, noise)
        return state


def posterior(z: FloatArray, z0: FloatArray, coefficients: Coefficients) -> FloatArray:
    """Probability that the previous bit is 1: q(z_{t-1} = 1 | z_t, z_0) for a soft z_0.

    Wang et al. 2023, eq. 8, extended to z_0 in [0, 1].

    Parameters
    ----------
    z : ndarray of float32
        Current bits z_t, 0 or 1.
    z0 : ndarray of float32
        Predicted clean bits, in [0, 1].
    coefficients : Coefficients
        Of the step.
    """
    a, a_rest, b, b_rest = coefficients
    one = (a * z + a_rest) * (b * z0 + b_rest)
    zero = (a * (_ONE - z) + a_rest) * (b * (_ONE - z0) + b_rest)
    return one / (one + zero)
