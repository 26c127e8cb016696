"""Keys of several servers on one PostgreSQL: each is made once, whoever is killed, and known to all
before a token names it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import threading
import time
import unittest
from collections import Counter
from typing import Any, NamedTuple

import jwt_minimal
from tests.live import postgres
from tests.live.process import SECRET, Server
from tests.support import CHEAPEST

# A key lives for 7 s, is published for 4 s before it signs, and signs for 2 s.
TTL, LEAD, LIFETIME = 1, 4, 7
FLAGS = (
    *("--token-ttl", f"{TTL}s", "--key-lead", f"{LEAD}s", "--key-lifetime", f"{LIFETIME}s"),
    *("--key-skew", "0s", "--auth-limit", "off", "--argon2", CHEAPEST, "--port", "0"),
)
SERVERS, SECONDS, PAUSE = 3, 24.0, 0.05


class Token(NamedTuple):
    """A token that was issued, and when the client had it (time.time)."""

    had: float
    text: str
    kid: str
    exp: float


class Served(NamedTuple):
    """A key set that a server gave between two moments."""

    asked: float
    had: float
    server: int
    document: dict[str, Any]

    def kids(self) -> set[str]:
        return {key["kid"] for key in self.document["keys"]}


class EveryTwoSeconds(postgres.OnAPrimary):
    def setUp(self):
        super().setUp()
        self.servers = [self.serve() for _ in range(SERVERS)]
        password = self.servers[0].ask("POST", "/register", {"username": "alice"})[1]["password"]
        self.credentials = {"username": "alice", "password": password}
        self.tokens: list[Token] = []
        self.sets: list[Served] = []
        self.others: Counter[tuple[int, str]] = Counter()  # answers without a token

    def serve(self) -> Server:
        server = Server("--db", self.url, *FLAGS, environ={"NOT_MY_KEY": SECRET})
        self.addCleanup(server.end, signal.SIGKILL)
        return server

    def test_no_gap_no_double_and_no_token_of_an_unknown_key_while_servers_are_killed(self):
        done = threading.Event()
        clients = [threading.Thread(target=self.ask, args=(n, done)) for n in range(SERVERS)]
        for client in clients:
            client.start()
        try:
            self.kill_in_turn(time.monotonic() + SECONDS)
        finally:
            done.set()
            for client in clients:
                client.join(60)
        self.assertLessEqual({status for status, _ in self.others}, {503}, self.others)
        self.assertGreater(len({token.kid for token in self.tokens}), 5)
        self.check_documents()
        self.check_table()

    def kill_in_turn(self, until: float) -> None:
        for number in itertools.cycle(range(SERVERS)):
            if time.monotonic() > until:
                return
            self.servers[number].end(signal.SIGKILL)
            self.servers[number] = self.serve()

    def ask(self, number: int, done: threading.Event) -> None:
        while not done.wait(PAUSE):
            server = self.servers[number]
            try:
                asked = time.time()
                _, document = server.ask("GET", postgres.JWKS)
                self.sets.append(Served(asked, time.time(), number, document))
                status, answer = server.ask("POST", "/auth", self.credentials)
            except (OSError, http.client.HTTPException):  # it was killed
                continue
            if status != 200:
                self.others[status, answer["error"]] += 1
                continue
            parts = map(jwt_minimal.b64url_decode, answer["token"].split(".")[:2])
            header, claims = map(json.loads, parts)
            self.tokens.append(Token(time.time(), answer["token"], header["kid"], claims["exp"]))

    def check_documents(self) -> None:
        """Whatever was served after a token, and while it was good, has its key."""
        compared: Counter[int] = Counter()
        for token in self.tokens:
            later = [s for s in self.sets if token.had < s.asked and s.had < token.exp]
            for served in later:
                self.assertIn(token.kid, served.kids())
            for served in {s.server: s for s in later}.values():
                jwt_minimal.decode(token.text, served.document, now=token.had)
                compared[served.server] += 1
        self.assertEqual(len(compared), SERVERS)
        for served in self.sets:
            self.assertGreaterEqual(len(served.kids()), 1)

    def check_table(self) -> None:
        """Each key was made when it was due, and none beside it."""
        rows = self.sql("SELECT exp FROM keys WHERE exp > 1 ORDER BY kid").split()
        exps = [int(exp) for exp in rows][1:]  # the first is the one that expired before
        steps = [later - earlier for earlier, later in zip(exps, exps[1:])]
        self.assertGreater(len(steps), 5)
        self.assertGreaterEqual(min(steps), LIFETIME - LEAD - TTL)
        self.assertLess(max(steps), LIFETIME, "a key had ended before the next was made")


if __name__ == "__main__":
    unittest.main()
