"""Images become volumes: which belong together, in which order, and where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...preprocessing import Preprocessing
from ...scans.geometry import Grid, cut_channels
from ...scans.scan import image_ids
from .image import MAGNITUDE, Attributes, Image, read_attributes
from .wire import ProtocolError

FloatArray = NDArray[np.float32]
Array64 = NDArray[np.float64]

# Images that differ in one of these belong to different volumes.
_APART = ("image_series_index", "contrast", "set", "phase", "repetition", "average")
# Headers hold float32: what lies closer than this is at one place, in mm.
_SAME_PLACE = 1e-3
_SAME_DIRECTION = 1e-3
_SQUARE = 0.01  # cosine of the angle between rows and columns
_REGULAR = 0.01  # of a step, by which a slice may be off its place
_SQUARE_PIXEL = 0.001  # of its width, by which a square pixel's height may differ
_MIN_WIDTH = 16  # pixels: below it, thick slices were cut across
_TO_RAS = np.diag([-1.0, -1.0, 1.0])

Key = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Volume:
    """Images of one volume, ordered along their normal.

    Attributes
    ----------
    key : tuple of int
        Series, contrast, set, phase, repetition and average.
    images : tuple of Image
        One for each slice, or a single one that holds them all.
    attributes : tuple of dict
        The meta attributes of each image.
    affine : ndarray of float64, shape (4, 4)
        From (x, y, z) of the volume to world mm (RAS+).
    note : str
        What was assumed, if anything.
    """

    key: Key
    images: tuple[Image, ...]
    attributes: tuple[Attributes, ...]
    affine: Array64
    note: str

    @property
    def name(self) -> str:
        """What a person calls it."""
        words = ("series", "contrast", "set", "phase", "repetition", "average")
        named = [f"{word} {number}" for word, number in zip(words, self.key, strict=True)]
        return ", ".join(n for i, n in enumerate(named) if i == 0 or self.key[i])

    def stored(self) -> NDArray[Any]:
        """Its voxels, ``[z, y, x]``."""
        if len(self.images) == 1:
            return np.asarray(self.images[0].pixels[0])
        return np.stack([image.pixels[0, 0] for image in self.images])


@dataclass(frozen=True, eq=False)
class Input:
    """What the detector takes of one or more volumes, and the way back.

    Attributes
    ----------
    volumes : tuple of Volume
        One for each channel of the model.
    slices : ndarray of float32, shape (S, C, H0, W0)
        Oriented as the model expects.
    spacing : tuple of float
        Row and column pixel size in mm.
    ids : ndarray of uint64, shape (S,)
        As `berdiff infer` makes them of the same voxels in NIfTI.
    sha256 : str
        Of the stored voxels.
    grid : Grid
        Takes results to the volume's own axes.
    """

    volumes: tuple[Volume, ...]
    slices: FloatArray
    spacing: tuple[float, float]
    ids: NDArray[np.uint64]
    sha256: str
    grid: Grid

    def back(self, values: NDArray[Any]) -> NDArray[Any]:
        """Bring results ``[S, H0, W0]`` to ``[z, y, x]`` of the volume."""
        return self.grid.volume(values).transpose(2, 1, 0)


def is_for_detector(image: Image) -> bool:
    """Whether an image holds magnitudes; phase and others pass by."""
    return int(image["image_type"]) in MAGNITUDE


def group(images: Sequence[Image]) -> dict[Key, list[Image]]:
    """Say which images belong to one volume; in the order of series, contrast, set and the rest."""
    groups: dict[Key, list[Image]] = {}
    for image in images:
        groups.setdefault(tuple(int(image[name]) for name in _APART), []).append(image)
    return {key: groups[key] for key in sorted(groups)}


def make_volume(key: Key, images: Sequence[Image], expected: int | None = None) -> Volume:
    """Put images of one volume in order.

    Parameters
    ----------
    key : tuple of int
        From `group`.
    images : sequence of Image
        Magnitudes.
    expected : int, optional
        Slices that the volume must have.

    Raises
    ------
    InputError, ProtocolError
        If they do not fit together.
    """
    for image in images:
        _check_pixels(image)
    attributes = [read_attributes(image) for image in images]
    across, down = directions(images[0], attributes[0])
    first = images[0]
    for image, own in zip(images[1:], attributes[1:], strict=True):
        same = image.pixels.shape == first.pixels.shape and image.pixels.dtype == first.pixels.dtype
        same &= np.allclose(image["field_of_view"], first["field_of_view"], rtol=1e-4)
        same &= np.allclose(directions(image, own), (across, down), atol=_SAME_DIRECTION)
        if not same:
            raise InputError(
                f"series {key[0]}: its images differ in size, type of pixels, field of view or "
                "direction; send what belongs together as one series"
            )
    normal = _normal(first, across, down)
    depth = first.pixels.shape[1]
    if expected is not None and len(images) * depth != expected:
        raise InputError(
            f"series {key[0]}: got {len(images) * depth} slices, the client announced {expected}"
        )
    if depth > 1 and len(images) > 1:
        raise InputError(f"series {key[0]}: several images of {depth} slices each at one place")
    places = np.array([image["position"] for image in images], np.float64)
    order = np.argsort(places @ normal, kind="stable")
    field = np.asarray(first["field_of_view"], np.float64)
    if not (np.isfinite(field).all() and field[:2].min() > 0 and np.isfinite(places).all()):
        raise InputError(
            f"series {key[0]}: field of view {field.tolist()} mm, expected positive sizes"
        )
    if len(images) > 1:
        step = _step(places[order], normal, key)
    else:
        step = normal * (field[2] / depth if field[2] > 0 else 1.0)
    width, height, note = _pixel(field, first.pixels.shape)
    affine = np.eye(4)
    axes = np.stack([across * width, down * height, step], axis=1)
    affine[:3, :3], affine[:3, 3] = _TO_RAS @ axes, _TO_RAS @ places[order[0]]
    in_order = tuple(attributes[i] for i in order)
    return Volume(key, tuple(images[i] for i in order), in_order, affine, note)


def make_input(volumes: Sequence[Volume], preprocessing: Preprocessing) -> Input:
    """Turn volumes, one for each channel, to the model's orientation.

    Raises
    ------
    InputError
        If the volumes do not lie on one grid, or were cut in another plane.
    """
    first, pieces = volumes[0], [volume.stored() for volume in volumes]
    for volume, values in zip(volumes[1:], pieces[1:], strict=True):
        if values.shape != pieces[0].shape or not np.allclose(
            volume.affine, first.affine, rtol=0, atol=0.01
        ):
            raise InputError(
                f"{volume.name} does not lie on the grid of {first.name}: send the channels of a "
                "model with the same slices"
            )
    arrays = [values.transpose(2, 1, 0).astype(np.float32) for values in pieces]
    slices, spacing, to_file = cut_channels(arrays, first.affine, preprocessing.orientation)
    if min(slices.shape[2:]) < _MIN_WIDTH:
        raise InputError(
            f"in the model's orientation, {preprocessing.orientation}, its slices "
            f"have {slices.shape[2]} x {slices.shape[3]} pixels: it was measured in another plane"
        )
    stored = [values.data.cast("B") for values in map(np.ascontiguousarray, pieces)]
    digest = hashlib.sha256()
    for piece in stored:
        digest.update(piece)
    grid = Grid("volume", arrays[0].shape, first.affine, to_file)
    ids = image_ids(stored, len(slices))
    return Input(tuple(volumes), slices, spacing, ids, digest.hexdigest(), grid)


def choose_channels(
    volumes: Sequence[Volume], named: Sequence[str], modalities: Sequence[str]
) -> list[list[Volume]]:
    """Say which volumes the detector takes together.

    A model of one channel takes each volume by itself. A model of several takes as many volumes,
    which the client must have named: taken for another, a contrast gives a map of nonsense.

    Raises
    ------
    InputError
        If the names do not fit the volumes or the model.
    """
    if len(modalities) == 1:
        if named and tuple(named) != tuple(modalities):
            raise InputError(f"channels names {', '.join(named)}; the model takes {modalities[0]}")
        return [[volume] for volume in volumes]
    if sorted(named) != sorted(modalities):
        raise InputError(
            f"the model takes {', '.join(modalities)}: name in the parameter channels which of "
            "them the volumes are, in the order of series and contrast; got "
            + (", ".join(named) or "nothing")
        )
    if len(volumes) != len(named):
        raise InputError(f"channels names {len(named)} volumes, the session has {len(volumes)}")
    return [[volumes[list(named).index(modality)] for modality in modalities]]


def directions(image: Image, attributes: Attributes) -> tuple[Array64, Array64]:
    """Return the directions in which columns and rows of the pixels grow, as unit vectors (LPS).

    The attributes say it where they hold it: scanners turn images after the header was written.

    Raises
    ------
    InputError
        If there are none.
    """
    found = []
    for name, field in (("ImageRowDir", "read_dir"), ("ImageColumnDir", "phase_dir")):
        try:
            vector = np.array([float(value) for value in attributes.get(name, ())] or image[field])
        except ValueError:
            raise ProtocolError(f"the attribute {name} does not hold numbers") from None
        length = np.linalg.norm(vector) if vector.shape == (3,) else 0.0
        if not 0.9 < length < 1.1:
            raise InputError(
                "an image does not say how it lies: its directions are no unit vectors "
                "(read_dir and phase_dir of the header, or ImageRowDir and ImageColumnDir)"
            )
        found.append(vector.astype(np.float64) / length)
    if abs(float(found[0] @ found[1])) > _SQUARE:
        raise InputError("an image's rows and columns do not meet at right angles")
    return found[0], found[1]


def _pixel(field: Array64, shape: tuple[int, ...]) -> tuple[float, float, str]:
    """Return width and height of a pixel in mm, and what was assumed.

    A field of view is that of columns, then of rows. FIRE's `dicom2mrd.py` writes them the other
    way round, which shows where there are more of one than of the other.
    """
    rows, columns = shape[2:]
    width, height = float(field[0]) / columns, float(field[1]) / rows
    turned = float(field[1]) / columns, float(field[0]) / rows
    if _is_square(*turned) and not _is_square(width, height):
        note = (
            f"its field of view gives pixels of {width:.3g} x {height:.3g} mm, and square ones "
            "with its first two numbers swapped, as dicom2mrd.py writes them: taken so"
        )
        return *turned, note
    return width, height, ""


def _is_square(width: float, height: float) -> bool:
    return abs(width - height) <= _SQUARE_PIXEL * width


def _check_pixels(image: Image) -> None:
    if image.pixels.dtype.kind == "c":
        raise InputError("got complex pixels as a magnitude image, expected real ones")
    if image.pixels.shape[0] != 1:
        raise InputError(
            f"got an image of {image.pixels.shape[0]} coil channels, expected 1: combine them first"
        )


def _normal(image: Image, across: Array64, down: Array64) -> Array64:
    """Direction in which slices are counted."""
    normal: Array64 = np.cross(across, down)
    stated = np.asarray(image["slice_dir"], np.float64)
    along = float(stated @ normal)
    if stated.any() and not 0.99 < abs(along) < 1.01:
        raise InputError("an image's slice_dir is not at right angles to its rows and columns")
    return -normal if along < 0 else normal


def _step(places: Array64, normal: Array64, key: Key) -> Array64:
    """Step from slice to slice, of slices in order."""
    heights = places @ normal
    if np.diff(heights).min() < _SAME_PLACE:
        raise InputError(
            f"series {key[0]}: several images lie at one place, and differ neither in contrast, "
            "set, phase, repetition nor average"
        )
    step: Array64 = (places[-1] - places[0]) / (len(places) - 1)
    expected = places[0] + np.arange(len(places))[:, None] * step
    off = np.linalg.norm(places - expected, axis=1).max()
    if off > _REGULAR * np.linalg.norm(step) + _SAME_PLACE:
        raise InputError(
            f"series {key[0]}: its {len(places)} slices are not equally spaced (one is {off:.2f} "
            "mm off its place); one may be missing"
        )
    return step
