"""test_server.py finds what is wrong with a server, in one check, and says so in one sentence."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import threading
import unittest
import uuid
from contextlib import redirect_stderr
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Callable, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import jwt_minimal
import server
import test_server
from tests.support import CHEAPEST

SENTENCE = re.compile(r"AssertionError: expected .+; came .*; the rule: .*(RFC \d+|grading\.md).*")


class Said(NamedTuple):
    """What the server answers, for a flaw to spoil."""

    method: str
    path: str
    body: bytes  # that of the request
    status: int
    fields: dict[str, str]  # by lower-case name
    answer: bytes

    def put(self, **members: object) -> Said:
        """With other members in the JSON object; None leaves one out."""
        document = {**json.loads(self.answer), **members}
        kept = {name: value for name, value in document.items() if value is not None}
        return self._replace(answer=json.dumps(kept).encode())

    def without(self, name: str) -> Said:
        return self._replace(fields={k: v for k, v in self.fields.items() if k != name})

    def with_keys(self, change: Callable[[dict], dict]) -> Said:
        return self.put(keys=[change(jwk) for jwk in json.loads(self.answer)["keys"]])

    def at(self, path: str, status: int = 200) -> bool:
        return (urlsplit(self.path).path, self.status) == (path, status)


Flaw = Callable[[Said], Said]


class Spoiler(ThreadingHTTPServer):
    """Stands before our server and spoils its answers: a server of somebody else's."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, url: str, flaw: Flaw, ask: Callable[[str], str] = lambda path: path):
        super().__init__(("127.0.0.1", 0), Spoiled)
        self.behind, self.flaw, self.asked = urlsplit(url).netloc, flaw, ask
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass


class Spoiled(BaseHTTPRequestHandler):
    server: Spoiler
    wbufsize = -1  # one segment an answer: else the second waits 40 ms for an acknowledgement

    def log_message(self, *arguments):
        pass

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = ("content-type", "authorization", "if-none-match")
        fields = {name: value for name, value in self.headers.items() if name.lower() in kept}
        fields["X-Forwarded-For"] = self.client_address[0]
        connection = http.client.HTTPConnection(self.server.behind, timeout=10)
        method = "GET" if self.command == "HEAD" else self.command  # what is spoiled, has a body
        connection.request(method, self.server.asked(self.path), body or None, fields)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        said = Said(self.command, self.path, body, response.status, found, response.read())
        connection.close()
        said = self.server.flaw(said)
        self.send_response_only(said.status)
        fields = {**said.fields, "content-length": str(len(said.answer))}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.answer if self.command != "HEAD" else b"")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = forward


def other_token(said: Said, place: int) -> Said:
    """With a header or claims that are spelled otherwise than they were signed."""
    token = json.loads(said.answer)["token"].split(".")
    part = json.loads(jwt_minimal.b64url_decode(token[place]))
    changed = {**part, **({"exp": part["exp"] + 0.5} if place else {"typ": "at+jwt"})}
    token[place] = jwt_minimal.b64url_encode(json.dumps(changed).encode())
    return said.put(token=".".join(token))


