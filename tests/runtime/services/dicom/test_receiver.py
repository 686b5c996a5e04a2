"""Who may send what, and how much; and success is said of nothing that is not kept."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from dicom_nodes import (
    association,
    check_results,
    configured,
    peer,
    running,
    send,
    series,
    wait_for,
)
from dicom_peers import program
from pydicom.dataset import Dataset

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.services.dicom import receiver
from berdiff.runtime.services.dicom.arrivals import Arrivals
from berdiff.runtime.services.dicom.listener import client_context, server_context

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"


@pytest.mark.parametrize(("calling", "called"), [("NOBODY", "BERDIFF"), ("SCANNER", "OTHER")])
def test_unknown_titles_are_rejected(calling: str, called: str, tmp_path: Path) -> None:
    with running(configured(tmp_path, 1)) as node:
        with association(node.port, calling=calling, called=called) as opened:
            assert opened.is_rejected
        wait_for(lambda: node.metric("associations_total", end="rejected") == 1)
        assert send(node.port, series(1)[:1]) == [0]


@pytest.mark.parametrize("uid", [SECONDARY_CAPTURE, ULTRASOUND])
def test_what_is_no_scan_is_refused_by_negotiation(uid: str, tmp_path: Path) -> None:
    with running(configured(tmp_path, 1)) as node, association(node.port, context=uid) as opened:
        assert not opened.is_established
        assert [context.abstract_syntax for context in opened.rejected_contexts] == [uid]


def test_echoes_are_answered(tmp_path: Path) -> None:
    with (
        running(configured(tmp_path, 1)) as node,
        association(node.port, context="1.2.840.10008.1.1") as opened,
    ):
        assert opened.send_c_echo().Status == 0


def test_damaged_objects_are_refused(tmp_path: Path) -> None:
    bad = series(1)[0]
    bad.SeriesInstanceUID = ""
    with running(configured(tmp_path, 1)) as node, association(node.port) as opened:
        answer = opened.send_c_store(bad)
        assert (answer.Status, answer.ErrorComment) == (
            0xC000,
            "its SeriesInstanceUID is missing or none",
        )
        assert opened.send_c_store(series(1)[0]).Status == 0
    assert len(list((tmp_path / "spool/objects").rglob("*.dcm"))) == 1


def test_the_association_limit_is_said_politely(tmp_path: Path) -> None:
    config = configured(tmp_path, 1, listen={"associations": 2})
    with (
        running(config) as node,
        association(node.port) as first,
        association(node.port) as second,
    ):
        assert first.is_established
        assert second.is_established
        with association(node.port) as third:
            assert third.is_rejected


def test_connections_that_say_nothing_are_bounded_and_let_go(tmp_path: Path) -> None:
    config = configured(tmp_path, 1, listen={"associations": 2, "idle_seconds": 1.0})
    with running(config) as node:
        silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(40)]

        def accepted() -> bool:
            with association(node.port) as opened:
                return bool(opened.is_established)

        wait_for(accepted, "room")
        for one in silent:
            one.settimeout(30)
            assert one.recv(100)[:1] in (b"", b"\x07")  # closed, or aborted first
            one.close()


def test_who_only_looks_takes_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load balancers open connections and close them; nobody waits for what they may say."""
    monkeypatch.setattr(receiver, "_GREETING", 1000.0)
    config = configured(tmp_path, 1, listen={"associations": 2, "idle_seconds": 1000.0})
    with running(config) as node:
        for _ in range(30):
            socket.create_connection(("127.0.0.1", node.port)).close()

        def accepted() -> bool:
            with association(node.port) as opened:
                return bool(opened.is_established)

        wait_for(accepted, "room")


@pytest.mark.parametrize("what", ["object", "pdu"])
def test_sizes_are_bounded(what: str, tmp_path: Path) -> None:
    config = configured(tmp_path, 1, listen={"object_mib": 1})
    with running(config) as node:
        if what == "pdu":
            with socket.create_connection(("127.0.0.1", node.port)) as raw:
                raw.settimeout(30)
                raw.sendall(b"\x01\x00\xff\xff\xff\xff")  # 4 GiB are on their way, it says
                while raw.recv(1000):
                    pass
        else:
            large = series(1)[0]
            large.add_new(0x00290010, "LO", "TEST")
            large.add_new(0x00291001, "OB", bytes(2**21))
            with association(node.port) as opened:
                answer = opened.send_c_store(large)
                assert answer == Dataset()  # the connection was closed
        assert send(node.port, series(1)[:1]) == [0]
    assert len(list((tmp_path / "spool/objects").rglob("*.dcm"))) == 1


def test_below_the_watermark_nothing_is_taken_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = {"mib": 100}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, free["mib"] * 2**20))
    with peer() as archive:
        config = configured(tmp_path, archive.port, spool={"minimum_free_mib": 50})
        with running(config) as node:
            with association(node.port) as opened:
                assert [opened.send_c_store(data).Status for data in series(1)[:3]] == [0] * 3
                free["mib"] = 20
                assert opened.send_c_store(series(1)[3]).Status == 0xA700
                wait_for(lambda: node.health.obstacle)
                assert "less than 50 MiB free" in str(node.health.obstacle)
                free["mib"] = 100
                assert [opened.send_c_store(data).Status for data in series(1)[3:]] == [0] * 2
            wait_for(lambda: node.health.obstacle is None)
            wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))


