"""Grades a JWKS server from outside: over HTTP, with nothing but the standard library.

    python -m unittest test_server                                    our server, started here
    JWKS_TEST_URL=http://127.0.0.1:8080 python -m unittest test_server    any server, by its URL
    ... python -m unittest test_server.Register test_server.Auth          some groups of checks

docs/grading.md has the whole of it: what each check demands, and why.

Rules of this file:
- Each test is one claim. Where it fails it says what was expected, what came, and where the rule
  stands; that is the whole of the message, whatever the server did.
- One fault, one failing check. An account, a token and the keys are asked for once, and the check
  in `OWNERS` fails if they cannot be had; a check that needs them is then skipped: not judged.
- The graded server is hostile: an answer has one deadline and 1 MiB, and what is quoted of it is
  printable. After two silences in a group, or four in all, the rest is not judged.
- The limiter counts by address: on this machine each request comes from a loopback address of its
  own. Where that cannot be done, a refused request is repeated after the time it was told to wait.

Left out: how a request is sent and a verdict said (jwksd/grading), and how a database file is read.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import unittest
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt_minimal
from jwksd.grading import at_rest, judging
from jwksd.grading.asking import (
    Answer,
    directives,
    fresh_address,
    many_addresses,
    seconds_of,
    signed_by,
    skeleton,
    thumbprint,
)
from jwksd.grading.judging import (
    CONTRACT,
    JSON_TYPE,
    LEEWAY,
    limit_of,
    pause,
)
from jwksd.grading.judging import JWKS as JWKS
from jwksd.grading.judging import ServerTest as ServerTest

__unittest = True  # unittest then shows the sentence without the lines of this file around it

URL = os.environ.get("JWKS_TEST_URL", "")
ORIGIN = "https://app.example"  # RFC 2606 §2: belongs to nobody


def setUpModule() -> None:
    """Take the server of JWKS_TEST_URL, or start ours; one sentence if it cannot be asked."""
    if URL:
        judging.take(URL, os.environ)
        return
    import server

    folder = tempfile.TemporaryDirectory(prefix="graded-")
    unittest.addModuleCleanup(folder.cleanup)
    database = os.path.join(folder.name, "keys.db")
    issuer = server.running(register_limit="off", db=database)
    unittest.addModuleCleanup(issuer.stop)
    judging.take(issuer.url, {"JWKS_TEST_DIRECT": "1", "JWKS_TEST_DATABASE": database})


class Register(ServerTest):
    """POST /register."""

    RULE = f"{CONTRACT}, Register"

    def test_gives_a_new_user_a_password(self) -> None:
        """Without an account, little else can be judged."""
        if self.subject.account:
            self.register()
        self.given("account")

    def test_answers_201_with_a_uuid4_and_nothing_else(self) -> None:
        """The password is generated, and valid as UUID version 4."""
        self.given("account")
        document = {"username": f"user-{uuid.uuid4()}", "email": f"{uuid.uuid4()}@example.org"}
        answer = self.ask("POST", "/register", document)
        self.expect([answer], "registered", f"RFC 9110 §15.3.2; {self.RULE}")
        password, only = answer.member("password"), '{"password": "<UUID version 4>"}'
        try:
            version = uuid.UUID(password).version
        except (ValueError, AttributeError, TypeError):
            version = None
        holds = version == 4 and list(answer.json()) == ["password"]
        self.demand(holds, f"{only} from {answer.asked}", answer, f"RFC 9562 §5.4; {self.RULE}")
        kind = self.field(answer, "Content-Type", "RFC 8259 §11").lower()
        self.demand(kind.startswith("application/json"), "application/json", kind, "RFC 8259 §11")

    def test_takes_a_user_without_an_email_address(self) -> None:
        """The member may be absent, or null."""
        self.newcomer()
        name = f"user-{uuid.uuid4()}"
        answers = [
            self.ask("POST", "/register", document)
            for document in ({"username": name}, {"username": f"{name}-2", "email": None})
        ]
        holds = all(isinstance(answer.member("password"), str) for answer in answers)
        came = " and ".join(map(str, answers))
        self.demand(holds, "a password for a user without an e-mail address", came, self.RULE)

    def test_gives_every_user_another_password(self) -> None:
        """Passwords are random."""
        first, second = self.newcomer()[1], self.newcomer()[1]
        self.demand(first != second, "another password for every user", "the same twice", self.RULE)

    def test_refuses_a_taken_name_and_a_taken_address_with_409(self) -> None:
        """Names and e-mail addresses are unique."""
        self.newcomer()
        email = f"{uuid.uuid4()}@example.org"
        name, _ = self.register(email=email)
        same = [
            {"username": name, "email": f"{uuid.uuid4()}@example.org"},
            {"username": f"other-{name}", "email": email},
        ]
        answers = [self.ask("POST", "/register", document) for document in same]
        self.expect(answers, "taken", f"RFC 9110 §15.5.10; {self.RULE}")

    def test_refuses_a_request_without_a_name_with_400(self) -> None:
        """A name is needed, and must be text."""
        self.newcomer()
        email = {"email": f"{uuid.uuid4()}@example.org"}
        bad: list[object] = [{}, {"username": "", **email}, {"username": 1, **email}, email, []]
        answers = [self.ask("POST", "/register", document) for document in bad]
        self.expect(answers, "malformed", f"RFC 9110 §15.5.1; {self.RULE}")


class Auth(ServerTest):
    """POST /auth."""

    RULE = f"{CONTRACT}, Auth"

    def test_gives_who_registered_a_token(self) -> None:
        """As a member of JSON or as the whole body: another check judges the form."""
        self.given("token")

    def test_refuses_a_wrong_password_and_an_unknown_user(self) -> None:
        """The heart of it: no token without the password."""
        self.given("token")
        name, password = self.given("account")
        wrong = [self.login(name, x) for x in ("wrong", password[:-1], "")]
        wrong.append(self.login(f"nobody-{uuid.uuid4()}", password))
        names = self.subject.rubric["token"]
        for answer in wrong:
            holds = answer.status >= 300 and not answer.token(names)
            self.demand(holds, f"no token from {answer.asked}", answer, "RFC 6749 §5.2")

    def test_answers_401_alike_to_a_wrong_password_and_an_unknown_user(self) -> None:
        """Nobody learns which names exist."""
        self.given("token")
        name, nobody = self.given("account")[0], f"nobody-{uuid.uuid4()}"
        asked = [(name, "wrong"), (name, "wrong"), (nobody, "wrong")]
        first, again, other = (self.login(*who) for who in asked)
        if min(first.status, other.status) < 300:
            self.skipTest("not judged: a wrong password is accepted, which another check fails")
        self.expect([first, other], "unauthorized", f"RFC 9110 §15.5.2; {self.RULE}")
        alike = skeleton(first, again, name) == skeleton(other, again, nobody)
        came = f"{first} for a wrong password, {other} for an unknown user"
        self.demand(alike, "the same answer to both", came, f"OWASP ASVS 5.0, 6.3.8; {self.RULE}")

    def test_says_with_401_how_to_log_in(self) -> None:
        """The field WWW-Authenticate is not optional."""
        self.given("token")
        answer = self.login(self.given("account")[0], "wrong")
        if answer.status != 401:
            self.skipTest(f"not judged: {answer.status} instead of 401, which another check fails")
        self.field(answer, "WWW-Authenticate", "RFC 9110 §11.6.1")

    def test_makes_tokens_that_the_jwks_verifies(self) -> None:
        """The token's kid names a published key, which signed it; it is valid now."""
        _, token = self.given("token")
        keys = self.given("keys")
        header, claims = self.parts(token)
        named = [jwk for jwk in keys if jwk.get("kid") == header.get("kid")]
        wanted, kids = f"the kid {header.get('kid')!r} of a token", [x.get("kid") for x in keys]
        self.demand(named, f"{wanted} in the JWKS", kids, "RFC 7515 §4.1.4")
        signed = header.get("alg") == "RS256" and any(signed_by(token, jwk) for jwk in named)
        came = f"one that it does not verify: {header} {claims}"
        self.demand(signed, "a token that the JWKS verifies with RS256", came, "RFC 7515 §5.2")
        now = time.time()
        dates = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
        typed = all(type(value) in (int, float) for value in dates.values())
        valid = typed and dates.pop("exp", 0) > now - LEEWAY
        valid = valid and all(value <= now + LEEWAY for value in dates.values())
        self.demand(valid, "a token that is valid now", claims, "RFC 7519 §4.1.4, §4.1.5")

    def test_names_in_sub_who_asked(self) -> None:
        """The token names the user who logged in."""
        _, claims = self.parts(self.given("token")[1])
        name, _ = self.given("account")
        wanted = f'"sub": "{name}", who asked,'
        self.demand(claims.get("sub") == name, wanted, claims, f"RFC 7519 §4.1.2; {self.RULE}")

    def test_says_what_the_token_is(self) -> None:
        """The member token, and what clients of OAuth read beside it."""
        answer, token = self.given("token")
        names = self.subject.rubric["token"][:1]
        self.demand(
            answer.member(names[0]) == token, f'{{"{names[0]}": "<token>"}}', answer, self.RULE
        )
        kind, seconds = answer.member("token_type"), answer.member("expires_in")
        wanted = '"token_type": "Bearer" and "expires_in": <seconds>'
        holds = str(kind).lower() == "bearer" and type(seconds) is int and seconds > 0
        self.demand(holds, wanted, answer, "RFC 6749 §5.1")

    def test_lets_nobody_keep_the_token(self) -> None:
        """A cache would give the token to somebody else."""
        control = self.given("token")[0].fields.get("cache-control", "no such field")
        holds = "no-store" in directives(control)
        self.demand(holds, "Cache-Control: no-store", control, "RFC 6749 §5.1")

    def test_makes_tokens_that_every_client_can_read(self) -> None:
        """Typ JWT; a kid that is text; dates that are whole numbers."""
        header, claims = self.parts(self.given("token")[1])
        holds = str(header.get("typ")).upper() == "JWT" and type(header.get("kid")) is str
        wanted = 'a header with "typ": "JWT" and "kid": "<text>"'
        self.demand(holds, wanted, header, f"RFC 7519 §5.1; {self.RULE}")
        whole = all(type(claims.get(name)) is int for name in ("exp", "iat"))
        wanted = '"exp" and "iat" as whole numbers'
        self.demand(whole, wanted, claims, f"RFC 7519 §4.1; {self.RULE}")

    def test_takes_a_form(self) -> None:
        """As OAuth sends it: a token for the right password, none for a wrong one."""
        self.right_and_wrong(self.by_form, "RFC 6749 §4.3.2")

    def test_takes_http_basic(self) -> None:
        """As `curl -u` sends it: a token for the right password, none for a wrong one."""
        self.right_and_wrong(self.by_basic, "RFC 7617 §2")

    def right_and_wrong(self, ask: Any, section: str) -> None:
        """A token for the right password, none for a wrong one."""
        self.given("token")
        name, password = self.given("account")
        right, wrong = ask(name, password), ask(name, "wrong")
        names, rule = self.subject.rubric["token"], f"{section}; {self.RULE}"
        holds = right.status < 300 and right.token(names)
        self.demand(holds, f"a token from {right.asked}", right, rule)
        holds = wrong.status >= 300 and not wrong.token(names)
        if not holds and not self.login(name, "wrong").token(names):
            self.demand(False, f"no token for a wrong password from {wrong.asked}", wrong, rule)

    def test_gives_an_expired_token_on_request(self) -> None:
        """The token has expired, and no published key signed it, whatever kid it names."""
        self.given("token")
        document = dict(zip(("username", "password"), self.given("account")))
        answer = self.ask("POST", "/auth?expired=true", document)
        token = self.token_in(answer)
        header, claims = self.parts(token)
        exp = claims.get("exp")
        past = isinstance(exp, (int, float)) and exp < time.time() + LEEWAY
        self.demand(past, "an exp in the past from /auth?expired=true", claims, self.RULE)
        keys = self.given("keys")
        published = header.get("kid") in [jwk.get("kid") for jwk in keys]
        published = published or any(signed_by(token, jwk) for jwk in keys)
        wanted = f"an expired token signed by a key that is not in {JWKS}"
        self.demand(not published, wanted, f"one signed by or named for it: {header}", self.RULE)


