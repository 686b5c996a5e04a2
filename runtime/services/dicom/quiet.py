"""A node's log: what happens, never to whom."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import warnings
from typing import Any

from ...errors import optional
from ...scan_work import reason_of
from ...scans import hide_names


def keep_names_out() -> None:
    """Log to the standard error, without anything that objects hold.

    For programs: pynetdicom, which shows datasets and quotes what it cannot read, is silenced in
    this process, and what nobody expected is named by its place only.
    """
    hide_names()
    warnings.filterwarnings("ignore", module=r"pynetdicom")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    settings: Any = optional("pynetdicom._config", "dicom")
    settings.LOG_HANDLER_LEVEL = "none"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("berdiff.dicom")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    threading.excepthook = _unexpected


def _unexpected(arguments: Any) -> None:
    log, error = logging.getLogger("berdiff.dicom"), arguments.exc_value
    frames = traceback.extract_tb(arguments.exc_traceback)
    if frames and "pynetdicom" in frames[-1].filename:  # its way to end a connection
        log.warning("a peer broke the protocol (%s)", arguments.exc_type.__name__)
    elif isinstance(error, Exception):
        log.error("%s", reason_of(error))
