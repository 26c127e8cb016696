"""What the limiter promises: exact windows, exact waits, bounded memory, and whose hit it is.

Time is a number that the tests move; the model at the end decides by the definition alone.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import unittest
import unittest.mock
from typing import NamedTuple

import ratelimit
from ratelimit import Limiter, Rule, Verdict, client_address, parse_limit, parse_networks, source


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Slot(NamedTuple):
    """What the model says of one rule."""

    free: int
    opens: float  # when there will be one more
    number: int


class Model:
    """The definition, with every hit kept for ever and every wait found by trying."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.rules = rules
        self.hits: dict[str, list[float]] = {}

    def slot(self, name: str, number: int, now: float) -> Slot:
        rule = self.rules[number]
        inside = [hit for hit in self.hits.get(name, ()) if hit > now - rule.period]
        return Slot(rule.count - len(inside), min(inside, default=now) + rule.period, number)

    def hit(self, name: str, now: float) -> Verdict:
        slots = [self.slot(name, number, now) for number in range(len(self.rules))]
        tight = min(slots, key=lambda slot: (slot.free, -slot.opens, slot.number))
        wait = next(s for s in itertools.count() if now + s >= tight.opens)
        if not tight.free:
            return Verdict(False, wait, 0, wait, tight.number)
        self.hits.setdefault(name, []).append(now)
        return Verdict(True, 0, tight.free - 1, wait, tight.number)


def hits(limiter: Limiter, number: int, name: str = "a") -> list[bool]:
    """Whether each of `number` hits was admitted."""
    return [limiter.hit(name).allowed for _ in range(number)]


class ReadingALimit(unittest.TestCase):
    def test_a_unit_alone_is_one_of_it(self):
        self.assertEqual(parse_limit("5/minute"), (Rule(5, 60.0),))

    def test_every_spelling_of_a_unit(self):
        for seconds, words in (
            (1, "s sec secs second seconds"),
            (60, "m min mins minute minutes"),
            (3_600, "h hour hours"),
            (86_400, "d day days"),
        ):
            for word in words.split():
                with self.subTest(word):
                    self.assertEqual(parse_limit(f"2/3{word}"), (Rule(2, 3.0 * seconds),))

    def test_a_period_may_be_a_fraction(self):
        self.assertEqual(parse_limit("3/1.5s"), (Rule(3, 1.5),))

    def test_several_rules_keep_their_order(self):
        self.assertEqual(parse_limit("5/minute,100/hour"), (Rule(5, 60.0), Rule(100, 3_600.0)))

    def test_case_and_spaces_do_not_matter(self):
        self.assertEqual(parse_limit(" 5 / Minute , 9/2 H "), (Rule(5, 60.0), Rule(9, 7_200.0)))

    def test_off_is_no_rule(self):
        self.assertEqual(parse_limit(" Off "), ())

    def test_what_is_no_limit_is_refused_with_what_would_be_one(self):
        for text in (
            *("", "5", "5/", "/minute", "minute", "5/60", "5/0s", "0/minute", "-1/minute", "5/-1s"),
            *("5/minute,", "off,5/minute", "5//minute", "5/ms", "5/fortnight", "5/1e3s", "5/.5s"),
            *("5/1.s", "٥/minute", "10001/hour", "1/367days", "5.5/minute", "5/minute;6/hour"),
            *("5/nan s", "5/infs", "5/minute\n6/hour", "9" * 5_000 + "/s", "5/" + "9" * 5_000),
        ):
            with self.subTest(text[:20]), self.assertRaises(ValueError) as caught:
                parse_limit(text)
            self.assertIn("write COUNT/PERIOD, such as 5/minute", str(caught.exception))
            self.assertLess(len(str(caught.exception)), 400)


