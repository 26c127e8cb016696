"""What the tests of several modules need: a clock to set, a database to throw away, an App."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import tempfile
import unittest
from concurrent.futures import Future
from functools import cache
from itertools import count
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import rsa

import server
from jwksd.httpd import Answer, Request, Response, Stats
from jwksd.ops import settings
from jwksd.store import keystore, sealing
from jwksd.store.sqlite import SQLite

CHEAPEST = "t=1,m=8,p=1"  # Argon2id's least: the tests are not about its strength
ROOT = Path(server.__file__).parent


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def free_port() -> int:
    """A port of the loopback that nobody has now, nor gets by chance: Linux gives out others."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("every port is taken")


@cache
def some_key(number: int) -> rsa.RSAPrivateKey:
    """One of a few RSA keys made once for the whole run."""
    return rsa.generate_private_key(65537, 2048)


def ready_keys():
    """A patch: keys that are there already, instead of new ones."""
    numbers = count()
    return mock.patch.object(keystore, "generate", lambda: some_key(next(numbers)))


class Inline:
    """Workers without threads: a call is made where it is submitted."""

    queued = refused = 0

    def submit(self, function, *arguments, lane=0, source=""):
        future: Future = Future()
        try:
            function(future, *arguments)
        except Exception as failure:
            future.set_exception(failure)
        return future


def answered(app: server.App, request: Request, answer: Answer) -> Response:
    """What comes of an answer in the end; as the loop waits for it."""
    while isinstance(answer, Future):
        failure = answer.exception(60)
        answer = answer.result() if failure is None else app.recover(request, failure)
    return answer


class TemporaryFolder(unittest.TestCase):
    """A test with a folder of its own.

    Content keys are derived at Argon2id's least cost, but where another process, which knows
    nothing of that, opens the same database: there `shares_database` is set.
    """

    shares_database = False

    def setUp(self) -> None:
        if not self.shares_database:
            cheap = mock.patch.multiple(sealing, DERIVATION_TIME=1, DERIVATION_KIB=8)
            cheap.start()
            self.addCleanup(cheap.stop)
        # Thousands of commits: in memory, where there is a folder for that, they cost no disk.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        place = None if self.shares_database else memory
        self.folder = Path(tempfile.mkdtemp(prefix="jwks-test-", dir=place))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.path = self.folder / "keys.db"

    def open_database(self, **options) -> SQLite:
        database = SQLite(self.path, **options)
        self.addCleanup(database.close)
        return database


class AppTest(TemporaryFolder):
    """A test of the App at its seam: no socket, no thread but the writer's."""

    settings: dict = {}

    def setUp(self) -> None:
        super().setUp()
        self.clock, self.monotonic = Clock(), Clock(1000.0)
        self.lines: list[str] = []
        self.app = self.open_app(**self.settings)

    def open_app(self, **values) -> server.App:
        """An App on the test's database."""
        config = settings.make_settings({"db": str(self.path), "argon2": CHEAPEST, **values})
        with ready_keys():
            app = server.open_app(
                config,
                {"NOT_MY_KEY": "a secret of the tests"},
                "http://127.0.0.1:8080",
                Inline(),  # type: ignore[arg-type]
                Stats(),
                self.lines.append,
                clock=self.clock,
                monotonic=self.monotonic,
            )
        self.addCleanup(app.database.close)
        return app

    def call(
        self, method, path, document=None, *, headers=None, query="", client="127.0.0.1", raw=None
    ) -> Response:
        """What the server answers, when it does."""
        body = (
            raw if raw is not None else b"" if document is None else json.dumps(document).encode()
        )
        self.app.upkeep.notice_changes()
        request = Request(method, path, query, headers or {}, body, client)
        return answered(self.app, request, self.app.respond(request))

    def register(self, name="alice", **members) -> str:
        response = self.call("POST", "/register", {"username": name, **members})
        self.assertEqual(response.status, 201, response.body)
        return json.loads(response.body)["password"]

    def login(self, name, password, **options) -> Response:
        return self.call("POST", "/auth", {"username": name, "password": password}, **options)


def header(response: Response, name: str) -> str | None:
    """The field of a response, or None."""
    return next((v for k, v in response.headers if k.lower() == name.lower()), None)
