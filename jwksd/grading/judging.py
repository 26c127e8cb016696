"""What every check of a server is made of: the server, its rubric, a question, a demand.

    given("account"), given("token"), given("keys")     asked for once; one check owns the lack
    ask(), login(), by_form(), by_basic()                an Answer, or one sentence
    demand(holds, wanted, came, rule)                    one printable sentence, or nothing

Rules of this file
  - A failing check is one sentence, never a traceback, whatever the server sent.
  - A fault fails the check that is about it; a check that cannot do without is not judged.
  - A run ends: after two silences in a group, or four in all, the rest is not judged.

Left out: the checks. Those from outside are in test_server.py, those of the file in at_rest.py.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import socket
import sys
import time
import unittest
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt_minimal
from jwksd.grading.asking import (
    SHOWN,
    Answer,
    Asked,
    connect,
    exchange,
    fresh_address,
    listens,
    parsed,
    printable,
    seconds_of,
)

__unittest = True  # unittest then shows the sentence without the lines of this file around it

JWKS = "/.well-known/jwks.json"
JSON_TYPE = {"Content-Type": "application/json"}
FORM_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}
ORIGIN = "https://app.example"  # RFC 2606 §2: belongs to nobody
LEEWAY = 5  # s by which the clock of a server elsewhere may be off
SILENCES = (2, 4)  # in a group, in all
CONTRACT = "our contract, docs/grading.md"
PERIODS = {"second": 1, "minute": 60, "hour": 3600}
# What a rubric may set beside the points: see docs/grading.md.
DEFAULTS: dict[str, Any] = {
    "auth_limit": "5/minute",
    "token": ["token", "access_token", "jwt"],
    "seconds": 10,  # for one answer
    "statuses": {
        "registered": [201], "taken": [409], "malformed": [400, 422], "unauthorized": [401],
        "limited": [429], "unknown": [404], "method": [405],
    },
}  # fmt: skip
# What many checks need, and the one check that fails without it.
OWNERS = {
    "account": "test_gives_a_new_user_a_password",
    "token": "test_gives_who_registered_a_token",
    "keys": "test_publishes_its_keys",
    "flood": "test_refuse_one_attempt_more_than_the_limit",
}


class Subject:
    """The graded server, and what is known of it."""

    def __init__(self, url: str, environ: Mapping[str, str]) -> None:
        self.url = url
        self.rubric = read_rubric(environ.get("JWKS_TEST_RUBRIC", ""))
        handed = (environ.get("JWKS_TEST_USER", ""), environ.get("JWKS_TEST_PASSWORD", ""))
        self.database = environ.get("JWKS_TEST_DATABASE", "")
        self.account = handed if all(handed) else None
        self.facts: dict[str, Any] = {}  # of OWNERS; an AssertionError for what cannot be had
        self.requests: dict[str, list[Asked]] = {}  # the requests by which a fact was found
        self.silences: Counter[str] = Counter()
        self.dead = ""  # the sentence, once nobody listens any more
        self.direct = environ.get("JWKS_TEST_DIRECT", "") == "1"  # no forwarder between


CURRENT: list[Subject] = []  # the one that `take` took


class ServerTest(unittest.TestCase):
    """A test with a server to ask."""

    @property
    def subject(self) -> Subject:
        """The server that is graded now."""
        return CURRENT[0]

    def setUp(self) -> None:
        """Skip the check if the server died, or if it would only cost time."""
        self.requests: list[Asked] = []
        if any(isinstance(self.subject.facts.get(what), AssertionError) for what in self.owned):
            return  # a known fact costs no request
        if self.subject.dead:
            self.skipTest(f"not judged: {self.subject.dead}")
        group, total = type(self).__name__, sum(self.subject.silences.values())
        if self.subject.silences[group] >= SILENCES[0] or total >= SILENCES[1]:
            self.skipTest("not judged: too many requests before this one were not answered in time")

    @property
    def owned(self) -> list[str]:
        """The fact for whose lack this check fails."""
        return [what for what, check in OWNERS.items() if check == self._testMethodName]

    # -- verdicts

    def demand(self, holds: object, wanted: str, came: object, rule: str) -> None:
        """Fail, in one printable sentence, unless it holds."""
        if not holds:
            came = str(came)[: 4 * SHOWN]
            text = f"expected {wanted}; came {came}; the rule: {rule}"
            raise self.failureException(printable(" ".join(text.split()))) from None

    def accepted(self, status: str) -> list[int]:
        """The statuses that the rubric accepts for a case."""
        return list(self.subject.rubric["statuses"][status])

    def expect(self, answers: Iterable[Answer], case: str, rule: str) -> None:
        """Demand an accepted status of every answer; the others are named in one sentence."""
        accepted = self.accepted(case)
        wrong = [f"{it.status} to {it.asked}" for it in answers if it.status not in accepted]
        self.demand(not wrong, " or ".join(map(str, accepted)), ", ".join(wrong), rule)

    def field(self, answer: Answer, name: str, rule: str) -> str:
        """A header field of the answer, which must be there."""
        came = f"{answer.status} with {', '.join(sorted(answer.fields))}"
        found = answer.fields.get(name.lower())
        self.demand(
            found is not None, f"a field {name} in the answer to {answer.asked}", came, rule
        )
        return str(found)

    # -- what many checks need

    def given(self, what: str) -> Any:
        """An account, a token or the keys; without them only their owner fails."""
        if what not in self.subject.facts:
            before = len(self.requests)
            try:
                self.subject.facts[what] = getattr(self, f"find_{what}")()
            except self.failureException as lack:
                self.subject.facts[what] = lack
            self.subject.requests[what] = self.requests[before:]
        else:
            self.requests += self.subject.requests[what]
        found = self.subject.facts[what]
        if not isinstance(found, AssertionError):
            return found
        if what in self.owned:
            raise self.failureException(str(found)) from None
        raise unittest.SkipTest(f"not judged, for want of {what} ({OWNERS[what]}): {found}")

    def find_account(self) -> tuple[str, str]:
        """The account handed in, or a new one."""
        return self.subject.account or self.register()

    def find_token(self) -> tuple[Answer, str]:
        """The answer to a login, and the token in it."""
        answer = self.login(*self.given("account"))
        return answer, self.token_in(answer)

    def token_in(self, answer: Answer) -> str:
        """The token in an answer, wherever it stands."""
        found = answer.token(self.subject.rubric["token"]) if answer.status < 300 else None
        wanted = f"a token <header>.<claims>.<signature> from {answer.asked}"
        self.demand(found, wanted, answer, "RFC 7519 §3")
        return str(found)

    def find_keys(self) -> list[dict[str, Any]]:
        """The published RSA keys; each has the numbers that make it one."""
        answer = self.ask("GET", JWKS)
        keys = answer.member("keys")
        keys = keys if answer.status == 200 and isinstance(keys, list) else []
        wanted = f'200 and {{"keys": [...]}} with a key at least from {answer.asked}'
        holds = keys and all(isinstance(jwk, dict) for jwk in keys)
        self.demand(holds, wanted, answer, "RFC 7517 §5")
        rsa: list[dict[str, Any]] = [jwk for jwk in keys if jwk.get("kty") == "RSA"]
        holds = rsa and all(type(jwk.get(name)) is str for jwk in rsa for name in ("n", "e"))
        self.demand(holds, "RSA keys, each with n and e as text", answer, "RFC 7518 §6.3.1")
        return rsa

    # -- questions

    def ask(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        fields: dict[str, str] | None = None,
        body: bytes | None = None,
        address: str | None = None,
    ) -> Answer:
        """Send one request, from an address of its own; after the wait again if it is too many.

        With a given address, a 429 is not waited out.
        """
        headers = dict(fields or {})
        if document is not None:
            body, headers = json.dumps(document).encode(), {**JSON_TYPE, **headers}
        request = Asked(method, path, headers, body, None)
        answer = self.send(request, address or fresh_address())
        if answer.status != 429 or address or method != "POST":
            return answer
        wait = seconds_of(answer.fields.get("retry-after", ""))
        period = limit_of(self.subject.rubric)[1]
        pause(wait if wait is not None and wait <= 60 else period)
        return self.send(request, fresh_address())

    def send(self, request: Asked, address: str) -> Answer:
        """One request and its answer, or a sentence about what came instead."""
        body = [] if request.body is None else [repr(request.body)[2:-1][:SHOWN]]
        asked = " ".join([request.method, request.path, *body])
        patience = self.subject.rubric["seconds"]
        answer = None
        try:
            answer = exchange(self.subject.url, request, address, patience)._replace(asked=asked)
            return answer
        except (TimeoutError, socket.timeout):
            self.subject.silences[type(self).__name__] += 1
            self.no_answer(f"{asked} in {patience:g} s", "none")
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            came = f"{type(error).__name__}: {error}"
            if not listens(self.subject.url):
                self.subject.dead = printable(f"the server died after {asked}")
                came += ", and nobody listens any more: the server died"
            self.no_answer(asked, came)
            raise
        finally:
            self.requests.append(request._replace(answer=answer))

    def no_answer(self, asked: str, came: str) -> None:
        """Fail, because no answer came."""
        self.demand(False, f"an answer to {asked}", came, "RFC 9110 §3.4")

    def register(self, **members: Any) -> tuple[str, str]:
        """A new user: name and password. With which status is for Register to judge."""
        name = members.pop("username", f"user-{uuid.uuid4()}")
        document = {"username": name, "email": f"{uuid.uuid4()}@example.org", **members}
        answer = self.ask("POST", "/register", document)
        password = answer.member("password")
        sound = isinstance(password, str) and password and answer.status < 300
        wanted = f'{{"password": ...}} from {answer.asked}'
        self.demand(sound, wanted, answer, f"{CONTRACT}, Register")
        return name, str(password)

    def newcomer(self) -> tuple[str, str]:
        """Another account than the given one; not judged where nobody can register."""
        self.given("account")
        try:
            return self.register()
        except self.failureException as error:
            raise unittest.SkipTest(f"not judged, for want of a second account: {error}") from None

    def login(self, name: str, password: str, address: str | None = None) -> Answer:
        """POST /auth with JSON."""
        document = {"username": name, "password": password}
        return self.ask("POST", "/auth", document, address=address)

    def by_form(self, name: str, password: str) -> Answer:
        """POST /auth with a form, in which every character is spelled safely."""
        body = urlencode({"username": name, "password": password}).encode()
        return self.ask("POST", "/auth", body=body, fields=FORM_TYPE)

    def by_basic(self, name: str, password: str) -> Answer:
        """POST /auth with HTTP Basic."""
        basic = base64.b64encode(f"{name}:{password}".encode()).decode()
        answer = self.ask("POST", "/auth", fields={"Authorization": f"Basic {basic}"})
        return answer._replace(asked="POST /auth with HTTP Basic")

    def parts(self, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and claims of a token, not verified."""
        try:
            found = [parsed(jwt_minimal.b64url_decode(part)) for part in token.split(".")[:2]]
        except ValueError:
            found = []
        sound = len(found) == 2 and all(isinstance(part, dict) for part in found)
        self.demand(sound, "base64url of JSON objects in a token", token, "RFC 7515 §7.1")
        return found[0], found[1]


