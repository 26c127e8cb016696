"""Hours of mixed load on the real server: does its memory stay where it is?

    python bench/soak.py [MINUTES]        (60 if not given)

Clients at many addresses of the loopback network fetch the JWKS, log in (the same users again, with
wrong passwords, as nobody), register, send rubbish, and leave without waiting for the answer. The
limiter is on. Everything that happens rarely is made to happen often: a new key every two minutes,
log rows pruned after three, verified passwords forgotten after one. A line a minute; then what
resident memory was after the first two minutes (the caches are filled by then), in the middle, and
at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.loader import content_length, post
from bench.serving import Process, serving

RATE = 40  # requests a second: every third costs a hash, so about a quarter of a core
ADDRESSES = 4_000  # 127.0.0.0/8 is ours: each client takes one of these
USERS = 200
FLAGS = (
    *("--auth-limit", "30/minute", "--register-limit", "30/minute", "--limiter-sources", "3000"),
    *("--token-ttl", "30s", "--key-skew", "5s", "--key-lead", "20s", "--key-lifetime", "2m"),
    *("--key-retention", "4m", "--log-retention", "3m", "--verified-cache", "1m"),
)
WARM_UP = 2  # minutes
GET = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Clients:
    """Requests of every kind, drawn at random with a seed."""

    def __init__(self, port: int, passwords: dict[str, str]) -> None:
        self._port = port
        self._passwords = passwords
        self._random = random.Random(1)
        self._registered = 0
        self.answers: Counter[str] = Counter()

    def one(self) -> None:
        """One client: it connects, asks one to three times, and leaves."""
        number = self._random.randrange(ADDRESSES)
        source = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0)
        with contextlib.closing(
            socket.create_connection(("127.0.0.1", self._port), 10, source_address=source)
        ) as connection:
            for _ in range(self._random.randint(1, 3)):
                connection.sendall(self._request())
                if self._random.random() < 0.05:
                    self.answers["left"] += 1
                    return
                self.answers[read_status(connection)] += 1

    def _request(self) -> bytes:
        kind = self._random.random()
        name = f"user{self._random.randrange(USERS)}"
        if kind < 0.3:
            return GET % b"/.well-known/jwks.json"
        if kind < 0.6:
            return post("/auth", {"username": name, "password": self._passwords[name]})
        if kind < 0.7:
            return post("/auth", {"username": name, "password": "wrong"})
        if kind < 0.8:
            return post("/auth", {"username": f"nobody{kind}", "password": "wrong"})
        if kind < 0.83:
            self._registered += 1
            return post("/register", {"username": f"late{self._registered}"})
        if kind < 0.93:
            return post("/auth", [1, 2, {"username": kind}])
        return GET % b"/metrics"


def read_status(connection: socket.socket) -> str:
    answer = b""
    while b"\r\n\r\n" not in answer:
        octets = connection.recv(65_536)
        if not octets:
            return "closed"
        answer += octets
    head, _, body = answer.partition(b"\r\n\r\n")
    while len(body) < content_length(head):
        body += connection.recv(65_536)
    return answer[9:12].decode()


def report(minute: float, process: Process, database: Path, answers: Counter[str]) -> int:
    resident = process.status("VmRSS")
    sizes = [os.stat(f"{database}{suffix}").st_size >> 10 for suffix in ("", "-wal")]
    descriptors = len(os.listdir(f"/proc/{process.process.pid}/fd"))
    print(
        f"minute {minute:5.1f}  resident {resident:,} KiB  threads {process.status('Threads')}  "
        f"descriptors {descriptors}  database {sizes[0]:,} KiB, log {sizes[1]:,} KiB  "
        f"{json.dumps(answers, sort_keys=True)}",
        flush=True,
    )
    return resident


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory(prefix="jwks-soak-") as folder:
        database = Path(folder, "soak.db")
        with serving(*FLAGS[4:], db=database) as process:
            passwords = {f"user{n}": process.register(f"user{n}") for n in range(USERS)}
        with serving(*FLAGS, db=database) as process:
            clients = Clients(process.port, passwords)
            start, resident = time.monotonic(), [report(0.0, process, database, Counter())]
            sent = 0
            while time.monotonic() < start + 60 * minutes:
                clients.one()
                sent += 1
                elapsed = time.monotonic() - start
                time.sleep(max(0.0, 2 * sent / RATE - elapsed))  # a client asks twice on average
                if elapsed > 60 * len(resident):
                    resident.append(report(elapsed / 60, process, database, clients.answers))
            settled = resident[min(WARM_UP, len(resident) - 1) :]
            print(
                f"resident after {WARM_UP} minutes {settled[0]:,} KiB, in the middle "
                f"{settled[len(settled) // 2]:,} KiB, after {len(resident) - 1} minutes "
                f"{settled[-1]:,} KiB; the most {max(settled):,} KiB"
            )


if __name__ == "__main__":
    main()
