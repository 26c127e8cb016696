"""admin.py as its user runs it: a command line, standard input, lines out, an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import unittest
from unittest import mock

import admin
import server
from accounts import Accounts, HashCost, InvalidCredentials
from keystore import KeyStore
from tests.support import TemporaryFolder, some_key
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