class Limits(ServerTest):
    """How often an address may try."""

    RULE = f"{CONTRACT}, Limits"

    def find_flood(self) -> list[Answer]:
        """One attempt more than the limit allows, from one address, at once; refused ones last."""
        self.given("token")
        name, password = self.given("account")
        (count, period), address = limit_of(self.subject.rubric), fresh_address()
        if (
            not many_addresses()
            or self.login(name, password, address=fresh_address()).status == 429
        ):
            pause(period)  # what the other checks have used up
        refusals = {429, *self.accepted("limited")}
        began = time.monotonic()
        with ThreadPoolExecutor(count + 1) as pool:
            tries = [
                pool.submit(self.login, name, password, address=address) for _ in range(count + 1)
            ]
            answers = sorted(
                (tried.result() for tried in tries), key=lambda it: it.status in refusals
            )
        late = time.monotonic() - began > period
        if late and answers[-1].status not in refusals:
            self.skipTest(f"not judged: {count + 1} logins took longer than {period} s")
        return answers

    def test_refuse_one_attempt_more_than_the_limit(self) -> None:
        """As many as the rubric says, and no more."""
        answers = self.given("flood")
        statuses, accepted = [answer.status for answer in answers], self.accepted("limited")
        limit = self.subject.rubric["auth_limit"]
        self.demand(
            statuses[-1] in accepted and not set(statuses[:-1]) & {429, *accepted},
            f"{len(statuses) - 1} attempts to be judged and one more to be refused with "
            f"{accepted[0]} ({limit})",
            statuses,
            f"RFC 6585 §4; {self.RULE}",
        )

    def test_tell_how_long_to_wait(self) -> None:
        """In seconds or as a date, and not longer than the limit's own time."""
        refused = self.given("flood")[-1]
        if refused.status not in self.accepted("limited"):
            self.skipTest("not judged: nothing was refused, which another check fails")
        text = self.field(refused, "Retry-After", "RFC 6585 §4; RFC 9110 §10.2.3")
        wait, period = seconds_of(text), limit_of(self.subject.rubric)[1]
        holds = wait is not None and wait <= period + LEEWAY
        self.demand(holds, f"Retry-After, at most {period} s", text, self.RULE)

    def test_count_each_address_for_itself(self) -> None:
        """One client's attempts do not keep out another."""
        if not many_addresses():
            self.skipTest("not judged: this machine has one loopback address")
        answers = self.given("flood")
        if answers[-1].status not in self.accepted("limited"):
            self.skipTest("not judged: nothing was refused, which another check fails")
        name, password = self.given("account")
        other = self.login(name, password, fresh_address())
        if other.status == 429 and not self.subject.direct:
            self.skipTest(
                "not judged: every address is refused; either the limit is one for all, or a "
                "forwarder makes all addresses one; without one, set JWKS_TEST_DIRECT=1"
            )
        self.demand(other.status != 429, "no limit for another address", other, self.RULE)

    def test_do_not_concern_the_keys(self) -> None:
        """Verifiers may ask as often as they like."""
        self.given("keys")
        address = fresh_address()
        statuses = [self.ask("GET", JWKS, address=address).status for _ in range(30)]
        holds = set(statuses) == {200}
        self.demand(holds, f"200 to 30 times GET {JWKS}", sorted(set(statuses)), self.RULE)


