"""accounts.py: one hashing step whoever asks, a bounded number at once, and what is remembered."""

from __future__ import annotations

import sqlite3
import threading
import unittest
from concurrent.futures import Future
from unittest import mock

import argon2

from jwksd.store import accounts, logins
from jwksd.store.accounts import (
    Accounts,
    Busy,
    HashCost,
    InvalidCredentials,
    NameTaken,
    Superseded,
    UnknownUser,
    Verified,
)
from jwksd.store.database import Unavailable
from tests.support import Clock, TemporaryFolder

CHEAPEST = HashCost(1, 8, 1)


class AccountsTest(TemporaryFolder):
    def setUp(self):
        super().setUp()
        self.clock, self.monotonic = Clock(), Clock(100.0)
        self.database = self.open_database()
        self.accounts = self.open_accounts()
        self.log = logins.LoginLog(self.database, self.clock)

    def open_accounts(self, **options):
        options = {"cost": CHEAPEST, "clock": self.clock, "monotonic": self.monotonic, **options}
        return Accounts(self.database, **options)

    def count_hashing(self):
        """The calls of the hasher's two verbs from now on."""
        calls = []
        for verb in ("hash", "verify"):
            real = getattr(argon2.PasswordHasher, verb)

            def counted(hasher, *given, real=real, verb=verb):
                calls.append(verb)
                return real(hasher, *given)

            patch = mock.patch.object(argon2.PasswordHasher, verb, counted)
            patch.start()
            self.addCleanup(patch.stop)
        return calls

    def record(self, address, outcome, user):
        """Log an attempt and wait until it is on disk."""
        future: Future = Future()
        self.accounts.record(address, outcome, user, future, None)
        future.result(60)

    def store_hash(self, stored):
        sql = "UPDATE users SET password_hash = ?"
        self.database.write(lambda connection: connection.execute(sql, (stored,)))

    def outcome(self, name, password):
        try:
            return self.prove(name, password).name
        except InvalidCredentials as failure:
            return failure.outcome

    def prove(self, name, password):
        """The account; from memory if it is remembered."""
        remembered = self.accounts.remembered(name, password)
        return remembered or self.accounts.authenticate(name, password)

    def attempt(self, name, password):
        """The outcome, recorded: as a server does it, once more if it was superseded."""
        for _ in range(2):
            outcome = "success"
            try:
                user = self.prove(name, password)
            except InvalidCredentials as failure:
                outcome, user = failure.outcome, failure.user_id
            try:
                self.record("127.0.0.1", outcome, user)
                return outcome
            except Superseded as superseded:
                self.accounts.forget(superseded.name)
        raise AssertionError("superseded twice")


