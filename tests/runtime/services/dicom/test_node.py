"""A node as its peers see it: series in, results out, whatever happens in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dicom_nodes import (
    CAPTURE,
    PMAP,
    SEG,
    association,
    check_results,
    configured,
    empty_series,
    peer,
    running,
    send,
    series,
    wait_for,
)
from dicom_peers import free_port
from fakes import fake_detector

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.preprocessing import Preprocessing
from berdiff.runtime.services.audit import check


def test_a_series_comes_back_as_three_objects(tmp_path: Path) -> None:
    source = series(1)
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        assert send(node.port, source) == [0] * 5
        wait_for(lambda: node.count("done"), "the results")
        check_results(archive.received, source)
        assert node.metric("jobs_total", outcome="ok") == 1
        assert node.metric("turnaround_seconds_count") == 1
        assert node.metric("objects_total", outcome="stored") == 5
    events = [json.loads(line) for line in (tmp_path / "spool/audit.jsonl").open()]
    assert [event["event"] for event in events] == [
        "received", "complete", "inferred", "sent", "sent", "sent", "done",
    ]  # fmt: skip
    text = (tmp_path / "spool/audit.jsonl").read_text()
    for secret in ("rgen", "P-17", source[0].SeriesInstanceUID, source[0].SOPInstanceUID):
        assert secret not in text
    assert check(tmp_path / "spool/audit.jsonl").entries == 7


def test_what_comes_again_is_not_done_again(tmp_path: Path) -> None:
    config = None
    with peer() as archive:
        config = configured(tmp_path, archive.port)
        for _ in range(2):  # in one process, and in the next
            with running(config) as node:
                for _ in range(2):
                    assert send(node.port, series(1)) == [0] * 5
                wait_for(lambda: node.count("done") and not node.count("receiving"))
        assert len(archive.received) == 3


def test_a_series_may_come_over_several_associations_at_once(tmp_path: Path) -> None:
    source = series(1, slices=8)
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        with association(node.port) as first, association(node.port) as second:
            for data in source[:5]:
                assert first.send_c_store(data).Status == 0
            for data in source[5:]:
                assert second.send_c_store(data).Status == 0
            first.release()  # it has the minimum, and more is on its way
            wait_for(lambda: node.metric("associations_total", end="released"))
            assert node.count("receiving") == 1
            assert not archive.received
        wait_for(lambda: node.count("done"))
        check_results(archive.received, source)
        (mask,) = archive.of(SEG)
        assert mask.NumberOfFrames == 8


def test_late_slices_make_another_job(tmp_path: Path) -> None:
    source = series(1, slices=7)
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        send(node.port, source[:5])
        wait_for(lambda: node.count("done") == 1)
        send(node.port, source[5:])
        wait_for(lambda: node.count("done") == 2)
        assert [mask.NumberOfFrames for mask in archive.of(SEG)] == [5, 7]
        assert len({mask.SOPInstanceUID for mask in archive.of(SEG)}) == 2


def test_a_slice_that_comes_changed_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    source = series(1)
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        send(node.port, source)
        wait_for(lambda: node.count("done") == 1)
        for data in source:  # the archive has corrected the name
            data.PatientName = "Right^Name"
        send(node.port, source)
        wait_for(lambda: node.count("done") == 2)
        assert node.metric("objects_total", outcome="replaced") == 5
        names = [str(mask.PatientName) for mask in archive.of(SEG)]
        assert names == ["Müller^Jürgen", "Right^Name"]


def test_broken_associations_wait_for_more(tmp_path: Path) -> None:
    source = series(1)
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        with association(node.port) as opened:
            for data in source:
                assert opened.send_c_store(data).Status == 0
            opened.abort()
        wait_for(lambda: node.metric("associations_total", end="broken"))
        with association(node.port) as opened:  # somebody else's end says nothing
            assert opened.is_established
        wait_for(lambda: node.metric("associations_total", end="released"))
        assert node.count("receiving") == 1
        assert send(node.port, source[:1]) == [0]
        wait_for(lambda: node.count("done"))
        check_results(archive.received, source)


def test_counts_are_waited_for(tmp_path: Path) -> None:
    source = series(1, slices=6, ImagesInAcquisition=6)
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        for part in (source[:4], source[4:5]):  # below the minimum; below what is stated
            send(node.port, part)
            assert node.count("receiving") == 1
            assert node.count("complete") == node.count("inferred") == node.count("done") == 0
        send(node.port, source[5:])
        wait_for(lambda: node.count("done"))
        check_results(archive.received, source)


def test_what_never_becomes_complete_is_set_aside_and_kept(tmp_path: Path) -> None:
    rules = {"give_up_hours": 3 / 3600}  # counted from the last object: none comes so late
    with peer() as archive, running(configured(tmp_path, archive.port, spool=rules)) as node:
        send(node.port, series(1)[:3])
        wait_for(lambda: node.metric("jobs_total", outcome="incomplete"))
        assert node.count("failed") == 1
        assert len(list((tmp_path / "spool/objects").rglob("*.dcm"))) == 3
        assert not archive.received


def test_of_what_was_not_computed_only_word_is_sent(tmp_path: Path) -> None:
    with peer() as archive, running(configured(tmp_path, archive.port)) as node:
        send(node.port, empty_series(1))
        wait_for(lambda: node.count("done"))
        assert archive.kinds == [CAPTURE]
        assert archive.received[0].StudyInstanceUID == "1.2.3.1.1"
        assert node.metric("jobs_total", outcome="rejected") == 1


@pytest.mark.parametrize(
    ("policy", "sent", "outcome"),
    [
        ("ignore", [], "ignored"),
        ("reject", [CAPTURE], "rejected"),
        ("accept", sorted([SEG, PMAP, CAPTURE]), "suspect"),
    ],
)
def test_other_contrasts(policy: str, sent: list[str], outcome: str, tmp_path: Path) -> None:
    source = series(1, SeriesDescription="t1_mprage")
    config = {"other_contrast": policy}
    with peer() as archive, running(configured(tmp_path, archive.port, series=config)) as node:
        send(node.port, source)
        wait_for(lambda: node.count("done"))
        assert archive.kinds == sent
        assert node.metric("jobs_total", outcome=outcome) == 1


def test_a_study_is_complete_when_it_has_every_contrast(tmp_path: Path) -> None:
    detector = fake_detector(Preprocessing(2, ("t1", "flair"), (32, 40)))
    flair = series(1)
    plain = series(1, SeriesDescription="t1_mprage", SeriesInstanceUID="1.2.3.1.9")
    for index, data in enumerate(plain):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.9.{index}"
    scout = series(1, slices=2, SeriesDescription="localizer", SeriesInstanceUID="1.2.3.1.8")
    for index, data in enumerate(scout):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.8.{index}"
    with peer() as archive, running(configured(tmp_path, archive.port), detector) as node:
        send(node.port, flair + scout)
        wait_for(lambda: node.metric("associations_total", end="released") == 1)
        assert node.count("receiving") == 1
        send(node.port, plain)
        wait_for(lambda: node.count("done"))
        assert archive.kinds == sorted((SEG, PMAP, CAPTURE))


def test_a_destination_that_is_down_gets_everything_later(tmp_path: Path) -> None:
    port = free_port()
    config = configured(tmp_path, port)
    with running(config) as node:
        send(node.port, series(1))
        failed = {"destination": "archive", "outcome": "failed"}
        wait_for(lambda: node.metric("deliveries_total", **failed) >= 6)  # each of three, twice
        assert node.count("inferred") == 1
    # The next process goes on, with the patience that is left.
    with running(config) as node, peer(port) as archive:
        wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))


def test_an_object_that_is_refused_is_sent_again_and_the_others_are_not(tmp_path: Path) -> None:
    refusals = []

    def answer(data: object) -> int:
        if data.SOPClassUID == PMAP and len(refusals) < 2:  # type: ignore[attr-defined]
            refusals.append(data)
            return 0xA700
        return 0

    with peer() as archive:
        archive.answer = answer
        with running(configured(tmp_path, archive.port)) as node:
            send(node.port, series(1))
            wait_for(lambda: node.count("done"))
    assert len(refusals) == 2
    check_results(archive.received, series(1))


def test_what_nobody_takes_fails_in_the_end_and_is_sent_again_when_it_comes_again(
    tmp_path: Path,
) -> None:
    with peer() as archive:
        archive.answer = lambda _: 0xC000
        spool = {"give_up_hours": 0.0}
        with running(configured(tmp_path, archive.port, spool=spool)) as node:
            send(node.port, series(1))
            wait_for(lambda: node.count("failed"))
            archive.answer = lambda _: 0
            send(node.port, series(1))
            wait_for(lambda: node.count("done"))
    check_results(archive.received, series(1))


def test_destinations_get_what_they_are_to_get(tmp_path: Path) -> None:
    with peer() as first, peer() as second:
        destinations = [
            {"name": "a", "host": "127.0.0.1", "port": first.port, "title": "PEER",
             "objects": ["seg"]},
            {"name": "b", "host": "127.0.0.1", "port": second.port, "title": "PEER",
             "objects": ["sc"]},
        ]  # fmt: skip
        config = configured(tmp_path, 1, destinations=destinations)
        with running(config) as node:
            send(node.port, series(1))
            wait_for(lambda: node.count("done"))
        assert (first.kinds, second.kinds) == ([SEG], [CAPTURE])
        # What nobody wants is not computed.
        assert not list((tmp_path / "spool").rglob("*_pmap.dcm"))


def test_a_broken_network_ends_the_node_and_loses_nothing(tmp_path: Path) -> None:
    with peer() as archive:
        config = configured(tmp_path, archive.port)
        with running(config, fake_detector(broken_above=0.01)) as node:
            send(node.port, series(1))
            with pytest.raises(BerdiffError, match=r"cannot go on: the fake network is broken"):
                node.node.wait()
        with running(config) as node:
            wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))


def test_stopping_interrupts_a_job_and_the_next_process_does_it(tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    with peer() as archive:
        config = configured(tmp_path, archive.port)
        with running(config, fake_detector(hold=str(hold))) as node:
            send(node.port, series(1, slices=20))
            wait_for(lambda: node.count("inferring"))
            node.node.stop()
            hold.unlink()
        assert not archive.received
        with running(config) as node:
            wait_for(lambda: node.count("done"))
        check_results(archive.received, series(1))


def test_a_series_that_ends_the_process_every_time_is_set_aside(tmp_path: Path) -> None:
    import sqlite3

    with peer() as archive:
        config = configured(tmp_path, archive.port)
        with running(config) as node:
            send(node.port, series(1))
            wait_for(lambda: node.count("done"))
        with sqlite3.connect(tmp_path / "spool/spool.sqlite3") as database:
            database.execute("UPDATE jobs SET state = 'inferring', attempts = 3")
        with running(config) as node:
            assert node.count("failed") == 1


def test_done_series_are_removed_when_their_time_is_over(tmp_path: Path) -> None:
    with peer() as archive:
        config = configured(tmp_path, archive.port)
        with running(config) as node:
            send(node.port, series(1))
            wait_for(lambda: node.count("done"))
        kept = list((tmp_path / "spool").rglob("*.dcm"))
        assert len(kept) == 8
        again = configured(tmp_path, archive.port, spool={"keep_done_hours": 0.0})
        with running(again) as node:
            wait_for(lambda: not node.count("done"))
            wait_for(lambda: not list((tmp_path / "spool").rglob("*.dcm")))
            # And what comes then gives the same objects.
            send(node.port, series(1))
            wait_for(lambda: len(archive.received) == 6)
        uids = [str(data.SOPInstanceUID) for data in archive.received]
        assert sorted(uids[:3]) == sorted(uids[3:])


def test_one_spool_has_one_node(tmp_path: Path) -> None:
    config = configured(tmp_path, 1)
    other = configured(tmp_path, 1, audit=str(tmp_path / "other.jsonl"))
    with (
        running(config),
        pytest.raises(BerdiffError, match=r"another node uses the spool folder"),
        running(other),
    ):
        pass
