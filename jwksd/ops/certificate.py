"""The certificate, read again while the server runs.

A signal handler may only set a flag; the upkeep's thread looks at it every second. The reading has
a thread of its own: a file far away may take for ever, and keys cannot wait for it.

It leaves out: noticing that the files have changed. The program that renews them sends SIGHUP.
"""

from __future__ import annotations

import threading
from typing import Callable

from jwksd import httpd


class Certificate:
    """The certificate of a listener; a supervisor hears of each reading."""

    def __init__(
        self, listener: httpd.Listener, supervisor: httpd.Supervisor, log: Callable[[str], None]
    ) -> None:
        self._listener = listener
        self._supervisor = supervisor
        self._log = log
        self._wanted = False
        self._reading: threading.Thread | None = None

    def want(self) -> None:
        """Have the certificate read again; from any thread or signal handler."""
        self._wanted = True

    def read_if_wanted(self) -> None:
        """Begin to read the certificate if that was wanted, unless a reading goes on already."""
        if not self._wanted or (self._reading is not None and self._reading.is_alive()):
            return
        self._wanted = False
        self._reading = threading.Thread(target=self._read, daemon=True)
        try:
            self._reading.start()
        except RuntimeError:  # the system has no more threads now
            self._wanted = True

    def _read(self) -> None:
        """Use the certificate in the files; keep the old one if they cannot be read."""
        self._supervisor.reloading()
        try:
            self._listener.reload_tls()
            self._log("the certificate was read again")
        except (OSError, ValueError) as error:
            self._log(f"the certificate was not read again: {error}")
        self._supervisor.ready()
