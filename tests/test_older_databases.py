"""A database that any earlier version made opens, with its accounts, keys and login log."""

from __future__ import annotations

import contextlib
import json
import sqlite3

from jwksd.ops.settings import ConfigurationError
from tests.support import AppTest

# What an earlier schema.sql had otherwise; each of them called itself version 1.
SHAPES = {
    "the first": (
        "DROP TABLE account_names",
        "DROP TABLE account_claims",
        "DROP TABLE key_policy",
        "CREATE INDEX auth_logs_user_id ON auth_logs(user_id) WHERE user_id IS NOT NULL",
    ),
    "with the settings of keys": (
        "DROP TABLE account_names",
        "DROP TABLE account_claims",
        "CREATE INDEX auth_logs_user_id ON auth_logs(user_id) WHERE user_id IS NOT NULL",
    ),
    "without the index": ("DROP TABLE account_names", "DROP TABLE account_claims"),
}
TABLES = {"keys", "users", "auth_logs", "auth_outcomes", "key_policy", "account_names",
          "account_claims"}  # fmt: skip


class AnOlderDatabase(AppTest):
    settings = {"auth_limit": "off"}

    def setUp(self):
        super().setUp()
        self.password = self.register("alice")
        self.assertEqual(self.login("alice", self.password).status, 200)
        self.jwks = self.call("GET", "/.well-known/jwks.json").body
        self.app.database.close()
        self.made = self.path.read_bytes()

    def make(self, statements: tuple[str, ...]) -> None:
        self.path.write_bytes(self.made)
        with contextlib.closing(sqlite3.connect(self.path)) as older, older:
            for statement in (*statements, "PRAGMA user_version=1"):
                older.execute(statement)

    def schema(self) -> dict[str, set[str]]:
        with contextlib.closing(sqlite3.connect(self.path)) as file:
            rows = file.execute("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL")
            found: dict[str, set[str]] = {"table": set(), "index": set()}
            for kind, name in rows:
                found[kind].add(name)
        return found

    def test_of_every_shape_opens_and_is_brought_up_to_date(self):
        for shape, statements in SHAPES.items():
            with self.subTest(shape):
                self.make(statements)
                self.app = self.open_app(auth_limit="off")
                self.assertEqual(self.login("alice", self.password).status, 200)
                self.assertEqual(self.call("GET", "/.well-known/jwks.json").body, self.jwks)
                taken = self.call("POST", "/register", {"username": "ALICE"})
                self.assertEqual(taken.status, 409)
                rows = self.app.database.read("SELECT outcome FROM auth_outcomes")
                self.assertEqual(rows, [("success",)] * 2)
                self.app.database.close()
                found = self.schema()
                self.assertEqual(found["table"] - {"sqlite_sequence"}, TABLES)
                self.assertNotIn("auth_logs_user_id", found["index"])

    def test_is_brought_up_to_date_while_a_server_of_the_older_version_runs(self):
        self.make(SHAPES["without the index"])
        older = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(older.close)
        older.execute("PRAGMA journal_mode=WAL")
        older.execute("SELECT * FROM users").fetchall()
        self.app = self.open_app(auth_limit="off")
        older.execute(  # as a login there writes it
            "INSERT INTO auth_logs (request_ip, user_id) SELECT '192.0.2.1', id FROM users"
        )
        self.assertEqual(self.login("alice", self.password).status, 200)
        self.assertEqual(self.app.database.read("PRAGMA user_version"), [(2,)])

    def test_of_a_newer_version_is_refused_with_the_reason(self):
        with contextlib.closing(sqlite3.connect(self.path)) as newer, newer:
            newer.execute("PRAGMA user_version=3")
        with self.assertRaisesRegex(ConfigurationError, "version 3, newer than"):
            self.open_app()


class AVersion2Database(AppTest):
    def test_is_what_a_first_start_makes(self):
        self.assertEqual(self.app.database.read("PRAGMA user_version"), [(2,)])
        names = self.app.database.read("SELECT name FROM sqlite_master WHERE type = 'table'")
        self.assertEqual({name for (name,) in names} - {"sqlite_sequence"}, TABLES)
        self.assertEqual(json.loads(self.call("GET", "/healthz").body), {"status": "ok"})
