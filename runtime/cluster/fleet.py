"""Engines for a fleet: every target built on a node that has it, all of them kept in one bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ..bundle import Bundle
from ..closing import Closing
from ..engines.build import built_for, intact_engine
from ..engines.library import TENSORRT_RTX
from ..engines.store import (
    ENGINES_FOLDER,
    NETWORKS,
    SIDECAR_NAME,
    Sidecar,
    engine_file,
    engine_key,
    intact_keys,
    onnx_digests,
    read_engine,
)
from ..engines.verification import VERIFICATION_NAME, verified_in_words
from ..errors import BackendError, BerdiffError
from ..files import atomic_folder
from ..strict import from_json
from .bundles import share
from .connection import Cluster, Node
from .fleet_plan import Fleet, FleetTarget
from .fleet_task import Answer, Order, build_on_node

_LOOK = 1.0  # seconds between looks at which nodes there are
_RETRIES = 2  # builds that a target is given, besides its first, where nodes are lost


@dataclass(frozen=True)
class TargetResult:
    """What came of one target.

    Attributes
    ----------
    name : str
        Of the target.
    status : {"built", "there", "failed"}
        Built now; in the bundle already; or not there, for a `reason`.
    key : str
        Of its engine; empty where there is none.
    node, host : str
        Ray's identity of the node that built it or tried, and its host name; empty where none did.
    seconds : float
        Time the build and its verification took there.
    verified : str
        Whether it is known to compute what it should, and where, or why that is not known.
    reason : str
        Why it failed.
    """

    name: str
    status: Literal["built", "there", "failed"]
    key: str = ""
    node: str = ""
    host: str = ""
    seconds: float = 0.0
    verified: str = ""
    reason: str = ""


Done = Callable[[TargetResult], None]


def build_fleet(
    bundle: Bundle,
    fleet: Fleet,
    address: str = "local",
    *,
    wait: float = 0.0,
    done: Done | None = None,
) -> list[TargetResult]:
    """Build the engines of a fleet on the nodes of a Ray cluster, and store them in the bundle.

    Parameters
    ----------
    bundle : Bundle
        Opened, that is, checked. Its ``bundle.json`` and digest stay as they are.
    fleet : Fleet
        What is wanted.
    address : str
        Of the cluster; see `Cluster.open`. There is no connection where nothing has to be built.
    wait : float
        Seconds for which a target waits for a node that could build it, where there is none.
    done : callable, optional
        Called with the result of each target as soon as it is known.

    Returns
    -------
    list of TargetResult
        In the order of the file. A target that fails does not stop the others.

    Raises
    ------
    BerdiffError
        If there is no cluster at the address.
    """
    results: dict[str, TargetResult] = {}

    def note(result: TargetResult) -> None:
        results[result.name] = result
        if done is not None:
            done(result)

    have = intact_keys(bundle)
    todo = []
    for target in fleet.targets:
        problem, key = target.precision_problem(bundle), _known_key(bundle, target, address)
        if problem:
            note(TargetResult(target.name, "failed", reason=problem))
        elif key in have:
            note(_there(bundle, target.name, key))
        else:
            todo.append(target)
    if todo:
        with Cluster.open(address) as cluster, _Site(bundle, cluster, have, wait) as site:
            site.build(todo, note)
    return [results[target.name] for target in fleet.targets]


def _known_key(bundle: Bundle, target: FleetTarget, address: str) -> str:
    """Key of a target's engine where it does not take a node to tell it, else nothing."""
    version = target.library_version
    if target.library is not TENSORRT_RTX or (version is None and address != "local"):
        return ""
    options = target.options(bundle.manifest.dynamic_batch)
    chosen = built_for(target.target, None)
    try:
        return engine_key(bundle, target.library, chosen, None, options, version)
    except BerdiffError:  # the library is not installed: the task says so
        return ""


@dataclass
class _Task:
    """A target that was given to Ray.

    Attributes
    ----------
    target : FleetTarget
        What is built.
    answer : ObjectRef
        Its `Answer`.
    engines : list of ObjectRef
        The engines, in the order of `NETWORKS`.
    homeless : float or None
        Since when no node could build it; None where one can.
    """

    target: FleetTarget
    answer: Any
    engines: list[Any]
    homeless: float | None = None


