"""Real Ray clusters for tests: several nodes on one machine, each a raylet of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# Loopback only, nothing reported to anybody; workers import the tests' modules.
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(HERE), str(HERE.parent / "reference"), os.environ.get("PYTHONPATH")])
    ),
    # Ray's own agents may be slow to start on a busy machine.
    "RAY_agent_register_timeout_ms": "120000",
    # A node that does not answer is taken for dead after some seconds, not after half a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@contextlib.contextmanager
def ray_cluster(nodes: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Start a cluster; yield its address and Ray's `Cluster`, which adds and removes nodes.

    The head has no CPUs, so that nothing runs there. Each of `nodes` is what `Cluster.add_node`
    takes, such as ``{"num_cpus": 2, "resources": {"sm_89": 1}, "labels": {"gpu": "a"}}``. This
    process is not connected: open the address.
    """
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        import ray
        from ray.cluster_utils import Cluster

        cluster = _started(Cluster)
        try:
            for node in nodes:
                cluster.add_node(**node)
            cluster.wait_for_nodes()
            yield cluster.address, cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _started(kind: Any) -> Any:
    """Start the head. Ray gives it 30 seconds, which a busy machine may not have at once."""
    for left in (2, 1, 0):
        try:
            return kind(
                initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
            )
        except Exception as error:  # Ray raises no other
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError("unreachable")
