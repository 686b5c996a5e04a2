"""What workers count, for Prometheus, through Ray's own exporter on every node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..detector import Detector
from ..errors import optional
from ..scan_work import Outcome

# Name below -> what it counts. Ray puts "ray_" before each and labels it with node and worker.
COUNTERS = {
    "berdiff_scans_total": "Scans, by status: ok or failed.",
    "berdiff_slices_total": "Slices that went through the networks.",
    "berdiff_stage_seconds_total": "Seconds spent, by stage.",
}


class Metrics:
    """Counters of one worker; each is labelled with model and device.

    Parameters
    ----------
    detector : Detector
        What it runs.
    """

    def __init__(self, detector: Detector) -> None:
        counter = optional("ray.util.metrics", "cluster").Counter
        labels = {
            "model": detector.bundle.manifest.name,
            "device": detector.backend.device.split(":")[0],
        }
        keys = {"berdiff_scans_total": ("status",), "berdiff_stage_seconds_total": ("stage",)}
        self._counters = {}
        for name, meaning in COUNTERS.items():
            made = counter(name, meaning, tag_keys=(*labels, *keys.get(name, ())))
            made.set_default_tags(labels)
            self._counters[name] = made

    def count(self, outcomes: Sequence[Outcome], slices: int, timings: Mapping[str, float]) -> None:
        """Add what a group of scans came to."""
        for status, number in Counter(outcome.result.status for outcome in outcomes).items():
            self._counters["berdiff_scans_total"].inc(number, {"status": status})
        if slices:
            self._counters["berdiff_slices_total"].inc(slices)
        for stage, seconds in timings.items():
            if seconds > 0:
                self._counters["berdiff_stage_seconds_total"].inc(seconds, {"stage": stage})