class KeySet(ServerTest):
    """GET /.well-known/jwks.json."""

    RULE = f"{CONTRACT}, KeySet"
    MEMBERS = ("alg", "e", "kid", "kty", "n", "use")
    PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")

    def test_publishes_its_keys(self) -> None:
        """RSA keys, each with its modulus and exponent."""
        self.given("keys")

    def test_keeps_its_private_key_to_itself(self) -> None:
        """The heart of it: with d or p, everybody signs."""
        for jwk in self.given("keys"):
            found = [name for name in self.PRIVATE if name in jwk]
            self.demand(not found, "no private number in a key", found, "RFC 7518 §6.3.2")

    def test_has_exactly_the_members_that_clients_expect(self) -> None:
        """No member is missing, and there is none that a client stumbles over."""
        for jwk in self.given("keys"):
            came = {name: value for name, value in jwk.items() if name not in self.PRIVATE}
            wanted = f"the members {', '.join(self.MEMBERS)}"
            holds = sorted(came) == list(self.MEMBERS)
            self.demand(holds, wanted, ", ".join(sorted(came)), self.RULE)
            holds = all(type(value) is str for value in came.values())
            self.demand(holds, "text in every member of a key", jwk, "RFC 7517 §4")

    def test_spells_numbers_as_base64url_without_padding(self) -> None:
        """One spelling: no =, no + or /, no leading zero octet."""
        for jwk in self.given("keys"):
            for name in ("n", "e"):
                try:
                    holds = jwt_minimal.b64url_decode(jwk[name])[:1] not in (b"", b"\0")
                except ValueError:
                    holds = False
                wanted = f"base64url without padding in {name}"
                self.demand(holds, wanted, f"{jwk[name]!r}"[-40:], "RFC 7518 §6.3.1, §2")

    def test_names_each_key_by_its_thumbprint(self) -> None:
        """The name of a key can be computed from it, and no name is used twice."""
        keys = self.given("keys")
        found = self.subject.facts.get("token")
        token = found[1] if isinstance(found, tuple) else ""
        for jwk in keys:
            # Of a key that signs, the name in the token: that both agree is another check's.
            came = self.parts(token)[0].get("kid") if signed_by(token, jwk) else jwk.get("kid")
            wanted = thumbprint(jwk)
            self.demand(came == wanted, f"kid {wanted}", repr(came), f"RFC 7638 §3; {self.RULE}")

    def test_can_be_cached_and_asked_for_again(self) -> None:
        """An ETag, a max-age, and 304 to a client that sends the ETag."""
        self.given("keys")
        first = self.ask("GET", JWKS)
        control = self.field(first, "Cache-Control", f"RFC 9111 §5.2; {self.RULE}")
        told = directives(control)
        age = told.get("max-age", "")
        holds = age.isdecimal() and int(age[:9]) > 0 and "no-store" not in told
        self.demand(holds, "a max-age above 0", control, f"RFC 9111 §5.2.2.1; {self.RULE}")
        tag = self.field(first, "ETag", f"RFC 9110 §8.8.3; {self.RULE}")
        again = self.ask("GET", JWKS, fields={"If-None-Match": tag})
        self.demand(again.status == 304, "304 to the ETag", again, "RFC 9110 §13.1.2")

    def test_is_open_to_pages_of_every_origin(self) -> None:
        """A verifier in a browser may read it: nothing in it is secret."""
        self.given("keys")
        name, rule = "Access-Control-Allow-Origin", f"{self.RULE}; Fetch standard, CORS protocol"
        answer = self.ask("GET", JWKS, fields={"Origin": ORIGIN})
        came = self.field(answer, name, rule)
        self.demand(answer.status == 200 and came in ("*", ORIGIN), f"200 and {name}: *",
                    f"{answer.status} and {came}", rule)  # fmt: skip