def read_rubric(path: str) -> dict[str, Any]:
    """The settings in a rubric's file, or DEFAULTS without one; OSError or ValueError."""
    return settings_of(json.loads(Path(path).read_text("utf-8")) if path else {})


def settings_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """DEFAULTS with what a rubric says laid over them; ValueError for a wrong value."""
    found = {name: said.get(name, default) for name, default in DEFAULTS.items()}
    unknown = set(found["statuses"]) - set(DEFAULTS["statuses"])
    if unknown:
        raise ValueError(f"statuses of {', '.join(sorted(unknown))}: there is no such case")
    found["statuses"] = {**DEFAULTS["statuses"], **found["statuses"]}
    limit_of(found)
    return found


def limit_of(settings: dict[str, Any]) -> tuple[int, int]:
    """The limit on logins that is asked for: how many, in how many seconds."""
    match = re.fullmatch(r"([1-9]\d{0,2})/(second|minute|hour)", str(settings["auth_limit"]))
    if not match:
        raise ValueError("auth_limit: write 5/minute or 10/second")
    return int(match[1]), PERIODS[match[2]]


def pause(seconds: float) -> None:
    """Wait for the limiter, and say so."""
    print(f"\nwaiting {seconds:g} s for the limiter of the server", file=sys.stderr)
    time.sleep(seconds)


def take(url: str, environ: Mapping[str, str]) -> None:
    """Grade the server at this URL from now on; AssertionError with a sentence if it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AssertionError(f"JWKS_TEST_URL={url} is no URL such as http://127.0.0.1:8080")
    subject = Subject(url, environ)
    try:
        connect(url, fresh_address(), time.monotonic() + subject.rubric["seconds"]).close()
    except OSError as error:
        raise AssertionError(f"nobody listens at {url}: {error}; start the server first") from None
    CURRENT[:] = [subject]
