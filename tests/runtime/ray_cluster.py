"""Real Ray clusters for tests: several nodes on one machine, each a raylet of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from berdiff.runtime.cluster import connection

HERE = Path(__file__).resolve().parent


@contextlib.contextmanager
def ray_cluster(nodes: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Start a cluster and end it.

    Parameters
    ----------
    nodes : list of dict
        What each node is started with: num_cpus, num_gpus, resources, labels. The first is the
        head, which the driver attaches to and which cannot be removed.

    Yields
    ------
    str
        Address for `Cluster.open`.
    ray.cluster_utils.Cluster
        To add and remove nodes. Those that it lists are in the order of `nodes` but for the head
        as a set: keep what `add_node` returns where that matters.
    """
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        **connection._SILENT,
        **connection._PRIVATE,
        # Ray reads its token once per process: that of this process's local clusters.
        "RAY_AUTH_TOKEN": connection._token(),
        # What the workers of all nodes inherit: modules of tests can be imported there.
        "PYTHONPATH": os.pathsep.join(paths),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        # Not earlier: Ray decides when it is loaded whether it uses tokens.
        ray = pytest.importorskip("ray")
        cluster_utils = pytest.importorskip("ray.cluster_utils")
        head, *others = nodes
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"include_dashboard": False, **head}
        )
        try:
            for node in others:
                cluster.add_node(**node)
            yield cluster.address, cluster
        finally:
            ray.shutdown()
            for node in [*cluster.worker_nodes, cluster.head_node]:
                cluster.remove_node(node, allow_graceful=False)
