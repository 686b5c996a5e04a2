"""What the server counts, for whoever watches it."""

from __future__ import annotations

from ...errors import optional
from ..health import Health

_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Figures:
    """Metrics, under names that start with ``berdiff_mrd``."""

    def __init__(self, health: Health) -> None:
        prometheus = optional("prometheus_client", "mrd")
        registry = health.registry
        self._sessions = prometheus.Counter(
            "berdiff_mrd_sessions", "Sessions that have ended.", ["outcome"], registry=registry
        )
        self._received = prometheus.Counter(
            "berdiff_mrd_images_received", "Images that came.", registry=registry
        )
        self._sent = prometheus.Counter(
            "berdiff_mrd_images_sent", "Images that were sent.", registry=registry
        )
        self._clients = prometheus.Gauge(
            "berdiff_mrd_clients", "Clients connected.", registry=registry
        )
        self._seconds = prometheus.Histogram(
            "berdiff_mrd_answer_seconds",
            "From the end of the images to the last answer.",
            buckets=_SECONDS,
            registry=registry,
        )

    def came(self) -> None:
        """Count a client that comes."""
        self._clients.inc()

    def went(self, outcome: str, received: int, sent: int, seconds: float | None) -> None:
        """Count a session that has ended."""
        self._clients.dec()
        self.refused(outcome)
        self._received.inc(received)
        self._sent.inc(sent)
        if seconds is not None:
            self._seconds.observe(seconds)

    def refused(self, outcome: str) -> None:
        """Count a session that was not begun."""
        self._sessions.labels(outcome).inc()
