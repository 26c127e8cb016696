"""How far a long command is: one line on a terminal that is gone at the end, and nothing elsewhere.

    with progress.shown("backup", measure):        backup: 120 of 700 MiB, 3 s
        ...

Rules of this file:
- Where standard error is no terminal, nothing is written: a pipe gets sentences alone.
- Work that is done within half a second shows nothing.
- A failure here costs the line, never the work.

It leaves out: how long the rest takes. Disks are not that even.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Callable, TextIO

FIRST_SECONDS = 0.5  # before the line appears: nobody wonders about less
EVERY_SECONDS = 0.2  # between two looks
COLUMNS = 80  # of a terminal that does not say how wide it is


class Line:
    """The line; a thread of its own writes it. `measure` says how far the work is, in words."""

    def __init__(self, what: str, measure: Callable[[], str], stream: TextIO | None) -> None:
        self._what, self._measure, self._stream = what, measure, stream
        self._began = time.monotonic()
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards the stream and _width
        self._width = 0  # of the text on the terminal now
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Appear, unless the work ends soon."""
        with contextlib.suppress(RuntimeError):  # the system has no more threads now
            self._thread.start()

    def end(self) -> None:
        """Disappear for good."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            self._write("")

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """A context without the line, in which other text may be written to the terminal."""
        with self._lock:
            self._write("")
            yield

    def _run(self) -> None:
        wait = FIRST_SECONDS
        while not self._over.wait(wait):
            text = self._text()
            with self._lock:
                self._write(text)
            wait = EVERY_SECONDS

    def _text(self) -> str:
        try:
            far = self._measure()
        except Exception:  # the file that is measured may be gone, or locked
            far = ""
        return f"{self._what}: {far + ', ' if far else ''}{time.monotonic() - self._began:.0f} s"

    def _write(self, text: str) -> None:
        """Take the place of what was written before, with blanks where that was longer."""
        if self._stream is None or not (text or self._width):
            return
        # One column less: a full line would wrap, and the carriage return would not reach it.
        text = text[: columns(self._stream) - 1]
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(f"\r{text.ljust(self._width)}" + ("" if text else "\r"))
            self._stream.flush()
        self._width = len(text)


def columns(stream: TextIO) -> int:
    """How wide a terminal is."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


@contextlib.contextmanager
def shown(
    what: str, measure: Callable[[], str] = lambda: "", stream: TextIO | None = None
) -> Iterator[Line]:
    """Show on standard error, if that is a terminal, how far the work inside is."""
    stream = stream or sys.stderr
    line = Line(what, measure, stream)
    if is_terminal(stream):
        line.start()
    try:
        yield line
    finally:
        line.end()
