"""The places among the connections: who gets one, who gives it up, and whose turn is next.

Rules of this file:
- No I/O except for connections that are turned away, and no clock.
- A source is an IPv4 address, or the /64, /56 and /48 around an IPv6 address with growing shares:
  a customer has a /64 at least and a /48 at most (RFC 6177).

It leaves out: how many requests a source may make; that is the limiter's.
"""

from __future__ import annotations

import functools
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv6Address

TURNED_AWAY = 16  # connections without a place that are open at a time
READ = 16_384  # octets of their requests that are read, so that the answer survives
WIDER = ((7, 1.5), (6, 2.0))  # octets of a /56 and a /48; so many times the share of a /64


@functools.lru_cache(maxsize=4_096)  # the clients of a busy minute
def sources_of(client: str) -> tuple[tuple[str, float], ...]:
    """The sources that a connection counts for, and how many shares each of them has."""
    if ":" not in client:
        return ((client, 1.0),)
    octets = IPv6Address(client).packed
    wider = [(octets[:size].hex(), shares) for size, shares in WIDER]
    return ((octets[:8].hex(), 1.0), *wider)


class Shares:
    """How many connections each source has; a share is `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.taken: Counter[str] = Counter()

    def take(self, client: str) -> bool:
        """Count one more connection; False, and nothing counted, if a source has all its shares."""
        sources, taken = sources_of(client), self.taken
        for name, shares in sources:
            if taken[name] >= shares * self._most and client != "unix":
                return False  # a client that reaches the file is a proxy
        for name, _ in sources:
            taken[name] += 1
        return True

    def give_back(self, client: str) -> None:
        """Count one connection less."""
        for name, _ in sources_of(client):
            self.taken[name] -= 1
            if not self.taken[name]:
                del self.taken[name]


class Turns:
    """Calls that wait for a turn of the loop; sources take turns, so each delays only itself."""

    def __init__(self) -> None:
        # By source; the turn of the first one is next.
        self._waiting: OrderedDict[str, deque[Callable[[], None]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, client: str, react: Callable[[], None]) -> None:
        """Add something behind what waits for the same source."""
        self._waiting.setdefault(sources_of(client)[0][0], deque()).append(react)

    def take(self, most: int) -> list[Callable[[], None]]:
        """The next calls; the source of each goes to the end."""
        taken: list[Callable[[], None]] = []
        while self._waiting and len(taken) < most:
            source, waiting = self._waiting.popitem(last=False)
            taken.append(waiting.popleft())
            if waiting:
                self._waiting[source] = waiting
        return taken


class TurnedAway:
    """Connections that got one answer and no place, until their clients have had time to read it.

    A close at once would reset a client that is still sending, and destroy the answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, socket.SocketType]] = deque()

    def add(self, raw: socket.SocketType, answer: bytes, now: float) -> None:
        """Send this answer; close later, or at once if too many connections wait."""
        with suppress(OSError):  # mostly: nothing has come yet
            raw.recv(READ)  # unread octets would reset the connection, too
        try:
            raw.send(answer)
            raw.shutdown(socket.SHUT_WR)
        except OSError:
            raw.close()
            return
        self._waiting.append((now + self._seconds, raw))
        if len(self._waiting) > TURNED_AWAY:
            self._close_first()

    def close(self, now: float) -> None:
        """Close those whose time is over."""
        while self._waiting and self._waiting[0][0] <= now:
            self._close_first()

    def _close_first(self) -> None:
        _, raw = self._waiting.popleft()
        raw.close()
