"""A Ray cluster to work on: started on this machine, joined, or reached through Ray's client."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ..closing import Closing
from ..errors import BerdiffError, optional

_REACH = 15.0  # seconds in which a machine of a cluster answers
# Ray gives a node 30 seconds to start, which on a busy machine may not do the first time.
_ATTEMPTS = 3
_ADDRESS = re.compile(r"local|auto|(ray://)?[^\s/:]+:\d+")

# Ray reports usage over the internet unless told otherwise.
_SILENT = {"RAY_USAGE_STATS_ENABLED": "0"}
# A cluster for one run on one machine is nobody else's: it listens on the loopback interface only,
# which Ray's switch for desktop systems does, and answers whoever holds its token. On a busy
# machine Ray's own processes may take longer to start than it gives them.
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_agent_register_timeout_ms": "120000",
}


@dataclass(frozen=True)
class Node:
    """A machine of a cluster that is alive.

    Attributes
    ----------
    id : str
        Ray's identity of it.
    name : str
        Host name, for people; several nodes of a test may share it.
    resources : dict of str to float
        What it offers: "CPU", "GPU", "accelerator_type:A100", whatever it was started with.
    labels : dict of str to str
        What it was labelled with.
    metrics : str
        Where Ray's exporter answers to Prometheus, as "10.0.0.7:8080"; empty where it does not.
    """

    id: str
    name: str
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    metrics: str = ""


class Cluster(Closing):
    """A connection to a Ray cluster. There can be one per process.

    Examples
    --------
    >>> with Cluster.open("local") as cluster:  # doctest: +SKIP
    ...     print([node.name for node in cluster.nodes()])
    """

    def __init__(self, address: str, ray: ModuleType, *, owned: bool) -> None:
        self.address = address
        self.ray: Any = ray
        self._owned = owned

    @classmethod
    def open(
        cls, address: str, *, gpus: tuple[int, ...] | None = None, cpus: int | None = None
    ) -> Cluster:
        """Start a cluster on this machine or connect to one.

        Parameters
        ----------
        address : str
            "local": started here, for this process, and ended with it. "auto": the cluster this
            machine is part of. "HOST:PORT": the same, by address. "ray://HOST:PORT": through Ray's
            client, from a machine outside.
        gpus : tuple of int, optional
            GPUs of this machine that a local cluster has; None: all of them.
        cpus : int, optional
            CPU cores that a local cluster has; None: all of them.

        Raises
        ------
        BerdiffError
            If there is no cluster at the address, or options of a local one are given for another.
        MissingDependency
            If Ray is not installed.
        """
        if not _ADDRESS.fullmatch(address):
            raise BerdiffError(
                f"got the cluster address '{address}', expected local, auto, HOST:PORT or "
                "ray://HOST:PORT"
            )
        local = address == "local"
        if not local and not (gpus is None and cpus is None):
            raise BerdiffError(
                f"devices of this machine were named for the cluster '{address}', whose nodes "
                "have their own; name them with --cluster local, or leave them out"
            )
        settings = dict(_SILENT)
        if local:
            settings |= _PRIVATE | _visible(gpus)
            settings["RAY_AUTH_TOKEN"] = _token()
        with _environment(settings):
            ray = optional("ray", "cluster")
            if ray.is_initialized():
                if local:
                    raise BerdiffError("this process is connected to a Ray cluster already")
                return cls(address, ray, owned=False)
            options: dict[str, Any] = {"address": address}
            if local:
                options |= {"include_dashboard": False, "num_cpus": cpus}
                options["num_gpus"] = None if gpus is None else len(gpus)
            _connect(ray, address, options)
        return cls(address, ray, owned=True)

    def nodes(self) -> list[Node]:
        """The nodes that are alive, in a fixed order."""
        found = [_node(entry) for entry in self.ray.nodes() if entry["Alive"]]
        return sorted(found, key=lambda node: (node.name, node.id))

    def close(self) -> None:
        """Disconnect, which ends a local cluster."""
        if self._owned:
            self.ray.shutdown()


@functools.cache
def _token() -> str:
    """The token of this process's clusters. Ray reads it once, so that all of them share it."""
    return secrets.token_hex(32)


def _connect(ray: Any, address: str, options: dict[str, Any]) -> None:
    for left in range(_ATTEMPTS if address == "local" else 1)[::-1]:
        try:
            if ":" in address:  # Ray itself would try for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), timeout=_REACH).close()
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
            return
        except Exception as error:  # Ray raises all kinds, down to Exception itself
            ray.shutdown()
            reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            if left and "timed out during startup" in reason:
                continue
            raise BerdiffError(
                f"no connection to the Ray cluster '{address}': {reason}. A cluster is started "
                "with 'ray start --head' (and 'ray start --address HOST:PORT' on further "
                "machines), and may ask for the token in RAY_AUTH_TOKEN; --cluster local needs none"
            ) from error


def _node(entry: dict[str, Any]) -> Node:
    port = entry.get("MetricsExportPort")
    return Node(
        id=entry["NodeID"],
        name=entry["NodeManagerHostname"],
        resources=dict(entry["Resources"]),
        labels=dict(entry.get("Labels") or {}),
        metrics=f"{entry['NodeManagerAddress']}:{port}" if port else "",
    )


def _visible(gpus: tuple[int, ...] | None) -> dict[str, str]:
    """Which GPUs a local cluster sees: of those that this process sees."""
    if gpus is None:
        return {}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    here = [name.strip() for name in given.split(",") if name.strip()]
    if gpus and max(gpus) >= len(here):
        raise BerdiffError(
            f"device {max(gpus)} was asked for, and CUDA_VISIBLE_DEVICES lets this process see "
            f"{len(here)}: count from 0"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(here[number] for number in gpus)}


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set, for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in settings}
    forced = {"CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN"}
    for name, value in settings.items():
        if before[name] is None or name in forced:
            os.environ[name] = value
    try:
        yield
    finally:
        for name, earlier in before.items():
            if earlier is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = earlier
