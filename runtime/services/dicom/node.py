"""A node: it receives, examines and sends, each in threads of its own, with the spool between."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from ...detector import Detector
from ...detector_record import DetectorRecord
from ...errors import BackendError, BerdiffError
from ...run_plan import RunOptions, RunPlan
from ...scan_work import reason_of
from ...writers import OutputType
from ..audit import AuditLog
from ..health import Health
from .arrivals import Unit
from .completeness import not_yet
from .config import NodeConfig, ObjectKind
from .examiner import Examined, Examiner
from .figures import Figures
from .jobs import Job
from .receiver import Receiver
from .sender import Sender
from .spool import Spool

_LOG = logging.getLogger("berdiff.dicom")

_TYPES: dict[ObjectKind, OutputType] = {
    "seg": "dicom-seg",
    "pmap": "dicom-pmap",
    "sc": "dicom-sc",
}
_TICK = 0.25  # seconds between looks at what time alone changes
_EXPIRY = 60.0  # seconds between looks at what has expired
_FIRST_WAIT, _LAST_WAIT = 1.0, 60.0  # before something is tried again that could not be written


class Node:
    """A node that is to serve; see `serving`.

    Parameters
    ----------
    detector : Detector
        An opened, proven detector.
    options : RunOptions
        How it is used; output types, contrasts and slices come from `config`.
    config : NodeConfig
        What the node is told.
    health : Health
        Told whether series are taken.
    audit : AuditLog
        Told what happens.
    """

    def __init__(
        self,
        detector: Detector,
        options: RunOptions,
        config: NodeConfig,
        health: Health,
        audit: AuditLog,
    ) -> None:
        self.config = config
        self._preprocessing = detector.bundle.manifest.preprocessing
        self._health = health
        self._audit = audit
        options = dataclasses.replace(
            options,
            output_types=tuple(_TYPES[kind] for kind in config.kinds),
            accept_contrast=config.series.other_contrast == "accept",
        )
        self._plan = RunPlan.make(DetectorRecord.of(detector), options)
        self._examiner = Examiner(detector, self._plan, config)
        self._figures = Figures(health.registry)
        self._stop = threading.Event()
        self._looked = threading.Event()  # something may have become complete
        self._queued = threading.Event()  # there may be a job
        self._error: Exception | None = None
        self._waiting: dict[str, Unit | None] = {}  # as they were when they were not complete
        self._unfinished: Job | None = None
        self._expiry = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before relying on the results."""
        if "sc" in self.config.kinds:
            return self._plan.warnings
        silent = "no destination gets 'sc': nobody is told of series that cannot be examined"
        return (*self._plan.warnings, silent)

    def stop(self) -> None:
        """End, from any thread or a signal's handler."""
        self._stop.set()
        self._looked.set()
        self._queued.set()

    def wait(self) -> None:
        """Wait until `stop`.

        Raises
        ------
        BerdiffError
            If the node cannot go on.
        """
        while not self._stop.wait(0.2):
            pass
        if self._error is not None:
            raise BerdiffError(f"the node cannot go on: {reason_of(self._error)}") from self._error

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Serve while the block runs; yields the port."""
        names = [destination.name for destination in self.config.destinations]
        with ExitStack() as opened:
            spool = opened.enter_context(Spool(self.config.folder, self._audit, names))
            self._figures.watch(spool)
            senders = [
                Sender(
                    destination,
                    self.config.listen.title,
                    spool.deliveries,
                    self._figures,
                    self.config.spool.give_up_hours * 3600,
                    time.time,
                )
                for destination in self.config.destinations
            ]
            receiver = Receiver(
                self.config, self._preprocessing, spool, self._figures, self._looked.set
            )
            threads = [
                self._thread("look", lambda: self._look(spool, receiver)),
                self._thread("examine", lambda: self._examine(spool, senders)),
                *(self._thread("send", partial(one.step, self._stop)) for one in senders),
            ]
            opened.callback(self._end, receiver, senders, threads)
            yield receiver.port

    def _end(
        self, receiver: Receiver, senders: list[Sender], threads: list[threading.Thread]
    ) -> None:
        """Receive no more, and let every thread finish the step it is at."""
        self.stop()
        self._health.unready("stopping")
        receiver.close()
        for sender in senders:
            sender.wake.set()
        for thread in threads:
            thread.join()
        receiver.reap()

    def _thread(self, name: str, step: Callable[[], None]) -> threading.Thread:
        """Repeat a step until the end. A disk that takes nothing is waited for."""

        def run() -> None:
            wait = _FIRST_WAIT
            while not self._stop.is_set():
                try:
                    step()
                    wait = _FIRST_WAIT
                except (OSError, sqlite3.OperationalError) as error:
                    _LOG.error("cannot write to the spool: %s", type(error).__name__)
                    self._health.unready("the spool cannot be written to")
                    self._stop.wait(wait)
                    wait = min(_LAST_WAIT, 2 * wait)
                except Exception as error:
                    self._error = self._error or error
                    self.stop()

        thread = threading.Thread(target=run, name=f"berdiff-{name}", daemon=True)
        thread.start()
        return thread

    def _look(self, spool: Spool, receiver: Receiver) -> None:
        """See what has become complete, what has expired, and whether there is room."""
        receiver.reap()
        touched = spool.arrivals.touched()
        for unit in touched:
            self._judge(spool, unit)
        self._waiting = {unit.unit: self._waiting.get(unit.unit) for unit in touched}
        if time.monotonic() > self._expiry:
            rules = self.config.spool
            spool.jobs.expire(rules.keep_done_hours * 3600, rules.keep_failed_hours * 3600)
            self._expiry = time.monotonic() + _EXPIRY
        obstacle = receiver.full()
        if obstacle:
            self._health.unready(obstacle)
        else:
            self._health.ready()
        self._looked.wait(_TICK)
        self._looked.clear()

    def _judge(self, spool: Spool, unit: Unit) -> None:
        """Make a job of a unit that is complete; give up one that has waited too long."""
        rules, now = self.config.series, time.time()
        late = now > unit.last + self.config.spool.give_up_hours * 3600
        if now < unit.released + rules.settle_seconds:
            return
        if (unit.waiting or self._waiting.get(unit.unit) == unit) and not late:
            return  # it comes, or was not complete and nothing has come since
        objects = spool.arrivals.objects(unit)
        chosen, reason = not_yet(unit, objects, rules, self._preprocessing, spool.folder)
        name = unit.unit[:16]
        if chosen:
            if spool.jobs.complete(unit, chosen, self._examiner.context):
                _LOG.info("series %s is complete: %d objects", name, len(chosen))
                self._queued.set()
        elif late and spool.jobs.give_up(unit, objects, reason):
            self._figures.jobs.labels("incomplete").inc()
            _LOG.warning("series %s was given up: %s", name, reason)
        else:
            self._waiting[unit.unit] = unit
            _LOG.info("series %s waits: %s", name, reason)

    def _examine(self, spool: Spool, senders: list[Sender]) -> None:
        """Examine the oldest series that is complete, or wait for one."""
        if self._unfinished is not None:
            spool.jobs.put_back(self._unfinished)
            self._unfinished = None
        job = spool.jobs.claim()
        if job is None:
            self._queued.wait(_TICK)
            self._queued.clear()
            return
        start = time.perf_counter()
        self._unfinished = job
        try:
            examined = self._examiner.examine(job, self._stop)
            if examined is None:  # asked to end
                spool.jobs.put_back(job)
            else:
                deliveries = self._deliveries(examined)
                spool.jobs.inferred(job, examined.outcome, examined.reason, deliveries)
        except (OSError, sqlite3.Error, BackendError):
            raise  # not for this series to blame
        except Exception as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            _LOG.error("job %s: %s", job.job[:16], reason_of(error))
            spool.jobs.fail(job, reason_of(error))
            self._figures.jobs.labels("failed").inc()
            examined = None
        self._unfinished = None
        if examined is not None:
            seconds = time.perf_counter() - start
            self._figures.infer_seconds.observe(seconds)
            self._figures.jobs.labels(examined.outcome).inc()
            _LOG.info("job %s: %s in %.1f s", job.job[:16], examined.outcome, seconds)
        for sender in senders:
            sender.wake.set()

    def _deliveries(self, examined: Examined) -> list[tuple[str, str, Path]]:
        """Who gets which object."""
        return [
            (kind, destination.name, path)
            for destination in self.config.destinations
            for kind, path in examined.files.items()
            if kind in destination.objects
        ]
