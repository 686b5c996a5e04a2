"""The workers of a run: as many as the cluster has room for, and others where some are lost.

Ray places them, moves what they need, and says when one is gone. What is here is the book of who
does what, which Ray does not keep: it is what tells a scan that kills its workers from one that
was beside it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..detector import Detector
from ..detector_record import DetectorRecord
from ..errors import BerdiffError
from .connection import Cluster, Node
from .worker import Group, Introduction, Worker, misfit

_LOOK_AGAIN = 5.0  # seconds between looks at which nodes there are
_PING = 20.0  # seconds in which a node that is alive answers


@dataclass(frozen=True)
class Need:
    """What one worker takes of a node.

    Attributes
    ----------
    gpus : float
        GPUs, or a share of one; 0 on the CPU.
    cpus : float
        CPU cores.
    """

    gpus: float
    cpus: float

    def room(self, node: Node) -> int:
        """How many workers a node has room for."""
        counts = [
            math.floor(node.resources.get(name, 0.0) / amount + 1e-9)
            for name, amount in (("GPU", self.gpus), ("CPU", self.cpus))
            if amount > 0
        ]
        return min(counts)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU cores" + (f" and {self.gpus:g} GPU" if self.gpus else "")


@dataclass(eq=False)
class Member:
    """A worker, as the run knows it.

    Attributes
    ----------
    actor : ActorHandle
        The worker.
    said : Introduction or None
        What it says of itself, once it is placed and has opened its detector.
    groups : dict of ObjectRef to Group
        What it was given and has not returned.
    alone : bool
        What it has must not share the worker with anything.
    blind : bool
        It does not see the input's files.
    """

    actor: Any
    said: Introduction | None = None
    groups: dict[Any, Group] = field(default_factory=dict)
    alone: bool = False
    blind: bool = False


class Crew:
    """Starts workers, and counts them.

    Parameters
    ----------
    cluster : Cluster
        Where they run.
    open_detector : callable
        What each opens.
    need : Need
        What each takes.
    limit : int or None
        How many are wanted, whether the cluster has room for them now or not; None: as many as
        there is room for.
    depth : int
        Groups that one has at a time, one of them at the networks.

    Attributes
    ----------
    members : list of Member
        Those that were introduced and can work.
    unfit : list of Member
        Those that cannot work. They keep their place, so that no other is put there.
    """

    def __init__(
        self,
        cluster: Cluster,
        open_detector: Callable[[], Detector],
        need: Need,
        limit: int | None,
        depth: int,
    ) -> None:
        self.cluster, self.need, self.limit, self.depth = cluster, need, limit, depth
        self.members: list[Member] = []
        self.unfit: list[Member] = []
        self._coming: dict[Any, Member] = {}
        self._gone: set[str] = set()
        self._looked = -math.inf
        ray = cluster.ray
        # +2: introduce and stop are answered while all others are busy.
        self._class = ray.remote(
            num_cpus=need.cpus, num_gpus=need.gpus, max_concurrency=depth + 2, max_restarts=0
        )(Worker)
        self._open_detector = ray.put(open_detector)

    @property
    def greetings(self) -> list[Any]:
        """References that become ready when a worker is placed and open."""
        return list(self._coming)

    @property
    def size(self) -> int:
        """Workers that are here or coming."""
        return len(self.members) + len(self._coming)

    def fill(self, groups: int) -> None:
        """Start workers while there is room and work for them.

        Raises
        ------
        BerdiffError
            If there is no worker and no node could have one.
        """
        if time.monotonic() - self._looked < _LOOK_AGAIN:
            return
        self._looked = time.monotonic()
        nodes = self.cluster.nodes()
        room = sum(map(self.need.room, nodes))
        wanted = room if self.limit is None else self.limit
        here = self.size + len(self.unfit)
        if self.limit is None and not room and not self.members:
            offers = "; ".join(f"{node.name}: {_offer(node)}" for node in nodes)
            raise BerdiffError(
                f"no node of the cluster has {self.need} for a detector; there are: {offers}"
            )
        for _ in range(min(wanted - here, groups - len(self._coming))):
            self._start()

    def lose(self, member: Member) -> bool:
        """Give up a worker that is gone; return whether its node is there still.

        A node that answers shows that the worker died by itself.
        """
        self.members.remove(member)
        self._looked = -math.inf
        with contextlib.suppress(Exception):
            self.cluster.ray.kill(member.actor)
        return member.said is not None and self._answers(member.said.node)

    def welcome(self, greeting: Any, expected: DetectorRecord | None) -> Member | None:
        """Take in a worker that has introduced itself; None where it cannot work, or is gone.

        Raises
        ------
        BerdiffError
            If none can work: says why, by node.
        """
        ray = self.cluster.ray
        member = self._coming.pop(greeting)
        try:
            said: Introduction = ray.get(greeting)
        except ray.exceptions.RayError:
            self._looked = -math.inf
            return None
        problem = misfit(said, expected) if expected else said.problem
        if problem:
            self.unfit.append(member)
            if not self.members and not self._coming:
                raise BerdiffError(f"no detector could be opened on the cluster: {problem}")
            return None
        member.said = said
        self.members.append(member)
        return member

    def close(self) -> None:
        """End all workers."""
        for member in (*self.members, *self.unfit, *self._coming.values()):
            with contextlib.suppress(Exception):
                self.cluster.ray.kill(member.actor)

    def _start(self) -> None:
        actor = self._class.options(scheduling_strategy="SPREAD").remote(self._open_detector)
        self._coming[actor.introduce.remote()] = Member(actor)

    def _answers(self, node: str) -> bool:
        ray = self.cluster.ray
        alive = {entry.id for entry in self.cluster.nodes()}
        if node in self._gone or node not in alive:
            return False
        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        ping = ray.remote(num_cpus=0, max_retries=0)(_answer).options(scheduling_strategy=there)
        try:
            return bool(ray.get(ping.remote(), timeout=_PING))
        except ray.exceptions.RayError:
            self._gone.add(node)  # its other workers need not be waited for
            return False


def _answer() -> bool:
    return True


def _offer(node: Node) -> str:
    return f"{node.resources.get('CPU', 0):g} CPU, {node.resources.get('GPU', 0):g} GPU"
