"""database.py: acknowledged means on disk, trouble is one exception, the file stays the file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import unittest
from concurrent.futures import Future
from unittest import mock

from jwksd.store import database, sqlite
from jwksd.store.database import CannotOpen, Unavailable
from jwksd.store.sqlite import ReadOnly, SQLite
from tests.httpd_live import wait_until
from tests.support import TemporaryFolder


def append(db, write_rows, row, result):
    """A Future of a row."""
    future: Future = Future()
    db.append(write_rows, row, future, result)
    return future


def insert(ip):
    return lambda connection: (
        connection.execute("INSERT INTO auth_logs (request_ip) VALUES (?)", (ip,)).lastrowid
    )


class Opening(TemporaryFolder):
    def test_makes_a_file_that_only_we_can_read(self):
        self.open_database()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in self.folder.iterdir()}
        self.assertEqual(set(modes.values()), {0o600}, modes)

    def test_makes_exactly_the_columns_of_the_contract(self):
        db = self.open_database()
        for table, columns in sqlite.COLUMNS.items():
            found = tuple(row[1] for row in db.read(f"PRAGMA table_info({table})"))
            self.assertEqual(found, columns)

    def test_keeps_what_an_older_program_stored_in_the_same_tables(self):
        with sqlite3.connect(self.path) as old:
            old.execute(
                "CREATE TABLE users(id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT NOT NULL "
                "UNIQUE, password_hash TEXT NOT NULL, email TEXT UNIQUE, date_registered TIMESTAMP "
                "DEFAULT CURRENT_TIMESTAMP, last_login TIMESTAMP)"
            )
            old.execute("INSERT INTO users (username, password_hash) VALUES ('alice', 'x')")
        old.close()
        db = self.open_database()
        self.assertEqual(db.read("SELECT username FROM users"), [("alice",)])

    def test_refuses_a_file_that_is_not_a_database_and_leaves_it_alone(self):
        self.path.write_bytes(b"a letter to a friend\n" * 100)
        with self.assertRaisesRegex(CannotOpen, "not a database.*--db"):
            self.open_database()
        self.assertEqual(self.path.read_bytes(), b"a letter to a friend\n" * 100)
        self.assertEqual([file.name for file in self.folder.iterdir()], ["keys.db"])

    def test_refuses_tables_with_other_columns_and_leaves_them_alone(self):
        with sqlite3.connect(self.path) as other:
            other.execute("CREATE TABLE users(id INTEGER PRIMARY KEY, nickname TEXT)")
        other.close()
        before = self.path.read_bytes()
        with self.assertRaisesRegex(CannotOpen, "nickname"):
            self.open_database()
        self.assertEqual(self.path.read_bytes(), before)

    def test_refuses_a_schema_so_damaged_that_sqlite_cannot_say_it_in_utf8(self):
        self.open_database().close()
        octets = self.path.read_bytes()
        self.path.write_bytes(
            octets.replace(
                b"tableauth_outcomesauth_outcomes", b"table\xa1uth_outcomes\xa1uth_outcomes"
            ).replace(b"CREATE TABLE auth_outcomes(", b"CREATE TABLE \xa1uth_outcomes;")
        )
        self.assertNotEqual(self.path.read_bytes(), octets)
        with self.assertRaisesRegex(CannotOpen, "damaged"):
            self.open_database()
        with self.assertRaisesRegex(CannotOpen, "damaged"):
            ReadOnly(self.path).require_ours(lambda connection: None)

    def test_refuses_a_file_of_a_newer_version(self):
        with sqlite3.connect(self.path) as newer:
            newer.execute("PRAGMA user_version=99")
        newer.close()
        with self.assertRaisesRegex(CannotOpen, "version 99"):
            self.open_database()

    def test_brings_the_first_files_up_to_date_and_keeps_their_rows(self):
        later = ("account_claims", "account_names", "key_policy")  # joined after the first schema
        current = sorted(self.tables())
        for version in (0, 1):
            for lacking in (later, later[:2]):
                with self.subTest(version=version, lacking=lacking):
                    self.make_early_file(version, lacking)
                    self.assertEqual(sorted(self.tables()), current)
                    self.assertEqual(self.read("SELECT username FROM users"), [("ada",)])

    def make_early_file(self, version, lacking):
        self.path.unlink()
        self.open_database().close()
        with sqlite3.connect(self.path) as early:
            early.execute("INSERT INTO users(username, password_hash) VALUES ('ada', 'x')")
            for table in lacking:
                early.execute(f"DROP TABLE {table}")
            early.execute(f"PRAGMA user_version={version}")
        early.close()

    def tables(self):
        return self.read("SELECT name FROM sqlite_master WHERE type = 'table'")

    def read(self, sql):
        with contextlib.closing(self.open_database()) as database:
            return database.read(sql)

    def test_names_a_missing_directory(self):
        self.path = self.folder / "nowhere" / "keys.db"
        with self.assertRaisesRegex(CannotOpen, "directory does not exist"):
            self.open_database()

    def test_takes_an_empty_file_as_new(self):
        self.path.touch()
        self.assertEqual(self.open_database().read("SELECT count(*) FROM keys"), [(0,)])


class Writing(TemporaryFolder):
    def test_returns_what_the_job_returns_once_others_can_read_it(self):
        db = self.open_database()
        row = db.write(insert("a"))
        with sqlite3.connect(self.path) as other:
            found = other.execute("SELECT id, request_ip FROM auth_logs").fetchall()
        other.close()
        self.assertEqual(found, [(row, "a")])

    def test_a_job_that_raises_undoes_only_itself(self):
        db = self.open_database()
        hold, held = threading.Event(), threading.Event()

        def wait(connection):
            held.set()
            hold.wait(60)

        def fail(connection):
            insert("lost")(connection)
            raise KeyError("mine")

        threads = [threading.Thread(target=db.write, args=(wait,))]
        threads[0].start()
        held.wait(60)
        errors = []

        def failing():
            try:
                db.write(fail)
            except KeyError as error:
                errors.append(error)

        threads += [threading.Thread(target=failing)]
        threads += [threading.Thread(target=db.write, args=(insert(str(n)),)) for n in range(9)]
        for thread in threads[1:]:
            thread.start()
        self.assertTrue(wait_until(lambda: db._writer._queue.qsize() == 10))
        hold.set()
        for thread in threads:
            thread.join(60)
        self.assertEqual(len(errors), 1)
        stored = sorted(db.read("SELECT request_ip FROM auth_logs"))
        self.assertEqual(stored, [(str(n),) for n in range(9)])

    def test_jobs_that_wait_together_share_a_commit(self):
        db = self.open_database()
        hold, held = threading.Event(), threading.Event()

        def wait(connection):
            held.set()
            hold.wait(60)

        stamp = db.stamp()
        first = threading.Thread(target=db.write, args=(wait,))
        first.start()
        held.wait(60)
        threads = [threading.Thread(target=db.write, args=(insert("a"),)) for _ in range(40)]
        for thread in threads:
            thread.start()
        self.assertTrue(wait_until(lambda: db._writer._queue.qsize() == 40))
        hold.set()
        for thread in [first, *threads]:
            thread.join(60)
        # data_version counts the commits of other connections; the waiting job changed nothing.
        self.assertEqual(db.read("SELECT count(*) FROM auth_logs"), [(40,)])
        self.assertEqual(db.stamp(), int(str(stamp)) + 1)

    def test_rows_that_wait_together_are_written_by_one_call(self):
        db = self.open_database()
        hold, held, calls = threading.Event(), threading.Event(), []

        def wait(connection):
            held.set()
            hold.wait(60)

        def write_rows(connection, rows):
            calls.append(rows)
            for row in rows:
                insert(row)(connection)

        first = threading.Thread(target=db.write, args=(wait,))
        first.start()
        held.wait(60)
        told = [append(db, write_rows, str(number), number) for number in range(9)]
        self.assertFalse(any(future.done() for future in told))
        hold.set()
        self.assertEqual([future.result(60) for future in told], [*range(9)])
        first.join()
        self.assertEqual(calls, [[str(number) for number in range(9)]])
        self.assertEqual(len(db.read("SELECT id FROM auth_logs")), 9)

    def test_a_row_waits_for_those_announced_and_shares_their_commit(self):
        db = self.open_database()
        calls: list[list[str]] = []

        def keep(connection, rows):
            calls.append(rows)

        with mock.patch("jwksd.store.database.GATHER_SECONDS", 600):
            with db.expect():
                with db.expect():
                    first = append(db, keep, "first", 1)
                second = append(db, keep, "second", 2)
            self.assertEqual([first.result(60), second.result(60)], [1, 2])
        self.assertEqual(calls, [["first", "second"]])

    def test_a_row_waits_for_nobody_who_was_not_announced_nor_for_long(self):
        db = self.open_database()
        with mock.patch("jwksd.store.database.GATHER_SECONDS", 600):
            append(db, lambda connection, rows: None, 1, None).result(60)
        with db.expect():  # and nothing comes
            append(db, lambda connection, rows: None, 2, None).result(60)

    def test_an_announcement_ends_with_its_failure(self):
        db = self.open_database()
        with self.assertRaises(ZeroDivisionError), db.expect():
            print(1 / 0)  # it will not come
        with mock.patch("jwksd.store.database.GATHER_SECONDS", 600):
            append(db, lambda connection, rows: None, 1, None).result(60)

    def test_rows_that_cannot_be_written_are_reported_to_each_and_undone(self):
        db = self.open_database()

        def write_rows(connection, rows):
            insert("lost")(connection)
            connection.execute("INSERT INTO nowhere VALUES (1)")

        self.assertIsInstance(append(db, write_rows, 1, None).exception(10), Unavailable)
        self.assertEqual(db.read("SELECT id FROM auth_logs"), [])
        db.close()
        self.assertIsInstance(append(db, write_rows, 2, None).exception(10), Unavailable)

    def test_a_row_that_is_refused_is_no_harm_to_those_beside_it(self):
        db = self.open_database()

        def write_rows(connection, rows):
            return {place: KeyError(row) for place, row in enumerate(rows) if row % 2}

        with db.expect():  # so that they share a commit
            told = [append(db, write_rows, number, number) for number in range(4)]
            failures = [future.exception(10) for future in told]
        self.assertEqual([str(failure) for failure in failures], ["None", "1", "None", "3"])

    def test_a_listener_that_fails_stops_nobody_else(self):
        db = self.open_database()
        heard = threading.Event()

        def fail(future):
            heard.set()
            raise KeyError("mine")

        with self.assertLogs("concurrent.futures", "ERROR"):
            append(db, lambda connection, rows: None, 1, None).add_done_callback(fail)
            self.assertEqual(db.write(lambda connection: 7), 7)
        self.assertTrue(heard.is_set())

    def test_a_full_database_is_unavailable_and_recovers(self):
        db = self.open_database()
        db.write(insert("before"))
        db.write(lambda c: c.execute("PRAGMA max_page_count=20"))
        with self.assertRaises(Unavailable):
            db.write(lambda c: [insert("x" * 900)(c) for _ in range(200)])
        db.write(lambda c: c.execute("PRAGMA max_page_count=100000"))
        db.write(insert("after"))
        self.assertEqual(db.read("SELECT request_ip FROM auth_logs"), [("before",), ("after",)])

    def test_a_lock_of_another_process_is_waited_for_then_unavailable(self):
        db = self.open_database(busy_seconds=0.2)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        with self.assertRaises(Unavailable):
            db.write(insert("a"))
        self.assertEqual(db.read("SELECT count(*) FROM auth_logs"), [(0,)])
        other.execute("COMMIT")
        db.write(insert("b"))
        self.assertEqual(db.read("SELECT request_ip FROM auth_logs"), [("b",)])

    def test_nothing_is_acknowledged_into_a_file_that_was_deleted(self):
        db = self.open_database()
        db.write(insert("a"))
        os.unlink(self.path)
        with self.assertRaisesRegex(Unavailable, "deleted or replaced"):
            db.write(insert("b"))
        self.assertFalse(self.path.exists())

    def test_nothing_is_acknowledged_into_a_file_that_was_replaced(self):
        db = self.open_database()
        copy = self.folder / "copy.db"
        db.backup(copy)
        os.replace(copy, self.path)
        with self.assertRaisesRegex(Unavailable, "deleted or replaced"):
            db.write(insert("b"))

    def test_the_log_of_a_file_that_was_replaced_is_not_applied_to_the_new_one(self):
        db = self.open_database()
        copy = self.folder / "copy.db"
        db.backup(copy)
        old = self.folder / "old.db"
        db.write(insert("a"))
        os.rename(self.path, old)
        os.rename(copy, self.path)
        db.close()
        self.assertEqual(self.open_database().read("SELECT id FROM auth_logs"), [])
        self.path = old  # what was acknowledged went where its file is now
        self.assertEqual(self.open_database().read("SELECT request_ip FROM auth_logs"), [("a",)])

    def replace_by_a_copy(self, db):
        """Another file takes the place; returns where the old one is now."""
        copy, old = self.folder / "copy.db", self.folder / "old.db"
        db.backup(copy)
        db.write(insert("before"))
        os.rename(self.path, old)
        os.rename(copy, self.path)
        return old

    def addresses(self, path):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return [ip for (ip,) in connection.execute("SELECT request_ip FROM auth_logs")]

    def test_what_others_write_to_the_new_file_is_not_moved_to_the_old_one(self):
        db = self.open_database()
        old = self.replace_by_a_copy(db)
        with self.assertRaises(Unavailable):
            db.probe()
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            insert("others'")(other)
            other.commit()
            with self.assertRaises(Unavailable):
                db.probe()
            db.close()
        self.assertEqual(self.addresses(self.path), ["others'"])
        self.assertEqual(self.addresses(old), ["before"])

    def test_a_file_that_is_put_back_and_replaced_once_more_loses_nothing_either(self):
        db = self.open_database()
        old = self.replace_by_a_copy(db)
        with self.assertRaises(Unavailable):
            db.probe()
        copy = self.folder / "copy.db"
        os.rename(self.path, copy)
        os.rename(old, self.path)
        db.write(insert("back"))
        os.rename(self.path, old)
        os.rename(copy, self.path)
        with self.assertRaises(Unavailable):
            db.probe()
        self.assertEqual(self.addresses(old), ["before", "back"])
        self.assertEqual(self.addresses(self.path), [])

    def test_nothing_is_acknowledged_into_a_log_that_was_deleted(self):
        db = self.open_database()
        db.write(insert("a"))
        for ending in ("-wal", "-shm"):
            os.unlink(f"{self.path}{ending}")
        with self.assertRaisesRegex(Unavailable, "-wal was deleted or replaced"):
            db.write(insert("b"))
        # What was acknowledged before has been moved to the file: another log starts empty.
        self.assertEqual(self.addresses(self.path), ["a"])

    def test_a_symbolic_link_has_its_log_beside_what_it_leads_to(self):
        (self.folder / "disk").mkdir()
        self.path.symlink_to(self.folder / "disk" / "real.db")
        (self.folder / "disk" / "real.db").touch()
        db = self.open_database()
        db.write(insert("a"))
        os.unlink(self.folder / "disk" / "real.db-wal")
        with self.assertRaisesRegex(Unavailable, "real.db-wal was deleted"):
            db.write(insert("b"))

    def test_a_file_replaced_during_the_commit_is_noticed_too(self):
        db = self.open_database()

        def replace(connection):
            insert("b")(connection)
            os.unlink(self.path)

        with self.assertRaisesRegex(Unavailable, "deleted or replaced"):
            db.write(replace)

    def test_outlives_a_lack_of_memory_at_any_moment_and_tells_everybody(self):
        db = self.open_database()
        for owner, step in ((database, "gather"), (database, "Job"), (database.Job, "run")):
            exhausted = mock.patch.object(owner, step, side_effect=MemoryError)
            with exhausted:
                told = [append(db, lambda connection, rows: None, 1, None) for _ in range(2)]
                for future in told:
                    self.assertRegex(repr(future.exception(10)), "MemoryError")
            with exhausted, self.assertRaises((MemoryError, Unavailable)):
                db.write(insert("lost"))
        db.write(insert("after"))
        self.assertEqual(db.read("SELECT request_ip FROM auth_logs"), [("after",)])

    def test_after_closing_is_unavailable(self):
        db = self.open_database()
        db.close()
        db.close()
        with self.assertRaises(Unavailable):
            db.write(insert("a"))


class Reading(TemporaryFolder):
    def test_never_waits_for_a_writer(self):
        db = self.open_database(busy_seconds=30)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        self.assertEqual(db.read("SELECT count(*) FROM users"), [(0,)])

    def test_cannot_write(self):
        with self.assertRaises(Unavailable):
            self.open_database().read("DELETE FROM users")

    def test_takes_text_that_is_not_utf_8_octet_for_octet(self):
        db = self.open_database()
        spelled = "INSERT INTO auth_logs (request_ip) VALUES (CAST(x'61ff' AS TEXT))"
        db.write(lambda connection: connection.execute(spelled))
        for reader in (db, sqlite.ReadOnly(self.path)):
            ((text,),) = reader.read("SELECT request_ip FROM auth_logs")
            self.assertEqual(text.encode("utf-8", "surrogateescape"), b"a\xff")

    def test_of_a_damaged_page_is_unavailable(self):
        db = self.open_database()
        db.write(lambda c: [insert("x" * 500)(c) for _ in range(200)])
        db.close()
        damaged = bytearray(self.path.read_bytes())
        damaged[4096 * 12 :] = b"\xff" * (len(damaged) - 4096 * 12)
        self.path.write_bytes(damaged)
        with self.assertRaises(Unavailable):
            self.open_database().read("SELECT max(length(request_ip)) FROM auth_logs")


class Stamp(TemporaryFolder):
    def test_changes_when_another_process_commits_and_only_then(self):
        db = self.open_database()
        before = db.stamp()
        self.assertEqual(db.stamp(), before)
        with sqlite3.connect(self.path) as other:
            other.execute("DELETE FROM keys")
            other.execute("INSERT INTO keys (key, exp) VALUES (x'00', 1)")
        other.close()
        self.assertNotEqual(db.stamp(), before)

    def test_of_a_closed_database_is_unavailable(self):
        db = self.open_database()
        db.stamp()
        db.close()
        with self.assertRaises(Unavailable):
            db.stamp()


class BackingUp(TemporaryFolder):
    def test_copies_what_was_written_and_nothing_over_an_old_file(self):
        db = self.open_database()
        db.write(insert("a"))
        target = self.folder / "copy.db"
        db.backup(target)
        self.assertEqual(stat.S_IMODE(target.stat().st_mode), 0o600)
        with self.assertRaises(CannotOpen):
            db.backup(target)
        db.close()
        self.path = target
        self.assertEqual(self.open_database().read("SELECT request_ip FROM auth_logs"), [("a",)])


class AReader(TemporaryFolder):
    def fill(self):
        with contextlib.closing(SQLite(self.path)) as database:
            database.write(
                lambda c: c.execute(
                    "INSERT INTO users (username, password_hash) VALUES ('alice', '')"
                )
            )

    def test_sees_what_was_written_last_and_makes_no_file(self):
        self.fill()
        reader = ReadOnly(self.path)
        self.assertEqual(reader.read("SELECT username FROM users"), [("alice",)])
        self.assertEqual(os.listdir(self.folder), ["keys.db"])
        database = self.open_database()
        database.write(lambda c: c.execute("UPDATE users SET username = 'bob'"))
        self.assertEqual(reader.read("SELECT username FROM users"), [("bob",)])

    def test_cannot_write(self):
        self.fill()
        reader = ReadOnly(self.path)
        with self.assertRaises(Unavailable):
            reader.write(lambda connection: connection.execute("DELETE FROM users"))
        for statement in ("DELETE FROM users", "CREATE TABLE x(y)", "PRAGMA user_version=3"):
            with self.assertRaises(Unavailable):
                reader.read(statement)

    def test_is_not_fooled_by_a_server_that_starts_while_it_reads(self):
        self.fill()
        reader = ReadOnly(self.path)
        for first_answer in (sqlite3.DatabaseError("database disk image is malformed"), "damage"):
            asked: list[sqlite3.Connection] = []
            server: list[SQLite] = []

            def question(connection, asked=asked, server=server, first_answer=first_answer):
                asked.append(connection)
                if len(asked) > 1:
                    return connection.execute("SELECT username FROM users").fetchall()
                server.append(SQLite(self.path))
                if isinstance(first_answer, Exception):
                    raise first_answer
                return first_answer

            with self.subTest(first_answer=first_answer):
                self.assertEqual(reader._ask(question), [("alice",)])
            server[0].close()

    def test_reads_a_file_whose_name_has_every_odd_character(self):
        self.path = self.folder / "a?b#c%20 d.db"
        self.fill()
        self.assertEqual(ReadOnly(self.path).read("SELECT username FROM users"), [("alice",)])


if __name__ == "__main__":
    unittest.main()
