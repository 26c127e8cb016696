"""keystore.py: the rule of rotation, and the table."""

from __future__ import annotations

import sqlite3
import unittest
from unittest import mock

from jwksd.store import keystore, sealing
from jwksd.store.keystore import Key, KeyStore, NoSigningKey, Policy, UnknownKey, WrongSecret
from jwt_minimal import b64url_encode
from tests.support import Clock, TemporaryFolder, some_key

CONTENT_KEY, SALT = bytes(range(64)), bytes(16)
SECRET, NEW_SECRET = b"correct horse", b"battery staple"
POLICY = Policy(token_ttl=100, skew=10, lifetime=1000, lead=50, retention=5000)


def key(exp: int) -> Key:
    return Key(f"kid-{exp}", exp, {"kid": f"kid-{exp}"}, mock.sentinel.private_key)


class TheRule(unittest.TestCase):
    def test_signs_with_the_first_to_expire_of_those_that_outlive_the_token(self):
        keys = (key(2000), key(1500), key(1105))
        self.assertEqual(keystore.signing_key(keys, 1000, POLICY).exp, 1500)
        self.assertEqual(keystore.signing_key(keys, 995, POLICY).exp, 1105)

    def test_signs_with_the_last_key_where_none_outlives_the_token(self):
        self.assertEqual(keystore.signing_key((key(1020), key(1050)), 1000, POLICY).exp, 1050)

    def test_has_no_signing_key_once_all_have_expired(self):
        self.assertIsNone(keystore.signing_key((key(1000),), 1000, POLICY))

    def test_publishes_every_unexpired_key_the_signing_key_first(self):
        keys = (key(900), key(1105), key(1500), key(2000))
        shown = keystore.published(keys, 1000, POLICY)
        self.assertEqual([k.exp for k in shown.keys], [1500, 1105, 2000])

    def test_knows_when_the_published_keys_change_next(self):
        # 1500 expires, or can no longer sign at 1390, or its successor is made at 1340.
        self.assertEqual(keystore.published((key(1500),), 1000, POLICY).until, 1340)
        self.assertEqual(keystore.published((key(1500),), 1350, POLICY).until, 1390)
        self.assertEqual(keystore.published((key(1500),), 1400, POLICY).until, 1500)

    def test_shows_the_next_signing_key_first_from_the_moment_after_the_end_on(self):
        keys = (key(1500), key(2400))
        shown = keystore.published(keys, 1390, POLICY)
        self.assertEqual((shown.keys[0].exp, shown.until), (1500, 1390))
        self.assertEqual(keystore.published(keys, 1390.001, POLICY).keys[0].exp, 2400)

    def test_ends_keys_early_but_never_before_their_tokens(self):
        keys = (key(900), key(1100), key(1500), key(2000))
        ended = keystore.endings(keys, 1000.7, 50, POLICY)
        # 1000 + 50 + ttl 100 + skew 10, a second apart, in the order they had; 1100 ends before.
        self.assertEqual([(k.kid, k.exp) for k in ended], [("kid-1500", 1161), ("kid-2000", 1162)])

    def test_ending_keys_early_does_not_change_which_one_signs_now(self):
        for expiries in ((1500, 1500), (1500, 2000), (1161, 1500), (1400, 1450, 1900)):
            keys = tuple(key(exp)._replace(kid=f"{9 - n}") for n, exp in enumerate(expiries))
            before = keystore.signing_key(keys, 1000, POLICY)
            ended = {k.kid: k for k in keystore.endings(keys, 1000, 50, POLICY)}
            after = tuple(ended.get(k.kid, k) for k in keys)
            with self.subTest(expiries=expiries):
                self.assertEqual(keystore.signing_key(after, 1000, POLICY).kid, before.kid)

    def test_settings_that_cannot_hold_it_are_named(self):
        self.assertIsNone(POLICY.problem())
        self.assertIn("key-lifetime", POLICY._replace(lifetime=160).problem())
        self.assertIn("key-lead", POLICY._replace(lead=1).problem())


