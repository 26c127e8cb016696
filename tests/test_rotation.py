"""Rotation, proved by simulation: clients as they are never refuse a good token.

Invariant: whatever the settings, restarts and clock steps within the skew, a client whose copy of
the JWKS is no older than the lead accepts every token that has not expired.
"""

from __future__ import annotations

import random
import re
import unittest
from unittest import mock

import admin
from bench import rotation_plan
from bench.rotation_plan import CLIENTS, Client, Issuer, Verifier
from jwksd.ops.upkeep import Upkeep
from jwksd.store import keystore
from jwksd.store.keystore import Policy
from tests.support import ROOT

SLOWEST = 2.0  # s between the moment a key is due and the moment it is published


def some_policy(rng: random.Random, lead: float) -> Policy:
    """Settings that hold the inequality, narrowly or with room."""
    ttl = rng.choice((4, 60, 300, 3600, 86_400))
    skew = rng.choice((0, 1, 30, 300))
    lead = int(lead + skew + SLOWEST + 1 + rng.choice((0, 0, 1, 100)))
    needed = lead + ttl + skew
    # Time from one making to the next: short, so that several keys overlap, or long.
    return Policy(ttl, skew, needed + rng.choice((needed // 4 + 1, needed, 100_000)), lead)


class World:
    """A server with a clock that is never quite right, and verifiers that meet its tokens."""

    def __init__(self, rng: random.Random, policy: Policy, clients: tuple[Client, ...]) -> None:
        self.rng, self.policy = rng, policy
        self.now, self.off = 0.0, 0.0
        self.issuer = Issuer(policy, 0.0, delay=rng.uniform(0, SLOWEST))
        self.verifiers = [Verifier(client) for client in clients]
        for verifier in self.verifiers:  # copies of every age
            verifier.fetch(self.issuer, -rng.random() * min(verifier.client.cache, 1e5), 0.0)
        self.tokens: list[tuple[str, float]] = []  # kid, and until when a slow clock takes it
        self.refused: list[tuple[str, str, float]] = []

    @property
    def server_now(self) -> float:
        return self.now + self.off

    def pass_time(self) -> None:
        """Some time, an outage, or a step of the server's clock; never so that it goes back far."""
        rng, policy = self.rng, self.policy
        kind = rng.random()
        change = self.issuer.published(self.server_now).until - self.off
        if kind < 0.35:
            self.now = max(self.now, change + rng.choice((-0.5, 0.0, 0.001, 0.5, SLOWEST)))
        elif kind < 0.9:
            mean = rng.choice((1, policy.token_ttl / 4, policy.lead / 3, policy.lifetime / 9))
            self.now += rng.expovariate(1 / mean)
        elif kind < 0.96:
            self.now += rng.expovariate(1 / rng.choice((policy.lead, policy.lifetime)))
            self.issuer.start_again(self.server_now)
        else:
            self.off = rng.uniform(-policy.skew / 2, policy.skew / 2)
        self.issuer.run(self.server_now)

    def verify(self) -> None:
        """Every verifier meets a new token and those still good, the oldest and some other."""
        token = self.issuer.sign(self.server_now)
        # Signed by the server's clock; a client's may be behind as far as the skew has room.
        self.tokens.append((token.kid, token.exp + self.policy.skew / 2))
        self.tokens = [each for each in self.tokens[-200:] if each[1] > self.now]
        met = {token.kid} | {kid for kid, _ in self.tokens[:1]}
        if self.tokens:
            met.add(self.rng.choice(self.tokens)[0])
        for verifier in self.verifiers:
            for kid in met:
                if not verifier.accepts(kid, self.issuer, self.now, self.server_now):
                    self.refused.append((verifier.client.name, kid, self.now))

    def run(self, rotations: int) -> World:
        while self.issuer.made < rotations:
            self.pass_time()
            self.verify()
        return self


class Simulated(unittest.TestCase):
    def test_a_lead_shorter_than_a_client_needs_is_found_out(self):
        for client in CLIENTS:
            if client.max_age or client.needs < 30:
                continue
            refused = 0
            for seed in range(10):
                rng = random.Random(seed)
                lead = int(client.needs * 0.4) + 2
                policy = Policy(60, 0, lead + 60 + 2 * int(client.needs), lead)
                refused += len(World(rng, policy, (client,)).run(20).refused)
            self.assertGreater(refused, 0, client.name)

    def test_a_rule_that_signs_with_a_key_as_soon_as_it_is_made_is_found_out(self):
        envoy = next(client for client in CLIENTS if client.name == "Envoy")

        def newest(keys, now, policy):
            return max(keys, key=lambda key: key.exp)

        with mock.patch.object(keystore, "signing_key", newest):
            world = World(random.Random(1), Policy(60, 10, 5000, 1000), (envoy,)).run(20)
        self.assertGreater(len(world.refused), 0)

    def test_a_rule_that_drops_a_key_before_its_tokens_is_found_out(self):
        class Hasty(Issuer):
            def published(self, now):
                whole = super().published(now)
                return whole._replace(keys=whole.keys[:1])

        with mock.patch.object(rotation_plan, "Issuer", Hasty):
            policy = Policy(600, 10, 5000, 1000)
            found = rotation_plan.worst(CLIENTS[1], policy)
        self.assertGreater(found.refusals, 0)

    def test_who_obeys_max_age_needs_no_lead_but_the_shortest(self):
        obeys = next(client for client in CLIENTS if client.max_age)
        for seed in range(40):
            rng = random.Random(seed)
            policy = Policy(rng.choice((4, 600)), 0, 700, rng.choice((2.0, 3.0, 60.0)))
            self.assertEqual(World(rng, policy, (obeys,)).run(20).refused, [], f"seed {seed}")

    def test_an_early_rotation_after_the_lead_is_not_noticed_either(self):
        for seed in range(60):
            rng = random.Random(seed)
            world = World(rng, some_policy(rng, 1200), CLIENTS[:7])
            for _ in range(12):
                for _ in range(rng.randrange(12)):
                    world.pass_time()
                    world.verify()
                world.off = 0.0
                world.issuer.rotate(world.server_now, world.policy.lead)
            self.assertEqual(world.refused, [], f"seed {seed}, {world.policy}")

    def test_the_jwks_is_never_empty_and_never_changes_before_it_said_it_would(self):
        for seed in range(40):
            rng = random.Random(seed)
            policy = some_policy(rng, 10)
            issuer, now = Issuer(policy, 0.0), 0.0
            while issuer.made < 20:
                keys, until = issuer.published(now).keys, issuer.published(now).until
                self.assertTrue(keys)
                self.assertIs(keys[0], keystore.signing_key(issuer.keys, now, policy))
                between = now + rng.random() * (until - now) * 0.999
                issuer.run(between)
                fresh = keystore.published(issuer.keys, between, policy)
                self.assertEqual(fresh.keys, keys)
                now = until + rng.choice((0.0, 0.01))
                issuer.run(now)

    def test_a_clock_set_back_far_heals_within_the_age_of_a_copy(self):
        envoy = next(client for client in CLIENTS if client.name == "Envoy")
        world = World(random.Random(1), Policy(60, 10, 5000, 700), (envoy,))
        world.run(5)
        for back in (1000.0, 20_000.0):
            world.off = -back
            for seconds in range(0, 2000, 10):
                world.now += 10
                world.issuer.run(world.server_now)
                world.refused.clear()
                world.verify()
                if seconds > envoy.cache:
                    self.assertEqual(world.refused, [], back)


class ThePlan(unittest.TestCase):
    def test_says_how_long_a_revoked_key_is_trusted(self):
        trusted = {
            c.name: rotation_plan.trusts_revoked(c, Policy(), good_tokens=False) for c in CLIENTS
        }
        self.assertEqual(trusted["PyJWT"], 300)
        self.assertEqual(trusted["istiod"], 1200)
        self.assertEqual(trusted["jwks-rsa for Java"], 36_000)
        self.assertEqual(trusted["go-oidc"], float("inf"))

    def test_draws_a_line_for_each_key(self):
        lines = rotation_plan.timeline(Policy(4, 1, 14, 3))
        self.assertEqual(len(lines), 4)
        self.assertRegex(lines[1], r"^key 1  #+-+$")
        self.assertRegex(lines[2], r"^key 2  +\.+#+-+$")


class TheOperatorsPage(unittest.TestCase):
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

    def test_has_a_row_for_every_client_with_the_lead_it_needs(self):
        for client in CLIENTS:
            row = next(
                li
                for li in self.page.replace("`", "").splitlines()
                if li.startswith(f"| {client.name} |")
            )
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            with self.subTest(client=client.name):
                needs = rotation_plan.spell(client.needs) if client.needs else "none"
                self.assertIn("the shortest, 2 s" if client.max_age else needs, cells[4])
                if client.cache != float("inf"):
                    trusted = client.cache
                    self.assertIn(rotation_plan.spell(trusted), cells[5])

    def test_orders_only_what_there_is(self):
        commands = re.findall(r"^python admin\.py (.*?)(?: +#.*)?$", self.page, re.MULTILINE)
        self.assertGreater(len(commands), 4)
        for command in commands:
            with self.subTest(command=command):
                self.assertTrue(callable(admin.make_parser().parse_args(command.split()).run))


class TheUpkeepThread(unittest.TestCase):
    def waits(self, *due_in: float) -> list[float]:
        """How long it waits for its next look, if that is how soon a key is due when it asks."""
        keys, stopping = mock.Mock(), mock.Mock()
        keys.due_in.side_effect = due_in
        stopping.wait.side_effect = [False] * (len(due_in) // 2) + [True]
        chores = Upkeep(
            mock.Mock(moved=lambda: False), keys, mock.Mock(), log_retention=1.0, log=mock.Mock()
        )
        chores.run(stopping, lambda: None)
        return [call.args[0] for call in stopping.wait.call_args_list]

    def test_wakes_when_a_key_is_due_and_every_second_else(self):
        self.assertEqual(self.waits(900, 899, 899), [1, 1])
        self.assertEqual(self.waits(0.5, 0, 600), [0.5, 1])

    def test_makes_at_once_what_came_due_while_it_looked(self):
        self.assertEqual(self.waits(1, 0.001, 0), [1, 0])

    def test_does_not_spin_over_what_cannot_be_made(self):
        self.assertEqual(self.waits(0, 0, 0, 0, 0), [0, 1, 1])


if __name__ == "__main__":
    unittest.main()
