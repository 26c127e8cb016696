"""Names: one person each, for ever; two spellings of one name are one."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import unicodedata
import unittest
from concurrent.futures import Future
from unittest import mock

import admin
from jwksd.ops import settings, startup
from jwksd.store.accounts import Accounts, NameTaken, UnknownUser, enter_names
from jwksd.store.names import Malformed, checked_name, checked_new_name, checked_password, fold
from tests.support import CHEAPEST, AppTest, TemporaryFolder

COST = settings.hash_cost(CHEAPEST)


class Folding(unittest.TestCase):
    def test_makes_one_of_what_people_take_for_one(self):
        for one, other in (("Alice", "alice"), ("STRASSE", "straße"), ("ΣΊΣΥΦΟΣ", "σίσυφος"),
                           ("Ünal", "ünal"), ("K", "\u212a"), ("ﬁn", "fin"),
                           ("\u1fb7", "\u1fbc\u0342")):  # fmt: skip
            self.assertEqual(fold(one), fold(other), one)

    def test_keeps_apart_what_is_apart(self):
        names = ["alice", "alice1", "al1ce", "élice", "алиса", "i", "ı"]
        self.assertEqual(len({fold(name) for name in names}), len(names))


class NewNames(unittest.TestCase):
    def test_that_stand_for_others_are_refused_and_old_ones_still_log_in(self):
        for name in ("\uff41lice", "ﬁn", "x²", "\u212bngstrom" + "\u2460"):
            with self.subTest(name):
                self.assertRaisesRegex(Malformed, "plain ones", checked_new_name, name)
                self.assertEqual(checked_name(name), unicodedata.normalize("NFC", name))

    def test_of_every_script_are_fine(self):
        for name in ("jürgen", "Ångström", "алиса", "田中", "عمر", "o'neil-smith"):
            self.assertEqual(checked_new_name(name), name)


class Passwords(AppTest):
    def test_are_the_same_in_either_spelling_of_an_accent(self):
        nfc, nfd = "caf\u00e9-olé", unicodedata.normalize("NFD", "caf\u00e9-olé")
        self.assertEqual(checked_password(nfd), nfc)
        self.app.accounts.add("alice", None, checked_password(nfd))
        for password in (nfc, nfd):
            self.assertEqual(self.login("alice", password).status, 200)


class NamesTest(TemporaryFolder):
    def setUp(self):
        super().setUp()
        self.database = self.open_database()
        self.accounts = Accounts(self.database, cost=COST)

    def names(self):
        return [name for name, *_ in self.accounts.users()]


class TakenNames(NamesTest):
    def test_are_taken_in_every_case_and_nothing_is_left_of_the_attempt(self):
        self.accounts.register("Straße", None)
        for name in ("straße", "STRASSE", "Strasse"):
            self.assertRaises(NameTaken, self.accounts.register, name, None)
        self.assertEqual(self.names(), ["Straße"])

    def test_are_decided_by_the_commit_where_two_come_at_once(self):
        rows = [self.accounts.new_account(name, None, "x" * 36) for name in ("Ünal", "ünal")]
        # Neither was there when the other was looked for.
        first: Future = Future()
        second: Future = Future()
        self.accounts.insert(rows[0], first, "made")
        self.accounts.insert(rows[1], second, "made")
        self.assertEqual(first.result(10), "made")
        self.assertIsInstance(second.exception(10), NameTaken)
        self.assertEqual(self.names(), ["Ünal"])


class RetiredNames(NamesTest):
    def test_are_never_given_to_a_second_person(self):
        self.accounts.register("bob", None)
        self.accounts.delete("bob")
        self.assertEqual(self.names(), [])
        for name in ("bob", "BOB"):
            self.assertRaises(NameTaken, self.accounts.register, name, None)

    def test_can_be_given_back_with_the_deletion_or_later(self):
        self.accounts.register("bob", None)
        self.accounts.delete("bob", free=True)
        self.accounts.register("bob", None)
        self.accounts.delete("bob")
        self.accounts.free("bob")
        self.accounts.register("bob", None)

    def test_that_are_in_use_cannot_be_given_back(self):
        self.accounts.register("bob", None)
        self.assertRaises(UnknownUser, self.accounts.free, "bob")
        self.assertRaises(NameTaken, self.accounts.register, "bob", None)

    def test_include_those_of_accounts_that_another_program_deleted(self):
        self.accounts.register("bob", None)
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("DELETE FROM users")
        self.assertRaises(NameTaken, self.accounts.register, "bob", None)
        self.accounts.free("bob")
        self.accounts.register("bob", None)

    def test_stay_with_an_account_whose_twin_of_an_older_version_is_deleted(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            for name in ("zoë", "ZOË"):
                other.execute("INSERT INTO users (username, password_hash) VALUES (?, '')", (name,))
        enter_names(self.accounts._database)
        self.accounts.delete("ZOË", free=True)
        self.assertRaises(NameTaken, self.accounts.register, "Zoë", None)
        self.assertRaises(UnknownUser, self.accounts.free, "zoë")
        self.accounts.delete("zoë", free=True)
        self.accounts.register("Zoë", None)

    def test_are_given_back_by_the_operator_who_is_told_what_that_means(self):
        self.accounts.register("bob", None)
        code, err = self.admin("users", "delete", "bob")
        self.assertEqual((code, err), (0, ""))
        code, err = self.admin("users", "add", "Bob")
        self.assertEqual((code, "taken" in err), (1, True))
        code, err = self.admin("users", "delete", "bob", "--free")
        self.assertEqual((code, "tokens" in err), (0, True))
        self.assertEqual(self.admin("users", "add", "Bob")[0], 0)
        code, err = self.admin("users", "delete", "nobody", "--free")
        self.assertEqual((code, "no user" in err), (1, True))

    def admin(self, *words):
        out, err = io.StringIO(), io.StringIO()
        cheapest = mock.patch.dict("os.environ", {"JWKS_ARGON2": CHEAPEST})
        with cheapest, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = admin.main(["--db", str(self.path), *words])
        return code, err.getvalue()


class ANameOfAnOlderVersion(TemporaryFolder):
    """A version 1 file knows no folded names and has accounts that nobody takes away."""

    def setUp(self):
        super().setUp()
        with contextlib.closing(self.open_database()) as database:
            users = [(1, "Ünal"), (2, "ünal"), (3, "bob"), (4, "\uff41lice")]
            database.write(
                lambda c: c.executemany(
                    "INSERT INTO users (id, username, password_hash) VALUES (?, ?, '')", users
                )
            )
        with contextlib.closing(sqlite3.connect(self.path)) as old, old:
            old.execute("DROP TABLE account_names")
            old.execute("DROP TABLE account_claims")
            old.execute("PRAGMA user_version=1")

    def open(self):
        database = startup.open_database(str(self.path))
        self.addCleanup(database.close)
        return Accounts(database, cost=COST)

    def test_is_entered_when_the_file_is_opened(self):
        accounts = self.open()
        self.assertEqual(len(accounts.users()), 4)
        for name in ("BOB", "ÜNAL", "ALICE"):
            self.assertRaises(NameTaken, accounts.register, name, None)
        self.assertEqual(accounts.twins(), [("Ünal", "ünal")])

    def test_is_entered_whatever_number_it_has(self):
        accounts = self.open()
        accounts.register("carol", None)
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("INSERT INTO users (id, username, password_hash) VALUES (99, 'z', '')")
        accounts.register("dora", None)
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute("INSERT INTO users (id, username, password_hash) VALUES (50, 'Zoë', '')")
        self.assertRaises(NameTaken, self.open().register, "ZOË", None)

    def test_that_is_no_text_is_no_reason_not_to_start(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute(
                "INSERT INTO users (username, password_hash) VALUES (CAST(x'626fff' AS TEXT), '')"
            )
        accounts = self.open()
        self.assertEqual(len(accounts.users()), 5)
        self.assertRaises(NameTaken, accounts.register, "BOB", None)

    def test_is_entered_too_if_a_server_of_version_1_adds_it_meanwhile(self):
        with contextlib.closing(sqlite3.connect(self.path)) as old:
            old.execute("SELECT * FROM users").fetchall()
            self.open()
            with old:
                old.execute("INSERT INTO users (username, password_hash) VALUES ('Zoë', '')")
            self.assertRaises(NameTaken, self.open().register, "zoë", None)


if __name__ == "__main__":
    unittest.main()
