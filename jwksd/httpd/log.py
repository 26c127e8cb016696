"""The log: lines that never hold anybody up, and what they look like.

    loop, workers --write--> form --> deque (bounded) --one thread--> standard error

Rules of this file:
- Writing never blocks and never raises. A log that nobody reads costs its lines, which are counted,
  and never an answer. When the access log floods, there is still room for the operator's lines.
- A line is ASCII without control characters, whatever the client sent, and has no secret in it: no
  query, no header, no body, no message of an exception.

It leaves out: rotation and files; those are the supervisor's (systemd, docker). What the operator's
lines look like beside plain text is for the caller to say (`form`).
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections import deque
from json import dumps
from typing import Callable, TextIO

from jwksd.httpd.parser import Request, Response

LOG_PAUSE = 0.02  # seconds in which lines gather, so that a busy log costs fifty wake-ups a second
ROOM_KEPT = 0.1  # of the lines that may wait: an access log that floods leaves it to the others
LOG_PATH = 200  # characters of a path in the log: enough to recognise it


class LineLog:
    """Lines to a stream that may be slow, full or gone, without waiting for it.

    `write` never blocks and never raises: beyond `limit` waiting lines, and when the stream fails,
    lines are dropped and counted. One thread writes; it is a daemon, so a pipe that nobody empties
    cannot hold up the end of the process.
    """

    def __init__(self, stream: TextIO | None = None, limit: int = 10_000) -> None:
        self._stream = stream or sys.stderr  # None if it was closed when the process started
        self._limit = limit
        self._lines: deque[str] = deque()
        self._wake = threading.Event()
        self._written = threading.Event()
        self._written.set()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # guards _thread, so that there is one
        self.form: Callable[[str], str] = str  # of the lines of `write`: unchanged by default
        self.dropped = 0

    def write(self, line: str) -> None:
        """Queue one line in its form, or several with line ends between them."""
        self._queue(self.form(line), self._limit)

    def write_access(self, line: str) -> None:
        """Queue lines of the access log as they stand; they leave some room for the others."""
        self._queue(line, self._limit - max(1, int(ROOM_KEPT * self._limit)))

    def _queue(self, line: str, limit: int) -> None:
        lines = line.split("\n")
        if len(self._lines) + len(lines) > limit:
            self.dropped += len(lines)
            return
        self._lines.extend(lines)
        self._written.clear()
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Wait until every line is written or dropped; False if that took too long."""
        return self._written.wait(timeout)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # no thread to be had: the next line tries again
                    self._thread = None

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines:
                self._put("\n".join(lines) + "\n")
            if not self._lines:
                self._written.set()
                if self._lines:  # one came in between
                    self._written.clear()
            time.sleep(LOG_PAUSE)

    def _put(self, text: str) -> None:
        try:
            if self._stream is None:
                raise OSError("there is no standard error")
            try:
                descriptor = self._stream.fileno()
            except (OSError, ValueError):  # a stream in memory
                self._stream.write(text)
            else:
                # Not through the stream: a daemon that holds its lock would stop the interpreter.
                write_all(descriptor, text.encode(errors="backslashreplace"))
        except (OSError, ValueError):
            self.dropped += text.count("\n")


def write_all(descriptor: int, octets: bytes) -> None:
    while octets:
        try:
            octets = octets[os.write(descriptor, octets) :]
        except BlockingIOError:  # another process may have made the descriptor non-blocking
            select.select([], [descriptor], [])


def printable(path: str) -> str:
    """A path for a log line: never long, never a quotation mark or anything but ASCII."""
    return ascii(path[:LOG_PATH])[1:-1].replace('"', "%22")


def text_line(stamp: str, client: str, request: Request, response: Response, seconds: float) -> str:
    """The Common Log Format, and the seconds; without the query, where people put secrets."""
    path = printable(request.path)
    return (
        f'{client} - - [{stamp}] "{request.method} {path} HTTP/{request.version}" '
        f"{response.status} {len(response.body)} {seconds:.6f}"
    )


def json_line(stamp: str, client: str, request: Request, response: Response, seconds: float) -> str:
    """One JSON object; without the query, where people put secrets."""
    return dumps(
        {
            "time": stamp,
            "level": "info",
            "event": "request",
            "client": client,
            "method": request.method,
            "path": request.path[:LOG_PATH],
            "status": response.status,
            "octets": len(response.body),
            "seconds": round(seconds, 6),
        }
    )


JSON_TIME = "%Y-%m-%dT%H:%M:%SZ"  # RFC 3339
# name -> the time's format, the line's
ACCESS_LOGS = {
    "text": ("%d/%b/%Y:%H:%M:%S +0000", text_line),
    "json": (JSON_TIME, json_line),
    "off": ("", None),
}


def where(failure: BaseException) -> str:
    """What failed and at which line. Not the message: it may quote a password."""
    place = failure.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    reason = f" ({failure.strerror})" if isinstance(failure, OSError) else ""
    if place is None:
        return f"{type(failure).__name__}{reason}"
    file = os.path.basename(place.tb_frame.f_code.co_filename)
    return f"{type(failure).__name__}{reason} at {file}:{place.tb_lineno}"
