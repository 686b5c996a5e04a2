"""What a node does for a fleet: say which engine it would build, build it, and check it there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from berdiff import __version__

from ..backends import open_backend
from ..bundle import MANIFEST_NAME, Bundle
from ..engines.build import build_engines, built_for, check_build
from ..engines.gpu import Gpu, gpu_here
from ..engines.library import Library
from ..engines.store import NETWORKS, SIDECAR_NAME, StoredEngine, engine_key, misfit
from ..engines.verification import (
    Figure,
    Verification,
    not_replayed,
    replayed,
    verification_text,
)
from ..errors import BackendError, BerdiffError, optional
from ..verify import verify
from .bundles import SharedBundle
from .fleet_plan import FleetTarget

# Ray makes the one GPU that a task is given the only one its process sees.
_DEVICE = "cuda:0"


@dataclass(frozen=True)
class Order:
    """What a node is to build.

    Attributes
    ----------
    target : FleetTarget
        As it stands in the file.
    bundle : SharedBundle
        Of what.
    have : frozenset of str
        Keys of engines that need not be built again.
    version : str
        Of the berdiff that asks.
    """

    target: FleetTarget
    bundle: SharedBundle
    have: frozenset[str]
    version: str = __version__


@dataclass(frozen=True)
class Answer:
    """What came of it; the engines themselves follow it, network by network.

    Attributes
    ----------
    node : str
        Ray's identity of the node.
    key : str
        Key of the engine; empty where that was not known before it failed.
    built : bool
        Whether it was built now; else it is among those that need not be.
    seconds : float
        Time the build and its verification took.
    sidecar, verification : bytes
        Content of ``engine.json`` and ``verification.json``, where it was built.
    problem : str
        Why there is no engine; empty where there is one.
    """

    node: str
    key: str = ""
    built: bool = False
    seconds: float = 0.0
    sidecar: bytes = b""
    verification: bytes = b""
    problem: str = ""


def build_on_node(order: Order) -> tuple[Answer | bytes, ...]:
    """Build one target of a fleet: the task that Ray runs.

    Returns
    -------
    Answer, bytes, bytes, bytes
        What came of it, and the engines in the order of `NETWORKS`: each an object of its own, so
        that whoever fetches them never holds more than one. Empty where nothing was built.
    """
    node = optional("ray", "cluster").get_runtime_context().get_node_id()
    try:
        return build_target(order, node)
    except BerdiffError as error:
        return (Answer(node, problem=str(error)), *[b""] * len(NETWORKS))


def build_target(order: Order, node: str) -> tuple[Answer | bytes, ...]:
    """Do what `build_on_node` does, on a node of a given identity.

    Raises
    ------
    BerdiffError
        If the node is not as the target says, or its engine cannot be built, or does not compute
        what the bundle's golden vectors say.
    """
    if order.version != __version__:
        raise BackendError(
            f"the node has berdiff {__version__}, expected {order.version}; install that there"
        )
    bundle, target = order.bundle.open(), order.target
    options = target.options(bundle.manifest.dynamic_batch)
    _, built_on = check_build(
        target.library, target=target.build_target, options=options, device=_DEVICE
    )
    gpu = built_on or (gpu_here(_DEVICE) if target.takes_gpu else None)
    _check_node(target, built_on)
    key = engine_key(
        bundle, target.library, built_for(target.build_target, built_on), built_on, options
    )
    if key in order.have:
        return (Answer(node, key), *[b""] * len(NETWORKS))
    started = time.perf_counter()
    with _scratch(bundle) as copy:
        engine = build_engines(
            copy, target.library, target=target.build_target, options=options, device=_DEVICE
        ).engine
        checked = _check_engine(copy, engine, target.library, gpu)
        seconds = round(time.perf_counter() - started, 2)
        sidecar = (engine.folder / SIDECAR_NAME).read_bytes()
        answer = Answer(node, key, True, seconds, sidecar, verification_text(checked))
        return (answer, *[engine.files[network].read_bytes() for network in NETWORKS])


def _check_node(target: FleetTarget, gpu: Gpu | None) -> None:
    """Refuse a node that is not what the target says, as labels may be wrong."""
    library = target.library
    if target.library_version not in (None, library.version):
        raise BackendError(
            f"the node has {library.name} {library.version}, expected {target.library_version}; "
            "install that there, or name a node that has it with labels or resources"
        )
    if gpu is not None and target.target not in (None, gpu.architecture):
        raise BackendError(
            f"the node's GPU is {gpu.name} ({gpu.architecture}), expected {target.target}; "
            "name a node that has one with gpu, labels or resources"
        )


def _check_engine(
    bundle: Bundle, engine: StoredEngine, library: Library, gpu: Gpu | None
) -> Verification:
    """Replay the golden vectors, where this node has the GPU that the engine is for."""
    if gpu is None:
        return not_replayed(engine, "built without a GPU")
    reason = misfit(engine.sidecar, bundle, library, gpu)
    if reason is not None:
        return not_replayed(
            engine, f"{reason}, and the node's GPU is {gpu.name} ({gpu.architecture})"
        )
    with open_backend(bundle, library.name, _DEVICE) as backend:
        checks = verify(bundle, backend)
    failed = [check for check in checks if not check.passed]
    if failed:
        figures = ", ".join(f"{c.name} {c.value:.2e} (limit {c.limit:.0e})" for c in failed)
        raise BackendError(
            f"the engine was built, and on {gpu.name} ({gpu.architecture}) it does not compute "
            f"what the bundle was exported to compute: {figures}"
        )
    figures_kept = tuple(Figure(check.name, check.value, check.limit) for check in checks)
    return replayed(engine, gpu, figures_kept)


@contextlib.contextmanager
def _scratch(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle without its engines, where this process may write; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="berdiff-fleet-") as folder:
        copy = Path(folder) / "bundle"
        for name in (MANIFEST_NAME, *bundle.manifest.files):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(bundle.path / name, copy / name)
            except OSError:  # another file system, or one without links
                shutil.copyfile(bundle.path / name, copy / name)
        yield Bundle.open(copy)
