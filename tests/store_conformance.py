"""What every engine of the store must do, whichever it is: one class, run against each.

A subclass has `open_engine()`: another `Database` on the same rows, closed when the test ends.
"""

from __future__ import annotations

import threading
import unittest
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable
from unittest import mock

from jwksd.store import keystore, sealing
from jwksd.store.accounts import Accounts, HashCost, NameTaken, Superseded, UnknownUser, User
from jwksd.store.database import Connection, Database, Unavailable
from jwksd.store.keystore import KeyStore, Policy
from jwksd.store.logins import LoginLog, Progress, Wanted, utc_text
from tests.support import Clock, ready_keys

CHEAPEST = HashCost(1, 8, 1)
SECRET = b"the secret of these tests"


class Conformance(unittest.TestCase):
    def open_engine(self) -> Database:
        raise NotImplementedError

    def setUp(self) -> None:
        super().setUp()
        if type(self) is Conformance:
            self.skipTest("a subclass says which engine")
        self.clock, ready = Clock(), ready_keys()
        ready.start()
        self.addCleanup(ready.stop)
        self.database = self.open_engine()
        self.accounts = self.accounts_of(self.database)
        self.log = LoginLog(self.database, self.clock)

    def accounts_of(self, database: Database) -> Accounts:
        return Accounts(database, cost=CHEAPEST, verified_seconds=60, clock=self.clock)

    def keys_of(self, database: Database, policy: Policy | None = None) -> KeyStore:
        cheap = mock.patch.multiple(sealing, DERIVATION_TIME=1, DERIVATION_KIB=8)
        cheap.start()
        self.addCleanup(cheap.stop)
        keys = KeyStore(
            database, SECRET, policy or Policy(), log=lambda line: None, clock=self.clock
        )
        keys.open()
        return keys

    def record(self, accounts: Accounts, outcome: str, user: User | int | None = None, at="::1"):
        future: Future[str] = Future()
        accounts.record(at, outcome, user, future, "written")
        return future

    def append(self, database: Database, row: object, write: Callable[..., Any]) -> Future[Any]:
        future: Future[Any] = Future()
        database.append(write, row, future, row)
        return future

    # -- the seam

    def test_a_job_is_written_and_its_result_returned(self):
        def job(connection: Connection) -> str:
            connection.execute("INSERT INTO account_names VALUES (?, ?)", ("100%?'", None))
            return "done"

        self.assertEqual(self.database.write(job), "done")
        found = self.open_engine().read("SELECT folded, user_id FROM account_names")
        self.assertEqual(found, [("100%?'", None)])

    def test_a_job_that_raises_changes_nothing_and_its_exception_arrives(self):
        def job(connection: Connection) -> None:
            connection.execute("INSERT INTO account_names VALUES (?, ?)", ("a", None))
            raise UnknownUser("whoever")

        with self.assertRaisesRegex(UnknownUser, "whoever"):
            self.database.write(job)
        self.assertEqual(self.database.read("SELECT 1 FROM account_names"), [])

    def test_a_statement_that_is_none_is_unavailable_and_the_next_works(self):
        for attempt in (
            lambda: self.database.read("SELECT nothing FROM nowhere"),
            lambda: self.database.write(lambda connection: connection.execute("NONSENSE")),
        ):
            with self.assertRaises(Unavailable):
                attempt()
        self.assertEqual(self.database.read("SELECT 1"), [(1,)])

    def test_rows_that_wait_together_are_all_written_although_one_of_their_jobs_fails(self):
        started, go = threading.Event(), threading.Event()

        def hold(connection: Connection, rows: list[object]) -> None:
            started.set()
            go.wait(60)

        def fail(connection: Connection, rows: list[object]) -> None:
            connection.execute("INSERT INTO account_names VALUES (?, NULL)", ("half",))
            raise ZeroDivisionError

        def write(connection: Connection, rows: list[str]) -> dict[int, Exception]:
            for row in rows:
                connection.execute("INSERT INTO account_names VALUES (?, NULL)", (row,))
            return {2: NameTaken()}

        first = self.append(self.database, 0, hold)
        self.assertTrue(started.wait(60))
        futures = [self.append(self.database, str(number), write) for number in range(4)]
        failing = self.append(self.database, "x", fail)
        go.set()
        self.assertEqual(first.result(60), 0)
        self.assertIsInstance(failing.exception(60), ZeroDivisionError)
        outcomes = [future.exception(60) for future in futures]
        self.assertIsInstance(outcomes.pop(2), NameTaken)
        self.assertEqual(outcomes, [None] * 3)
        names = self.open_engine().read("SELECT folded FROM account_names ORDER BY folded")
        self.assertEqual(names, [("0",), ("1",), ("2",), ("3",)])

    def test_jobs_of_several_servers_come_one_after_the_other(self):
        self.keys_of(self.database).remember_policy()
        before = keystore.remembered_policy(self.database)
        engines = [self.open_engine() for _ in range(3)]

        def count(connection: Connection) -> None:
            ((lead,),) = connection.execute("SELECT lead FROM key_policy").fetchall()
            connection.execute("UPDATE key_policy SET lead = ?", (lead + 1.0,))

        def work(engine: Database) -> None:
            for _ in range(10):
                engine.write(count)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, engines))
        after = keystore.remembered_policy(self.database)
        self.assertIsNotNone(before)
        self.assertEqual(after.lead - before.lead, 30)

    def test_a_closed_database_refuses_and_may_be_closed_again(self):
        engine = self.open_engine()
        engine.close()
        engine.close()
        with self.assertRaises(Unavailable):
            engine.read("SELECT 1")
        self.assertIsInstance(self.append(engine, 1, lambda *_: None).exception(60), Unavailable)

    def test_what_is_queued_when_it_closes_is_written(self):
        engine = self.open_engine()
        sql = "INSERT INTO account_names VALUES (?, NULL)"
        futures = [
            self.append(engine, (str(n),), lambda c, rows: c.executemany(sql, rows) and None)
            for n in range(50)
        ]
        engine.close()
        self.assertEqual([future.exception(0) for future in futures], [None] * 50)
        self.assertEqual(self.database.read("SELECT count(*) FROM account_names"), [(50,)])

    def test_a_probe_writes(self):
        self.database.probe()

    def test_a_change_of_the_keys_by_another_process_is_noticed(self):
        keys, noticed = self.keys_of(self.database), threading.Event()
        keys.make_due()
        other = self.open_engine()
        known = other.stamp()
        other.watch(noticed.set)
        if known is None:  # it begins by looking: what is wanted here is the change
            self.assertTrue(noticed.wait(60))
            noticed.clear()
        keys.rotate()
        if known is None:
            self.assertTrue(noticed.wait(60))
        else:
            self.assertNotEqual(other.stamp(), known)

    # -- keys

    def test_four_servers_at_once_make_one_valid_and_one_expired_key(self):
        engines = [self.open_engine() for _ in range(4)]
        stores = [self.keys_of(engine) for engine in engines]
        barrier = threading.Barrier(4, timeout=60)

        def start(keys: KeyStore) -> None:
            barrier.wait()
            keys.make_due()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(start, stores))
        for keys in stores:
            keys.refresh()
            states = sorted(state for _, _, state in keys.listing())
            self.assertEqual(states, ["expired", "signing"])

    def test_a_key_lives_on_every_server_and_ends_on_every_server(self):
        one, two = self.keys_of(self.database), self.keys_of(self.open_engine())
        one.make_due()
        two.refresh()
        self.assertEqual(one.listing(), two.listing())
        kid, _ = two.rotate(at_once=True)
        self.clock.advance(1)  # at the very moment the old one still signs
        one.refresh()
        self.assertEqual(one.signing_key().kid, kid)
        one.revoke(kid, replace=False)
        two.refresh()
        self.assertNotIn(kid, [key.kid for key in two.published().keys])

    def test_the_policy_is_remembered_and_changed(self):
        for lead in (100.0, 200.0):
            self.keys_of(self.database, Policy(lead=lead)).remember_policy()
            self.assertEqual(keystore.remembered_policy(self.database), Policy(lead=lead))

    def test_old_keys_are_removed(self):
        keys = self.keys_of(self.database, Policy(retention=10))
        keys.make_due()
        for _ in range(3):
            self.clock.advance(40 * 86_400)
            keys.make_due()
        keys.prune()
        self.assertEqual(len([s for _, _, s in keys.listing() if s == "expired"]), 1)

    # -- accounts

    def test_a_name_or_an_address_is_one_in_whatever_case(self):
        self.accounts.add("Ärger.100%?", "Mail@Example.org", "p" * 10)
        for name, email in (
            ("Ärger.100%?", None),
            ("äRGER.100%?", None),
            ("other", "mail@example.ORG"),
        ):
            with self.assertRaises(NameTaken, msg=name):
                self.accounts.register(name, email)
        # Also where the check before the hash sees nothing yet: the indexes decide.
        added: list[Future[None]] = [Future() for _ in range(2)]
        row = ("bob", "$", None, utc_text(self.clock()))
        for future, account in zip(added, (row, ("BOB", *row[1:]))):
            self.accounts.insert(account, future, None)
        self.assertEqual([type(f.exception(60)) for f in added], [type(None), NameTaken])
        self.accounts.register("strauss", None)
        self.assertEqual(
            [user[0] for user in self.accounts.users()], ["bob", "strauss", "Ärger.100%?"]
        )

    def test_two_servers_register_one_name_once(self):
        other = self.accounts_of(self.open_engine())
        row = ("carol", "$", None, utc_text(self.clock()))
        futures: list[Future[None]] = [Future() for _ in range(20)]
        for number, future in enumerate(futures):
            (self.accounts, other)[number % 2].insert(row, future, None)
        outcomes = [future.exception(60) for future in futures]
        self.assertEqual(outcomes.count(None), 1)
        self.assertEqual({type(o) for o in outcomes if o is not None}, {NameTaken})

    def test_a_login_is_written_with_its_outcome_and_its_time(self):
        password = self.accounts.register("alice", None)
        user = self.accounts.authenticate("alice", password)
        self.assertEqual(self.record(self.accounts, "success", user).result(60), "written")
        self.assertEqual(self.record(self.accounts, "bad_password", user.id).result(60), "written")
        self.assertEqual(self.record(self.accounts, "unknown_user").result(60), "written")
        rows = [(row.outcome, row.user, row.address) for row in self.log.rows(Wanted())]
        self.assertEqual(
            rows,
            [
                ("success", "alice", "::1"),
                ("bad_password", "alice", "::1"),
                ("unknown_user", None, "::1"),
            ],
        )
        ((_, _, _, last_login),) = self.accounts.users()
        self.assertEqual(last_login, utc_text(self.clock()))

    def test_many_logins_of_many_users_share_commits(self):
        users = []
        for number in range(20):
            password = self.accounts.register(f"user{number}", None)
            users.append(self.accounts.authenticate(f"user{number}", password))
        futures = [self.record(self.accounts, "success", user) for user in users * 10]
        self.assertEqual({future.result(60) for future in futures}, {"written"})
        self.assertEqual(self.log.newest_number(), 200)

    def test_a_change_by_another_server_supersedes_what_was_verified(self):
        other = self.accounts_of(self.open_engine())
        changes = {
            "password": lambda name: other.reset(name),
            "claims": lambda name: other.set_claims(name, ["role=editor"]),
            "deletion": lambda name: other.delete(name),
        }
        for name, change in changes.items():
            with self.subTest(name):
                user = self.accounts.authenticate(name, self.accounts.register(name, None))
                self.assertEqual(self.record(self.accounts, "success", user).result(60), "written")
                change(name)
                future = self.record(self.accounts, "success", user)
                self.assertIsInstance(future.exception(60), Superseded)
        self.assertEqual(len(list(self.log.rows(Wanted(outcome="success")))), 3)

    def test_logins_and_deletions_at_the_same_time_leave_no_row_with_a_name_of_nobody(self):
        other = self.accounts_of(self.open_engine())
        names = [f"user{number}" for number in range(10)]
        users = [self.accounts.authenticate(n, self.accounts.register(n, None)) for n in names]

        def log_in(user: User) -> None:
            for _ in range(5):
                self.record(self.accounts, "success", user).exception(60)
                self.record(self.accounts, "bad_password", user.id).result(60)

        with ThreadPoolExecutor(4) as pool:
            done = [pool.submit(log_in, user) for user in users]
            done += [pool.submit(other.delete, name) for name in names]
            for future in done:
                future.result(60)
        left = self.database.read("SELECT DISTINCT user_id FROM auth_logs")
        self.assertEqual(left, [(None,)])

    def test_a_deleted_name_is_retired_until_it_is_freed(self):
        self.accounts.register("alice", None)
        self.accounts.delete("alice")
        with self.assertRaises(NameTaken):
            self.accounts.register("ALICE", None)
        self.accounts.free("alice")
        self.accounts.register("alice", None)
        with self.assertRaises(UnknownUser):
            self.accounts.free("alice")

    def test_claims_are_set_shown_and_removed(self):
        self.accounts.register("alice", None)
        self.accounts.set_claims("alice", ["role=editor", 'groups:=["ä", 1]'])
        found = self.accounts_of(self.open_engine()).claims("alice")
        self.assertEqual(found, {"role": "editor", "groups": ["ä", 1]})
        self.assertEqual(self.accounts.set_claims("alice", ["role=", "groups="]), {})
        with self.assertRaises(UnknownUser):
            self.accounts.set_claims("nobody", ["role=x"])

    def test_hashes_are_counted_by_what_they_are(self):
        self.accounts.register("alice", None)
        self.database.write(
            lambda connection: connection.executemany(
                "INSERT INTO users (username, password_hash) VALUES (?, ?)",
                [("bob", "md5"), ("carol", "$argon2id$v=19$m=64,t=1,p=1$YWJjZGVmZ2g$YWJjZA")],
            )
        )
        found = self.accounts.hashes()
        self.assertEqual((found.total, found.other_cost, found.unusable), (3, 1, 1))
        self.assertEqual(found.example, "bob")

    # -- the log

    def fill(self, count: int = 10) -> None:
        for number in range(count):
            self.clock.advance(10)
            outcome = ("bad_password", "unknown_user")[number % 2]
            self.record(self.accounts, outcome, at=f"10.0.0.{number % 3}").result(60)

    def test_rows_are_found_by_each_of_their_members(self):
        self.accounts.register("alice", None)
        self.fill()
        since = utc_text(self.clock() - 25)
        for wanted, count in (
            (Wanted(), 10),
            (Wanted(outcome="bad_password"), 5),
            (Wanted(address="10.0.0.0"), 4),
            (Wanted(user="alice"), 0),
            (Wanted(since=since), 3),
            (Wanted("unknown_user", "10.0.0.1", None, since), 1),
        ):
            with self.subTest(wanted):
                self.assertEqual(len(list(self.log.rows(wanted))), count)
        after = self.log.before_last(Wanted(outcome="bad_password"), 2)
        self.assertEqual(len(list(self.log.rows(Wanted(outcome="bad_password"), after))), 2)
        summary = self.log.summary(Wanted())
        self.assertEqual(sum(count for _, _, count, _, _ in summary), 10)
        first, last, count = self.log.extent()
        self.assertEqual((last, count), (utc_text(self.clock()), 10))
        self.assertEqual(first, utc_text(self.clock() - 90))

    def test_recent_attempts_have_their_ages(self):
        self.fill(6)
        self.clock.advance(1.5)
        ages = dict(self.log.recent(45))
        self.assertEqual(
            ages, {"10.0.0.0": [21.5], "10.0.0.1": [41.5, 11.5], "10.0.0.2": [31.5, 1.5]}
        )

    def test_rows_without_a_date_or_address_that_can_be_read_count_for_nothing(self):
        self.fill(1)
        near = utc_text(self.clock())[:11] + "99:99:99"
        self.database.write(
            lambda connection: connection.execute(
                "INSERT INTO auth_logs (request_ip, request_timestamp) VALUES (?, ?)", ("x", near)
            )
        )
        self.assertEqual(self.log.recent(86_400 * 2), [("10.0.0.0", [0.0])])

    def test_old_rows_leave_and_young_ones_stay(self):
        self.fill(10)
        self.log.prune(45)
        self.assertEqual(len(list(self.log.rows(Wanted()))), 5)
        self.clock.advance(100 * 86_400)  # months later: whole months leave at once
        self.fill(2)
        self.log.prune(86_400)
        self.assertEqual(len(list(self.log.rows(Wanted()))), 2)

    def test_a_reader_is_given_each_row_once(self):
        other = self.accounts_of(self.open_engine())
        progress, found = Progress(0), []
        for turn in range(6):
            for accounts in (self.accounts, other):
                self.record(accounts, "bad_password", at=f"{turn}").result(60)
            found += [row.number for row in self.log.newer(Wanted(), progress)]
        self.assertEqual(len(found), 12)
        self.assertEqual(len(set(found)), 12)

    def test_a_reader_is_given_each_row_once_while_several_servers_write(self):
        accounts = [self.accounts_of(self.open_engine()) for _ in range(3)]

        def write(kept: Accounts) -> int:
            for _ in range(60):
                self.record(kept, "bad_password").result(60)
            return 60

        progress, found = Progress(0), []
        with ThreadPoolExecutor(3) as pool:
            writers = [pool.submit(write, kept) for kept in accounts]
            while not all(writer.done() for writer in writers):
                found += [row.number for row in self.log.newer(Wanted(), progress)]
        found += [row.number for row in self.log.newer(Wanted(), progress)]
        self.assertEqual([writer.result(0) for writer in writers], [60] * 3)
        self.assertEqual(len(found), 180)
        self.assertEqual(len(set(found)), 180)


class OfTheTimes(unittest.TestCase):
    def test_a_row_that_becomes_visible_late_is_given_although_its_number_is_smaller(self):
        progress = Progress(0)
        # Transaction 11 has drawn number 1 and is under way; 12 has committed number 2.
        self.assertTrue(progress.is_new(2))
        progress.read(2, (11, 13))
        progress.read(2, (11, 13))
        self.assertEqual(progress.after, 0)  # 11 is still under way: rows are read from 1 on
        self.assertTrue(progress.is_new(1))
        self.assertFalse(progress.is_new(2))
        progress.read(2, (13, 13))
        progress.read(2, (13, 13))
        self.assertEqual(progress.after, 2)
