"""The socket that listens, and the clients that come: bounded in number, none harms another."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...errors import BerdiffError, Cancelled
from ..audit import AuditLog
from ..health import Health
from .figures import Figures
from .session import Session, Work
from .wire import Vanished, Wire

_LOG = logging.getLogger(__name__)

_REFUSALS = 16  # clients at a time that are told why they are refused; more are hung up on
_LAST_WORD = 1.0  # seconds in which a session may tell its client that the server stops
_LOOK = 0.2  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Manners:
    """How the server treats clients.

    Attributes
    ----------
    host : str
        Address to listen on.
    port : int
        0 takes a free one.
    clients : int
        Sessions at a time; who comes above it is told so.
    idle : float
        Seconds a client may send nothing between messages.
    patience : float
        Seconds for one message.
    grace : float
        Seconds that running sessions get when the server stops.
    max_text : int
        Bytes of a text.
    """

    host: str = "127.0.0.1"
    port: int = 9002
    clients: int = 4
    idle: float = 600.0
    patience: float = 60.0
    grace: float = 8.0
    max_text: int = 2**20


class Server:
    """Serves a detector to MRD clients.

    Parameters
    ----------
    work : Work
        What sessions do. Its `cancel` must be `stopping.now`.
    manners : Manners
        How clients are treated.
    health : Health
        Told when the server takes work, and when not.
    audit : AuditLog, optional
        Gets a line for each session.
    """

    def __init__(
        self,
        work: Work,
        manners: Manners,
        health: Health,
        audit: AuditLog | None,
        stopping: Stopping,
    ) -> None:
        self._work = work
        self._manners = manners
        self._health = health
        self._audit = audit
        self._stopping = stopping
        self._figures = Figures(health)
        self._slots = threading.BoundedSemaphore(manners.clients)
        self._refusals = threading.BoundedSemaphore(_REFUSALS)
        self._clients: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        self._numbers = 0

    @contextmanager
    def serving(self) -> Iterator[int]:
        """Listen while the block runs.

        Yields
        ------
        int
            The port.

        Raises
        ------
        BerdiffError
            If the port is taken.
        """
        where = self._manners
        try:
            family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
            listener = socket.create_server((where.host, where.port), family=family, backlog=64)
        except OSError as error:
            raise BerdiffError(
                f"cannot listen on {where.host}:{where.port}: {error.strerror}; choose another "
                "--host or --port"
            ) from error
        with listener:
            listener.settimeout(_LOOK)
            accepting = threading.Thread(target=self._accept, args=(listener,))
            accepting.start()
            self._health.ready()
            try:
                yield int(listener.getsockname()[1])
            finally:
                self._health.unready("stopping")
                self._stopping.begin()
                accepting.join()
        self._finish()

    def wait(self) -> None:
        """Wait until somebody asks the server to stop."""
        while not self._stopping.asked:
            time.sleep(_LOOK)

    def _finish(self) -> None:
        """Give running sessions their time, then end them."""
        end = time.monotonic() + self._manners.grace
        while self._running() and time.monotonic() < end:
            time.sleep(0.05)
        self._stopping.now.set()
        for thread in self._running():
            thread.join(_LAST_WORD)
        for thread, peer in self._running().items():
            with contextlib.suppress(OSError):  # it has closed it meanwhile
                peer.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _running(self) -> dict[threading.Thread, socket.socket]:
        with self._lock:
            return {thread: peer for thread, peer in self._clients.items() if thread.is_alive()}

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.asked:
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # of a client that is gone again, or too many open files
                _LOG.warning("a client could not be accepted: %s", error)
                time.sleep(_LOOK)
                continue
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._slots.acquire(blocking=False):
                self._start(self._serve, peer)
            elif self._refusals.acquire(blocking=False):
                self._start(self._refuse, peer)
            else:
                peer.close()

    def _start(self, target: object, peer: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(peer,), daemon=True)  # type: ignore[arg-type]
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
            _LOG.warning("a client was hung up on: no more threads")
            peer.close()
            (self._slots if target == self._serve else self._refusals).release()
            return
        with self._lock:
            alive = {other: own for other, own in self._clients.items() if other.is_alive()}
            self._clients = {**alive, thread: peer}

    def _refuse(self, peer: socket.socket) -> None:
        wire = Wire(peer, 1.0, 1.0, 0)
        self._figures.refused("busy")
        try:
            _say(wire, f"the server is busy with {self._manners.clients} clients; try again later")
            wire.hang_up()
        finally:
            self._refusals.release()

    def _serve(self, peer: socket.socket) -> None:
        self._figures.came()
        start = time.perf_counter()
        manners = self._manners
        wire = Wire(
            peer, manners.idle, manners.patience, manners.max_text, lambda: self._wanted(session)
        )
        session = Session(wire, self._work)
        outcome, reason = "failed", ""
        try:
            outcome, reason = self._run(session, wire)
        finally:
            seconds = time.perf_counter() - start
            self._figures.went(outcome, len(session.images), session.sent, session.answered)
            try:
                self._note(session, outcome, reason, seconds)
            finally:
                wire.hang_up()
                self._slots.release()

    def _wanted(self, session: Session) -> bool:
        """Whether a session that waits for its client may go on waiting."""
        stopping = self._stopping
        return not (stopping.now.is_set() or (stopping.asked and not session.begun))

    def _run(self, session: Session, wire: Wire) -> tuple[str, str]:
        """Run a session to its end; whatever happens in it ends here."""
        try:
            session.run()
        except Vanished as error:
            if self._stopping.asked:
                _say(wire, "the server stops")
            return "vanished", str(error)
        except Cancelled:
            _say(wire, "the server stops; nothing can be said of these images")
            return "stopped", "the server stops"
        except BerdiffError as error:
            _say(wire, str(error))
            return "refused", type(error).__name__  # its text may quote what the client sent
        except MemoryError:
            _say(wire, "the server has too little memory for these images")
            return "failed", "too little memory"
        except Exception:
            # A client must not take the others down with it, and must not wait in vain.
            _LOG.exception("a session failed")
            _say(wire, "the server failed; its log says how")
            return "failed", "unexpected error"
        if not session.images:
            return "nothing asked", ""
        return ("partly answered" if session.failures else "answered"), ""

    def _note(self, session: Session, outcome: str, reason: str, seconds: float) -> None:
        with self._lock:
            self._numbers += 1
            number = self._numbers
        _LOG.info(
            "session %d: %s after %.2f s; %d images in, %d out%s",
            number,
            outcome,
            seconds,
            len(session.images),
            session.sent,
            f": {reason}" if reason else "",
        )
        if self._audit is None:
            return
        settings, request = session.settings, session.request
        self._audit.append(
            "session",
            outcome=outcome,
            images=len(session.images),
            sent=session.sent,
            inputs=list(session.digests),
            verdicts=list(session.verdicts),
            failures=len(session.failures),
            bundle=self._work.detector.bundle.digest,
            seed=request.seed or 0,
            noise_level=settings.noise_level if settings else None,
            steps=settings.steps if settings else None,
            flip_threshold=settings.flip_threshold if settings else None,
            threshold=request.threshold,
            seconds=round(seconds, 3),
        )


class Stopping:
    """That the server is to stop: asked for first, then now. A signal handler may `begin` it."""

    def __init__(self) -> None:
        self.asked = False
        self.now = threading.Event()

    def begin(self) -> None:
        """Take no more clients. A plain assignment: safe in a signal handler."""
        self.asked = True


def _say(wire: Wire, reason: str) -> None:
    """Tell a client what went wrong, in the way clients look for, and that nothing more comes."""
    with contextlib.suppress(Vanished):
        wire.send_text(f"ERROR    {reason}")
        wire.send_close()
