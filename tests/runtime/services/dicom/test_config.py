"""What a node may be told: read strictly, with file and key in every error."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from berdiff.runtime.errors import BerdiffError
from berdiff.runtime.services.dicom import config
from berdiff.runtime.services.dicom.config import read_config

ROOT = Path(__file__).resolve().parents[4]
EXAMPLE = ROOT / "examples" / "dicom" / "node.yaml"


def written(folder: Path, change: dict[str, Any]) -> Path:
    content = yaml.safe_load(EXAMPLE.read_text())
    for place, value in change.items():
        *path, key = place.split(".")
        holder = content
        for part in path:
            holder = holder[int(part) if part.isdigit() else part]
        holder[key] = value
    (folder / "node.yaml").write_text(yaml.safe_dump(content))
    return folder / "node.yaml"


def test_the_example_is_valid_and_its_paths_start_where_it_lies() -> None:
    config = read_config(EXAMPLE)
    assert config.folder == EXAMPLE.parent / "spool"
    assert config.audit_path == EXAMPLE.parent / "spool" / "audit.jsonl"
    assert config.kinds == ("seg", "pmap", "sc")
    assert config.listen.host == "127.0.0.1"


def test_paths_of_tls_start_there_too(tmp_path: Path) -> None:
    tls = {"certificate": "a.pem", "key": "/b.key", "authorities": "c.pem"}
    change = {"listen.tls": tls, "destinations.0.tls": tls, "audit": "log/a.jsonl"}
    config = read_config(written(tmp_path, change))
    expected = (str(tmp_path / "a.pem"), "/b.key", str(tmp_path / "c.pem"))
    assert config.listen.tls is not None
    assert dataclasses.astuple(config.listen.tls) == expected
    assert config.destinations[0].tls == config.listen.tls
    assert config.audit_path == tmp_path / "log" / "a.jsonl"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("listen.titel", "X", r"listen: unknown key 'titel'"),
        ("listen.title", "A" * 17, r"listen: title must be 1 to 16"),
        ("listen.title", "A\\B", r"listen: title must be 1 to 16"),
        ("listen.callers", [], r"callers is empty"),
        ("listen.callers", ["OK", ""], r"callers must be 1 to 16"),
        ("listen.port", 65536, r"port must lie between 0 and 65535"),
        ("listen.port", "dicom", r"listen: port: expected int"),
        ("listen.maximum_pdu", 100, r"maximum_pdu must lie between"),
        ("series.minimum_slices", 0, r"minimum_slices must lie between"),
        ("series.other_contrast", "drop", r"other_contrast: expected one of"),
        ("spool.queue", 0, r"queue must lie between"),
        ("destinations", [], r"destinations is empty"),
        ("destinations.1.name", "archive", r"two destinations have one name"),
        ("destinations.0.name", "a/b", r"name must be letters"),
        ("destinations.0.objects", ["seg", "seg"], r"objects must name each"),
        ("destinations.0.objects", ["report"], r"objects\[0\]: expected one of"),
        ("destinations.1.last_retry_seconds", 1.0, r"last_retry_seconds must lie between 5"),
        ("health_port", -1, r"health_port must lie between"),
        ("health", {}, r"unknown key 'health'"),
    ],
)
def test_what_makes_no_sense_is_named(
    place: str, value: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BerdiffError, match=rf"node\.yaml: .*{message}"):
        read_config(written(tmp_path, {place: value}))


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n", "listen: {}\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text(text)
    with pytest.raises(BerdiffError, match=r"node\.yaml"):
        read_config(tmp_path / "node.yaml")
    with pytest.raises(BerdiffError, match=r"cannot read .*none\.yaml"):
        read_config(tmp_path / "none.yaml")


def test_every_key_is_explained() -> None:
    page = (ROOT / "docs" / "dicom-node.md").read_text()
    kinds = (config.Listen, config.SeriesRules, config.SpoolRules, config.Destination, config.Tls)
    for kind in (*kinds, config.NodeConfig):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in page, f"{kind.__name__}.{field.name}"
