"""PostgreSQL: what every engine must do, and what can befall this one alone."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Callable, ClassVar
from unittest import mock

import jwt_minimal
from jwksd.store.accounts import Accounts, HashCost
from jwksd.store.database import CannotOpen, Connection, Unavailable
from jwksd.store.logins import LoginLog, Progress, Wanted
from jwksd.store.sqlite import SQLite
from tests import store_conformance, test_moving
from tests.live.clusters import Cluster, Clusters, wait_until, why_not
from tests.live.process import SECRET, Server, start
from tests.support import CHEAPEST, ROOT, Clock

REASON = why_not()
if REASON is None:
    import psycopg

    from jwksd.store.postgres import PostgreSQL

JWKS = "/.well-known/jwks.json"
NUMBERS = itertools.count(1)
INSERTED = "INSERT INTO auth_logs (request_ip) VALUES ('10.0.0.{}') RETURNING id"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


def execute(sql: str, value: str, connection: Connection) -> None:
    """A job for `write`."""
    connection.execute(sql, (value,))


def raises(kind: type[Exception], function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a call does."""
    try:
        function(*arguments)
    except kind:
        return True
    return False


@unittest.skipIf(REASON, REASON or "")
class OnAPrimary(unittest.TestCase):
    """A test on a fresh database of one primary, which the whole class shares."""

    clusters: ClassVar[Clusters]
    primary: ClassVar[Cluster]

    @classmethod
    def setUpClass(cls) -> None:
        cls.clusters = Clusters()
        cls.addClassCleanup(cls.clusters.close)
        known = mock.patch.dict(os.environ, PGPASSFILE=str(cls.clusters.passfile))
        known.start()
        cls.addClassCleanup(known.stop)
        cls.primary = cls.clusters.primary()

    def setUp(self) -> None:
        name = f"db{next(NUMBERS)}"
        self.make_database(name)
        self.url = self.clusters.url(self.primary).rpartition("/")[0] + f"/{name}"
        super().setUp()

    def make_database(self, name: str) -> None:
        self.primary.sql(f"CREATE DATABASE {name} OWNER keys")

    def sql(self, statement: str) -> str:
        return self.primary.sql(statement, self.url.rpartition("/")[2])

    def open_engine(self, **options) -> PostgreSQL:
        engine = PostgreSQL(self.url, **options)
        self.addCleanup(engine.close)
        return engine


class PostgreSQLConforms(OnAPrimary, store_conformance.Conformance):
    def test_what_others_logged_is_told_from_what_is_our_own(self):
        other = self.accounts_of(self.open_engine())
        progress = Progress(self.log.newest_number())
        self.record(self.accounts, "bad_password", at="10.0.0.1").result(60)
        self.record(other, "bad_password", at="10.0.0.2").result(60)
        self.assertEqual(self.log.others(progress), [("10.0.0.2", [0.0])])
        self.assertEqual(self.log.others(progress), [])


