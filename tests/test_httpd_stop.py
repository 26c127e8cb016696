"""The end: what has come is answered, and then it is over."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import unittest

from jwksd.httpd import Listener, Request, Response
from tests.httpd_live import ANSWER, GET, PATIENCE, LiveServer, statuses, wait_until
from tests.support import Clock
from tests.test_httpd_loop import LIMITS, Blocking, post

MANY = 150  # more than are accepted in a row


class Late:
    """Connects after each look that found nobody; a server that stops closes after one."""

    def __init__(self, listener: Listener) -> None:
        self.connected = 0
        self.looked = threading.Event()
        self._address, self._family = listener.socket.getsockname(), listener.socket.family
        self._found = listener.accept
        listener.accept = self.accept  # type: ignore[method-assign]

    def accept(self) -> tuple[socket.SocketType, str]:
        try:
            return self._found()
        except BlockingIOError:
            with socket.socket(self._family) as client:
                client.settimeout(0.1)  # none answers: only a failure comes sooner
                with contextlib.suppress(OSError):
                    client.connect(self._address)
                    self.connected += 1
            self.looked.set()
            raise


class Stopping(unittest.TestCase):
    def test_finishes_what_is_in_flight(self) -> None:
        with LiveServer() as server:
            gate = server.hold()
            working, idle, half = server.connect(), server.connect(), server.connect()
            new = server.connect()
            working.send(post("/later", b""))
            idle.send(GET)
            idle.answer()
            half.send(GET[:-2])
            self.assertTrue(wait_until(lambda: len(server.seen) == 2))
            server.stop()
            self.assertTrue(idle.is_closed())
            new.send(GET)
            self.assertEqual(statuses(new.rest()), [200])
            gate.set()
            self.assertEqual(statuses(working.rest()), [200])
            half.send(GET[-2:])
            octets = half.rest()
            self.assertEqual(statuses(octets), [200])
            self.assertIn(b"Connection: close", octets)
            with self.assertRaises(OSError):
                server.connect()
            for client in (working, idle, half, new):
                client.connection.close()

    def test_does_not_wait_for_ever(self) -> None:
        with LiveServer(clock=Clock(1000.0)) as server:
            gate = server.hold()
            self.addCleanup(gate.set)
            with server.connect() as client:
                client.send(post("/later", b""))
                self.assertTrue(server.held.wait(PATIENCE))  # else it would have waited too long
                server.stop()
                self.assertTrue(wait_until(lambda: server.stopping))
                server.pass_time(LIMITS.stop + 1)
                answer = client.answer()
                self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "1"))
                self.assertIn(b"stopped", answer.body)
                self.assertTrue(client.is_closed())
        self.assertIn('"POST /later HTTP/1.1" 503', server.lines[-1])

    def test_serves_whoever_had_connected(self) -> None:
        server = LiveServer()
        client = server.connect()
        client.send(GET)
        server.stop()
        with server, client:
            self.assertEqual(client.answer().status, 200)

    def test_serves_whoever_had_connected_however_many(self) -> None:
        server = LiveServer()
        clients = [server.connect() for _ in range(MANY)]
        for client in clients:
            client.send(GET)
        server.stop()
        with server:
            for client in clients:
                with client:
                    self.assertEqual(client.answer().status, 200)

    @unittest.skipUnless(sys.platform == "linux", "the filter is Linux's")
    def test_leaves_nobody_in_the_queue_that_it_closes(self) -> None:
        for host in ("127.0.0.1", "unix"):
            with self.subTest(host), tempfile.TemporaryDirectory() as folder:
                name = os.path.join(folder, "s") if host == "unix" else host
                server = LiveServer(host=f"unix:{name}" if host == "unix" else name)
                late = Late(server.listener)
                server.stop()
                with server:
                    self.assertTrue(late.looked.wait(PATIENCE))
                self.assertEqual(late.connected, 0)

    def test_answers_what_kept_connections_had_sent(self) -> None:
        begun, gate = threading.Event(), threading.Event()

        def work(request: Request) -> Response:
            begun.set()
            gate.wait(PATIENCE)
            return ANSWER

        with LiveServer(handler=Blocking) as server, contextlib.ExitStack() as stack:
            server.work = work
            clients = [stack.enter_context(server.connect()) for _ in range(20)]
            for client in clients:
                client.send(GET)
                client.answer()
            clients[0].send(GET.replace(b"/ ", b"/work "))
            self.assertTrue(begun.wait(PATIENCE))
            for client in clients[1:]:
                client.send(GET)
            server.stop()
            gate.set()
            answers = [client.answer() for client in clients]
            self.assertEqual([answer.status for answer in answers], [200] * 20)
            self.assertEqual({a.headers.get("connection") for a in answers[1:]}, {"close"})


if __name__ == "__main__":
    unittest.main()
