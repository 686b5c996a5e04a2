"""Which shared libraries a file needs that this machine cannot load.

Loading the file itself would tell the same, but a provider of ONNX Runtime must not be loaded by
anyone but ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2  # kinds of program headers
_END, _NEEDED, _STRINGS = 0, 1, 5  # kinds of dynamic entries


def missing_libraries(file: Path) -> list[str]:
    """Names of libraries that an ELF file needs and the loader does not find.

    Empty for a file that is not a 64-bit little-endian ELF file, as on Windows.
    """
    return [name for name in needed_libraries(file) if not _loads(name)]


def needed_libraries(file: Path) -> list[str]:
    """Names of the libraries an ELF file needs, as it states them."""
    with open(file, "rb") as stream:

        def read(fields: str, offset: int) -> tuple[int, ...]:
            stream.seek(offset)
            return struct.unpack("<" + fields, stream.read(struct.calcsize("<" + fields)))

        if stream.read(6) != b"\x7fELF\x02\x01":
            return []
        (table,) = read("Q", 32)
        size, count = read("HH", 54)
        segments = [read("IIQQQQQ", table + index * size) for index in range(count)]
        loaded = [(where, at, length) for k, _, at, where, _, length, _ in segments if k == _LOAD]
        dynamic = [(at, length) for k, _, at, _, _, length, _ in segments if k == _DYNAMIC]
        entries = [read("QQ", at) for start, n in dynamic for at in range(start, start + n, 16)]
        kinds = [kind for kind, _ in entries]
        entries = entries[: kinds.index(_END) if _END in kinds else None]
        # Addresses are those in memory: the segment that holds one tells where it is in the file.
        address = next((value for kind, value in entries if kind == _STRINGS), 0)
        strings = next((at + address - a for a, at, n in loaded if a <= address < a + n), None)
        if strings is None:
            return []
        names = []
        for kind, value in entries:
            if kind == _NEEDED:
                stream.seek(strings + value)
                names.append(stream.read(256).split(b"\0", 1)[0].decode())
        return names


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
