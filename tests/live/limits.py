"""The limit of a route against every network of a large customer."""

from __future__ import annotations

import unittest

from tests.test_limits import NetworksTest


class Networks(NetworksTest):
    def test_of_a_48_have_sixteen_times_the_count_and_do_not_fill_the_table(self):
        self.assertEqual(self.admitted(f"2001:db8:0:{n:x}::1" for n in range(65_536)), 32)
        self.assertEqual(len(self.limit.limiter), 32)
        self.assertEqual(self.admitted(["192.0.2.1", "2001:db8:1::1"]), 2)


if __name__ == "__main__":
    unittest.main()
