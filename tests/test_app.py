"""The App at its seam: requests in, answers out, no socket."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sqlite3
import threading
import unittest
import uuid
from concurrent.futures import Future
from typing import Any
from unittest import mock

import argon2

import jwt_minimal
from jwksd.httpd import Request
from jwksd.store import accounts
from jwksd.store.logins import LoginLog
from jwksd.store.sqlite import SQLite
from tests.support import AppTest, header


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class Registering(AppTest):
    def test_answers_a_uuid4_that_logs_in(self):
        password = self.register("alice", email="alice@example.org")
        self.assertEqual(uuid.UUID(password).version, 4)
        self.assertEqual(self.login("alice", password).status, 200)

    def test_works_without_an_email_address(self):
        self.assertEqual(self.call("POST", "/register", {"username": "a"}).status, 201)
        self.assertEqual(
            self.call("POST", "/register", {"username": "b", "email": None}).status, 201
        )

    def test_works_with_a_form(self):
        form = {"content-type": "application/x-www-form-urlencoded; charset=UTF-8"}
        response = self.call("POST", "/register", headers=form, raw=b"username=a+b&email=a%40b.org")
        self.assertEqual(response.status, 201)
        self.assertEqual(self.app.accounts.users()[0][:2], ("a b", "a@b.org"))

    def test_reads_json_that_curl_calls_a_form(self):
        form = {"content-type": "application/x-www-form-urlencoded"}
        response = self.call("POST", "/register", {"username": "alice"}, headers=form)
        self.assertEqual(response.status, 201)

    def test_refuses_a_name_that_differs_only_in_ascii_case(self):
        self.register("alice")
        self.assertEqual(self.call("POST", "/register", {"username": "ALICE"}).status, 409)

    def test_refuses_an_email_address_that_differs_only_in_ascii_case(self):
        self.register("alice", email="a@example.org")
        again = self.call("POST", "/register", {"username": "bob", "email": "A@Example.ORG"})
        self.assertEqual(again.status, 409)

    def test_says_the_same_of_a_taken_name_and_a_taken_address(self):
        self.register("alice", email="a@example.org")
        name = self.call("POST", "/register", {"username": "alice"})
        address = self.call("POST", "/register", {"username": "bob", "email": "a@example.org"})
        self.assertEqual(name.body, address.body)

    def test_takes_unicode_names_in_one_normal_form(self):
        password = self.register("Jose\u0301")
        self.assertEqual(self.call("POST", "/register", {"username": "Jos\u00e9"}).status, 409)
        self.assertEqual(self.login("Jose\u0301", password).status, 200)

    def test_is_limited_by_its_own_rule(self):
        self.app = self.open_app(register_limit="2/minute")
        for name in "ab":
            self.register(name)
        self.assertEqual(self.call("POST", "/register", {"username": "c"}).status, 429)
        self.assertEqual(self.login("a", "wrong").status, 401)

    def test_a_foreign_page_cannot_register_in_its_visitors_place(self):
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
            response = self.call("POST", "/register", {"username": "a"}, headers=headers)
            self.assertEqual(response.status, 403)
        self.assertEqual(self.app.accounts.users(), [])

    def test_is_never_cached(self):
        response = self.call("POST", "/register", {"username": "a"})
        self.assertEqual(header(response, "Cache-Control"), "no-store")


class BadInput(AppTest):
    settings = {"register_limit": "off", "auth_limit": "off"}

    BODIES = (
        b"", b"{", b"[]", b'"alice"', b"null", b"1", b"\xff\xfe", b"\xef\xbb\xbf{}",
        b'{"username":"a"}x', b'{"username":"a"}{"username":"b"}',
        b'{"username":"a","username":"b"}', b'{"username":"a","\\u0075sername":"b"}',
        b'{"username":"\\ud800"}', b'{"username":"a\\u0000b"}', b'{"username":"a\\nb"}',
        b'{"username":null}', b'{"username":1}', b'{"username":true}', b'{"username":["a"]}',
        b'{"username":{"a":1}}', b'{"username":""}', b'{"username":" a"}', b'{"username":"a  b"}',
        b'{"username":"a:b"}', b'{"username":"a\\u202eb"}', b'{"username":"a\\u200bb"}',
        b'{"username":"' + b"a" * 65 + b'"}', b'{"username":"a","x":NaN}',
        b'{"username":"a","x":Infinity}',
        b'{"username":"a","x":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"username":"a","x":' + b"9" * 5000 + b"}",
    )  # fmt: skip

    def test_is_a_400_with_a_sentence_and_never_an_echo(self):
        for body in self.BODIES:
            for path in ("/register", "/auth"):
                with self.subTest(path=path, body=body[:40]):
                    response = self.call("POST", path, raw=body)
                    self.assertEqual(response.status, 400)
                    error = json.loads(response.body)
                    self.assertEqual(sorted(error), ["error", "error_description"])
                    self.assertLess(len(error["error_description"]), 120)

    def test_in_a_name_that_looks_like_another_is_a_400_everywhere(self):
        unseen = (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800,
                  0x3164, 0xFE00, 0xFE0F, 0xFFA0, 0x16FE4, 0x1D159, 0xE0100, 0xE01EF)  # fmt: skip
        self.register("alice")
        for number in unseen:
            for name in (f"alice{chr(number)}", f"{chr(number)}alice", chr(number)):
                for path in ("/register", "/auth"):
                    with self.subTest(name=ascii(name), path=path):
                        response = self.call("POST", path, {"username": name, "password": "x"})
                        self.assertEqual(response.status, 400)
        self.assertEqual(len(self.app.accounts.users()), 1)

    def test_of_an_email_address_is_a_400(self):
        wrong: tuple[object, ...] = ("", "a", "a@", "@b.org", "a@b", "a b@c.org", "a@-b.org",
                      "a@b..org",
                      "a@b.org\n",
                      "a@" + "b." * 130 + "org", 1, [], "\u202ea@b.org")  # fmt: skip
        for email in wrong:
            with self.subTest(email=email):
                response = self.call("POST", "/register", {"username": "a", "email": email})
                self.assertEqual(response.status, 400)

    def test_in_a_form_is_a_400(self):
        headers = {"content-type": "application/x-www-form-urlencoded"}
        for body in (
            b"username",
            b"username=a&username=b",
            b"username=%ff",
            b"&".join([b"a=1"] * 50),
        ):
            with self.subTest(body=body[:30]):
                response = self.call("POST", "/register", headers=headers, raw=body)
                self.assertEqual(response.status, 400)

    def test_of_another_type_is_a_415_that_names_the_types(self):
        for name, value in (("content-type", "text/xml"), ("content-encoding", "gzip"),
                            ("content-type", "application/json; charset=utf-16")):  # fmt: skip
            response = self.call("POST", "/register", {"username": "a"}, headers={name: value})
            self.assertEqual(response.status, 415)
            self.assertIn("application/json", header(response, "Accept-Post"))

    def test_in_basic_credentials_is_a_400(self):
        for value in ("Basic", "Basic ", "Basic !!!", "Basic YQ", "Basic YQ==", "Basic //79Og=="):
            with self.subTest(value=value):
                response = self.call("POST", "/auth", headers={"authorization": value})
                self.assertEqual(response.status, 400)

    def test_nothing_of_it_is_stored(self):
        for body in self.BODIES:
            self.call("POST", "/register", raw=body)
        self.assertEqual(self.app.accounts.users(), [])


class Costly(AppTest):
    def test_names_are_bounded_before_they_are_normalised(self):
        name = "\u0301\u0323" * 16_000
        with mock.patch("unicodedata.normalize", side_effect=AssertionError):
            self.assertEqual(self.call("POST", "/register", {"username": name}).status, 400)

    def test_the_longest_name_may_be_sent_decomposed(self):
        self.register("\u1eb7" * 64)
        decomposed = "a\u0323\u0306" * 64
        self.assertEqual(self.call("POST", "/register", {"username": decomposed}).status, 409)


class LoggingIn(AppTest):
    settings = {"auth_limit": "off"}

    def setUp(self):
        super().setUp()
        self.password = self.register("alice")

    def token(self, response):
        self.assertEqual(response.status, 200, response.body)
        return json.loads(response.body)["token"]

    def decode(self, token, **options):
        jwks = json.loads(self.call("GET", "/.well-known/jwks.json").body)
        return jwt_minimal.decode(token, jwks, now=self.clock.now, **options)

    def test_answers_a_token_that_the_jwks_verifies(self):
        response = self.login("alice", self.password)
        document = json.loads(response.body)
        self.assertEqual(document["token_type"], "Bearer")
        self.assertEqual(document["expires_in"], 3600)
        claims = self.decode(document["token"], issuer="http://127.0.0.1:8080")
        self.assertEqual(claims["sub"], "alice")
        self.assertEqual(claims["exp"] - claims["iat"], 3610)  # set back by ten seconds
        self.assertEqual(claims["nbf"], claims["iat"])
        self.assertEqual(uuid.UUID(claims["jti"]).version, 4)
        self.assertEqual(sorted(claims), ["exp", "iat", "iss", "jti", "nbf", "sub"])

    def test_names_the_key_by_its_thumbprint_and_nothing_else(self):
        token = self.token(self.login("alice", self.password))
        head = json.loads(jwt_minimal.b64url_decode(token.split(".")[0]))
        (jwk,) = json.loads(self.call("GET", "/.well-known/jwks.json").body)["keys"]
        kid = jwt_minimal.thumbprint(jwk)
        self.assertEqual(head, {"alg": "RS256", "typ": "JWT", "kid": kid})

    def test_puts_an_audience_into_the_token_only_if_configured(self):
        self.app = self.open_app(audience="shop", auth_limit="off")
        claims = self.decode(self.token(self.login("alice", self.password)), audience="shop")
        self.assertEqual(claims["aud"], "shop")

    def test_works_with_a_form_and_with_basic(self):
        form = {"content-type": "application/x-www-form-urlencoded"}
        body = f"grant_type=password&username=alice&password={self.password}".encode()
        self.token(self.call("POST", "/auth", headers=form, raw=body))
        self.token(self.call("POST", "/auth", headers=basic("alice", self.password)))

    def test_takes_basic_and_body_together_only_if_they_agree(self):
        members = {"username": "alice", "password": self.password}
        same = self.call("POST", "/auth", members, headers=basic("alice", self.password))
        self.assertEqual(same.status, 200)
        other = self.call("POST", "/auth", members, headers=basic("bob", self.password))
        self.assertEqual(other.status, 400)

    def test_ignores_another_scheme_beside_a_body(self):
        members = {"username": "alice", "password": self.password}
        response = self.call("POST", "/auth", members, headers={"authorization": "Bearer x"})
        self.assertEqual(response.status, 200)

    def test_says_the_same_of_an_unknown_user_and_a_wrong_password(self):
        wrong, unknown = self.login("alice", "x"), self.login("bob", "x")
        self.assertEqual((wrong.status, wrong.body), (401, unknown.body))
        self.assertEqual(wrong.headers, unknown.headers)

    def test_offers_basic_only_to_a_client_that_used_it(self):
        self.assertNotIn("Basic", header(self.login("alice", "x"), "WWW-Authenticate"))
        response = self.call("POST", "/auth", headers=basic("alice", "x"))
        self.assertIn("Basic", header(response, "WWW-Authenticate"))

    def test_compares_the_password_character_for_character(self):
        for wrong in (self.password.upper(), self.password + " ", self.password[:-1]):
            self.assertEqual(self.login("alice", wrong).status, 401)

    def test_an_empty_password_is_malformed_for_all_alike(self):
        self.assertEqual(self.login("alice", "").status, 400)
        self.assertEqual(self.login("nobody", "").status, 400)

    def test_an_expired_token_is_signed_by_a_key_that_is_not_published(self):
        members = {"username": "alice", "password": self.password}
        token = self.token(self.call("POST", "/auth", members, query="expired=true"))
        with self.assertRaises(jwt_minimal.UnknownKey):
            self.decode(token)
        claims = json.loads(jwt_minimal.b64url_decode(token.split(".")[1]))
        self.assertLess(claims["exp"], self.clock.now)
        self.assertLess(claims["iat"], claims["exp"])

    def test_refuses_a_wish_that_is_neither_true_nor_false(self):
        members = {"username": "alice", "password": self.password}
        self.assertEqual(self.call("POST", "/auth", members, query="expired=maybe").status, 400)
        twice = self.call("POST", "/auth", members, query="expired=true&expired=false")
        self.assertEqual(twice.status, 400)
        self.assertEqual(self.call("POST", "/auth", members, query="expired=false").status, 200)

    def test_is_a_404_while_no_unexpired_key_exists(self):
        with sqlite3.connect(self.path) as other:
            other.execute("DELETE FROM keys")
        other.close()
        self.assertEqual(self.login("alice", self.password).status, 404)
        self.assertEqual(self.logged(), [("127.0.0.1", 1, "no_key")])
        self.assertEqual(self.app.accounts.users()[0][3], None)  # no token, no login
        self.assertEqual(self.call("GET", "/.well-known/jwks.json").body, b'{"keys":[]}')
        self.assertEqual(self.call("GET", "/healthz").status, 503)

    def logged(self):
        """Address, account and outcome of every attempt."""
        return self.app.database.read(
            "SELECT request_ip, user_id, outcome "
            "FROM auth_logs JOIN auth_outcomes ON log_id = auth_logs.id ORDER BY auth_logs.id"
        )

    def test_logs_the_client_and_not_the_proxy_in_between(self):
        self.app = self.open_app(trusted_proxy="10.0.0.0/8", auth_limit="off")
        forwarded = {"x-forwarded-for": "192.0.2.7"}
        for password in (self.password, "wrong"):
            self.login("alice", password, headers=forwarded, client="10.0.0.1")
        self.assertEqual(
            self.logged(), [("192.0.2.7", 1, "success"), ("192.0.2.7", 1, "bad_password")]
        )

    def verifications(self, **values):
        """How often two logins with the same password paid for Argon2."""
        self.app = self.open_app(auth_limit="off", **values)
        real = argon2.PasswordHasher.verify
        with mock.patch.object(argon2.PasswordHasher, "verify", autospec=True) as verify:
            verify.side_effect = real
            for _ in range(2):
                self.token(self.login("alice", self.password))
        return verify.call_count

    def test_pays_for_a_password_once_as_long_as_the_operator_wants(self):
        self.assertEqual(self.verifications(), 1)
        self.assertEqual(self.verifications(verified_cache="off"), 2)
        self.app = self.open_app(auth_limit="off", verified_cache="10m")
        self.login("alice", self.password)
        with mock.patch.object(argon2.PasswordHasher, "verify", side_effect=AssertionError):
            self.monotonic.advance(599)
            self.token(self.login("alice", self.password))
            self.monotonic.advance(2)
            self.assertEqual(self.login("alice", self.password).status, 503)

    def test_says_when_to_come_back_while_there_is_no_memory_to_hash_with(self):
        words = argon2.low_level.error_to_str(-22)  # ARGON2_MEMORY_ALLOCATION_ERROR
        verify = argon2.exceptions.VerificationError(words)
        no_step = mock.patch.multiple(
            argon2.PasswordHasher,
            verify=mock.Mock(side_effect=verify),
            hash=mock.Mock(side_effect=argon2.exceptions.HashingError(words)),
        )
        with no_step:
            for response in (
                self.login("alice", self.password),
                self.login("nobody", "x"),
                self.call("POST", "/register", {"username": "bob"}),
            ):
                self.assertEqual(json.loads(response.body)["error"], "busy")
                self.assertEqual((response.status, header(response, "Retry-After")), (503, "1"))
        self.assertEqual(self.logged(), [])

    def test_with_a_stored_hash_that_is_none_is_a_401_that_tells_nobody_the_hash(self):
        self.token(self.login("alice", self.password))
        unreadable = "CAST(x'246172676f6e326964ff' AS TEXT)"  # $argon2id and no UTF-8
        for stored in (unreadable, "'$argon2id$v=19$m=8,t=1,p=1$YQ$YWJj'", "x'00'", "''", "7"):
            with (
                self.subTest(stored=stored),
                contextlib.closing(sqlite3.connect(self.path)) as other,
            ):
                other.execute(f"UPDATE users SET password_hash = {stored}")
                other.commit()
                self.assertEqual(self.login("alice", self.password).status, 401)
                self.assertEqual(self.logged()[-1], ("127.0.0.1", 1, "bad_password"))
        self.assertEqual(self.call("GET", "/healthz").status, 200)
        self.assertNotIn("argon2id", "".join(self.lines))

    def test_logs_every_attempt_with_address_time_and_outcome(self):
        self.login("alice", self.password, client="127.0.0.9")
        self.login("alice", "wrong")
        self.login("nobody", "wrong")
        rows = self.app.database.read(
            "SELECT request_ip, request_timestamp, user_id, outcome "
            "FROM auth_logs JOIN auth_outcomes ON log_id = auth_logs.id ORDER BY auth_logs.id"
        )
        time = "2027-01-15 08:00:00.000"
        self.assertEqual(
            rows,
            [
                ("127.0.0.9", time, 1, "success"),
                ("127.0.0.1", time, 1, "bad_password"),
                ("127.0.0.1", time, None, "unknown_user"),
            ],
        )
        self.assertEqual(self.app.accounts.users()[0][3], time)

    def test_ends_a_remembered_password_with_a_reset_by_another_process(self):
        self.assertEqual(self.login("alice", self.password).status, 200)
        with contextlib.closing(SQLite(self.path)) as other:
            newer = accounts.Accounts(other).reset("alice")
        refused = self.login("alice", self.password)
        self.assertEqual(refused.status, 401)
        self.assertEqual(refused.body, self.login("nobody", "wrong").body)
        self.assertEqual(self.login("alice", newer).status, 200)
        outcomes = self.app.database.read("SELECT outcome FROM auth_outcomes ORDER BY log_id")
        expected = ["success", "bad_password", "unknown_user", "success"]
        self.assertEqual([outcome for (outcome,) in outcomes], expected)

    def test_ends_a_remembered_password_with_a_new_name_of_its_account(self):
        self.assertEqual(self.login("alice", self.password).status, 200)
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("UPDATE users SET username = 'older' WHERE username = 'alice'")
        self.assertEqual(self.login("alice", self.password).status, 401)
        with contextlib.closing(SQLite(self.path)) as ours:
            self.assertRaises(
                accounts.NameTaken, accounts.Accounts(ours).register, "alice", None
            )  # tokens have named somebody else so
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("DELETE FROM account_names WHERE folded = 'alice'")
        with contextlib.closing(SQLite(self.path)) as ours:
            accounts.Accounts(ours).register("alice", None)
        self.assertEqual(self.login("alice", self.password).status, 401)
        self.assertEqual(self.login("older", self.password).status, 200)

    def test_ends_a_remembered_password_also_where_no_key_is_left(self):
        self.assertEqual(self.login("alice", self.password).status, 200)
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("DELETE FROM keys")
        with contextlib.closing(SQLite(self.path)) as ours:
            accounts.Accounts(ours).reset("alice")
        self.app.upkeep.notice_changes()
        self.assertEqual(self.login("alice", self.password).status, 401)

    def test_announces_the_row_while_it_signs_so_that_others_wait_for_it(self):
        real, writer = jwt_minimal.encode, getattr(self.app.database, "_writer")  # noqa: B009
        other: Future[None] = Future()
        commits = []

        def encode(*given, **named):
            self.app.database.append(lambda connection, rows: None, 1, other, None)
            return real(*given, **named)

        def commit(jobs):
            commits.append(len(jobs))
            writer_commit(jobs)

        writer_commit = writer._commit
        with (
            mock.patch.object(jwt_minimal, "encode", encode),
            mock.patch.object(writer, "_commit", commit),
            mock.patch("jwksd.store.database.GATHER_SECONDS", 600),
        ):
            self.assertEqual(self.login("alice", self.password).status, 200)
            other.result(60)
        self.assertEqual(commits, [2])

    def test_answers_only_once_the_attempt_is_on_disk(self):
        hold, held = threading.Event(), threading.Event()

        def wait(connection, rows):
            held.set()
            hold.wait(60)

        self.app.database.append(wait, None, Future(), None)
        self.assertTrue(held.wait(60))
        answers: list[Any] = []
        for password in (self.password, "wrong"):
            body = json.dumps({"username": "alice", "password": password}).encode()
            answers.append(self.app.respond(Request("POST", "/auth", "", {}, body, "127.0.0.1")))
        self.assertFalse(any(answer.done() for answer in answers))
        hold.set()
        self.assertEqual([answer.result(60).status for answer in answers], [200, 401])

    def test_issues_no_token_for_an_attempt_that_cannot_be_logged(self):
        with sqlite3.connect(self.path) as other:
            other.execute("DROP TABLE auth_outcomes")
        other.close()
        for password in (self.password, "wrong"):
            response = self.login("alice", password)
            self.assertEqual((response.status, b"token" in response.body), (503, False))
        self.assertEqual(self.app.logins, {})

    def test_never_stores_what_an_unknown_user_typed(self):
        self.login("hunter2-typed-as-a-name", "x")
        self.app.database.close()
        stored = b"".join(file.read_bytes() for file in self.folder.iterdir())
        self.assertNotIn(b"hunter2", stored)


class Starting(AppTest):
    def test_on_all_addresses_says_that_the_issuer_needs_a_name(self):
        for host in ("0.0.0.0", "::"):
            self.lines.clear()
            self.open_app(host=host).database.close()
            self.assertEqual(sum("--issuer" in line for line in self.lines), 1, self.lines)
        self.lines.clear()
        self.open_app(host="0.0.0.0", issuer="https://issuer.example").database.close()
        self.open_app().database.close()
        self.assertEqual([line for line in self.lines if "--issuer" in line], [])


class Publishing(AppTest):
    def get(self, **headers):
        return self.call("GET", "/.well-known/jwks.json", headers=headers)

    def test_has_exactly_the_members_that_clients_expect(self):
        (jwk,) = json.loads(self.get().body)["keys"]
        self.assertEqual(sorted(jwk), ["alg", "e", "kid", "kty", "n", "use"])
        self.assertEqual((jwk["kty"], jwk["use"], jwk["alg"]), ("RSA", "sig", "RS256"))
        self.assertEqual(len(jwt_minimal.b64url_decode(jwk["n"])), 256)

    def test_can_be_cached_and_read_by_any_page(self):
        response = self.get()
        self.assertEqual(header(response, "Cache-Control"), "public, max-age=300")
        self.assertEqual(header(response, "Access-Control-Allow-Origin"), "*")
        self.assertEqual(header(response, "Content-Type"), "application/json")

    def test_answers_304_to_its_own_etag(self):
        etag = header(self.get(), "ETag")
        for field in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            response = self.get(**{"if-none-match": field})
            self.assertEqual((response.status, response.body), (304, b""))
            self.assertEqual(header(response, "ETag"), etag)
        self.assertEqual(self.get(**{"if-none-match": '"x"'}).status, 200)

    def test_is_never_kept_past_its_next_change(self):
        self.app = self.open_app(token_ttl="1m", key_skew="0s", key_lead="10s", key_lifetime="10m")
        keys = self.app.keys.published()
        self.clock.now = keys.until - 30
        self.assertEqual(header(self.get(), "Cache-Control"), "public, max-age=30")
        self.clock.advance(1)
        self.assertEqual(header(self.get(), "Cache-Control"), "public, max-age=29")

    def test_is_the_same_object_while_nothing_changes(self):
        self.assertIs(self.get(), self.get())

    def test_serves_discovery_with_the_issuer_of_the_tokens(self):
        for name in ("openid-configuration", "oauth-authorization-server"):
            response = self.call("GET", f"/.well-known/{name}", headers={"host": "evil.example"})
            document = json.loads(response.body)
            self.assertEqual(document["issuer"], "http://127.0.0.1:8080")
            self.assertEqual(document["jwks_uri"], "http://127.0.0.1:8080/.well-known/jwks.json")
            self.assertTrue(document["token_endpoint"].endswith("/auth"))


class Measuring(AppTest):
    def test_counts_logins_and_refusals_for_prometheus(self):
        for _ in range(7):
            self.login("nobody", "x")
        text = self.call("GET", "/metrics").body.decode()
        self.assertIn('jwks_logins_total{outcome="unknown_user"} 5\n', text)
        self.assertIn('jwks_limited_total{route="auth"} 2\n', text)
        self.assertIn("# TYPE jwks_keys gauge\njwks_keys 1\n", text)

    def test_says_whether_it_is_ready_and_when_the_next_key_is_made(self):
        def found(name):
            lines = self.call("GET", "/metrics").body.decode().splitlines()
            return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

        self.assertEqual(found("jwks_ready"), 1)
        before = found("jwks_next_key_seconds")
        self.clock.advance(100)
        self.assertAlmostEqual(found("jwks_next_key_seconds"), before - 100, places=3)
        self.app.upkeep.report("rotation", "the disk is full")
        self.assertEqual(found("jwks_ready"), 0)

    def test_times_what_waits_for_a_worker(self):
        def slow(name, password):
            self.monotonic.advance(0.3)

        with mock.patch.object(self.app.accounts, "remembered", slow):
            self.login("nobody", "x")
        self.register("alice")
        text = self.call("GET", "/metrics").body.decode()
        for line in (
            '_bucket{route="auth",le="0.25"} 0', '_bucket{route="auth",le="0.5"} 1',
            '_bucket{route="auth",le="+Inf"} 1', '_count{route="auth"} 1',
            '_bucket{route="register",le="0.001"} 1', '_count{route="register"} 1',
        ):  # fmt: skip
            self.assertIn(f"jwks_request_seconds{line}\n", text)

    def test_times_every_route_but_the_key_set(self):
        self.call("GET", "/.well-known/jwks.json")
        for path in ("/healthz", "/.well-known/openid-configuration", "/", "/metrics"):
            self.assertEqual(self.call("GET", path).status, 200)
        self.call("HEAD", "/healthz")
        self.call("POST", "/healthz")
        text = self.call("GET", "/metrics").body.decode()
        found = dict(re.findall(r'jwks_request_seconds_count\{route="(\w+)"\} (\d+)', text))
        self.assertEqual(found, {"healthz": "2", "metadata": "1", "inspector": "1", "metrics": "1"})

    def test_speaks_openmetrics_to_who_names_it(self):
        for accept, wanted in (
            ("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5", True),
            ("text/plain, Application/OpenMetrics-Text", True),
            ("application/openmetrics-text;q=0", False), ("*/*", False), ("", False),
        ):  # fmt: skip
            response = self.call("GET", "/metrics", headers={"accept": accept})
            text = response.body.decode()
            self.assertEqual(text.endswith("# EOF\n"), wanted, accept)
            self.assertEqual("# TYPE jwks_connections counter" in text, wanted)
            media_type = header(response, "Content-Type").split(";")[0]
            self.assertEqual(media_type == "application/openmetrics-text", wanted)

    def test_is_for_this_machine_and_those_named(self):
        self.assertEqual(self.call("GET", "/metrics", client="192.0.2.1").status, 403)
        self.assertEqual(self.call("GET", "/metrics", client="::1").status, 200)
        self.app = self.open_app(metrics_from="192.0.2.0/24")
        self.assertEqual(self.call("GET", "/metrics", client="192.0.2.1").status, 200)
        self.assertEqual(self.call("GET", "/metrics").status, 200)

    def test_is_not_lent_through_a_socket_file_either(self):
        forwarded = {"x-forwarded-for": "192.0.2.1"}
        self.assertEqual(self.call("GET", "/metrics", client="unix").status, 200)
        response = self.call("GET", "/metrics", client="unix", headers=forwarded)
        self.assertEqual(response.status, 403)

    def test_is_not_lent_to_others_by_a_proxy_on_this_machine(self):
        forwarded = {"x-forwarded-for": "192.0.2.1"}
        self.assertEqual(self.call("GET", "/metrics", headers=forwarded).status, 403)
        self.app = self.open_app(trusted_proxy="127.0.0.1")
        self.assertEqual(self.call("GET", "/metrics", headers=forwarded).status, 403)


class Failing(AppTest):
    def test_writing_is_a_503_that_the_operator_and_healthz_know_of_until_it_works(self):
        self.app.database.write(lambda c: c.execute("PRAGMA max_page_count=1"))
        name = "x" * 60
        statuses = {self.call("POST", "/register", {"username": name + str(n)}).status
                    for n in range(50)}  # fmt: skip
        self.assertIn(503, statuses)
        self.assertLessEqual(statuses, {201, 503})
        self.assertEqual(self.call("GET", "/healthz").status, 503)
        self.assertEqual(sum("full" in line for line in self.lines), 1, self.lines)
        self.app.database.write(lambda c: c.execute("PRAGMA max_page_count=100000"))
        self.app.upkeep.tick()
        self.assertEqual(self.call("GET", "/healthz").status, 200)
        self.assertIn("works again", self.lines[-1])

    def test_a_database_that_was_replaced_is_known_to_healthz_at_once_until_it_is_back(self):
        path = self.app.database.name
        os.rename(path, f"{path}.away")
        self.assertEqual(self.call("GET", "/healthz").status, 503)
        self.assertEqual(self.call("GET", "/.well-known/jwks.json").status, 200)
        self.app.upkeep.tick()
        self.assertIn("was deleted or replaced", self.lines[-1])
        os.rename(f"{path}.away", path)
        self.app.upkeep.tick()
        self.assertEqual(self.call("GET", "/healthz").status, 200)
        self.assertIn("works again", self.lines[-1])

    def test_one_task_of_the_maintenance_does_not_stop_the_others(self):
        broken = mock.patch.object(self.app.keys, "prune", side_effect=ZeroDivisionError("x"))
        with broken, mock.patch.object(LoginLog, "prune") as prune:
            self.app.upkeep.tick()
            self.app.upkeep.tick()
        self.assertEqual(prune.call_count, 2)
        self.assertEqual(sum("ZeroDivisionError" in line for line in self.lines), 1)
        self.app.upkeep.tick()
        self.assertEqual(self.call("GET", "/healthz").status, 200)


class Routing(AppTest):
    def test_knows_only_the_paths_of_the_table(self):
        for path in ("/nothing", "/auth/", "//auth", "/AUTH", "/auth%20", "*", "/../auth"):
            self.assertEqual(self.call("POST", path).status, 404)

    def test_answers_405_with_the_methods_that_exist(self):
        for path, allowed in (("/auth", "POST, OPTIONS"), ("/healthz", "GET, HEAD, OPTIONS")):
            response = self.call("DELETE", path)
            self.assertEqual((response.status, header(response, "Allow")), (405, allowed))

    def test_answers_options_and_head(self):
        response = self.call("OPTIONS", "/.well-known/jwks.json")
        self.assertEqual((response.status, response.body), (204, b""))
        self.assertEqual(header(response, "Allow"), "GET, HEAD, OPTIONS")
        self.assertEqual(self.call("HEAD", "/.well-known/jwks.json").status, 200)

    def test_a_defect_is_a_503_without_a_traceback(self):
        with mock.patch.object(self.app.keys, "published", side_effect=ZeroDivisionError("x")):
            response = self.call("GET", "/.well-known/jwks.json")
        self.assertEqual(response.status, 503)
        self.assertNotIn(b"Zero", response.body)
        self.assertIn("ZeroDivisionError", self.lines[-1])


if __name__ == "__main__":
    unittest.main()
