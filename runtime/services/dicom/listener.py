"""pynetdicom's server with bounds that it does not set: on PDUs, objects, connections and time.

pynetdicom reads a PDU as long as its length says (4 GiB), gathers objects and commands without a
limit, and shakes hands for TLS before it accepts the next connection.
"""

from __future__ import annotations

import socketserver
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any

from ...errors import BerdiffError, optional

# A request for an association with every context that the standard permits stays below this.
_LEAST_PDU = 2**18
_MOST_COMMAND = 2**16  # bytes of a command; those of the standard have a few hundred
_UNGREETED = 16  # connections beyond the limit that are told so, politely
_COMMAND = 1  # bit of a fragment's control header


@dataclass(frozen=True)
class Bounds:
    """What a peer may ask of us.

    Attributes
    ----------
    pdu : int
        Bytes of a PDU.
    message : int
        Bytes that may have come and not been taken up: an object and its command.
    seconds : float
        Time for a PDU to come whole, and to shake hands for TLS.
    """

    pdu: int
    message: int
    seconds: float


class Limits:
    """Closes a connection of pynetdicom whose peer goes beyond the bounds.

    Parameters
    ----------
    connection : pynetdicom.transport.AssociationSocket
        It reads through this from now on.
    bounds : Bounds
        The bounds.
    """

    def __init__(self, connection: Any, bounds: Bounds) -> None:
        self._connection = connection
        self._bounds = bounds
        self._pending = self._command = 0
        connection.recv = self._receive
        connection.limits = self

    @staticmethod
    def of(association: Any) -> Limits:
        """Those of an association."""
        limits: Limits = association.dul.socket.limits
        return limits

    def taken_up(self) -> None:
        """Forget what came: all of it was taken up."""
        self._pending = self._command = 0

    def count(self, fragments: Any) -> None:
        """Count the bytes of commands among fragments."""
        values = [item.presentation_data_value for item in fragments]
        self._command += sum(len(v) for v in values if v and v[0] & _COMMAND)

    def _receive(self, count: int) -> bytearray:
        self._pending += count
        if count > max(self._bounds.pdu + 6, _LEAST_PDU):
            raise OSError("a PDU is larger than what was agreed")
        if self._pending > self._bounds.message or self._command > _MOST_COMMAND:
            raise OSError("a message is larger than allowed")
        limit, received = time.monotonic() + self._bounds.seconds, bytearray()
        while len(received) < count:
            left = limit - time.monotonic()
            if left <= 0:
                raise TimeoutError("a PDU does not end")
            self._connection.socket.settimeout(left)
            part = self._connection.socket.recv(min(count - len(received), 2**16))
            if not part:
                break
            received += part
        return received


def start_listener(entity: Any, address: tuple[str, int], bounds: Bounds, **options: Any) -> Any:
    """Listen for associations; see `pynetdicom.AE.make_server` for the options.

    Returns
    -------
    AssociationServer
        Serving in threads of its own, until its ``shutdown`` is called.
    """
    transport = optional("pynetdicom.transport", "dicom")
    server = entity.make_server(address, server_class=_server(transport, bounds), **options)
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    return server


def _server(transport: Any, bounds: Bounds) -> type:
    class Server(transport.ThreadedAssociationServer):
        daemon_threads = True
        greeting = 0  # connections that have no association yet
        request_queue_size = 64

        def get_request(self) -> Any:
            """Accept, and shake hands for TLS later, in a thread."""
            return self.socket.accept()

        def verify_request(self, request: Any, client_address: Any) -> bool:
            there = len(self.active_associations) + self.greeting
            return there < self.ae.maximum_associations + _UNGREETED

        def process_request(self, request: Any, client_address: Any) -> None:
            self.greeting += 1
            super().process_request(request, client_address)

        def finish_request(self, request: Any, client_address: Any) -> None:
            try:
                request.settimeout(bounds.seconds)
                if self.ssl_context:
                    request = self.ssl_context.wrap_socket(request, server_side=True)
                super().finish_request(request, client_address)
            finally:
                self.greeting -= 1

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Who cannot greet is let go; it is no error of ours."""

        def shutdown(self) -> None:
            socketserver.BaseServer.shutdown(self)
            self.server_close()
            for association in self.active_associations:
                association.abort()

    return Server


def server_context(certificate: str, key: str, authorities: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, for peers that show a certificate below these authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return _loaded(context, certificate, key, authorities)


def client_context(certificate: str, key: str, authorities: str) -> ssl.SSLContext:
    """TLS 1.2 or newer, towards a peer that has its name from these authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return _loaded(context, certificate, key, authorities)


def _loaded(
    context: ssl.SSLContext, certificate: str, key: str, authorities: str
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authorities)
    except OSError as error:  # of the disk, or of what the files hold
        raise BerdiffError(
            f"cannot use the TLS files {certificate}, {key} and {authorities}: "
            f"{error.strerror or error}; expected PEM files, the key without a password"
        ) from error
    return context
