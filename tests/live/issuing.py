"""A server with an account for the clients of tests/live, and whether a client is installed here.

Each of these tests runs somebody else's program. One that is not installed is skipped, and says so.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import time
import unittest
from pathlib import Path
from typing import Any, Callable, ClassVar, TypeVar

import server
from jwksd.store.accounts import Accounts
from tests.support import CHEAPEST, ROOT

NAME = "mary jones"  # some clients spell the space + or %20, others leave it
SCOPE = "read write"
AUDIENCES = ("shop", "https://api.example")


class Issuing(unittest.TestCase):
    """A server, and an account with a scope."""

    settings: ClassVar[dict[str, Any]] = {"audience": list(AUDIENCES), "auth_limit": "off"}
    issuer: server.Issuer
    issuer_url: str
    accounts: Accounts
    password: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.issuer = server.running(argon2=CHEAPEST, **cls.settings)
        cls.addClassCleanup(cls.issuer.stop)
        cls.accounts = cls.issuer._service.app.accounts
        cls.issuer_url = str(cls.settings.get("issuer", cls.issuer.url))
        cls.password = cls.accounts.register(NAME, None)
        cls.accounts.set_claims(NAME, [f"scope={SCOPE}"])

    @property
    def token_endpoint(self) -> str:
        return f"{self.issuer_url}/auth"

    def assertIssued(
        self, answer: dict[str, Any], scope: str = SCOPE, audience: object = None
    ) -> None:
        """Hold the answer that a client read, and the token in it, to what was asked."""
        self.assertEqual(str(answer["token_type"]).lower(), "bearer")
        self.assertToken(answer["access_token"], scope, audience)

    def assertToken(self, token: str, scope: str = SCOPE, audience: object = None) -> None:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        self.assertEqual((claims["sub"], claims["iss"]), (NAME, self.issuer_url))
        self.assertEqual(claims["scope"], scope)
        self.assertEqual(claims["aud"], audience or list(AUDIENCES))


T = TypeVar("T", bound=Callable[..., Any])


def needs_module(name: str) -> Callable[[T], T]:
    """Skip a test where a package of requirements-dev.txt is missing."""
    found = importlib.util.find_spec(name) is not None
    return unittest.skipUnless(found, f"the Python package {name} is not installed")


def needs(*programs: str) -> Callable[[T], T]:
    """Skip a test where one of these programs or files is missing."""
    missing = [name for name in programs if not (shutil.which(name) or os.path.exists(name))]
    return unittest.skipIf(bool(missing), f"not installed: {' '.join(missing)}")


def free_port() -> int:
    """A port of the loopback that nobody has now, nor gets by chance: Linux gives out others."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("every port is taken")


def listens(port: int, process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a program that was started listens on a port of the loopback within this time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def ask_program(command: list[str], folder: Path, **environ: str) -> dict[str, Any]:
    """The JSON that a program prints; its errors are the test's."""
    run = subprocess.run(
        command, cwd=folder, env={**os.environ, **environ},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if run.returncode:
        raise AssertionError(f"{command[0]} ended with {run.returncode}:\n{run.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def settings_on_the_page(heading: str) -> set[str]:
    """The lines of configuration under a heading of docs/services.md."""
    section = (ROOT / "docs/services.md").read_text("utf-8").split(f"\n## {heading}\n")[1]
    return {line.strip() for line in section.split("```")[1].splitlines()[1:] if line.strip()}
