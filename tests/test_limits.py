"""The limit of a route: by address, and for IPv6 by the networks that one customer has."""

from __future__ import annotations

import contextlib
import sqlite3
import unittest

import ratelimit
from jwksd.api.limits import Limit, Limited
from jwksd.store.logins import utc_text
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


class Limiting(AppTest):
    def test_refuses_the_sixth_attempt_within_a_minute_and_says_when(self):
        self.assertEqual([self.login("a", "x").status for _ in range(6)], [401] * 5 + [429])
        response = self.login("a", "x")
        self.assertEqual(header(response, "Retry-After"), "60")
        self.assertEqual(header(response, "RateLimit-Policy"), '"auth";q=5;w=60')
        self.assertEqual(header(response, "RateLimit"), '"auth";r=0;t=60')
        self.monotonic.advance(60)
        self.assertEqual(self.login("a", "x").status, 401)

    def test_counts_addresses_apart(self):
        for _ in range(6):
            self.login("a", "x")
        self.assertEqual(self.login("a", "x", client="127.0.0.2").status, 401)

    def test_remembers_as_many_addresses_as_it_is_told(self):
        self.app = self.open_app(limiter_sources="3")
        for number in range(9):
            self.login("a", "x", client=f"192.0.2.{number}")
        self.assertEqual(len(self.app.limits["auth"].limiter), 3)

    def test_refused_attempts_are_not_written_to_the_log(self):
        for _ in range(8):
            self.login("a", "x")
        self.assertEqual(self.app.database.read("SELECT count(*) FROM auth_logs"), [(5,)])

    def test_never_limits_the_jwks(self):
        for _ in range(200):
            self.assertEqual(self.call("GET", "/.well-known/jwks.json").status, 200)

    def test_survives_a_restart(self):
        for _ in range(5):
            self.login("a", "x")
        self.clock.advance(20)
        self.app.database.close()
        self.app = self.open_app()
        response = self.login("a", "x")
        self.assertEqual(response.status, 429)
        self.assertEqual(header(response, "Retry-After"), "40")

    def test_survives_a_restart_whatever_another_program_wrote_into_the_log(self):
        now = self.clock()
        foreign = {
            "a number": ("x", now),
            "yesterday": ("x", utc_text(now - 86_400)),
            "nothing": ("x", ""),
            "no date": ("x", "soon"),
            "a year ahead": ("x", utc_text(now + 31_536_000)),
            "no address": (b"x", utc_text(now)),
        }
        for _ in range(5):
            self.login("a", "x")
        for name, row in foreign.items():
            with self.subTest(name):
                self.write_log("INSERT INTO auth_logs (request_ip, request_timestamp) "
                               "VALUES (?, ?)", row)  # fmt: skip
                self.app.database.close()
                self.app = self.open_app()
                self.assertEqual(self.login("a", "x").status, 429)

    def test_survives_a_restart_beside_an_address_that_is_not_utf_8_and_a_number_far_ahead(self):
        for _ in range(5):
            self.login("a", "x")
        self.write_log("INSERT INTO auth_logs (request_ip) VALUES (CAST(x'61ff' AS TEXT))")
        self.write_log("INSERT INTO auth_logs (id, request_ip) VALUES (1000000000, 'x')")
        self.app.database.close()
        self.app = self.open_app()
        self.assertEqual(self.login("a", "x").status, 429)
        self.assertEqual([line for line in self.lines if "limiter" in line], [])

    def test_survives_a_restart_after_which_the_clock_is_put_right(self):
        for _ in range(5):
            self.login("a", "x")
        self.clock.advance(-5)  # it was ahead
        self.app.database.close()
        self.app = self.open_app()
        response = self.login("a", "x")
        self.assertEqual((response.status, header(response, "Retry-After")), (429, "60"))

    def write_log(self, sql, row=()):
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute(sql, row)
            other.commit()

    def test_starts_beside_rows_that_another_program_wrote(self):
        with sqlite3.connect(self.path) as other:
            now = "2027-01-15 08:00:00"
            for row in ((b"x", now), ("192.0.2.1", "soon"), ("192.0.2.1", now + "x"),
                        ("192.0.2.1", None), ("192.0.2.1", 1_800_000_000)):  # fmt: skip
                other.execute(
                    "INSERT INTO auth_logs (request_ip, request_timestamp) VALUES (?, ?)", row
                )
        other.close()
        self.app.database.close()
        self.app = self.open_app()
        self.clock.advance(100 * 86_400)
        self.login("nobody", "x")
        self.app.upkeep.tick()
        # Without a time of its own, a row goes with a later one that is old enough.
        self.assertEqual(self.app.database.read("SELECT count(*) FROM auth_logs"), [(3,)])
        self.clock.advance(100 * 86_400)
        self.app.upkeep.tick()
        self.assertEqual(self.app.database.read("SELECT count(*) FROM auth_logs"), [(0,)])

    def test_believes_forwarding_only_from_a_trusted_proxy(self):
        self.app = self.open_app(trusted_proxy="10.0.0.0/8")
        for number in range(6):
            forged = {"x-forwarded-for": f"192.0.2.{number}"}
            last = self.login("a", "x", headers=forged, client="127.0.0.1")
            proxied = self.login("a", "x", headers=forged, client="10.0.0.1")
        self.assertEqual((last.status, proxied.status), (429, 401))
        self.assertEqual(sum("X-Forwarded-For" in line for line in self.lines), 1)

    def test_a_foreign_page_cannot_spend_the_attempts_of_its_visitor(self):
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"},
                        {"origin": "null"}, {"sec-fetch-site": "same-site",
                                             "origin": "http://other.localhost"}):  # fmt: skip
            with self.subTest(headers=headers):
                self.assertEqual(self.login("a", "x", headers=headers).status, 403)
        for headers in ({"sec-fetch-site": "same-origin"}, {"origin": "http://127.0.0.1:8080"},
                        {"origin": "https://192.0.2.1", "host": "192.0.2.1"}):  # fmt: skip
            with self.subTest(headers=headers):
                self.assertEqual(self.login("a", "x", headers=headers).status, 401)


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