class Authenticating(AccountsTest):
    def test_costs_exactly_one_hashing_step_for_every_outcome(self):
        password = self.accounts.register("alice", None)
        self.accounts.register("gone", None)
        self.accounts.delete("gone")
        calls = self.count_hashing()
        for name, given, outcome in (
            ("alice", password, "alice"),
            ("alice", "wrong", "bad_password"),
            ("nobody", "wrong", "unknown_user"),
            ("gone", password, "unknown_user"),
        ):
            calls.clear()
            self.assertEqual(self.outcome(name, given), outcome)
            self.assertEqual(calls, ["verify"])

    def test_replaces_a_hash_made_at_another_cost_with_the_login(self):
        password = self.accounts.register("alice", None)
        before = self.database.read("SELECT password_hash FROM users")
        self.accounts = self.open_accounts(cost=HashCost(2, 16, 1))
        user = self.accounts.authenticate("alice", password)
        self.record("127.0.0.1", "success", user)
        ((after,),) = self.database.read("SELECT password_hash FROM users")
        self.assertIn("m=16,t=2,p=1", after)
        self.assertNotEqual([(after,)], before)
        self.assertEqual(self.outcome("alice", password), "alice")

    def test_a_reset_during_the_login_wins_over_the_new_hash(self):
        password = self.accounts.register("alice", None)
        self.accounts = self.open_accounts(cost=HashCost(2, 16, 1))
        user = self.accounts.authenticate("alice", password)
        newer = self.accounts.reset("alice")
        self.assertRaises(Superseded, self.record, "127.0.0.1", "success", user)
        self.assertEqual(self.outcome("alice", newer), "alice")
        self.assertEqual(self.outcome("alice", password), "bad_password")

    def test_two_logins_at_once_that_replace_a_hash_both_count(self):
        password = self.accounts.register("alice", None)
        self.accounts = self.open_accounts(cost=HashCost(2, 16, 1))
        users = [self.accounts.authenticate("alice", password) for _ in range(2)]
        self.record("127.0.0.1", "success", users[0])
        self.assertRaises(Superseded, self.record, "127.0.0.1", "success", users[1])
        self.assertEqual(self.attempt("alice", password), "success")

    def test_a_stored_hash_that_would_cost_too_much_matches_nothing(self):
        password = self.accounts.register("alice", None)
        for stored in ("$argon2id$v=19$m=4194304,t=3,p=1$c29tZXNhbHQ$c29tZWhhc2g", "plain", "",
                       b"x",
                       "$argon2id$v=19$m=8,t=1,p=0$c29tZXNhbHQ$c29tZWhhc2g"):  # fmt: skip
            self.store_hash(stored)
            self.assertEqual(self.outcome("alice", password), "bad_password")

    def test_a_stored_hash_takes_no_more_memory_than_a_common_one_four_times(self):
        self.accounts.register("alice", None)
        for own_memory, memory, paid in (
            (8, 4 * 65_536, True),
            (8, 4 * 65_536 + 1, False),
            (1_048_576, 4 * 1_048_576, True),  # as its operator wants
        ):
            self.accounts = self.open_accounts(cost=HashCost(1, own_memory, 1))
            self.store_hash(f"$argon2id$v=19$m={memory},t=1,p=1$c29tZXNhbHQ$c29tZWhhc2g")
            wrong = argon2.exceptions.VerifyMismatchError
            with mock.patch.object(argon2.PasswordHasher, "verify", side_effect=wrong) as verify:
                self.assertEqual(self.outcome("alice", "x"), "bad_password")
            self.assertEqual(f"m={memory}," in verify.call_args[0][0], paid, memory)

    def test_what_only_looks_like_a_stored_hash_costs_a_step_and_matches_nothing(self):
        password = self.accounts.register("alice", None)
        ((good,),) = self.database.read("SELECT password_hash FROM users")
        begin = "$argon2id$v=19$m=8,t=1,p=1"
        verified = []
        real = argon2.PasswordHasher.verify

        def verify(hasher, stored, given):
            verified.append(stored)
            return real(hasher, stored, given)

        for stored in (f"{begin}$YQ$YWJj", f"{begin}$$", f"{good}$x", good.replace("m=8", "m=08")):
            self.store_hash(stored)
            with mock.patch.object(argon2.PasswordHasher, "verify", verify):
                self.assertEqual(self.outcome("alice", password), "bad_password", stored)
            self.assertEqual(verified[-1], self.accounts._dummy)

    def test_a_lack_of_memory_or_threads_is_no_wrong_password(self):
        password = self.accounts.register("alice", None)
        for code in (-22, -33):
            trouble = argon2.exceptions.VerificationError(argon2.low_level.error_to_str(code))
            with mock.patch.object(argon2.PasswordHasher, "verify", side_effect=trouble):
                self.assertRaises(Busy, self.accounts.authenticate, "alice", password)
                self.assertRaises(Busy, self.accounts.authenticate, "nobody", password)

    def test_a_hash_at_the_default_of_the_library_is_verified_and_replaced(self):
        self.accounts.register("alice", None)
        self.store_hash(argon2.PasswordHasher().hash("imported"))
        self.assertEqual(self.outcome("alice", "imported"), "alice")

    def test_without_memory_to_hash_with_is_busy_and_judges_nobody(self):
        self.accounts.register("alice", None)
        for verb, error, call in (
            ("verify", argon2.exceptions.VerificationError, self.accounts.authenticate),
            ("hash", argon2.exceptions.HashingError, self.accounts.register),
        ):
            failing = error("Memory allocation error")
            with mock.patch.object(argon2.PasswordHasher, verb, side_effect=failing):
                self.assertRaises(
                    Busy, call, "alice" if verb == "verify" else "bob", "b@example.org"
                )


