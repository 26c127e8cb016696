"""The parser: which bytes are a request, and which are refused."""

from __future__ import annotations

import random
import unittest

from jwksd.httpd.parser import HEADS, Heads, Limits, Parser, Refused, Request

LIMITS = Limits(line=64, head=400, fields=5, body=40, chunk_line=20, extensions=30)


def read(
    *pieces: bytes, limits: Limits = LIMITS, kind: type[Parser] = Parser
) -> list[Request | int]:
    """The requests in these pieces, and the status if they end in a refusal."""
    parser = kind(limits, "c")
    results: list[Request | int] = []
    try:
        for piece in pieces:
            parser.feed(piece)
            while (request := parser.next_request()) is not None:
                results.append(request)
    except Refused as refused:
        results.append(refused.status)
    return results


def outline(results: list[Request | int]) -> list[object]:
    """What two readings must have in common."""
    return [
        result
        if isinstance(result, int)
        else (
            result.method, result.path, result.query, result.headers, result.body,
            result.keep_alive, result.version,
        )
        for result in results
    ]  # fmt: skip


def one(octets: bytes) -> Request:
    """The only request in these bytes."""
    (request,) = read(octets)
    assert isinstance(request, Request), request
    return request


def status(octets: bytes) -> int:
    """The refusal that these bytes get, alone."""
    results = read(octets)
    assert len(results) == 1, results
    assert isinstance(results[0], int), results
    return results[0]


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


