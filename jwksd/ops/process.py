"""What the process of a server owes the system: its streams, its signals, its secrets.

Rules of this file:
- It changes the whole process, so only a command line calls it; a server inside somebody's test
  leaves streams, signals and limits as they are.
- A signal handler takes no lock and does no work: the thread that it interrupts may hold the
  lock, or be in the middle of the same work.

It leaves out: daemons, users and groups, and process files; those are the supervisor's.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Callable


def occupy_standard_streams() -> None:
    """Keep the numbers 0 to 2 from the next files opened: log lines in a database destroy it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def keep_secrets() -> None:
    """Make new files for us alone; and a core dump would hold the secret and every private key."""
    os.umask(0o077)
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def leave_on_signals() -> None:
    """Until it is ready, SIGTERM and Ctrl-C close what was begun and exit 0."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)


def obey_signals(stop: Callable[[], None], reload: Callable[[], None] | None) -> None:
    """The first SIGTERM or Ctrl-C calls `stop`, a second one ends the process at once.

    SIGHUP calls `reload`; if there is none, it is ignored.
    """

    def handle(number: int, frame: object) -> None:
        for repeated in (signal.SIGTERM, signal.SIGINT):
            signal.signal(repeated, lambda number, frame: os._exit(1))
        stop()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        heed = signal.SIG_IGN if reload is None else lambda number, frame: reload()
        signal.signal(signal.SIGHUP, heed)
