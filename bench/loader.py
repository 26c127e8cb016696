"""A load generator for the benchmarks: keep-alive connections, requests written before it starts.

    answers = Load(port, requests, connections=64).run(seconds)

Each connection sends the next request of the list as soon as its last answer is complete. One
thread, one selector; an exchange costs it some 30 microseconds of a core, which the server under
test does not have meanwhile: loader and server share the machine.
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


def post(path: str, document: object, *fields: str) -> bytes:
    """The octets of a POST with a JSON body."""
    body = json.dumps(document).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *fields)
    return "\r\n".join((*lines, "Content-Type: application/json", "", "")).encode() + body


class Answers(NamedTuple):
    """What came of a run."""

    seconds: float
    statuses: Counter[int]
    latencies: list[float]  # seconds, in the order of arrival
    late: int = 0  # answers to what was on its way at the end; they cost the server as much

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds


class Load:
    """Clients of one server, all in this thread."""

    def __init__(self, port: int, requests: Iterable[bytes], *, connections: int) -> None:
        self._address = ("127.0.0.1", port)
        self._requests = itertools.cycle(requests)
        self._connections = connections
        self._selector = selectors.DefaultSelector()
        self._statuses: Counter[int] = Counter()
        self._latencies: list[float] = []
        self._late = 0
        self._until = 0.0

    def run(self, seconds: float) -> Answers:
        """Keep every connection busy for so long; what is then on its way is only waited for.

        A later run goes on in the list of requests where this one ended.
        """
        self._statuses, self._latencies, self._late = Counter(), [], 0
        start = time.perf_counter()
        self._until = start + seconds
        for _ in range(self._connections):
            connection = socket.create_connection(self._address, timeout=30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._send(connection)
        while self._selector.get_map():
            for key, _ in self._selector.select(1.0):
                self._receive(key.fileobj, *key.data)  # type: ignore[arg-type]
        return Answers(seconds, self._statuses, self._latencies, self._late)

    def _send(self, connection: socket.socket) -> None:
        connection.sendall(next(self._requests))
        data = (time.perf_counter(), bytearray())
        try:
            self._selector.modify(connection, selectors.EVENT_READ, data)
        except KeyError:
            self._selector.register(connection, selectors.EVENT_READ, data)

    def _receive(self, connection: socket.socket, sent: float, answer: bytearray) -> None:
        octets = connection.recv(65_536)
        answer += octets
        head = answer.find(b"\r\n\r\n")
        if head >= 0 and len(answer) >= head + 4 + content_length(answer[:head]):
            now = time.perf_counter()
            if now >= self._until:
                self._late += 1
                self._drop(connection)
                return
            self._statuses[int(answer[9:12])] += 1
            self._latencies.append(now - sent)
            if b"connection: close" in answer[:head].lower():
                self._drop(connection)
                connection = socket.create_connection(self._address, timeout=30)
            self._send(connection)
        elif not octets:
            raise ConnectionError("the server closed a connection without an answer")

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()


def ask(connection: socket.socket, request: bytes) -> tuple[float, int]:
    """Seconds until the answer is complete, and its status."""
    begin = time.perf_counter()
    connection.sendall(request)
    answer = b""
    while True:
        answer += connection.recv(65_536)
        head, end, body = answer.partition(b"\r\n\r\n")
        if end and len(body) >= content_length(head):
            return time.perf_counter() - begin, int(answer[9:12])


def content_length(head: bytes | bytearray) -> int:
    """The length of the body that this head announces."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


def percentile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
