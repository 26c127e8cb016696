"""The parser beside h11, and under hypothesis: whatever it takes, h11 takes in the same way."""

from __future__ import annotations

import re
import unittest
from typing import Any

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jwksd.httpd.parser import Limits, Parser, Refused, Request
from tests.test_httpd_parser import BAD, GOOD, LIMITS, outline, read

ROOMY = Limits()


class Unforgiving(Parser):
    """Without the one kindness that h11 does not have: a blank line before a request."""

    def _skip_blank_line(self) -> bool:
        return True


def read_with_h11(octets: bytes) -> tuple[list[tuple[Any, ...]], bool]:
    """The complete requests that h11 finds, and whether it ends in an error."""
    requests: list[tuple[Any, ...]] = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=ROOMY.head)
    connection.receive_data(octets)
    try:
        while True:
            head = connection.next_event()
            if not isinstance(head, h11.Request):
                return requests, False
            body = b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                return requests, False
            requests.append((head.method.decode(), head.target.decode(), body))
            connection.send(h11.Response(status_code=400, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return requests, False
            connection.start_next_cycle()
    except h11.RemoteProtocolError:
        return requests, True


def read_with_ours(octets: bytes) -> tuple[list[Request], bool]:
    results = read(octets, limits=ROOMY, kind=Unforgiving)
    requests: list[Request] = []
    for result in results:
        if isinstance(result, int):
            return requests, True
        requests.append(result)
        if not result.keep_alive:
            break
    return requests, False


def split(target: str) -> tuple[str, str]:
    """Path and query as we give them: of an absolute target, what follows the authority."""
    if not target.startswith("/") and "://" in target:
        target = re.sub("^[^:]+://[^/?]*(?=(.?))", lambda m: "" if m[1] == "/" else "/", target)
    path, _, query = target.partition("?")
    return path, query


NAMES = st.sampled_from(
    [
        b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"X",
        b"content-length", b"X ", b" X", b"", b"Content-Length\0",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        b"a", b"", b"5", b"0", b"+5", b"05", b"5, 5", b"-1", b"0x5", b"\xb2", b"chunked",
        b"CHUNKED", b"identity", b"gzip, chunked", b"chunked, chunked", b"close", b"keep-alive",
        b"100-continue", b"a\rb", b"a\nb", b"a\0b", b"\x0b5", b"5\x0c", b"a b", b"\xff",
    ]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n "])
GAPS = st.sampled_from([b": "] * 8 + [b":", b":\t", b" :", b": \t "])
FIELDS = st.tuples(NAMES, GAPS, VALUES, ENDS).map(b"".join)
STARTS = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"GET / HTTP/1.1", b"POST /a?b HTTP/1.1", b"POST / HTTP/1.1",
        b"HEAD / HTTP/1.0", b"GET  / HTTP/1.1", b"GET /", b"GET / HTTP/2.0", b"get / http/1.1",
        b"GET /\x7f HTTP/1.1", b"\0 / HTTP/1.1", b"G(T / HTTP/1.1", b"OPTIONS * HTTP/1.1",
    ]
)  # fmt: skip
BODIES = st.sampled_from(
    [
        b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n", b"0\r\nX y\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n", b"0005\r\nhello\r\n0\r\n\r\n", b"hello\r\n",
    ]
)  # fmt: skip


@st.composite
def messages(draw: Any) -> bytes:
    """A request, nearly right: each part is more often good than not."""
    host = draw(st.sampled_from([b"Host: a\r\n"] * 9 + [b""]))
    fields = b"".join(draw(st.lists(FIELDS, max_size=3)))
    end = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"]))
    return b"".join((draw(STARTS), draw(ENDS), host, fields, end, draw(BODIES)))


PLAIN = st.sampled_from([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n"])
STREAMS = st.lists(messages() | PLAIN, min_size=1, max_size=5).map(b"".join)


class BesideH11(unittest.TestCase):
    """Ours may refuse what h11 takes, never take what h11 refuses, nor read it otherwise."""

    def compare(self, octets: bytes) -> None:
        ours, we_refuse = read_with_ours(octets)
        theirs, they_refuse = read_with_h11(octets)
        for mine, other in zip(ours, theirs):
            method, target, body = other
            self.assertEqual((mine.method, mine.body), (method, body))
            self.assertEqual((mine.path, mine.query), split(target))
        if len(ours) > len(theirs):
            self.fail(f"h11 refuses: {octets!r}")
        if they_refuse and len(ours) == len(theirs):
            self.assertTrue(we_refuse, f"h11 refuses, we wait: {octets!r}")

    @settings(max_examples=5_000, deadline=None)
    @given(STREAMS)
    def test_on_streams_of_nearly_right_requests(self, octets: bytes) -> None:
        self.compare(octets)

    def test_on_every_flaw_that_we_know(self) -> None:
        for name, (_, octets) in BAD.items():
            with self.subTest(name):
                self.compare(octets)

    @settings(max_examples=3_000, deadline=None)
    @given(st.data())
    def test_on_good_requests_with_one_octet_changed(self, data: Any) -> None:
        octets = bytearray(data.draw(st.sampled_from(sorted(GOOD.values()))))
        place = data.draw(st.integers(0, len(octets) - 1))
        octets[place] = data.draw(st.integers(0, 255))
        self.compare(bytes(octets))


class Pieces(unittest.TestCase):
    @settings(max_examples=3_000, deadline=None)
    @example(b"\r\r\nGET", [1])
    @given(STREAMS, st.lists(st.integers(0, 400), max_size=12))
    def test_do_not_change_the_verdict(self, octets: bytes, places: list[int]) -> None:
        cuts = sorted(min(place, len(octets)) for place in places)
        pieces = [octets[a:b] for a, b in zip([0, *cuts], [*cuts, len(octets)])]
        self.assertEqual(outline(read(*pieces)), outline(read(octets)))

    @settings(max_examples=1_000, deadline=None)
    @given(st.binary(max_size=600))
    def test_of_anything_at_all_are_read_or_refused(self, octets: bytes) -> None:
        self.assertEqual(outline(read(*(bytes([o]) for o in octets))), outline(read(octets)))

    @settings(max_examples=1_000, deadline=None)
    @given(STREAMS, st.integers(1, 40))
    def test_are_bounded_while_they_wait(self, octets: bytes, size: int) -> None:
        parser = Parser(LIMITS, "c")
        try:
            for place in range(0, len(octets), size):
                parser.feed(octets[place : place + size])
                while parser.next_request() is not None:
                    pass
                self.assertLessEqual(len(parser._buffer), LIMITS.head + size)
                self.assertLessEqual(len(parser._body), LIMITS.body)
        except Refused:
            pass


if __name__ == "__main__":
    unittest.main()
