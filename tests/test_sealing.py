"""sealing.py: what it sealed it opens, and nothing else."""

from __future__ import annotations

import json
import unittest
from pathlib import Path

from jwksd.store import sealing
from jwksd.store.sealing import SealBroken
from jwt_minimal import public_jwk
from tests.support import some_key

CONTENT_KEY, SALT = bytes(range(64)), bytes(16)
VECTORS = json.loads(Path(__file__).with_name("vectors").joinpath("rfc.json").read_text("utf-8"))


class Sealing(unittest.TestCase):
    def setUp(self):
        self.blob = sealing.seal(some_key(0), 1234, CONTENT_KEY, SALT)

    def test_encrypts_as_rfc_7518_appendix_b3(self):
        vector = {k: v for k, v in VECTORS["rfc7518_b3"].items() if k != "source"}
        key, iv, aad, plaintext, ciphertext, tag = (
            bytes.fromhex(vector[name])
            for name in ("key", "iv", "aad", "plaintext", "ciphertext", "tag")
        )
        self.assertEqual(sealing.encrypt(key, iv, aad, plaintext), (ciphertext, tag))
        self.assertEqual(sealing.decrypt(key, iv, aad, ciphertext, tag), plaintext)

    def test_opens_what_it_sealed(self):
        kid, opened = sealing.open_seal(self.blob, 1234, CONTENT_KEY)
        self.assertEqual(opened.private_numbers(), some_key(0).private_numbers())
        self.assertEqual(kid, public_jwk(some_key(0).public_key())["kid"])
        self.assertEqual(sealing.salt_of(self.blob), SALT)

    def test_never_gives_the_same_bytes_twice(self):
        self.assertNotEqual(self.blob, sealing.seal(some_key(0), 1234, CONTENT_KEY, SALT))

    def test_refuses_every_change_of_a_single_bit(self):
        for place in range(len(self.blob) * 8):
            changed = bytearray(self.blob)
            changed[place // 8] ^= 1 << place % 8
            with self.assertRaises(SealBroken, msg=place):
                sealing.open_seal(bytes(changed), 1234, CONTENT_KEY)

    def test_refuses_anything_in_the_part_that_the_tag_does_not_cover(self):
        protected, rest = self.blob.split(b"..")
        with self.assertRaises(SealBroken):
            sealing.open_seal(protected + b".QUJD." + rest, 1234, CONTENT_KEY)

    def test_refuses_another_expiry_and_another_secret(self):
        with self.assertRaises(SealBroken):
            sealing.open_seal(self.blob, 1235, CONTENT_KEY)
        with self.assertRaises(SealBroken):
            sealing.open_seal(self.blob, 1234, bytes(64))

    def test_refuses_what_is_no_seal_at_all(self):
        for blob in (b"", b".", b"....", b"\xff.a.b.c.d", b"e30....", b"W10....", b"bnVsbA....",
                     b"-----BEGIN RSA PRIVATE KEY-----",
                     self.blob + b"=", self.blob + b"."):  # fmt: skip
            for question in (sealing.salt_of, lambda b: sealing.open_seal(b, 1, CONTENT_KEY)):
                with self.subTest(blob=blob[:30]):
                    if question is sealing.salt_of and blob.startswith(self.blob):
                        continue  # the salt alone is readable there
                    self.assertRaises(SealBroken, question, blob)

    def test_hides_the_private_numbers(self):
        d = sealing._private_jwk(some_key(0))["d"].encode()
        self.assertNotIn(d[10:40], self.blob)


if __name__ == "__main__":
    unittest.main()
