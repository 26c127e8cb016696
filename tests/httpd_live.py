"""What the tests of the HTTP server share: a server that runs, and a client that sends bytes."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import Any

import jwksd.httpd
from jwksd.httpd import Handler, Listener, Request, Response, Server, Workers

WORKERS = ("queue_limit", "queue_seconds")  # what Workers may be told
PATIENCE = (
    60.0  # seconds for what should happen at once: a machine may be busy, a test may not care
)
WORKED = Response(200, (), b"worked")
ANSWER = Response(200, [("Content-Type", "text/plain")], b"hello")
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Routes(Handler):
    """Answers by path: /echo the body, /later from a worker, /medium and /big a lot."""

    def ready(self) -> None:
        super().ready()
        server: Any = self.server
        server.readings += 1

    def route(self, request: Request) -> jwksd.httpd.Answer:
        server: Any = self.server
        server.seen.append(request)
        server.most_unread = max(server.most_unread, len(self.parser._buffer))
        if request.path == "/echo":
            return Response(200, (), request.body)
        if request.path == "/later":
            return server.workers.submit(settle, server.work, request)
        if request.path == "/big":
            return Response(200, (), b"x" * 1_000_000)
        if request.path == "/medium":
            return Response(200, (), b"x" * 60_000)  # below the high water mark
        if request.path == "/defect":
            raise ZeroDivisionError("secret")
        return ANSWER


def settle(future: Future[Any], function: Callable[..., Any], *arguments: Any) -> None:
    """Have a worker's Future give what a function returns, or what the Future it returns gives."""
    outcome = function(*arguments)
    if isinstance(outcome, Future):
        outcome.add_done_callback(lambda done: future.set_result(done.result()))
    else:
        future.set_result(outcome)


class LiveServer(Server):
    """A server on a free port, in a thread; its lines and its requests are kept.

    Its deadlines are those of the product. Where one is tested, the `clock` is one that the test
    sets (tests.support.Clock), by `pass_time`.
    """

    def __init__(self, **settings: Any) -> None:
        self.lines: list[str] = []
        self.seen: list[Request] = []
        self.turns = 0
        self.turned_at = -inf  # the time of the last turn that is over
        self.held = threading.Event()
        self.readings = 0  # times that a connection was looked at
        self.most_unread = 0  # octets that a parser held while it gave a request
        self.work: Callable[[Request], jwksd.httpd.Answer] = lambda request: WORKED
        self.listener = Listener(
            settings.pop("host", "127.0.0.1"), settings.pop("port", 0), settings.pop("tls", None)
        )
        self.url = self.listener.url
        room = {name: settings.pop(name) for name in WORKERS if name in settings}
        self.clock: Any = settings.get("clock", time.monotonic)
        self.workers = Workers(settings.pop("workers", 64), clock=self.clock, **room)
        settings.setdefault("log", self.lines.append)
        settings.setdefault("app", self.workers)
        super().__init__(self.listener, settings.pop("handler", Routes), **settings)
        self.thread = threading.Thread(target=self.serve_forever)

    def __enter__(self) -> LiveServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the server did not stop"
        self.workers.stop(0)

    def _turn(self) -> None:
        self.turns += 1
        super()._turn()
        self.turned_at = self.now

    def pass_time(self, seconds: float) -> None:
        """Let the test's clock advance, and the loop take a turn at the new time."""
        self.clock.advance(seconds)
        self._wake()
        assert wait_until(lambda: self.turned_at >= self.clock.now), "the loop stands still"

    def hold(self) -> threading.Event:
        """Let every worker wait until this event is set; `held` says that one does."""
        gate = threading.Event()

        def work(request: Request) -> Response:
            self.held.set()
            gate.wait(PATIENCE)
            return ANSWER

        self.work = work
        return gate

    def take(self, seconds: float) -> None:
        """Let every answer from a worker take so long, by the test's clock."""

        def work(request: Request) -> Response:
            self.clock.advance(seconds)
            return ANSWER

        self.work = work

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.split("//")[1].rpartition(":")
        return host.strip("[]"), int(port)

    def connect_narrowly(self) -> Client:
        """A client whose connection holds a few thousand octets on their way to it, not more."""
        self.listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(self.address)
        return Client(connection)

    def connect(self) -> Client:
        if self.url.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.url[len("unix:") :])
        else:
            connection = socket.create_connection(self.address)
        return Client(connection)

    def ask(self, octets: bytes) -> bytes:
        """All that the server says to this, until it closes."""
        with self.connect() as client:
            client.send(octets)
            return client.rest()


class Client:
    """A client that says exactly what the test says."""

    def __init__(self, connection: socket.socket, timeout: float = PATIENCE) -> None:
        self.connection = connection
        connection.settimeout(timeout)
        self.buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, octets: bytes) -> None:
        self.connection.sendall(octets)

    def rest(self) -> bytes:
        """What comes until the end of the connection."""
        octets, self.buffer = self.buffer, b""
        while part := self.connection.recv(65_536):
            octets += part
        return octets

    def answer(self, head_only: bool = False) -> Answer:
        """The next answer, read by its length."""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        answer = Answer(head)
        length = 0 if head_only else int(answer.headers.get("content-length", "0"))
        while len(self.buffer) < length:
            self._more()
        answer.body, self.buffer = self.buffer[:length], self.buffer[length:]
        return answer

    def _more(self) -> None:
        part = self.connection.recv(65_536)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.buffer += part

    def is_closed(self) -> bool:
        """Whether the server closes the connection, having said no more."""
        return self.rest() == b""


class Answer:
    """One answer; a malformed status line or field fails the test."""

    def __init__(self, head: bytes) -> None:
        start, *fields = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Za-z -]*", start)
        assert match, start
        self.status = int(match[1])
        self.headers: dict[str, str] = {}
        for field in fields:
            name, colon, value = field.partition(": ")
            assert colon and name.lower() not in self.headers, field
            self.headers[name.lower()] = value
        self.body = b""


def statuses(octets: bytes) -> list[int]:
    """The statuses of all answers in a stream; fails if it is not made of whole answers."""
    found = []
    while octets:
        head, _, octets = octets.partition(b"\r\n\r\n")
        answer = Answer(head)
        found.append(answer.status)
        length = int(answer.headers.get("content-length", "0"))
        assert len(octets) >= length, "an answer is cut short"
        octets = octets[length:]
    return found


def wait_until(condition: Any, timeout: float = PATIENCE) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
