"""One MRD image: its fixed header, its attributes, its pixels."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .wire import IMAGE, ProtocolError, Wire, numbered

# Positions and directions are those of DICOM: x to the patient's left, y to the back, z up.
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", 3),
        ("field_of_view", "<f4", 3),
        ("channels", "<u2"),
        ("position", "<f4", 3),
        ("read_dir", "<f4", 3),
        ("phase_dir", "<f4", 3),
        ("slice_dir", "<f4", 3),
        ("patient_table_position", "<f4", 3),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", 3),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", 8),
        ("user_float", "<f4", 8),
        ("attribute_string_len", "<u4"),
    ]
)
_ATTRIBUTES = np.dtype("<u8")

# What the number of a data type stands for.
DATA_TYPES = {
    number: np.dtype(name)
    for number, name in enumerate(("<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16"), 1)
}
MAGNITUDE = (0, 1)  # image types that hold magnitudes; 0 where nobody has set it

Attributes = dict[str, list[str]]


@dataclass(frozen=True)
class Limits:
    """How much one client may send.

    Attributes
    ----------
    images : int
        Images of a session.
    total : int
        Bytes of pixels and attributes of a session.
    side : int
        Pixels of an image along any axis.
    attributes : int
        Bytes of the attributes of an image.
    """

    images: int = 4096
    total: int = 128 * 2**20
    side: int = 2048
    attributes: int = 2**20


@dataclass(frozen=True, eq=False)
class Image:
    """An image as it travels.

    Attributes
    ----------
    header : ndarray of `HEADER`, shape ()
        The fixed header.
    attributes : bytes
        Meta attributes: XML, or nothing.
    pixels : ndarray, shape (channels, z, y, x)
        As stored, little-endian.
    """

    header: NDArray[Any]
    attributes: bytes
    pixels: NDArray[Any]

    def __getitem__(self, name: str) -> Any:
        """Return a field of the header."""
        return self.header[name]

    @property
    def size(self) -> int:
        """Bytes of it."""
        return self.pixels.nbytes + len(self.attributes)

    def send(self, wire: Wire) -> None:
        """Send it."""
        head = self.header.copy()
        head["attribute_string_len"] = len(self.attributes)
        length = np.array(len(self.attributes), _ATTRIBUTES).tobytes()
        front = numbered(IMAGE) + head.tobytes() + length + self.attributes
        wire.send(front, np.ascontiguousarray(self.pixels).data)


def read_image(wire: Wire, limits: Limits, left: int) -> Image:
    """Read what follows `IMAGE`.

    Parameters
    ----------
    wire : Wire
        Where it comes from.
    limits : Limits
        What is taken.
    left : int
        Bytes that the session may still send.

    Raises
    ------
    ProtocolError
        Before anything is allocated for what is too large or of no known type.
    """
    header = np.frombuffer(wire.read_into(bytearray(HEADER.itemsize)), HEADER)[0:1].reshape(())
    length = int(np.frombuffer(wire.read(_ATTRIBUTES.itemsize), _ATTRIBUTES)[0])
    if length > limits.attributes:
        raise ProtocolError(
            f"an image's attributes have {length} bytes, this server takes {limits.attributes} at "
            "most"
        )
    kind = DATA_TYPES.get(int(header["data_type"]))
    if kind is None:
        raise ProtocolError(f"an image's data type is {header['data_type']}, expected 1 to 8")
    x, y, z = (int(side) for side in header["matrix_size"])
    shape = (int(header["channels"]), z, y, x)
    if min(shape) < 1 or max(shape) > limits.side:
        raise ProtocolError(
            f"an image has the shape {shape} (channels, z, y, x), expected 1 to {limits.side} "
            "along each axis"
        )
    count = shape[0] * z * y * x * kind.itemsize
    if count + length > left:
        raise ProtocolError(
            f"the images of this session have more than {limits.total} bytes, which is all that "
            "this server takes"
        )
    attributes = wire.read(length)
    pixels = np.frombuffer(wire.read_into(bytearray(count)), kind).reshape(shape)
    return Image(header, attributes, pixels)


def read_attributes(image: Image) -> Attributes:
    """Return the meta attributes of an image, each with its values.

    Raises
    ------
    ProtocolError
        If they are not what MRD calls ``ismrmrdMeta``.
    """
    try:
        # As text: in bytes, another encoding would hide what is looked for next.
        text = image.attributes.rstrip(b"\0").decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ProtocolError("an image's attributes are not UTF-8") from None
    if not text:
        return {}
    if "<!DOCTYPE" in text:  # could make little text large
        raise ProtocolError("an image's attributes hold a document type, which no client needs")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ProtocolError(f"an image's attributes are not XML: {error}") from None
    if root.tag != "ismrmrdMeta":
        raise ProtocolError(f"an image's attributes are <{root.tag[:40]}>, expected <ismrmrdMeta>")
    found: Attributes = {}
    for entry in root.findall("meta"):
        values = [value.text or "" for value in entry.findall("value")]
        found.setdefault(entry.findtext("name", ""), []).extend(values)
    return found


def write_attributes(attributes: Attributes) -> bytes:
    """Write meta attributes as they travel."""
    root = ElementTree.Element("ismrmrdMeta")
    for name, values in attributes.items():
        entry = ElementTree.SubElement(root, "meta")
        ElementTree.SubElement(entry, "name").text = name
        for value in values:
            ElementTree.SubElement(entry, "value").text = value
    written: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return written
