"""What is kept about an engine that was run, or was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fake_tensorrt as fake
import pytest
import stand_ins

from berdiff.runtime.bundle import Bundle
from berdiff.runtime.engines.library import TENSORRT
from berdiff.runtime.engines.store import StoredEngine, intact_keys, read_engine
from berdiff.runtime.engines.verification import (
    Figure,
    Verification,
    engines_in_words,
    not_replayed,
    read_verification,
    replayed,
    verification_text,
)
from berdiff.runtime.errors import BackendError


@pytest.fixture
def bundle(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with one engine."""
    stand_ins.install(monkeypatch)
    copy = Bundle.open(Path(shutil.copytree(tiny_bundle.path, tmp_path / "bundle")))
    fake.store_engines(copy, TENSORRT, stand_ins.GPU)
    return copy


@pytest.fixture
def engine(bundle: Bundle) -> StoredEngine:
    (folder,) = (bundle.path / "engines").iterdir()
    return read_engine(folder)


def put(engine: StoredEngine, record: Verification) -> Path:
    file = engine.folder / "verification.json"
    file.write_bytes(verification_text(record))
    return file


def test_what_was_written_is_read(engine: StoredEngine) -> None:
    assert read_verification(engine).summary == "not verified: there is no record"
    figures = (Figure("encoder_error", 1e-6, 1e-3), Figure("code_bit_rate", 0.0, 0.01))
    for record in (
        replayed(engine, stand_ins.GPU, figures),
        not_replayed(engine, "built without a GPU"),
    ):
        put(engine, record)
        assert read_verification(engine) == record
    assert record.software["berdiff"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "0" * 64}, "but engine.json beside it is"),
        ({"schema_version": 2}, "schema_version: got 2, expected 1"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"reason": ""}, "expected figures of a GPU, or a reason"),
    ],
)
def test_a_record_that_cannot_be_believed(
    bundle: Bundle, engine: StoredEngine, change: dict[str, object], said: str
) -> None:
    file = put(engine, not_replayed(engine, "built without a GPU"))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BackendError, match=rf"verification\.json: .*{said}.*; remove "):
        read_verification(engine)
    # It says nothing about the engine itself.
    assert engines_in_words(bundle)[engine.folder.name].startswith(f"not verified: {file}: ")
    assert intact_keys(bundle) == {engine.folder.name}


def test_engines_in_words(bundle: Bundle, engine: StoredEngine) -> None:
    put(engine, not_replayed(engine, "built without a GPU"))
    (bundle.path / "engines" / "notes.txt").write_text("a file")
    words = {engine.folder.name: "not verified: built without a GPU"}
    assert engines_in_words(bundle) == words
    (engine.folder / "decoder.engine").write_bytes(b"damaged")
    (said,) = engines_in_words(bundle).values()
    assert said.startswith("cannot be used: ")
    assert "decoder.engine was altered" in said
    assert intact_keys(bundle) == frozenset()
