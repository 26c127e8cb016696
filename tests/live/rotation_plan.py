"""The plan of a rotation for all known clients: a simulated month for each, which takes seconds."""

from __future__ import annotations

import random
import unittest
from unittest import mock

from bench import rotation_plan
from bench.rotation_plan import CLIENTS
from jwksd.store import keystore
from jwksd.store.keystore import KeyStore, Policy
from tests.support import Clock, TemporaryFolder, some_key
from tests.test_rotation import World, some_policy


class ThePlan(unittest.TestCase):
    def test_promises_every_client_the_defaults(self):
        lines = rotation_plan.report(Policy())
        for client in CLIENTS:
            line = next(line for line in lines if line.startswith(client.name))
            self.assertIn("never refuses a good token", line)

    def test_says_who_would_refuse_and_for_how_long(self):
        short = Policy(token_ttl=300, skew=60, lifetime=20_000, lead=300)
        found = {c.name: rotation_plan.worst(c, short) for c in CLIENTS if c.cache < 10_000}
        refusing = {name: verdict.longest for name, verdict in found.items() if verdict.refusals}
        self.assertEqual(set(refusing), {"Envoy", "istiod"})
        self.assertAlmostEqual(refusing["istiod"], 1200 - 300, delta=120)
        self.assertAlmostEqual(refusing["Envoy"], 600 - 300, delta=70)


class Simulated(unittest.TestCase):
    def test_no_client_ever_refuses_a_good_token(self):
        rotations = 0
        for seed in range(120):
            rng = random.Random(seed)
            clients = tuple(rng.sample(CLIENTS, 3))
            policy = some_policy(rng, max(client.needs for client in clients))
            world = World(rng, policy, clients).run(80)
            rotations += world.issuer.made
            self.assertEqual(world.refused, [], f"seed {seed}, {policy}")
        self.assertGreaterEqual(rotations, 9000)


class TheRealStore(TemporaryFolder):
    """The same with the keystore itself, its table, its seals, and starts in between."""

    def test_hundreds_of_rotations_are_not_noticed(self):
        rng, clock = random.Random(7), Clock()
        policy = Policy(token_ttl=60, skew=10, lifetime=400, lead=120, retention=500)
        database, numbers = self.open_database(), iter(range(10_000))

        def open_store() -> KeyStore:
            store = KeyStore(database, b"secret of the test", policy, log=self.fail, clock=clock)
            store.open()
            store.make_due()
            return store

        copies: list[tuple[float, set[str]]] = []
        seen: set[tuple[str, int]] = set()
        good: dict[str, float] = {}
        with mock.patch.object(keystore, "generate", lambda: some_key(next(numbers) % 9)):
            store = open_store()
            while len(seen) < 150:
                clock.advance(rng.choice((1, 5, 17)))
                if rng.random() < 0.02:
                    clock.advance(rng.choice((10, 100)))
                    store = open_store()
                store.make_due()
                store.prune()
                copies.append((clock.now, {key.kid for key in store.published().keys}))
                signing = store.signing_key()
                seen.add((signing.kid, signing.exp))
                good[signing.kid] = clock.now + policy.token_ttl
                copies = [copy for copy in copies if copy[0] >= clock.now - 100]
                for kid, exp in good.items():
                    if exp > clock.now:
                        # The copy is 100 s old at the most: younger than the lead.
                        self.assertIn(kid, copies[-1][1])
                self.assertIn(signing.kid, copies[0][1] | self.at_start(copies))
        self.assertLess(len(store.listing()), 12)

    @staticmethod
    def at_start(copies: list[tuple[float, set[str]]]) -> set[str]:
        """After an outage longer than its age a copy is fetched anew."""
        return copies[-1][1] if len(copies) == 1 else set()


if __name__ == "__main__":
    unittest.main()
