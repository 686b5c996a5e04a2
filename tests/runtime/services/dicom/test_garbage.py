"""A thousand peers that break the rules, and the node serves the next as if nothing had been."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from dicom_nodes import check_results, configured, peer, running, send, series, wait_for
from pynetdicom import AE
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE

MR = "1.2.840.10008.5.1.4.1.1.4"
COUNT = 1000


def request() -> bytes:
    """A sound request for an association."""
    from pynetdicom import build_context
    from pynetdicom.pdu_primitives import (
        ImplementationClassUIDNotification,
        MaximumLengthNotification,
    )

    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", "BERDIFF"
    context = build_context(MR)
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = AE().implementation_class_uid
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def fragment(data: bytes, control: int) -> bytes:
    """A P-DATA PDU with one fragment."""
    value = struct.pack(">IBB", len(data) + 2, 1, control) + data
    return struct.pack(">BBI", 4, 0, len(value)) + value


def garbage(rng: np.random.Generator, sound: bytes) -> bytes:
    """What a broken peer may send, of one kind or another."""
    noise = rng.integers(0, 256, int(rng.integers(1, 400)), dtype=np.uint8).tobytes()
    spoiled = bytearray(sound)
    for place in rng.integers(0, len(sound), 4):
        spoiled[place] = int(rng.integers(0, 256))
    kinds = (
        noise,
        struct.pack(">BBI", int(rng.integers(0, 256)), 0, len(noise)) + noise,
        struct.pack(">BBI", int(rng.integers(1, 8)), 0, int(rng.integers(0, 2**32))) + noise,
        bytes(spoiled),
        sound[: int(rng.integers(1, len(sound)))],
        sound + noise,
        sound + sound,
        sound + fragment(noise, int(rng.integers(0, 256))),
        sound + fragment(noise, 3) + fragment(noise, 2),
        sound + fragment(bytes(100), 1) * 20,
        sound + struct.pack(">BBII", 5, 0, 4, 0) * 2,  # a release, twice
        sound + struct.pack(">BBII", int(rng.integers(2, 8)), 0, 4, 0),
    )
    return kinds[int(rng.integers(0, len(kinds)))]


def associations() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "AcceptorThread" in thread.name]


# pynetdicom lets the thread of a connection end where its peer breaks the protocol.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_thousand_broken_peers_bring_nothing_down(tmp_path: Path) -> None:
    sound, rng = request(), np.random.default_rng(6)
    listen = {"associations": 16, "idle_seconds": 5.0}
    with peer() as archive, running(configured(tmp_path, archive.port, listen=listen)) as node:
        for number in range(COUNT):
            wait_for(lambda: len(associations()) < 8, "room for another peer")
            with (
                socket.create_connection(("127.0.0.1", node.port)) as raw,
                contextlib.suppress(OSError),  # the node has closed it
            ):
                raw.sendall(garbage(rng, sound))
                if number % 4 == 0:  # some listen to the answer, some are gone
                    raw.settimeout(0.05)
                    raw.recv(1000)
        wait_for(lambda: not associations(), "the end of every association")
        assert node.health.obstacle is None
        assert send(node.port, series(1)) == [0] * 5
        wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))
    assert len(list((tmp_path / "spool/objects").rglob("*.dcm"))) == 5
