"""Keys against the outside: another JOSE library, kill -9, and a server that rotates."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import unittest

from joserfc import jwe
from joserfc.jwk import OctKey, RSAKey

import jwt_minimal
from bench import rotation_live
from jwksd.store import sealing
from jwksd.store.keystore import KeyStore, Policy, WrongSecret
from tests.support import ROOT, TemporaryFolder, some_key

CONTENT_KEY, SALT = bytes(range(64)), bytes(16)
# Not strict: `exp` and `p2s` are members that RFC 7516 §4.2 lets us add.
REGISTRY = jwe.JWERegistry(algorithms=["dir", "A256CBC-HS512"], strict_check_header=False)


class AnotherLibrary(unittest.TestCase):
    def test_opens_what_we_seal_with_the_content_key(self):
        blob = sealing.seal(some_key(0), 1234, CONTENT_KEY, SALT).decode()
        opened = jwe.decrypt_compact(blob, OctKey.import_key(CONTENT_KEY), registry=REGISTRY)
        key = RSAKey.import_key(json.loads(opened.plaintext))
        self.assertEqual(key.private_key.private_numbers(), some_key(0).private_numbers())
        self.assertEqual(opened.headers()["kid"], key.thumbprint())
        self.assertEqual(opened.headers()["exp"], 1234)

    def test_seals_what_we_open(self):
        jwk = sealing._private_jwk(some_key(0))
        header = {"alg": "dir", "enc": "A256CBC-HS512", "kid": "k", "exp": 5, "p2s": "A" * 22}
        blob = jwe.encrypt_compact(
            header,
            json.dumps(jwk).encode(),
            OctKey.import_key(CONTENT_KEY),
            registry=REGISTRY,
        )
        kid, opened = sealing.open_seal(blob.encode(), 5, CONTENT_KEY)
        self.assertEqual((kid, opened.private_numbers()), ("k", some_key(0).private_numbers()))


class Killed(TemporaryFolder):
    shares_database = True

    def test_at_any_moment_rekey_leaves_all_keys_to_one_secret(self):
        database = self.open_database()
        store = KeyStore(database, b"the secret number 0", Policy(), log=self.fail)
        store.make_due()
        kids = [row[0] for row in store.listing()]
        rng, secret, killed = random.Random(1), 0, 0
        for _ in range(16):
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "admin.py"), "--db", str(self.path), "rekey"],
                env={
                    **os.environ,
                    "NOT_MY_KEY": f"the secret number {secret + 1}",
                    "NOT_MY_KEY_PREVIOUS": f"the secret number {secret}",
                },
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(rng.uniform(0.2, 1.6))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait(10)
                killed += 1
            opened = [number for number in (secret, secret + 1) if self.opens(number, kids)]
            self.assertEqual(len(opened), 1)
            secret = opened[0]
        self.assertGreater(killed, 0)
        self.assertGreater(secret, 0)

    def opens(self, number, kids) -> bool:
        database = self.open_database()
        store = KeyStore(database, f"the secret number {number}".encode(), Policy(), log=self.fail)
        try:
            store.open()
            return [row[0] for row in store.listing()] == kids
        except WrongSecret:
            return False
        finally:
            database.close()


class Live(unittest.TestCase):
    def test_a_client_with_an_old_jwks_refuses_nothing_while_the_keys_rotate(self):
        with rotation_live.rotating(*rotation_live.DEMO) as server:
            outcome = rotation_live.watch(server, 20)
        self.assertEqual((outcome.refusals, outcome.empty), ([], 0))
        self.assertGreaterEqual(len(outcome.kids), 3)
        self.assertGreater(outcome.verified, 100)

    def test_an_operator_rotates_and_revokes_while_it_serves(self):
        with rotation_live.rotating() as server:
            old = server.jwks()[1]["keys"][0]["kid"]
            made = server.admin("keys", "rotate", "--now")
            time.sleep(1.1)  # it signs within a second
            kid = jwt_minimal.verify(server.token()[1]["token"], server.jwks()[1])[0]["kid"]
            self.assertEqual(kid, made)
            self.assertEqual([key["kid"] for key in server.jwks()[1]["keys"]], [made, old])
            instead = server.admin("keys", "revoke", made)
            self.assertEqual([key["kid"] for key in server.jwks()[1]["keys"]], [instead, old])

    def test_an_older_jwks_than_the_lead_allows_is_refused(self):
        age = rotation_live.COPY_AGE
        rotation_live.COPY_AGE = 4.5
        try:
            with rotation_live.rotating(*rotation_live.DEMO) as server:
                time.sleep(3)
                outcome = rotation_live.watch(server, 15)
        finally:
            rotation_live.COPY_AGE = age
        self.assertGreater(len(outcome.refusals), 0)


if __name__ == "__main__":
    unittest.main()
