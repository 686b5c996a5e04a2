"""Shapes and types of the networks' inputs and outputs, as the bundle states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..cuda.networks import TENSORS


@dataclass(frozen=True)
class Tensor:
    """One input or output.

    Attributes
    ----------
    name : str
        As in the ONNX file.
    dtype : numpy dtype
        float32 or int64.
    shape : tuple of int or None
        Without the batch, or as a whole where there is none.
    batched : bool
        Whether the batch comes before `shape`.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    batched: bool = True

    def of(self, batch: int) -> tuple[int, ...]:
        """Whole shape for a batch."""
        return (batch, *self.shape) if self.batched else self.shape


def network_tensors(bundle: Bundle) -> dict[str, tuple[Tensor, ...]]:
    """Inputs, then the output, of every network of a bundle."""
    pre, code = bundle.manifest.preprocessing, bundle.manifest.code
    image = (pre.channels, *pre.size)
    bits = (code.channels, code.height, code.width)

    def tensor(name: str) -> Tensor:
        if name == "t":
            return Tensor(name, np.dtype(np.int64), (1,), batched=False)
        return Tensor(name, np.dtype(np.float32), image if name == "image" else bits)

    return {network: tuple(map(tensor, names)) for network, names in TENSORS.items()}
