"""The noise schedule and the choice of reverse steps (METHOD: Bernoulli diffusion, respacing)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Schedule:
    """Cumulative noise levels of a diffusion process, possibly a respaced subset of one.

    Attributes
    ----------
    abar : ndarray of float64, shape (T,)
        Cumulative product of ``1 - beta`` up to and including each kept step.
    timesteps : ndarray of int64, shape (T,)
        The original step each kept step stands for; this is what the denoiser is told.
    """

    abar: NDArray[np.float64]
    timesteps: NDArray[np.int64]

    @classmethod
    def linear(
        cls, num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> Schedule:
        """Linear betas (Ho et al. 2020), scaled by ``1000 / num_timesteps`` as upstream does."""
        if num_timesteps < 2:
            raise ValueError(f"a schedule needs at least 2 timesteps, got {num_timesteps}")
        scale = 1000 / num_timesteps
        betas = np.linspace(scale * beta_start, scale * beta_end, num_timesteps, dtype=np.float64)
        if not (0 < betas.min() and betas.max() < 1):
            raise ValueError(f"betas must lie in (0, 1), got {betas.min():g} to {betas.max():g}")
        return cls(
            np.cumprod(1 - betas, dtype=np.float64), np.arange(num_timesteps, dtype=np.int64)
        )

    def __len__(self) -> int:
        """Return the number of kept steps."""
        return len(self.abar)

    def respaced(self, keep: Sequence[int]) -> Schedule:
        """Keep a subset of the steps (indices into this schedule, strictly increasing)."""
        index = np.asarray(keep, dtype=np.int64)
        if index.size == 0 or index[0] < 0 or index[-1] >= len(self) or np.any(np.diff(index) < 1):
            raise ValueError(f"kept steps must increase within 0..{len(self) - 1}, got {keep}")
        return Schedule(self.abar[index], self.timesteps[index])

    def evenly_respaced(self, count: int) -> Schedule:
        """Keep `count` steps from first to last, as upstream's ``timestep_respacing=[count]``."""
        return self.respaced(spread(count, len(self)))

    def alpha_between(self, step: int, previous: int) -> float:
        """Return a = abar[step] / abar[previous], the alpha of one reverse step."""
        return float(self.abar[step] / self.abar[previous])


def spread(count: int, stop: int) -> list[int]:
    """Spread `count` steps over ``[0, stop)``, both ends included: ``round(i (stop-1)/(count-1))``.

    Raises
    ------
    ValueError
        If `count` is not between 2 and `stop` (or 1 where `stop` is 1).
    """
    if stop == 1 and count == 1:
        return [0]
    if not 2 <= count <= stop:
        raise ValueError(f"steps must lie between 2 and {stop}, got {count}")
    return [round(i * (stop - 1) / (count - 1)) for i in range(count)]
