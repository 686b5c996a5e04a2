"""One logger per library and process, and all who listen hear it."""

from __future__ import annotations

import gc
from types import ModuleType
from typing import Any

import pytest

from berdiff.runtime.engines.library import BuildLog, make_logger


@pytest.fixture
def library() -> ModuleType:
    """A library that can do nothing but log."""

    class Severity:
        def __init__(self, name: str) -> None:
            self.name = name

    class ILogger:
        def __init__(self) -> None:
            self.ready = True

    module = ModuleType("library")
    vars(module).update(ILogger=ILogger, Severity=Severity)
    return module


def say(library: Any, logger: Any, text: str) -> None:
    assert logger.ready, "the constructor of the library's class was not called"
    logger.log(library.Severity("WARNING"), text)


def test_all_who_listen_hear_it(library: ModuleType) -> None:
    first, second = BuildLog(), BuildLog()
    logger = make_logger(library, first)
    say(library, logger, "one")
    assert make_logger(library, second) is logger
    say(library, logger, "two")
    assert first.warnings == ["one", "two"]
    assert second.warnings == ["two"]


def test_who_is_gone_is_forgotten(library: ModuleType) -> None:
    logs = [BuildLog() for _ in range(5)]
    for log in logs:
        logger = make_logger(library, log)
    assert len(logger.listeners) == 5
    del logs, log
    gc.collect()
    kept = BuildLog()
    make_logger(library, kept)
    assert [listener() for listener in logger.listeners] == [kept]


def test_libraries_do_not_share(library: ModuleType) -> None:
    class Other:
        pass

    other = ModuleType("other")
    vars(other).update(ILogger=Other)
    assert make_logger(other, BuildLog()) is not make_logger(library, BuildLog())


def test_what_is_raised_while_listening_waits(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: BuildLog, severity: str, message: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BuildLog, "note", interrupted)
    log = BuildLog()
    say(library, make_logger(library, log), "anything")
    assert isinstance(log.interruption, KeyboardInterrupt)


def test_a_second_builder_is_heard_while_the_first_lives() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    first, second = BuildLog(), BuildLog()
    builders = [trt.Builder(make_logger(trt, log)) for log in (first, second)]
    networks = [builder.create_network(0) for builder in builders]
    parser = trt.OnnxParser(networks[1], make_logger(trt, second))
    assert not parser.parse(b"no onnx")
    assert second.errors
    assert not any("logger" in warning for warning in first.warnings + second.warnings)