class Discovery(ServerTest):
    """GET /.well-known/openid-configuration and /.well-known/oauth-authorization-server."""

    def test_names_its_issuer_and_its_keys(self) -> None:
        """RFC 8414: the issuer there is the issuer in the tokens."""
        rule = f"RFC 8414 §2; {CONTRACT}, Discovery"
        _, claims = self.parts(self.given("token")[1])
        for document in ("openid-configuration", "oauth-authorization-server"):
            answer = self.ask("GET", f"/.well-known/{document}")
            issuer, uri = answer.member("issuer"), answer.member("jwks_uri")
            holds = answer.status == 200 and type(issuer) is str and str(uri).endswith(JWKS)
            self.demand(holds, f"200, an issuer, and a jwks_uri with {JWKS}", answer, rule)
            wanted = f'"iss": "{issuer}" in a token, as in {document}'
            self.demand(claims.get("iss") == issuer, wanted, claims, rule)


class Everything(ServerTest):
    """What holds for every route."""

    RULE = f"{CONTRACT}, Everything"

    def test_refuses_other_methods_with_405_and_names_those_it_has(self) -> None:
        """The field Allow is not optional."""
        for path, allowed in (("/auth", "POST"), ("/register", "POST"), (JWKS, "GET")):
            methods = ("PUT", "DELETE", "PATCH", "GET" if allowed == "POST" else "POST")
            answers = [self.ask(method, path) for method in methods]
            self.expect(answers, "method", "RFC 9110 §15.5.6")
            for answer in answers:
                came = self.field(answer, "Allow", "RFC 9110 §15.5.6")
                self.demand(
                    allowed in came.upper(), f"{allowed} in Allow", came, "RFC 9110 §10.2.1"
                )

    def test_answers_head_like_get_without_a_body(self) -> None:
        """RFC 9110 §9.3.2."""
        self.given("keys")
        get, head = self.ask("GET", JWKS), self.ask("HEAD", JWKS)
        self.demand(head.status == 200, f"200 to {head.asked}", head, "RFC 9110 §9.3.2")
        self.demand(not head.body, "no body after HEAD", "one", "RFC 9110 §9.3.2")
        lengths = [answer.fields.get("content-length") for answer in (get, head)]
        wanted = "the Content-Length of GET for HEAD, or none"
        self.demand(lengths[1] in (lengths[0], None), wanted, lengths, "RFC 9110 §8.6")

    def test_knows_nothing_at_other_paths(self) -> None:
        """The status says that nothing is there (RFC 9110 §15.5.5)."""
        self.expect([self.ask("GET", "/nothing/here")], "unknown", "RFC 9110 §15.5.5")

    def test_refuses_nonsense_with_400_and_never_with_a_5xx(self) -> None:
        """Bad input is the client's fault."""
        self.given("token")
        twice = f'{{"username": "{uuid.uuid4()}", "username": "{uuid.uuid4()}", "password": "x"}}'
        bodies = (b"{", b"[]", b"\xff", twice.encode(), b"null")
        answers = [
            self.ask("POST", path, body=body, fields=JSON_TYPE)
            for path in ("/register", "/auth")
            for body in bodies
        ]
        self.expect(answers, "malformed", f"RFC 9110 §15.5.1, RFC 8259 §4; {self.RULE}")

    def test_says_what_is_wrong_in_json(self) -> None:
        """A word for programs, a sentence for people, whatever the status."""
        answers = (
            self.ask("GET", "/nothing/here"),
            self.ask("PUT", JWKS),
            self.ask("POST", "/auth", body=b"{", fields=JSON_TYPE),
            self.login(f"nobody-{uuid.uuid4()}", "wrong"),
        )
        for answer in (answer for answer in answers if answer.status >= 400):
            told = answer.member("error") and answer.member("error_description")
            wanted = f'{{"error": ..., "error_description": ...}} from {answer.asked}'
            self.demand(told, wanted, answer, f"{self.RULE}, after RFC 6749 §5.2")


class AtRest(at_rest.AtRest):
    """The database file, where JWKS_TEST_DATABASE names it."""


if __name__ == "__main__":
    if any("://" in word for word in sys.argv[1:]):
        sys.exit("the server is named by JWKS_TEST_URL: JWKS_TEST_URL=URL python test_server.py")
    unittest.main()
