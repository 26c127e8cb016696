"""Does anybody notice a rotation of the real server? Neither by a refusal, nor by a wait.

    python -m bench.rotation_live [--seconds 120] [--calm 20]

First a server with tokens of 4 s, keys of 14 s and a lead of 3 s (a rotation every 6 s) is asked
ten times a second for the JWKS and a token. A client verifies every token, when it is new and again
just before it expires, with a copy of the JWKS that is always 2.5 s old. Refusals are counted.

Then two servers are asked in turn, for --calm seconds each and as fast as one connection goes: one
rotates every two seconds, the other never. What is compared is how long their answers take.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt_minimal
from bench import serving
from bench.loader import percentile
from bench.serving import ROOT

DEMO = ("--token-ttl", "4s", "--key-lifetime", "14s", "--key-lead", "3s", "--key-skew", "1s")
HASTY = ("--token-ttl", "1s", "--key-lifetime", "5s", "--key-lead", "2s", "--key-skew", "0s")
COPY_AGE = 2.5  # s: of the client's JWKS, always
BEFORE_EXP = 0.5  # s: how long before it expires a token is verified again
POLL = 0.1  # s between two looks


class Server:
    """`python server.py` on a free port, and one connection to it."""

    def __init__(self, folder: str, *flags: str) -> None:
        self.database = str(Path(folder, "keys.db"))
        self.process = serving.Process(serving.command(*flags, db=self.database))
        self.url = f"http://127.0.0.1:{self.process.port}"
        self.connection = http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=10)
        self.connection.connect()
        self.credentials = {"username": "alice", "password": self.process.register("alice")}

    def ask(self, method: str, path: str, document: object = None) -> tuple[float, dict[str, Any]]:
        """Seconds until the answer, and the answer."""
        body = None if document is None else json.dumps(document)
        began = time.perf_counter()
        self.connection.request(method, path, body)
        response = self.connection.getresponse()
        text = response.read()
        took = time.perf_counter() - began
        if response.status not in (200, 201):
            raise AssertionError(f"{method} {path}: {response.status} {text!r}")
        return took, json.loads(text)

    def jwks(self) -> tuple[float, dict[str, Any]]:
        return self.ask("GET", "/.well-known/jwks.json")

    def token(self) -> tuple[float, dict[str, Any]]:
        return self.ask("POST", "/auth", self.credentials)

    def admin(self, *words: str) -> str:
        """What the operator's command prints."""
        command = [sys.executable, str(ROOT / "admin.py"), "--db", self.database, *words]
        environ = serving.environment()
        done = subprocess.run(command, env=environ, capture_output=True, check=True)
        return done.stdout.decode().strip()

    def stop(self) -> None:
        self.connection.close()
        self.process.end()


@contextlib.contextmanager
def rotating(*flags: str) -> Iterator[Server]:
    """A server with a database of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, *flags)
        try:
            yield server
        finally:
            server.stop()


@dataclass
class Outcome:
    """What the client saw."""

    verified: int = 0
    refusals: list[str] = field(default_factory=list)
    empty: int = 0  # JWKS answers without a key
    kids: list[str] = field(default_factory=list)  # that signed, in their order
    took: list[float] = field(default_factory=list)


def watch(server: Server, seconds: float) -> Outcome:
    """Poll, and verify with an old copy of the JWKS."""
    outcome = Outcome()
    copies: list[tuple[float, dict[str, Any]]] = []
    waiting: list[tuple[float, str]] = []  # tokens to be verified again, and when
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        took, document = server.jwks()
        outcome.took.append(took)
        outcome.empty += not document["keys"]
        copies.append((now, document))
        # The newest that is old enough; the first ones have nothing older to be.
        while len(copies) > 1 and copies[1][0] <= now - COPY_AGE:
            del copies[0]
        took, answer = server.token()
        outcome.took.append(took)
        token = answer["token"]
        kid = jwt_minimal.verify(token, document)[0]["kid"]
        if kid not in outcome.kids:
            outcome.kids.append(kid)
        waiting.append((jwt_minimal.decode(token, document)["exp"], token))
        wall = time.time()
        due = [token] + [old for exp, old in waiting if wall > exp - BEFORE_EXP and wall < exp]
        waiting = [each for each in waiting if each[0] - BEFORE_EXP >= wall]
        for each in due:
            outcome.verified += 1
            try:
                jwt_minimal.decode(each, copies[0][1], issuer=server.url)
            except jwt_minimal.InvalidToken as refusal:
                outcome.refusals.append(f"{type(refusal).__name__}: {refusal}")
        time.sleep(max(0.0, now + POLL - time.monotonic()))
    return outcome


def busy(server: Server, seconds: float) -> list[float]:
    """How long answers take, JWKS and token in turn, one after the other."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        took += (server.jwks()[0], server.token()[0])
    return took


def spread(took: list[float]) -> str:
    """Some percentiles, in milliseconds."""
    parts = (f"p{share:g} {percentile(took, share / 100) * 1000:.1f}" for share in (50, 99, 99.9))
    return f"{len(took)} answers, ms: {', '.join(parts)}, worst {max(took) * 1000:.1f}"


def main() -> int:
    """The command line; exit code 1 if anything was refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="of the demonstration")
    parser.add_argument("--calm", type=float, default=20, help="for each server of the comparison")
    options = parser.parse_args()
    with rotating(*DEMO) as server:
        outcome = watch(server, options.seconds)
    print(
        f"{options.seconds:g} s, {len(outcome.kids)} keys signed, {outcome.empty} empty JWKS; "
        f"{outcome.verified} verifications with a JWKS {COPY_AGE} s old: "
        f"{len(outcome.refusals)} refusals"
    )
    print(f"  {spread(outcome.took)}")
    for line in outcome.refusals[:5]:
        print(f"  {line}")
    if options.calm:
        with rotating(*HASTY) as hasty, rotating() as steady:
            took: tuple[list[float], list[float]] = [], []
            for _ in range(4):  # in turn, so that other load on the machine meets both
                took[0].extend(busy(hasty, options.calm / 4))
                took[1].extend(busy(steady, options.calm / 4))
        print(f"a rotation every 2 s:  {spread(took[0])}")
        print(f"no rotation:           {spread(took[1])}")
    return 1 if outcome.refusals or outcome.empty else 0


if __name__ == "__main__":
    sys.exit(main())
