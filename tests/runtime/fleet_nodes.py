"""Builds that go wrong on a node: tasks in place of the real one, imported by Ray's workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from berdiff.runtime.cluster.fleet_task import Answer, Order, build_on_node
from berdiff.runtime.errors import optional

STARTED = "started"


def altered_on_the_way(order: Order) -> tuple[Answer | bytes, ...]:
    """The real thing, but one byte of the last engine."""
    answer, *engines, last = build_on_node(order)
    assert isinstance(last, bytes)
    return (answer, *engines, last[:-1] + bytes([last[-1] ^ 1]))


def stuck_at_first(order: Order) -> tuple[Answer | bytes, ...]:
    """Write the node's identity beside the bundle and go on for ever; do the real thing if told."""
    marker = Path(order.bundle.path).with_name(STARTED)
    if not marker.exists():
        node = optional("ray", "cluster").get_runtime_context().get_node_id()
        part = marker.with_suffix(".part")
        part.write_text(node)
        part.rename(marker)
        time.sleep(600)
    return build_on_node(order)


def defective(order: Order) -> tuple[Answer | bytes, ...]:
    """A mistake in the program, for one target of several; for another, a process that dies."""
    if order.target.name == "defect":
        raise ZeroDivisionError("a defect")
    if order.target.name == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    return build_on_node(order)