class Opening(OnAPrimary):
    def refusal(self, url: str | None = None) -> str:
        with self.assertRaises(CannotOpen) as caught:
            PostgreSQL(url or self.url)
        return str(caught.exception)

    def test_four_servers_at_once_make_the_tables_once(self):
        with ThreadPoolExecutor(4) as pool:
            engines = list(pool.map(lambda _: self.open_engine(), range(4)))
        self.assertEqual(engines[3].read("SELECT version FROM schema_version"), [(1,)])

    def test_a_database_of_another_program_stays_untouched(self):
        self.sql("CREATE TABLE users(name text)")
        self.assertIn("a table users that is not ours", self.refusal())
        self.assertEqual(self.sql("SELECT to_regclass('keys') IS NULL"), "t")

    def test_a_newer_schema_is_refused(self):
        self.open_engine()
        self.sql("UPDATE schema_version SET version = 99")
        self.assertIn("version 99, newer", self.refusal())

    def test_another_encoding_is_refused(self):
        self.primary.sql("CREATE DATABASE latin OWNER keys ENCODING 'LATIN1' TEMPLATE template0")
        self.assertIn("LATIN1", self.refusal(self.url.rpartition("/")[0] + "/latin"))

    def test_a_password_in_the_url_is_told_to_nobody(self):
        port = self.primary.port
        for url in (
            f"postgresql://keys:geheim@127.0.0.1:{port}/keys",  # wrong
            f"postgresql://keys:geheim@127.0.0.1:{port}/keys?nonsense=1",
            "postgresql://keys:geheim@127.0.0.1:1,127.0.0.1/keys?port=1,2,3",
            "postgresql://keys:geheim@[::1/keys",
            "postgresql://keys:geheim@127.0.0.1:1/keys",  # nobody there
            "postgresql://keys@127.0.0.1:1/keys?password=geheim",
        ):
            with self.subTest(url):
                said = self.refusal(url)
                self.assertNotIn("geheim", said)
                self.assertEqual(said.count("\n"), 0)

    def test_a_password_file_and_a_service_file_are_used(self):
        service = self.clusters.folder / "services"
        name = self.url.rpartition("/")[2]
        service.write_text(
            f"[keys]\nhost=127.0.0.1\nport={self.primary.port}\nuser=keys\ndbname={name}\n"
        )
        with mock.patch.dict(os.environ, PGSERVICEFILE=str(service)):
            engine = PostgreSQL("postgresql://?service=keys")
            self.addCleanup(engine.close)
            self.assertEqual(engine.read("SELECT current_database()::text"), [(name,)])

    def test_commits_are_durable_where_the_database_says_they_need_not_be(self):
        self.sql("ALTER ROLE keys SET synchronous_commit = off")
        self.addCleanup(self.sql, "ALTER ROLE keys RESET synchronous_commit")
        found = self.open_engine().read("SELECT current_setting('synchronous_commit')")
        self.assertEqual(found, [("on",)])


class Waiting(OnAPrimary):
    """Every wait has a bound, and whatever is not answered is not acknowledged."""

    def setUp(self):
        super().setUp()
        self.engine = self.open_engine(seconds=1.0)

    def hold(self, statement: str) -> psycopg.Connection:
        holder = psycopg.connect(self.url)
        self.addCleanup(holder.close)
        holder.execute(statement)
        return holder

    def test_a_row_that_another_program_holds_is_waited_for_and_then_given_up(self):
        accounts = Accounts(self.engine, cost=HashCost(1, 8, 1))
        user = accounts.authenticate("alice", accounts.register("alice", None))
        holder = self.hold("UPDATE users SET last_login = 'x'")
        future: Future[None] = Future()
        accounts.record("::1", "success", user, future, None)
        self.assertIsInstance(future.exception(60), Unavailable)
        holder.rollback()
        after: Future[None] = Future()
        accounts.record("::1", "success", user, after, None)
        self.assertIsNone(after.exception(60))

    def test_what_was_given_up_does_not_stay_behind_in_the_database(self):
        self.hold("LOCK TABLE key_policy")
        for _ in range(3):
            with self.assertRaises(Unavailable):
                self.engine.read("SELECT * FROM key_policy")
        wait_until("nobody waits for the lock", lambda: self.sql(WAITING) == "0")

    def test_a_session_that_was_ended_is_replaced_at_once(self):
        self.engine.read("SELECT 1")
        self.end_sessions()
        self.assertEqual(self.engine.read("SELECT 1"), [(1,)])
        self.end_sessions()
        self.engine.probe()

    def test_a_server_that_stands_still_in_a_transaction_holds_others_up_for_a_bounded_time(self):
        begun, go = threading.Event(), threading.Event()

        def stand_still(connection: Connection) -> None:
            connection.execute("INSERT INTO account_names VALUES (?, NULL)", ("a",))
            begun.set()
            self.assertTrue(go.wait(60))

        other = self.open_engine(seconds=1.0)
        with ThreadPoolExecutor(1) as pool:
            still = pool.submit(self.engine.write, stand_still)
            self.assertTrue(begun.wait(60))
            try:
                job = partial(execute, "INSERT INTO account_names VALUES (?, NULL)", "b")
                wait_until("others work", lambda: not raises(Unavailable, other.write, job))
            finally:
                go.set()
            self.assertIsInstance(still.exception(60), Unavailable)
        self.assertEqual(other.read("SELECT folded FROM account_names"), [("b",)])

    def test_a_deadlock_is_tried_again(self):
        self.engine.write(lambda c: c.execute("INSERT INTO account_names VALUES ('a'), ('b')"))
        change = "UPDATE account_names SET user_id = 1 WHERE folded = ?"
        holder, runs = self.hold("UPDATE account_names SET user_id = 2 WHERE folded = 'b'"), []

        def job(connection):
            runs.append(1)
            connection.execute(change, ("a",))
            if len(runs) == 1:  # the other one now waits for us, as we do for it
                thread.start()
                wait_until("it waits", lambda: self.sql(WAITING) == "1")
            connection.execute(change, ("b",))

        def other():
            with suppress(psycopg.Error):
                holder.execute("UPDATE account_names SET user_id = 2 WHERE folded = 'a'")
                holder.commit()

        thread = threading.Thread(target=other)
        engine = self.open_engine(seconds=20)
        engine.write(job)
        thread.join(60)
        self.assertGreaterEqual(len(runs), 1)
        self.assertEqual(engine.read("SELECT count(*) FROM account_names"), [(2,)])

    def test_a_watcher_that_cannot_look_is_noticed_and_comes_back(self):
        looked = threading.Event()
        self.engine.watch(looked.set)
        self.assertTrue(looked.wait(60))
        self.primary.freeze()
        self.addCleanup(self.primary.thaw)
        wait_until("the stamp tells", lambda: raises(Unavailable, self.engine.stamp))
        self.primary.thaw()
        wait_until("it works again", lambda: not raises(Unavailable, self.engine.stamp))

    def test_a_watcher_whose_session_was_ended_hears_of_the_next_change(self):
        changes: list[int] = []
        self.engine.watch(lambda: changes.append(1))
        wait_until("it looked", lambda: changes)
        self.end_sessions()
        before = len(changes)
        self.engine.write(
            lambda c: c.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", (b"", 1))
        )
        wait_until("it heard", lambda: len(changes) > before)

    def end_sessions(self) -> None:
        name = self.url.rpartition("/")[2]
        ended = "SELECT count(pg_terminate_backend(pid, 9000)) FROM pg_stat_activity"
        self.primary.sql(f"{ended} WHERE datname = '{name}'")


