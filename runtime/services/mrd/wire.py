"""Bytes on an MRD socket: numbered messages, read and written within bounds and within time.

Everything is little-endian. A message is a number (u16) and what its kind brings; there is no
length in front, so whoever loses count can only hang up.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable

from ...errors import BerdiffError

CONFIG_FILE = 1
CONFIG_TEXT = 2
HEADER = 3
CLOSE = 4
TEXT = 5
ACQUISITION = 1008
IMAGE = 1022
WAVEFORM = 1026

_NUMBER = struct.Struct("<H")
_LENGTH = struct.Struct("<I")
_CONFIG_NAME = 1024  # bytes, filled up with zeros
_WAVEFORM_HEADER = struct.Struct("<28x2H8x")  # of all of it: how many samples, how many channels
_PIECE = 2**16
_LISTEN = 0.2  # seconds between two looks at whether the wait is still wanted
_LINGER = 5.0  # seconds in which a client may read why it was refused


class ProtocolError(BerdiffError):
    """A client that sends what the protocol, or this server, does not allow."""


class Vanished(Exception):
    """The other side is gone, or gave no sign of life for too long."""


class Wire:
    """One connection.

    Parameters
    ----------
    peer : socket.socket
        Connected.
    idle : float
        Seconds for which a client may send nothing between two messages: a scanner measures
        in that time.
    patience : float
        Seconds within which a message that has begun must be there, or be taken; and the first
        one must begin.
    max_text : int
        Bytes of a text.
    wanted : callable
        Asked while nothing comes; False ends the wait.
    """

    def __init__(
        self,
        peer: socket.socket,
        idle: float,
        patience: float,
        max_text: int,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._peer = peer
        self._idle = idle
        self._patience = patience
        self._max_text = max_text
        self._wanted = wanted
        self._end = 0.0

    def next_number(self, first: bool = False) -> int:
        """Wait for a message, and return its number.

        Parameters
        ----------
        first : bool
            Whether nothing has come yet: who only connects must not hold a place for long.

        Raises
        ------
        Vanished
            If none comes.
        """
        self._end = time.monotonic() + (self._patience if first else self._idle)
        byte = self._some(1, self._wanted)
        self._end = time.monotonic() + self._patience
        return int(_NUMBER.unpack(byte + self.read(1))[0])

    def read(self, count: int) -> bytes:
        """Read exactly so many bytes of the message that has begun."""
        return bytes(self.read_into(bytearray(count)))

    def read_into(self, target: bytearray) -> bytearray:
        """Fill a buffer with the message that has begun."""
        view, done = memoryview(target), 0
        while done < len(view):
            piece = self._some(min(_PIECE, len(view) - done))
            view[done : done + len(piece)] = piece
            done += len(piece)
        return target

    def config_name(self) -> str:
        """Read what follows `CONFIG_FILE`."""
        return _text(self.read(_CONFIG_NAME), "the name of the configuration")

    def text(self, what: str) -> str:
        """Read a text that follows its length."""
        length = _LENGTH.unpack(self.read(_LENGTH.size))[0]
        if length > self._max_text:
            raise ProtocolError(
                f"{what} has {length} bytes, this server takes {self._max_text} at most"
            )
        return _text(self.read(length), what)

    def skip_waveform(self) -> None:
        """Read past what follows `WAVEFORM`."""
        samples, channels = _WAVEFORM_HEADER.unpack(self.read(_WAVEFORM_HEADER.size))
        left = 4 * samples * channels
        while left:
            left -= len(self._some(min(_PIECE, left)))

    def send(self, *parts: bytes | memoryview) -> None:
        """Send a message, in pieces that follow its number.

        Raises
        ------
        Vanished
            If the client does not take it.
        """
        self._end = time.monotonic() + self._patience
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                try:
                    self._peer.settimeout(self._left())
                    view = view[self._peer.send(view[:_PIECE]) :]
                except OSError as error:
                    raise Vanished("the client took no answer") from error

    def send_text(self, text: str) -> None:
        """Send a text."""
        data = text.encode() + b"\0"
        self.send(_NUMBER.pack(TEXT) + _LENGTH.pack(len(data)) + data)

    def send_close(self) -> None:
        """Say that nothing more comes."""
        self.send(_NUMBER.pack(CLOSE))

    def hang_up(self) -> None:
        """Close, in a way that lets the client read what was sent last.

        With unread bytes in the socket, closing at once would make the system throw away what the
        client has not read yet.
        """
        with contextlib.suppress(OSError, Vanished):
            self._peer.shutdown(socket.SHUT_WR)
            self._end = time.monotonic() + _LINGER
            while True:
                self._some(_PIECE)
        self._peer.close()

    def _some(self, most: int, wanted: Callable[[], bool] | None = None) -> bytes:
        """Read what there is, at least a byte."""
        while True:
            left = self._left()
            try:
                self._peer.settimeout(min(left, _LISTEN) if wanted else left)
                piece = self._peer.recv(most)
            except TimeoutError:
                if wanted and not wanted():
                    raise Vanished("the server stops") from None
                continue
            except OSError as error:
                raise Vanished("the connection broke") from error
            if not piece:
                raise Vanished("the client hung up")
            return piece

    def _left(self) -> float:
        left = self._end - time.monotonic()
        if left <= 0:
            raise Vanished("nothing came in time")
        return left


def numbered(number: int) -> bytes:
    """Return the number of a message as it is sent."""
    return _NUMBER.pack(number)


def _text(data: bytes, what: str) -> str:
    try:
        return data.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not UTF-8") from None
