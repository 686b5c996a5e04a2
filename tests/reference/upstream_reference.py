"""What upstream's own code computed on a CPU; the folder is not part of the project."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """Arrays by name, and the inputs they were computed from."""

    folder: Path
    arrays: dict[str, Array] = field(default_factory=dict)

    diffusion_times = np.array([137, 900])

    def __getitem__(self, name: str) -> Array:
        if not self.arrays:
            with np.load(self.folder / "reference_brats.npz") as file:
                self.arrays.update(file)
        return self.arrays[name]

    def shapes(self, network: str) -> dict[str, tuple[int, ...]]:
        """Parameter shapes of "ae" or "unet"."""
        described = json.loads((self.folder / "reference_brats.json").read_text())
        return {name: tuple(shape) for name, shape in described[network].items()}

    @staticmethod
    def _uniform(key: int) -> NDArray[np.float32]:
        generator = np.random.Generator(np.random.Philox(key=key))
        return generator.random((2, 128, 32, 32), np.float32)

    @property
    def z0(self) -> Array:
        return self._uniform(1000) < 0.5

    @property
    def zt(self) -> Array:
        return self._uniform(1001) < 0.5

    @property
    def soft_z0(self) -> Array:
        return self._uniform(1002)

    @property
    def code(self) -> Array:
        return np.unpackbits(self["code_packed"]).reshape(1, 128, 32, 32)

    def mask(self, loop: str) -> Array:
        return np.unpackbits(self[f"loop_{loop}_mask"]).reshape(1, 128, 32, 32).astype(bool)
