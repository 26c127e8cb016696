"""Work is bounded, not only octets: whatever one client sends, the loop has time for the others."""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
import tempfile
import threading
import time
import unittest
from functools import partial
from itertools import islice
from typing import Any

from bench.hostile import KeyUpdates
from jwksd.api.answers import etag_matches
from jwksd.httpd import Limits
from jwksd.httpd.connection import LINGER
from jwksd.httpd.parser import STEPS, Parser, keeps_alive
from jwksd.httpd.places import Shares, Turns
from jwksd.httpd.tls import (
    EMPTY_RECORDS,
    HANDSHAKE,
    HEADER,
    RECORDS,
    TLSConnection,
    WantsToCompute,
    WantsToWrite,
    tls_context,
)
from tests.httpd_live import GET, LiveServer, wait_until
from tests.support import Clock
from tests.test_httpd_tls import make_certificate

CERTIFICATE = 300  # octets that only what carries one has: a retry has 100
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class AParser(unittest.TestCase):
    def test_decodes_only_so_many_chunks_at_a_time(self) -> None:
        parser, count = Parser(Limits(), "a"), 10 * STEPS
        parser.feed(CHUNKED + b"1\r\na\r\n" * count + b"0\r\n\r\n")
        turns = 0
        while (request := parser.next_request()) is None:
            self.assertTrue(parser.unfinished)
            parser.allow()
            turns += 1
        self.assertEqual(request.body, b"a" * count)
        self.assertGreaterEqual(turns, 10)

    def test_gives_only_so_many_requests_at_a_time(self) -> None:
        parser = Parser(Limits(), "a")
        parser.feed(GET * STEPS)
        taken = 0
        while parser.next_request() is not None:
            taken += 1
        self.assertLess(taken, STEPS)
        self.assertTrue(parser.unfinished)


class Lists(unittest.TestCase):
    def test_are_searched_and_not_taken_apart(self) -> None:
        etag, split = '"0123456789abcdef"', "," * 16_000
        cases = ((f"{etag},", True), (f'"x", W/{etag} ', True), (f"{split}{etag}", True),
                 (" * ", True), (f"x{etag}", False), (f"{etag}x", False), (split, False),
                 ('"x"', False), (f'"a, W/{etag[1:]}', False))  # fmt: skip
        for field, known in cases:
            with self.subTest(field[-40:]):
                self.assertEqual(etag_matches(field, etag), known)

    def test_cost_as_little_as_one_member(self) -> None:
        """Counted in function calls: a member that is taken apart costs at least one."""
        for judge in (
            lambda: etag_matches("," * 16_000, '"0123456789abcdef"'),
            lambda: keeps_alive({"connection": "," * 16_000}, "1.1"),
        ):
            self.assertLess(calls_of(judge), 1_000)

    def test_of_options_are_read_in_any_case_and_place(self) -> None:
        for options, version, keeps in (
            ("close", "1.1", False),
            ("foo, Close", "1.1", False),
            ("closed, x-close", "1.1", True),
            ("Keep-Alive", "1.0", True),
            ("keep-alive,close", "1.0", False),
            ("foo", "1.0", False),
        ):
            with self.subTest(options):
                self.assertEqual(keeps_alive({"connection": options}, version), keeps)


def calls_of(function: Any) -> int:
    calls = [0]

    def count(frame: Any, event: str, argument: Any) -> None:
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls[0]