JWKS, AUTH, REGISTER = test_server.JWKS, "/auth", "/register"
VERIFIES = "test_answers_a_token_that_the_jwks_verifies"
# What is wrong, the checks that must find it, the spoiled answer (or the question, or our setting).
FLAWS: tuple[tuple[str, set[str], Flaw], ...] = (
    ("200 for a new user", {"test_answers_201_with_a_uuid4_and_nothing_else"},
     lambda it: it._replace(status=200) if it.at(REGISTER, 201) else it),
    ("more than the password", {"test_answers_201_with_a_uuid4_and_nothing_else"},
     lambda it: it.put(username="x") if it.at(REGISTER, 201) else it),
    ("400 for a taken name", {"test_refuses_a_taken_name_and_a_taken_address_with_409"},
     lambda it: it._replace(status=400) if it.at(REGISTER, 409) else it),
    ("500 without a name", {"test_refuses_a_request_without_a_name_with_400"},
     lambda it: it._replace(status=500) if it.body == b"{}" else it),
    ("another kid in the keys than in the tokens",
     {VERIFIES, "test_names_each_key_by_its_thumbprint"},
     lambda it: it.with_keys(lambda jwk: {**jwk, "kid": "x"}) if it.at(JWKS) else it),
    ("another typ, not signed",
     {VERIFIES, "test_makes_tokens_that_every_client_can_read"},
     lambda it: other_token(it, 0) if it.at(AUTH) else it),
    ("fractional dates, not signed",
     {VERIFIES, "test_makes_tokens_that_every_client_can_read"},
     lambda it: other_token(it, 1) if it.at(AUTH) and "?" not in it.path else it),
    ("no token_type", {"test_says_what_the_token_is_and_that_nobody_may_keep_it"},
     lambda it: it.put(token_type=None) if it.at(AUTH) else it),
    ("tokens that caches keep", {"test_says_what_the_token_is_and_that_nobody_may_keep_it"},
     lambda it: it.without("cache-control") if it.at(AUTH) else it),
    ("no forms", {"test_takes_a_form_and_http_basic_as_well"},
     lambda it: it._replace(status=415) if it.body.startswith(b"username=") else it),
    ("404 for an unknown user",
     {"test_refuses_a_wrong_password_and_an_unknown_user_alike_with_401"},
     lambda it: it._replace(status=404) if it.status == 401 and b"nobody-" in it.body else it),
    ("a hint in the body", {"test_refuses_a_wrong_password_and_an_unknown_user_alike_with_401"},
     lambda it: it.put(hint="?") if it.status == 401 and b"nobody-" in it.body else it),
    ("401 without WWW-Authenticate",
     {"test_refuses_a_wrong_password_and_an_unknown_user_alike_with_401"},
     lambda it: it.without("www-authenticate") if it.status == 401 else it),
    ("503 instead of 429", {"test_allow_five_attempts_a_minute_and_address"},
     lambda it: it._replace(status=503) if it.at(AUTH, 429) else it),
    ("429 without Retry-After", {"test_allow_five_attempts_a_minute_and_address"},
     lambda it: it.without("retry-after") if it.at(AUTH, 429) else it),
    ("private numbers among the keys", {"test_has_rsa_keys_with_exactly_the_public_members"},
     lambda it: it.with_keys(lambda jwk: {**jwk, "d": "AQAB"}) if it.at(JWKS) else it),
    ("padding", {"test_spells_numbers_as_base64url_without_padding"},
     lambda it: it.with_keys(lambda jwk: {**jwk, "n": jwk["n"] + "=="}) if it.at(JWKS) else it),
    ("a leading zero octet", {"test_spells_numbers_as_base64url_without_padding"},
     lambda it: it.with_keys(lambda jwk: {**jwk, "e": "AAEAAQ"}) if it.at(JWKS) else it),
    ("no ETag", {"test_can_be_cached_and_asked_for_again"},
     lambda it: it.without("etag") if it.at(JWKS) else it),
    ("never 304", {"test_can_be_cached_and_asked_for_again"},
     lambda it: it._replace(status=200) if it.at(JWKS, 304) else it),
    ("keys for one origin only", {"test_is_open_to_pages_of_every_origin"},
     lambda it: it.without("access-control-allow-origin") if it.at(JWKS) else it),
    ("no metadata", {"test_names_its_issuer_and_its_keys"},
     lambda it: it._replace(status=404) if it.at("/.well-known/openid-configuration") else it),
    ("another issuer in the metadata", {"test_names_its_issuer_and_its_keys"},
     lambda it: it.put(issuer="x") if it.path.endswith("authorization-server") else it),
    ("501 for another method",
     {"test_refuses_other_methods_with_405_and_names_those_it_has"},
     lambda it: it._replace(status=501) if it.at(JWKS, 405) else it),
    ("405 without Allow", {"test_refuses_other_methods_with_405_and_names_those_it_has"},
     lambda it: it.without("allow") if it.at(AUTH, 405) else it),
    ("no HEAD", {"test_answers_head_like_get_without_a_body"},
     lambda it: it._replace(status=405) if it.method == "HEAD" else it),
    ("200 everywhere", {"test_knows_nothing_at_other_paths"},
     lambda it: it._replace(status=200) if it.at("/nothing/here", 404) else it),
    ("500 for null", {"test_refuses_nonsense_with_400_and_never_with_a_5xx"},
     lambda it: it._replace(status=500) if it.body == b"null" else it),
    ("refusals in HTML", {"test_says_what_is_wrong_in_json"},
     lambda it: it._replace(answer=b"<!doctype html>") if it.status == 404 else it),
)  # fmt: skip