def test_a_full_queue_takes_no_new_series(tmp_path: Path) -> None:
    with peer() as archive:
        config = configured(tmp_path, archive.port, spool={"queue": 1})
        with running(config) as node, association(node.port) as opened:
            assert opened.send_c_store(series(1)[0]).Status == 0
            assert opened.send_c_store(series(2)[0]).Status == 0xA700
            wait_for(lambda: node.health.obstacle)
            assert [opened.send_c_store(data).Status for data in series(1)[1:]] == [0] * 4
            opened.release()
            wait_for(lambda: node.count("done"))
            assert send(node.port, series(2)) == [0] * 5


def test_a_series_has_so_many_objects_at_most(tmp_path: Path) -> None:
    config = configured(tmp_path, 1, series={"maximum_objects": 4})
    with running(config) as node:
        assert send(node.port, series(1)) == [0] * 4 + [0xA700]


# pynetdicom's thread has no way to take a release back.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_release_that_cannot_be_noted_is_not_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, for once, cannot be had in time: the place where it strikes fails instead."""
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        with association(node.port) as opened:
            for data in series(1):
                assert opened.send_c_store(data).Status == 0
            with monkeypatch.context() as patched:

                def fail(*_: Any, **__: Any) -> None:
                    raise OSError(28, "No space left on device")

                patched.setattr(Arrivals, "release", fail)
                opened.release()
                assert opened.is_aborted
                assert not opened.is_released
                wait_for(lambda: node.metric("associations_total", end="broken"))
        assert node.count("receiving") == 1
        send(node.port, series(1)[:1])
        wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))


def test_success_is_not_said_of_what_cannot_be_written(tmp_path: Path) -> None:
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        objects = tmp_path / "spool" / "objects"
        objects.write_bytes(b"in the way of the folder")
        with association(node.port) as opened:
            assert opened.send_c_store(series(1)[0]).Status == 0xA700
            objects.unlink()
            assert [opened.send_c_store(data).Status for data in series(1)] == [0] * 5
        wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it has issued: node.pem and peer.pem; stranger.pem is its own."""
    openssl, folder = program("openssl", "openssl"), tmp_path_factory.mktemp("tls")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    for name in ("authority", "stranger"):
        run(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("node", "peer"):
        run(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        run(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey",
            "authority.key", "-CAcreateserial", "-days", "2", "-extfile", "names", "-out",
            f"{name}.pem",
        )  # fmt: skip
    return folder


def files_of(folder: Path, name: str, authority: str = "authority") -> tuple[str, str, str]:
    return (
        str(folder / f"{name}.pem"),
        str(folder / f"{name}.key"),
        str(folder / f"{authority}.pem"),
    )


def test_tls_both_ways_and_only_among_those_who_know_each_other(
    certificates: Path, tmp_path: Path
) -> None:
    keys = dict(
        zip(("certificate", "key", "authorities"), files_of(certificates, "node"), strict=True)
    )
    context = server_context(*files_of(certificates, "peer"))
    with peer(ssl_context=context) as archive:
        config = configured(
            tmp_path, archive.port, listen={"tls": keys, "idle_seconds": 5.0}, archive={"tls": keys}
        )
        with running(config) as node:
            trusted = client_context(*files_of(certificates, "peer"))
            assert send(node.port, series(1), tls_args=(trusted, "127.0.0.1")) == [0] * 5
            wait_for(lambda: node.count("done"))
            check_results(archive.received, series(1))
            with association(node.port) as plain:
                assert not plain.is_established
            # TLS 1.3 tells a client that its certificate is refused when it reads.
            stranger = client_context(*files_of(certificates, "stranger", "authority"))
            with association(node.port, tls_args=(stranger, "127.0.0.1")) as refused:
                assert not refused.is_established
            # Whoever does not shake hands keeps nobody else waiting.
            with socket.create_connection(("127.0.0.1", node.port)):
                assert send(node.port, series(2), tls_args=(trusted, "127.0.0.1")) == [0] * 5


def test_results_go_to_nobody_whose_certificate_is_unknown(
    certificates: Path, tmp_path: Path
) -> None:
    keys = dict(
        zip(("certificate", "key", "authorities"), files_of(certificates, "node"), strict=True)
    )
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    stranger.load_cert_chain(certificates / "stranger.pem", certificates / "stranger.key")
    with peer(ssl_context=stranger) as archive:
        config = configured(tmp_path, archive.port, archive={"tls": keys})
        with running(config) as node:
            send(node.port, series(1))
            failed = {"destination": "archive", "outcome": "failed"}
            wait_for(lambda: node.metric("deliveries_total", **failed) >= 3)
            assert not archive.received


def test_files_of_tls_that_are_none_are_named(certificates: Path, tmp_path: Path) -> None:
    keys = dict(
        zip(("certificate", "key", "authorities"), files_of(certificates, "nothing"), strict=True)
    )
    with (
        pytest.raises(BerdiffError, match=r"cannot use the TLS files .*nothing\.pem"),
        running(configured(tmp_path, 1, listen={"tls": keys})),
    ):
        pass


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(BerdiffError, match=rf"cannot listen on 127\.0\.0\.1:{port}"),
            running(configured(tmp_path, 1, listen={"port": port})),
        ):
            pass
