"""The operator's lines as JSON: with `--access-log json`, standard error has one object a line.

    a line of the server      --EVENTS--> {"time", "level", "event", "message"}
    what nobody has caught    --where---> the same, in place of a traceback

Rules of this file:
- `message` is the line that `--access-log text` writes. `event` is a stable word for programs.
- Every line that the server can write has a row in `EVENTS`.
- A failure is told by its type and its places. Its message may quote a password.

It leaves out: the access log, whose lines httpd/log.py writes with the same members in front; and
what is written before the settings are known (a flag that does not exist).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Callable, NamedTuple

from jwksd import httpd
from jwksd.httpd.log import JSON_TIME

Log = Callable[[str], None]
PLACES = 8  # of a failure, the last: enough to see who called
SUBJECTS = (
    "database|reading (?:and writing the database|the attempts at other servers)|rotation|"
    "retention of (?:keys|the log)"
)


class Event(NamedTuple):
    """A kind of line."""

    name: str
    level: str  # info, warning or error
    line: str  # what such a line begins with, as a regular expression


# The first row that fits a line counts. Lines that quote a client stand before those that begin
# with a path, so that no client can give a line another name.
EVENTS = (
    Event("ready", "info", "ready: "),
    Event("internal_error", "error", "(internal )?error: "),
    Event("warning", "warning", "warning: "),
    Event("cannot_start", "error", r"server\.py: "),
    Event("proxy_not_trusted", "warning", "X-Forwarded-For from "),
    Event("recovered", "info", f"({SUBJECTS}): works again$"),
    Event("trouble", "error", f"({SUBJECTS}): "),
    Event("issuer_of_this_machine", "warning", "clients elsewhere cannot use the issuer "),
    Event("limiter_starts_empty", "warning", "the limiter starts empty: "),
    Event("key_made", "info", "a new key was made$"),
    Event("keys_gone", "warning", "unexpired keys are gone "),
    Event("key_skipped", "error", "the stored key "),
    Event("keys_of_another_secret", "error", "no stored key opens any more"),
    Event("previous_secret_in_use", "warning", "[0-9]+ keys are still sealed "),
    Event("previous_secret_unused", "info", "the previous secret opens nothing "),
    Event("secret_made", "warning", "NOT_MY_KEY is not set: "),
    Event("certificate_read", "info", "the certificate was read again$"),
    Event("certificate_not_read", "error", "the certificate was not read again"),
    Event("files_open_to_others", "warning", "the database can be read by others"),
    Event("secret_open_to_others", "warning", r".+ can be read by others: chmod 600 it"),
    Event("secret_short", "warning", ".+ has only [0-9]+ bytes"),
    Event("network_file_system", "warning", ".+ lies on the network file system "),
)
OTHER = Event("note", "warning", "")


def event_of(line: str) -> Event:
    """The event of a line, and its level."""
    return next((event for event in EVENTS if re.match(event.line, line)), OTHER)


def as_json(clock: Callable[[], float]) -> Callable[[str], str]:
    """The form of a line; `clock` gives seconds since 1970."""

    def form(line: str) -> str:
        event = event_of(line)
        stamp = time.strftime(JSON_TIME, time.gmtime(clock()))
        return json.dumps(
            {"time": stamp, "level": event.level, "event": event.name, "message": line}
        )

    return form


def speak_json(log: httpd.LineLog, clock: Callable[[], float] = time.time) -> None:
    """Have every line of this process be an object; for a command line alone."""
    log.form = as_json(clock)

    def main_thread(
        kind: type[BaseException], failure: BaseException, trace: TracebackType | None
    ) -> None:
        log.write(f"error: {places(failure)}")
        log.flush(1.0)  # the process ends now, and the log's thread with it

    def thread(hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread else "a thread"
        log.write(f"error: {places(hook.exc_value)} in {name}")

    def unraisable(hook: Any) -> None:  # sys.UnraisableHookArgs exists for type checkers alone
        log.write(f"error: {places(hook.exc_value)}, ignored")

    sys.excepthook, threading.excepthook, sys.unraisablehook = main_thread, thread, unraisable
    logging.captureWarnings(True)
    # concurrent.futures tells of a callback that failed through `logging`.
    logging.getLogger().addHandler(Records(log.write))


class Records(logging.Handler):
    """What a library says through `logging`, as lines of ours."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line."""
        kind = "error" if record.levelno >= logging.ERROR else "warning"
        failure = record.exc_info[1] if record.exc_info else None
        ending = f": {places(failure)}" if failure else ""
        self._log(f"{kind}: {record.name}: {record.getMessage()}{ending}")


def places(failure: BaseException | None) -> str:
    """What failed, at which line, and from where that was called; without its message."""
    if failure is None:
        return "unknown failure"
    frames = traceback.extract_tb(failure.__traceback__)[-PLACES - 1 : -1]
    callers = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]
    return " from ".join([httpd.where(failure), *reversed(callers)])
