"""What a precision is made from and judged by: the networks in float32, and healthy images."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from berdiff.runtime.backends import open_backend
from berdiff.runtime.bundle import Bundle
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.sampler import FloatArray

from .calibration_set import IMAGES, calibration_images, calibration_set
from .quantize import quantize_graph

# Of the healthy slices, so many judge; the others tell int8 its ranges. Where there are too few,
# all do both.
JUDGED = 8
FEW = 2 * JUDGED


def read_healthy(folder: Path, preprocessing: Preprocessing) -> FloatArray:
    """Read healthy slices, spread over the scans of a folder.

    Raises
    ------
    InputError
        If there is no scan, or one that was chosen cannot be used.
    """
    return calibration_images(Path(folder), preprocessing, IMAGES + JUDGED)


@dataclass(frozen=True, eq=False)
class Reference:
    """The networks in float32, and healthy images.

    Attributes
    ----------
    bundle : Bundle
        In float32; it needs no golden vectors.
    images : ndarray of float32, shape (N, C, H, W)
        On the model's grid, in [0, 1].
    """

    bundle: Bundle
    images: FloatArray

    @property
    def judged(self) -> FloatArray:
        """Images on which a precision is compared with float32."""
        return self.images[self._judged()]

    @property
    def ranged(self) -> FloatArray:
        """Images on which the ranges of int8 are measured."""
        if len(self.images) < FEW:
            return self.images
        return np.delete(self.images, self._judged(), axis=0)

    def _judged(self) -> list[int]:
        count = min(JUDGED, len(self.images))
        return [index * len(self.images) // count for index in range(count)]

    def quantise(self, folder: Path) -> None:
        """Write the graphs, the denoiser in int8.

        Encoder and decoder stay in float32: they run once per image, and rounding them costs far
        more agreement than rounding the denoiser.
        """
        with open_backend(self.bundle) as backend:
            inputs = calibration_set(self.bundle, backend, self.ranged)
        shutil.copytree(self.bundle.path / "onnx", folder)
        name = "onnx/denoiser.onnx"
        quantize_graph(self.bundle.file(name), folder / Path(name).name, inputs.feeds())
