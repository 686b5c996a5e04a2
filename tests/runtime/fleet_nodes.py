"""Builds that go wrong on a node: tasks in place of the real one, imported by Ray's workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from berdiff.runtime.cluster.fleet_task import Answer, Order, build_on_node
from berdiff.runtime.errors import optional

STARTED = "started"


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


def going_wrong(order: Order) -> tuple[Answer | bytes, ...]:
    """By name of the target: a mistake in the program, a process that dies, an altered byte."""
    if order.target.name == "defect":
        raise ZeroDivisionError("a defect")
    if order.target.name == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    answer, *engines, last = build_on_node(order)
    if order.target.name == "altered":
        assert isinstance(last, bytes)
        last = last[:-1] + bytes([last[-1] ^ 1])
    return (answer, *engines, last)
