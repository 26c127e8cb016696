"""keystore.py: sealing, the rule of rotation, and the table."""

from __future__ import annotations

import json
import sqlite3
import unittest
from pathlib import Path
from unittest import mock

import keystore
from jwt_minimal import b64url_encode, public_jwk
from keystore import Key, KeyStore, NoSigningKey, Policy, SealBroken, WrongSecret
from tests.support import Clock, TemporaryFolder, some_key

CONTENT_KEY, SALT = bytes(range(64)), bytes(16)
POLICY = Policy(token_ttl=100, skew=10, lifetime=1000, lead=50, retention=5000)
VECTORS = json.loads(Path(__file__).with_name("vectors").joinpath("rfc.json").read_text("utf-8"))


class Sealing(unittest.TestCase):
    def setUp(self):
        self.blob = keystore.seal(some_key(0), 1234, CONTENT_KEY, SALT)

    def test_encrypts_as_rfc_7518_appendix_b3(self):
        vector = {k: v for k, v in VECTORS["rfc7518_b3"].items() if k != "source"}
        key, iv, aad, plaintext, ciphertext, tag = (
            bytes.fromhex(vector[name])
            for name in ("key", "iv", "aad", "plaintext", "ciphertext", "tag")
        )
        self.assertEqual(keystore.encrypt(key, iv, aad, plaintext), (ciphertext, tag))
        self.assertEqual(keystore.decrypt(key, iv, aad, ciphertext, tag), plaintext)

    def test_opens_what_it_sealed(self):
        kid, opened = keystore.open_seal(self.blob, 1234, CONTENT_KEY)
        self.assertEqual(opened.private_numbers(), some_key(0).private_numbers())
        self.assertEqual(kid, public_jwk(some_key(0).public_key())["kid"])
        self.assertEqual(keystore.salt_of(self.blob), SALT)

    def test_never_gives_the_same_bytes_twice(self):
        self.assertNotEqual(self.blob, keystore.seal(some_key(0), 1234, CONTENT_KEY, SALT))

    def test_refuses_every_change_of_a_single_bit(self):
        # Every octet, one of its bits each: all 8 of 1,900 octets would take minutes.
        for place in range(len(self.blob)):
            changed = bytearray(self.blob)
            changed[place] ^= 1 << place % 8
            with self.assertRaises(SealBroken, msg=place):
                keystore.open_seal(bytes(changed), 1234, CONTENT_KEY)

    def test_refuses_another_expiry_and_another_secret(self):
        with self.assertRaises(SealBroken):
            keystore.open_seal(self.blob, 1235, CONTENT_KEY)
        with self.assertRaises(SealBroken):
            keystore.open_seal(self.blob, 1234, bytes(64))

    def test_refuses_what_is_no_seal_at_all(self):
        for blob in (b"", b".", b"....", b"\xff.a.b.c.d", b"e30....", b"W10....", b"bnVsbA....",
                     b"-----BEGIN RSA PRIVATE KEY-----",
                     self.blob + b"=", self.blob + b"."):  # fmt: skip
            for question in (keystore.salt_of, lambda b: keystore.open_seal(b, 1, CONTENT_KEY)):
                with self.subTest(blob=blob[:30]):
                    if question is keystore.salt_of and blob.startswith(self.blob):
                        continue  # the salt alone is readable there
                    self.assertRaises(SealBroken, question, blob)

    def test_hides_the_private_numbers(self):
        d = keystore._private_jwk(some_key(0))["d"].encode()
        self.assertNotIn(d[10:40], self.blob)


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

    def test_settings_that_cannot_hold_it_are_named(self):
        self.assertIsNone(POLICY.problem())
        self.assertIn("key-lifetime", POLICY._replace(lifetime=160).problem())


class Storing(TemporaryFolder):
    def setUp(self):
        super().setUp()
        self.clock, self.lines = Clock(), []
        self.database = self.open_database()
        self.made = 0

    def open_store(self, secret=b"correct horse", policy=POLICY, database=None):
        store = KeyStore(
            database or self.database, secret, policy, log=self.lines.append, clock=self.clock
        )
        store.open()
        return store

    def make_due(self, store):
        def generate():
            self.made += 1
            return some_key(self.made)

        with mock.patch.object(keystore, "generate", generate):
            return store.make_due()

    def rows(self):
        return self.database.read("SELECT kid, key, exp FROM keys ORDER BY kid")

    def execute(self, sql, *values):
        with sqlite3.connect(self.path) as other:
            other.execute(sql, values)
        other.close()

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
            sealed = keystore.seal(some_key(0), exp, CONTENT_KEY, SALT)
            self.execute("UPDATE keys SET key = ? WHERE kid = ?", sealed, row)
        store.refresh()
        self.assertEqual(store.signing_key(), signing)
        self.assertIn("start again", self.lines[-1])

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


if __name__ == "__main__":
    unittest.main()
