"""Claims of an account: set by the operator, bounded, in the next token, never over ours."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import unittest
from unittest import mock

import admin
import jwt_minimal
from jwksd.store import claims
from jwksd.store.accounts import UnknownUser
from jwksd.store.claims import BadClaim
from tests.support import CHEAPEST, AppTest


class Changes(unittest.TestCase):
    def test_are_text_json_or_a_removal(self):
        for change, expected in (
            ("role=editor", ("role", "editor")),
            ("scope=read write", ("scope", "read write")),
            ("level:=3", ("level", 3)),
            ('groups:=["a","b"]', ("groups", ["a", "b"])),
            ("admin:=false", ("admin", False)),
            ("role=", ("role", None)),
            ("note=a=b:=c", ("note", "a=b:=c")),
            ("https://hasura.io/jwt/claims:={\"x-hasura-user-id\":\"7\"}",
             ("https://hasura.io/jwt/claims", {"x-hasura-user-id": "7"})),
            ("https://example.org/role=editor", ("https://example.org/role", "editor")),
        ):  # fmt: skip
            with self.subTest(change):
                self.assertEqual(claims.parse(change), expected)

    def test_that_cannot_be_meant_are_named(self):
        for change, reason in (
            ("role", "CLAIM=TEXT"), ("=x", "1 to 256"), (":=1", "1 to 256"),
            ("a" * 257 + "=x", "1 to 256"), ("a\tb=x", "printable"),
            ("x:=", "not JSON"), ("x:={", "not JSON"), ("x:=NaN", "NaN"), ("x:=[1,]", "not JSON"),
            ('x:={"a":1,"a":2}', "twice"), ('x:="\\ud800"', "not JSON"), ("x:=null", "remove"),
            ("x:=" + "[" * 9 + "]" * 9, "nested"), ("x:=" + "[" * 100_000, "nested"),
            ("x:=1e400", "too large"), ('x:={"a":[-1e999]}', "too large"),
            ("x=\udcff", "UTF-8"), ("x:=" + "9" * 5000, "JSON"),
        ):  # fmt: skip
            with self.subTest(change[:40]), self.assertRaisesRegex(BadClaim, reason):
                claims.changed({}, [change])

    def test_never_touch_what_is_the_servers(self):
        for name in claims.RESERVED:
            for change in (f"{name}=x", f"{name}:=1", f"{name}="):
                self.assertRaisesRegex(BadClaim, "server's", claims.parse, change)

    def test_nor_what_some_reader_takes_for_it(self):
        for name in (
            "ISS",
            "Sub",
            "eXp",
            "\u017fub",
            "i\u017fs",
            "\u0131ss",
            "\uff53\uff55\uff42",
            "CNF",
        ):
            self.assertRaisesRegex(BadClaim, "server's", claims.parse, f"{name}=x")
            self.assertEqual(claims.read(json.dumps({name: "x", "role": "a"})), {"role": "a"})

    def test_are_bounded_together(self):
        claims.changed({}, ["a=" + "x" * 2040])
        self.assertRaisesRegex(BadClaim, "2048 octets", claims.changed, {}, ["a=" + "x" * 2041])
        self.assertRaisesRegex(BadClaim, "2048 octets", claims.changed, {}, ["a=" + "é" * 1021])
        many = [f"c{n}=x" for n in range(32)]
        self.assertEqual(len(claims.changed({}, many)), 32)
        self.assertRaisesRegex(BadClaim, "at most 32", claims.changed, {}, [*many, "d=x"])

    def test_that_another_program_stored_count_as_none(self):
        for stored in ("", "{", "[]", "7", None, "[" * 100_000):
            self.assertEqual(claims.read(stored), {})
        self.assertEqual(claims.read('{"iss":"evil","role":"a"}'), {"role": "a"})


class Tokens(AppTest):
    settings = {"auth_limit": "off"}

    def setUp(self):
        super().setUp()
        self.password = self.register("alice")

    def token_claims(self):
        response = self.login("alice", self.password)
        token = json.loads(response.body)["token"]
        jwks = json.loads(self.call("GET", "/.well-known/jwks.json").body)
        return jwt_minimal.decode(token, jwks, now=self.clock.now)

    def test_carry_them_beside_ours(self):
        self.app.accounts.set_claims("alice", ["role=editor", 'groups:=["a"]'])
        found = self.token_claims()
        self.assertEqual((found["role"], found["groups"]), ("editor", ["a"]))
        self.assertEqual(found.keys(), {"iss", "sub", "iat", "nbf", "exp", "jti", "role", "groups"})

    def test_carry_a_change_at_once_also_when_the_password_is_remembered(self):
        self.assertNotIn("role", self.token_claims())
        for role in ("editor", "reader"):
            self.app.accounts.set_claims("alice", [f"role={role}"])
            self.assertEqual(self.token_claims()["role"], role)
        self.app.accounts.set_claims("alice", ["role="])
        self.assertNotIn("role", self.token_claims())

    def test_carry_a_change_that_another_process_made(self):
        self.token_claims()
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute('INSERT INTO account_claims VALUES (1, \'{"role":"x","sub":"eve"}\')')
        found = self.token_claims()
        self.assertEqual((found["role"], found["sub"]), ("x", "alice"))

    def test_come_to_none_where_no_token_could_carry_them(self):
        for stored in ('{"x":NaN}', '{"x":1e400}', '{"x":"\\ud800"}', '{"x":1,"x":2}'):
            with contextlib.closing(sqlite3.connect(self.path)) as other, other:
                other.execute("INSERT OR REPLACE INTO account_claims VALUES (1, ?)", (stored,))
            self.assertNotIn("x", self.token_claims())

    def test_are_those_of_the_commit_where_a_change_comes_in_between(self):
        user = self.app.accounts.authenticate("alice", self.password)
        self.app.accounts.set_claims("alice", ["role=editor"])
        self.assertNotEqual(user.claims, self.app.accounts.authenticate("alice", self.password))
        self.assertEqual(self.token_claims()["role"], "editor")

    def test_of_one_account_are_not_anothers_and_end_with_it(self):
        self.register("bob")
        self.app.accounts.set_claims("bob", ["role=admin"])
        self.assertNotIn("role", self.token_claims())
        self.app.accounts.delete("bob")
        self.assertEqual(self.app.database.read("SELECT * FROM account_claims"), [])
        self.assertRaises(UnknownUser, self.app.accounts.claims, "bob")

    def test_do_not_come_from_the_email_address_of_a_registration(self):
        self.call("POST", "/register", {"username": "carol", "email": "root@example.org"})
        self.assertEqual(self.app.accounts.claims("carol"), {})


class TheCommand(AppTest):
    def admin(self, *words):
        out, err = io.StringIO(), io.StringIO()
        cheapest = mock.patch.dict("os.environ", {"JWKS_ARGON2": CHEAPEST})
        with cheapest, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = admin.main(["--db", str(self.path), "users", "claims", *words])
        return code, out.getvalue(), err.getvalue()

    def test_shows_and_sets(self):
        self.register("alice")
        self.assertEqual(self.admin("alice"), (0, "claim\tvalue\n", ""))
        shown = 'claim\tvalue\nrole\t"editor"\nlevel\t3\n'
        self.assertEqual(self.admin("alice", "role=editor", "level:=3"), (0, shown, ""))
        self.assertEqual(self.admin("alice"), (0, shown, ""))
        self.assertEqual(self.admin("alice", "role="), (0, "claim\tvalue\nlevel\t3\n", ""))

    def test_changes_all_or_nothing(self):
        self.register("alice")
        code, _, err = self.admin("alice", "role=editor", "sub=eve")
        self.assertEqual((code, err.count("\n")), (1, 1))
        self.assertEqual(self.admin("alice"), (0, "claim\tvalue\n", ""))

    def test_neither_breaks_its_list_nor_reaches_the_terminal(self):
        self.register("alice")
        _, out, _ = self.admin("alice", 'note:="a\\u001b[2J\\t\\n"')
        self.assertEqual(out.count("\n"), 2)
        self.assertNotIn("\x1b", out)

    def test_names_who_is_not_there(self):
        code, _, err = self.admin("nobody", "role=x")
        self.assertEqual((code, "no user" in err), (1, True))


if __name__ == "__main__":
    unittest.main()
