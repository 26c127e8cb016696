"""The limiter against brute force, on histories that hypothesis looks for. Needs `hypothesis`.

Invariant of the first: a hit is admitted if and only if, of the hits admitted before, fewer than
COUNT lie in the last PERIOD, for every rule; and the wait is the fewest whole seconds that suffice.
"""

from __future__ import annotations

import ipaddress
import unittest

from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import (
    MAX_COUNT,
    Limiter,
    Rule,
    client_address,
    limit_header,
    parse_limit,
    parse_networks,
    policy_header,
    source,
)

MILLI = 1_000  # histories are drawn in whole milliseconds: the model's own sums are then exact

rules_in_ms = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9_000)), min_size=1, max_size=3)
histories = st.lists(
    st.tuples(st.sampled_from("aab"), st.one_of(st.just(0), st.integers(0, 4_000))), max_size=60
)
starts = st.integers(0, 10**10)  # milliseconds: up to four months after the machine started


def admits(admitted: list[int], rules: list[tuple[int, int]], now: int) -> bool:
    """The definition."""
    return all(
        sum(1 for hit in admitted if now - period < hit <= now) < count for count, period in rules
    )


def limiter_of(rules: list[tuple[int, int]], now: list[int], max_sources: int = 1_000) -> Limiter:
    return Limiter(
        [Rule(count, period / MILLI) for count, period in rules],
        clock=lambda: now[0] / MILLI,
        max_sources=max_sources,
    )


class AgainstBruteForce(unittest.TestCase):
    @settings(max_examples=1_000, deadline=None)
    @given(rules_in_ms, histories, starts)
    def test_every_verdict_is_the_definition_s(self, rules, history, start):
        now = [start]
        limiter = limiter_of(rules, now)
        admitted: dict[str, list[int]] = {"a": [], "b": []}
        for name, pause in history:
            now[0] += pause
            mine = admitted[name]
            expected = admits(mine, rules, now[0])
            verdict = limiter.hit(name)
            self.assertEqual(verdict.allowed, expected)
            if expected:
                mine.append(now[0])
                left = [c - sum(1 for hit in mine if now[0] - p < hit) for c, p in rules]
                self.assertEqual(verdict.remaining, min(left))
                self.assertEqual(left[verdict.rule], min(left))
                self.assertEqual(verdict.retry_after, 0)
            else:
                wait = verdict.retry_after
                self.assertGreaterEqual(wait, 1)
                self.assertTrue(admits(mine, rules, now[0] + wait * MILLI))
                self.assertFalse(admits(mine, rules, now[0] + (wait - 1) * MILLI))
                self.assertEqual((verdict.remaining, verdict.reset), (0, wait))

    @settings(max_examples=500, deadline=None)
    @given(rules_in_ms, histories, st.lists(st.integers(-5_000, 20_000), max_size=20))
    def test_a_restart_changes_no_verdict(self, rules, history, later):
        now = [10**6]
        limiter = limiter_of(rules, now)
        admitted: list[int] = []
        for _, pause in history:
            now[0] += pause
            if limiter.hit("a").allowed:
                admitted.append(now[0])
        again = limiter_of(rules, now)
        again.prime("a", [(now[0] - hit) / MILLI for hit in reversed(admitted)])
        for pause in later:
            now[0] += max(pause, 0)
            self.assertEqual(again.hit("a"), limiter.hit("a"))

    @settings(max_examples=500, deadline=None)
    @given(
        rules_in_ms,
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 500)), max_size=150),
        st.integers(1, 6),
    )
    def test_a_full_table_admits_no_more_than_its_size_in_sources_would(self, rules, hits, size):
        now = [10**6]
        limiter = limiter_of(rules, now, max_sources=size)
        admitted: list[int] = []
        for name, pause in hits:
            now[0] += pause
            if limiter.hit(str(name)).allowed:
                admitted.append(now[0])
            self.assertLessEqual(len(limiter), size)
            for count, period in rules:
                recent = sum(1 for hit in admitted if hit > now[0] - period)
                self.assertLessEqual(recent, size * count)


class ReadingAnything(unittest.TestCase):
    @settings(max_examples=2_000, deadline=None)
    @given(st.one_of(st.text(max_size=30), st.from_regex(r"[0-9./ ,a-z]{0,20}", fullmatch=True)))
    def test_a_limit_is_read_or_refused_with_a_sentence(self, text):
        try:
            rules = parse_limit(text)
        except ValueError as error:
            self.assertIn("is not a limit: write", str(error))
        else:
            self.assertLessEqual(Limiter(rules).hit("a").remaining, MAX_COUNT)

    @given(st.integers(1, MAX_COUNT), st.integers(1, 10**6), st.sampled_from(["s", "min", "h"]))
    def test_what_is_written_is_what_is_meant(self, count, number, unit):
        seconds = number * {"s": 1, "min": 60, "h": 3_600}[unit]
        if seconds <= 366 * 86_400:
            self.assertEqual(parse_limit(f"{count}/{number}{unit}"), (Rule(count, seconds),))

    @given(st.ip_addresses())
    def test_every_address_has_one_source_however_it_is_spelled(self, address):
        spellings = {str(address), address.exploded, address.exploded.upper()}
        self.assertEqual(len({source(text) for text in spellings}), 1)

    @given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
    def test_neighbours_in_a_64_share_it(self, address, host):
        if address.ipv4_mapped is None and int(address) >> 64:
            neighbour = ipaddress.IPv6Address(int(address) >> 64 << 64 | host)
            self.assertEqual(source(str(address)), source(str(neighbour)))

    @settings(max_examples=2_000, deadline=None)
    @given(st.one_of(st.text(max_size=200), st.from_regex(r"[0-9a-f.:,\[\] %]{0,60}")))
    def test_forwarded_for_yields_an_address_whatever_it_says(self, text):
        everyone = parse_networks(["0.0.0.0/0", "::/0"])
        ipaddress.ip_address(client_address("127.0.0.1", text, everyone))

    @given(st.lists(st.ip_addresses(), min_size=1, max_size=12))
    def test_the_client_is_the_rightmost_that_is_not_trusted(self, addresses):
        trusted = parse_networks(["0.0.0.0/1", "::/1"])
        expected = next(
            (a for a in reversed(addresses) if int(a) >> (a.max_prefixlen - 1)), addresses[0]
        )
        if not any(getattr(a, "ipv4_mapped", None) for a in addresses):
            header = ", ".join(str(address) for address in addresses)
            self.assertEqual(client_address("127.0.0.1", header, trusted), str(expected))

    @given(rules_in_ms)
    def test_the_fields_are_lists_of_strings_with_integers(self, rules):
        limiter = limiter_of(rules, [0])
        policy = policy_header([Rule(c, p / MILLI) for c, p in rules], "auth")
        self.assertRegex(policy, r'\A("auth(-\d+)?";q=\d+;w=\d+(, |\Z))+\Z')
        field = limit_header(limiter.hit("a"), "auth")
        self.assertRegex(field, r'\A"auth(-\d+)?";r=\d+;t=\d+\Z')
        self.assertIn(field.partition(";")[0], policy)


if __name__ == "__main__":
    unittest.main()
