"""What a node counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from ...errors import optional
from .objects import free_mib
from .spool import Spool

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LONG_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)


class Figures:
    """Counters and gauges of one node.

    Parameters
    ----------
    registry : prometheus_client.CollectorRegistry
        Of the service.
    """

    def __init__(self, registry: Any) -> None:
        prometheus = optional("prometheus_client", "dicom")
        self._gauge = prometheus.Gauge
        self._registry = registry

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"berdiff_dicom_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Any:
            return prometheus.Histogram(
                f"berdiff_dicom_{name}_seconds", text, registry=registry, buckets=buckets
            )

        self.associations = counter("associations", "Associations, by how they ended.", "end")
        self.objects = counter("objects", "Objects that were sent to us.", "outcome")
        self.jobs = counter("jobs", "Series that were examined, by what came of it.", "outcome")
        self.deliveries = counter(
            "deliveries", "Attempts to send an object.", "destination", "outcome"
        )
        self.store_seconds = histogram("store", "Time to keep a received object.", _SECONDS)
        self.infer_seconds = histogram("infer", "Time to examine a series.", _LONG_SECONDS)
        self.turnaround_seconds = histogram(
            "turnaround", "From the release of a series until all has its results.", _LONG_SECONDS
        )

    def watch(self, spool: Spool) -> None:
        """Show the state of a spool whenever somebody asks."""
        series = self._gauge(
            "berdiff_dicom_series", "Series, by state.", ("state",), registry=self._registry
        )
        for state in spool.counts():
            series.labels(state).set_function(lambda state=state: spool.counts()[state])
        free = self._gauge(
            "berdiff_dicom_free_mib", "MiB free on the spool's disk.", registry=self._registry
        )
        free.set_function(lambda: free_mib(spool.folder))