class Numbers(OnAPrimary):
    def begin(self) -> psycopg.Connection:
        """A transaction under way, which has its number."""
        connection = psycopg.connect(self.url)
        self.addCleanup(connection.close)
        connection.execute("SELECT pg_current_xact_id()")
        return connection

    def test_a_row_that_becomes_visible_late_is_given_once(self):
        log, row = LoginLog(self.open_engine(), time.time), INSERTED.format
        # With the transactions in either order: a snapshot knows of none above the last that ended.
        for order in (1, -1):
            with self.subTest(order):
                progress = Progress(log.newest_number())
                early, late = [self.begin(), self.begin()][::order]
                ((first,),) = early.execute(row(1))
                ((second,),) = late.execute(row(2))
                late.commit()
                self.assertEqual([r.number for r in log.newer(Wanted(), progress)], [second])
                for _ in range(3):
                    self.assertEqual(list(log.newer(Wanted(), progress)), [])
                early.commit()
                self.assertEqual([r.number for r in log.newer(Wanted(), progress)], [first])
                given: list[object] = []

                def nothing_can_come(reached=progress, last=second, given=given) -> bool:
                    given += log.newer(Wanted(), reached)
                    return reached.after == last

                wait_until("nothing can come any more", nothing_can_come)
                self.assertEqual(given, [])

    def test_this_month_and_the_next_have_partitions_from_the_start(self):
        self.open_engine()
        self.sql("INSERT INTO auth_logs (request_ip) VALUES ('::1')")
        self.assertEqual(len(self.partitions()), 3)
        self.assertEqual(self.sql("SELECT count(*) FROM auth_logs_else"), "0")

    def test_months_have_partitions_and_old_ones_leave_as_a_whole(self):
        engine = self.open_engine()
        clock = Clock(4_000_000_000.0)  # 2096-10-02
        log = LoginLog(engine, clock)
        log.prune(60 * 86_400)
        self.assertEqual(self.partitions(), ["2096_10", "2096_11", "else"])
        # A table of that name elsewhere is not ours to drop.
        self.sql("CREATE SCHEMA keys; CREATE TABLE keys.auth_logs_2096_10(n int)")
        sql = "INSERT INTO auth_logs (request_ip, request_timestamp) VALUES ('::1', ?)"
        for text in ("2096-10-18 00:00:00", "2096-11-30 23:59:59.999", "1999-01-01 00:00:00"):
            engine.write(partial(execute, sql, text))
        clock.advance(130 * 86_400)  # 2097-02-09
        log.prune(40 * 86_400)
        self.assertEqual(self.partitions(), ["2097_02", "2097_03", "else"])
        self.assertEqual(engine.read("SELECT count(*) FROM auth_logs"), [(0,)])
        self.assertEqual(self.sql("SELECT count(*) FROM keys.auth_logs_2096_10"), "0")

    def test_rows_that_came_before_their_partition_are_kept(self):
        engine = self.open_engine()
        sql = "INSERT INTO auth_logs (request_ip, request_timestamp) VALUES ('::1', ?)"
        engine.write(lambda connection: connection.execute(sql, ("2096-10-18 00:00:00",)))
        log = LoginLog(engine, Clock(4_000_000_000.0))
        log.prune(60 * 86_400)
        self.assertEqual(self.partitions(), ["2096_11", "else"])
        self.assertEqual(engine.read("SELECT count(*) FROM auth_logs"), [(1,)])

    def partitions(self) -> list[str]:
        sql = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY relname"
        return [name.replace("auth_logs_", "") for name in self.sql(sql).split()]


