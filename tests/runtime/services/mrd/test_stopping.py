"""What becomes of clients when the server is told to stop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_detector
from mrd_peer import PATIENCE, Client, heads, images_of, raw, serving, until

from berdiff.runtime.detector import Detector
from berdiff.runtime.services.mrd import server as server_module


class Stopped:
    """A server that is stopped in another thread while a session runs."""

    def __init__(self, detector: Detector, **manners: Any) -> None:
        self.go = threading.Event()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(detector, manners))
        self.thread.start()
        assert self.ready.wait(PATIENCE)

    def _run(self, detector: Detector, manners: dict[str, Any]) -> None:
        with serving(detector, **manners) as self.server:
            self.ready.set()
            self.go.wait(PATIENCE)


@pytest.mark.parametrize("grace", [PATIENCE, 0.0], ids=["in-time", "too-late"])
def test_running_sessions_get_time_when_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr(server_module, "_LAST_WORD", PATIENCE)
    hold = tmp_path / "hold"
    hold.touch()
    stopped = Stopped(fake_detector(hold=str(hold)), grace=grace)
    with Client(stopped.server.port) as client, Client(stopped.server.port) as idle:
        client.begin()
        for image in images_of(heads()):
            client.image(image)
        client.close()
        until(lambda: stopped.server.metric("clients") == 2)
        stopped.go.set()
        assert "the server stops" in idle.answer().error
        if not grace:
            until(stopped.server.stopping.now.is_set)
        assert stopped.server.health.obstacle == "stopping"
        hold.unlink()
        answer = client.answer()
    stopped.thread.join(PATIENCE)
    assert not stopped.thread.is_alive()
    assert answer.closed
    if grace:
        assert len(answer.series("anomaly")) == 3
    else:
        assert "the server stops" in answer.error
    with pytest.raises(OSError, match="refused"):
        Client(stopped.server.port)


def test_a_client_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LAST_WORD", 0.1)
    stopped = Stopped(fake_detector(), grace=0.0)
    with Client(stopped.server.port) as client:
        client.begin().socket.sendall(raw(1022))
        until(lambda: stopped.server.metric("clients") == 1)
        stopped.go.set()
        client.answer()
        stopped.thread.join(PATIENCE)
        assert not stopped.thread.is_alive()
