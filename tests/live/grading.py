"""test_server.py finds what is wrong with a server, in one check, and says so in one sentence."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import unittest
import uuid
from contextlib import redirect_stderr
from typing import Callable, NamedTuple
from unittest import mock
from urllib.parse import urlsplit

import jwt_minimal
import server
import test_server
from jwksd.grading import asking, judging
from jwksd.grading.asking import Answer, Asked
from tests.support import CHEAPEST, ROOT, TemporaryFolder

SENTENCE = re.compile(r"AssertionError: expected .+; came .*; the rule: .*(RFC \d+|grading\.md).*")
JWKS, AUTH, REGISTER = test_server.JWKS, "/auth", "/register"


class Said(NamedTuple):
    """What the server answers, for a flaw to spoil."""

    request: Asked
    status: int
    fields: dict[str, str]  # by lower-case name
    answer: bytes

    @property
    def body(self) -> bytes:
        """What was sent."""
        return self.request.body or b""

    def put(self, **members: object) -> Said:
        """With other members in the JSON object; None leaves one out."""
        document = {**json.loads(self.answer), **members}
        kept = {name: value for name, value in document.items() if value is not None}
        return self._replace(answer=json.dumps(kept).encode())

    def without(self, name: str) -> Said:
        return self._replace(fields={k: v for k, v in self.fields.items() if k != name})

    def field(self, name: str, value: str) -> Said:
        return self._replace(fields={**self.fields, name: value})

    def with_keys(self, change: Callable[[dict], dict]) -> Said:
        if not self.answer:  # HEAD
            return self
        return self.put(keys=[change(jwk) for jwk in json.loads(self.answer)["keys"]])

    def at(self, path: str, status: int = 200) -> bool:
        return (urlsplit(self.request.path).path, self.status) == (path, status)

    def form(self) -> bool:
        return self.body.startswith(b"username=")

    def basic(self) -> bool:
        return "Authorization" in self.request.fields

    def give(self, token: str) -> Said:
        """A token, whatever was asked."""
        fields = {**self.fields, "content-type": "application/json"}
        return Said(self.request, 200, fields, json.dumps({"token": token}).encode())


Flaw = Callable[[Said], Said]


def spoiled(flaw: Flaw) -> Callable[..., Answer]:
    """An exchange with a server that has this flaw."""

    def exchange(url: str, request: Asked, address: str, patience: float) -> Answer:
        answer = asking.exchange(url, request, address, patience)
        said = flaw(Said(request, answer.status, answer.fields, answer.body))
        return Answer("", said.status, said.fields, said.answer)

    return exchange


FAKE = "e30.e30.AAAA"
WRONG = (AUTH, 401)
# What is wrong, the one check that must find it, the spoiled answer.
FLAWS: tuple[tuple[str, str, Flaw], ...] = (
    ("no registration", "test_gives_a_new_user_a_password",
     lambda it: it._replace(status=500) if it.at(REGISTER, 201) else it),
    ("200 for a new user", "test_answers_201_with_a_uuid4_and_nothing_else",
     lambda it: it._replace(status=200) if it.at(REGISTER, 201) else it),
    ("more than the password", "test_answers_201_with_a_uuid4_and_nothing_else",
     lambda it: it.put(username="x") if it.at(REGISTER, 201) else it),
    ("an address is needed", "test_takes_a_user_without_an_email_address",
     lambda it: it._replace(status=400, answer=b"{}")
     if it.at(REGISTER, 201) and b"@" not in it.body else it),
    ("400 for a taken name", "test_refuses_a_taken_name_and_a_taken_address_with_409",
     lambda it: it._replace(status=400) if it.at(REGISTER, 409) else it),
    ("500 without a name", "test_refuses_a_request_without_a_name_with_400",
     lambda it: it._replace(status=500) if it.body == b"{}" else it),
    ("no login", "test_gives_who_registered_a_token",
     lambda it: it._replace(status=500) if it.at(AUTH) else it),
    ("any password gets a token", "test_refuses_a_wrong_password_and_an_unknown_user",
     lambda it: it.give(FAKE) if it.at(*WRONG) else it),
    ("another kid in the keys than in the tokens", "test_makes_tokens_that_the_jwks_verifies",
     lambda it: it.with_keys(lambda jwk: {**jwk, "kid": "x"}) if it.at(JWKS) else it),
    ("no token_type", "test_says_what_the_token_is",
     lambda it: it.put(token_type=None) if it.at(AUTH) else it),
    ("access_token alone", "test_says_what_the_token_is",
     lambda it: it.put(access_token=json.loads(it.answer)["token"], token=None)
     if it.at(AUTH) else it),
    ("a raw token", "test_says_what_the_token_is",
     lambda it: it._replace(answer=json.loads(it.answer)["token"].encode())
     if it.at(AUTH) else it),
    ("tokens that caches keep", "test_lets_nobody_keep_the_token",
     lambda it: it.without("cache-control") if it.at(AUTH) else it),
    ("no forms", "test_takes_a_form", lambda it: it._replace(status=415) if it.form() else it),
    ("a form with any password", "test_takes_a_form",
     lambda it: it.give(FAKE) if it.form() and it.at(*WRONG) else it),
    ("a form gets no token", "test_takes_a_form",
     lambda it: it._replace(answer=b"{}") if it.form() and it.at(AUTH) else it),
    ("Basic with any password", "test_takes_http_basic",
     lambda it: it.give(FAKE) if it.basic() and it.at(*WRONG) else it),
    ("404 for an unknown user",
     "test_answers_401_alike_to_a_wrong_password_and_an_unknown_user",
     lambda it: it._replace(status=404) if it.status == 401 and b"nobody-" in it.body else it),
    ("a hint in the body", "test_answers_401_alike_to_a_wrong_password_and_an_unknown_user",
     lambda it: it.put(hint="?") if it.status == 401 and b"nobody-" in it.body else it),
    ("401 without WWW-Authenticate", "test_says_with_401_how_to_log_in",
     lambda it: it.without("www-authenticate") if it.status == 401 else it),
    ("503 instead of 429", "test_refuse_one_attempt_more_than_the_limit",
     lambda it: it._replace(status=503) if it.at(AUTH, 429) else it),
    ("429 without Retry-After", "test_tell_how_long_to_wait",
     lambda it: it.without("retry-after") if it.at(AUTH, 429) else it),
    ("keys that answer 500", "test_publishes_its_keys",
     lambda it: it._replace(status=500) if it.at(JWKS) else it),
    ("keys without n and e", "test_publishes_its_keys",
     lambda it: it.with_keys(lambda jwk: {"kty": "RSA", "kid": jwk["kid"]})
     if it.at(JWKS) else it),
    ("private numbers among the keys", "test_keeps_its_private_key_to_itself",
     lambda it: it.with_keys(lambda jwk: {**jwk, "d": "AQAB"}) if it.at(JWKS) else it),
    ("key_ops", "test_has_exactly_the_members_that_clients_expect",
     lambda it: it.with_keys(lambda jwk: {**jwk, "key_ops": ["verify"]}) if it.at(JWKS) else it),
    ("padding", "test_spells_numbers_as_base64url_without_padding",
     lambda it: it.with_keys(lambda jwk: {**jwk, "n": jwk["n"] + "=="}) if it.at(JWKS) else it),
    ("a leading zero octet", "test_spells_numbers_as_base64url_without_padding",
     lambda it: it.with_keys(lambda jwk: {**jwk, "e": "AAEAAQ"}) if it.at(JWKS) else it),
    ("no ETag", "test_can_be_cached_and_asked_for_again",
     lambda it: it.without("etag") if it.at(JWKS) else it),
    ("no-store, max-age=0", "test_can_be_cached_and_asked_for_again",
     lambda it: it.field("cache-control", "no-store, max-age=0") if it.at(JWKS) else it),
    ("never 304", "test_can_be_cached_and_asked_for_again",
     lambda it: it._replace(status=200) if it.at(JWKS, 304) else it),
    ("keys for one origin only", "test_is_open_to_pages_of_every_origin",
     lambda it: it.without("access-control-allow-origin") if it.at(JWKS) else it),
    ("a 404 with CORS", "test_is_open_to_pages_of_every_origin",
     lambda it: it._replace(status=404) if "Origin" in it.request.fields else it),
    ("no metadata", "test_names_its_issuer_and_its_keys",
     lambda it: it._replace(status=404) if it.at("/.well-known/openid-configuration") else it),
    ("another issuer in the metadata", "test_names_its_issuer_and_its_keys",
     lambda it: it.put(issuer="x") if it.request.path.endswith("authorization-server") else it),
    ("501 for another method", "test_refuses_other_methods_with_405_and_names_those_it_has",
     lambda it: it._replace(status=501) if it.at(JWKS, 405) else it),
    ("405 without Allow", "test_refuses_other_methods_with_405_and_names_those_it_has",
     lambda it: it.without("allow") if it.at(AUTH, 405) else it),
    ("no HEAD", "test_answers_head_like_get_without_a_body",
     lambda it: it._replace(status=405) if it.request.method == "HEAD" else it),
    ("a body after HEAD", "test_answers_head_like_get_without_a_body",
     lambda it: it._replace(answer=b"x") if it.request.method == "HEAD" else it),
    ("200 everywhere", "test_knows_nothing_at_other_paths",
     lambda it: it._replace(status=200) if it.at("/nothing/here", 404) else it),
    ("500 for null", "test_refuses_nonsense_with_400_and_never_with_a_5xx",
     lambda it: it._replace(status=500) if it.body == b"null" else it),
    ("refusals in HTML", "test_says_what_is_wrong_in_json",
     lambda it: it._replace(answer=b"<!doctype html>") if it.status == 404 else it),
)  # fmt: skip
# What is right, though it is not what ours does.
VARIATIONS: tuple[tuple[str, Flaw], ...] = (
    ("CORS only where there is an Origin",
     lambda it: it if "Origin" in it.request.fields
     else it.without("access-control-allow-origin")),
    ("the origin sent back",
     lambda it: it.field("access-control-allow-origin", it.request.fields["Origin"])
     if "Origin" in it.request.fields else it),
    ("bearer", lambda it: it.put(token_type="bearer") if it.at(AUTH) else it),
    ("No-Store", lambda it: it.field("cache-control", "No-Store") if it.at(AUTH) else it),
    ("Application/JSON", lambda it: it.field("content-type", "Application/JSON")),
    ("a timestamp in refusals",
     lambda it: it.put(timestamp=time.time(), path=AUTH) if it.status == 401 else it),
    ("422", lambda it: it._replace(status=422) if it.status == 400 else it),
    ("a date in Retry-After",
     lambda it: it.field("retry-after", asking_date(30)) if it.status == 429 else it),
    ("access_token beside token",
     lambda it: it.put(access_token=json.loads(it.answer)["token"]) if it.at(AUTH) else it),
)  # fmt: skip


def asking_date(seconds: float) -> str:
    from email.utils import formatdate

    return formatdate(time.time() + seconds, usegmt=True)


class Graded(unittest.TestCase):
    """What the graders' tests share: a run of test_server, in this process."""

    def grade_url(self, url: str, environ: dict[str, str], only: str = "") -> tuple[dict, str]:
        """The failing checks with their reports, and all that was printed."""
        output = io.StringIO()
        loader = unittest.defaultTestLoader
        suite = (
            loader.loadTestsFromName(only, test_server)
            if only
            else loader.loadTestsFromModule(test_server)
        )
        with (
            mock.patch("test_server.URL", url),
            mock.patch.dict("os.environ", environ),
            redirect_stderr(output),
        ):
            result = unittest.TextTestRunner(output).run(suite)
        self.skipped = {test.id().rpartition(".")[2]: why for test, why in result.skipped}
        failed = [*result.failures, *result.errors]
        return {test.id().rpartition(".")[2]: text for test, text in failed}, output.getvalue()

    def assertSentences(self, failed: dict[str, str]) -> None:
        """Each report is its sentence and nothing else, and nothing in it moves a cursor."""
        for text in failed.values():
            self.assertRegex(text, SENTENCE)
            self.assertEqual(text.strip().count("\n"), 0, text)
            self.assertTrue(text.strip().isprintable(), text)


