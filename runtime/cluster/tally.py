"""What ran where during a run on a cluster, and what was lost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from .crew import Member
from .worker import Report


@dataclass
class NodeTally:
    """What one node has done.

    Attributes
    ----------
    id : str
        Ray's identity of the node.
    host : str
        Name of the machine.
    detectors : int
        Detectors that it has now.
    scans, slices : int
        What they finished.
    busy : float
        Seconds for which their networks were busy.
    engine : dict of str to str
        What runs there, as the backend describes it.
    """

    id: str
    host: str
    detectors: int = 0
    scans: int = 0
    slices: int = 0
    busy: float = 0.0
    engine: dict[str, str] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)
    _offered: float = 0.0

    @property
    def name(self) -> str:
        """Name for people: several nodes may be on one machine."""
        return f"{self.host} ({self.id[:6]})"

    def change(self, by: int) -> None:
        """A detector came or went."""
        self._offered, self._since = self.offered(), time.monotonic()
        self.detectors += by

    def offered(self) -> float:
        """Seconds its detectors have been there, added up."""
        return self._offered + self.detectors * (time.monotonic() - self._since)

    @property
    def utilisation(self) -> float:
        """Share of their time for which the networks were busy; in [0, 1]."""
        offered = self.offered()
        return min(1.0, self.busy / offered) if offered else 0.0


@dataclass
class Tally:
    """The state of a run, to be shown while it runs and recorded at its end.

    Attributes
    ----------
    address : str
        Of the cluster.
    total : int
        Scans in all.
    done, reused : int
        Scans done, and those of them that an earlier run did.
    lost_workers, lost_nodes : int
        Workers that died; those of them whose node was gone.
    retried : int
        Scans that were given out again.
    quarantined : list of str
        Scans that were set aside since their workers died.
    nodes : dict of str to NodeTally
        By identity.
    """

    address: str
    total: int
    done: int = 0
    reused: int = 0
    lost_workers: int = 0
    lost_nodes: int = 0
    retried: int = 0
    quarantined: list[str] = field(default_factory=list)
    nodes: dict[str, NodeTally] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def joined(self, member: Member) -> None:
        """A worker is ready."""
        said = member.said
        assert said is not None
        assert said.detector is not None
        node = self.nodes.setdefault(said.node, NodeTally(said.node, said.host))
        node.engine = said.detector.engine
        node.change(1)

    def lost(self, member: Member, died: bool) -> None:
        """A worker is gone; `died` where its node is still there."""
        self.lost_workers += 1
        self.lost_nodes += not died
        assert member.said is not None
        self.nodes[member.said.node].change(-1)

    def ended(self) -> None:
        """The run is over: nobody waits for work any more."""
        for node in self.nodes.values():
            node.change(-node.detectors)

    def count(self, member: Member, report: Report) -> None:
        """A worker has finished something."""
        assert member.said is not None
        node = self.nodes[member.said.node]
        node.scans += len(report.outcomes)
        node.slices += report.slices
        node.busy += report.busy

    @property
    def slices(self) -> int:
        """Slices that this run has done."""
        return sum(node.slices for node in self.nodes.values())

    @property
    def detectors(self) -> int:
        """Workers at work."""
        return sum(node.detectors for node in self.nodes.values())

    @property
    def scans_per_second(self) -> float:
        """Scans of this run over its time so far."""
        return (self.done - self.reused) / max(1e-9, time.monotonic() - self._started)

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps."""
        return {
            "address": self.address,
            "lost_workers": self.lost_workers,
            "lost_nodes": self.lost_nodes,
            "retried": self.retried,
            "quarantined": self.quarantined,
            "nodes": [
                {
                    "id": node.id,
                    "host": node.host,
                    "scans": node.scans,
                    "slices": node.slices,
                    "busy_seconds": round(node.busy, 3),
                    "utilisation": round(node.utilisation, 3),
                    "engine": node.engine,
                }
                for node in self.nodes.values()
            ],
        }
