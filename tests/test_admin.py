"""admin.py as its user runs it: a command line, standard input, lines out, an exit code."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import sqlite3
import stat
import threading
import time
import unittest
from concurrent.futures import Future
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

import admin
import server
from jwksd import httpd
from jwksd.ops import settings
from jwksd.store.accounts import Accounts, HashCost, InvalidCredentials, write_attempts
from jwksd.store.logins import Attempt, LoginLog, utc_text
from jwt_minimal import public_jwk
from tests.support import Inline, TemporaryFolder, ready_keys, some_key

ENVIRON = {"NOT_MY_KEY": "a secret of the tests", "JWKS_ARGON2": "t=1,m=8,p=1"}


def key_with_a_hyphen() -> rsa.RSAPrivateKey:
    """A key whose kid begins with one: another exponent is another kid, and costs no primes."""
    numbers = some_key(0).private_numbers()
    p, q, n = numbers.p, numbers.q, numbers.public_numbers.n
    for e in range(3, 1 << 20, 2):
        public = rsa.RSAPublicNumbers(e, n)
        if math.gcd(e, (p - 1) * (q - 1)) > 1 or not kid_of(public.public_key()).startswith("-"):
            continue
        d = pow(e, -1, (p - 1) * (q - 1))
        parts = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
        return rsa.RSAPrivateNumbers(p, q, d, *parts, public).private_key()
    raise AssertionError("one kid in 64 begins with a hyphen")


def kid_of(key: rsa.RSAPublicKey) -> str:
    return public_jwk(key)["kid"]


class AdminTest(TemporaryFolder):
    def admin(self, *words: str, stdin="", environ=None) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        variables = dict(ENVIRON if environ is None else environ)
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(os, "environ", variables))
            given = io.StringIO(stdin) if isinstance(stdin, str) else stdin
            stack.enter_context(mock.patch("sys.stdin", given))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            try:
                code = admin.main(["--db", str(self.path), *words])
            except SystemExit as exit_:
                code = int(exit_.code or 0)
        return code, out.getvalue(), err.getvalue()

    def can_log_in(self, name: str, password: str) -> bool:
        database = self.open_database()
        with contextlib.closing(database):
            try:
                return bool(Accounts(database, cost=HashCost(1, 8, 1)).authenticate(name, password))
            except InvalidCredentials:
                return False


class Users(AdminTest):
    def test_can_be_added_before_the_server_ever_ran(self):
        code, password, _ = self.admin("users", "add", "alice", "--email", "a@example.org")
        self.assertEqual(code, 0)
        self.assertTrue(self.can_log_in("alice", password.strip()))

    def test_get_the_password_from_standard_input_and_print_nothing(self):
        given = "correct horse battery"
        for name, stdin in (("a", given), ("b", given + "\n")):
            self.assertEqual(
                self.admin("users", "add", name, "--password-stdin", stdin=stdin), (0, "", "")
            )
            self.assertTrue(self.can_log_in(name, given))

    def test_are_refused_with_a_bad_name_password_or_address(self):
        self.admin("users", "add", "alice")
        for words, stdin in (
            (["alice"], ""), (["ALICE"], ""), (["a:b"], ""), ([""], ""),
            (["bob", "--email", "bob"], ""), (["bob", "--password-stdin"], ""),
            (["bob", "--password-stdin"], "x" * 2000),
        ):  # fmt: skip
            with self.subTest(words=words):
                code, out, err = self.admin("users", "add", *words, stdin=stdin)
                self.assertEqual((code, out, err.count("\n")), (1, "", 1))

    def test_are_listed_with_tabs(self):
        self.admin("users", "add", "bob")
        self.admin("users", "add", "alice", "--email", "a@example.org")
        code, out, _ = self.admin("users", "list")
        rows = [line.split("\t") for line in out.splitlines()]
        self.assertEqual(code, 0)
        self.assertEqual([row[:2] for row in rows[1:]], [["alice", "a@example.org"], ["bob", "-"]])
        self.assertEqual(rows[1][3], "never")

    def test_are_hashed_at_the_cost_that_the_server_was_told(self):
        self.admin("users", "add", "alice")
        for words in (("users", "add", "bob"), ("users", "reset", "alice")):
            self.assertEqual(self.admin("--argon2", "t=2,m=16,p=1", *words)[0], 0)
        with contextlib.closing(self.open_database()) as database:
            hashes = database.read("SELECT password_hash FROM users")
        self.assertEqual(len(hashes), 2)
        for (stored,) in hashes:
            self.assertIn("m=16,t=2,p=1", stored)

    def test_are_not_hashed_at_a_cost_that_cannot_be_meant(self):
        code, out, err = self.admin("--argon2", "t=0", "users", "add", "bob")
        self.assertEqual((code, out, err.count("\n")), (2, "", 1))

    def test_get_a_new_password_that_ends_the_old_one(self):
        _, old, _ = self.admin("users", "add", "alice")
        code, new, _ = self.admin("users", "reset", "alice")
        self.assertEqual(code, 0)
        self.assertFalse(self.can_log_in("alice", old.strip()))
        self.assertTrue(self.can_log_in("alice", new.strip()))

    def test_can_be_deleted(self):
        _, password, _ = self.admin("users", "add", "alice")
        self.assertEqual(self.admin("users", "delete", "alice")[0], 0)
        self.assertFalse(self.can_log_in("alice", password.strip()))
        code, _, err = self.admin("users", "delete", "alice")
        self.assertEqual(code, 1)
        self.assertIn("there is no user 'alice'", err)


class ANameWithAHyphenInFront(AdminTest):
    NAMES = ("-bob", "--bob", "-help", "-1", "-", "--b=ob", "-b ob")

    def test_is_a_name_like_any_other_to_every_command(self):
        for name in self.NAMES:
            with self.subTest(name=name):
                self.assertEqual(self.admin("users", "add", name)[0], 0)
                _, password, _ = self.admin("users", "reset", name)
                self.assertTrue(self.can_log_in(name, password.strip()))
                self.assertEqual(self.admin("log", "--user", name, "--last", "1")[0], 0)
                self.assertEqual(self.admin("users", "delete", name)[:2], (0, ""))

    def test_leaves_the_options_around_it_what_they_are(self):
        words = ("--email", "-b@example.org", "-bob", "--password-stdin")
        self.assertEqual(self.admin("users", "add", *words, stdin="a password"), (0, "", ""))
        self.assertTrue(self.can_log_in("-bob", "a password"))
        _, out, _ = self.admin("users", "list")
        self.assertIn("-bob\t-b@example.org\t", out)

    def test_that_is_an_option_can_be_given_after_two_hyphens_or_an_equals_sign(self):
        for name in ("--help", "-h", "--email"):
            with self.subTest(name=name):
                self.assertEqual(self.admin("users", "add", "--", name)[0], 0)
                self.assertEqual(self.admin("log", f"--user={name}")[0], 0)
                self.assertEqual(self.admin("users", "delete", "--", name)[0], 0)
                self.assertIn("there is no user", self.admin("users", "delete", "--", name)[2])

    def test_makes_no_name_of_a_slip_beside_one(self):
        for words in (("users", "delete", "bob", "--froce"), ("log", "--user", "--follow"),
                      ("users", "add", "--email", "--password-stdin", "bob"),
                      ("backup", "--dry-run"), ("keys", "list", "-x")):  # fmt: skip
            with self.subTest(words=words):
                self.admin("users", "add", "bob")
                code, _, err = self.admin(*words)
                self.assertEqual((code, err.count("\n")), (2, 1), err)


class WhatAnotherProgramWrote(AdminTest):
    NAMES = ("\tt\n\x1b[31mred", "a:b", "e\u0301ve", "alice\ufe0f", "x\U000e0101", " ", "a\x9bb")

    def setUp(self):
        super().setUp()
        self.admin("users", "add", "alice")
        with contextlib.closing(self.open_database()) as database:
            database.write(self.insert)

    def insert(self, connection):
        connection.executemany(
            "INSERT INTO users (username, password_hash, email, date_registered) "
            "VALUES (?, 'x', ?, NULL)",
            [(name, f"{number}\t\n\x1b[2J") for number, name in enumerate(self.NAMES)],
        )
        connection.execute(
            "INSERT INTO auth_logs (request_ip, request_timestamp, user_id) "
            "SELECT '\x1b[31m\t', NULL, id FROM users WHERE username <> 'alice'"
        )
        connection.execute("INSERT INTO auth_outcomes SELECT id, char(10) FROM auth_logs")

    def test_neither_breaks_a_list_nor_reaches_the_terminal(self):
        for words, columns in ((("users", "list"), 4), (("log",), 4), (("log", "--summary"), 5)):
            with self.subTest(words=words):
                _, out, _ = self.admin(*words)
                lines = out.split("\n")[:-1]
                self.assertEqual({line.count("\t") + 1 for line in lines}, {columns})
                self.assertTrue("".join(lines).replace("\t", "").isprintable(), out)
                self.assertGreater(len(lines), 1)

    def test_is_told_from_what_it_looks_like(self):
        names = [line.split("\t")[0] for line in self.admin("users", "list")[1].splitlines()]
        self.assertIn("\\u0009t\\u000a\\u001b[31mred", names)
        self.assertIn("alice\\ufe0f", names)
        self.assertIn("x\\U000e0101", names)
        self.assertIn("e\u0301ve", names)

    def test_can_be_asked_for_reset_and_deleted_as_it_stands(self):
        for name in self.NAMES:
            with self.subTest(name=name):
                _, out, _ = self.admin("log", "--user", name)
                self.assertEqual(out.count("\n"), 2)
                code, password, _ = self.admin("users", "reset", name)
                self.assertEqual(code, 0)
                self.assertTrue(self.can_log_in(name, password.strip()))
                self.assertEqual(self.admin("users", "delete", name), (0, "", ""))
        self.assertEqual(self.admin("users", "list")[1].count("\n"), 2)

    def test_is_never_taken_for_an_account_of_the_same_look(self):
        code, _, err = self.admin("users", "add", "\u00e9ve")  # the same name, in NFC
        self.assertEqual((code, "taken" in err), (1, True))
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("INSERT INTO users (username, password_hash) VALUES ('\u00e9ve', '')")
        self.assertEqual(self.admin("users", "delete", "e\u0301ve")[0], 0)
        self.assertIn("\n\u00e9ve\t", self.admin("users", "list")[1])
        self.assertEqual(self.admin("users", "delete", "e\u0301ve")[0], 0)
        self.assertNotIn("\n\u00e9ve\t", self.admin("users", "list")[1])

    def test_that_is_no_text_names_nobody_in_one_line(self):
        for words in (("users", "reset"), ("users", "delete"), ("log", "--user")):
            code, out, err = self.admin(*words, "bob\udcff")
            self.assertEqual((code, out, err.count("\n")), (1, "", 1))


class LogTest(AdminTest):
    """A database with five attempts."""

    ROWS = (  # address, outcome, user, minutes ago
        ("192.0.2.1", "success", "alice", 180),
        ("192.0.2.1", "bad_password", "alice", 50),
        ("2001:db8::1", "bad_password", "bob", 40),
        ("2001:db8::1", "unknown_user", None, 3),
        ("192.0.2.1", "bad_password", "alice", 2),
    )

    def setUp(self):
        super().setUp()
        for name in ("alice", "bob"):
            self.admin("users", "add", name)
        self.add(*self.ROWS)

    def add(self, *rows):
        with contextlib.closing(self.open_database()) as database:
            ids = dict(database.read("SELECT username, id FROM users"))
            attempts = [
                Attempt(address, utc_text(time.time() - 60 * minutes), ids.get(user), outcome)
                for address, outcome, user, minutes in rows
            ]
            database.write(lambda connection: write_attempts(connection, attempts))

    def log(self, *words):
        """The rows without the heading and the time."""
        code, out, err = self.admin("log", *words)
        self.assertEqual((code, err), (0, ""))
        heading, *lines = out.splitlines()
        self.assertEqual(heading, "time\taddress\toutcome\tuser")
        return [tuple(line.split("\t")[1:]) for line in lines]

    def expected(self, *places):
        return [
            (a, outcome, user or "-") for a, outcome, user, _ in map(self.ROWS.__getitem__, places)
        ]


class TheLog(LogTest):
    def test_shows_every_attempt_oldest_first(self):
        self.assertEqual(self.log(), self.expected(0, 1, 2, 3, 4))

    def test_is_filtered_by_outcome_address_user_and_time(self):
        for words, places in (
            (("--outcome", "bad_password"), (1, 2, 4)),
            (("--address", "192.0.2.1"), (0, 1, 4)),
            (("--address", "2001:DB8:0::1"), (2, 3)),
            (("--user", "alice"), (0, 1, 4)),
            (("--user", "nobody"), ()),
            (("--since", "1h"), (1, 2, 3, 4)),
            (("--since", "2026-01-01"), (0, 1, 2, 3, 4)),
            (("--since", "9999-12-31 23:59"), ()),
            (("--outcome", "bad_password", "--user", "alice", "--since", "45m"), (4,)),
            (("--last", "2"), (3, 4)),
            (("--last", "2", "--user", "alice"), (1, 4)),
            (("--last", "99"), (0, 1, 2, 3, 4)),
        ):
            with self.subTest(words=words):
                self.assertEqual(self.log(*words), self.expected(*places))

    def test_is_read_a_page_at_a_time(self):
        with mock.patch("jwksd.store.logins.LOG_PAGE", 2):
            self.assertEqual(self.log(), self.expected(0, 1, 2, 3, 4))

    def test_keeps_the_attempts_of_a_deleted_user_without_the_name(self):
        self.admin("users", "delete", "bob")
        self.assertIn(("2001:db8::1", "bad_password", "-"), self.log())

    def test_shows_rows_that_another_program_wrote_without_an_outcome(self):
        with contextlib.closing(self.open_database()) as database:
            database.write(
                lambda c: c.execute("INSERT INTO auth_logs (request_ip) VALUES ('192.0.2.9')")
            )
        self.assertEqual(self.log()[-1], ("192.0.2.9", "-", "-"))

    def test_is_summed_up_by_address_and_outcome(self):
        code, out, _ = self.admin("log", "--summary", "--since", "1h")
        self.assertEqual(code, 0)
        rows = [line.split("\t")[:3] for line in out.splitlines()]
        self.assertEqual(
            rows,
            [
                ["address", "outcome", "attempts"],
                ["192.0.2.1", "bad_password", "2"],
                ["2001:db8::1", "bad_password", "1"],
                ["2001:db8::1", "unknown_user", "1"],
            ],
        )

    def follow(self, *steps, words=()):
        """What is shown while the steps happen, one between two looks."""
        waits = iter(steps)

        def sleep(seconds):
            step = next(waits, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        with mock.patch("admin.time.sleep", sleep):
            return self.log("--follow", *words)

    def test_is_followed_until_ctrl_c(self):
        def add():
            self.add(("192.0.2.7", "no_key", "bob", 0))

        rows = self.follow(add, lambda: None, words=("--last", "1"))
        self.assertEqual(rows, [*self.expected(4), ("192.0.2.7", "no_key", "bob")])

    def empty(self, *tables):
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            for table in ("auth_outcomes", "auth_logs", *tables):
                other.execute(f"DELETE FROM {table}")

    def test_is_followed_beyond_its_being_emptied(self):
        self.follow_while_emptied()

    def test_is_followed_when_its_numbers_begin_anew(self):
        self.follow_while_emptied("sqlite_sequence")

    def follow_while_emptied(self, *tables):
        def empty():
            self.empty(*tables)

        def add():
            self.add(("192.0.2.7", "no_key", "bob", 0), ("192.0.2.8", "success", "bob", 0))

        def both():
            empty()
            add()

        expected = [("192.0.2.7", "no_key", "bob"), ("192.0.2.8", "success", "bob")]
        self.assertEqual(self.follow(empty, add), [*self.expected(0, 1, 2, 3, 4), *expected])
        self.add(*self.ROWS)
        before = self.log()
        self.assertEqual(self.follow(both), [*before, *expected])

    def test_is_followed_no_longer_once_the_database_was_replaced(self):
        def replace():
            self.assertFalse(os.path.exists(f"{self.path}.old"))  # it looked once more, and ended
            os.rename(self.path, f"{self.path}.old")
            shutil.copy(f"{self.path}.old", self.path)

        with mock.patch("admin.time.sleep", lambda seconds: replace()):
            code, _, err = self.admin("log", "--follow")
        self.assertEqual(code, 1)
        self.assertIn("was deleted or replaced", err)

    def test_is_followed_without_reading_again_what_was_not_wanted(self):
        looked, real = [], LoginLog.rows

        def rows(kept, wanted, after=0):
            looked.append(after)
            return real(kept, wanted, after)

        def add():
            self.add(("192.0.2.7", "no_key", "bob", 0))

        with mock.patch.object(LoginLog, "rows", rows):
            self.assertEqual(self.follow(add, add, words=("--user", "nobody")), [])
        self.assertEqual(looked, [0, len(self.ROWS), len(self.ROWS) + 1])

    def test_refuses_filters_that_cannot_be_meant(self):
        for words in (("--outcome", "maybe"), ("--address", "home"), ("--since", "yesterday"),
                      ("--last", "0"), ("--summary", "--follow"), ("--user", "a:b")):  # fmt: skip
            with self.subTest(words=words):
                code, out, err = self.admin("log", *words)
                self.assertEqual((code != 0, out, err.count("\n")), (True, "", 1))


class KeysTest(AdminTest):
    """A server and the operator on one file; keys are not made anew for every test."""

    lines: list[str] = []

    def setUp(self):
        super().setUp()
        ready = ready_keys()
        ready.start()
        self.addCleanup(ready.stop)

    def open_server(self, environ=ENVIRON, **values) -> server.App:
        """What a server makes of the file; the secret of the tests unless told otherwise."""
        config = settings.make_settings({"db": str(self.path), "argon2": "t=1,m=8,p=1", **values})
        app = server.open_app(
            config,
            dict(environ),
            "http://127.0.0.1:1",
            Inline(),  # type: ignore[arg-type]
            httpd.Stats(),
            self.lines.append,
        )
        self.addCleanup(app.database.close)
        return app

    def listed(self, environ=None) -> list[list[str]]:
        code, out, _ = self.admin("keys", "list", environ=environ)
        self.assertEqual(code, 0)
        return [line.split("\t") for line in out.splitlines()[1:]]

    def states(self) -> list[str]:
        return [row[2] for row in self.listed()]


class Keys(KeysTest):
    def test_of_a_new_database_are_none_and_no_secret_is_made(self):
        self.admin("users", "add", "alice")
        for words, expected in (("list", "kid\texpires\tstate\n"), ("export", '{"keys": []}\n')):
            code, out, _ = self.admin("keys", words, environ={})
            self.assertEqual((code, out), (0, expected))
        self.assertNotIn("keys.db.secret", os.listdir(self.folder))

    def test_are_listed_with_their_state(self):
        app = self.open_server()
        self.assertEqual(self.states(), ["expired", "signing"])
        self.assertEqual(self.listed()[1][0], app.keys.signing_key().kid)

    def test_with_the_wrong_secret_are_refused(self):
        self.open_server()
        for words in (("list",), ("rotate",), ("export",)):
            code, _, err = self.admin("keys", *words, environ={"NOT_MY_KEY": "another one, wrong"})
            self.assertEqual(code, 2)
            self.assertIn("NOT_MY_KEY opens none of the 2 keys", err)

    def test_are_rotated_while_the_server_runs(self):
        app = self.open_server()
        code, out, err = self.admin("keys", "rotate")
        self.assertEqual((code, self.states()), (0, ["expired", "signing", "next"]))
        self.assertIn("it signs from", err)
        app.upkeep.notice_changes()
        self.assertEqual(app.keys.published().keys[1].kid, out.strip())

    def test_are_taken_over_by_a_server_that_nobody_asks(self):
        app = self.open_server()
        _, out, _ = self.admin("keys", "rotate")
        app.upkeep.tick()
        self.assertEqual(app.keys.published().keys[1].kid, out.strip())

    def test_are_rotated_at_once_by_the_settings_of_the_server_not_of_the_command(self):
        app = self.open_server(token_ttl="8h", key_lifetime="60d")
        old = app.keys.signing_key()
        code, out, err = self.admin("keys", "rotate", "--now")
        self.assertEqual(code, 0)
        self.assertIn("refuse new tokens until they fetch it again", err)
        app.upkeep.notice_changes()
        shown = {key.kid: key.exp - time.time() for key in app.keys.published().keys}
        # Tokens of 8 hours and 5 minutes of skew, whatever this command's own defaults are.
        self.assertAlmostEqual(shown[old.kid], 8 * 3600 + 300, delta=10)
        self.assertAlmostEqual(shown[out.strip()], 60 * 86_400, delta=10)

    def test_can_be_rotated_before_the_server_ever_ran(self):
        self.assertEqual(self.admin("keys", "rotate")[0], 0)
        self.assertEqual(self.states(), ["expired", "signing"])

    def test_are_revoked_at_once_and_replaced_where_none_is_left(self):
        app = self.open_server()
        old = app.keys.signing_key().kid
        code, out, err = self.admin("keys", "revoke", old)
        self.assertEqual(code, 0)
        self.assertIn("caches for up to 300 s", err)
        self.assertEqual(err.count("\n"), 1, err)  # no alarm about what was asked for
        app.upkeep.notice_changes()
        self.assertEqual([key.kid for key in app.keys.published().keys], [out.strip()])

    def test_are_not_replaced_if_told_so(self):
        app = self.open_server()
        words = ("keys", "revoke", app.keys.signing_key().kid, "--no-replacement")
        code, out, err = self.admin(*words)
        self.assertEqual((code, out, err.count("\n")), (0, "", 2), err)
        self.assertTrue(err.splitlines()[1].startswith("no key is left: /auth answers 404"), err)
        app.upkeep.notice_changes()
        app.upkeep.tick()
        self.assertEqual(app.keys.published().keys, ())

    def test_are_revoked_without_hiding_what_the_opening_found(self):
        app = self.open_server()
        self.admin("keys", "rotate")
        app.database.write(lambda c: c.execute("UPDATE keys SET exp = exp + 1 WHERE kid = 1"))
        code, _, err = self.admin("keys", "revoke", app.keys.signing_key().kid)
        self.assertEqual(code, 0)
        self.assertIn("row-1", err.splitlines()[0])

    def test_with_a_hyphen_in_front_are_revoked_like_any_other(self):
        key = key_with_a_hyphen()
        for words in ((), ("--no-replacement",)):
            with mock.patch("jwksd.store.keystore.generate", lambda: key):
                self.admin("keys", "rotate", "--now")
            kid = kid_of(key.public_key())
            self.assertIn(kid, [row[0] for row in self.listed()])
            code, _, err = self.admin("keys", "revoke", kid, *words)
            self.assertEqual(code, 0, err)
            self.assertNotIn(kid, [row[0] for row in self.listed()])

    def test_unknown_cannot_be_revoked(self):
        self.open_server()
        code, out, err = self.admin("keys", "revoke", "nobody")
        self.assertEqual((code, out, err.count("\n")), (1, "", 1))

    def test_are_exported_as_the_server_publishes_them(self):
        app = self.open_server()
        self.admin("keys", "rotate")
        app.upkeep.notice_changes()
        code, out, _ = self.admin("keys", "export")
        self.assertEqual((code, json.loads(out)), (0, app.keys.published().document()))
        self.assertNotIn('"d"', out)

    def test_are_exported_as_pem_each_with_its_kid_and_the_signing_key_first(self):
        app = self.open_server()
        self.admin("keys", "rotate")
        app.upkeep.notice_changes()
        code, out, _ = self.admin("keys", "export", "--pem")
        pattern = r"# kid (\S+)\n(-----BEGIN PUBLIC KEY-----\n[^-]+-----END PUBLIC KEY-----\n)"
        blocks = re.findall(pattern, out)
        self.assertEqual((code, "".join(f"# kid {kid}\n{pem}" for kid, pem in blocks)), (0, out))
        keys = [public_jwk(load_pem_public_key(pem.encode())) for _, pem in blocks]  # type: ignore[arg-type]
        self.assertEqual(keys, app.keys.published().document()["keys"])
        self.assertEqual([kid for kid, _ in blocks], [key["kid"] for key in keys])

    def test_are_exported_as_nothing_where_there_are_none(self):
        self.admin("users", "add", "alice")
        self.assertEqual(self.admin("keys", "export", "--pem"), (0, "", ""))

    def test_of_any_expiry_are_listed(self):
        app = self.open_server()
        app.database.write(
            lambda c: c.execute("INSERT INTO keys VALUES (8, 'x', 1000000000000000), (9, 'x', 'y')")
        )
        expected = [["row-8", "1000000000000000", "unreadable"], ["row-9", "'y'", "unreadable"]]
        self.assertEqual(self.listed()[2:], expected)


class APasswordThatCannotBeRead(KeysTest):
    def test_is_not_called_a_lost_answer(self):
        unreadable = mock.Mock()
        unreadable.read.side_effect = OSError("no such device")
        garbled = io.TextIOWrapper(io.BytesIO(b"pass\xff"), encoding="utf-8")
        for stdin in (unreadable, garbled):
            with self.subTest(stdin=stdin):
                code, out, err = self.admin("users", "add", "carl", "--password-stdin", stdin=stdin)
                self.assertEqual((code, out, err.count("\n")), (1, "", 1))
                self.assertIn("the password could not be read", err)
        self.assertEqual(self.admin("users", "list")[1].count("\n"), 1)


class Secrets(KeysTest):
    NEW = {"NOT_MY_KEY": "another secret, of the tests"}
    BOTH = {**NEW, "NOT_MY_KEY_PREVIOUS": ENVIRON["NOT_MY_KEY"]}

    def test_are_changed_with_rekey(self):
        self.open_server()
        before = self.listed()
        self.assertEqual(self.admin("rekey", "--dry-run", environ=self.BOTH)[:2], (0, "2\n"))
        self.assertEqual(self.listed(), before)
        code, out, err = self.admin("rekey", environ=self.BOTH)
        self.assertEqual((code, out), (0, "2\n"))
        self.assertIn("unset NOT_MY_KEY_PREVIOUS", err)
        self.assertEqual(self.listed(self.NEW), before)
        self.assertEqual(self.admin("keys", "list")[0], 2)

    def test_that_were_generated_are_changed_for_others(self):
        self.open_server({})
        old = self.path.with_name("old.secret")
        os.rename(f"{self.path}.secret", old)
        both = {"NOT_MY_KEY_PREVIOUS_FILE": str(old)}
        self.assertEqual(self.admin("rekey", environ=both)[:2], (0, "2\n"))
        self.assertEqual([row[2] for row in self.listed({})], ["expired", "signing"])

    def test_are_not_changed_where_there_is_nothing_to_seal(self):
        self.admin("users", "add", "alice")
        code, _, err = self.admin("rekey", environ=self.BOTH)
        self.assertEqual((code, err.count("\n")), (1, 1))

    def test_are_not_changed_where_neither_opens_everything(self):
        app = self.open_server()
        app.database.write(lambda c: c.execute("INSERT INTO keys VALUES (9, 'PEM', 1)"))
        code, _, err = self.admin("rekey", environ=self.BOTH)
        self.assertEqual(code, 2)
        self.assertIn("row-9", err)
        self.assertEqual(len(self.listed()), 3)


class Backups(KeysTest):
    def test_made_while_the_server_writes_restore_keys_accounts_and_log(self):
        app = self.open_server()
        password = app.accounts.register("alice", None)
        stop = threading.Event()

        def write():
            while not stop.is_set():
                app.accounts.record("192.0.2.1", "unknown_user", None, Future(), None)
                time.sleep(0.001)

        writer = threading.Thread(target=write)
        writer.start()
        copy = self.folder / "copy.db"
        try:
            code, out, err = self.admin("backup", str(copy))
        finally:
            stop.set()
            writer.join()
        self.assertEqual((code, out), (0, ""))
        self.assertIn("the secret is not in it", err)
        self.assertEqual(stat.S_IMODE(copy.stat().st_mode), 0o600)
        shown = app.keys.published().document()
        app.database.close()
        for file in self.folder.glob("keys.db*"):
            file.unlink()
        os.rename(copy, self.path)
        restored = self.open_server()
        self.assertEqual(restored.keys.published().document(), shown)
        self.assertTrue(restored.accounts.authenticate("alice", password))
        self.assertEqual(restored.database.read("PRAGMA integrity_check"), [("ok",)])

    def test_never_replace_a_file(self):
        self.open_server()
        taken = self.folder / "taken"
        taken.write_text("precious")
        code, _, err = self.admin("backup", str(taken))
        self.assertEqual((code, err.count("\n"), taken.read_text()), (1, 1, "precious"))


class TheCommandLine(AdminTest):
    def test_that_names_no_database_makes_none(self):
        for words in (("users", "list"), ("users", "reset", "a"), ("keys", "list"), ("log",)):
            code, out, err = self.admin(*words)
            self.assertEqual((code, out, err.count("\n")), (2, "", 1))
        self.assertEqual(os.listdir(self.folder), [])

    def test_refuses_keys_that_another_program_stored(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute("CREATE TABLE keys(kid INTEGER PRIMARY KEY, key BLOB, exp INTEGER)")
            other.execute("INSERT INTO keys (key, exp) VALUES ('-----BEGIN', 1)")
            other.commit()
        before = self.path.read_bytes()
        code, _, err = self.admin("keys", "list")
        self.assertEqual(code, 2)
        self.assertIn("did not seal", err)
        self.assertEqual(self.path.read_bytes(), before)

    def test_in_error_is_one_line_and_exit_2(self):
        for words in ((), ("users",), ("users", "rename"), ("users", "add"), ("keys", "list", "x")):
            with self.subTest(words=words):
                code, _, err = self.admin(*words)
                self.assertEqual((code, err.count("\n")), (2, 1), err)

    def test_with_a_file_that_is_no_database_is_exit_2(self):
        self.path.write_bytes(b"letters" * 500)
        code, _, err = self.admin("users", "list")
        self.assertEqual((code, err.count("\n")), (2, 1))


if __name__ == "__main__":
    unittest.main()
