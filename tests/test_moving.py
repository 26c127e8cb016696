"""A move to another database: everything arrives, nothing is overwritten, and it goes on."""

from __future__ import annotations

import contextlib
import sqlite3
import unittest
from unittest import mock

from jwksd.store import moving
from jwksd.store.accounts import Accounts, HashCost
from jwksd.store.database import CannotOpen, Database
from jwksd.store.keystore import KeyStore, Policy
from jwksd.store.logins import LoginLog, Wanted
from jwksd.store.sqlite import SQLite
from tests.support import Clock, TemporaryFolder, ready_keys

TABLES = [table.name for table in moving.TABLES]


def contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables, in their order."""
    found = {}
    for table in moving.TABLES:
        columns = ", ".join(moving.READ_AS.get(name, name) for name in table.columns)
        if table.name != "auth_logs":
            found[table.name] = database.read(
                f"SELECT {columns} FROM {table.name} ORDER BY {table.number}"
            )
    found["auth_logs"] = [tuple(row) for row in LoginLog(database, Clock()).rows(Wanted())]
    return found


class Moving(TemporaryFolder):
    def setUp(self):
        super().setUp()
        self.clock = Clock()
        self.source = self.open_database()
        self.fill(self.source)

    def open_target(self) -> Database:
        target = SQLite(self.folder / "target.db")
        self.addCleanup(target.close)
        return target

    def fill(self, database: Database) -> None:
        """Accounts, some of them deleted, claims, keys, a policy, and a log of several pages."""
        accounts = Accounts(database, cost=HashCost(1, 8, 1), clock=self.clock)
        for name in ("alice", "Ärger", "carol", "dave"):
            accounts.add(name, f"{name}@example.org" if name.isascii() else None, "secret of it")
        accounts.set_claims("alice", ["role=editor", 'groups:=["ä"]'])
        accounts.delete("dave")  # the highest number: the next account has another one
        with ready_keys():
            keys = KeyStore(database, b"s" * 16, Policy(), log=print, clock=self.clock)
            keys.remember_policy()
            keys.make_due()
        rows = [
            (f"10.0.0.{n % 7}", f"2026-{n % 12 + 1:02}-01 00:00:00.{n % 1000:03}", n % 3 + 1)
            for n in range(2500)
        ]
        log = "INSERT INTO auth_logs (request_ip, request_timestamp, user_id) VALUES (?, ?, ?)"
        database.write(lambda connection: connection.executemany(log, rows))
        if not database.sql.outcome_in_log:
            outcomes = "INSERT INTO auth_outcomes SELECT id, 'success' FROM auth_logs WHERE id % 2"
            database.write(lambda connection: connection.execute(outcomes))

    def move(self, source: Database, target: Database) -> dict[str, int]:
        moved: dict[str, int] = {}
        moving.move(source, target, lambda table, number, _: moved.__setitem__(table, number))
        return moved

    def test_brings_every_row_with_its_number(self):
        target = self.open_target()
        moved = self.move(self.source, target)
        self.assertEqual(list(moved), TABLES)
        self.assertEqual((moved["users"], moved["auth_logs"], moved["keys"]), (3, 2500, 2))
        self.assertEqual(contents(target), contents(self.source))

    def test_gives_no_number_a_second_time(self):
        target = self.open_target()
        self.move(self.source, target)
        Accounts(target, cost=HashCost(1, 8, 1)).add("erin", None, "another secret")
        self.assertEqual(target.read("SELECT id FROM users WHERE username = 'erin'"), [(5,)])

    def test_goes_on_where_it_was_interrupted(self):
        target = self.open_target()
        cut = mock.patch.object(moving, "copy_logged", side_effect=CannotOpen("cut off"))
        with cut, self.assertRaisesRegex(CannotOpen, "cut off"):
            self.move(self.source, target)
        self.assertEqual(target.read("SELECT count(*) FROM users"), [(3,)])
        self.assertEqual(target.read("SELECT count(*) FROM auth_logs"), [(0,)])
        self.assertEqual(target.read("SELECT count(*) FROM keys"), [(0,)])
        self.move(self.source, target)
        self.assertEqual(contents(target), contents(self.source))

    def test_overwrites_nothing(self):
        target = self.open_target()
        Accounts(target, cost=HashCost(1, 8, 1)).add("somebody", None, "another secret")
        before = contents(target)
        with self.assertRaisesRegex(CannotOpen, "1 rows in users, of which there are 3"):
            self.move(self.source, target)
        self.assertEqual(contents(target), before)

    def test_refuses_a_text_that_not_every_engine_holds(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute("UPDATE users SET email = CAST(x'ff40' AS TEXT) WHERE id = 2")
            other.commit()
        with self.assertRaisesRegex(CannotOpen, "row 2 of users holds a text"):
            self.move(self.source, self.open_target())

    def test_refuses_a_number_that_is_none(self):
        for value in ("abc", 1.5, b"1"):
            with self.subTest(value=value):
                sql = "UPDATE auth_logs SET user_id = ? WHERE id = 7"
                with contextlib.closing(sqlite3.connect(self.path)) as other:
                    other.execute(sql, (value,))
                    other.commit()
                with self.assertRaisesRegex(CannotOpen, "row 7 of auth_logs holds a user_id"):
                    self.move(self.source, self.open_target())

    def test_brings_rows_with_numbers_below_one(self):
        sql = "INSERT INTO auth_logs (id, request_ip) VALUES (?, '::1')"
        rows = [(0,), (-1,), (-(2**63) + 1,)]
        self.source.write(lambda connection: connection.executemany(sql, rows))
        target = self.open_target()
        self.move(self.source, target)
        found = target.read("SELECT count(*), min(id) FROM auth_logs")
        self.assertEqual(found, [(2503, -(2**63) + 1)])

    def test_says_so_if_a_row_could_not_be_read(self):
        cut = mock.patch.object(moving, "pages", lambda source, table: iter(()))
        with cut, self.assertRaisesRegex(CannotOpen, "users has 3 rows, and 0 could be read"):
            self.move(self.source, self.open_target())

    def test_keeps_others_from_writing_to_the_source(self):
        held: list[str] = []

        def look(table: str, number: int, of: int) -> None:
            with contextlib.closing(sqlite3.connect(self.path, timeout=0)) as other:
                try:
                    other.execute("DELETE FROM users")
                except sqlite3.OperationalError as error:
                    held.append(str(error))

        moving.move(self.source, self.open_target(), look)
        self.assertGreater(len(held), len(TABLES))
        self.assertEqual(set(held), {"database is locked"})

    def test_tells_how_far_it_is(self):
        told: list[tuple[str, int, int]] = []
        moving.move(self.source, self.open_target(), lambda *far: told.append(far))
        logged = [(number, of) for table, number, of in told if table == "auth_logs"]
        self.assertEqual(logged, [(n, 2500) for n in (1000, 2000, 2500, 2500)])
        self.assertEqual(list(dict.fromkeys(table for table, _, _ in told)), TABLES)


if __name__ == "__main__":
    unittest.main()
