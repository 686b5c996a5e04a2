"""Clients that send nonsense, too much, too slowly, or nothing any more."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ismrmrd
import numpy as np
import pytest
from fakes import fake_detector
from mrd_peer import (
    PATIENCE,
    Client,
    Lie,
    Served,
    exchange,
    heads,
    images_of,
    raw,
    serving,
    until,
)

from berdiff.runtime.detector import Detector
from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.services.mrd.image import Limits


@pytest.fixture(scope="module")
def detector() -> Detector:
    return fake_detector()


@pytest.fixture(scope="module")
def server(detector: Detector) -> Iterator[Served]:
    with serving(detector) as served:
        yield served


def serves(port: int) -> bool:
    return len(exchange(port, images_of(heads())).series("anomaly")) == 3


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"seed": -1}, "parameter seed: got -1, expected a whole number from 0"),
        ({"seed": 1.5}, "parameter seed"),
        ({"seed": True}, "parameter seed"),
        ({"steps": "1"}, "parameter steps: got '1', expected a whole number from 2"),
        ({"steps": "100000000000000000000"}, "parameter steps"),
        ({"noiselevel": 5000}, "noise"),
        ({"flipthreshold": "nan"}, "parameter flipthreshold"),
        ({"flipthreshold": [0.5]}, "parameter flipthreshold"),
        ({"threshold": "inf"}, "parameter threshold"),
        ({"maptype": "object"}, "expected uint16 or float32"),
        ({"sendmask": "perhaps"}, "expected true or false"),
        ({"channels": 7}, "parameter channels"),
        ({"channels": "t1"}, "the model takes flair"),
        ({"slices": "4"}, "got 3 slices, the client announced 4"),
        ({"batchsize": 9}, "there is no parameter 'batchsize'; there are channels"),
        ({"__class__": "x"}, "there is no parameter"),
        ({"config": "os.system"}, "there is no configuration 'os.system'"),
        ({"customconfig": "invertcontrast"}, "there is no configuration"),
    ],
)
def test_parameters_out_of_range_are_refused(
    server: Served, parameters: dict[str, Any], reason: str
) -> None:
    answer = exchange(server.port, images_of(heads()), **parameters)
    assert reason in answer.error
    assert answer.closed
    assert not answer.images


def test_what_a_scanner_leaves_empty_is_the_default(server: Served) -> None:
    given = exchange(
        server.port, images_of(heads()), config="openrecon", customconfig="", seed="", steps=None
    )
    assert not [text for text in given.texts if text.startswith("ERROR")]
    assert given.series("anomaly")[0].meta["BerdiffSteps"] == "10"


@pytest.mark.parametrize("text", ["[1, 2]", "no JSON", '{"parameters": 3}', "[" * 100_000])
def test_texts_that_are_no_parameters_are_refused(server: Served, text: str) -> None:
    with Client(server.port) as client:
        client.begin().text(5, text)
        assert "the text with the parameters is not" in client.answer().error


def header(**fields: Any) -> bytes:
    image = images_of(heads((1, 32, 40)))[0]
    head = image.getHead()
    for name, value in fields.items():
        setattr(head, name, value)
    return bytes(head)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw(1008), "got raw data (message 1008)"),
        (raw(7), "a message of unknown number 7"),
        (raw(1) + bytes(1024), "got a configuration after a configuration and a header"),
        (raw(3) + struct.pack("<I", 0), "got a header after a configuration and a header"),
        (raw(5) + struct.pack("<I", 2**32 - 1), "a text has 4294967295 bytes"),
        (raw(5) + struct.pack("<I", 2) + b"\xff\xff", "a text is not UTF-8"),
        (raw(1022) + header() + struct.pack("<Q", 2**63), "attributes have 9223372036854775808"),
        (raw(1022) + header(data_type=9) + bytes(8), "data type is 9, expected 1 to 8"),
        (raw(1022) + header(matrix_size=(0, 1, 1)) + bytes(8), "shape (1, 1, 1, 0)"),
        (raw(1022) + header(matrix_size=(65535,) * 3) + bytes(8), "expected 1 to 2048"),
        (raw(1022) + header(matrix_size=(2048,) * 3) + bytes(8), "have more than 134217728 bytes"),
    ],
)
def test_messages_that_are_none_are_refused(server: Served, data: bytes, reason: str) -> None:
    with Client(server.port) as client:
        client.begin().socket.sendall(data)
        answer = client.answer()
    assert reason in answer.error
    assert answer.closed


def test_images_without_a_configuration_are_refused(server: Served) -> None:
    with Client(server.port) as client:
        client.image(images_of(heads())[0])
        assert "got an image after nothing, expected it after a configuration" in (
            client.answer().error
        )


def test_the_name_of_a_configuration_selects_no_code(server: Served) -> None:
    with Client(server.port) as client:
        client.begin(config="invertcontrast")
        answer = client.answer()
    assert "there is no configuration 'invertcontrast'; this server has berdiff" in answer.error
    assert answer.closed


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([], "no images came"),
        (images_of(heads()) * 2, "several images lie at one place"),
        (images_of(heads(dtype="complex64")), "complex pixels"),
        (images_of(heads((1, 32, 40)), read_dir=(0.0, 0.0, 0.0)), "does not say how it lies"),
        (images_of(heads(), slice_dir=(1.0, 0.0, 0.0)), "not at right angles"),
        (images_of(heads(), phase_dir=(1.0, 0.0, 0.0)), "rows and columns do not meet"),
        (images_of(heads(), field_of_view=(0.0, 1.0, 1.0)), "expected positive sizes"),
        (images_of(heads(), position=(float("nan"), 0.0, 0.0)), "expected positive sizes"),
        (images_of(np.zeros((3, 32, 40), np.uint16)), "constant"),
        (images_of(heads((3, 32, 40)), Lie((0, 1, 0), (0, 0, -1), (-1, 0, 0))), "another plane"),
        (images_of(heads(), meta={"ImageRowDir": ["a", "b", "c"]}), "does not hold numbers"),
        (images_of(heads()) + images_of(heads(), Lie(sizes=(2, 1, 4))), "differ in size"),
        (images_of(heads(), image_series_index=65535), "no image_series_index"),
    ],
)
def test_images_that_cannot_be_used_are_refused(
    server: Served, images: list[ismrmrd.Image], reason: str
) -> None:
    answer = exchange(server.port, images)
    assert reason in answer.error
    assert answer.closed


DOCTYPE = '<!DOCTYPE a [<!ENTITY b "c">]><ismrmrdMeta/>'


@pytest.mark.parametrize(
    "attributes",
    [
        b"<ismrmrdMeta",
        b"<other/>",
        DOCTYPE.encode(),
        f'<?xml version="1.0" encoding="UTF-16"?>{DOCTYPE}'.encode("utf-16"),
        b"<ismrmrdMeta>\xff</ismrmrdMeta>",
    ],
    ids=["cut", "other", "doctype", "doctype-in-utf-16", "latin-1"],
)
def test_attributes_that_are_no_meta_are_refused(server: Served, attributes: bytes) -> None:
    image = images_of(heads((1, 32, 40)))[0]
    size = struct.pack("<Q", len(attributes))
    with Client(server.port) as client:
        client.begin().socket.sendall(
            raw(1022, header() + size + attributes + image.data.tobytes()) + raw(4)
        )
        assert "an image's attributes" in client.answer().error


def test_a_session_is_bounded(detector: Detector) -> None:
    with serving(detector, limits=Limits(images=2)) as server:
        assert "more than 2 images" in exchange(server.port, images_of(heads())).error
    with serving(detector, limits=Limits(total=6000)) as server:
        assert "more than 6000 bytes" in exchange(server.port, images_of(heads())).error


def test_a_detection_that_takes_too_long_is_ended() -> None:
    with serving(fake_detector(delay=0.05), timeout=0.01) as server:
        answer = exchange(server.port, images_of(heads()))
    assert answer.closed
    assert "did not end within 0.01 s" in answer.error


def test_a_failure_in_the_detector_is_told_without_details(detector: Detector) -> None:
    class Odd(Exception):
        pass

    broken = fake_detector()
    broken.backend.encode = lambda images: (_ for _ in ()).throw(Odd("secret"))
    with serving(broken) as server:
        answer = exchange(server.port, images_of(heads()))
        assert answer.closed
        assert answer.error == "ERROR    the server failed; its log says how"
        until(lambda: server.metric("sessions_total", outcome="failed") == 1)
    with serving(fake_detector(answer_nan=True)) as server:
        assert "NaN" in exchange(server.port, images_of(heads())).error


def test_who_comes_above_the_number_of_clients_is_told(detector: Detector) -> None:
    with serving(detector, clients=2) as server:
        with Client(server.port).begin(), Client(server.port).begin():
            until(lambda: server.metric("clients") == 2)
            answer = exchange_or_cut(server.port)
            assert "the server is busy with 2 clients" in answer.error
            assert answer.closed
        until(lambda: server.metric("clients") == 0)
        until(lambda: serves_or_busy(server.port))


def exchange_or_cut(port: int) -> Any:
    with Client(port) as client:
        return client.answer()


def serves_or_busy(port: int) -> bool:
    """Whether a place is free again: it is, a moment after the client has been counted out."""
    answer = exchange(port, [])
    return "busy" not in answer.error


def test_clients_that_vanish_are_noticed(server: Served) -> None:
    image = images_of(heads())[0]
    whole = raw(1022, image.to_bytes())
    before = server.metric("sessions_total", outcome="vanished")
    cuts = (0, 1, 2, 150, 205, 220, len(whole) - 1, len(whole))
    for number, cut in enumerate(cuts, start=1):
        with Client(server.port) as client:
            client.begin().socket.sendall(whole[:cut])
        expected = before + number
        until(lambda: server.metric("sessions_total", outcome="vanished") == expected)  # noqa: B023
    assert serves(server.port)


@pytest.mark.parametrize("after", ["nothing", "a-message", "half-a-message"])
def test_clients_that_fall_silent_are_let_go(detector: Detector, after: str) -> None:
    patient = {"idle": 0.1} if after == "a-message" else {"idle": PATIENCE, "patience": 0.1}
    with serving(detector, **patient) as server, Client(server.port) as client:
        if after != "nothing":
            client.begin()
        if after == "half-a-message":
            client.socket.sendall(raw(1022)[:1])
        client.answer()  # ends when the server hangs up
        until(lambda: server.metric("sessions_total", outcome="vanished") == 1)


def test_clients_that_do_not_read_are_let_go(detector: Detector) -> None:
    """More goes back than the sockets of both sides hold."""
    images = images_of(heads((1, 32, 40)))
    phases = images_of(np.ones((400, 128, 128)), image_type=2, image_series_index=9)
    with serving(detector, patience=0.5) as server, Client(server.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.begin()
        for image in images + phases:
            client.image(image)
        client.close()
        until(lambda: server.metric("sessions_total", outcome="vanished") == 1)


def test_several_clients_at_once_get_what_they_get_alone(detector: Detector) -> None:
    volumes = [heads(seed=seed) for seed in range(4)]
    with serving(detector, clients=16) as server:

        def maps(values: np.ndarray[Any, Any]) -> bytes:
            answer = exchange(server.port, images_of(values), maptype="float32")
            return b"".join(image.data.tobytes() for image in answer.series("anomaly"))

        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(maps, volumes))
        until(lambda: server.metric("clients") == 0)
        assert together == [maps(values) for values in volumes]
        assert len(set(together)) == 4


def test_a_thousand_malformed_messages(detector: Detector) -> None:
    """Whole sessions with flipped, cut, inserted and repeated bytes, and plain noise."""
    random_ = random.Random(6)
    good = raw(1) + b"berdiff".ljust(1024, b"\0") + raw(3) + struct.pack("<I", 1) + b"\0"
    text = json.dumps({"parameters": {"seed": 1, "channels": "flair"}}).encode()
    good += raw(5) + struct.pack("<I", len(text)) + text
    for image in images_of(heads((2, 32, 40)), meta={"DataRole": "Image"}):
        good += raw(1022) + image.to_bytes()
    good += raw(4)

    def malformed() -> bytes:
        if random_.random() < 0.2:
            return random_.randbytes(random_.randrange(1, 3000))
        data = bytearray(good)
        for _ in range(random_.randrange(1, 6)):
            place = min(int(random_.expovariate(1 / 2000)), len(data) - 1)
            kind = random_.randrange(4)
            if kind == 0:
                data[place] ^= 1 << random_.randrange(8)
            elif kind == 1:
                del data[place : place + random_.randrange(1, 400)]
            elif kind == 2:
                data[place:place] = random_.randbytes(random_.randrange(1, 40))
            else:
                data = data[: place + 1]
        return bytes(data)

    with serving(detector, clients=16, patience=5, idle=5) as server:
        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(lambda data: throw(server.port, data), gather(malformed, 1000)))
        assert len(ends) == 1000
        assert sum("ERROR" in text for text in ends) > 200
        until(lambda: server.metric("clients") == 0)
        assert server.metric("sessions_total", outcome="failed") == 0
        assert serves(server.port)


def gather(make: Callable[[], bytes], count: int) -> list[bytes]:
    return [make() for _ in range(count)]


def throw(port: int, data: bytes) -> str:
    """Send it all, and say what came back until the server hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:
        got = b""
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            while piece := peer.recv(2**16):
                got += piece
        except ConnectionError:
            pass
    return got.decode("latin-1")


def test_a_port_that_is_taken_is_named(detector: Detector, server: Served) -> None:
    with (
        pytest.raises(BerdiffError, match=r"cannot listen on 127\.0\.0\.1:.*choose another"),
        serving(detector, port=server.port),
    ):
        pass
