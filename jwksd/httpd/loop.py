"""HTTP/1.1 on one selector loop: sockets in, sockets out, a worker pool for what takes long.

             +--------------------------- loop (one thread) ---------------------------+
    client --+-> Handler.ready --> Parser --> Handler.route --> Response --> one send --+--> client
             |                                    |                ^                    |
             +------------------------------------|----------------|--------------------+
                                                Future -- done ----+   (wakes the loop)

A connection is a `Handler`, a `BaseHTTPRequestHandler` whose reading and parsing are replaced: the
standard one blocks a thread for each client and takes bytes with two readings (see http1.py). An
idle or slow client costs one object here, never a thread.

Rules of this file:
- Nothing that can block runs on the loop: `route` returns at once, with a `Response` or a `Future`.
- Only the loop touches sockets, handlers and counters. When a Future is done, on whichever thread,
  its handler goes into a deque and the loop is woken through a socket pair; there is no lock.
- A connection has one phase and one deadline. Answers leave in the order of the requests: while a
  `Future` is awaited or an answer waits to be taken, its connection parses and reads nothing more.
  So what a connection can hold is bounded: one read, one request, 64 KiB of answers and one more.
- A failure costs one connection, or one answer; never the loop.

It leaves out: HTTP/2, streaming answers, renegotiation, and signals (the caller's: see `stop`).
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler
from math import inf
from typing import Any, Union

from jwksd.httpd.log import ACCESS_LOGS, LineLog, printable, where
from jwksd.httpd.parser import (
    BODY,
    HEAD,
    IDLE,
    Limits,
    Parser,
    Refused,
    Request,
    Response,
    error,
)  # fmt: skip
from jwksd.httpd.sockets import (
    BACKLOG,
    RECEIVE,
    Connection,
    Listener,
    TLSConnection,
    TurnedAway,
    WantsToWrite,
    client_of,
    descriptor_room,
    share_of,
)
from jwksd.httpd.workers import Overloaded

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
HIGH_WATER = 65_536  # octets of answers before a pipelining client has to take some
ACCEPTS = 64  # connections taken in a row, before those that are open have their turn
ACCEPT_PAUSE = 0.1  # seconds without accepting once the process is out of descriptors
COMPLAIN_EVERY = 10.0  # seconds between two lines about that
NEWCOMER_GRACE = 1.0  # seconds for a connection that has sent nothing yet when the server stops
CROWDED = 0.9  # of the places taken: then who rests is asked to leave earlier
LINES = 1_000  # of the access log, written together: a turn may answer a hundred thousand requests
OUT_OF_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# Phases of a connection, each with its deadline: first the parser's, then those without reading.
WORK, SEND, PAUSE, LINGER, CLOSED = range(BODY + 1, BODY + 6)

FULL = error(503, "overloaded", "The server is full. Try again later.", [("Retry-After", "1")])
BUSY = error(503, "overloaded", "The server is busy. Try again later.", [("Retry-After", "1")])
UNFINISHED = error(
    503,
    "overloaded",
    "The server stopped before this was done. Try again.",
    [("Retry-After", "1")],
)
FAILED = error(500, "server_error", "The server failed. The operator's log says where.")
LIMITS = Limits()
LATE = Refused(408, "Send the whole request sooner.")


Answer = Union[Response, "Future[Response]"]


class Stats:
    """Counters for the operator; written by the loop alone."""

    def __init__(self) -> None:
        self.connections_open = 0
        self.connections_accepted = 0
        self.requests: Counter[int] = Counter()  # status -> answers
        self.rejected_full = 0  # connections: every place is taken
        self.rejected_client = 0  # connections: the address has its share
        self.timeouts = 0  # requests that did not arrive in time, answers not taken in time
        self.log_lines_dropped = 0


class Handler(BaseHTTPRequestHandler):
    """One connection. A subclass says what it answers, in `route`."""

    server: Server  # type: ignore[assignment]  # the base class expects a socketserver

    def __init__(self, connection: Connection, client: str, server: Server) -> None:
        # Not the base class's: that one reads and answers before it returns.
        self.connection = connection
        self.client = client
        self.server = server
        self.parser = Parser(server.limits, client)
        self.output = b""  # answered, but not taken by the client yet
        self.awaited: tuple[Request, float] | None = None  # whose answer is a Future; since when
        self.close_connection = False  # once the output is taken
        self.served = False
        self.more = False  # there may be complete requests that were read and not answered
        self.interest = 0  # what the selector watches for
        self.enter(IDLE)

    def route(self, request: Request) -> Answer:
        """The answer to a request; for HEAD the same as for GET, its body is not sent."""
        raise NotImplementedError

    def recover(self, request: Request, failure: BaseException) -> Answer:
        """The answer in place of what `route`, or the Future that it returned, has raised."""
        if isinstance(failure, (Overloaded, MemoryError)):
            return BUSY
        self.server.log(f"error: {request.method} {printable(request.path)}: {where(failure)}")
        return FAILED

    def log_client(self, request: Request) -> str:
        """Who stands in the access log; for a subclass that knows the proxies."""
        return request.client

    # --- events: called by the loop

    def resume(self) -> None:
        """The others have had their turn."""
        if self.phase == PAUSE:
            self.advance([])

    def ready(self) -> None:
        """The socket can be read, or written if that is what was waited for; or it is new."""
        if self.phase >= WORK:
            self.ready_while_not_reading()
            return
        try:
            octets = self.connection.recv(RECEIVE)
        except BlockingIOError as wait:
            self.watch(WRITE if isinstance(wait, WantsToWrite) else READ)
            return
        except Refused as refused:  # not the TLS that this port speaks
            self.transmit([self.refuse(refused)])
            return
        except OSError:  # a reset, or nonsense in place of TLS
            self.leave()
            return
        if octets:
            self.parser.feed(octets)
            self.advance([])
        else:
            self.close()

    def ready_while_not_reading(self) -> None:
        if self.phase == SEND:
            self.transmit([])
        elif self.phase == LINGER:
            self.drain()
        elif self.phase == WORK:  # what the client sends can wait in the kernel, and then there
            self.watch(0)

    def complete(self, future: Future[Response]) -> None:
        """The Future that was awaited is done."""
        if self.awaited is None or self.phase == CLOSED:  # the server stops, the client has left
            return
        request, started = self.awaited
        self.awaited = None
        failure = future.exception()
        answer = future.result() if failure is None else self.recover(request, failure)
        self.advance([self.octets_of(answer, request, started)])

    def give_up(self) -> None:
        """The server stops. A client whose answer is not there yet gets one all the same."""
        if self.awaited is not None:
            request, started = self.awaited
            self.awaited = None
            self.advance([self.octets_of(UNFINISHED, request, started)])

    def expire(self) -> None:
        """The deadline has passed."""
        if self.phase in (HEAD, BODY, SEND):
            self.server.stats.timeouts += 1
        if self.phase in (HEAD, BODY):
            self.transmit([self.refuse(LATE)])
        else:
            self.close()

    # --- requests to answers

    def advance(self, answers: list[bytes]) -> None:
        """Answer what is complete, in order, in one write; `answers` are those already made."""
        size = 0
        self.more = False
        while not (self.output or self.awaited or self.close_connection):
            if size >= HIGH_WATER:
                self.more = True
                break
            try:
                request = self.parser.next_request()
            except Refused as refused:
                answers.append(self.refuse(refused))
                break
            if request is None:
                if self.parser.expects_continue:
                    self.parser.expects_continue = False
                    answers.append(CONTINUE)
                break
            answer = self.answer(request)
            answers.append(answer)
            size += len(answer)
        self.transmit(answers)

    def answer(self, request: Request) -> bytes:
        """The answer's octets; none yet if it comes later."""
        self.phase = IDLE
        self.served = True
        started = self.server.now
        if not self.server.looked:
            self.server.look()
        try:
            answer = self.route(request)
        except Exception as failure:
            answer = self.recover(request, failure)
        return self.octets_of(answer, request, started)

    def octets_of(self, answer: Answer, request: Request, started: float) -> bytes:
        if isinstance(answer, Future):
            self.awaited = request, started
            answer.add_done_callback(partial(self.server.hand_over, self))
            return b""
        return self.wire(request, answer, started)

    def wire(self, request: Request, response: Response, started: float) -> bytes:
        server = self.server
        server.stats.requests[response.status] += 1
        if server.access is not None:
            server.note(self.log_client(request), request, response, started)
        if not request.keep_alive or server.stopping:
            self.close_connection = True
            tail = server.tail_close
        else:
            tail = server.tail if request.version != "1.0" else server.tail_keep_alive
        return response.wire(tail, request.method == "HEAD")

    def refuse(self, refused: Refused) -> bytes:
        """The answer to what is no request. Nothing behind it can be trusted to be one."""
        self.close_connection = True
        response = refused.response
        self.server.stats.requests[response.status] += 1
        if self.server.access is not None:
            unread = Request("-", "-", client=self.client)
            self.server.note(self.client, unread, response, self.server.now)
        return response.wire(self.server.tail_close, self.parser.wants_no_body)

    # --- octets out, and what comes then

    def transmit(self, answers: list[bytes]) -> None:
        """Send what there is; wait for the client to take the rest."""
        octets = b"".join(answers) if not self.output else self.output + b"".join(answers)
        if octets:
            try:
                sent = self.connection.send(octets)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            self.output = octets[sent:]
        self.settle()

    def settle(self) -> None:
        """Choose the phase: what this connection waits for now, and until when."""
        if self.output:
            if self.phase != SEND:
                self.enter(SEND)
            self.watch(WRITE)
            return
        if self.close_connection:
            self.leave()
            return
        if self.awaited:
            phase = WORK
        elif self.more or self.phase == SEND:
            phase = PAUSE
            self.server.resume(self)  # on the next turn: the others have waited
        else:
            phase = self.parser.stage
        if phase != self.phase or phase == IDLE:  # a request's deadline does not move
            self.enter(phase)
        if phase != WORK and self.interest != READ:
            self.watch(READ)

    def enter(self, phase: int) -> None:
        self.phase = phase
        self.deadline = self.server.now + self.server.times[phase]

    def watch(self, events: int) -> None:
        if events != self.interest:
            self.server.watch(self, events)
            self.interest = events

    def leave(self) -> None:
        """Say no more, and close once the client has done so too: RFC 9112 §9.6.

        What it sends after a close would be answered by a reset, which destroys the answer.
        """
        try:
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.enter(LINGER)
        self.watch(READ)

    def drain(self) -> None:
        try:
            if self.connection.recv(RECEIVE):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        if self.phase != CLOSED:
            self.phase = CLOSED  # an event of the same turn finds nothing to do
            self.watch(0)
            self.server.forget(self)
            self.connection.close()


