"""Kills the real server again and again, and asks what became of all that it had acknowledged."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import sqlite3
import threading
import time
from collections import Counter

from tests.live.process import ProcessTest, Server

CLIENTS = 4
FLAGS = ("--register-limit", "off", "--auth-limit", "off", "--access-log", "off")


class Torture:
    """Clients that register and log in until the server is gone; what they were told."""

    def __init__(self, test: ProcessTest, seed: int) -> None:
        self._test = test
        self._random = random.Random(seed)
        self._lock = threading.Lock()  # guards what follows
        self.passwords: dict[str, str] = {}  # of registrations that were answered with 201
        self.logins: Counter[str] = Counter()  # answered with 200
        self.strangers = 0  # answered with 401
        self.unexpected: list[tuple[int, object]] = []

    @property
    def acknowledged(self) -> int:
        """How many answers promised something."""
        return len(self.passwords) + sum(self.logins.values()) + self.strangers

    def round(self, number: int) -> None:
        """Start, let the clients run, kill at a moment that nobody chose, look at the file."""
        server = self._test.serve(*FLAGS)
        clients = [
            threading.Thread(target=self._client, args=(server, f"{number}-{n}", n))
            for n in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        time.sleep(self._random.uniform(0.005, 0.150))
        server.end(signal.SIGKILL)
        for client in clients:
            client.join(30)
        self.check()

    def _client(self, server: Server, name: str, seed: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        choose = random.Random(f"{name} {seed}")
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            for count in range(10_000):
                kind = choose.random()
                if kind < 0.4 or not self.passwords:
                    self._register(connection, f"u{name}-{count}")
                elif kind < 0.9:
                    self._log_in(connection, choose.choice(list(self.passwords)))
                else:
                    self._log_in_as_a_stranger(connection)

    def _register(self, connection: http.client.HTTPConnection, name: str) -> None:
        answer = self._ask(connection, "/register", {"username": name}, 201)
        if answer:
            with self._lock:
                self.passwords[name] = answer["password"]

    def _log_in(self, connection: http.client.HTTPConnection, name: str) -> None:
        credentials = {"username": name, "password": self.passwords[name]}
        if self._ask(connection, "/auth", credentials, 200):
            with self._lock:
                self.logins[name] += 1

    def _log_in_as_a_stranger(self, connection: http.client.HTTPConnection) -> None:
        if self._ask(connection, "/auth", {"username": "stranger", "password": "x"}, 401):
            with self._lock:
                self.strangers += 1

    def _ask(
        self, connection: http.client.HTTPConnection, path: str, document: object, status: int
    ) -> dict[str, str]:
        connection.request("POST", path, json.dumps(document))
        response = connection.getresponse()
        answer: dict[str, str] = json.loads(response.read())  # a torn one is no acknowledgement
        if response.status != status:
            self.unexpected.append((response.status, answer))
            return {}
        return answer

    def check(self) -> None:
        """Everything that was promised is in the file, and nobody was refused who was let in."""
        test = self._test
        with contextlib.closing(sqlite3.connect(test.path)) as db:
            stored = {name for (name,) in db.execute("SELECT username FROM users")}
            logged = dict(
                db.execute(
                    "SELECT username, count(*) FROM auth_logs JOIN users ON users.id = user_id "
                    "JOIN auth_outcomes ON log_id = auth_logs.id "
                    "WHERE outcome = 'success' AND last_login IS NOT NULL GROUP BY 1"
                )
            )
            (strangers,) = db.execute(
                "SELECT count(*) FROM auth_outcomes WHERE outcome = 'unknown_user'"
            ).fetchone()
            test.assertEqual(db.execute("PRAGMA quick_check").fetchone(), ("ok",))
        test.assertLessEqual(self.passwords.keys(), stored)
        lost = {name: count for name, count in self.logins.items() if logged.get(name, 0) < count}
        test.assertEqual(lost, {})
        test.assertLessEqual(self.strangers, strangers)
        test.assertEqual(self.unexpected, [])


def torture(test: ProcessTest, kills: int, seed: int) -> Torture:
    """Kill the server `kills` times under load; fails the test if anything promised is gone."""
    victim = Torture(test, seed)
    for number in range(kills):
        victim.round(number)
    return victim