class Chunks(unittest.TestCase):
    def test_of_one_client_do_not_delay_another_ones_answer(self) -> None:
        """While a body of 8,000 chunks is read, others' requests are answered in between."""
        with LiveServer() as server, server.connect() as hostile, server.connect() as other:
            other.send(GET)
            other.answer()
            turns = server.turns
            hostile.send(CHUNKED + b"1\r\na\r\n" * 8_000 + b"0\r\n\r\n")
            self.assertEqual(len(hostile.answer().body), 8_000)
            self.assertGreater(server.turns - turns, 8_000 // STEPS // 2)

    def test_that_wait_for_their_turn_do_not_move_a_deadline(self) -> None:
        deadlines: set[float] = set()

        class Watching(LiveServer):
            def _turn(self) -> None:
                super()._turn()
                deadlines.update(h.deadline for h in self._connections if h.phase == 2)

        with Watching() as server, server.connect() as hostile:
            hostile.send(CHUNKED)
            for _ in range(20):
                hostile.send(b"1\r\na\r\n" * 100)
                time.sleep(0.005)  # so that they come with turns of their own
            self.assertTrue(wait_until(lambda: deadlines))
            hostile.send(b"0\r\n\r\n")
            self.assertEqual(len(hostile.answer().body), 2_000)
        self.assertEqual(len(deadlines), 1)


class Sources(unittest.TestCase):
    def test_take_turns(self) -> None:
        turns = Turns()
        order: list[str] = []
        for number in range(3):
            turns.put("192.0.2.1", partial(order.append, f"a{number}"))
        turns.put("192.0.2.2", partial(order.append, "b"))
        for react in turns.take(2) + turns.take(9):
            react()
        self.assertEqual(order, ["a0", "b", "a1", "a2"])
        self.assertFalse(turns)

    def test_of_ipv6_are_counted_by_64_and_with_more_shares_by_56_and_48(self) -> None:
        shares = Shares(10)

        def room(pattern: str) -> int:
            """How many connections get a place, if each comes from the next address."""
            for number in range(100):
                if not shares.take(pattern.format(number)):
                    return number
            return 100

        self.assertEqual(room("2001:db8:0:1::{:x}"), 10)
        self.assertEqual(room("2001:db8:0:1{:x}::1"), 15 - 10)
        self.assertEqual(room("2001:db8:0:2{:02x}::1"), 20 - 15)
        self.assertEqual(room("192.0.2.{}"), 100)

    def test_give_back_what_they_took(self) -> None:
        shares = Shares(1)
        for client in ("2001:db8::1", "192.0.2.1"):
            self.assertTrue(shares.take(client))
            self.assertFalse(shares.take(client))
            shares.give_back(client)
            self.assertTrue(shares.take(client))
            shares.give_back(client)
        self.assertEqual(dict(shares.taken), {})


class Peer:
    """The client's side of TLS in memory, and a socket of the server's that is never ready."""

    def __init__(self, context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.maximum_version = version
        self.tls = client.wrap_bio(self.incoming, self.outgoing)
        self.takes = 1 << 30  # octets that this side still takes
        self.connection = TLSConnection(self, context)  # type: ignore[arg-type]
        for _ in range(5):
            for side in (self.tls.do_handshake, self.shake):
                with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
                    side()

    def shake(self) -> None:
        """The server's side of the handshake, on this thread."""
        try:
            self.connection.recv(0)
        except WantsToCompute:
            self.connection.stepped(self.connection.step)

    def recv(self, size: int) -> bytes:
        octets = self.outgoing.read(size)
        if not octets:
            raise BlockingIOError
        return octets

    def send(self, octets: bytes) -> int:
        if not self.takes:
            raise BlockingIOError
        taken = octets[: self.takes]
        self.takes -= len(taken)
        self.incoming.write(taken)
        return len(taken)


class Cutting(Peer):
    """A client that sends the first octet of each ClientHello by itself."""

    def __init__(self, context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
        self.parts: list[bytes] = []
        self.steps: list[tuple[bool, int]] = []  # whether one was said to sign; what it wrote
        super().__init__(context, version)

    def shake(self) -> None:
        for _ in range(10):
            try:
                self.connection.recv(0)
            except WantsToCompute as wants:
                result = self.connection.step()
                self.steps.append((*wants.args, self.connection._outgoing.pending))
                with contextlib.suppress(BlockingIOError):
                    self.connection.stepped(lambda result=result: result)  # type: ignore[misc]

    def recv(self, size: int) -> bytes:
        octets = self.outgoing.read()
        while octets:
            end = HEADER + int.from_bytes(octets[3:HEADER], "big")
            record, octets = octets[:end], octets[end:]
            content = record[HEADER:]
            if record[0] != HANDSHAKE or self.connection._answered:  # the latter may be encrypted
                self.parts.append(record)
                continue
            for part in (content[:1], content[1:]):
                self.parts.append(record[:3] + len(part).to_bytes(2, "big") + part)
        if not self.parts:
            raise BlockingIOError
        return self.parts.pop(0)


def taken_in(server: LiveServer) -> bool:
    """Whether its one connection has read that many records without content."""
    return any(handler.tls._empty_records == EMPTY_RECORDS for handler in server._connections)


class Records(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.files = make_certificate(folder.name, "a")
        self.context = tls_context(*self.files)
        self.peer = Peer(self.context, ssl.TLSVersion.TLSv1_3)

    def test_are_read_so_many_a_turn_and_the_rest_is_told(self) -> None:
        for _ in range(3 * RECORDS):
            self.peer.tls.write(b"a")
        connection = self.peer.connection
        read: list[bytes] = []
        while sum(map(len, read)) < 3 * RECORDS:
            read.append(connection.recv(0))
            self.assertEqual(connection.unfinished, sum(map(len, read)) < 3 * RECORDS)
        self.assertEqual([len(part) for part in read], [RECORDS] * 3)

    def test_that_make_us_sign_are_known_however_they_are_cut(self) -> None:
        for curve in ("prime256v1", "secp521r1"):  # the second is asked for by a retry
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                with self.subTest(curve, version=version):
                    self.context.set_ecdh_curve(curve)
                    peer = Cutting(self.context, version)
                    self.assertTrue(peer.connection.established)
                    signing = [said for said, wrote in peer.steps if wrote > CERTIFICATE]
                    self.assertEqual(signing, [True])
                    self.assertFalse(peer.steps[-1][0])

    def test_that_the_client_does_not_take_are_output_and_stop_the_reading(self) -> None:
        connection = self.peer.connection
        self.peer.takes = 10
        self.assertEqual(connection.send(b"x" * 100_000), 16_384)  # one record, not the rest
        self.assertTrue(connection.unsent)
        self.assertRaises(WantsToWrite, connection.recv, 0)
        self.assertRaises(BlockingIOError, connection.send, b"x")
        self.peer.takes = 1 << 30
        connection.flush()
        self.assertEqual(len(self.peer.tls.read(100_000)), 16_384)

    def test_without_content_end_the_connection(self) -> None:
        clock = Clock(1000.0)
        with LiveServer(tls=self.files, clock=clock) as server, server.connect() as client:
            records = KeyUpdates(client.connection)
            client.send(b"".join(islice(records, EMPTY_RECORDS)))
            self.assertTrue(wait_until(lambda: taken_in(server)))
            self.assertEqual(server.stats.connections_open, 1)
            client.send(next(records))
            self.assertTrue(
                wait_until(lambda: {it.phase for it in server._connections} == {LINGER})
            )
            server.pass_time(Limits().linger + 1)
            self.assertTrue(wait_until(lambda: server.stats.connections_open == 0))


class Ciphers(unittest.TestCase):
    def test_are_those_with_forward_secrecy_and_authentication_alone(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            context = tls_context(*make_certificate(folder, "a"))
        for cipher in context.get_ciphers():
            with self.subTest(cipher["name"]):
                self.assertTrue(cipher["aead"])
                self.assertIn(cipher["kea"], ("kx-ecdhe", "kx-any"))

    def test_files_that_may_never_end_are_refused_at_once(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = make_certificate(folder, "a")
            os.unlink(key)
            os.mkfifo(key)
            refused: list[BaseException] = []

            def read() -> None:
                try:
                    tls_context(certificate, key)
                except ValueError as error:
                    refused.append(error)

            reading = threading.Thread(target=read, daemon=True)
            reading.start()
            reading.join(10)
            self.assertRegex(str(refused), "no regular file")


if __name__ == "__main__":
    unittest.main()
