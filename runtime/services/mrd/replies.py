"""What was found becomes MRD images that lie where their originals do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from berdiff import __version__

from ...bundle import Bundle
from ...detection import ScanDetection
from ...errors import InputError
from ...manifest import SamplingDefaults
from ...provenance import NOTICE
from .image import DATA_TYPES, Attributes, Image, write_attributes
from .parameters import Request
from .volumes import Input, Volume, directions

# Pixels that stand for the highest value there can be. Half of what 16 bits hold: some clients take
# them for signed.
TOP = 2**15 - 1
_TYPES = {dtype: number for number, dtype in DATA_TYPES.items()}


@dataclass(frozen=True)
class Context:
    """What all replies of a session have in common.

    Attributes
    ----------
    bundle : Bundle
        The detector's.
    request : Request
        What was asked for.
    settings : SamplingDefaults
        Of the loop.
    """

    bundle: Bundle
    request: Request
    settings: SamplingDefaults


@dataclass(frozen=True, eq=False)
class _Result:
    """One kind of result of one volume: values ``[z, y, x]``, and the value that `TOP` means."""

    kind: str
    volume: Volume
    values: NDArray[Any]
    highest: float
    window: float


class SeriesNumbers:
    """Numbers of new series: one for each series that came and each kind of result."""

    def __init__(self, used: Sequence[int]) -> None:
        self._next = max(used) + 1
        self._given: dict[tuple[int, str], int] = {}

    def of(self, series: int, kind: str) -> int:
        """Return the number of a kind of result of a series.

        Raises
        ------
        InputError
            If there is none left.
        """
        number = self._given.setdefault((series, kind), self._next)
        if number == self._next:
            if number >= 2**16:
                raise InputError("no image_series_index above the session's own is left")
            self._next += 1
        return number


def make_replies(
    given: Input, found: ScanDetection, context: Context, numbers: SeriesNumbers
) -> Iterator[Image]:
    """Make the images that go back for one input, a result after the other."""
    facts = _facts(found, context)
    for result in _results(given, found, context):
        series = numbers.of(result.volume.key[0], result.kind)
        yield from _images(result, series, facts, context.request)


def _results(given: Input, found: ScanDetection, context: Context) -> Iterator[_Result]:
    first, request = given.volumes[0], context.request
    shares = context.settings.anomaly_map == "flips"
    highest = 1.0 if shares else float(len(given.volumes))
    window = min(2 * found.threshold, highest)
    yield _Result("anomaly", first, given.back(found.anomaly_map), highest, window)
    if request.sendflips:
        yield _Result("flips", first, given.back(found.flip_map), 1.0, 1.0)
    if request.sendmask:
        yield _Result("mask", first, given.back(found.mask), TOP, 1.0)
    if request.sendreconstruction:
        for channel, volume in enumerate(given.volumes):
            values = given.back(found.reconstruction[:, channel])
            yield _Result("reconstruction", volume, values, 1.0, 1.0)


def _facts(found: ScanDetection, context: Context) -> Attributes:
    """What every reply says about how it came about."""
    settings, bundle = context.settings, context.bundle
    facts = {
        "BerdiffVersion": __version__,
        "BerdiffModel": bundle.manifest.name,
        "BerdiffBundle": bundle.digest,
        "BerdiffMap": settings.anomaly_map,
        "BerdiffSeed": context.request.seed or 0,
        "BerdiffNoiseLevel": settings.noise_level,
        "BerdiffSteps": settings.steps or settings.noise_level,
        "BerdiffFlipThreshold": settings.flip_threshold,
        "BerdiffThreshold": f"{found.threshold:.6g}",
        "BerdiffThresholdSource": found.threshold_source,
        "BerdiffScore": f"{found.score:.6g}",
        "BerdiffVerdict": found.verdict,
    }
    return {name: [str(value)] for name, value in facts.items()}


def _images(result: _Result, series: int, facts: Attributes, request: Request) -> Iterator[Image]:
    """One image for each that came, on its place."""
    whole = len(result.volume.images) == 1
    scaled = request.maptype == "uint16" or result.kind == "mask"
    step = result.highest / TOP if scaled else 1.0
    values = result.values.astype("<f4")
    if scaled:
        values = np.rint(np.clip(values / step, 0, TOP)).astype("<u2")
    worth = f"{result.kind}, value = pixel x {step:.6g}"
    own = {
        "DataRole": ["Image", "Quantitative"],
        "ImageProcessingHistory": ["BERDIFF"],
        "SeriesDescriptionAdditional": [f"_berdiff_{result.kind}"],
        "SequenceDescriptionAdditional": [f"berdiff_{result.kind}"],
        "ImageComments": [f"{NOTICE}; {worth}"],
        "ImageComment": [NOTICE, worth],  # some clients look for this name, and join its values
        # An original's own would be applied to the map, whose window is in pixels.
        "RescaleSlope": ["1"],
        "RescaleIntercept": ["0"],
        "WindowCenter": [f"{result.window / step / 2:.6g}"],
        "WindowWidth": [f"{max(result.window / step, 1.0 if scaled else 1e-6):.6g}"],
        "Keep_image_geometry": ["1"],
        "BerdiffScale": [f"{step:.9g}"],
        **facts,
    }
    pairs = zip(result.volume.images, result.volume.attributes, strict=True)
    for number, (image, before) in enumerate(pairs):
        pixels = values[None] if whole else values[None, number : number + 1]
        header = image.header.copy()
        header["data_type"] = _TYPES[pixels.dtype]
        header["image_type"] = 1
        header["image_series_index"] = series
        attributes = write_attributes({**_lies(image, before), **own})
        yield Image(header, attributes, np.ascontiguousarray(pixels))


def _lies(image: Image, attributes: Attributes) -> Attributes:
    """Attributes that came, with the directions that some clients look for only there."""
    named = zip(("ImageRowDir", "ImageColumnDir"), directions(image, attributes), strict=True)
    return {**{name: [f"{value:.9f}" for value in vector] for name, vector in named}, **attributes}