class Remembering(AccountsTest):
    def setUp(self):
        super().setUp()
        self.accounts = self.open_accounts(verified_seconds=600)
        self.password = self.accounts.register("alice", None)
        self.calls = self.count_hashing()

    def login(self, password=None):
        self.calls.clear()
        self.outcome("alice", password or self.password)
        return len(self.calls)

    def test_the_second_login_with_the_same_password_costs_no_hashing(self):
        self.assertEqual([self.login(), self.login()], [1, 0])

    def test_a_wrong_password_always_pays_the_full_price(self):
        self.login()
        self.assertEqual([self.login("wrong"), self.login("wrong"), self.login()], [1, 1, 0])

    def test_ends_with_a_reset_in_another_process(self):
        self.login()
        other = self.open_accounts()
        newer = other.reset("alice")
        self.calls.clear()
        self.assertEqual(self.attempt("alice", self.password), "bad_password")
        self.assertEqual(self.calls, ["verify"])
        self.assertEqual(self.attempt("alice", newer), "success")
        rows = self.database.read("SELECT outcome FROM auth_outcomes ORDER BY log_id")
        self.assertEqual(rows, [("bad_password",), ("success",)])

    def test_ends_with_a_deletion(self):
        self.login()
        self.open_accounts().delete("alice")
        self.assertEqual(self.attempt("alice", self.password), "unknown_user")

    def test_ends_for_one_user_without_harm_to_those_who_share_the_commit(self):
        self.accounts.register("bob", None)
        self.store_hash(self.database.read("SELECT password_hash FROM users WHERE id = 1")[0][0])
        users = [self.accounts.authenticate(name, self.password) for name in ("alice", "bob")]
        self.open_accounts().reset("alice")
        with self.database.expect():  # so that they share it
            told: list[Future] = [Future() for _ in users * 2]
            for user, future in zip(users * 2, told):
                self.accounts.record("127.0.0.1", "success", user, future, user.name)
            failures = [future.exception(10) for future in told]
        self.assertEqual([type(f) for f in failures], [Superseded, type(None)] * 2)
        self.assertEqual([future.result() for future in told[1::2]], ["bob"] * 2)
        rows = self.database.read("SELECT user_id, last_login IS NULL FROM auth_logs, users "
                                  "WHERE users.id = user_id")  # fmt: skip
        self.assertEqual(rows, [(2, 0), (2, 0)])
        self.assertEqual(self.database.read("SELECT last_login FROM users WHERE id = 1"), [(None,)])

    def test_ends_where_the_name_was_given_to_a_new_account(self):
        self.login()
        other = self.open_accounts()
        other.delete("alice", free=True)
        newer = other.register("alice", None)
        self.assertEqual(self.attempt("alice", self.password), "bad_password")
        self.assertEqual(self.attempt("alice", newer), "success")

    def test_ends_with_its_age(self):
        self.login()
        self.monotonic.advance(599)
        self.assertEqual(self.login(), 0)
        self.monotonic.advance(2)
        self.assertEqual(self.login(), 1)

    def test_can_be_off(self):
        self.accounts = self.open_accounts(verified_seconds=0)
        self.calls = self.count_hashing()
        self.assertEqual([self.login(), self.login()], [1, 1])

    def test_is_bounded_and_the_oldest_entry_makes_room(self):
        verified = Verified(600, clock=self.monotonic)
        users = [accounts.User(number, f"u{number}", "hash") for number in range(4)]
        with mock.patch.object(accounts, "VERIFIED_ENTRIES", 3):
            for user in users:
                verified.remember(user, "p")
        self.assertEqual([verified.user(user.name, "p") for user in users], [None, *users[1:]])


