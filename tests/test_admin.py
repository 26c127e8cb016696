"""admin.py as its user runs it: a command line, standard input, lines out, an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import unittest
from unittest import mock

import admin
import server
from accounts import Accounts, Attempt, HashCost, InvalidCredentials, utc_text, write_attempts
from keystore import KeyStore
from tests.support import ROOT, TemporaryFolder, some_key
from tests.test_keystore import POLICY

ENVIRON = {"NOT_MY_KEY": "a secret of the tests", "JWKS_ARGON2": "t=1,m=8,p=1"}


class AdminTest(TemporaryFolder):
    def admin(self, *words: str, stdin: str = "", environ=None) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        out, err = io.StringIO(), io.StringIO()
        variables = dict(ENVIRON if environ is None else environ)
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(server, "environment", lambda: variables))
            stack.enter_context(mock.patch("sys.stdin", io.StringIO(stdin)))
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


class TheLog(AdminTest):
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
        with mock.patch("accounts.LOG_PAGE", 2):
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

    def test_is_followed_until_ctrl_c(self):
        waits = iter([lambda: self.add(("192.0.2.7", "no_key", "bob", 0)), lambda: None])

        def sleep(seconds):
            step = next(waits, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        with mock.patch("admin.time.sleep", sleep):
            rows = self.log("--follow", "--last", "1")
        self.assertEqual(rows, [*self.expected(4), ("192.0.2.7", "no_key", "bob")])

    def test_ends_quietly_when_its_reader_has_read_enough(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as output:
            process = subprocess.run(
                [sys.executable, "admin.py", "--db", str(self.path), "log"],
                cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=30,
            )  # fmt: skip
        self.assertEqual((process.returncode, process.stderr), (0, b""))

    def test_refuses_filters_that_cannot_be_meant(self):
        for words in (("--outcome", "maybe"), ("--address", "home"), ("--since", "yesterday"),
                      ("--last", "0"), ("--summary", "--follow"), ("--user", "a:b")):  # fmt: skip
            with self.subTest(words=words):
                code, out, err = self.admin("log", *words)
                self.assertEqual((code != 0, out, err.count("\n")), (True, "", 1))


class Keys(AdminTest):
    def test_of_a_new_database_are_none_and_no_secret_is_made(self):
        code, out, _ = self.admin("keys", "list", environ={})
        self.assertEqual((code, out), (0, "kid\texpires\tstate\n"))
        self.assertNotIn("keys.db.secret", os.listdir(self.folder))

    def test_are_listed_with_their_state(self):
        database = self.open_database()
        store = KeyStore(database, ENVIRON["NOT_MY_KEY"].encode(), POLICY, log=self.fail)
        with mock.patch("keystore.generate", side_effect=[some_key(0), some_key(1)]):
            store.make_due()
        code, out, _ = self.admin("keys", "list")
        rows = [line.split("\t") for line in out.splitlines()[1:]]
        self.assertEqual((code, [row[2] for row in rows]), (0, ["expired", "signing"]))
        self.assertEqual(rows[1][0], store.signing_key().kid)

    def test_with_the_wrong_secret_are_refused(self):
        self.test_are_listed_with_their_state()
        code, _, err = self.admin("keys", "list", environ={"NOT_MY_KEY": "another secret, wrong"})
        self.assertEqual(code, 2)
        self.assertIn("NOT_MY_KEY opens none of the 2 keys", err)


class TheCommandLine(AdminTest):
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
