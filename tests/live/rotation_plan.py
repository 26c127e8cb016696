"""The plan of a rotation for all known clients: a simulated month for each, which takes seconds."""

from __future__ import annotations

import unittest

from bench import rotation_plan
from bench.rotation_plan import CLIENTS
from jwksd.store.keystore import Policy


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


if __name__ == "__main__":
    unittest.main()