class Grading(unittest.TestCase):
    def setUp(self):
        settings: dict = {
            "register_limit": "off",
            "trusted_proxy": "127.0.0.0/8",
            "argon2": CHEAPEST,
        }
        self.issuer = server.running(**settings, issuer="https://issuer.example")
        self.addCleanup(self.issuer.stop)

    def grade(self, flaw: Flaw = lambda it: it, **options) -> tuple[dict[str, str], str]:
        """The failing checks with their reports, and all that was printed."""
        spoiler = Spoiler(self.issuer.url, flaw, **options)
        self.addCleanup(spoiler.server_close)
        self.addCleanup(spoiler.shutdown)
        return self.grade_url(spoiler.url)

    def grade_url(self, url: str) -> tuple[dict[str, str], str]:
        output = io.StringIO()
        suite = unittest.defaultTestLoader.loadTestsFromModule(test_server)
        with mock.patch("test_server.URL", url), redirect_stderr(output):
            result = unittest.TextTestRunner(output).run(suite)
        self.assertEqual(result.skipped, [])
        failed = [*result.failures, *result.errors]
        return {test.id().rpartition(".")[2]: text for test, text in failed}, output.getvalue()

    def assertSentences(self, failed: dict[str, str]) -> None:
        """Each report is its sentence and nothing else."""
        for text in failed.values():
            self.assertRegex(text, SENTENCE)
            self.assertEqual(text.strip().count("\n"), 0, text)

    def test_finds_nothing_wrong_with_ours(self):
        self.assertEqual(self.grade()[0], {})

    def test_finds_each_flaw_once_and_says_so_in_one_sentence(self):
        for name, checks, flaw in FLAWS:
            with self.subTest(flaw=name):
                failed, _ = self.grade(flaw)
                self.assertEqual(set(failed), checks, "\n".join(failed.values()))
                self.assertSentences(failed)

    def test_finds_a_server_that_never_gives_expired_tokens(self):
        failed, _ = self.grade(ask=lambda path: path.split("?")[0])
        self.assertEqual(set(failed), {"test_gives_an_expired_token_on_request"})
        self.assertSentences(failed)

    def test_finds_limits_where_none_belong(self):
        count = iter(range(10_000))

        def flaw(said: Said) -> Said:
            limited = said.at(JWKS) and said.method == "GET" and next(count) > 20
            return said._replace(status=429) if limited else said

        self.assertIn("test_do_not_concern_the_keys", self.grade(flaw)[0])

    def test_finds_the_same_password_for_everybody(self):
        one = str(uuid.uuid4())

        def flaw(said: Said) -> Said:
            return said.put(password=one) if said.at(REGISTER, 201) else said

        self.assertIn("test_gives_every_user_another_password", self.grade(flaw)[0])

    def test_of_a_server_that_breaks_off_is_a_sentence_a_check(self):
        def flaw(said: Said) -> Said:
            raise ConnectionError

        failed, _ = self.grade(flaw)
        self.assertEqual(len(failed), self.count())
        self.assertSentences(failed)

    def test_of_a_server_that_answers_anything_at_all_is_a_sentence_a_check(self):
        answers = (
            b"",
            b"null",
            b"[]",
            b'{"keys": [1], "token": 7}',
            b"\xff",
            b'{"token": "a.b.c"}',
        )
        for answer, status in zip(answers, (200, 418, 500, 200, 500, 200)):
            with self.subTest(answer=answer, status=status):

                def flaw(said: Said, status=status, answer=answer) -> Said:
                    return said._replace(status=status, answer=answer)

                failed, _ = self.grade(flaw)
                self.assertGreater(len(failed), 15)
                self.assertSentences(failed)

    def count(self) -> int:
        return unittest.defaultTestLoader.loadTestsFromModule(test_server).countTestCases()

    def test_of_nobody_or_of_no_url_is_one_sentence_in_all(self):
        for url, part in (("http://127.0.0.1:1", "nobody listens"), ("127.0.0.1", "is no URL")):
            failed, output = self.grade_url(url)
            self.assertEqual(len(failed), 1)
            self.assertIn(part, output)
            self.assertNotIn("Traceback", output)

    def test_waits_for_the_limiter_where_all_requests_have_one_address(self):
        waits: list[int] = []

        def passes(seconds: int) -> None:
            waits.append(seconds)
            limiter = self.issuer._service.app.limits["auth"].limiter
            limiter._logs.clear()
            limiter._turns.clear()

        one_address = mock.patch("test_server.has_addresses", lambda url: False)
        with one_address, mock.patch("test_server.pause", passes):
            failed, _ = self.grade()
        self.assertEqual(failed, {})
        self.assertTrue(waits and max(waits) <= 60, waits)

    def test_asks_below_the_path_of_the_url(self):
        spoiler = Spoiler(self.issuer.url, lambda it: it, lambda path: path.replace("/app", "", 1))
        self.addCleanup(spoiler.server_close)
        self.addCleanup(spoiler.shutdown)
        self.assertEqual(self.grade_url(f"{spoiler.url}/app/")[0], {})


if __name__ == "__main__":
    os.environ.pop("JWKS_TEST_URL", None)
    unittest.main()
