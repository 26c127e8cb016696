"""A few thousand mutated streams; `python -m bench.fuzz` sends as many as one likes."""

from __future__ import annotations

import unittest

from bench.fuzz import Flaw, Target, expected, fuzz, statuses
from tests.httpd_live import GET, LiveServer


class Streams(unittest.TestCase):
    def test_get_one_answer_a_request_whatever_they_are(self) -> None:
        with LiveServer(handler=Target, access_log="json") as server:
            seen = fuzz(server.address, 2_000, 7)
        self.assertGreaterEqual(set(seen), {200, 404, 400, 413, 431})


class TheOracle(unittest.TestCase):
    """What would let every flaw pass is worth a claim of its own."""

    def test_counts_requests_up_to_the_end_of_the_connection(self) -> None:
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        self.assertEqual(expected(GET + last + GET), (["GET", "GET"], None))
        self.assertEqual(expected(GET + b"GET /\r\n"), (["GET", "?"], 400))
        self.assertEqual(expected(GET + b"HEAD /\r\n"), (["GET", "HEAD"], 400))
        self.assertEqual(expected(GET[:-1]), ([], None))

    def test_notices_what_is_no_whole_answer(self) -> None:
        whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        self.assertEqual(statuses(whole * 2, ["GET", "GET"]), [200, 200])
        self.assertEqual(statuses(whole[:-2] + whole, ["HEAD", "GET"]), [200, 200])
        for broken in (
            whole[:-1],
            whole + b"x",
            b"ok",
            whole.replace(b"Content-Length: 2", b"X: y"),
        ):
            with self.subTest(broken), self.assertRaises(Flaw):
                statuses(broken, ["GET"])


if __name__ == "__main__":
    unittest.main()