class Server:
    """The loop on a listening socket, which it closes at its end.

    `app` is for the handlers, which find it as `self.server.app`. `log` takes lines (several at
    once are joined by line ends) and must neither block nor raise. `on_turn` is called before the
    first request that is routed in a turn of the loop. The `clock` counts seconds, and decides
    about every deadline.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self.log = log or LineLog().write
        self._line_log = getattr(self.log, "__self__", None)  # its counter is one of the stats
        self._stamp_format, self.access = ACCESS_LOGS[access_log]
        self.app = app
        self.stats = stats or Stats()
        self.stopping = False
        self.looked = False  # whether `on_turn` was called in this turn
        self._handler_class = handler_class
        self._on_turn = on_turn
        self._listener = listener
        self._max_connections = min(max_connections, descriptor_room(max_connections))
        self._max_per_client = max_per_client
        self._per_client: Counter[str] = Counter()
        self._connections: set[Handler] = set()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        self._woken = False  # whether a wake-up is on its way: one is enough for many answers
        self._done: deque[tuple[Handler, Future[Response]]] = deque()
        self._turned_away = TurnedAway(limits.linger)
        self._unfinished: list[Handler] = []  # have requests to answer without reading
        self._lines: list[str] = []  # of the access log, in this turn
        self._stop = False
        self._stop_at = 0.0
        self._closed = False
        self.times = {
            IDLE: limits.idle,
            HEAD: limits.head_time,
            BODY: limits.body_time,
            WORK: inf,
            SEND: limits.send_time,
            PAUSE: inf,
            LINGER: limits.linger,
        }
        self._sweep_every = max(
            0.01, min(1.0, min(self.times.values()) / 4)
        )  # of the shortest, a quarter
        self._second = -1
        self._set_clock()
        self._next_sweep = self.now + self._sweep_every
        self._accept_at: float | None = None  # when to accept again, if out of descriptors
        self._complained_at = -inf

    def serve_forever(self) -> None:
        """Run the loop in this thread until `stop`; then everything is closed."""
        self._selector.register(self._listener.socket, READ, self._accept)
        self._selector.register(self._wakeup, READ, self._collect)
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
        """Free the address. For a server that never ran; one that ran has done it."""
        if not self._closed:
            self._closed = True
            self._listener.close()
            self._selector.close()
            self._wakeup.close()
            self._waker.close()

    # --- one turn of the loop

    def _turn(self) -> None:
        wait = 0.0 if self._unfinished else max(0.0, self._next_sweep - self.now)
        events = self._selector.select(wait)
        self._set_clock()
        self.looked = False
        unfinished, self._unfinished = self._unfinished, []
        for handler in unfinished:
            self._guard(handler.resume)
        for key, _ in events:
            try:
                key.data()
            except Exception as failure:
                self._broken(key.data, failure)
        if self.now >= self._next_sweep:
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
        """The time of this turn, and what is spelled anew once a second."""
        self.now = self._clock()
        second = int(time.time())
        if second != self._second:
            self._second = second
            date = formatdate(second, usegmt=True).encode()  # RFC 9110 §5.6.7
            self.tail = date + b"\r\n\r\n"
            self.tail_close = date + b"\r\nConnection: close\r\n\r\n"
            self.tail_keep_alive = date + b"\r\nConnection: keep-alive\r\n\r\n"
            self._stamp = time.strftime(self._stamp_format, time.gmtime(second))

    def _sweep(self) -> None:
        """Let the connections go whose deadline has passed: a pass a second, not a timer each."""
        self._next_sweep = self.now + self._sweep_every
        crowded = len(self._connections) >= CROWDED * self._max_connections
        early = self.now + self.limits.idle - self.limits.idle_full if crowded else self.now
        for handler in list(self._connections):
            rests = handler.phase == IDLE and (handler.served or self._listener.tls is None)
            if handler.deadline <= (early if rests else self.now):
                self._guard(handler.expire)
        self._turned_away.close(self.now)
        if self._accept_at is not None and self._accept_at <= self.now:
            self._accept_at = None
            self._selector.register(self._listener.socket, READ, self._accept)
        if isinstance(self._line_log, LineLog):
            self.stats.log_lines_dropped = self._line_log.dropped

    # --- connections

    def _accept(self) -> bool:
        """Take some connections in; whether there may be more."""
        for _ in range(ACCEPTS):
            try:
                raw, address = self._listener.socket.accept()
            except BlockingIOError:
                return False
            except OSError as failure:
                if failure.errno in OUT_OF_ROOM:
                    self._pause_accepting(failure)
                    return False
                continue  # the client left before it was looked at
            raw.setblocking(False)
            self._admit(raw, client_of(address))
        return True

    def _admit(self, raw: socket.socket, client: str) -> None:
        share = share_of(client)
        if len(self._connections) >= self._max_connections:
            self.stats.rejected_full += 1
            self._turn_away(raw)
        elif self._per_client[share] >= self._max_per_client and client != "unix":
            self.stats.rejected_client += 1
            self._turn_away(raw)
        else:
            connection = (
                raw if self._listener.tls is None else TLSConnection(raw, self._listener.tls)
            )
            handler = self._handler_class(connection, client, self)
            if (
                self._listener.tls is not None
            ):  # who does not finish the handshake does not rest, but hang
                handler.deadline = self.now + self.limits.head_time
            self._connections.add(handler)
            self._per_client[share] += 1
            self.stats.connections_accepted += 1
            self.stats.connections_open += 1
            self._guard(handler.ready)

    def _turn_away(self, raw: socket.socket) -> None:
        if self._listener.tls is None:
            self._turned_away.add(raw, FULL.wire(self.tail_close), self.now)
        else:  # a handshake would cost more than the place that it has not got
            raw.close()

    def _pause_accepting(self, failure: OSError) -> None:
        """Out of descriptors: accepting again at once would fail again at once."""
        self._selector.unregister(self._listener.socket)
        self._accept_at = self.now + ACCEPT_PAUSE
        self._next_sweep = min(self._next_sweep, self._accept_at)
        if self.now - self._complained_at > COMPLAIN_EVERY:
            self._complained_at = self.now
            self.log(f"warning: no more connections for now: {failure.strerror}")

    def watch(self, handler: Handler, events: int) -> None:
        """Report these events of a handler's connection, 0 for none."""
        if handler.interest == 0:
            self._selector.register(handler.connection, events, handler.ready)
        elif events == 0:
            self._selector.unregister(handler.connection)
        else:
            self._selector.modify(handler.connection, events, handler.ready)

    def resume(self, handler: Handler) -> None:
        """Let a handler go on in the next turn, without an event."""
        self._unfinished.append(handler)

    def forget(self, handler: Handler) -> None:
        """It is closed."""
        self._connections.discard(handler)
        self.stats.connections_open -= 1
        share = share_of(handler.client)
        self._per_client[share] -= 1
        if not self._per_client[share]:
            del self._per_client[share]

    def note(self, client: str, request: Request, response: Response, started: float) -> None:
        """A line for the access log; the lines of a turn are written together."""
        if self.access is not None:
            seconds = self._clock() - started
            self._lines.append(self.access(self._stamp, client, request, response, seconds))
            if len(self._lines) >= LINES:
                self._write_lines()

    def _write_lines(self) -> None:
        self.log("\n".join(self._lines))
        self._lines = []

    # --- answers that come later

    def hand_over(self, handler: Handler, future: Future[Response]) -> None:
        """A Future is done: have the loop complete the request. From any thread."""
        self._done.append((handler, future))
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            with suppress(OSError):  # full: the loop wakes anyway; closed: it has ended
                self._waker.send(b"\0")

    def _collect(self) -> None:
        with suppress(OSError):
            self._wakeup.recv(RECEIVE)
        self._woken = False  # before the deque is read: what comes later wakes again
        while self._done:
            handler, future = self._done.popleft()
            self._guard(handler.complete, future)

    # --- the end

    def _begin_to_stop(self) -> None:
        """No new connections; those at rest go, the others have until `limits.stop`."""
        self.stopping = True
        self._stop_at = self.now + self.limits.stop
        for _ in range(BACKLOG // ACCEPTS):  # whoever has connected already is served
            if self._accept_at is not None or not self._accept():
                break
        self._stop_listening()
        self._sweep_every = min(self._sweep_every, 0.1)
        self._next_sweep = self.now  # so that the next turn waits for nothing
        self._turn()  # whoever has sent a request already is answered
        for handler in list(self._connections):
            if handler.phase == IDLE:
                handler.deadline = self.now + (0.0 if handler.served else NEWCOMER_GRACE)
        self._sweep()

    def _stop_listening(self) -> None:
        if self._accept_at is None:
            self._selector.unregister(self._listener.socket)
        self._accept_at = None
        self._listener.close()