class Operating(AccountsTest):
    def test_two_registrations_of_a_name_at_once_leave_one(self):
        barrier, outcomes = threading.Barrier(8), []

        def register(number):
            barrier.wait()
            try:
                self.accounts.register("alice", f"a{number}@b.org")
                outcomes.append("made")
            except NameTaken:
                outcomes.append("taken")

        threads = [threading.Thread(target=register, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(outcomes), ["made"] + ["taken"] * 7)
        self.assertEqual(len(self.accounts.users()), 1)

    def test_attempts_that_share_commits_each_keep_their_time_address_and_outcome(self):
        self.database.write(
            lambda connection: connection.executemany(
                "INSERT INTO users (id, username, password_hash) VALUES (?, ?, '')",
                [(number, f"user{number}") for number in range(1, 301)],
            )
        )
        expected: list[tuple] = []
        recorded: list[Future] = []
        with self.database.expect():  # so that they share the largest commits there are
            for number in range(1, 301):
                self.clock.advance(0.25)
                outcome = "success" if number % 3 else "bad_password"
                user = accounts.User(number, f"user{number}", "") if number % 3 else number
                recorded.append(Future())
                self.accounts.record(f"10.0.0.{number}", outcome, user, recorded[-1], number)
                now = logins.utc_text(self.clock())
                last_login = now if number % 3 else None
                expected.append((f"10.0.0.{number}", now, outcome, number, last_login))
            self.assertEqual([future.result(60) for future in recorded], [*range(1, 301)])
        rows = self.database.read(
            "SELECT request_ip, request_timestamp, outcome, user_id, last_login FROM auth_logs "
            "JOIN auth_outcomes ON log_id = auth_logs.id JOIN users ON users.id = user_id "
            "ORDER BY auth_logs.id"
        )
        self.assertEqual(rows, expected)

    def test_a_deleted_users_log_rows_stay_without_a_name(self):
        password = self.accounts.register("alice", None)
        user = self.accounts.authenticate("alice", password)
        self.record("127.0.0.1", "success", user)
        self.accounts.delete("alice")
        self.record("127.0.0.1", "bad_password", user.id)
        self.assertRaises(Superseded, self.record, "127.0.0.1", "success", user)
        rows = self.database.read("SELECT user_id FROM auth_logs")
        self.assertEqual(rows, [(None,), (None,)])
        self.assertEqual(self.accounts.users(), [])

    def test_a_deleted_user_is_out_before_a_long_log_is_gone_through_and_in_small_commits(self):
        password = self.accounts.register("alice", None)
        user = self.accounts.authenticate("alice", password)
        other = self.accounts.authenticate("bob", self.accounts.register("bob", None))
        for _ in range(5):
            self.record("127.0.0.1", "success", user)
            self.record("127.0.0.1", "success", other)
        stamps, seen = set(), []

        def pause(seconds):
            stamps.add(self.database.stamp())
            with self.assertRaises(InvalidCredentials):
                self.accounts.authenticate("alice", password)
            seen.append(self.database.read("SELECT count(*) FROM auth_logs WHERE user_id = 1"))
            if len(seen) == 1:  # who tries meanwhile stands in the log as well
                self.record("127.0.0.1", "bad_password", user.id)

        with mock.patch.object(logins, "LOG_PAGE", 2), mock.patch("time.sleep", pause):
            self.accounts.delete("alice")
        self.assertEqual(seen, [[(3,)], [(2,)], [(1,)]])
        self.assertEqual(len(stamps), 3)
        rows = self.database.read("SELECT user_id, count(*) FROM auth_logs GROUP BY 1 ORDER BY 1")
        self.assertEqual(rows, [(None, 6), (other.id, 5)])
        self.assertEqual([row[0] for row in self.accounts.users()], ["bob"])

    def test_a_deletion_that_was_interrupted_goes_on_when_it_is_called_again(self):
        user = self.accounts.authenticate("alice", self.accounts.register("alice", None))
        for _ in range(5):
            self.record("127.0.0.1", "success", user)
        with mock.patch.object(logins, "LOG_PAGE", 2):
            with mock.patch("time.sleep", side_effect=KeyboardInterrupt):
                self.assertRaises(KeyboardInterrupt, self.accounts.delete, "alice")
            self.assertEqual([row[0] for row in self.accounts.users()], ["alice"])
            self.accounts.delete("alice")
        self.assertEqual(self.accounts.users(), [])
        self.assertEqual(self.database.read("SELECT DISTINCT user_id FROM auth_logs"), [(None,)])

    def test_an_unknown_user_is_an_error(self):
        self.assertRaises(UnknownUser, self.accounts.reset, "nobody")
        self.assertRaises(UnknownUser, self.accounts.delete, "nobody")

    def rows(self):
        return self.database.read("SELECT count(*) FROM auth_logs")[0][0]

    def test_prunes_the_oldest_rows_of_the_log_in_steps(self):
        for _ in range(5):
            self.record("127.0.0.1", "unknown_user", None)
            self.clock.advance(10)
        counts = []
        with mock.patch.multiple(logins, PRUNED_ROWS=1, PRUNE_STEPS=2):
            for _ in range(3):
                self.log.prune(25)
                counts.append(self.rows())
        self.assertEqual(counts, [3, 2, 2])
        self.assertEqual(self.database.read("SELECT count(*) FROM auth_outcomes"), [(2,)])

    def test_prunes_in_commits_of_their_own_so_that_logins_need_not_wait_for_all(self):
        for _ in range(6):
            self.record("127.0.0.1", "unknown_user", None)
        self.clock.advance(100)
        left, write = [], self.database.write

        def counted(job):
            removed = write(job)
            left.append(self.rows())
            return removed

        small = mock.patch.multiple(logins, PRUNED_ROWS=2, PRUNE_STEPS=10)
        with small, mock.patch.object(self.database, "write", counted):
            self.log.prune(10)
        self.assertEqual(left, [4, 2, 0])

    def write_log(self, *times):
        """Rows as another program might have written them."""
        sql = "INSERT INTO auth_logs (request_ip, request_timestamp) VALUES ('192.0.2.1', ?)"
        rows = [(time,) for time in times]
        self.database.write(lambda connection: connection.executemany(sql, rows))

    def at(self, seconds):
        """The clock's time and so many seconds, as the log has it."""
        return logins.utc_text(self.clock() + seconds)

    def test_no_commit_of_the_pruning_is_large(self):
        self.write_log(*[self.at(-100)] * 3_500)
        left, write = [3_500], self.database.write

        def counted(job):
            write(job)
            left.append(self.rows())

        with mock.patch.object(self.database, "write", counted):
            self.log.prune(10)
        self.assertEqual(left[-1], 0)
        self.assertLessEqual(max(a - b for a, b in zip(left, left[1:])), 1_000)

    def test_prunes_a_bounded_number_of_rows_a_second(self):
        self.write_log(*[self.at(-100)] * 12_500)
        self.log.prune(10)
        self.assertEqual(self.rows(), 7_500)

    def test_prunes_as_many_rows_as_come_however_many_those_are(self):
        with mock.patch.multiple(logins, PRUNED_ROWS=2, PRUNE_STEPS=1):
            self.log.prune(10)
            left = []
            for _ in range(5):
                self.write_log(*[self.at(-100)] * 100)
                self.log.prune(10)
                left.append(self.rows())
        self.assertEqual(left, [0] * 5)

    def test_prunes_what_was_there_before_while_as_many_rows_come(self):
        self.write_log(*[self.at(-100)] * 60)
        with mock.patch.multiple(logins, PRUNED_ROWS=2, PRUNE_STEPS=1):
            self.log.prune(10)
            self.assertEqual(self.rows(), 58)
            for _ in range(6):
                self.write_log(*[self.at(0)] * 10)
                self.log.prune(10)
        self.assertEqual(self.rows(), 60)

    def test_prunes_although_partitions_cannot_be_kept_and_tries_that_once_an_hour(self):
        self.write_log(self.at(-100))
        broken = self.database.sql._replace(partitions="SELECT no_such_function(?, ?)")
        with mock.patch.object(type(self.database), "sql", broken):
            self.assertRaises(Unavailable, self.log.prune, 10)
            self.log.prune(10)
            self.assertEqual(self.rows(), 0)
            self.clock.advance(3600)
            self.assertRaises(Unavailable, self.log.prune, 10)

    def test_new_attempts_are_learnt_while_a_transaction_never_ends(self):
        progress = logins.Progress(0)
        with (
            mock.patch.object(self.database, "horizon", return_value=(7, 9)),
            mock.patch.object(self.database, "own_writes", return_value=()),
            mock.patch.object(logins, "RECENT_ROWS", 4),
        ):
            for _ in range(5):
                self.write_log(*[self.at(0)] * 3)
                ((_, ages),) = self.log.others(progress)
                self.assertEqual(len(ages), 3)
                self.assertLessEqual(len(progress._given), 4)
            self.assertEqual(self.log.others(progress), [])

    def test_keeps_a_row_that_became_visible_between_the_look_and_the_removal(self):
        self.write_log(self.at(-100), self.at(-100))
        write = self.database.write

        def late(job):
            with mock.patch.object(self.database, "write", write):
                change = "UPDATE auth_logs SET request_timestamp = ? WHERE id = 1"
                self.database.write(lambda connection: connection.execute(change, (self.at(0),)))
            return write(job)

        with mock.patch.object(self.database, "write", late):
            self.log.prune(10)
        self.assertEqual(self.database.read("SELECT id FROM auth_logs"), [(1,)])

    def test_does_not_look_at_a_log_of_which_nothing_is_due_any_further_than_a_commit(self):
        self.write_log(*[self.at(-1)] * 3_000)
        rows, read = [], self.database.read

        def counted(*query):
            rows.extend(found := read(*query))
            return found

        with mock.patch.object(self.database, "read", counted):
            self.log.prune(10)
        self.assertLessEqual(len(rows), 1_001)  # and the number of the newest

    def test_prunes_no_row_for_the_sake_of_one_that_a_wrong_clock_dated(self):
        self.write_log(*[self.at(-60)] * 98, "1970-01-01 00:00:09.000", *[self.at(0)] * 10)
        self.log.prune(90 * 86_400)
        self.assertEqual(self.rows(), 109)
        self.clock.advance(90 * 86_400 - 30)
        self.log.prune(90 * 86_400)
        self.assertEqual(self.rows(), 10)

    def test_prunes_what_stands_behind_rows_without_a_date_that_can_be_believed(self):
        for undated in (None, 1_800_000_000, 1.5, b"2027", "soon", "", self.at(365 * 86_400)):
            with self.subTest(undated=undated):
                day = -400 * 86_400
                self.write_log(*[undated] * 250, *[self.at(day)] * 300, undated, self.at(-60))
                for _ in range(5):
                    self.log.prune(90 * 86_400)
                # What has no date goes with what was written after it.
                self.assertEqual(self.rows(), 2)
                self.database.write(lambda connection: connection.execute("DELETE FROM auth_logs"))

    def test_prunes_what_is_too_old_by_the_clock_even_if_that_is_ahead(self):
        self.write_log(*[self.at(-100)] * 3)
        self.clock.advance(365 * 86_400)
        self.log.prune(90 * 86_400)
        self.assertEqual(self.rows(), 0)

    def test_prunes_no_row_of_a_clock_that_is_a_little_ahead(self):
        self.write_log(*[self.at(-100)] * 3, *[self.at(5)] * 3, *[self.at(-100)] * 3)
        self.log.prune(10)
        self.assertEqual(self.rows(), 6)

    def test_recent_attempts_are_the_newest_within_the_time_and_never_too_many(self):
        for number in range(6):
            self.record(f"192.0.2.{number}", "unknown_user", None)
            self.clock.advance(10)
        recent = [("192.0.2.3", [30.0]), ("192.0.2.4", [20.0]), ("192.0.2.5", [10.0])]
        self.assertEqual(self.log.recent(30), recent)
        with mock.patch.object(logins, "RECENT_ROWS", 2):
            self.assertEqual(self.log.recent(30), recent[1:])

    def test_recent_attempts_of_an_address_are_told_to_the_millisecond(self):
        for wait in (0.001, 0.25, 59.0):
            self.record("192.0.2.1", "unknown_user", None)
            self.clock.advance(wait)
        ((address, ages),) = self.log.recent(60)
        self.assertEqual((address, sorted(ages)), ("192.0.2.1", [59.0, 59.25, 59.251]))

    def test_the_clock_going_back_does_not_invent_recent_attempts(self):
        self.record("127.0.0.1", "unknown_user", None)
        self.clock.advance(-31_536_000)
        self.assertEqual(self.log.recent(60), [])

    def test_a_login_that_cannot_be_logged_raises(self):
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("DROP TABLE auth_outcomes")
        with self.assertRaises(Unavailable):
            self.record("127.0.0.1", "success", None)


if __name__ == "__main__":
    unittest.main()
