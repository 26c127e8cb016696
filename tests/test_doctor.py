"""`admin.py doctor` on real files: what it finds, what it advises, and that it changes nothing."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
import unittest
from concurrent.futures import Future
from unittest import mock

from jwksd.httpd import json_response
from jwksd.ops import doctor
from jwksd.store.accounts import Accounts, write_attempts
from jwksd.store.database import CannotOpen
from jwksd.store.logins import Attempt, utc_text
from jwksd.store.sqlite import SQLite
from tests.test_admin import ENVIRON, KeysTest

DAY = 86_400
Report = dict[str, tuple[str, str]]  # check -> state, finding


def parsed(output: str) -> Report:
    """The table; every line must have three fields, and every check one line."""
    heading, *lines = output.splitlines()
    assert heading == "check\tstate\tfinding", heading
    rows = [line.split("\t") for line in lines]
    report = {check: (state, text) for check, state, text in rows}
    assert len(report) == len(rows), output
    return report


class DoctorTest(KeysTest):
    def setUp(self):
        super().setUp()
        # What the machine of the tests has is not what they are about.
        sound = mock.patch("jwksd.ops.doctor.SQLITE_SOUND", sqlite3.sqlite_version_info)
        sound.start()
        self.addCleanup(sound.stop)

    def doctor(self, environ=None) -> tuple[int, Report]:
        before = self.contents()
        code, out, err = self.admin("doctor", environ=environ)
        self.assertEqual(self.contents(), before)
        report = parsed(out)
        # The exit code, the summary and the table never disagree.
        problems = sum(state == "problem" for state, _ in report.values())
        self.assertEqual((code != 0, err.count("\n")), (problems > 0, 1 if problems else 0), out)
        return code, report

    def contents(self) -> dict[str, bytes]:
        """Every file; but not the index of the log, which any reader may renew."""
        return {
            path.name: path.read_bytes() if path.suffix != ".db-shm" else b""
            for path in sorted(self.folder.iterdir())
            if path.is_file()
        }

    def assertFinds(self, check: str, state: str, *parts: str, environ=None) -> None:
        """That this check, and no other, is not ok, and says what to do."""
        code, report = self.doctor(environ)
        self.assertEqual({c: s for c, (s, _) in report.items() if s != "ok"}, {check: state})
        for part in parts:
            self.assertIn(part, report[check][1])
        self.assertEqual(code, 1 if state == "problem" else 0)

    def make(self, environ=ENVIRON, **values) -> None:
        """What a server leaves that was started and stopped."""
        self.open_server(environ, **values).database.close()

    def change(self, sql: str, *parameters: object) -> None:
        """What another program does to the file, which leaves no log."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(sql, parameters)
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class ASoundInstallation(DoctorTest):
    def test_is_ok_in_every_row(self):
        self.make()
        self.admin("users", "add", "alice")
        code, report = self.doctor()
        self.assertEqual((code, {state for state, _ in report.values()}), (0, {"ok"}), report)
        self.assertEqual(set(report), {*doctor.OUTSIDE, "database", *doctor.INSIDE})
        self.assertEqual(report["keys"][1], "2, all of them open")
        self.assertEqual(report["users"][1], "1")

    def test_is_ok_while_a_server_has_it_open_and_what_that_wrote_last_is_seen(self):
        app = self.open_server()
        app.accounts.register("alice", None)
        code, report = self.doctor()
        self.assertEqual((code, {state for state, _ in report.values()}), (0, {"ok"}), report)
        self.assertEqual(report["users"][1], "1")
        self.assertIn("a server has the database open", report["wal"][1])

    def test_is_one_that_was_never_started_and_gets_no_key_and_no_secret(self):
        self.admin("users", "add", "alice")
        code, report = self.doctor(environ={"JWKS_ARGON2": ENVIRON["JWKS_ARGON2"]})
        self.assertEqual((code, report["secret"][0], "keys" in report), (0, "note", False))
        self.assertEqual(os.listdir(self.folder), ["keys.db"])
        self.assertFinds("rotation", "note", "no key yet")

    def test_is_an_empty_file(self):
        self.path.touch(0o600)
        self.assertFinds("database", "note", "next start")