class Grading(Graded):
    def setUp(self):
        self.issuer = server.running(register_limit="off", argon2=CHEAPEST)
        self.addCleanup(self.issuer.stop)

    def grade(self, flaw: Flaw = lambda it: it, only: str = "", **environ: str) -> dict[str, str]:
        database = str(self.issuer._service.app.settings.db)
        environ = {"JWKS_TEST_DIRECT": "1", "JWKS_TEST_DATABASE": database, **environ}
        with mock.patch.object(judging, "exchange", spoiled(flaw)):
            return self.grade_url(self.issuer.url, environ, only)[0]

    def test_finds_nothing_wrong_with_ours(self):
        self.assertEqual((self.grade(), self.skipped), ({}, {}))

    def test_finds_nothing_wrong_with_what_is_merely_different(self):
        def all_of_it(said: Said) -> Said:
            for _, change in VARIATIONS:
                said = change(said)
            return said

        self.assertEqual((self.grade(all_of_it), self.skipped), ({}, {}))

    def test_takes_a_token_for_an_audience(self):
        self.issuer.stop()
        self.issuer = server.running(register_limit="off", argon2=CHEAPEST, audience="api")
        self.addCleanup(self.issuer.stop)
        self.assertEqual(self.grade(only="Auth"), {})

    def test_finds_the_published_key_behind_an_expired_token(self):
        # An issuer that lies: the same key signs what has expired, under a kid of its own.
        def flaw(said: Said) -> Said:
            if said.at(AUTH) and "expired" in said.request.path:
                header, claims = (
                    json.loads(jwt_minimal.b64url_decode(part))
                    for part in json.loads(said.answer)["token"].split(".")[:2]
                )
                key = self.issuer._service.app.keys.signing_key().private_key
                return said.put(token=jwt_minimal.encode(claims, key, header["kid"]))
            return said

        failed = self.grade(flaw, "Auth")
        self.assertEqual(set(failed), {"test_gives_an_expired_token_on_request"})
        self.assertSentences(failed)

    def test_finds_limits_where_none_belong(self):
        count = iter(range(10_000))

        def flaw(said: Said) -> Said:
            limited = said.at(JWKS) and said.request.method == "GET" and next(count) > 20
            return said._replace(status=429) if limited else said

        self.assertIn("test_do_not_concern_the_keys", self.grade(flaw, "Limits"))

    def test_finds_the_same_password_for_everybody(self):
        one = str(uuid.uuid4())

        def flaw(said: Said) -> Said:
            return said.put(password=one) if said.at(REGISTER, 201) else said

        self.assertIn("test_gives_every_user_another_password", self.grade(flaw, "Register"))

    def test_cannot_tell_one_limit_for_all_from_a_forwarder_unless_it_is_told(self):
        count = iter(range(10_000))

        def flaw(said: Said) -> Said:
            if said.at(AUTH) and next(count) >= 7:  # token, probe, five of six
                return said._replace(status=429, fields={"retry-after": "1"})
            return said

        with mock.patch.object(judging, "pause"):
            self.assertEqual(self.grade(flaw, "Limits", JWKS_TEST_DIRECT=""), {})
            self.assertIn("forwarder", self.skipped["test_count_each_address_for_itself"])
            count = iter(range(10_000))
            failed = self.grade(flaw, "Limits")
        self.assertEqual(set(failed), {"test_count_each_address_for_itself"})

    def test_takes_an_account_that_is_handed_in(self):
        name, password = "alice", "p&+ %ü"
        self.issuer._service.app.accounts.add(name, None, password)

        def flaw(said: Said) -> Said:
            nowhere = said.request.path == REGISTER
            return said._replace(status=404, answer=b"{}") if nowhere else said

        handed = {"JWKS_TEST_USER": name, "JWKS_TEST_PASSWORD": password}
        failed = self.grade(flaw, "Auth", **handed)
        self.assertEqual((failed, self.skipped), ({}, {}))

    def test_waits_for_the_limiter_where_all_requests_have_one_address(self):
        waits: list[float] = []

        def passes(seconds: float) -> None:
            waits.append(seconds)
            limiter = self.issuer._service.app.limits["auth"].limiter
            limiter._logs.clear()
            limiter._turns.clear()

        with (
            mock.patch.object(asking, "many_addresses", lambda: False),
            mock.patch.object(test_server, "many_addresses", lambda: False),
            mock.patch.object(judging, "pause", passes),
            mock.patch.object(test_server, "pause", passes),
        ):
            failed = self.grade(JWKS_TEST_DIRECT="")
        self.assertEqual(failed, {})
        self.assertTrue(waits and max(waits) <= 60, waits)

    def test_asks_below_the_path_of_the_url(self):
        def below(url: str, request: Asked, address: str, patience: float) -> Answer:
            self.assertTrue(url.endswith("/app/"))
            return asking.exchange(url.replace("/app/", ""), request, address, patience)

        with mock.patch.object(judging, "exchange", below):
            self.assertEqual(self.grade_url(f"{self.issuer.url}/app/", {}, "KeySet")[0], {})

    def test_a_server_behind_localhost_may_listen_on_one_family_alone(self):
        try:
            issuer = server.running(register_limit="off", argon2=CHEAPEST, host="::1")
        except OSError:
            self.skipTest("no IPv6 here")
        self.addCleanup(issuer.stop)
        port = urlsplit(issuer.url).port
        both = [
            (family, socket.SOCK_STREAM, 0, "", (address, port))
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
        ]
        with mock.patch("socket.getaddrinfo", lambda *arguments, **options: both):
            self.assertEqual(self.grade_url(f"http://localhost:{port}", {}, "KeySet")[0], {})

    def test_of_nobody_or_of_no_url_is_one_sentence_in_all(self):
        for url, part in (("http://127.0.0.1:1", "nobody listens"), ("127.0.0.1", "is no URL")):
            failed, output = self.grade_url(url, {})
            self.assertEqual(len(failed), 1)
            self.assertIn(part, output)
            self.assertNotIn("Traceback", output)

    def test_named_as_an_argument_is_told_where_it_belongs(self):
        command = [sys.executable, str(ROOT / "test_server.py"), "http://127.0.0.1:1"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout, run.stderr.count("\n")), (1, "", 1))
        self.assertIn("JWKS_TEST_URL=URL", run.stderr)

    def test_a_rubric_with_a_case_that_does_not_exist_is_refused(self):
        with self.assertRaisesRegex(ValueError, "no such case"):
            judging.settings_of({"statuses": {"registred": [200]}})
        with self.assertRaisesRegex(ValueError, "5/minute"):
            judging.settings_of({"auth_limit": "5 a minute"})