class _Site(Closing):
    """The builds that are going on in a cluster."""

    def __init__(self, bundle: Bundle, cluster: Cluster, have: frozenset[str], wait: float) -> None:
        self._bundle, self._cluster, self._have, self._wait = bundle, cluster, have, wait
        self._nodes: dict[str, Node] = {}
        self._tasks: dict[Any, _Task] = {}

    def build(self, targets: list[FleetTarget], note: Done) -> None:
        """Give all targets to Ray, and note what comes of each."""
        ray = self._cluster.ray
        shared = share(self._bundle, self._cluster, engines=False)
        for target in targets:
            # A process of its own: libraries keep what they have loaded, and the GPU they saw.
            task = ray.remote(
                num_returns=1 + len(NETWORKS),
                max_retries=_RETRIES,
                max_calls=1,
                **target.task_options,
            )(build_on_node)
            answer, *engines = task.remote(Order(target, shared, self._have))
            self._tasks[answer] = _Task(target, answer, engines)
        while self._tasks:
            for task in self._hopeless():
                del self._tasks[task.answer]
                ray.cancel(task.answer, force=True)
                note(TargetResult(task.target.name, "failed", reason=self._no_node(task.target)))
            if self._tasks:
                ready, _ = ray.wait(list(self._tasks), timeout=_LOOK)
                for answer in ready:
                    note(self._collect(self._tasks.pop(answer)))

    def close(self) -> None:
        """Stop what is still being built."""
        for answer in self._tasks:
            self._cluster.ray.cancel(answer, force=True)

    def _hopeless(self) -> list[_Task]:
        """Tasks that no node could do for as long as was to be waited."""
        now, nodes = time.monotonic(), self._cluster.nodes()
        self._nodes |= {node.id: node for node in nodes}
        for task in self._tasks.values():
            if any(task.target.fits(node) for node in nodes):
                task.homeless = None
            elif task.homeless is None:
                task.homeless = now
        return [
            task
            for task in self._tasks.values()
            if task.homeless is not None and now - task.homeless >= self._wait
        ]

    def _no_node(self, target: FleetTarget) -> str:
        offers = "; ".join(_offer(node) for node in self._cluster.nodes())
        waited = f" in {self._wait:g} s" if self._wait else ""
        return (
            f"no node of the cluster had what it takes{waited}: {target.needs}; "
            f"there are: {offers or 'none'}"
        )

    def _collect(self, task: _Task) -> TargetResult:
        """Take in what a node has built."""
        name, ray = task.target.name, self._cluster.ray
        try:
            answer: Answer = ray.get(task.answer)
        except ray.exceptions.RayError as error:
            return TargetResult(name, "failed", reason=_said(error))
        problem = answer.problem
        try:
            if answer.built:
                result = self._store(task, answer)
            elif not problem:
                result = _there(self._bundle, name, answer.key)
        except (BerdiffError, OSError) as error:
            problem = str(error)
        except ray.exceptions.RayError as error:
            problem = f"its engines were lost on the way: {_said(error)}; build again"
        if problem:
            result = TargetResult(name, "failed", reason=problem)
        node = self._nodes.get(answer.node)
        return replace(result, node=answer.node, host=node.name if node else "")

    def _store(self, task: _Task, answer: Answer) -> TargetResult:
        """Put engines into the bundle, all three or none, as they were when they were built."""
        name, folder = task.target.name, self._bundle.path / ENGINES_FOLDER / answer.key
        sidecar = self._checked(answer)
        if intact_engine(folder) is not None:  # another target's, on the same kind of GPU
            return _there(self._bundle, name, answer.key)
        with atomic_folder(folder) as part:
            (part / SIDECAR_NAME).write_bytes(answer.sidecar)
            (part / VERIFICATION_NAME).write_bytes(answer.verification)
            for network, reference in zip(NETWORKS, task.engines, strict=True):
                data = self._cluster.ray.get(reference)
                if sha256(data).hexdigest() != sidecar.networks[network].sha256:
                    raise BackendError(
                        f"the {network} engine did not arrive as it was built: its SHA-256 "
                        "differs; build again"
                    )
                engine_file(part, network).write_bytes(data)
        verified = verified_in_words(read_engine(folder))
        return TargetResult(name, "built", answer.key, seconds=answer.seconds, verified=verified)

    def _checked(self, answer: Answer) -> Sidecar:
        """The sidecar that a node sent; refused where it is not about this bundle."""
        sidecar = from_json(Sidecar, json.loads(answer.sidecar), f"{SIDECAR_NAME} of the node")
        digests = {network: record.onnx_sha256 for network, record in sidecar.networks.items()}
        if sidecar.key != answer.key or Path(answer.key).name != answer.key:
            raise BackendError(f"the node sent an engine of the key '{sidecar.key}'")
        if digests != onnx_digests(self._bundle):
            raise BackendError("the node built the engines of another bundle")
        return sidecar


def _there(bundle: Bundle, name: str, key: str) -> TargetResult:
    engine = read_engine(bundle.path / ENGINES_FOLDER / key)
    return TargetResult(name, "there", key, verified=verified_in_words(engine))


def _offer(node: Node) -> str:
    """What a node has, without what Ray adds for itself."""
    own = ("memory", "object_store_memory")
    amounts = {n: a for n, a in node.resources.items() if n not in own and n[:5] != "node:"}
    shown = [f"{name} {amount:g}" for name, amount in sorted(amounts.items())]
    shown += [f"{n}={v}" for n, v in sorted(node.labels.items()) if not n.startswith("ray.io/")]
    return f"{node.name} ({', '.join(shown)})"


def _said(error: Exception) -> str:
    """What Ray says of a task that did not come back: the last line of ours, or its first."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        return f"{type(cause).__name__}: {cause}"
    return (str(error).strip() or repr(error)).splitlines()[0]
