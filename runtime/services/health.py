"""Is the service alive, is it ready, what has it counted: answered over HTTP."""

from __future__ import annotations

import json
import socketserver
import threading
import wsgiref.simple_server
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import BerdiffError, optional

_SECONDS = 10.0  # a client that sends nothing for so long is let go

StartResponse = Callable[..., Any]


class Health:
    """The state of a service, for whoever watches it. Safe to use from several threads.

    Parameters
    ----------
    service : str
        Its name, for example "mrd"; it names the extra that brings what is needed.

    Attributes
    ----------
    registry : prometheus_client.CollectorRegistry
        Of the service's metrics. It holds nothing else, and nothing leaves by itself.
    """

    def __init__(self, service: str) -> None:
        prometheus = optional("prometheus_client", service)
        self.service = service
        self.registry: Any = prometheus.CollectorRegistry()
        # Memory and CPU time of this process, as every exporter of that library names them.
        prometheus.ProcessCollector(registry=self.registry)
        gauge = prometheus.Gauge(
            "berdiff_ready", "1 if the service is ready.", registry=self.registry
        )
        gauge.set_function(lambda: float(self.obstacle is None))
        self._metrics = prometheus.make_wsgi_app(self.registry)
        self._obstacle: str | None = "starting"

    @property
    def obstacle(self) -> str | None:
        """Why the service is not ready, if so."""
        return self._obstacle

    def ready(self) -> None:
        """Say that the service takes work."""
        self._obstacle = None

    def unready(self, reason: str) -> None:
        """Say that the service takes no work, and why. No names belong into the reason."""
        self._obstacle = reason

    @contextmanager
    def serving(self, port: int, host: str = "127.0.0.1") -> Iterator[int]:
        """Answer ``/live``, ``/ready`` and ``/metrics`` while the block runs.

        Parameters
        ----------
        port : int
            0 takes a free one.
        host : str
            Address to listen on.

        Yields
        ------
        int
            The port.

        Raises
        ------
        BerdiffError
            If the port is taken.
        """
        try:
            server = wsgiref.simple_server.make_server(
                host, port, self._answer, server_class=_Server, handler_class=_Handler
            )
        except OSError as error:
            raise BerdiffError(
                f"cannot listen on {host}:{port} for health checks: {error.strerror}; "
                "choose another port"
            ) from error
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, environment: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        path = environment.get("PATH_INFO")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environment, start)
            return answer
        if path == "/live":
            return _json(start, "200 OK", live=True, service=self.service)
        if path == "/ready":
            reason = self.obstacle
            status = "200 OK" if reason is None else "503 Service Unavailable"
            return _json(start, status, ready=reason is None, reason=reason)
        return _json(start, "404 Not Found", paths=["/live", "/ready", "/metrics"])


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = (str(self.server_address[0]), self.server_address[1])
        self.setup_environ()


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    timeout = _SECONDS

    def log_message(self, *args: Any) -> None:
        """Every probe of a watcher in the log would bury what matters."""

    def address_string(self) -> str:
        """Never ask a name server who is calling."""
        return str(self.client_address[0])


def _json(start: StartResponse, status: str, **content: object) -> list[bytes]:
    start(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(content).encode() + b"\n"]