class AMachine(DoctorTest):
    def setUp(self):
        super().setUp()
        self.make()

    def test_with_an_older_sqlite_is_noted(self):
        with mock.patch("jwksd.ops.doctor.SQLITE_SOUND", (99, 1, 2)):
            self.assertFinds("sqlite", "note", "99.1.2", "keep backups")

    def test_with_an_older_package_is_a_problem(self):
        with mock.patch.dict("jwksd.ops.doctor.FLOORS", {"cryptography": (999,)}):
            self.assertFinds("packages", "problem", "cryptography", "pip install")

    def test_without_room_is_a_problem_and_with_too_little_for_a_backup_noted(self):
        for least, state in ((500, "problem"), (100, "note")):
            usage = mock.patch(
                "jwksd.ops.doctor.shutil.disk_usage", lambda path: mock.Mock(free=499)
            )
            with usage, mock.patch("jwksd.ops.doctor.DISK_PROBLEM", least):
                self.assertFinds("disk", state, "free")


class AnAddress(DoctorTest):
    def setUp(self):
        super().setUp()
        self.make()

    def given(self, **values: str) -> dict[str, str]:
        return {**ENVIRON, **{f"JWKS_{name.upper()}": text for name, text in values.items()}}

    def test_of_every_interface_is_no_issuer_for_clients_elsewhere(self):
        for host, shown in (("0.0.0.0", "//127.0.0.1:80"), ("::", "//[::1]:80")):
            environ = self.given(host=host, port="80")
            self.assertFinds("issuer", "note", shown, "set --issuer", environ=environ)
            environ["JWKS_ISSUER"] = "https://issuer.example"
            self.assertEqual(self.doctor(environ)[1]["issuer"], ("ok", "https://issuer.example"))

    def test_that_is_localhost_to_the_one_and_127_0_0_1_to_the_other_is_noted(self):
        for host, name, twin in (
            ("127.0.0.1", "http://localhost:8080/at", "http://127.0.0.1:8080/at"),
            ("localhost", "http://127.0.0.1:8080", "http://localhost:8080"),
            ("localhost", "http://[::1]:8080", "http://localhost:8080"),
        ):
            environ = self.given(host=host, issuer=name)
            refused = f"some (openid-client) refuse it from {twin}"
            self.assertFinds("issuer", "note", f"{name}: give", refused, environ=environ)

    def test_is_told_letter_by_letter(self):
        for values, name in (
            ({}, "http://127.0.0.1:8080"),
            ({"host": "::1", "port": "9"}, "http://[::1]:9"),
            ({"host": "192.0.2.1", "tls_cert": "c", "tls_key": "k"}, "https://192.0.2.1:8080"),
            ({"host": "unix:/run/x", "issuer": "https://issuer.example"}, "https://issuer.example"),
            ({"host": "unix:/run/x"}, "http://localhost"),
        ):
            state, text = self.doctor(self.given(**values))[1]["issuer"]
            self.assertEqual((state, text.split(": give")[0]), ("ok", name))

    def test_has_a_check_of_a_balancer_for_the_keys_and_another_for_logins(self):
        for issuer, base in (("https://h", ""), ("https://h/a/b/", "/a/b")):
            _, text = self.doctor(self.given(issuer=issuer))[1]["balancer"]
            self.assertIn(f"key set is GET {base}/.well-known/jwks.json", text)
            self.assertIn(f"GET {base}/healthz", text)


