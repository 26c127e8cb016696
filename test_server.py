"""Grades a JWKS server from outside: over HTTP, with nothing but the standard library.

    python -m unittest test_server                                    our server, started here
    JWKS_TEST_URL=http://127.0.0.1:8080 python -m unittest test_server    any server, by its URL
    ... python -m unittest test_server.Register test_server.Auth          some groups of checks

docs/grading.md has the whole of it: what each check demands, and why.

Rules of this file:
- Each test is one claim. Where it fails it says what was expected, what came, and where the rule
  stands; that is the whole of the message, whatever the server did.
- One fault, one failing check: what another check is about is taken as it comes.
- The limiter counts by address: on this machine each request comes from a loopback address of its
  own. Where that cannot be done, a refused login is repeated after the time it was told to wait.

Left out: what cannot be seen from outside (the tables, the sealed keys); tests/ looks at those.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import itertools
import json
import os
import random
import socket
import sys
import time
import unittest
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt_minimal

__unittest = True  # unittest then shows the sentence without the lines of this file around it

URL = os.environ.get("JWKS_TEST_URL", "")
JWKS = "/.well-known/jwks.json"
JSON_TYPE = {"Content-Type": "application/json"}
PATIENCE = 10.0  # s for one answer
WINDOW = 60  # s: that of the limiter, five attempts a minute
# Addresses of 127.0.0.0/8, each a fresh client for the limiter; another row of them in each run.
ADDRESSES = itertools.count(0x7F000002 + random.randrange(0xFF0000))
LEEWAY = 5  # s by which the clock of a server elsewhere may be off
SHOWN = 160  # characters of an answer that a message quotes
CONTRACT = "docs/grading.md"
DATES = ("exp", "iat")  # a token must have both


class Answer(NamedTuple):
    """A response: what was asked, status, fields by lower-case name, body."""

    asked: str
    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def member(self, name: str) -> Any:
        """A member of the JSON object that the body is; None if there is none."""
        document = self.json()
        return document.get(name) if isinstance(document, dict) else None

    def __str__(self) -> str:
        """As a message quotes it."""
        kind = self.fields.get("content-type", "without Content-Type")
        body = self.body.decode("utf-8", "replace")
        return f"{self.status} ({kind}) {' '.join(body.split())[:SHOWN]}".rstrip()


class ServerTest(unittest.TestCase):
    """A test with a server to ask."""

    url: str

    @classmethod
    def setUpClass(cls) -> None:
        """Take the server of JWKS_TEST_URL, or start ours."""
        if URL:
            cls.url = URL
            return
        import server

        issuer = server.running(register_limit="off")
        cls.addClassCleanup(issuer.stop)
        cls.url = issuer.url

    # -- verdicts

    def demand(self, holds: object, wanted: str, came: object, rule: str) -> None:
        """Fail, in one sentence, unless it holds."""
        if not holds:
            text = f"expected {wanted}; came {came}; the rule: {rule}"
            raise self.failureException(" ".join(text.split())) from None

    def expect(self, answer: Answer, status: int, rule: str) -> Answer:
        """The answer, if it has this status."""
        self.demand(answer.status == status, f"{status} to {answer.asked}", answer, rule)
        return answer

    def expect_all(self, answers: Iterable[Answer], status: int, rule: str) -> None:
        """Every one of them has this status; those that have not are named together."""
        wrong = [
            f"{answer.status} to {answer.asked}" for answer in answers if answer.status != status
        ]
        self.demand(not wrong, f"{status}", ", ".join(wrong), rule)

    def field(self, answer: Answer, name: str, rule: str) -> str:
        """A header field of the answer, which must be there."""
        came = f"{answer.status} with {', '.join(sorted(answer.fields))}"
        found = answer.fields.get(name.lower())
        self.demand(
            found is not None, f"a field {name} in the answer to {answer.asked}", came, rule
        )
        return str(found)

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
        """Send one request, from an address of its own unless one is given."""
        headers = dict(fields or {})
        if document is not None:
            body = json.dumps(document).encode()
            headers = {**JSON_TYPE, **headers}
        asked = " ".join([method, path, *([repr(body)[2:-1][:SHOWN]] if body is not None else [])])
        connection = connect(self.url, address or fresh_address())
        try:
            connection.request(method, urlsplit(self.url).path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(asked, response.status, found, response.read())
        except (OSError, http.client.HTTPException) as error:
            came = f"{type(error).__name__}: {error}"
            self.demand(False, f"an answer to {asked} in {PATIENCE:g} s", came, "RFC 9110 §3.4")
            raise
        finally:
            connection.close()

    def register(self, **members: str) -> tuple[str, str]:
        """A new user: name and password."""
        name = members.pop("username", f"user-{uuid.uuid4()}")
        answer = self.ask("POST", "/register", {"username": name, **members})
        password = answer.member("password")
        # With which status is for Register to judge.
        self.demand(
            type(password) is str,
            f'{{"password": ...}} from {answer.asked}, which this check begins with',
            answer,
            f"{CONTRACT}, Register",
        )
        return name, password

    def login(self, name: str, password: str, **options: Any) -> Answer:
        """POST /auth with JSON."""
        path = options.pop("path", "/auth")
        return self.attempt(path, {"username": name, "password": password}, **options)

    def attempt(self, path: str, document: object = None, **options: Any) -> Answer:
        """POST to a path that is limited; again after the time to wait where that is no verdict."""
        answer = self.ask("POST", path, document, **options)
        if answer.status != 429 or "address" in options:
            return answer
        wait = answer.fields.get("retry-after", "")
        pause(int(wait) if wait.isdecimal() and int(wait) <= WINDOW else WINDOW)
        return self.ask("POST", path, document, **options)

    def token(self, **options: Any) -> tuple[str, str]:
        """A name, and a token for it."""
        name, password = self.register()
        answer = self.login(name, password, **options)
        token = answer.member("token")
        self.demand(
            type(token) is str and token.count(".") == 2,
            f'{{"token": "<header>.<claims>.<signature>"}} from {answer.asked}',
            answer,
            f"{CONTRACT}, Auth; RFC 7519 §3",
        )
        return name, token

    def parts(self, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and claims of a token, not verified."""
        try:
            header, claims = (
                json.loads(jwt_minimal.b64url_decode(part)) for part in token.split(".")[:2]
            )
        except ValueError as error:
            self.demand(False, "base64url of JSON in a token", f"{token[:SHOWN]} ({error})",
                        "RFC 7515 §7.1")  # fmt: skip
            raise
        return header, claims

    def jwks(self) -> list[dict[str, Any]]:
        """The published keys."""
        answer = self.ask("GET", JWKS)
        keys = answer.member("keys")
        self.demand(
            isinstance(keys, list) and keys and all(isinstance(jwk, dict) for jwk in keys),
            f'{{"keys": [...]}} with a key at least from {answer.asked}',
            answer,
            "RFC 7517 §5",
        )
        return list(keys)

    def verified(self, token: str, **options: Any) -> dict[str, Any]:
        """The claims of a token that the published keys verify."""
        keys = {"keys": [normal(jwk) for jwk in self.jwks()]}
        try:
            return jwt_minimal.decode(token, keys, leeway=LEEWAY, **options)
        except jwt_minimal.InvalidToken as error:
            header, claims = self.parts(token)
            came = f"one that is refused ({error}): {header} {claims}"[: 3 * SHOWN]
            self.demand(False, "a token that the JWKS verifies", came, "RFC 7519 §7.2")
            raise