class KeyStoreTest(TemporaryFolder):
    """A table of keys, a clock, and stores that work on both."""

    def setUp(self):
        super().setUp()
        self.clock, self.lines = Clock(), []
        self.database = self.open_database()
        self.made = 0

    def open_store(self, secret=SECRET, policy=POLICY, database=None, previous=None):
        store = KeyStore(
            database or self.database,
            secret,
            policy,
            previous=previous,
            log=self.lines.append,
            clock=self.clock,
        )
        store.open()
        return store

    def make_due(self, store):
        with self.ready_keys():
            return store.make_due()

    def ready_keys(self):
        """In this block no time is spent on making keys."""

        def generate():
            self.made += 1
            return some_key(self.made)

        return mock.patch.object(keystore, "generate", generate)

    def states(self, store):
        return [(exp - self.clock.now, state) for _, exp, state in store.listing()]

    def rows(self):
        return self.database.read("SELECT kid, key, exp FROM keys ORDER BY kid")

    def execute(self, sql, *values):
        with sqlite3.connect(self.path) as other:
            other.execute(sql, values)
        other.close()


class Storing(KeyStoreTest):
    def test_a_first_start_makes_an_expired_and_a_valid_key(self):
        store = self.open_store()
        self.assertTrue(self.make_due(store))
        expired, valid = self.rows()
        self.assertLess(expired[2], self.clock.now)
        self.assertEqual(valid[2], self.clock.now + POLICY.lifetime)
        self.assertEqual(store.signing_key().exp, valid[2])
        self.assertEqual(store.expired_key().exp, expired[2])

    def test_a_later_start_adds_none_while_a_good_one_exists(self):
        self.make_due(self.open_store())
        self.assertFalse(self.make_due(self.open_store()))
        self.assertEqual(len(self.rows()), 2)

    def test_makes_the_next_key_one_lead_before_the_last_can_no_longer_sign(self):
        store = self.open_store()
        self.make_due(store)
        first = store.signing_key()
        self.clock.advance(1000 - 100 - 10 - 50 - 1)
        self.assertEqual((self.make_due(store), store.due_in()), (False, 1.0))
        self.clock.advance(1)
        self.assertTrue(self.make_due(store))
        self.assertEqual(store.signing_key(), first)
        self.assertEqual(len(store.published().keys), 2)
        self.clock.advance(51)
        self.assertNotEqual(store.signing_key(), first)
        self.assertEqual(store.published().keys[0], store.signing_key())

    def test_finds_the_next_key_before_it_is_due(self):
        store = self.open_store()
        self.make_due(store)
        self.clock.advance(1000 - 100 - 10 - 50 - 3)
        self.assertFalse(self.make_due(store))
        self.clock.advance(3)
        with mock.patch.object(keystore, "generate", side_effect=AssertionError):
            self.assertTrue(store.make_due())
        self.assertEqual(len({row[0] for row in store.listing()}), 3)

    def test_a_gap_while_the_server_was_off_heals_at_the_start(self):
        self.make_due(self.open_store())
        self.clock.advance(100_000)
        store = self.open_store()
        self.assertRaises(NoSigningKey, store.signing_key)
        self.assertTrue(self.make_due(store))
        self.assertEqual(store.signing_key().exp, self.clock.now + POLICY.lifetime)

    def test_two_servers_on_one_database_make_one_key(self):
        one, two = self.open_store(), self.open_store()
        self.assertEqual((self.make_due(one), self.make_due(two)), (True, False))
        self.assertEqual(len(self.rows()), 2)
        self.assertEqual(one.published().document(), two.published().document())
        self.clock.advance(900)
        self.assertEqual((self.make_due(one), self.make_due(two)), (True, False))
        self.assertEqual(len(self.rows()), 3)

    def test_the_wrong_secret_is_an_error_that_changes_nothing(self):
        self.make_due(self.open_store())
        before = self.rows()
        with self.assertRaisesRegex(WrongSecret, "NOT_MY_KEY opens none of the 2 keys"):
            self.open_store(b"another secret")
        self.assertEqual(self.rows(), before)

    def test_swapped_prolonged_and_foreign_rows_are_skipped_and_named(self):
        self.make_due(self.open_store())
        (old, old_key, _), (_, _, new_exp) = self.rows()
        self.execute("UPDATE keys SET exp = ? WHERE kid = ?", new_exp + 5, old)
        self.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", "PEM", new_exp + 7)
        self.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", old_key, new_exp)
        store = self.open_store()
        self.assertEqual([k.exp for k in store.published().keys], [new_exp])
        self.assertEqual(len(self.lines), 3, self.lines)
        self.assertEqual([line.split()[3] for line in self.lines], ["row-1", "row-3", "row-4"])
        self.assertEqual([state for _, _, state in store.listing()][1:], ["unreadable"] * 3)

    def test_keys_deleted_or_added_by_others_are_taken_over(self):
        store = self.open_store()
        self.make_due(store)
        _, valid = self.rows()
        self.execute("DELETE FROM keys WHERE kid = ?", valid[0])
        store.refresh()
        self.assertRaises(NoSigningKey, store.signing_key)
        self.assertFalse(self.make_due(store), "who empties the table means it")
        self.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", *valid[1:])
        store.refresh()
        self.assertEqual(store.signing_key().exp, valid[2])

    def test_keys_sealed_anew_with_another_secret_do_not_stop_a_running_server(self):
        store = self.open_store()
        self.make_due(store)
        signing = store.signing_key()
        for row, _, exp in self.rows():
            sealed = sealing.seal(some_key(0), exp, CONTENT_KEY, SALT)
            self.execute("UPDATE keys SET key = ? WHERE kid = ?", sealed, row)
        store.refresh()
        self.assertEqual(store.signing_key(), signing)
        self.assertIn("start again", self.lines[-1])
        self.clock.advance(900)
        before = self.rows()
        self.assertFalse(self.make_due(store), "a key under the old secret would be lost")
        self.clock.advance(1_000_000)
        store.prune()
        self.assertEqual(self.rows(), before)

    def test_a_key_damaged_while_running_is_named_and_replaced_by_a_new_one(self):
        store = self.open_store()
        self.make_due(store)
        self.execute("UPDATE keys SET key = CAST('damaged' AS BLOB) WHERE kid = 2")
        store.refresh()
        self.assertRaises(NoSigningKey, store.signing_key)
        self.assertIn("row-2", self.lines[0])
        self.assertTrue(self.make_due(store))
        self.assertEqual(self.rows()[1][1], b"damaged")

    def test_of_two_rows_with_one_key_the_earlier_expiry_counts(self):
        store = self.open_store()
        self.make_due(store)
        _, (_, blob, exp) = self.rows()
        with self.ready_keys():
            store.rotate(at_once=True)
        self.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", blob, exp)
        store.refresh()
        found = sorted(k.exp - self.clock.now for k in store.published().keys)
        self.assertEqual(found, [110, POLICY.lifetime])

    def test_a_change_decided_on_rows_that_are_gone_is_not_made(self):
        store = self.open_store()
        self.make_due(store)
        self.clock.advance(900)

        def delete_meanwhile():
            self.execute("DELETE FROM keys WHERE kid = 1")
            return some_key(9)

        with mock.patch.object(keystore, "generate", delete_meanwhile):
            self.assertFalse(store.make_due())
        self.assertEqual([row[0] for row in self.rows()], [2])

    def test_opens_a_key_once(self):
        store = self.open_store()
        self.make_due(store)
        with mock.patch.object(keystore, "open_seal", side_effect=AssertionError):
            store.refresh()
            store.signing_key()

    def test_prunes_what_expired_long_ago_but_never_the_newest_expired_key(self):
        store = self.open_store()
        self.make_due(store)
        for _ in range(9):
            self.clock.advance(900)
            self.make_due(store)
        store.prune()
        expired = [row[2] for row in self.rows() if row[2] <= self.clock.now]
        self.assertTrue(all(exp >= self.clock.now - POLICY.retention for exp in expired), expired)
        self.assertEqual(store.expired_key().exp, expired[-1])
        self.clock.advance(1_000_000)
        store.prune()
        self.assertEqual(len(self.rows()), 1)

    def test_keeps_a_bounded_number_of_expired_keys(self):
        store = self.open_store(policy=POLICY._replace(retention=10**9))
        self.make_due(store)
        with mock.patch.object(keystore, "MAX_EXPIRED", 3):
            for _ in range(6):
                self.clock.advance(900)
                self.make_due(store)
                store.prune()
        self.assertEqual([state for _, state in self.states(store)].count("expired"), 3)

    def test_remembers_the_settings_for_other_processes(self):
        self.assertIsNone(keystore.remembered_policy(self.database))
        for policy in (POLICY, POLICY._replace(token_ttl=200)):
            self.open_store(policy=policy).remember_policy()
            self.assertEqual(keystore.remembered_policy(self.database), policy)

    def test_no_private_number_stands_in_any_file(self):
        store = self.open_store()
        self.make_due(store)
        numbers = store.signing_key().private_key.private_numbers()
        self.database.close()
        stored = b"".join(file.read_bytes() for file in self.folder.iterdir())
        for number in (numbers.d, numbers.p, numbers.q):
            octets = number.to_bytes((number.bit_length() + 7) // 8, "big")
            self.assertNotIn(octets[:16], stored)
            self.assertNotIn(b64url_encode(octets)[:24].encode(), stored)
            self.assertNotIn(str(number).encode()[:24], stored)
        self.assertNotIn(b"PRIVATE KEY", stored)


class Rotating(KeyStoreTest):
    """Early, as an operator orders it."""

    def setUp(self):
        super().setUp()
        self.store = self.open_store()
        self.make_due(self.store)
        self.old = self.store.signing_key()
        self.clock.advance(10)

    def rotate(self, **options):
        with self.ready_keys():
            return self.store.rotate(**options)

    def test_signs_with_the_new_key_after_the_lead(self):
        kid, signs = self.rotate()
        self.assertEqual(signs, self.clock.now + 300, "no HTTP cache is older than that")
        self.assertEqual({k.kid for k in self.store.published().keys}, {self.old.kid, kid})
        self.clock.now = signs
        self.assertEqual(self.store.signing_key().kid, self.old.kid)
        self.clock.advance(1)
        self.assertEqual(self.store.signing_key().kid, kid)

    def test_at_once_signs_with_it_the_next_second(self):
        kid, signs = self.rotate(at_once=True)
        self.assertEqual(signs, self.clock.now)
        self.clock.advance(1)
        self.assertEqual(self.store.signing_key().kid, kid)

    def test_keeps_older_keys_published_until_their_last_token_has_expired(self):
        for options in ({"at_once": True}, {}):
            with self.subTest(options=options):
                issued = {}
                self.rotate(**options)
                for _ in range(500):
                    signing = self.store.signing_key()
                    issued[signing.kid] = self.clock.now + POLICY.token_ttl + POLICY.skew
                    shown = {k.kid for k in self.store.published().keys}
                    good = {k for k, exp in issued.items() if exp > self.clock.now}
                    self.assertLessEqual(good, shown)
                    self.clock.advance(1)

    def test_seals_the_shortened_keys_anew_and_never_prolongs_one(self):
        before = {row[0]: row[2] for row in self.rows()}
        self.rotate()
        self.rotate(at_once=True)
        self.rotate()
        after = {row[0]: row[2] for row in self.rows()}
        self.assertTrue(all(after[row] <= exp for row, exp in before.items()))
        self.assertEqual(self.open_store().listing(), self.store.listing())
        self.assertEqual(self.lines, [])

    def test_is_taken_over_by_a_running_server(self):
        running = self.open_store()
        kid, _ = self.rotate(at_once=True)
        running.refresh()
        self.clock.advance(1)
        self.assertEqual(running.signing_key().kid, kid)
        self.assertEqual(running.due_in(), self.store.due_in())

    def test_decides_again_when_another_process_was_faster(self):
        other = self.open_store()
        with self.ready_keys():
            other.rotate()
        kid, _ = self.rotate()
        self.assertEqual(len(self.rows()), 4)
        self.assertEqual(max(self.store.listing(), key=lambda row: row[1])[0], kid)

    def test_works_on_an_empty_table_and_after_all_have_expired(self):
        self.clock.advance(100_000)
        kid, signs = self.rotate()
        self.assertEqual((self.store.signing_key().kid, signs), (kid, self.clock.now))
        self.execute("DELETE FROM keys")
        store = self.open_store()
        with self.ready_keys():
            store.rotate()
        self.assertEqual([state for _, state in self.states(store)], ["expired", "signing"])

    def test_leaves_the_new_key_the_last_to_expire_where_the_lifetime_was_lowered(self):
        self.store.policy = POLICY._replace(lifetime=170)
        kid, signs = self.rotate()
        self.assertLess(self.clock.now, signs)
        self.assertEqual(max(self.store.listing(), key=lambda row: row[1])[0], kid)


class Revoking(KeyStoreTest):
    def setUp(self):
        super().setUp()
        self.store = self.open_store()
        self.make_due(self.store)
        self.old = self.store.signing_key()

    def revoke(self, kid, **options):
        with self.ready_keys():
            return self.store.revoke(kid, **options)

    def test_makes_a_new_key_in_place_of_the_only_one(self):
        made = self.revoke(self.old.kid)
        self.assertEqual([k.kid for k in self.store.published().keys], [made])
        self.assertNotIn(self.old.kid, [row[0] for row in self.store.listing()])

    def test_makes_none_where_another_can_sign(self):
        with self.ready_keys():
            following, _ = self.store.rotate()
        self.assertIsNone(self.revoke(self.old.kid))
        self.assertEqual(self.store.signing_key().kid, following)

    def test_makes_none_if_told_so_and_a_running_server_obeys(self):
        running = self.open_store()
        self.assertIsNone(self.revoke(self.old.kid, replace=False))
        running.refresh()
        self.assertFalse(self.make_due(running))
        self.assertRaises(NoSigningKey, running.signing_key)

    def test_of_an_unknown_key_is_refused(self):
        before = self.rows()
        with self.assertRaisesRegex(UnknownKey, "there is no key 'nobody'"):
            self.revoke("nobody")
        self.assertEqual(self.rows(), before)

    def test_removes_rows_that_do_not_open_by_their_name(self):
        self.execute("INSERT INTO keys (key, exp) VALUES ('PEM', 'soon')")
        store = self.open_store()
        self.assertIsNone(store.revoke("row-3"))
        self.assertEqual(len(self.rows()), 2)

    def test_leaves_nothing_of_the_sealed_key_in_the_file(self):
        (_, blob, _) = self.rows()[1]
        self.revoke(self.old.kid)
        self.database.close()
        self.assertNotIn(blob[300:400], self.path.read_bytes())


class SealingAnew(KeyStoreTest):
    """`rekey`: from one secret to the next."""

    def setUp(self):
        super().setUp()
        self.make_due(self.open_store())
        self.kids = [row[0] for row in self.open_store().listing()]

    def opens(self, secret):
        try:
            return [row[0] for row in self.open_store(secret).listing()] == self.kids
        except WrongSecret:
            return False

    def test_with_both_secrets_everything_opens_before_and_after(self):
        store = self.open_store(NEW_SECRET, previous=SECRET)
        self.assertIn("2 keys are still sealed with the previous secret", self.lines[-1])
        self.assertEqual([row[0] for row in store.listing()], self.kids)
        self.assertEqual(store.rekey(), 2)
        self.assertEqual([row[0] for row in store.listing()], self.kids)
        self.assertEqual((self.opens(SECRET), self.opens(NEW_SECRET)), (False, True))
        self.open_store(NEW_SECRET, previous=SECRET)
        self.assertIn("unset it", self.lines[-1])

    def test_a_dry_run_counts_and_changes_nothing(self):
        before = self.rows()
        self.assertEqual(self.open_store(NEW_SECRET, previous=SECRET).rekey(dry_run=True), 2)
        self.assertEqual(self.rows(), before)

    def test_a_second_time_has_nothing_to_do(self):
        self.open_store(NEW_SECRET, previous=SECRET).rekey()
        before = self.rows()
        self.assertEqual(self.open_store(NEW_SECRET, previous=SECRET).rekey(), 0)
        self.assertEqual(self.rows(), before)

    def test_is_refused_as_a_whole_where_one_row_opens_with_neither(self):
        self.execute("INSERT INTO keys (key, exp) VALUES ('PEM', 5)")
        before = self.rows()
        with self.assertRaisesRegex(WrongSecret, "row-3"):
            self.open_store(NEW_SECRET, previous=SECRET).rekey()
        self.assertEqual(self.rows(), before)

    def test_that_fails_in_the_middle_changes_nothing(self):
        self.execute(
            "CREATE TRIGGER fails BEFORE UPDATE ON keys WHEN old.kid = 2 "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        before = self.rows()
        with self.assertRaises(sqlite3.Error):
            self.open_store(NEW_SECRET, previous=SECRET).rekey()
        self.assertEqual(self.rows(), before)
        self.assertTrue(self.opens(SECRET))

    def test_keys_made_meanwhile_are_sealed_with_the_new_secret(self):
        store = self.open_store(NEW_SECRET, previous=SECRET)
        self.clock.advance(900)
        self.assertTrue(self.make_due(store))
        self.assertEqual(len(self.open_store(NEW_SECRET).listing()), 3)
        self.assertEqual(store.rekey(), 2)

    def test_a_server_that_has_both_secrets_goes_on_as_if_nothing_happened(self):
        running = self.open_store(NEW_SECRET, previous=SECRET)
        before, self.lines[:] = running.listing(), []
        self.open_store(NEW_SECRET, previous=SECRET).rekey()
        self.lines.clear()
        running.refresh()
        self.assertEqual((running.listing(), self.lines), (before, []))
        self.clock.advance(900)
        self.assertTrue(self.make_due(running))


if __name__ == "__main__":
    unittest.main()
