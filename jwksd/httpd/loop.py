"""HTTP/1.1 on one loop: sockets in, sockets out, a worker pool for what takes long.

             +--------------------------- loop (one thread) ---------------------------+
    client --+-> Handler.ready --> Parser --> Handler.route --> Response --> one send --+--> client
             |                                    |                ^                    |
             +------------------------------------|----------------|--------------------+
                                                Future -- done ----+   (wakes the loop)

Rules of this file:
- Nothing that can block runs on the loop: `route` returns at once, with a `Response` or a `Future`.
- Only the loop touches sockets, handlers and counters. When a Future is done, on whichever thread,
  its handler goes into a deque and the loop is woken through a socket pair; there is no lock.
- A turn is short, whatever clients send: each event costs at most what a `Handler` allows itself,
  and of those that have more to do RESUMED go on in a turn, in fair order (`paused`).
- A failure costs one connection, or one answer; never the loop.

It leaves out: HTTP/2, streaming answers, and signals (the caller's: see `stop`).
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from math import inf
from operator import itemgetter
from typing import Any

from jwksd.httpd.connection import (
    FULL,
    SHAKE,
    UNFINISHED,
    Handler,
    times,
    times_when_crowded,
)  # fmt: skip
from jwksd.httpd.log import ACCESS_LOGS, LineLog, where
from jwksd.httpd.parser import IDLE, Heads, Limits, Request, Response
from jwksd.httpd.places import Shares, TurnedAway, Turns
from jwksd.httpd.sockets import BACKLOG, READ, Listener, descriptor_room, events
from jwksd.httpd.supervisor import Supervisor
from jwksd.httpd.tls import TLSConnection
from jwksd.httpd.workers import CORES, Overloaded, Workers, finish

WAKE_UPS = 64  # octets: one is on its way at most, or a few
ACCEPTS = 64  # connections accepted in a row, before open ones have their turn
HANDSHAKES = 16  # steps of handshakes in a turn: 2 ms, 16 ms with RSA on a single core
RESUMED = 16  # paused connections a turn: 5 ms if they all send key updates, mostly far less
ACCEPT_PAUSE = 0.1  # seconds without accepting once the process is out of descriptors
COMPLAIN_EVERY = 10.0  # seconds between two lines about that
NEWCOMER_GRACE = 1.0  # seconds for a connection that has sent nothing yet when the server stops
CROWDED = 0.9  # of the places taken: from then on connections are waited for less long
REST = 1.0  # seconds that a connection may rest before it has to give its place to a newcomer
LOOK_EVERY = 0.1  # seconds between two looks for connections to close: 5 ms with 10,000 places
LAST_SECOND = 253_402_300_799  # 9999-12-31 23:59:59: no date has five digits for the year
LINES = 1_000  # of the access log, written together: a turn may answer a hundred thousand requests
OUT_OF_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
LIMITS = Limits()


def nobody(client: str) -> bool:
    """No client is a proxy."""
    return False


class Stats:
    """Counters for the operator; written by the loop alone."""

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections_accepted = 0
        self.requests: Counter[int] = Counter()  # status -> answers
        self.rejected_full = 0  # connections: every place is taken
        self.rejected_client = 0  # connections: the address has its share
        self.gave_way = 0  # connections that were closed for a newcomer
        self.timeouts = 0  # requests that did not arrive in time, answers not taken in time
        self.log_lines_dropped = 0


class Server:
    """The loop on a listening socket, which it closes at its end.

    `app` is for the handlers, which find it as `self.server.app`. `log` takes lines (several at
    once are joined by line ends) and must neither block nor raise. `on_turn` is called before the
    first request that is routed in a turn of the loop. The `clock` counts seconds, and decides
    about every deadline. A client that `is_proxy` has no share of the places of its own; those that
    it names in its requests (`Handler.named_client`) have.
    """

    def __init__(
        self,
        listener: Listener,
        handler_class: type[Handler],
        *,
        app: Any = None,
        stats: Stats | None = None,
        max_connections: int = 10_000,
        max_per_client: int = 2_000,  # a campus behind one address; a fifth of the places
        limits: Limits = LIMITS,
        access_log: str = "text",
        log: Callable[[str], None] | None = None,
        on_turn: Callable[[], None] | None = None,
        supervisor: Supervisor | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_proxy: Callable[[str], bool] = nobody,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self.is_proxy = is_proxy
        self.log = log or LineLog().write
        line_log = getattr(self.log, "__self__", None)  # its counter is one of the stats
        self._line_log = line_log if isinstance(line_log, LineLog) else None
        self._stamp_format, self.access = ACCESS_LOGS[access_log]
        self.app = app
        self.stats = stats or Stats()
        self.stopping = False
        self.looked = False  # whether `on_turn` was called in this turn
        self.heads: Heads = {}  # for all parsers
        self._handler_class = handler_class
        self._on_turn = on_turn
        self._supervisor = supervisor or Supervisor()
        self._listener = listener
        self._max_connections = min(max_connections, descriptor_room(max_connections))
        self._shares = Shares(max_per_client)
        self._connections: set[Handler] = set()
        # Connections that give way to newcomers, and since when they wait.
        self._oldest: deque[tuple[float, Handler]] = deque()
        self._look_at = -inf  # when to look for those again
        self.events = events()
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._handshakes = 0  # steps of them in this turn
        self._shakers = Workers(CORES, clock=clock)  # make steps of handshakes
        self._woken = False  # whether a wake-up is on its way: one is enough for many answers
        self._done: deque[tuple[Callable[[Future[Any]], None], Future[Any]]] = deque()
        self._turned_away = TurnedAway(limits.linger)
        self.paused = Turns()  # of handlers that are paused
        self._lines: list[str] = []  # of the access log, in this turn
        self._stop = False
        self._stop_at = 0.0
        self._closed = False
        self.times, crowded = times(limits), times_when_crowded(limits)
        self._earlier = {p: self.times[p] - crowded[p] for p in (IDLE, *UNFINISHED)}
        # A quarter of the shortest time.
        self._sweep_every = max(0.01, min(1.0, min(self.times.values()) / 4))
        self._second = -1
        self._set_clock()
        self._next_sweep = self.now + self._sweep_every
        self._accept_at: float | None = None  # when to accept again, if out of descriptors
        self._complained_at = -inf

    def serve_forever(self) -> None:
        """Run the loop in this thread until `stop`; then everything is closed."""
        self.events.watch(self._listener.socket.fileno(), READ, self._accept)
        self.events.watch(self._wakeup.fileno(), READ, self._collect)
        try:
            while not self._stop:
                self._turn()
            self._begin_to_stop()
            while self._connections and self.now < self._stop_at:
                self._turn()
        finally:
            for handler in list(self._connections):
                self._guard(handler.give_up)
                handler.close()
            self._turned_away.close(inf)
            self._shakers.stop(1.0)
            if self._lines:
                self._write_lines()
            self.close()

    def stop(self) -> None:
        """End gracefully: answer what has come, then return from `serve_forever`.

        For any thread and for signal handlers; returns at once.
        """
        self._stop = True
        self._wake()

    def close(self) -> None:
        """Free the address of a server that never ran; `serve_forever` does it at its end."""
        if not self._closed:
            self._closed = True
            self._listener.close()
            self.events.close()
            self._wakeup.close()
            self._waker.close()

    # --- one turn of the loop

    def _turn(self) -> None:
        wait = 0.0 if self.paused else max(0.0, self._next_sweep - self.now)
        reactions = self.events.wait(wait)
        self._set_clock()
        self.looked = False
        self._handshakes = 0
        for react in reactions:
            try:
                react()
            except Exception as failure:
                self._broken(react, failure)
        if self.paused:
            for resume in self.paused.take(RESUMED):
                self._guard(resume)
        if self.now >= self._next_sweep:
            self._supervisor.turned(self.now)
            self._sweep()
        if self._lines:
            self._write_lines()

    def look(self) -> None:
        """Have the caller look, before the first request of a turn is routed."""
        self.looked = True
        if self._on_turn is not None:
            self._guard(self._on_turn)

    def _guard(self, react: Callable[..., None], *arguments: object) -> None:
        """A defect costs one connection, never the loop."""
        try:
            react(*arguments)
        except Exception as failure:
            self._broken(react, failure)

    def _broken(self, react: Callable[..., object], failure: Exception) -> None:
        self.log(f"error: {where(failure)}")
        owner = getattr(react, "__self__", None)
        if isinstance(owner, Handler):
            owner.close()

    def _set_clock(self) -> None:
        """The time of this turn, and what is spelled once a second."""
        self.now = self._clock()
        second = min(int(time.time()), LAST_SECOND)
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True).encode()  # RFC 9110 §5.6.7
            self.tail = date + b"\r\n\r\n"
            self.tail_close = date + b"\r\nConnection: close\r\n\r\n"
            self.tail_keep_alive = date + b"\r\nConnection: keep-alive\r\n\r\n"
            self._stamp = time.strftime(self._stamp_format, time.gmtime(second))

    def _sweep(self) -> None:
        """Close connections whose deadline has passed: a pass a second, not a timer for each."""
        self._next_sweep = self.now + self._sweep_every
        crowded = len(self._connections) >= CROWDED * self._max_connections
        earlier = self._earlier if crowded else {}
        for handler in list(self._connections):
            if handler.deadline - earlier.get(handler.phase, 0.0) <= self.now:
                self._guard(handler.expire)
        self._turned_away.close(self.now)
        self._shakers.expire()
        if self._accept_at is not None and self._accept_at <= self.now:
            self._accept_at = None
            self.events.watch(self._listener.socket.fileno(), READ, self._accept)
        if self._line_log is not None:
            self.stats.log_lines_dropped = self._line_log.dropped

    # --- connections

    def _accept(self) -> bool:
        """Take some connections in; whether there may be more."""
        for _ in range(ACCEPTS):
            try:
                raw, client = self._listener.accept()
            except BlockingIOError:
                return False
            except OSError as failure:
                if failure.errno in OUT_OF_ROOM:
                    self._pause_accepting(failure)
                    return False
                continue  # the client left before it was looked at
            self._admit(raw, client)
        return True

    def _admit(self, raw: socket.SocketType, client: str) -> None:
        proxied = self.is_proxy(client)
        if not proxied and not self._shares.take(client):
            self.stats.rejected_client += 1
            self.turn_away(raw)
        elif len(self._connections) >= self._max_connections and not self._make_room():
            if not proxied:
                self._shares.give_back(client)
            self.stats.rejected_full += 1
            self.turn_away(raw)
        else:
            self._take_in(raw, client, proxied)

    def _take_in(self, raw: socket.SocketType, client: str, proxied: bool) -> None:
        tls = self._listener.tls
        handler = self._handler_class(raw if tls is None else TLSConnection(raw, tls), client, self)
        self._connections.add(handler)
        handler.proxied = proxied
        self.stats.connections_accepted += 1
        self.stats.connections_open += 1
        if tls is None:
            self._guard(handler.ready)  # the request is there already, mostly
        else:
            handler.watch(READ)

    def turn_away(self, raw: socket.SocketType) -> None:
        """Say that the server is full, if that costs no more than a place would."""
        if self._listener.tls is None:
            self._turned_away.add(raw, FULL.wire(self.tail_close), self.now)
        else:
            raw.close()

    def _make_room(self) -> bool:
        """Close the oldest unfinished request, else the oldest idle connection; False without one.

        Else a few clients that begin requests and never finish them could hold all places.
        """
        if not self._oldest and self._look_at <= self.now:
            self._look_at = self.now + LOOK_EVERY
            self._oldest.extend(self._who_gives_way())
        while self._oldest:
            since, handler = self._oldest.popleft()
            if handler.phase in self._earlier and handler.waits_since() == since:
                self.stats.gave_way += 1
                self._guard(handler.give_way)
                return True
        return False

    def _who_gives_way(self) -> list[tuple[float, Handler]]:
        """Connections without a whole request, then idle ones, each the oldest first."""
        begun, rest = [], []
        for handler in self._connections:
            if handler.phase in UNFINISHED or (handler.phase == IDLE and not handler.served):
                begun.append((handler.waits_since(), handler))
            elif handler.phase == IDLE and handler.waits_since() <= self.now - REST:
                rest.append((handler.waits_since(), handler))
        by_time = itemgetter(0)
        return sorted(begun, key=by_time) + sorted(rest, key=by_time)

    def count_for(self, handler: Handler, named: str | None) -> bool:
        """Count a proxy's connection for the client that it names; False if that has its share."""
        if named is not None and not self._shares.take(named):
            self.stats.rejected_client += 1
            return False
        if handler.named is not None:
            self._shares.give_back(handler.named)
        handler.named = named
        return True

    def _pause_accepting(self, failure: OSError) -> None:
        """Accept nothing for a while: without descriptors the next call would fail at once."""
        self.events.watch(self._listener.socket.fileno(), 0, self._accept)
        self._accept_at = self.now + ACCEPT_PAUSE
        self._next_sweep = min(self._next_sweep, self._accept_at)
        if self.now - self._complained_at > COMPLAIN_EVERY:
            self._complained_at = self.now
            self.log(f"warning: no more connections for now: {failure.strerror}")

    def forget(self, handler: Handler) -> None:
        """Take a closed connection off the books."""
        self._connections.discard(handler)
        self.stats.connections_open -= 1
        counted = handler.named if handler.proxied else handler.client
        if counted is not None:
            self._shares.give_back(counted)

    def note(self, client: str, request: Request, response: Response, started: float) -> None:
        """A line for the access log; the lines of a turn are written together."""
        if self.access is not None:
            seconds = self._clock() - started
            self._lines.append(self.access(self._stamp, client, request, response, seconds))
            if len(self._lines) >= LINES:
                self._write_lines()

    def _write_lines(self) -> None:
        write = self.log if self._line_log is None else self._line_log.write_access
        write("\n".join(self._lines))
        self._lines = []

    # --- answers that come later

    def hand_over(self, react: Callable[[Future[Any]], None], future: Future[Any]) -> None:
        """A Future is done: have the loop react to it. From any thread."""
        self._done.append((react, future))
        self._wake()

    def has_time_to_shake(self, signs: bool) -> bool:
        """Whether one more step of a handshake may be made in this turn, on the loop.

        On a single core a thread would only add its own cost.
        """
        self._handshakes += 1
        return self._handshakes <= HANDSHAKES and (CORES == 1 or not signs)

    def shake(self, handler: Handler, step: Callable[[], bytes | None]) -> None:
        """Have a thread make a step of a handshake; sources take turns."""
        try:
            future = self._shakers.submit(finish, step, source=handler.client)
        except Overloaded:
            handler.close()
        else:
            future.add_done_callback(partial(self.hand_over, handler.shaken))

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            with suppress(OSError):  # full: the loop wakes anyway; closed: it has ended
                self._waker.send(b"\0")

    def _collect(self) -> None:
        with suppress(OSError):
            self._wakeup.recv(WAKE_UPS)
        self._woken = False  # before the deque is read: what comes later wakes again
        while self._done:
            react, future = self._done.popleft()
            self._guard(react, future)

    # --- the end

    def _begin_to_stop(self) -> None:
        """Accept no new connections; close idle ones, and give the others `limits.stop` seconds."""
        self.stopping = True
        self._stop_at = self.now + self.limits.stop
        self._listener.admit_no_more()
        for _ in range(BACKLOG // ACCEPTS):  # clients that have connected already are served
            if self._accept_at is not None or not self._accept():
                break
        self._stop_listening()
        self._sweep_every = min(self._sweep_every, 0.1)
        self._next_sweep = self.now  # so that the next turn waits for nothing
        self._turn()  # requests that have come already are answered
        for handler in list(self._connections):
            if handler.phase in (IDLE, SHAKE) and not handler.paused:
                handler.deadline = self.now + (0.0 if handler.served else NEWCOMER_GRACE)
        self._sweep()

    def _stop_listening(self) -> None:
        if self._accept_at is None:
            self.events.watch(self._listener.socket.fileno(), 0, self._accept)
        self._accept_at = None
        self._listener.close()