class ASlidingWindow(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.limiter = Limiter(parse_limit("5/minute"), clock=self.clock)

    def test_admits_the_count_and_no_more(self):
        self.assertEqual(hits(self.limiter, 7), [True] * 5 + [False] * 2)

    def test_has_no_boundary_to_crowd_around(self):
        self.clock.now = 1_019.0  # a minute by the clock on the wall ends at 1020
        self.assertEqual(sum(hits(self.limiter, 5)), 5)
        self.clock.now = 1_021.0
        self.assertEqual(sum(hits(self.limiter, 5)), 0)

    def test_gives_slots_back_one_by_one_as_they_were_taken(self):
        for self.clock.now in (1_000.0, 1_010.0, 1_020.0, 1_030.0, 1_040.0):
            self.limiter.hit("a")
        for self.clock.now in (1_060.0, 1_070.0, 1_080.0):
            with self.subTest(now=self.clock.now):
                self.assertEqual(hits(self.limiter, 2), [True, False])

    def test_a_slot_is_free_at_the_very_end_of_its_period_and_not_before(self):
        hits(self.limiter, 5)
        self.clock.now = 1_059.999
        self.assertFalse(self.limiter.hit("a").allowed)
        self.clock.now = 1_060.0
        self.assertTrue(self.limiter.hit("a").allowed)

    def test_refused_hits_do_not_extend_it(self):
        hits(self.limiter, 5)
        for second in range(60):
            self.clock.now = 1_000.0 + second
            self.assertFalse(self.limiter.hit("a").allowed)
        self.clock.now = 1_060.0
        self.assertTrue(self.limiter.hit("a").allowed)

    def test_is_each_source_s_own(self):
        hits(self.limiter, 6, "a")
        self.assertEqual(hits(self.limiter, 6, "b"), [True] * 5 + [False])

    def test_without_rules_everything_passes_and_nothing_is_remembered(self):
        limiter = Limiter(())
        self.assertEqual(hits(limiter, 100), [True] * 100)
        limiter.prime("a", [1.0])
        self.assertEqual(len(limiter), 0)

    def test_is_not_made_of_rules_that_nobody_could_write(self):
        for rule in (Rule(0, 60.0), Rule(5, 0.0), Rule(5, -1.0), Rule(10_001, 1.0)):
            with self.subTest(rule), self.assertRaises(ValueError):
                Limiter([rule])
        with self.assertRaises(ValueError):
            Limiter(parse_limit("5/minute"), max_sources=0)

    def test_by_default_runs_on_the_machine_s_own_clock(self):
        readings = [0, 1, 59_999_999_999, 60_000_000_000]  # nanoseconds
        with unittest.mock.patch("time.monotonic_ns", side_effect=readings):
            limiter = Limiter(parse_limit("1/minute"))
            self.assertEqual(hits(limiter, 4), [True, False, False, True])

    def test_by_default_does_not_listen_to_the_clock_on_the_wall(self):
        limiter = Limiter(parse_limit("1/minute"))
        with unittest.mock.patch("time.time", lambda: 0.0):
            limiter.hit("a")
        with unittest.mock.patch("time.time", lambda: 1e12):
            self.assertFalse(limiter.hit("a").allowed)


class TheWait(unittest.TestCase):
    def test_is_zero_when_admitted_and_at_least_one_when_refused(self):
        clock = Clock()
        limiter = Limiter(parse_limit("1/minute"), clock=clock)
        self.assertEqual(limiter.hit("a").retry_after, 0)
        clock.now = 1_059.999
        self.assertEqual(limiter.hit("a").retry_after, 1)

    def test_is_the_fewest_whole_seconds_that_suffice_whatever_floats_do(self):
        chance = random.Random(7515)
        refused = 0
        for _ in range(5_000):
            clock = Clock(round(chance.uniform(0.0, 10.0 ** chance.randrange(1, 7)), 3))
            period = chance.choice([60.0, 1.5, 0.1, 3_600.0, round(chance.uniform(0.1, 100), 3)])
            limiter = Limiter([Rule(1, period)], clock=clock)
            limiter.hit("a")
            clock.now += round(chance.choice([0.0, 0.1, 0.7, chance.random()]) * period, 3)
            verdict, asked = limiter.hit("a"), clock.now
            if not verdict.allowed:
                refused += 1
                clock.now = asked + (verdict.retry_after - 1)
                self.assertFalse(limiter.hit("a").allowed, (asked, period, verdict))
                clock.now = asked + verdict.retry_after
                self.assertTrue(limiter.hit("a").allowed, (asked, period, verdict))
        self.assertGreater(refused, 4_000)

    def test_is_never_longer_than_the_period(self):
        chance = random.Random(7519)
        for _ in range(2_000):
            limiter = Limiter([Rule(1, 60.0)], clock=Clock(chance.uniform(0.0, 1e7)))
            self.assertEqual([limiter.hit("a").reset, limiter.hit("a").retry_after], [60, 60])

    def test_counts_down_with_the_clock(self):
        clock = Clock()
        limiter = Limiter(parse_limit("1/minute"), clock=clock)
        limiter.hit("a")
        for passed, wait in ((0.0, 60), (0.5, 60), (1.0, 59), (58.5, 2), (59.0, 1)):
            clock.now = 1_000.0 + passed
            self.assertEqual(limiter.hit("a").retry_after, wait)


class SeveralRules(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.limiter = Limiter(parse_limit("2/second,3/minute"), clock=self.clock)

    def test_each_may_refuse(self):
        self.assertEqual(hits(self.limiter, 3), [True, True, False])
        self.clock.now += 1
        self.assertEqual(hits(self.limiter, 2), [True, False])

    def test_a_hit_that_one_refuses_takes_no_slot_of_the_other(self):
        hits(self.limiter, 50)
        self.clock.now += 1
        self.assertEqual(hits(self.limiter, 2), [True, False])

    def test_the_wait_is_that_of_the_slowest(self):
        hits(self.limiter, 2)
        self.assertEqual(self.limiter.hit("a").retry_after, 1)
        self.clock.now += 1
        hits(self.limiter, 1)
        self.assertEqual(self.limiter.hit("a").retry_after, 59)

    def test_the_verdict_speaks_of_the_rule_nearest_to_refusing(self):
        seen = [self.limiter.hit("a") for _ in range(2)]
        self.clock.now += 1
        seen.append(self.limiter.hit("a"))
        self.assertEqual(
            [(v.rule, v.remaining, v.reset) for v in seen], [(0, 1, 1), (0, 0, 1), (1, 0, 59)]
        )

    def test_their_order_is_of_no_consequence(self):
        turned = Limiter(parse_limit("3/minute,2/second"), clock=self.clock)
        for self.clock.now in (0.0, 0.1, 0.2, 1.0, 1.1, 30.0, 60.0, 60.1, 60.2, 61.0):
            self.assertEqual(self.limiter.hit("a")[:4], turned.hit("a")[:4])


class AgainstTheDefinition(unittest.TestCase):
    def test_ten_thousand_hits_at_random_are_judged_alike(self):
        chance = random.Random(6585)
        for limit in ("5/minute", "1/s", "2/1.5s,3/4s", "3/5s,2/2s,7/minute", "4/8s,4/3s"):
            rules, clock = parse_limit(limit), Clock()
            limiter, model = Limiter(rules, clock=clock), Model(rules)
            for _ in range(2_000):
                clock.now += chance.choice([0, 0, 0, 0.125, 0.5, 1, 2.5, 7])
                name = chance.choice("aaab")
                self.assertEqual(limiter.hit(name), model.hit(name, clock.now), limit)


class ABoundedTable(unittest.TestCase):
    def table(self, limit: str, max_sources: int) -> tuple[Limiter, Clock]:
        clock = Clock()
        return Limiter(parse_limit(limit), clock=clock, max_sources=max_sources), clock

    def test_never_holds_more_sources_than_it_may(self):
        limiter, _ = self.table("5/minute", 10)
        for number in range(1_000):
            limiter.hit(str(number))
            self.assertLessEqual(len(limiter), 10)

    def test_forgets_sources_whose_time_is_over(self):
        limiter, clock = self.table("5/minute", 1_000)
        for number in range(1_000):
            limiter.hit(str(number))
        clock.now += 60
        for number in range(1_000, 1_500):
            limiter.hit(str(number))
        self.assertEqual(len(limiter), 500)

    def test_forgets_nothing_that_still_counts_while_there_is_room(self):
        limiter, clock = self.table("1/minute", 1_000)
        for number in range(500):
            clock.now += 0.1
            limiter.hit(str(number))
        self.assertFalse(any(limiter.hit(str(number)).allowed for number in range(500)))

    def test_one_busy_source_does_not_keep_the_expired_behind_it(self):
        limiter, clock = self.table("100/minute", 1_000)
        for number in range(2_000):
            clock.now += 1
            limiter.hit("busy")
            limiter.hit(str(number))
        self.assertLess(len(limiter), 200)

    def test_a_newcomer_to_a_full_table_inherits_what_it_displaces(self):
        limiter, _ = self.table("2/minute", 1)
        self.assertEqual([limiter.hit(name).remaining for name in "ab"], [1, 0])
        self.assertFalse(limiter.hit("c").allowed)

    def test_a_flood_of_addresses_gets_what_a_full_table_gets(self):
        limiter, clock = self.table("5/minute", 100)
        for _ in range(3):
            passed = sum(limiter.hit(str(n)).allowed for n in range(10_000))
            self.assertEqual(passed, 500)
            clock.now += 60

    def test_whoever_is_pushed_out_and_comes_back_gains_nothing_in_sum(self):
        limiter, _ = self.table("5/minute", 10)
        chance = random.Random(9110)
        passed = sum(limiter.hit(str(chance.randrange(40))).allowed for _ in range(5_000))
        self.assertEqual(passed, 50)

    def test_a_log_holds_no_more_than_the_largest_count(self):
        limiter, clock = self.table("3/s,10/minute", 5)
        for _ in range(500):
            clock.now += 0.25
            limiter.hit("a")
            self.assertLessEqual(len(limiter._logs["a"]), 10)
        limiter.prime("a", [0.5] * 500)
        self.assertEqual(len(limiter._logs["a"]), 10)


class ARestart(unittest.TestCase):
    def setUp(self):
        self.clock = Clock()
        self.limiter = Limiter(parse_limit("5/minute"), clock=self.clock)

    def test_remembers_earlier_hits(self):
        self.limiter.prime("a", [10.0, 50.0, 20.0])
        self.assertEqual(hits(self.limiter, 3), [True, True, False])
        self.assertEqual(self.limiter.hit("a").retry_after, 10)

    def test_does_not_remember_what_no_longer_counts(self):
        self.limiter.prime("a", [60.0, 61.0, 1e9])
        self.assertEqual(len(self.limiter), 0)

    def test_may_come_after_the_first_hits(self):
        hits(self.limiter, 2)
        self.limiter.prime("a", [30.0, 40.0])
        self.assertEqual(hits(self.limiter, 2), [True, False])
        self.assertEqual(self.limiter.hit("a").retry_after, 20)

    def test_a_hit_that_seems_to_lie_in_the_future_counts_as_now(self):
        self.limiter.prime("a", [-1e6] * 5)
        self.assertEqual(self.limiter.hit("a").retry_after, 60)

    def test_under_a_stricter_limit_still_tells_the_exact_wait(self):
        self.limiter.prime("a", [float(age) for age in range(1, 21)])
        self.assertEqual(self.limiter.hit("a"), Verdict(False, 55, 0, 55, 0))

    def test_with_more_hits_than_one_of_several_rules_allows_still_refuses(self):
        limiter = Limiter(parse_limit("2/minute,100/hour"), clock=self.clock)
        limiter.prime("a", [5.0, 10.0, 15.0, 20.0])
        self.assertEqual(limiter.hit("a"), Verdict(False, 50, 0, 50, 0))

    def test_keeps_the_table_within_its_bound(self):
        limiter = Limiter(parse_limit("5/minute"), clock=self.clock, max_sources=10)
        for number in range(100):
            limiter.prime(str(number), [1.0])
        self.assertEqual(len(limiter), 10)


class Threads(unittest.TestCase):
    def run_together(self, number: int, work) -> None:
        barrier = threading.Barrier(number)

        def start():
            barrier.wait()
            work()

        threads = [threading.Thread(target=start) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def test_of_twenty_parallel_hits_exactly_five_pass(self):
        for _ in range(25):
            limiter = Limiter(parse_limit("5/minute"))
            verdicts: list[Verdict] = []
            self.run_together(20, lambda: verdicts.append(limiter.hit("a")))  # noqa: B023
            self.assertEqual(sum(verdict.allowed for verdict in verdicts), 5)
            passed = sorted(verdict.remaining for verdict in verdicts if verdict.allowed)
            self.assertEqual(passed, [0, 1, 2, 3, 4])

    def test_one_decides_at_a_time_from_reading_the_clock_on(self):
        inside, most = [0], [0]

        def clock() -> float:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.002)  # lets the others in, if anything does
            inside[0] -= 1
            return 1_000.0

        limiter = Limiter(parse_limit("5/minute"), clock=clock)
        self.run_together(8, lambda: limiter.hit("a"))
        self.run_together(4, lambda: limiter.prime("a", [1.0]))
        self.assertEqual(most, [1])

    def test_a_clock_that_fails_leaves_the_next_hit_free_to_pass(self):
        clock = unittest.mock.Mock(side_effect=[OSError, 1.0])
        limiter = Limiter(parse_limit("5/minute"), clock=clock)
        with self.assertRaises(OSError):
            limiter.hit("a")
        self.assertTrue(limiter._lock.acquire(timeout=1))
        limiter._lock.release()
        self.assertTrue(limiter.hit("a").allowed)


class TheFields(unittest.TestCase):
    def test_policy(self):
        self.assertEqual(
            ratelimit.policy_header(parse_limit("5/minute"), "auth"), '"auth";q=5;w=60'
        )

    def test_policies_of_several_rules_have_names_of_their_own(self):
        self.assertEqual(
            ratelimit.policy_header(parse_limit("5/minute,100/hour"), "auth"),
            '"auth";q=5;w=60, "auth-2";q=100;w=3600',
        )

    def test_a_window_is_an_integer_and_never_promises_more_than_is_granted(self):
        self.assertEqual(ratelimit.policy_header(parse_limit("3/1.5s"), "auth"), '"auth";q=3;w=2')

    def test_limit_when_refused_says_what_retry_after_says(self):
        clock = Clock()
        limiter = Limiter(parse_limit("1/minute"), clock=clock)
        limiter.hit("a")
        clock.now += 18
        verdict = limiter.hit("a")
        self.assertEqual(ratelimit.limit_header(verdict, "auth"), '"auth";r=0;t=42')
        self.assertEqual(verdict.retry_after, 42)

    def test_limit_when_admitted_says_what_is_left_and_when_there_is_more(self):
        clock = Clock()
        limiter = Limiter(parse_limit("5/minute"), clock=clock)
        self.assertEqual(ratelimit.limit_header(limiter.hit("a"), "auth"), '"auth";r=4;t=60')
        clock.now += 18
        self.assertEqual(ratelimit.limit_header(limiter.hit("a"), "auth"), '"auth";r=3;t=42')

    def test_limit_names_the_policy_it_speaks_of(self):
        limiter = Limiter(parse_limit("5/minute,2/hour"), clock=Clock())
        self.assertEqual(ratelimit.limit_header(limiter.hit("a"), "auth"), '"auth-2";r=1;t=3600')

    def test_without_rules_there_is_nothing_to_say(self):
        self.assertEqual(ratelimit.policy_header((), "auth"), "")
        self.assertEqual(ratelimit.limit_header(Limiter(()).hit("a"), "auth"), "")


class WhoseHitItIs(unittest.TestCase):
    def test_every_kind_of_address_has_its_source(self):
        for address, expected in (
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("2001:DB8:1:2:0:0:0:9", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:8000::1", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
            ("::1", "::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("::FFFF:c000:207", "192.0.2.7"),
            ("::ffff:192.0.2.7%3", "192.0.2.7"),
            ("", ""),
            ("/run/socket", "/run/socket"),
            ("what:ever", "what:ever"),
            ("1.2.3.4:80", "1.2.3.4:80"),
        ):
            with self.subTest(address):
                self.assertEqual(source(address), expected)

    def test_what_is_remembered_of_addresses_is_bounded(self):
        for number in range(10_000):
            source(f"2001:db8::{number:x}")
        kept = source.cache_info()
        self.assertLessEqual(kept.currsize, 4_096)
        self.assertEqual(kept.currsize, kept.maxsize)


class ForwardedFor(unittest.TestCase):
    TRUSTED = parse_networks(["10.0.0.0/8", "fd00::/8", "127.0.0.1"])

    def client(self, forwarded_for: str | None, peer: str = "10.0.0.1") -> str:
        return client_address(peer, forwarded_for, self.TRUSTED)

    def test_counts_for_nothing_from_a_peer_that_is_not_trusted(self):
        self.assertEqual(self.client("1.1.1.1", peer="192.0.2.1"), "192.0.2.1")
        self.assertEqual(client_address("10.0.0.1", "1.1.1.1", ()), "10.0.0.1")

    def test_is_not_needed(self):
        self.assertEqual(self.client(None), "10.0.0.1")

    def test_is_read_from_right_to_left_past_trusted_proxies(self):
        for value, expected in (
            ("1.1.1.1", "1.1.1.1"),
            ("6.6.6.6, 1.1.1.1", "1.1.1.1"),
            ("6.6.6.6, 1.1.1.1, 10.9.9.9,127.0.0.1", "1.1.1.1"),
            ("6.6.6.6,1.1.1.1\t,\tfd00::7", "1.1.1.1"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ):
            with self.subTest(value):
                self.assertEqual(self.client(value), expected)

    def test_what_is_no_address_ends_the_walk_at_the_last_good_hop(self):
        for junk in (
            *("", " ", "unknown", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.1.1.1", "[::1", "::1]"),
            *("1.2.3.4:", "1.2.3.4:x", "[::1]x", "[::1]:", "[]", "٣.1.1.1", "1.1.1.1 2.2.2.2"),
            *("1.1.1.1:999999", "::1::", '"1.1.1.1"', "for=1.1.1.1", "::1%" + "x" * 61, "\x00"),
        ):
            with self.subTest(junk):
                self.assertEqual(self.client(f"6.6.6.6,{junk}"), "10.0.0.1")
                self.assertEqual(self.client(f"6.6.6.6,{junk},10.0.0.2"), "10.0.0.2")

    def test_ports_brackets_scopes_and_mapped_addresses_are_understood(self):
        for value, expected in (
            ("1.2.3.4:567", "1.2.3.4"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("1.1.1.1, [fd00::1]:443, ::ffff:10.0.0.7", "1.1.1.1"),
        ):
            with self.subTest(value):
                self.assertEqual(self.client(value), expected)

    def test_a_trusted_peer_is_known_in_every_spelling(self):
        self.assertEqual(self.client("1.1.1.1", peer="::ffff:10.0.0.1"), "1.1.1.1")
        self.assertEqual(self.client("1.1.1.1", peer="fd00::1%eth0"), "1.1.1.1")

    def test_is_followed_over_sixteen_proxies_and_no_further(self):
        chain = [f"10.0.1.{number}" for number in range(40)]
        self.assertEqual(self.client(",".join(chain)), "10.0.1.24")
        self.assertEqual(self.client(",".join(["1.1.1.1", *chain[:15]])), "1.1.1.1")
        self.assertEqual(self.client(",".join(["1.1.1.1", *chain[:16]])), "10.0.1.0")

    def test_a_long_one_costs_no_more_than_its_last_hops(self):
        seen: list[str] = []
        parse = ratelimit._parse_address

        def counting(text: str):
            seen.append(text)
            return parse(text)

        with unittest.mock.patch.object(ratelimit, "_parse_address", counting):
            self.client(",".join(["10.0.0.2"] * 100_000))
        self.assertLessEqual(len(seen), 40)


class TrustedProxies(unittest.TestCase):
    def test_are_networks_or_single_addresses(self):
        self.assertEqual(
            [str(network) for network in parse_networks(["10.0.0.0/8", " ::1", "192.0.2.1"])],
            ["10.0.0.0/8", "::1/128", "192.0.2.1/32"],
        )

    def test_what_is_no_network_is_refused_with_what_would_be_one(self):
        for text in ("", "all", "10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/8/9", "1.2.3"):
            with self.subTest(text), self.assertRaises(ValueError) as caught:
                parse_networks([text])
            self.assertIn("write ADDRESS or NETWORK/BITS", str(caught.exception))

    def test_are_told_from_others(self):
        trusted = parse_networks(["10.0.0.0/8"])
        for address, expected in (("10.1.1.1", True), ("11.1.1.1", False), ("::1", False)):
            self.assertEqual(ratelimit.is_trusted(address, trusted), expected)
        self.assertFalse(ratelimit.is_trusted("", trusted))


if __name__ == "__main__":
    unittest.main()