def setUpModule() -> None:
    """One sentence instead of a failure a check if the server cannot be asked at all."""
    if not URL:
        return
    parts = urlsplit(URL)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AssertionError(f"JWKS_TEST_URL={URL} is no URL such as http://127.0.0.1:8080")
    try:
        socket.create_connection((parts.hostname, port_of(URL)), PATIENCE).close()
    except OSError as error:
        raise AssertionError(f"nobody listens at {URL}: {error}; start the server first") from None


def normal(jwk: dict[str, Any]) -> dict[str, Any]:
    """The key with its numbers spelled as they should be, which is for one check alone to judge."""
    numbers = {name: jwk[name] for name in ("n", "e") if isinstance(jwk.get(name), str)}
    return {**jwk, **{name: respelled(text) for name, text in numbers.items()}}


def respelled(text: str) -> str:
    """Base64url without padding or leading zero octets, if it is base64 of any kind."""
    try:
        raw = base64.urlsafe_b64decode(text.rstrip("=") + "===")
    except ValueError:
        return text
    return jwt_minimal.b64url_encode(raw.lstrip(b"\0"))


def port_of(url: str) -> int:
    """Given, or the scheme's own."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def connect(url: str, address: str) -> http.client.HTTPConnection:
    """A connection to the server; on this machine, from that address."""
    parts = urlsplit(url)
    make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    source = (address, 0) if has_addresses(url) else None
    return make(str(parts.hostname), port_of(url), timeout=PATIENCE, source_address=source)


def fresh_address() -> str:
    """A loopback address that the limiter has not seen yet."""
    return str(ipaddress.ip_address(next(ADDRESSES)))


def has_addresses(url: str) -> bool:
    """Whether we can come from many addresses: on this machine, all of 127.0.0.0/8 is ours."""
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost"):
        return False
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:  # macOS has one
            return False
    return True


def pause(seconds: int) -> None:
    """Wait for the limiter, and say so."""
    print(f"\nwaiting {seconds} s for the limiter of the server", file=sys.stderr)
    time.sleep(seconds)


class Register(ServerTest):
    """POST /register."""

    RULE = f"{CONTRACT}, Register"

    def test_answers_201_with_a_uuid4_and_nothing_else(self) -> None:
        """The password is generated, and valid as UUID version 4."""
        answer = self.ask("POST", "/register", {"username": str(uuid.uuid4()), "email": None})
        self.expect(answer, 201, f"RFC 9110 §15.3.2; {self.RULE}")
        password, only = answer.member("password"), '{"password": "<UUID version 4>"}'
        try:
            version = uuid.UUID(password).version
        except (ValueError, AttributeError, TypeError):
            version = None
        holds = version == 4 and list(answer.json()) == ["password"]
        self.demand(holds, f"{only} from {answer.asked}", answer, f"RFC 9562 §5.4; {self.RULE}")
        kind = self.field(answer, "Content-Type", "RFC 8259 §11")
        self.demand(kind.startswith("application/json"), "application/json", kind, "RFC 8259 §11")

    def test_gives_every_user_another_password(self) -> None:
        """Passwords are random."""
        first, second = self.register()[1], self.register()[1]
        self.demand(first != second, "another password for every user", "the same twice", self.RULE)

    def test_refuses_a_taken_name_and_a_taken_address_with_409(self) -> None:
        """Names and e-mail addresses are unique."""
        email = f"{uuid.uuid4()}@example.org"
        name, _ = self.register(email=email)
        same: list[dict[str, str]] = [
            {"username": name},
            {"username": f"other-{name}", "email": email},
        ]
        answers = [self.ask("POST", "/register", document) for document in same]
        self.expect_all(answers, 409, f"RFC 9110 §15.5.10; {self.RULE}")

    def test_refuses_a_request_without_a_name_with_400(self) -> None:
        """A name is needed, and must be text."""
        bad: list[object] = [{}, {"username": ""}, {"username": 1}, {"email": "a@example.org"}, []]
        answers = [self.ask("POST", "/register", document) for document in bad]
        self.expect_all(answers, 400, f"RFC 9110 §15.5.1; {self.RULE}")


class Auth(ServerTest):
    """POST /auth."""

    RULE = f"{CONTRACT}, Auth"

    def test_answers_a_token_that_the_jwks_verifies(self) -> None:
        """The claims are those of the user who asked, the signature that of a published key."""
        name, token = self.token()
        claims = self.verified(token)
        wanted = f'"sub": "{name}", who asked,'
        self.demand(claims.get("sub") == name, wanted, claims, f"RFC 7519 §4.1.2; {self.RULE}")

    def test_says_what_the_token_is_and_that_nobody_may_keep_it(self) -> None:
        """What clients of OAuth read beside the token."""
        answer = self.login(*self.register())
        self.expect(answer, 200, self.RULE)
        kind, seconds = answer.member("token_type"), answer.member("expires_in")
        wanted = '"token_type": "Bearer" and "expires_in": <seconds>'
        holds = kind == "Bearer" and type(seconds) is int and seconds > 0
        self.demand(holds, wanted, answer, "RFC 6749 §5.1")
        control = answer.fields.get("cache-control", "no such field")
        self.demand("no-store" in control, "Cache-Control: no-store", control, "RFC 6749 §5.1")

    def test_makes_tokens_that_every_client_can_read(self) -> None:
        """RS256, JWT, a kid that is text; dates that are whole numbers."""
        header, claims = self.parts(self.token()[1])
        named = (header.get("alg"), header.get("typ"), type(header.get("kid")))
        wanted = 'a header {"alg": "RS256", "typ": "JWT", "kid": "<text>"}'
        self.demand(named == ("RS256", "JWT", str), wanted, header, "RFC 7515 §4.1; RFC 7519 §5.1")
        whole = all(type(claims.get(name)) is int for name in DATES)
        self.demand(
            whole, '"exp" and "iat" as whole numbers', claims, "RFC 7519 §4.1; " + self.RULE
        )

    def test_takes_a_form_and_http_basic_as_well(self) -> None:
        """JSON is not the only way to say who one is."""
        name, password = self.register()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        body = f"username={name}&password={password}".encode()
        basic = base64.b64encode(f"{name}:{password}".encode()).decode()
        answers = [
            self.attempt("/auth", body=body, fields=form)._replace(asked="/auth with a form"),
            self.attempt("/auth", fields={"Authorization": f"Basic {basic}"})._replace(
                asked="/auth with HTTP Basic"
            ),
        ]
        self.expect_all(answers, 200, f"RFC 6749 §4.3.2, RFC 7617 §2; {self.RULE}")

    def test_refuses_a_wrong_password_and_an_unknown_user_alike_with_401(self) -> None:
        """Nobody learns which names exist."""
        name, _ = self.register()
        wrong = self.login(name, "wrong")._replace(asked="a wrong password")
        unknown = self.login(f"nobody-{uuid.uuid4()}", "wrong")._replace(asked="an unknown user")
        self.expect_all((wrong, unknown), 401, f"RFC 9110 §15.5.2; {self.RULE}")
        self.field(wrong, "WWW-Authenticate", "RFC 9110 §11.6.1")
        alike = wrong.body == unknown.body and wrong.fields.keys() == unknown.fields.keys()
        came = f"{wrong} for a wrong password, {unknown} for an unknown user"
        self.demand(alike, "the same answer to both", came, self.RULE)

    def test_gives_an_expired_token_on_request(self) -> None:
        """It has expired, and its key is not published."""
        header, claims = self.parts(self.token(path="/auth?expired=true")[1])
        exp = claims.get("exp")
        past = isinstance(exp, (int, float)) and exp < time.time() + LEEWAY
        self.demand(past, "an exp in the past from /auth?expired=true", claims, self.RULE)
        kids = [jwk.get("kid") for jwk in self.jwks()]
        wanted = f"no key {header.get('kid')!r}, which signs what has expired, in {JWKS}"
        self.demand(header.get("kid") not in kids, wanted, kids, self.RULE)


class Limits(ServerTest):
    """How often an address may try."""

    RULE = f"{CONTRACT}, Limits"

    def test_allow_five_attempts_a_minute_and_address(self) -> None:
        """The sixth is refused with the time to wait; another address is not concerned."""
        name, password = self.register()
        if not has_addresses(self.url):
            pause(WINDOW)  # what the other checks have used up
        address = fresh_address()
        answers = [self.login(name, password, address=address) for _ in range(6)]
        statuses = [answer.status for answer in answers]
        self.demand(
            429 not in statuses[:5] and statuses[5] == 429,
            "five attempts to be judged and the sixth to be refused with 429 (RFC 6585 §4)",
            statuses,
            self.RULE,
        )
        wait = self.field(answers[5], "Retry-After", "RFC 6585 §4; RFC 9110 §10.2.3")
        holds = wait.isdecimal() and 1 <= int(wait) <= WINDOW
        self.demand(holds, f"Retry-After: 1 to {WINDOW}", wait, self.RULE)
        if has_addresses(self.url):
            other = self.login(name, password)
            self.demand(other.status != 429, "no limit for another address", other, self.RULE)

    def test_do_not_concern_the_keys(self) -> None:
        """Verifiers may ask as often as they like."""
        address = fresh_address()
        statuses = {self.ask("GET", JWKS, address=address).status for _ in range(30)}
        self.demand(statuses == {200}, f"200 to 30 times GET {JWKS}", statuses, self.RULE)


class KeySet(ServerTest):
    """GET /.well-known/jwks.json."""

    RULE = f"{CONTRACT}, KeySet"
    MEMBERS = ("alg", "e", "kid", "kty", "n", "use")

    def test_has_rsa_keys_with_exactly_the_public_members(self) -> None:
        """No private number is published, and no member that some client stumbles over."""
        for jwk in self.jwks():
            wanted = f"the members {', '.join(self.MEMBERS)}"
            holds = sorted(jwk) == list(self.MEMBERS)
            self.demand(holds, wanted, ", ".join(sorted(jwk)), f"RFC 7518 §6.3.1; {self.RULE}")
            holds = all(type(value) is str for value in jwk.values())
            self.demand(holds, "text in every member of a key", jwk, "RFC 7517 §4")

    def test_spells_numbers_as_base64url_without_padding(self) -> None:
        """One spelling: no =, no + or /, no leading zero octet."""
        for jwk in self.jwks():
            for name in ("n", "e"):
                try:
                    holds = jwt_minimal.b64url_decode(str(jwk.get(name)))[:1] not in (b"", b"\0")
                except ValueError:
                    holds = False
                wanted = f"base64url without padding in {name}"
                self.demand(holds, wanted, f"{jwk.get(name)!r}"[-40:], "RFC 7518 §6.3.1, §2")

    def test_names_each_key_by_its_thumbprint(self) -> None:
        """Whoever has a key can compute its name, and no name is used twice."""
        for jwk in self.jwks():
            try:
                wanted = jwt_minimal.thumbprint(normal(jwk))
            except (ValueError, KeyError, TypeError) as error:
                wanted = f"the thumbprint of a sound key ({error!r})"
            came = jwk.get("kid")
            self.demand(came == wanted, f"kid {wanted}", repr(came), f"RFC 7638 §3; {self.RULE}")

    def test_can_be_cached_and_asked_for_again(self) -> None:
        """An ETag, a max-age, and 304 for whoever has it already."""
        first = self.ask("GET", JWKS)
        control = self.field(first, "Cache-Control", f"RFC 9111 §5.2; {self.RULE}")
        self.demand("max-age" in control, "a max-age", control, f"RFC 9111 §5.2.2.1; {self.RULE}")
        tag = self.field(first, "ETag", f"RFC 9110 §8.8.3; {self.RULE}")
        again = self.ask("GET", JWKS, fields={"If-None-Match": tag})
        self.expect(again, 304, "RFC 9110 §13.1.2")
        self.demand(not again.body, "no body with 304", again, "RFC 9110 §15.4.5")

    def test_is_open_to_pages_of_every_origin(self) -> None:
        """A verifier in a browser may read it: nothing in it is secret."""
        name = "Access-Control-Allow-Origin"
        came = self.field(
            self.ask("GET", JWKS), name, f"{self.RULE}; Fetch standard, CORS protocol"
        )
        self.demand(came == "*", f"{name}: *", came, self.RULE)


class Discovery(ServerTest):
    """GET /.well-known/openid-configuration and /.well-known/oauth-authorization-server."""

    def test_names_its_issuer_and_its_keys(self) -> None:
        """RFC 8414: the issuer there is the issuer in the tokens."""
        rule = f"RFC 8414 §2; {CONTRACT}, Discovery"
        _, claims = self.parts(self.token()[1])
        for document in ("openid-configuration", "oauth-authorization-server"):
            answer = self.expect(self.ask("GET", f"/.well-known/{document}"), 200, rule)
            issuer, uri = answer.member("issuer"), answer.member("jwks_uri")
            holds = type(issuer) is str and str(uri).endswith(JWKS)
            self.demand(holds, f"an issuer, and a jwks_uri with {JWKS}", answer, rule)
            wanted = f'"iss": "{issuer}" in a token, as in {document}'
            self.demand(claims.get("iss") == issuer, wanted, claims, rule)


class Everything(ServerTest):
    """What holds for every route."""

    RULE = f"{CONTRACT}, Everything"
    METHODS = ("PUT", "DELETE", "PATCH")

    def test_refuses_other_methods_with_405_and_names_those_it_has(self) -> None:
        """The field Allow is not optional."""
        routes = (("/auth", "POST"), ("/register", "POST"), (JWKS, "GET"))
        for path, allowed in routes:
            methods = (*self.METHODS, "GET" if allowed == "POST" else "POST")
            answers = [self.ask(method, path) for method in methods]
            self.expect_all(answers, 405, "RFC 9110 §15.5.6")
            for answer in answers:
                came = self.field(answer, "Allow", "RFC 9110 §15.5.6")
                self.demand(allowed in came, f"{allowed} in Allow", came, "RFC 9110 §10.2.1")

    def test_answers_head_like_get_without_a_body(self) -> None:
        """RFC 9110 §9.3.2."""
        get, head = self.ask("GET", JWKS), self.ask("HEAD", JWKS)
        self.expect(head, 200, "RFC 9110 §9.3.2")
        lengths = [answer.fields.get("content-length") for answer in (get, head)]
        wanted = "the Content-Length of GET for HEAD"
        self.demand(lengths[0] == lengths[1], wanted, lengths, "RFC 9110 §8.6")

    def test_knows_nothing_at_other_paths(self) -> None:
        """And says so by the status."""
        self.expect(self.ask("GET", "/nothing/here"), 404, "RFC 9110 §15.5.5")

    def test_refuses_nonsense_with_400_and_never_with_a_5xx(self) -> None:
        """Bad input is the client's fault."""
        twice = f'{{"username": "{uuid.uuid4()}", "username": "{uuid.uuid4()}", "password": "x"}}'
        bodies = (b"{", b"[]", b"\xff", twice.encode(), b"null")
        answers = [
            self.attempt(path, body=body, fields=JSON_TYPE)
            for path in ("/register", "/auth")
            for body in bodies
        ]
        self.expect_all(answers, 400, f"RFC 9110 §15.5.1, RFC 8259 §4; {self.RULE}")

    def test_says_what_is_wrong_in_json(self) -> None:
        """A word for programs, a sentence for people, whatever the status."""
        for answer in (
            self.ask("GET", "/nothing/here"),
            self.ask("PUT", JWKS),
            self.attempt("/auth", body=b"{", fields=JSON_TYPE),
            self.login(f"nobody-{uuid.uuid4()}", "wrong"),
        ):
            told = answer.member("error") and answer.member("error_description")
            wanted = f'{{"error": ..., "error_description": ...}} from {answer.asked}'
            self.demand(told, wanted, answer, f"RFC 6749 §5.2; {self.RULE}")


if __name__ == "__main__":
    unittest.main()
