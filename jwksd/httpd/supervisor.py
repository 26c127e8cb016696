"""What a supervisor is told: that the server is ready, reloads, stops, and that its loop turns.

    READY=1   RELOADING=1   STOPPING=1   WATCHDOG=1       datagrams to the socket of NOTIFY_SOCKET

Rules of this file:
- The protocol is sd_notify(3), which systemd and several container engines speak.
- A supervisor that does not listen stalls nothing: what cannot be sent at once is dropped.

It leaves out: passing sockets and descriptors.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Supervisor:
    """The program that started the process and wants to be told; none, without an address."""

    def __init__(self, address: str = "", interval: float = 0.0) -> None:
        """`interval`: within how many seconds it wants to hear of the loop; 0 for never."""
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = interval / 2  # sd_watchdog_enabled(3): every half of the time
        self._due = 0.0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Supervisor:
        """The supervisor that the variables name (sd_notify(3), sd_watchdog_enabled(3))."""
        microseconds = environ.get("WATCHDOG_USEC", "")
        interval = int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0
        return cls(environ.get("NOTIFY_SOCKET", ""), interval)

    def ready(self) -> None:
        """Say that the server serves, for the first time or again."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that the server reads its files again; `ready` follows."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """Say that the server answers what is in flight, and ends."""
        self._send("STOPPING=1")

    def turned(self, now: float) -> None:
        """The loop has turned; `now` is its monotonic time."""
        if self._interval and now >= self._due:
            self._due = now + self._interval
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)
