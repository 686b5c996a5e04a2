import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.services.health import Health


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, answer.read().decode()


def test_readiness_is_told_with_the_reason() -> None:
    health = Health("mrd")
    with health.serving(0) as port:
        status, text = ask(port, "/ready")
        assert (status, json.loads(text)) == (503, {"ready": False, "reason": "starting"})
        assert ask(port, "/live")[0] == 200
        assert "berdiff_ready 0.0" in ask(port, "/metrics")[1]
        health.ready()
        assert json.loads(ask(port, "/ready")[1]) == {"ready": True, "reason": None}
        assert "berdiff_ready 1.0" in ask(port, "/metrics")[1]
        health.unready("the disk is full")
        assert ask(port, "/ready") == (503, '{"ready": false, "reason": "the disk is full"}\n')


def test_metrics_are_those_of_the_service() -> None:
    from prometheus_client import Counter

    health = Health("mrd")
    Counter("berdiff_things", "Things.", registry=health.registry).inc(3)
    with health.serving(0) as port:
        text = ask(port, "/metrics")[1]
        assert "berdiff_things_total 3.0" in text
        assert "process_resident_memory_bytes" in text
        assert ask(port, "/elsewhere")[0] == 404


def test_it_listens_on_loopback_only_and_stops() -> None:
    with Health("mrd").serving(0) as port:
        listening = [
            line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
        ]
        assert [place.split(":")[0] for place in listening] == ["0100007F"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 10)


def test_a_caller_that_says_nothing_keeps_nobody_waiting() -> None:
    with Health("mrd").serving(0) as port, socket.create_connection(("127.0.0.1", port), 10):
        assert ask(port, "/live")[0] == 200


def test_a_taken_port_is_named() -> None:
    with (
        Health("mrd").serving(0) as port,
        pytest.raises(BerdiffError, match=f"cannot listen on 127.0.0.1:{port}"),
        Health("mrd").serving(port),
    ):
        pass