class Raw:
    """A server of few words: what it does with a connection is the test's affair."""

    def __init__(self, test: unittest.TestCase, speak: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.speak = speak
        self.connections: list[socket.socket] = []
        test.addCleanup(self.stop)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(sock)
            threading.Thread(target=self.converse, args=(sock,), daemon=True).start()

    def converse(self, sock: socket.socket) -> None:
        try:
            if sock.recv(65536):
                self.speak(sock)
        except OSError:
            pass  # the grader has gone away

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # stopped before
            self.listener.shutdown(socket.SHUT_RDWR)
        for sock in [self.listener, *self.connections]:
            sock.close()


def said(body: bytes, status: str = "200 OK", fields: str = "") -> Callable:
    """An answer of these octets, whatever is asked."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{fields}\r\n".encode("latin-1")

    def speak(sock: socket.socket) -> None:
        sock.sendall(head + body)
        sock.close()

    return speak


ESCAPES = b"\x1b[2J\x1b[31mOK\x07\r\xe2\x80\xae35/35"
DEEP = b"[" * 200_000
TOKENS = [
    "W10.W10.AA", "bnVsbA.bnVsbA.AA", "e30.e30.", "e30.e30.AA", "\x1b[31m.a.b", "\ud800.a.b",
    base64.urlsafe_b64encode(DEEP).decode().rstrip("=") + ".e30.AA",
]  # fmt: skip
KEYS = [
    [], [1], [{"kty": "RSA", "n": "", "e": ""}], [{"kty": "RSA", "n": "é", "e": "\ud800"}],
    [{"kty": "RSA", "n": "AA", "e": "AA", "kid": ["x"]}], [{"kty": ["RSA"]}],
    [{"kty": "RSA", "n": "A" * 500_000, "e": "A" * 500_000}],
]  # fmt: skip


class AHostileServer(Graded):
    def grade(self, speak: Callable[[socket.socket], None], seconds: float = 10) -> dict:
        rubric = {**judging.DEFAULTS, "seconds": seconds}
        with mock.patch.object(judging, "DEFAULTS", rubric):
            failed, output = self.grade_url(Raw(self, speak).url, {})
        self.assertNotIn("Traceback", output)
        self.assertNotIn("\x1b", output)
        self.assertTrue(failed)
        self.assertSentences(failed)
        return failed

    def test_gets_a_sentence_whatever_it_answers(self):
        bodies = [b"", b"null", b"[]", b"\xff", ESCAPES, DEEP, b'{"a":' * 100_000, b"9" * 9999]
        for body in bodies:
            with self.subTest(body=body[:20]):
                self.grade(said(body))

    def test_gets_a_sentence_whatever_its_tokens_and_keys_are(self):
        for number in range(len(TOKENS)):
            document = {"password": "x", "token": TOKENS[number], "keys": KEYS[number]}
            with self.subTest(document=str(document)[:80]):
                self.grade(said(json.dumps(document).encode()))

    def test_gets_a_sentence_whatever_its_head_is(self):
        for head in (
            b"HTTP/1.1 200 \x1b[2J\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 99,
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500,
            b"HTTP/1.1 200 OK\r\nRetry-After: \xff\r\nContent-Type: \x1b[31m\r\n\r\n",
            b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):  # fmt: skip
            with self.subTest(head=head[:60]):

                def speak(sock: socket.socket, head=head) -> None:
                    sock.sendall(head)
                    sock.close()

                with mock.patch.object(judging, "pause"):
                    self.grade(speak)

    def test_is_not_read_without_end(self):
        def endless(sock: socket.socket) -> None:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                sock.sendall(b"x" * 65536)

        failed = self.grade(endless)
        self.assertTrue(any("more than 1048576 octets" in text for text in failed.values()))

    def test_is_not_waited_for_without_end(self):
        drip_end = threading.Event()
        self.addCleanup(drip_end.set)

        def drip(sock: socket.socket) -> None:
            for octet in b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + bytes(99999):
                if drip_end.wait(0.02):
                    return
                sock.sendall(bytes([octet]))

        for speak in (drip, lambda sock: None):  # a drip, and silence
            began = time.monotonic()
            failed = self.grade(speak, seconds=0.2)
            self.assertLess(time.monotonic() - began, 8)  # else it is 35 checks of ten requests
            self.assertLessEqual(len(failed), 5)
            self.assertIn("not answered in time", " ".join(self.skipped.values()))

    def test_that_dies_fails_one_check_and_the_rest_is_not_judged(self):
        def die(sock: socket.socket) -> None:
            raw.stop()

        raw = Raw(self, die)
        failed, _ = self.grade_url(raw.url, {})
        self.assertEqual(len(failed), 1)
        self.assertIn("the server died", "".join(failed.values()))
        self.assertIn("the server died after", "".join(self.skipped.values()))


class AFewFiles(TemporaryFolder):
    def test_grade_without_a_package(self):
        shutil.copytree(ROOT / "jwksd" / "grading", self.folder / "jwksd" / "grading")
        shutil.copy(ROOT / "jwksd" / "__init__.py", self.folder / "jwksd")
        shutil.copy(ROOT / "test_server.py", self.folder)
        shutil.copy(ROOT / "jwt_minimal.py", self.folder)
        with server.running(argon2=CHEAPEST) as issuer:
            run = subprocess.run(
                [sys.executable, "-S", "-m", "unittest", "test_server"],
                cwd=self.folder, env={"JWKS_TEST_URL": issuer.url},
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        self.assertEqual(run.returncode, 0, run.stderr)


if __name__ == "__main__":
    unittest.main()
