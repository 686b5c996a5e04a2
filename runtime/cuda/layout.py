"""What the loop keeps in device memory, and the records its kernels read there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..manifest import CodeKind
from ..sampler import Sampler
from .kernels import SETTINGS_DTYPE, STEP_DTYPE

ALIGNMENT = 256


@dataclass(frozen=True)
class Layout:
    """Sizes that every array of the loop follows from.

    Attributes
    ----------
    channels, height, width : int
        Of the images.
    code_channels, code_height, code_width : int
        Of the code.
    timesteps : int
        T, the largest number of reverse steps.
    """

    channels: int
    height: int
    width: int
    code_channels: int
    code_height: int
    code_width: int
    timesteps: int

    @classmethod
    def of(cls, bundle: Bundle) -> Layout:
        """Take the sizes from a bundle."""
        manifest = bundle.manifest
        pre, code = manifest.preprocessing, manifest.code
        return cls(
            *(pre.channels, *pre.size),
            *(code.channels, code.height, code.width),
            manifest.schedule.num_timesteps,
        )

    @property
    def pixels(self) -> int:
        """Pixels of an image, H W."""
        return self.height * self.width

    @property
    def positions(self) -> int:
        """Positions of a code, h w."""
        return self.code_height * self.code_width

    @property
    def bits(self) -> int:
        """Bits of a code, K h w."""
        return self.code_channels * self.positions

    def arrays(self, batch: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of every array of the loop for a batch, by name."""
        image = (batch, self.channels, self.height, self.width)
        code = (batch, self.code_channels, self.code_height, self.code_width)
        plane = (batch, self.height, self.width)
        return {
            "settings": ((1,), SETTINGS_DTYPE),
            "steps": ((self.timesteps,), STEP_DTYPE),
            "cursor": ((1,), np.int32),
            "t": ((1,), np.int64),
            "ids": ((batch,), np.uint64),
            "unsound": ((batch,), np.int32),
            "answer": (code, np.float32),  # bit probabilities, then flip probabilities
            "code": (code, np.float32),
            "state": (code, np.uint8),
            "flips": (code, np.float32),
            "image": (image, np.float32),
            "decoded": (image, np.float32),
            "unchanged": (image, np.float32),
            "difference": (plane, np.float32),
            "map": (plane, np.float32),
            "flip_mean": ((batch, self.code_height, self.code_width), np.float32),
            "reconstruction": (image, np.float32),
        }

    def nbytes(self, batch: int) -> int:
        """Bytes of all arrays of a batch."""
        return sum(self.offsets(batch)[1].values())

    def offsets(self, batch: int) -> tuple[dict[str, int], dict[str, int]]:
        """Where each array starts in one block of memory, and how many bytes it takes there."""
        starts, sizes, end = {}, {}, 0
        for name, (shape, dtype) in self.arrays(batch).items():
            size = math.prod(shape) * np.dtype(dtype).itemsize
            starts[name] = end
            sizes[name] = -(-size // ALIGNMENT) * ALIGNMENT
            end += sizes[name]
        return starts, sizes


def settings_record(seed: int, sampler: Sampler, code: CodeKind) -> NDArray[Any]:
    """What the kernels know of a run, as one record of `SETTINGS_DTYPE`."""
    timestep, keep, floor = sampler.forward()
    record = np.zeros(1, SETTINGS_DTYPE)
    record["seed_low"], record["seed_high"] = seed & 0xFFFFFFFF, seed >> 32
    record["forward_step"] = timestep
    record["sample_code"] = code == "sample"
    record["keep"], record["floor"] = keep, floor
    record["flip_threshold"] = np.float32(sampler.flip_threshold)
    record["kept"] = np.float32(len(sampler.kept))
    return record


def step_records(sampler: Sampler) -> NDArray[Any]:
    """Every reverse step in the order it is taken, as records of `STEP_DTYPE`."""
    records = np.zeros(len(sampler.kept), STEP_DTYPE)
    for record, index in zip(records, reversed(range(len(sampler.kept))), strict=True):
        timestep, coefficients = sampler.reverse(index)
        record["timestep"] = timestep
        if coefficients is not None:  # the last step draws nothing
            for name, value in coefficients._asdict().items():
                record[name] = value
    return records