GOOD = {
    "get": b"GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n",
    "blank line before": b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty body": post(b"Content-Length: 0\r\n"),
    "body": post(b"Content-Length: 5\r\n", b"hello"),
    "chunks": chunked(b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n"),
    "trailer": chunked(b"a\r\n0123456789\r\n0\r\nX: y\r\n\r\n"),
    "absolute": b"GET http://b:80/c HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "old": b"GET / HTTP/1.0\r\n\r\n",
    "expect": post(b"Expect: 100-continue\r\nContent-Length: 2\r\n", b"ok"),
}

BAD = {
    # the request line
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01"),
    "HTTP/0.9": (400, b"GET /\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tab": (400, b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "space at the end": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "space in front": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "lower case version": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "two digits": (400, b"GET / HTTP/01.1\r\nHost: a\r\n\r\n"),
    "two blank lines": (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "non-ASCII target": (400, b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment": (400, b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "relative target": (400, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk of GET": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "bad absolute": (400, b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "absolute without Host": (400, b"GET http://b/ HTTP/1.1\r\n\r\n"),
    "user in absolute": (400, b"GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (501, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "long method": (501, b"A" * 33),
    "long line": (414, b"GET /" + b"a" * 64),
    # line ends
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF in fields": (400, b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: z\r\n\r\n"),
    "CR CR LF": (400, b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    # fields
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "bad Host": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n"),
    "no name": (400, b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
    "space before colon": (400, post(b"Content-Length : 5\r\n", b"hello")),
    "folded line": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n"),
    "folded first line": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "NUL": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
    "two credentials": (400, post(b"Authorization: a\r\nAuthorization: a\r\n")),
    "too many fields": (431, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 6),
    "long head": (431, b"GET / HTTP/1.1\r\nHost: " + b"a" * 400),
    # the length
    "two lengths": (400, post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello")),
    "list of lengths": (400, post(b"Content-Length: 5, 5\r\n", b"hello")),
    "plus": (400, post(b"Content-Length: +5\r\n", b"hello")),
    "minus": (400, post(b"Content-Length: -5\r\n")),
    "underscore": (400, post(b"Content-Length: 0_5\r\n", b"hello")),
    "leading zero": (400, post(b"Content-Length: 05\r\n", b"hello")),
    "hexadecimal": (400, post(b"Content-Length: 0x5\r\n", b"hello")),
    "no digits": (400, post(b"Content-Length:\r\n")),
    "superscript": (400, post(b"Content-Length: \xb2\r\n")),
    "large body": (413, post(b"Content-Length: 41\r\n")),
    "absurd length": (413, post(b"Content-Length: " + b"9" * 300 + b"\r\n")),
    # the coding
    "length and coding": (400, post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n")),
    "two codings": (400, post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
    "coding of HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "gzip": (501, post(b"Transfer-Encoding: gzip, chunked\r\n")),
    "identity": (501, post(b"Transfer-Encoding: identity\r\n")),
    "quoted": (501, post(b'Transfer-Encoding: "chunked"\r\n')),
    "vertical tab": (400, post(b"Transfer-Encoding: \x0bchunked\r\n")),
    # chunks
    "no size": (400, chunked(b"\r\n")),
    "size with 0x": (400, chunked(b"0x3\r\nabc\r\n")),
    "size with plus": (400, chunked(b"+3\r\nabc\r\n")),
    "size with space": (400, chunked(b" 3\r\nabc\r\n")),
    "long size": (400, chunked(b"000000003\r\nabc\r\n")),
    "size ended by LF": (400, chunked(b"3\nabc\r\n")),
    "data too long": (400, chunked(b"3\r\nabcd\r\n")),
    "data ended by LF": (400, chunked(b"3\r\nabc\n0\r\n\r\n")),
    "large chunk": (413, chunked(b"29\r\n")),
    "large sum": (413, chunked(b"20\r\n" + b"a" * 32 + b"\r\n9\r\n")),
    "LF in an extension": (400, chunked(b"3;a\nb\r\nabc\r\n")),
    "long extension": (400, chunked(b"3;" + b"a" * 20)),
    "many extensions": (413, chunked(b"1;aaaaaaaaa\r\na\r\n" * 4)),
    "bad trailer": (400, chunked(b"0\r\nX y\r\n\r\n")),
    "folded trailer": (400, chunked(b"0\r\nX: y\r\n z\r\n\r\n")),
    "many trailers": (431, chunked(b"0\r\n" + b"A: b\r\n" * 6)),
    "long trailer": (431, chunked(b"0\r\nA: " + b"b" * 400)),
    # expectations
    "other expectation": (417, post(b"Expect: miracles\r\nContent-Length: 1\r\n")),
    "large and expecting": (413, post(b"Expect: 100-continue\r\nContent-Length: 99\r\n")),
}


class Reading(unittest.TestCase):
    def test_splits_the_target_at_the_question_mark_and_decodes_nothing(self) -> None:
        request = one(b"GET /%41//b;c?d?e=%20 HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual((request.path, request.query), ("/%41//b;c", "d?e=%20"))

    def test_lowers_names_and_trims_values(self) -> None:
        request = one(b"GET / HTTP/1.1\r\nHOST:a\r\nX-y: \t b c \xe9 \t\r\n\r\n")
        self.assertEqual(request.headers, {"host": "a", "x-y": "b c é"})

    def test_joins_repeated_list_fields(self) -> None:
        request = one(b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\nx: c\r\n\r\n")
        self.assertEqual(request.headers["x"], "b, c")

    def test_takes_the_host_of_an_absolute_target(self) -> None:
        request = one(b"GET HTTP://b:80?c HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual((request.path, request.query), ("/", "c"))
        self.assertEqual(request.headers["host"], "b:80")

    def test_reads_a_body_by_its_length(self) -> None:
        self.assertEqual(one(GOOD["body"]).body, b"hello")

    def test_decodes_chunks_and_drops_trailers(self) -> None:
        self.assertEqual(one(GOOD["chunks"]).body, b"abcd")
        request = one(GOOD["trailer"])
        self.assertEqual(request.body, b"0123456789")
        self.assertNotIn("x", request.headers)

    def test_reads_a_body_of_exactly_the_limit(self) -> None:
        self.assertEqual(len(one(post(b"Content-Length: 40\r\n", b"a" * 40)).body), 40)
        self.assertEqual(len(one(chunked(b"28\r\n" + b"a" * 40 + b"\r\n0\r\n\r\n")).body), 40)

    def test_reads_pipelined_requests_in_order(self) -> None:
        paths = [r.path for r in read(b"".join(GOOD.values())) if isinstance(r, Request)]
        self.assertEqual(paths, ["/a", *["/"] * 5, "/c", "*", "/", "/"])

    def test_forgives_a_blank_line_before_each_request(self) -> None:
        self.assertEqual(len(read(GOOD["blank line before"] * 3)), 3)

    def test_reads_a_head_of_exactly_the_limit(self) -> None:
        start = b"GET / HTTP/1.1\r\nHost: "
        head = start + b"a" * (400 - len(start) - 4) + b"\r\n\r\n"
        self.assertEqual(len(one(head).headers["host"]), 400 - len(start) - 4)
        self.assertEqual(status(head.replace(b"Host: ", b"Host: a")), 431)


class Persistence(unittest.TestCase):
    def keeps(self, version: bytes, fields: bytes) -> bool:
        return one(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + fields + b"\r\n").keep_alive

    def test_is_the_rule_in_http_1_1(self) -> None:
        self.assertTrue(self.keeps(b"1.1", b""))
        self.assertTrue(self.keeps(b"1.9", b""))
        self.assertFalse(self.keeps(b"1.1", b"Connection: foo, Close\r\n"))
        self.assertFalse(self.keeps(b"1.1", b"Connection: foo\r\nConnection: close\r\n"))

    def test_is_the_exception_in_http_1_0(self) -> None:
        self.assertFalse(self.keeps(b"1.0", b""))
        self.assertTrue(self.keeps(b"1.0", b"Connection: Keep-Alive\r\n"))
        self.assertFalse(self.keeps(b"1.0", b"Connection: keep-alive, close\r\n"))


class Refusing(unittest.TestCase):
    def test_gives_each_flaw_its_status(self) -> None:
        for name, (expected, octets) in BAD.items():
            with self.subTest(name):
                self.assertEqual(status(octets), expected)

    def test_says_the_same_when_more_follows(self) -> None:
        for name, (expected, octets) in BAD.items():
            with self.subTest(name):
                self.assertEqual(status(octets + b"\r\n\r\n" + GOOD["get"]), expected)

    def test_keeps_what_came_before_the_flaw(self) -> None:
        for name, (expected, octets) in BAD.items():
            with self.subTest(name):
                results = read(GOOD["chunks"] + octets)
                self.assertEqual([type(r) for r in results], [Request, int])
                self.assertEqual(results[1], expected)

    def test_knows_whether_its_answer_may_have_a_body(self) -> None:
        for octets, bare in (
            (b"HEAD / HTTP/1.1\r\n\r\n", True),
            (b"HEAD /\r\n", True),
            (chunked(b"x\r\n").replace(b"POST", b"HEAD"), True),
            (GOOD["get"] + b"HEAD / HTTP/1.1\r\nHost : a\r\n\r\n", True),
            (b"GET / HTTP/1.1\r\n\r\n", False),
            (b"HEADER / HTTP/1.1\r\n\r\n", False),
            (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET /\r\n", False),
        ):
            parser = Parser(LIMITS, "c")
            parser.feed(octets)
            with self.subTest(octets), self.assertRaises(Refused):
                while parser.next_request() is not None:
                    pass
            self.assertEqual(parser.wants_no_body, bare, octets)

    def test_does_no_arithmetic_with_thousands_of_digits(self) -> None:
        octets = post(b"Content-Length: " + b"9" * 5_000 + b"\r\n")
        self.assertEqual(read(octets, limits=Limits()), [413])


class Pieces(unittest.TestCase):
    """The verdict depends on the bytes, not on how the network cut them."""

    def claim_the_same(self, octets: bytes, *pieces: bytes) -> None:
        self.assertEqual(outline(read(*pieces)), outline(read(octets)))

    def test_byte_by_byte(self) -> None:
        for name, octets in [*GOOD.items(), *((name, flaw) for name, (_, flaw) in BAD.items())]:
            with self.subTest(name):
                self.claim_the_same(octets, *(bytes([octet]) for octet in octets))

    def test_in_two_at_every_place(self) -> None:
        for name, octets in [*GOOD.items(), *((name, flaw) for name, (_, flaw) in BAD.items())]:
            with self.subTest(name):
                for place in range(len(octets)):
                    self.claim_the_same(octets, octets[:place], octets[place:])

    def test_with_blank_lines_between_the_same_request(self) -> None:
        get, blank = GOOD["get"], b"\r\n"
        for gaps, count in (((blank, blank), 3), ((blank + blank,), 1), ((b"", blank, blank), 4)):
            octets = get + b"".join(gap + get for gap in gaps)
            pieces = [get, *(piece for gap in gaps for piece in (gap, get))]
            self.claim_the_same(octets, *pieces)
            self.claim_the_same(octets, *(bytes([octet]) for octet in octets))
            self.assertEqual(len([r for r in read(*pieces) if isinstance(r, Request)]), count)

    def test_mutated_and_cut_at_random(self) -> None:
        chance = random.Random(4)
        parts = [*GOOD.values(), *[GOOD["get"]] * 5, *[GOOD["get"] + b"\r\n"] * 5]
        for _ in range(3_000):
            whole = b"".join(chance.choice(parts) for _ in range(6))
            octets = bytearray(whole[chance.choice((0, chance.randrange(len(whole)))) :])
            for _ in range(chance.randrange(3)):
                octets[chance.randrange(len(octets))] = chance.choice(b"\r\n :;,\0\x80aZ09/")
            cuts = sorted(chance.randrange(len(octets) + 1) for _ in range(chance.randrange(8)))
            pieces = [bytes(octets[a:b]) for a, b in zip([0, *cuts], [*cuts, len(octets)])]
            self.claim_the_same(bytes(octets), *pieces)


class Remembering(unittest.TestCase):
    def test_the_same_bytes_again_are_the_same_request(self) -> None:
        first, second, third = read(GOOD["get"] * 3)
        self.assertIs(first, second)
        self.assertIs(second, third)

    def test_nothing_of_a_request_with_credentials_stays_behind(self) -> None:
        for octets in (
            b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic QQ==\r\n\r\n",
            post(b"Content-Length: 6\r\n", b"secret"),
            chunked(b"6\r\nsecret\r\n0\r\n\r\n"),
        ):
            parser = Parser(LIMITS, "c")
            parser.feed(octets)
            self.assertIsNotNone(parser.next_request())
            self.assertIsNone(parser.next_request())
            kept = [getattr(parser, name) for name in Parser.__slots__]
            kept = [k for k in kept if not isinstance(k, int) and k not in (LIMITS, "c")]
            self.assertFalse(any(kept), kept)

    def test_credentials_are_read_anew_each_time(self) -> None:
        octets = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic QQ==\r\n\r\n"
        first, second = read(octets * 2)
        self.assertIsNot(first, second)
        self.assertEqual(outline([first]), outline([second]))

    def test_the_same_bytes_elsewhere_are_the_same_request_of_another_client(self) -> None:
        heads: Heads = {}
        requests = []
        for client in ("a", "a", "b"):
            parser = Parser(LIMITS, client, heads)
            parser.feed(GOOD["get"] * 2)
            requests.append(parser.next_request())
            self.assertIs(parser.next_request(), requests[-1])
        self.assertIs(requests[0], requests[1])
        self.assertEqual([request.client for request in requests if request], ["a", "a", "b"])
        self.assertEqual(outline([requests[2]]), outline([requests[0]]))

    def test_heads_that_are_known_elsewhere_are_bounded_and_without_credentials(self) -> None:
        heads: Heads = {}
        for number in range(2 * HEADS):
            head = b"GET /%d HTTP/1.1\r\nHost: a\r\n" % number
            for field in (b"", b"Authorization: Basic QQ==\r\n", b"Cookie: a=b\r\n"):
                parser = Parser(LIMITS, "c", heads)
                parser.feed(head + field + b"\r\n")
                self.assertIsNotNone(parser.next_request())
            self.assertIn(head + b"\r\n", heads)
        self.assertLessEqual(len(heads), HEADS)
        self.assertFalse(any(b"Cookie" in head or b"Auth" in head for head in heads))

    def test_long_heads_are_not_kept(self) -> None:
        octets = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1_000 + b"\r\n\r\n"
        first, second = read(octets * 2, limits=Limits())
        self.assertIsNot(first, second)

    def test_a_longer_head_that_begins_alike_is_another_request(self) -> None:
        _, second = read(b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\nX: y\r\n\r\n")
        self.assertEqual(outline([second])[0][3], {"x": "y"})  # type: ignore[index]


class Expecting(unittest.TestCase):
    def expects(self, octets: bytes) -> bool:
        parser = Parser(LIMITS, "c")
        parser.feed(octets)
        parser.next_request()
        return parser.expects_continue

    def test_is_noticed_while_the_body_is_missing(self) -> None:
        self.assertTrue(self.expects(post(b"Expect: 100-Continue\r\nContent-Length: 2\r\n")))
        self.assertTrue(
            self.expects(post(b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"))
        )

    def test_is_pointless_without_a_body_or_with_one_under_way(self) -> None:
        self.assertFalse(self.expects(post(b"Expect: 100-continue\r\n")))
        self.assertFalse(self.expects(post(b"Expect: 100-continue\r\nContent-Length: 2\r\n", b"o")))

    def test_ends_with_the_body(self) -> None:
        parser = Parser(LIMITS, "c")
        parser.feed(post(b"Expect: 100-continue\r\nContent-Length: 2\r\n"))
        self.assertIsNone(parser.next_request())
        parser.feed(b"ok")
        self.assertIsNotNone(parser.next_request())
        self.assertFalse(parser.expects_continue)

    def test_is_not_known_to_http_1_0(self) -> None:
        octets = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        self.assertFalse(self.expects(octets))


if __name__ == "__main__":
    unittest.main()
