"""The limit of a route: by address, and for IPv6 by the networks that one customer has."""

from __future__ import annotations

import unittest

import ratelimit
from jwksd.api.limits import Limit, Limited
from tests.support import AppTest, Clock, header


class NetworksTest(unittest.TestCase):
    def setUp(self):
        self.clock = Clock(1000.0)
        self.limit = Limit("auth", ratelimit.parse_limit("2/minute"), 65_536, self.clock)

    def admitted(self, addresses):
        count = 0
        for address in addresses:
            try:
                self.limit.admit(address)
                count += 1
            except Limited:
                pass
        return count


class Networks(NetworksTest):
    def test_of_one_64_share_its_count(self):
        self.assertEqual(self.admitted(f"2001:db8::{n}" for n in range(1, 9)), 2)

    def test_of_a_56_have_four_times_the_count(self):
        self.assertEqual(self.admitted(f"2001:db8:0:{n:x}::1" for n in range(50)), 8)

    def test_refused_by_one_64_take_nothing_from_its_neighbours(self):
        self.admitted(["2001:db8::1"] * 1000)
        self.assertEqual(self.admitted(f"2001:db8:0:{n:x}::1" for n in range(1, 50)), 6)

    def test_come_back_after_the_period(self):
        addresses = [f"2001:db8:0:{n:x}::1" for n in range(256)]
        self.admitted(addresses)
        self.clock.advance(60)
        self.assertEqual(self.admitted(addresses), 8)

    def test_of_a_log_are_counted_at_a_start(self):
        self.limit.prime([(f"2001:db8:0:{n:x}::1", [1.0]) for n in range(8)])
        self.assertEqual(self.admitted(["2001:db8:0:ff::1", "2001:db8:0:100::1"]), 1)

    def test_of_ipv4_are_no_concern(self):
        self.assertEqual(self.admitted(f"192.0.2.{n}" for n in range(200)), 200)
        self.assertEqual(ratelimit.wider_sources("192.0.2.1"), ())
        self.assertEqual(ratelimit.wider_sources("::ffff:192.0.2.1"), ())

    def test_wider_ones_are_named_by_their_prefix(self):
        self.assertEqual(
            ratelimit.wider_sources("2001:db8:1:2ff::1%eth0"),
            ("2001:db8:1:200::/56", "2001:db8:1::/48"),
        )


class Registrations(AppTest):
    def test_have_a_daily_limit_of_their_own(self):
        rules = self.app.settings.register_limit
        self.assertEqual(rules, ratelimit.parse_limit("60/minute,1000/day"))

    def test_beyond_the_daily_limit_say_how_long_that_is(self):
        self.app = self.open_app(register_limit="60/minute,3/day")
        for name in "abc":
            self.register(name)
            self.monotonic.advance(60)
        response = self.call("POST", "/register", {"username": "d"})
        self.assertEqual(response.status, 429)
        self.assertEqual(header(response, "Retry-After"), str(86_400 - 180))


if __name__ == "__main__":
    unittest.main()