class TwoServers(OnAPrimary):
    """Two processes on one database, as two machines would be."""

    def serve(self, *flags: str) -> Server:
        flags = ("--port", "0", "--db", self.url, "--argon2", CHEAPEST, *flags)
        server = Server(*flags, environ={"NOT_MY_KEY": SECRET})
        self.addCleanup(server.end, signal.SIGKILL)
        return server

    def admin(self, *words: str, environ: dict[str, str] | None = None):
        return subprocess.run(
            [sys.executable, str(ROOT / "admin.py"), "--db", self.url, *words],
            env={**os.environ, **({"NOT_MY_KEY": SECRET} if environ is None else environ)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def kids(self, server: Server) -> list[str]:
        return [key["kid"] for key in server.ask("GET", JWKS)[1]["keys"]]

    def lacks(self, server: Server, kid: str) -> bool:
        return kid not in self.kids(server)

    def test_share_accounts_and_keys_and_outlive_each_other(self):
        one, two = self.serve(), self.serve()
        password = one.ask("POST", "/register", {"username": "alice"})[1]["password"]
        credentials = {"username": "alice", "password": password}
        self.assertEqual(two.ask("POST", "/auth", credentials)[0], 200)
        self.assertEqual(self.kids(one), self.kids(two))
        one.end(signal.SIGKILL)
        self.assertEqual(two.ask("POST", "/auth", credentials)[0], 200)
        third = self.serve()
        status, answer = third.ask("POST", "/auth", credentials)
        self.assertEqual(status, 200)
        token = jwt_minimal.decode(answer["token"], two.ask("GET", JWKS)[1])
        self.assertEqual(token["sub"], "alice")
        self.assertEqual(self.sql("SELECT count(*) FROM auth_logs WHERE outcome = 'success'"), "3")
        self.assertEqual(third.end(), 0)

    def test_a_revoked_key_leaves_every_server(self):
        servers = [self.serve(), self.serve()]
        (kid,) = self.kids(servers[0])
        done = self.admin("keys", "revoke", kid)
        self.assertEqual(done.returncode, 0, done.stderr)
        for server in servers:
            wait_until("it is gone", partial(self.lacks, server, kid))
            self.assertEqual(self.kids(server), [done.stdout.strip()])

    def test_count_each_others_attempts(self):
        one, two = (self.serve("--auth-limit", "20/minute") for _ in range(2))
        alone = self.serve("--auth-limit", "20/minute", "--share-limits", "off")
        wrong = {"username": "nobody", "password": "wrong"}
        self.assertEqual([one.ask("POST", "/auth", wrong)[0] for _ in range(21)][-2:], [401, 429])
        asked = 0
        while two.ask("POST", "/auth", wrong)[0] == 401:
            asked += 1
            time.sleep(0.2)  # it looks each half second
        self.assertLess(asked, 20)
        self.assertEqual(alone.ask("POST", "/auth", wrong)[0], 401)

    def test_keep_the_keys_on_the_air_while_the_database_is_gone(self):
        clusters = Clusters()
        self.addCleanup(clusters.close)
        known = mock.patch.dict(os.environ, PGPASSFILE=str(clusters.passfile))
        known.start()
        self.addCleanup(known.stop)
        primary = clusters.primary()
        self.url = clusters.url(primary)
        server = self.serve()
        kids = self.kids(server)
        primary.kill()
        status, answer = server.ask("POST", "/register", {"username": "alice"})
        self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(self.kids(server), kids)
        wait_until("healthz tells", lambda: server.ask("GET", "/healthz")[0] == 503)
        primary.start()
        wait_until("it works", lambda: server.ask("POST", "/register", {"username": "a"})[0] == 201)
        wait_until("healthz tells", lambda: server.ask("GET", "/healthz")[0] == 200)

    def test_need_a_secret_that_was_given(self):
        process = start("--port", "0", "--db", self.url, environ={})
        self.assertEqual(process.wait(60), 2)
        self.assertIn("NOT_MY_KEY", process.stderr.read())
        process.stderr.close()
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        self.assertEqual(self.sql(tables), "0")

    def test_are_administered_by_the_same_commands(self):
        for words, code, wanted in (
            (("doctor",), 2, "it has no tables of ours"),
            (("keys", "rotate"), 0, ""),
            (("keys", "list"), 0, "signing"),
            (("users", "add", "alice"), 0, ""),
            (("users", "claims", "alice", "role=editor"), 0, "editor"),
            (("users", "list"), 0, "alice"),
            (("log", "--last", "3"), 0, "time"),
            (("log", "--summary", "--user", "alice"), 0, "address"),
            (("rekey",), 0, "0"),
            (("doctor",), 0, "postgresql\tok"),
            (("backup", "file"), 1, "pg_dump"),
            (("users", "delete", "alice", "--free"), 0, ""),
            (("users", "reset", "alice"), 1, "there is no user"),
        ):
            with self.subTest(words):
                done = self.admin(*words)
                self.assertEqual(done.returncode, code, done.stdout + done.stderr)
                self.assertIn(wanted, done.stdout + done.stderr)

    def test_the_doctor_names_what_is_missing(self):
        self.admin("keys", "rotate")
        done = self.admin("doctor", environ={"NOT_MY_KEY": "another"})
        self.assertRegex(done.stdout, r"keys\tproblem\tNOT_MY_KEY opens none")
        self.assertRegex(done.stdout, r"commits\tnote\tno standby is waited for")


class MovingToPostgreSQL(OnAPrimary, test_moving.Moving):
    shares_database = True

    def open_target(self) -> PostgreSQL:
        return self.open_engine(seconds=60)

    def test_and_back(self):
        target = self.open_target()
        self.move(self.source, target)
        back = SQLite(self.folder / "back.db")
        self.addCleanup(back.close)
        self.move(target, back)
        self.assertEqual(test_moving.contents(back), test_moving.contents(self.source))

    def test_goes_on_after_it_was_killed(self):
        rows = [("192.0.2.1",)] * 300_000  # some seconds
        sql = "INSERT INTO auth_logs (request_ip) VALUES (?)"
        self.source.write(lambda connection: connection.executemany(sql, rows))
        words = [sys.executable, str(ROOT / "admin.py"), "migrate", "--from", str(self.path)]
        words, environ = [*words, "--to", self.url], {**os.environ, "NOT_MY_KEY": "s" * 16}
        process = subprocess.Popen(words, env=environ, stderr=subprocess.DEVNULL)
        copying = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY auth_logs%'"
        wait_until("it copies the log", lambda: self.sql(copying) != "0")
        process.kill()
        process.wait(60)
        counts = "SELECT (SELECT count(*) FROM {}), (SELECT count(*) FROM {})"
        self.assertEqual(self.sql(counts.format("users", "keys")), "3|0")
        done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.sql(counts.format("auth_logs", "keys")), "302500|2")

    def test_by_the_command(self):
        words = [sys.executable, str(ROOT / "admin.py"), "migrate", "--from", str(self.path)]
        environ = {**os.environ, "NOT_MY_KEY": "s" * 16}
        for _ in range(2):  # the second time there is nothing left to do
            done = subprocess.run(
                [*words, "--to", self.url], env=environ, capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("auth_logs\t2500\n", done.stdout)
            self.assertIn("every key opens", done.stderr)
        environ["NOT_MY_KEY"] = "another secret of some length"
        done = subprocess.run(
            [*words, "--to", self.url], env=environ, capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("opens none of the 2 keys", done.stderr)


@unittest.skipIf(REASON, REASON or "")
class WithAStandby(unittest.TestCase):
    """Whatever is acknowledged is on the standby too."""

    def setUp(self):
        self.clusters = Clusters()
        self.addCleanup(self.clusters.close)
        known = mock.patch.dict(os.environ, PGPASSFILE=str(self.clusters.passfile))
        known.start()
        self.addCleanup(known.stop)
        self.primary = self.clusters.primary()
        self.standby = self.clusters.standby(self.primary, "two")
        self.primary.expect("two")
        self.engine = PostgreSQL(self.clusters.url(self.primary, self.standby), seconds=1.0)
        self.addCleanup(self.engine.close)

    def name(self, engine: PostgreSQL, name: str) -> None:
        sql = "INSERT INTO account_names (folded) VALUES (?)"
        engine.write(lambda connection: connection.execute(sql, (name,)))

    def names(self, engine: PostgreSQL) -> list[str]:
        return [name for (name,) in engine.read("SELECT folded FROM account_names ORDER BY 1")]

    def test_a_commit_that_nobody_confirmed_is_refused_and_no_session_piles_up(self):
        self.standby.kill()
        for number in range(3):
            with self.assertRaises(Unavailable):
                self.name(self.engine, f"unconfirmed{number}")
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until("nobody waits", lambda: self.primary.sql(waiting) == "0")
        self.standby.start()
        self.primary.wait_for("two", "sync_state = 'sync'")
        self.name(self.engine, "confirmed")

    def test_a_commit_with_a_warning_is_refused(self):
        self.primary.sql(
            "ALTER ROLE keys SET client_min_messages = error"
        )  # it leaves out warnings
        patient = PostgreSQL(self.clusters.url(self.primary), seconds=60)
        self.addCleanup(patient.close)
        self.standby.freeze()
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self.name, patient, "warned")
            cancel = (
                "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity "
                "WHERE wait_event = 'SyncRep'"
            )
            wait_until("it was cancelled", lambda: self.primary.sql(cancel) == "1")
            self.assertRegex(str(writing.exception(60)), "not confirmed: canceling wait")
        self.standby.thaw()
        self.name(patient, "confirmed")

    def test_a_promoted_standby_is_used_and_the_old_primary_never_again(self):
        self.name(self.engine, "before")
        self.engine.watch(lambda: None)
        self.primary.freeze()
        self.standby.promote()
        wait_until("it is used", lambda: not raises(Unavailable, self.name, self.engine, "after"))
        self.primary.thaw()
        for number in range(5):
            self.name(self.engine, f"later{number}")
            self.assertEqual(self.names(self.engine)[:2], ["after", "before"])
        self.assertEqual(self.primary.sql("SELECT count(*) FROM account_names", "keys"), "1")

    def test_a_server_that_only_read_learns_of_the_promotion(self):
        self.name(self.engine, "before")
        self.engine.watch(lambda: None)
        self.assertEqual(self.names(self.engine), ["before"])  # a session waits in the pool
        other = PostgreSQL(self.clusters.url(self.standby, self.primary), seconds=1.0)
        self.addCleanup(other.close)
        self.standby.promote()
        wait_until("it is used", lambda: not raises(Unavailable, self.name, other, "after"))
        # The old primary answers all the time, and has no row of those.
        wait_until("it is seen", lambda: self.names(self.engine) == ["after", "before"])

    def test_no_acknowledged_row_is_lost_with_the_primary(self):
        acknowledged: list[str] = []
        done = threading.Event()

        def write() -> None:
            for number in itertools.count():
                if done.is_set():
                    return
                with suppress(Unavailable):
                    self.name(self.engine, f"{number:06}")
                    acknowledged.append(f"{number:06}")

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write)
            wait_until("some are written", lambda: len(acknowledged) > 50)
            self.primary.kill()
            before = len(acknowledged)
            self.standby.promote()
            wait_until("more are written", lambda: len(acknowledged) > before + 50)
            done.set()
            writing.result(60)
        self.assertLessEqual(set(acknowledged), set(self.names(self.engine)))


if __name__ == "__main__":
    unittest.main()