class Files(DoctorTest):
    def setUp(self):
        super().setUp()
        self.make(environ={})
        self.environ = {"JWKS_ARGON2": ENVIRON["JWKS_ARGON2"]}
        self.secret = self.folder / "keys.db.secret"

    def test_that_others_can_read_are_a_problem(self):
        self.path.chmod(0o640)
        self.assertFinds("files", "problem", "chmod 600 keys.db", environ=self.environ)

    def test_of_the_secret_are_named_with_what_that_means(self):
        _, report = self.doctor(self.environ)
        self.assertIn("who copies both files has the keys", report["secret"][1])
        self.path.unlink()
        self.make()
        self.assertEqual(self.doctor()[1]["secret"], ("ok", "given by NOT_MY_KEY"))

    def test_of_the_secret_that_others_can_read_is_a_problem(self):
        self.secret.chmod(0o640)
        self.assertFinds("secret", "problem", "chmod 600", "rekey", environ=self.environ)

    @unittest.skipUnless(hasattr(os, "geteuid") and os.geteuid() == 0, "only root gives files away")
    def test_of_different_users_are_a_problem(self):
        os.chown(self.path, 65_534, -1)
        self.assertFinds("owner", "problem", "another user", "chown", environ=self.environ)

    def test_in_a_directory_where_anybody_may_replace_them_are_a_problem(self):
        self.folder.chmod(0o777)
        self.assertFinds("directory", "problem", "chmod o-w", environ=self.environ)
        self.folder.chmod(0o1777)
        self.assertEqual(self.doctor(self.environ)[0], 0)

    def test_that_are_not_writable_are_a_problem(self):
        with mock.patch(
            "jwksd.ops.doctor.os.access", lambda path, mode: path != self.path or mode == 4
        ):
            self.assertFinds(
                "files", "problem", "not for this user to write: keys.db;", environ=self.environ
            )
        with mock.patch("os.access", lambda path, mode: path != self.folder):
            self.assertFinds("directory", "problem", "not writable", environ=self.environ)

    def test_of_a_log_that_is_never_taken_over_are_noted(self):
        self.open_server(environ={}).accounts.register("alice", None)
        with mock.patch("jwksd.ops.doctor.WAL_LARGE", 1000):
            self.assertFinds("wal", "note", "a reader", environ=self.environ)

    def test_of_a_log_without_its_index_are_noted_and_left_alone(self):
        app = self.open_server(environ={})
        app.accounts.register("alice", None)
        copies = {end: (self.folder / f"keys.db{end}").read_bytes() for end in ("", "-wal")}
        app.database.close()
        for end, content in copies.items():
            (self.folder / f"keys.db{end}").touch(0o600)
            (self.folder / f"keys.db{end}").write_bytes(content)
        self.assertFinds("wal", "note", "start the server", environ=self.environ)


