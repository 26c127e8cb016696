"""Mutated requests at a running server.

    python -m bench.fuzz [--count 100000] [--seed 1] [--url URL]

The invariants, for every stream of octets that is sent:
- as many answers as requests, each complete, beginning with a status line; then the connection ends
- never a 5xx but 501, 503 and 505
- never a hang, and the next client is served

The parser (jwksd/httpd/parser.py) says how many requests a stream has; tests/live holds it against
h11. What is tested here is all that lies around it: the loop, pipelining, deadlines, closing.
Without --url, a server of our own runs in a process of its own. The seed decides everything but the
moments at which the network cuts the stream.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import socket
import sys
import time
from collections import Counter
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import NamedTuple
from urllib.parse import urlsplit

from jwksd.httpd import Answer, Handler, Listener, Request, Response, Server, Workers
from jwksd.httpd.parser import Limits, Parser, Refused, error

ALLOWED = {501, 503, 505}  # refusals of what is not spoken here, and of what is too much
PATIENCE = 15.0  # seconds without an octet: longer than every deadline of the server
CHECK_EVERY = 200  # streams between two looks at whether a good client is served
GOOD = b"GET /good HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

SEEDS = [
    b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n",
    b'HEAD / HTTP/1.1\r\nHost: a\r\nIf-None-Match: "x"\r\n\r\n',
    b"GET http://a:80/b?c=d HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b'Content-Length: 31\r\n\r\n{"username":"a","password":"b"}',
    b"POST /later HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX: y\r\n\r\n",
    b"POST /auth HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"PUT /later HTTP/1.1\r\nHost: a\r\nAuthorization: Basic YTpi\r\nContent-Length: 0\r\n\r\n",
]
MORSELS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b";", b",", b"\0", b"\xff", b"0", b"-1",
    b"99999999999999999999", b"65536", b"65537", b"ffffffff", b"0x5", b"+5", b"HTTP/1.1",
    b"HTTP/2.0", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"chunked", b"identity", b"close",
    b"A" * 300, b"X: " + b"b" * 9000 + b"\r\n", b"X: y\r\n" * 101, b"\x16\x03\x01\x02\x00",
    b"POST ", b"CONNECT ", b"HEAD ", b"../", b"%00", b"#", b"?",
]  # fmt: skip


class Flaw(Exception):
    """An invariant that did not hold."""


class Expected(NamedTuple):
    """What a stream must be answered with; what is refused counts among the methods."""

    methods: list[str]
    refusal: int | None


def mutate(chance: random.Random) -> bytes:
    """One to four exchanges, with up to four changes."""
    stream = bytearray().join(chance.choice(SEEDS) for _ in range(chance.choice((1, 1, 2, 3, 4))))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 4))):
        place = chance.randrange(len(stream) + 1)
        end = min(len(stream), place + chance.choice((1, 2, 5, 20, 100)))
        kind = chance.randrange(7)
        if kind == 0 and place < len(stream):
            stream[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            stream[place:place] = chance.choice(MORSELS)
        elif kind == 2:
            stream[place:end] = chance.choice(MORSELS)
        elif kind == 3:
            del stream[place:end]
        elif kind == 4:
            stream[place:place] = stream[place:end]
        elif kind == 5:
            stream[place:end] = stream[place:end].swapcase()
        elif place:
            del stream[place:]
    return bytes(stream) or b"\r"


def expected(stream: bytes) -> Expected:
    """The requests in a stream up to the one that ends it, and the refusal if there is one."""
    parser = Parser(Limits(), "fuzz")
    parser.feed(stream)
    methods = []
    try:
        while (request := parser.next_request()) is not None:
            methods.append(request.method)
            if not request.keep_alive:
                break
    except Refused as refused:
        methods.append("HEAD" if parser.wants_no_body else "?")
        return Expected(methods, refused.status)
    return Expected(methods, None)


def exchange(address: tuple[str, int], stream: bytes, chance: random.Random) -> bytes:
    """Send a stream, sometimes in pieces, and read until the server closes."""
    with socket.create_connection(address, PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cuts = sorted(chance.randrange(len(stream)) for _ in range(chance.choice((0, 0, 0, 1, 3))))
        try:
            for start, end in zip([0, *cuts], [*cuts, len(stream)]):
                client.sendall(stream[start:end])
            client.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass  # it has answered and closed; the answer must be there all the same
        octets = b""
        try:
            while part := client.recv(65_536):
                octets += part
        except ConnectionResetError as reset:
            raise Flaw(f"reset after {octets[:100]!r}") from reset
        except socket.timeout as silence:
            raise Flaw(f"a hang after {octets[:100]!r}") from silence
        return octets


def statuses(octets: bytes, methods: list[str]) -> list[int]:
    """The statuses of whole answers, interim ones left out."""
    found: list[int] = []
    while octets:
        head, blank, octets = octets.partition(b"\r\n\r\n")
        start, *fields = head.split(b"\r\n")
        if not (blank and start.startswith(b"HTTP/1.1 ") and start[9:12].isdigit()):
            raise Flaw(f"not a status line: {start[:100]!r}")
        status = int(start[9:12])
        if status == 100:
            continue
        values = [f[16:] for f in fields if f.lower().startswith(b"content-length: ")]
        if len(values) != (status not in (204, 304)):
            raise Flaw(f"{len(values)} lengths in {head!r}")
        head_only = methods[len(found) : len(found) + 1] == ["HEAD"]
        length = 0 if head_only or not values else int(values[0])
        if len(octets) < length:
            raise Flaw(f"an answer that is cut short: {head!r}")
        octets = octets[length:]
        found.append(status)
    return found


def check(address: tuple[str, int], stream: bytes, chance: random.Random) -> list[int]:
    """The statuses that a stream was answered with; `Flaw` if an invariant does not hold."""
    methods, refusal = expected(stream)
    found = statuses(exchange(address, stream, chance), methods)
    if len(found) != len(methods):
        raise Flaw(f"{len(found)} answers to {methods}")
    if refusal is not None and found[-1] != refusal:
        raise Flaw(f"{found[-1]} instead of {refusal}")
    if any(status >= 500 and status not in ALLOWED for status in found):
        raise Flaw(f"a failure: {found}")
    return found


def fuzz(address: tuple[str, int], count: int, seed: int) -> Counter[int]:
    """Send so many streams; how often each status came. `Flaw` names the stream that broke it."""
    seen: Counter[int] = Counter()
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        stream = mutate(chance)
        try:
            seen.update(check(address, stream, chance))
            if number % CHECK_EVERY == 0 and not exchange(address, GOOD, random.Random(0)):
                raise Flaw("the next client got no answer")
        except (Flaw, OSError) as flaw:
            raise Flaw(f"stream {number} of seed {seed}: {flaw}: {stream!r}") from flaw
    return seen


class Target(Handler):
    """Answers everything; /later from a worker."""

    def route(self, request: Request) -> Answer:
        if request.path.startswith("/later"):
            return self.server.app.submit(Future.set_result, Response(200, (), request.body))
        if request.path.startswith("/auth"):
            return Response(200, (), request.body)
        return error(404, "not_found", "There is nothing here.")


def serve(ready: Connection) -> None:
    listener = Listener("127.0.0.1", 0)
    server = Server(listener, Target, app=Workers(64), access_log="json", log=lambda line: None)
    ready.send(listener.url)
    server.serve_forever()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a server that is running already")
    options = parser.parse_args()
    url, process = options.url, None
    if url is None:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
        process.start()
        url = ours.recv()
    address = urlsplit(url)
    start = time.monotonic()
    try:
        seen = fuzz((address.hostname or "", address.port or 80), options.count, options.seed)
    except Flaw as flaw:
        print(f"FLAW: {flaw}")
        return 1
    finally:
        if process is not None:
            alive = process.is_alive()
            process.terminate()
            process.join()
    if process is not None and not alive:
        print("FLAW: the server has ended")
        return 1
    took = time.monotonic() - start
    print(f"{options.count:,} streams, seed {options.seed}: no flaw in {took:.0f} s")
    print("answers: " + ", ".join(f"{status}: {times:,}" for status, times in sorted(seen.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
