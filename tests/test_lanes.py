"""Lanes: cheap work never waits behind dear work, and within a lane sources take turns."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Callable
from concurrent.futures import Future

from jwksd.httpd import Overloaded, Workers
from tests.httpd_live import settle
from tests.support import Clock


class LanesTest(unittest.TestCase):
    def setUp(self):
        self.made: list[str] = []
        self.gate, held = threading.Event(), threading.Event()
        self.clock = Clock(1000.0)
        self.workers = Workers(1, queue_limit=6, queue_seconds=60.0, clock=self.clock)
        self.addCleanup(self.workers.stop, 10)
        self.addCleanup(self.gate.set)
        self.first = self.workers.submit(settle, self.hold(held))
        self.assertTrue(held.wait(60))  # from here on everything waits in its lane

    def hold(self, held: threading.Event) -> Callable[[], bool]:
        def wait() -> bool:
            held.set()
            return self.gate.wait(60)

        return wait

    def submit(self, name, *, lane=0, source=""):
        return self.workers.submit(settle, self.made.append, name, lane=lane, source=source)

    def finish(self, *futures):
        """Let the thread go; what became of each call."""
        self.gate.set()
        return [type(future.exception(60)).__name__ for future in futures]


class ThreeLanes(LanesTest):
    def test_are_served_cheapest_first_whenever_they_came(self):
        names = [f"{lane}{place}" for place in "ab" for lane in (2, 1, 0)]
        self.finish(*[self.submit(name, lane=int(name[0])) for name in names])
        self.assertEqual(self.made, ["0a", "0b", "1a", "1b", "2a", "2b"])

    def test_that_are_full_do_not_refuse_in_another(self):
        for number in range(6):
            self.submit(str(number), lane=2, source=str(number))
        with self.assertRaises(Overloaded):
            self.submit("late", lane=2, source="late")
        self.finish(self.submit("cheap", lane=0))
        self.assertEqual(self.made[0], "cheap")


class ALaneBelow(LanesTest):
    def test_refuses_what_has_waited_too_long_though_its_turn_never_came(self):
        late = [self.submit(str(number), lane=2, source=str(number)) for number in range(3)]
        cheap = self.submit("cheap", lane=0)
        self.clock.advance(61.0)
        self.workers.expire()
        self.assertEqual([type(f.exception(0)).__name__ for f in late], ["Overloaded"] * 3)
        self.assertEqual(self.workers.refused, 4)
        fresh = self.submit("fresh", lane=2)
        self.assertEqual(self.finish(cheap, fresh), ["Overloaded", "NoneType"])
        self.assertEqual(self.made, ["fresh"])

    def test_gets_a_tenth_of_the_time_while_those_above_never_end(self):
        dear = [self.submit(f"dear{number}", lane=1, source="a") for number in range(2)]
        for lane in self.workers._lanes:
            lane.seconds = 1.0
        cheap = [self.take_time(f"cheap{number}") for number in range(6)]
        self.workers._lanes[0].seconds = 5.0
        self.finish(*dear, *cheap)
        self.assertLess(self.made.index("dear0"), self.made.index("cheap5"))
        self.assertGreater(self.made.index("dear0"), self.made.index("cheap1"))

    def take_time(self, name):
        def call():
            self.clock.advance(5.0)  # of which the lane below is owed half a second
            self.made.append(name)

        return self.workers.submit(settle, call, lane=0)


class Sources(LanesTest):
    def test_take_turns(self):
        flood = [self.submit(f"flood{number}", source="flood") for number in range(4)]
        self.finish(*flood, self.submit("other", source="other"))
        self.assertEqual(self.made, ["flood0", "other", "flood1", "flood2", "flood3"])

    def test_with_the_most_calls_give_way_when_the_lane_is_full(self):
        flood = [self.submit(f"flood{number}", source="flood") for number in range(6)]
        other = self.submit("other", source="other")
        outcomes = self.finish(*flood, other)
        self.assertEqual(outcomes, ["NoneType"] * 5 + ["Overloaded", "NoneType"])
        self.assertEqual(self.made[:2], ["flood0", "other"])
        self.assertEqual(self.workers.refused, 1)

    def test_with_as_many_calls_as_the_others_do_not_displace_them(self):
        for number in range(6):
            self.submit(str(number), source=str(number % 3))
        with self.assertRaises(Overloaded):
            self.submit("2 again", source="2")
        with self.assertRaises(Overloaded):  # of those with two, none has two more than it
            self.submit("1 again", source="1")

    def test_leave_nothing_behind(self):
        self.finish(*[self.submit("x", source=str(number)) for number in range(5)])
        self.assertEqual(self.workers.queued, 0)
        self.assertEqual([lane._waiting for lane in self.workers._lanes], [{}] * 3)


class ARefusal(LanesTest):
    def test_says_when_those_that_wait_will_be_done(self):
        lane = self.workers._lanes[1]
        lane.seconds = 1.5
        for number in range(6):
            self.submit("x", lane=1, source=str(number))
        with self.assertRaises(Overloaded) as refused:
            self.submit("late", lane=1, source="late")
        self.assertEqual(refused.exception.retry_after, 9)

    def test_never_says_at_once(self):
        for number in range(6):
            self.submit("x", source=str(number))
        with self.assertRaises(Overloaded) as refused:
            self.submit("late", source="late")
        self.assertEqual(refused.exception.retry_after, 1)

    def test_comes_when_the_disk_takes_no_more_rows(self):
        self.gate.set()
        self.first.result(60)
        rows: list[Future] = [Future() for _ in range(1 + 3 * 6)]
        for row in rows:  # made at once, and then waiting for the disk
            made = threading.Event()
            self.workers.submit(settle, self.give(made, row))
            self.assertTrue(made.wait(60))
        with self.assertRaises(Overloaded):
            self.workers.submit(settle, str)
        rows[0].set_result("written")
        self.assertEqual(self.workers.submit(settle, str).result(60), "")

    def give(self, made: threading.Event, row: Future) -> Callable[[], Future]:
        def call() -> Future:
            made.set()
            return row

        return call


if __name__ == "__main__":
    unittest.main()