class ADatabase(DoctorTest):
    def test_that_is_not_there_is_exit_2_and_stays_away(self):
        code, report = self.doctor()
        self.assertEqual((code, report["database"][0]), (2, "problem"))
        self.assertIn("name it with --db", report["database"][1])
        self.assertEqual(os.listdir(self.folder), [])

    def test_in_a_directory_that_is_not_there_is_exit_2(self):
        self.path = self.folder / "nowhere" / "keys.db"
        code, report = self.doctor()
        self.assertEqual((code, report["directory"][0]), (2, "problem"))

    def test_that_is_no_file_or_not_for_this_user_is_exit_2(self):
        self.path.mkdir()
        code, report = self.doctor()
        self.assertEqual(code, 2)
        self.assertIn("it is not a file", report["database"][1])
        self.path.rmdir()
        self.make()
        with mock.patch("os.access", lambda path, mode: False):
            code, report = self.doctor()
        self.assertEqual(code, 2)
        self.assertIn("this user may not read it", report["database"][1])

    def test_that_is_none_is_exit_2(self):
        self.path.touch(0o600)
        self.path.write_bytes(b"letters" * 500)
        code, report = self.doctor()
        self.assertEqual((code, "integrity" in report), (2, False))
        self.assertIn("not a database", report["database"][1])

    def test_of_another_program_is_exit_2(self):
        self.path.touch(0o600)
        for sql, part in (
            ("CREATE TABLE keys(kid INTEGER PRIMARY KEY, key BLOB, exp INTEGER)", None),
            ("INSERT INTO keys (key, exp) VALUES ('-----BEGIN', 1)", "did not seal"),
            ("CREATE TABLE users(id INTEGER, name TEXT)", "name another file"),
        ):
            self.change(sql)
            code, report = self.doctor()
            self.assertEqual(code, 2 if part else 0)
            self.assertIn(part or "next start", report["database"][1])

    def test_of_a_newer_version_is_exit_2(self):
        self.make()
        self.change("PRAGMA user_version=99")
        code, report = self.doctor()
        self.assertEqual(code, 2)
        self.assertIn("newer", report["database"][1])

    def test_without_one_of_its_tables_is_exit_2_and_gets_no_empty_one(self):
        self.make()
        self.change("DROP TABLE auth_outcomes")
        code, report = self.doctor()
        self.assertEqual((code, report["database"][0]), (2, "problem"))
        self.assertIn("auth_outcomes is missing; restore a backup", report["database"][1])
        with self.assertRaisesRegex(CannotOpen, "auth_outcomes is missing"):
            self.open_database()

    def test_with_a_damaged_page_is_a_problem_that_hides_no_other(self):
        self.make()
        self.admin("users", "add", "alice")
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            ((page,),) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'users'"
            ).fetchall()
            ((size,),) = connection.execute("PRAGMA page_size").fetchall()
        with open(self.path, "r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
        code, report = self.doctor({**ENVIRON, "NOT_MY_KEY": "another one, wrong"})
        self.assertEqual(code, 1)
        found = {check for check, (state, _) in report.items() if state == "problem"}
        self.assertEqual(found, {"integrity", "users", "logins", "keys"})
        self.assertIn("restore a backup", report["integrity"][1])

    def test_with_any_page_damaged_or_cut_short_is_told_without_a_traceback(self):
        self.make()
        self.admin("users", "add", "alice")
        whole = self.path.read_bytes()
        for at in range(0, len(whole), 4096):
            for damaged in (whole[:at], whole[:at] + b"\xa5" * 4096 + whole[at + 4096 :]):
                with self.subTest(at=at, size=len(damaged)):
                    self.path.write_bytes(damaged)
                    code, _ = self.doctor()
                    self.assertIn(code, (1, 2) if damaged else (0,))


class Secrets(DoctorTest):
    def setUp(self):
        super().setUp()
        self.make()

    def test_that_open_no_key_are_a_problem(self):
        environ = {**ENVIRON, "NOT_MY_KEY": "another one, wrong"}
        self.assertFinds("keys", "problem", "NOT_MY_KEY opens none of the 2", environ=environ)

    def test_that_hide_the_generated_one_are_told_so(self):
        self.path.unlink()
        self.make(environ={})
        self.assertFinds("keys", "problem", "keys.db.secret is not read while NOT_MY_KEY is set")

    def test_that_are_not_there_are_a_problem_and_none_is_made(self):
        environ = {"JWKS_ARGON2": ENVIRON["JWKS_ARGON2"]}
        self.assertFinds("secret", "problem", "set NOT_MY_KEY", environ=environ)

    def test_that_are_blank_or_short_are_a_problem(self):
        code, report = self.doctor({**ENVIRON, "NOT_MY_KEY": " "})
        self.assertEqual((code, report["secret"][0]), (1, "problem"))
        self.path.unlink()
        self.make(environ={"NOT_MY_KEY": "short"})
        environ = {**ENVIRON, "NOT_MY_KEY": "short"}
        self.assertFinds("secret", "problem", "16 or more", environ=environ)

    def test_that_were_changed_without_rekey_are_noted(self):
        new = {**ENVIRON, "NOT_MY_KEY": "another secret, of the tests"}
        both = {**new, "NOT_MY_KEY_PREVIOUS": ENVIRON["NOT_MY_KEY"]}
        self.assertFinds("keys", "note", "2 keys", "rekey", environ=both)
        self.admin("rekey", environ=both)
        self.assertFinds("keys", "note", "unset it", environ=both)
        self.assertEqual(self.doctor(new)[0], 0)


class Keys(DoctorTest):
    def setUp(self):
        super().setUp()
        self.make()

    def later(self, seconds: float):
        return mock.patch("admin.time.time", lambda: self.now + seconds)

    now = time.time()

    def test_that_do_not_open_are_named_with_what_to_do(self):
        self.change("UPDATE keys SET exp = exp + 1 WHERE kid = 1")
        self.assertFinds("keys", "problem", "row-1", "keys revoke")

    def test_that_stand_there_twice_are_noted(self):
        self.change("INSERT INTO keys (key, exp) SELECT key, exp FROM keys")
        self.assertFinds("keys", "note", "2 rows are copies")

    def test_that_have_all_expired_are_a_problem(self):
        with self.later(31 * DAY):
            self.assertFinds("rotation", "problem", "no unexpired key", "keys rotate")

    def test_that_somebody_deleted_are_a_problem(self):
        self.change("DELETE FROM keys")
        self.assertFinds("rotation", "problem", "no unexpired key")

    def test_that_should_have_followed_by_now_are_a_problem(self):
        with self.later(28.8 * DAY):
            self.assertEqual(self.doctor()[0], 0)
        with self.later(29 * DAY):
            self.assertFinds("rotation", "problem", "overdue since", "start the server")

    def test_are_due_by_the_settings_of_the_server_not_of_the_command(self):
        self.make(key_lead="12d")
        with self.later(18.5 * DAY):
            self.assertFinds("rotation", "problem", "overdue")

    def test_that_live_longer_than_one_made_now_are_noted(self):
        with self.later(-2 * DAY):
            code, report = self.doctor()
        self.assertEqual((code, report["rotation"][0]), (0, "note"))
        self.assertIn("keys rotate", report["rotation"][1])


class UsersAndTheLog(DoctorTest):
    def setUp(self):
        super().setUp()
        self.make()
        self.admin("users", "add", "alice")

    def attempt(self, seconds_ago: float):
        app = self.open_server()
        rows = [Attempt("192.0.2.1", utc_text(time.time() - seconds_ago), None, "unknown_user")]
        app.database.write(lambda connection: write_attempts(connection, rows))
        app.database.close()

    def test_whose_hash_is_foreign_or_too_expensive_are_a_problem(self):
        for value in (
            "scrypt:32768:8:1$salt$hash", b"\xff\xfe", "", "$argon2id$v=19$m=99999999,t=99,p=1$a$b",
        ):  # fmt: skip
            with self.subTest(value=value):
                self.change("UPDATE users SET password_hash = ?", value)
                self.assertFinds("users", "problem", "1 cannot log in", "alice", "users reset")

    def test_whose_name_would_break_the_list_do_not(self):
        self.change("UPDATE users SET password_hash = '', username = ?", "a\tb\nc\u2028\ud7ff")
        self.assertFinds("users", "problem", "a\\tb\\nc")

    def test_whose_hash_has_another_cost_are_noted(self):
        environ = {**ENVIRON, "JWKS_ARGON2": "t=2,m=8,p=1"}
        self.assertFinds("users", "note", "1 of 1", "--argon2 t=2,m=8,p=1", environ=environ)

    def test_are_counted(self):
        self.attempt(2 * DAY)
        self.attempt(DAY)
        code, report = self.doctor()
        self.assertEqual(code, 0)
        since = utc_text(time.time() - 2 * DAY)[:10]
        self.assertIn(f"about 2 attempts since {since}", report["log"][1])

    def test_have_a_newest_login(self):
        self.assertEqual(self.doctor()[1]["logins"], ("ok", "nobody has logged in"))
        app = self.open_server()
        password = app.accounts.reset("alice")
        before = utc_text(time.time())[:19]
        answer: Future = Future()
        user = app.accounts.authenticate("alice", password)
        app.log_attempt("192.0.2.1", "success", user, answer, json_response(200, {}))
        answer.result(10)
        app.database.close()
        _, text = self.doctor()[1]["logins"]
        found = re.fullmatch("the newest at (.*) UTC", text)
        self.assertTrue(before <= found[1] <= utc_text(time.time()), text)

    def test_with_a_last_login_of_another_program_are_told_in_one_line(self):
        for value in ("yesterday\n\t", 5, b"\xff"):
            self.change("UPDATE users SET last_login = ?", value)
            state, text = self.doctor()[1]["logins"]
            self.assertEqual((state, text[:14]), ("ok", "the newest at "))

    def test_that_are_older_than_the_retention_are_noted(self):
        self.attempt(100 * DAY)
        self.assertFinds("log", "note", "--log-retention (90 days")

    def test_from_the_future_put_the_clock_in_question(self):
        self.attempt(-DAY)
        self.assertFinds("clock", "note", "if the clock is behind, set it")


class EveryCheck(DoctorTest):
    def test_that_fails_is_a_row_and_ends_no_other(self):
        self.make()

        def broken(place):
            raise ZeroDivisionError("\x1b[31m\tred")

        with mock.patch.dict(doctor.INSIDE, {"integrity": broken}):
            self.assertFinds("integrity", "problem", "ZeroDivisionError: \\u001b[31m\\u0009red")

    def test_that_may_not_look_says_who_may(self):
        self.make()

        def forbidden(place):
            raise PermissionError(13, "Permission denied", "/there/keys.db")

        with mock.patch.dict(doctor.OUTSIDE, {"files": forbidden}):
            self.assertFinds("files", "problem", "/there/keys.db", "as the server's user")


class ASymbolicLink(DoctorTest):
    def test_leads_to_what_the_server_has_just_written(self):
        (self.folder / "disk").mkdir(mode=0o700)
        self.make()
        self.path.rename(self.folder / "disk" / "real.db")
        self.path.symlink_to(self.folder / "disk" / "real.db")
        with contextlib.closing(SQLite(self.path)) as database:  # as a server that runs
            Accounts(database).register("alice", None)
            report = parsed(self.admin("doctor", environ=ENVIRON)[1])
        self.assertIn("has the database open", report["wal"][1])
        self.assertIn("1 of 1 hashes", report["users"][1])


if __name__ == "__main__":
    unittest.main()
