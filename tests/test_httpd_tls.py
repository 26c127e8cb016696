"""TLS: in the same loop, and nothing else than TLS on its port."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import tempfile
import threading
import unittest
import warnings
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jwksd.httpd import Limits
from jwksd.httpd.tls import TLSConnection
from jwksd.httpd.workers import CORES, QUEUE_LIMIT
from tests.httpd_live import GET, LAST, PATIENCE, Client, LiveServer, statuses, wait_until
from tests.support import Clock
from tests.test_httpd_loop import LIMITS


def make_certificate(folder: str, name: str) -> tuple[str, str]:
    """A self-signed certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    with open(files[0], "wb") as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
    with open(files[1], "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    return files


def client_hello() -> bytes:
    """How a client begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        ).do_handshake()
    return outgoing.read()


class TLS(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.files = make_certificate(self.folder, "first")
        self.server = LiveServer(
            tls=self.files, clock=Clock(1000.0), limits=LIMITS._replace(body=65_536)
        )
        self.server.__enter__()
        self.addCleanup(self.server.__exit__)

    def handshake(
        self, ragged: bool = True, plain: socket.socket | None = None, **options: Any
    ) -> Client:
        context = ssl.create_default_context(cafile=self.files[0])
        for name, value in options.items():
            setattr(context, name, value)
        plain = plain or self.server.connect().connection
        return Client(
            context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=ragged)
        )

    def subject(self, client: Client) -> str:
        connection = client.connection
        assert isinstance(connection, ssl.SSLSocket)
        certificate: Any = connection.getpeercert()
        return str(certificate["subject"][0][0][1])

    def test_carries_requests_and_stands_in_the_url(self) -> None:
        self.assertTrue(self.server.url.startswith("https://"))
        with self.handshake() as client:
            for _ in range(3):
                client.send(GET * 10)
                self.assertEqual([client.answer().status for _ in range(10)], [200] * 10)

    def test_carries_much_to_a_slow_reader(self) -> None:
        with self.handshake(plain=self.server.connect_narrowly().connection) as client:
            client.send(GET.replace(b"/ ", b"/big ") * 5)
            self.assertTrue(wait_until(lambda: self.server.seen))
            self.assertEqual([len(client.answer().body) for _ in range(5)], [1_000_000] * 5)

    def test_shakes_hands_with_a_slow_reader(self) -> None:
        with open(self.files[0], "r+b") as file:
            file.write(file.read() * 60)  # a chain that is longer than what can be on its way
        with LiveServer(tls=self.files) as server:  # with the longer chain
            client = self.handshake(plain=server.connect_narrowly().connection)
            with client:
                client.send(GET)
                self.assertEqual(client.answer().status, 200)

    def test_agrees_on_http_1_1_with_who_knows_more(self) -> None:
        context = ssl.create_default_context(cafile=self.files[0])
        context.set_alpn_protocols(["h2", "http/1.1"])
        with self.server.connect() as client:
            secure = context.wrap_socket(client.connection, server_hostname="localhost")
            with secure:
                self.assertEqual(secure.selected_alpn_protocol(), "http/1.1")

    def test_carries_a_body_of_many_records(self) -> None:
        head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n"
        with self.handshake() as client:
            client.send(head + b"a" * 60_000)
            self.assertEqual(client.answer().body, b"a" * 60_000)

    def test_says_goodbye(self) -> None:
        with self.handshake(ragged=False) as client:
            client.send(LAST)
            self.assertEqual(statuses(client.rest()), [200])

    def test_answers_early_to_a_client_that_is_still_sending(self) -> None:
        with self.handshake() as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n")
            client.send(b"a" * 900_000)
            self.assertEqual(client.answer().status, 413)

    def test_is_1_2_or_1_3_and_never_older(self) -> None:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with self.handshake(maximum_version=version) as client:
                client.send(GET)
                self.assertEqual(client.answer().status, 200)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.options |= ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_3
        with self.server.connect() as client, self.assertRaises(ssl.SSLError):
            context.wrap_socket(client.connection)

    def test_on_its_port_tells_plain_http_what_to_do(self) -> None:
        octets = self.server.ask(GET)
        self.assertEqual(statuses(octets), [400])
        self.assertIn(b"https://", octets)

    def test_on_its_port_gives_up_on_silence_and_on_half_a_handshake(self) -> None:
        with self.server.connect() as client:
            client.send(b"\x16\x03\x01\x02\x00")
            self.assertTrue(wait_until(lambda: self.server.readings))
            self.server.pass_time(Limits().head_time - 2)
            self.assertEqual(self.server.stats.connections_open, 1)
            self.server.pass_time(4)
            self.assertTrue(client.is_closed())

    def test_survives_nonsense(self) -> None:
        for octets in (b"\x16" * 500, b"\x16\x03\x01\x00\x05hello", b"\x80\x2e\x01", b"\0"):
            with self.subTest(octets[:5]):
                self.server.ask(octets)
        with self.handshake() as client:
            client.send(GET)
            self.assertEqual(client.answer().status, 200)

    def test_is_not_cut_off_in_a_handshake_because_places_are_short(self) -> None:
        limits = LIMITS._replace(idle_full=1.0)
        crowded = LiveServer(tls=self.files, max_connections=1, clock=Clock(1000.0), limits=limits)
        with crowded as server, server.connect() as client:
            client.send(b"\x16")  # the first octet of a handshake
            self.assertTrue(wait_until(lambda: server.stats.connections_open == 1))
            server.pass_time(limits.idle_full + 1)  # a sweep, before limits.head_full has passed
            self.assertEqual(server.stats.connections_open, 1)

    def held_signatures(self) -> threading.Event:
        """Steps of handshakes wait for this event; `held` says that one does."""
        gate, step = threading.Event(), TLSConnection.step
        self.held = threading.Semaphore(0)

        def slow(connection: TLSConnection) -> bytes | None:
            if not connection._answered:
                self.held.release()
                gate.wait(PATIENCE)
            return step(connection)

        self.addCleanup(gate.set)
        for patched in (
            mock.patch.object(TLSConnection, "step", slow),
            mock.patch("jwksd.httpd.loop.CORES", 2),  # on a single one the loop would wait
        ):
            patched.start()
            self.addCleanup(patched.stop)
        return gate

    def test_signs_beside_the_loop(self) -> None:
        with self.handshake() as early:
            gate = self.held_signatures()
            late: list[int] = []

            def join() -> None:
                with self.handshake() as client:
                    client.send(GET)
                    late.append(client.answer().status)

            thread = threading.Thread(target=join)
            thread.start()
            self.assertTrue(self.held.acquire(timeout=PATIENCE))
            early.send(GET)
            self.assertEqual(early.answer().status, 200)
            gate.set()
            thread.join(PATIENCE)
            self.assertEqual(late, [200])

    def test_is_cut_off_while_a_thread_signs(self) -> None:
        gate = self.held_signatures()
        with self.server.connect() as client:
            client.send(client_hello())
            self.assertTrue(self.held.acquire(timeout=PATIENCE))
            self.server.pass_time(LIMITS.head_time + 1)
            self.assertEqual(client.rest(), b"")
            self.assertEqual(self.server.stats.connections_open, 0)
            gate.set()
        with self.handshake() as client:
            client.send(GET)
            self.assertEqual(client.answer().status, 200)
        self.assertFalse([line for line in self.server.lines if "error" in line])

    def test_refuses_handshakes_for_which_there_is_no_room(self) -> None:
        self.held_signatures()
        room = QUEUE_LIMIT + CORES
        with contextlib.ExitStack() as stack:
            hello = client_hello()
            for _ in range(room):
                stack.enter_context(self.server.connect()).send(hello)
            self.assertTrue(wait_until(lambda: self.server._shakers.queued == QUEUE_LIMIT))
            with self.server.connect() as client:
                client.send(hello)
                self.assertEqual(client.rest(), b"")

    def test_takes_a_new_certificate_while_it_serves(self) -> None:
        with self.handshake() as old:
            self.assertEqual(self.subject(old), "first")
            make_certificate(self.folder, "second")
            self.server.listener.reload_tls()
            with self.handshake() as new:
                self.assertEqual(self.subject(new), "second")
            old.send(GET)
            self.assertEqual(old.answer().status, 200)

    def test_keeps_its_certificate_when_the_new_one_is_bad(self) -> None:
        os.unlink(self.files[1])
        with self.assertRaises(ValueError):
            self.server.listener.reload_tls()
        with self.handshake() as client:
            self.assertEqual(self.subject(client), "first")

    def test_does_not_wait_for_slow_handshakes(self) -> None:
        slow = [self.server.connect() for _ in range(20)]
        for client in slow:
            client.send(b"\x16\x03\x01\x02\x00\x01")
        with self.handshake() as quick:
            quick.send(GET)
            self.assertEqual(quick.answer().status, 200)
        for client in slow:
            client.connection.close()


if __name__ == "__main__":
    unittest.main()
