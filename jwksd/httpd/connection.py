"""One connection: a `Handler`, and the phases that it goes through.

    phase    waits for                           at most, see Limits     and then
    -----    ---------                           -------------------     --------
    SHAKE    the handshake of TLS                head_time               it is closed
    IDLE     the first octet of a request        idle                    it is closed
    HEAD     the rest of a head                  head_time               408
    BODY     the rest of a body                  body_time               408
    WORK     the Future that `route` returned    as long as it takes
    SEND     the client to take its answer       send_time               it is closed
    LINGER   the client to close                 linger                  it is closed
    CLOSED   nothing

    SHAKE --> IDLE --> HEAD --> BODY --> WORK --> SEND --> IDLE: the next request
                |        |        |        |        |
                +--------+--------+--------+--------+--> LINGER --> CLOSED

Phases are left out where there is nothing to wait for: mostly a connection is IDLE, and answers
from one event what came with it. A client that has said `Connection: close` sends nothing more, so
there is no LINGER after its answer. HEAD and BODY may end early in another way: when all
places are taken, the oldest of them gives way to a newcomer (places.py).

A `Handler` is a `BaseHTTPRequestHandler` whose reading and parsing are replaced: the standard one
blocks a thread for each client and takes bytes with two readings (see parser.py). An idle or slow
client costs one object here, never a thread.

Rules of this file:
- A connection has one phase and one deadline; while a request is arriving, neither more octets
  nor a turn of the loop move its deadline.
- Work is bounded in a turn: one read of 16 KiB, the STEPS of a parser. What is left waits
  for a later turn (`paused`), and meanwhile nothing more is read.
- Answers leave in the order of the requests: while a `Future` is awaited or an answer waits to be
  taken, nothing more is parsed or read. So what a connection can hold is bounded: one read, one
  request, 64 KiB of answers and one more.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from http.server import BaseHTTPRequestHandler
from math import inf
from typing import TYPE_CHECKING, Union

from jwksd.httpd.log import printable, where
from jwksd.httpd.parser import (
    BODY,
    HEAD,
    IDLE,
    NO_STORE,
    Limits,
    Parser,
    Refused,
    Request,
    Response,
    error,
)  # fmt: skip
from jwksd.httpd.sockets import READ, WRITE
from jwksd.httpd.tls import TLSConnection, WantsToCompute, WantsToWrite
from jwksd.httpd.workers import Overloaded

if TYPE_CHECKING:
    from jwksd.httpd.loop import Server

RECEIVE = 16_384  # octets a read: a whole request, mostly; memory for each unfinished one
HIGH_WATER = 65_536  # octets of answers before a pipelining client has to take some
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

# Phases: first the parser's, then those of a connection that does not read requests.
SHAKE, WORK, SEND, LINGER, CLOSED = range(BODY + 1, BODY + 6)
UNFINISHED = (HEAD, BODY, SHAKE)


def overloaded(description: str) -> Response:
    """503, to try again in a second."""
    return error(503, "overloaded", description, (("Retry-After", "1"), NO_STORE))


FULL = overloaded("The server is full. Try again later.")
BUSY = overloaded("The server is busy. Try again later.")
UNDONE = overloaded("The server stopped before this was done. Try again.")
FAILED = error(
    500, "server_error", "The server failed. The operator's log says where.", (NO_STORE,)
)
NO_SHARE = overloaded("This client has enough connections. Try again later.")
LATE = Refused(408, "Send the whole request sooner.").response

Connection = Union[socket.SocketType, TLSConnection]
Answer = Union[Response, "Future[Response]"]


def times(limits: Limits) -> dict[int, float]:
    """How many seconds a connection may be in each phase."""
    return {
        SHAKE: limits.head_time,
        IDLE: limits.idle,
        HEAD: limits.head_time,
        BODY: limits.body_time,
        WORK: inf,
        SEND: limits.send_time,
        LINGER: limits.linger,
    }


def times_when_crowded(limits: Limits) -> dict[int, float]:
    """How many seconds each phase may last once nine tenths of the places are taken."""
    shorter = {
        SHAKE: limits.head_full,
        IDLE: limits.idle_full,
        HEAD: limits.head_full,
        BODY: limits.body_full,
    }
    normal = times(limits)
    return {**normal, **{phase: min(shorter[phase], normal[phase]) for phase in shorter}}


class Handler(BaseHTTPRequestHandler):
    """One connection. A subclass says what it answers, in `route`."""

    server: Server  # type: ignore[assignment]  # the base class expects a socketserver

    def __init__(self, connection: Connection, client: str, server: Server) -> None:
        # The base class's is not called: it reads and answers before it returns.
        self.connection = connection
        self.tls = connection if isinstance(connection, TLSConnection) else None
        self.client = client
        self.proxied = False  # the client is a proxy: the clients that it names have shares
        self.named: str | None = None  # the client that this connection counts for now
        self.server = server
        self.parser = Parser(server.limits, client, server.heads)
        self.output = b""  # answers that the client has not taken yet
        self.awaited: tuple[Request, float] | None = None  # its answer is a Future; since when
        self.close_connection = False  # once the output is taken
        self.last_said = False  # by the client: it sends no more requests
        self.served = False
        self.paused = False  # the rest of the work waits for a turn of the loop
        self.interest = 0  # what the loop watches for
        self.begun = server.now  # of the request that is arriving, or of the connection
        self.enter(IDLE if self.tls is None else SHAKE)

    def route(self, request: Request) -> Answer:
        """The answer to a request; for HEAD the same as for GET, its body is not sent."""
        raise NotImplementedError

    def recover(self, request: Request, failure: BaseException) -> Answer:
        """The answer in place of what `route`, or the Future that it returned, has raised."""
        if isinstance(failure, (Overloaded, MemoryError)):
            return BUSY
        self.server.log(f"error: {request.method} {printable(request.path)}: {where(failure)}")
        return FAILED

    def named_client(self, request: Request) -> str:
        """The client for the access log and the shares; subclasses may know proxies."""
        return request.client

    # --- events: called by the loop

    def resume(self) -> None:
        """Go on after a pause: the loop has given this connection its turn."""
        self.paused = False
        if self.phase >= WORK:  # the server stops, or its time was over meanwhile
            return
        if self.parser.unfinished:
            self.parser.allow()
            self.advance([])
        else:
            self.read(self.receive)

    def ready(self) -> None:
        """React to the socket: it can be read, or written if that was waited for; or it is new."""
        if self.phase >= WORK:
            self.ready_while_not_reading()
        elif self.paused:  # an event of the turn in which that happened
            pass
        elif self.tls is not None and self.tls.stepping:
            self.watch(0)
        else:
            self.read(self.receive)

    def receive(self) -> bytes:
        octets: bytes = self.connection.recv(RECEIVE)
        return octets

    def read(self, receive: Callable[[], bytes]) -> None:
        try:
            octets = receive()
        except WantsToCompute as wants:
            self.shake(*wants.args)
            return
        except BlockingIOError as wait:
            self.wait_on(isinstance(wait, WantsToWrite))
            return
        except Refused as refused:  # not the TLS that this port speaks
            self.transmit([self.refuse(refused.response)])
            return
        except (OSError, Overloaded):  # a reset, nonsense in place of TLS, or too many handshakes
            self.leave()
            return
        if octets:
            self.parser.feed(octets)
            self.advance([])
        else:
            self.close()

    def wait_on(self, to_write: bool) -> None:
        """Wait for the socket: it gave no content, at most a handshake or other records of TLS."""
        if self.phase == SHAKE and self.tls is not None and self.tls.established:
            self.enter(IDLE)
        if to_write and self.phase == IDLE:
            self.settle()
        elif not to_write and self.tls is not None and self.tls.unfinished:
            self.pause()
        else:  # the deadline of the arriving request holds for the writing, too
            self.watch(WRITE if to_write else READ)

    def pause(self) -> None:
        """Let the others have their turn; no event will end this."""
        self.paused = True
        self.watch(0)
        self.server.paused.put(self.client, self.resume)

    def ready_while_not_reading(self) -> None:
        if self.phase == SEND:
            self.transmit([])
        elif self.phase == LINGER:
            self.drain()
        elif self.phase == WORK:  # the client's octets can wait in the kernel, then in the client
            self.watch(0)

    def shake(self, signs: bool) -> None:
        """Make a step of the handshake: here if there is time, or else on a thread."""
        assert self.tls is not None  # noqa: S101  # for mypy
        if self.server.has_time_to_shake(signs):
            self.read(partial(self.tls.stepped, self.tls.step))
        else:
            self.server.shake(self, self.tls.step)

    def shaken(self, step: Future[bytes | None]) -> None:
        """A thread has made a step of the handshake."""
        if self.tls is not None and self.phase != CLOSED:
            self.read(partial(self.tls.stepped, partial(step.result)))

    def complete(self, future: Future[Response]) -> None:
        """The Future that was awaited is done."""
        if self.awaited is None or self.phase == CLOSED:  # the server stops, the client has left
            return
        request, started = self.awaited
        self.awaited = None
        if not self.output:  # else the next request has its turn once this is taken
            self.parser.allow()
        failure = future.exception()
        answer = future.result() if failure is None else self.recover(request, failure)
        self.advance([self.octets_of(answer, request, started)])

    def give_up(self) -> None:
        """Answer 503 to a request whose answer is not there yet: the server stops."""
        if self.awaited is not None:
            request, started = self.awaited
            self.awaited = None
            self.advance([self.octets_of(UNDONE, request, started)])

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
        while not (self.output or self.awaited or self.close_connection):
            if size >= HIGH_WATER:
                self.parser.allow(0)
            try:
                request = self.parser.next_request()
            except Refused as refused:
                answers.append(self.refuse(refused.response))
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
            answer.add_done_callback(partial(self.server.hand_over, self.complete))
            return b""
        return self.wire(request, answer, started)

    def wire(self, request: Request, response: Response, started: float) -> bytes:
        server = self.server
        server.stats.requests[response.status] += 1
        if server.access is not None:
            server.note(self.named_client(request), request, response, started)
        if not request.keep_alive or server.stopping:
            self.close_connection = True
            self.last_said = not request.keep_alive
            tail = server.tail_close
        else:
            tail = server.tail if request.version != "1.0" else server.tail_keep_alive
        return response.wire(tail, request.method == "HEAD")

    def refuse(self, response: Response) -> bytes:
        """The answer to octets that are no request. What follows them cannot be trusted."""
        self.close_connection = True
        self.server.stats.requests[response.status] += 1
        if self.server.access is not None:
            unread = Request("-", "-", client=self.client)
            self.server.note(self.client, unread, response, self.server.now)
        return response.wire(self.server.tail_close, self.parser.wants_no_body)

    # --- octets out, and what comes then

    def transmit(self, answers: list[bytes]) -> None:
        """Send what there is; wait for the client to take the rest."""
        octets = b"".join(answers) if not self.output else self.output + b"".join(answers)
        try:
            if octets:
                self.output = octets[self.connection.send(octets) :]
            elif self.tls is not None:
                self.tls.flush()
        except BlockingIOError:
            self.output = octets
        except OSError:
            self.close()
            return
        self.settle()

    def settle(self) -> None:
        """Choose the phase: what this connection waits for now, and until when."""
        phase = WORK if self.awaited else self.parser.stage
        if phase == IDLE and not (self.output or self.tls or self.proxied or self.close_connection):
            self.enter(IDLE)  # nearly always
            if self.interest != READ:
                self.watch(READ)
            return
        if self.output or (self.tls is not None and self.tls.unsent):
            self.parser.allow(0)  # the others have their turn before the next request
            if self.phase != SEND:
                self.enter(SEND)
            self.watch(WRITE)
            return
        if self.close_connection:
            if self.last_said and phase == IDLE:  # RFC 9112 §9.6: nothing comes behind that
                self.close()
            else:
                self.leave()
            return
        if self.proxied and not self.count(phase):
            return
        if phase != self.phase or phase == IDLE:  # a request's deadline does not move
            if self.phase not in UNFINISHED:
                self.begun = self.server.now
            self.enter(phase)
        if phase != WORK:
            self.await_more()

    def await_more(self) -> None:
        if self.parser.unfinished or (self.tls is not None and self.tls.unfinished):
            self.pause()
        elif self.interest != READ:
            self.watch(READ)

    def count(self, phase: int) -> bool:
        """Count an unfinished body for the client that the proxy names; False if that is full."""
        request = self.parser.head if phase == BODY else None
        named = None if request is None else self.named_client(request)
        if named != self.named and not self.server.count_for(self, named):
            self.transmit([self.refuse(NO_SHARE)])
            return False
        return True

    def enter(self, phase: int) -> None:
        self.phase = phase
        self.deadline = self.server.now + self.server.times[phase]

    def watch(self, events: int) -> None:
        if events != self.interest:
            self.server.events.watch(self.connection.fileno(), events, self.ready)
            self.interest = events

    def waits_since(self) -> float:
        """Since when this connection has had its place without a complete request."""
        return self.begun if self.phase in UNFINISHED else self.deadline - self.server.times[IDLE]

    def give_way(self) -> None:
        """Close for a newcomer; say so if a request has begun, without waiting for the client."""
        if isinstance(self.connection, socket.SocketType) and self.phase in UNFINISHED:
            self.watch(0)
            self.retire()
            self.server.turn_away(self.connection)
        else:
            self.close()

    def leave(self) -> None:
        """Say no more, and close once the client has done so too: RFC 9112 §9.6.

        A closed socket answers octets that still come by a reset, which destroys the answer.
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
            if self.interest:
                self.server.events.forget(self.connection.fileno())
            self.retire()
            self.connection.close()

    def retire(self) -> None:
        """Leave the books of the server."""
        self.phase = CLOSED  # an event of the same turn finds nothing to do
        self.server.forget(self)
