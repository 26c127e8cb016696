"""Sockets before HTTP: who the peer is, and how an address is listened on."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat
import tempfile
import time
import unittest
from unittest import mock

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from jwksd.httpd import sockets
from jwksd.httpd.sockets import (
    client_of,
    is_abandoned,
    listen,
    listen_unix,
    unlisten,
    url_of,
)
from jwksd.httpd.tls import tls_context
from tests.test_httpd_tls import make_certificate


class Peers(unittest.TestCase):
    def test_are_named_by_their_address_alone(self) -> None:
        for address, name in (
            (("192.0.2.1", 5), "192.0.2.1"),
            (("2001:db8::1", 5, 0, 0), "2001:db8::1"),
            (("fe80::1%eth0", 5, 0, 2), "fe80::1"),
            (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
            ("", "unix"),
            (b"\0abstract", "unix"),
        ):
            with self.subTest(address):
                self.assertEqual(client_of(address), name)


class Listening(unittest.TestCase):
    def listen(self, host: str) -> socket.socket:
        listener = listen(host, 0)
        self.addCleanup(unlisten, listener)
        return listener

    def test_lets_accepted_sockets_send_at_once(self) -> None:
        listener = self.listen("127.0.0.1")
        with socket.create_connection(listener.getsockname()):
            listener.setblocking(True)
            accepted, _ = listener.accept()
            with accepted:
                self.assertTrue(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_never_waits(self) -> None:
        with self.assertRaises(BlockingIOError):
            self.listen("127.0.0.1").accept()

    def test_names_a_url_that_a_client_here_can_use(self) -> None:
        listener = self.listen("127.0.0.1")
        port = listener.getsockname()[1]
        for host, tls, url in (
            ("0.0.0.0", False, f"http://127.0.0.1:{port}"),
            ("::", True, f"https://[::1]:{port}"),
            ("localhost", False, f"http://localhost:{port}"),
            ("unix:/run/s", False, "unix:/run/s"),
        ):
            with self.subTest(host):
                self.assertEqual(url_of(listener, host, tls), url)

    @unittest.skipUnless(hasattr(socket, "AF_UNIX"), "no Unix domain sockets here")
    def test_on_a_file_is_for_owner_and_group(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "s")
            self.listen(f"unix:{path}")
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o660)

    @unittest.skipUnless(hasattr(socket, "AF_UNIX"), "no Unix domain sockets here")
    def test_never_replaces_a_file_that_is_no_socket(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            with self.assertRaises(OSError):
                self.listen(f"unix:{file.name}")
            self.assertTrue(os.path.exists(file.name))


@unittest.skipUnless(hasattr(socket, "AF_UNIX"), "no Unix domain sockets here")
class Files(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "s")

    def test_of_another_server_are_left_alone(self) -> None:
        first = listen_unix(self.path)
        os.unlink(self.path)
        second = listen_unix(self.path)
        self.addCleanup(unlisten, second)
        unlisten(first)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path)

    def test_that_were_taken_are_left_alone(self) -> None:
        first = listen_unix(self.path)
        self.addCleanup(unlisten, first)
        with self.assertRaises(OSError):
            listen_unix(self.path)
        self.assertTrue(os.path.exists(self.path))

    def test_whose_backlog_is_full_are_not_abandoned(self) -> None:
        with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
            busy.bind(self.path)
            busy.listen(0)
            for _ in range(5):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect_ex(self.path)
            self.assertFalse(is_abandoned(self.path))

    def test_are_looked_at_and_replaced_by_one_server_at_a_time(self) -> None:
        import fcntl

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(self.path)
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        self.addCleanup(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)  # another one is starting there
        waited: list[float] = []

        def started(seconds: float) -> None:
            waited.append(seconds)
            fcntl.flock(folder, fcntl.LOCK_UN)

        with mock.patch.object(time, "sleep", started):  # it is waiting
            unlisten(listen_unix(self.path))
        self.assertEqual(len(waited), 1)

    def test_are_kept_from_nobody_by_who_may_only_read_the_folder(self) -> None:
        import fcntl

        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        self.addCleanup(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_SH)  # and does not let go
        with mock.patch.object(sockets, "START_PATIENCE", 0.0):
            unlisten(listen_unix(self.path))
        refused = PermissionError(13, "Permission denied")
        with mock.patch.object(os, "open", side_effect=refused):
            unlisten(listen_unix(self.path))


class Certificates(unittest.TestCase):
    def test_whose_key_has_a_pass_phrase_are_an_error_and_no_question(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        sealed = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
        with tempfile.TemporaryDirectory() as folder:
            certificate, path = make_certificate(folder, "a")
            with open(path, "wb") as file:
                file.write(sealed)
            with self.assertRaisesRegex(ValueError, "pass phrase; take it off: openssl"):
                tls_context(certificate, path)

    def test_are_used_with_tls_1_2_and_up(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            context = tls_context(*make_certificate(folder, "a"))
        self.assertEqual(context.minimum_version, ssl.TLSVersion.TLSv1_2)
        self.assertTrue(context.options & ssl.OP_NO_RENEGOTIATION)

    def test_that_do_not_fit_their_key_are_an_error(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = make_certificate(folder, "a")
            os.rename(key, key + ".old")
            make_certificate(folder, "b")
            with self.assertRaises(ValueError):
                tls_context(certificate, key + ".old")


if __name__ == "__main__":
    unittest.main()
