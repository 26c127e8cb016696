"""A server with an account for the clients of tests/live, and whether a client is installed here.

Each of these tests runs somebody else's program. One that is not installed is skipped, and says so.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Callable, ClassVar, TypeVar
from urllib.parse import urlencode
from urllib.request import urlopen

import jwt_minimal
import server
from jwksd.ops import settings
from jwksd.store.accounts import Accounts
from tests.support import CHEAPEST, ROOT, free_port
from tests.test_httpd_tls import make_certificate

START_SECONDS = 90  # for an Erlang node on a busy machine; it takes five on an idle one
STOP_SECONDS = 30
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


ELSEWHERE = "https://issuer.example"  # what the page calls the issuer


class Page:
    """What docs/services.md says of one service."""

    def __init__(self, heading: str) -> None:
        page = (ROOT / "docs/services.md").read_text("utf-8")
        self.text = page.split(f"\n## {heading}\n")[1].split("\n## ")[0].replace(",\n  ", ", ")

    def there(self, language: str = "", **instead: str) -> str:
        """A block of the page, with other words in place of some; each of them stands in it."""
        block: str = re.findall(rf"(?s)```{language}\n(.*?)```", self.text)[0]
        for old, new in instead.items():
            if old not in block:
                raise AssertionError(f"{old} is not on the page")
            block = block.replace(old, new)
        return block

    def server(self) -> dict[str, Any]:
        """The settings of `python server.py`, without the issuer's name."""
        command = re.findall(r"`python server.py (.*?)`", self.text)[0]
        parser = settings.Parser()
        settings.add_settings(parser)
        found = vars(parser.parse_args(shlex.split(command)))
        return {name: value for name, value in found.items() if name != "issuer"}

    def account(self) -> tuple[str, list[str]]:
        """The name and the claims of `admin.py users claims`."""
        command = re.findall(r"admin.py users claims (\w+ .*?)(?:`|\n)", self.text)[0]
        name, *claims = shlex.split(command)
        return name, claims


class AsThePageSays(Issuing):
    """A server with the settings and the account that docs/services.md names for a service."""

    heading: ClassVar[str]
    secure: ClassVar[bool] = False  # by TLS, as some of them insist on
    page: Page
    name: str
    folder: Path
    certificate: str
    other: str  # the password of an account without claims

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(tempfile.mkdtemp(prefix="jwks-service-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.folder.chmod(0o755)  # some of them run as another user
        cls.page = Page(cls.heading)
        cls.settings = {"auth_limit": "off", **cls.page.server()}
        if cls.secure:
            cls.certificate, key = make_certificate(str(cls.folder), "localhost")
            port = free_port()
            cls.settings |= {"port": port, "issuer": f"https://localhost:{port}",
                             "tls_cert": cls.certificate, "tls_key": key}  # fmt: skip
        super().setUpClass()
        cls.name, claims = cls.page.account()
        cls.password = cls.accounts.register(cls.name, None)
        cls.accounts.set_claims(cls.name, claims)

    def token(self, name: str | None = None, password: str = "", **fields: str) -> str:
        """What POST /auth gives to an account, unless told otherwise to that of the page."""
        given = {"grant_type": "client_credentials", "client_id": name or self.name,
                 "client_secret": password or self.password}  # fmt: skip
        trust = ssl.create_default_context(cafile=self.certificate) if self.secure else None
        body = urlencode({**given, **fields}).encode()
        with urlopen(self.token_endpoint, body, timeout=30, context=trust) as answer:
            found: str = json.load(answer)["access_token"]
        return found

    def token_without_claims(self) -> str:
        """A token of an account that has none."""
        if not hasattr(self, "other"):
            type(self).other = self.accounts.register("other", None)
        return self.token("other", self.other)

    def flawed(self) -> dict[str, str]:
        """Tokens of the account that nobody may take."""
        good = self.token()
        claims = json.loads(jwt_minimal.b64url_decode(good.split(".")[1]))
        kept = {name: value for name, value in claims.items() if name != "sub"}
        return {
            "another signature": good[:-8] + "AAAAAAAA",
            "expired": self.issuer.token(self.name, **{**kept, "exp": 1}),
            "for another audience": self.issuer.token(self.name, **{**kept, "aud": "bank"}),
            "of another issuer": self.issuer.token(
                self.name, **{**kept, "iss": "https://else.example"}
            ),
        }


def begin(test: type[unittest.TestCase], command: list[str], port: int, **more: Any) -> Path:
    """Start a program for the tests of a class, and wait until it listens; the file of its log."""
    handle, name = tempfile.mkstemp(prefix="jwks-log-")
    with open(handle, "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more
        )
    test.addClassCleanup(os.unlink, name)
    test.addClassCleanup(end, process)
    if not listens(port, process, START_SECONDS):
        raise AssertionError(
            f"{command[0]} did not start:\n{Path(name).read_text('utf-8')[-3000:]}"
        )
    return Path(name)


def end(process: subprocess.Popen[bytes]) -> None:
    """Have it end; by force if it does not."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)
