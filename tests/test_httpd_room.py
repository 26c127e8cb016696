"""Places: who gets one, who makes room, and what those are told who get none."""

from __future__ import annotations

import contextlib
import unittest
from collections.abc import Callable
from unittest import mock

from jwksd.httpd import Listener, Request
from jwksd.httpd.places import TURNED_AWAY
from tests.httpd_live import GET, LAST, Client, LiveServer, Routes, statuses, wait_until
from tests.support import Clock
from tests.test_httpd_loop import LIMITS, post


class Named(Routes):
    """Has the field Host name the client."""

    def named_client(self, request: Request) -> str:
        return request.headers["host"]


def arrived(server: LiveServer) -> int:
    """Octets of requests that are not whole yet."""
    return sum(len(handler.parser._buffer) for handler in list(server._connections))


class Room(unittest.TestCase):
    def test_for_one_client_is_a_share(self) -> None:
        with LiveServer(max_per_client=2) as server:
            first, second = server.connect(), server.connect()
            for client in (first, second):
                client.send(GET)
                client.answer()
            self.assertEqual(statuses(server.ask(b"")), [503])
            self.assertEqual(server.stats.rejected_client, 1)
            with first, second:
                first.send(GET)
                self.assertEqual(first.answer().status, 200)

    def test_is_given_back(self) -> None:
        with LiveServer(max_per_client=1) as server:
            for _ in range(5):
                self.assertEqual(statuses(server.ask(LAST)), [200])
                self.assertTrue(wait_until(lambda: server.stats.connections_open == 0))
            self.assertEqual(dict(server._shares.taken), {})

    def test_is_made_by_those_who_rest(self) -> None:
        with LiveServer(max_connections=2, clock=Clock(1000.0)) as server:
            resting = [server.connect() for _ in range(2)]
            for client in resting:
                client.send(GET)
                client.answer()
            self.assertEqual(server.stats.connections_open, 2)
            server.pass_time(LIMITS.idle_full + 1)
            self.assertTrue(wait_until(lambda: server.stats.connections_open < 2))
            self.assertEqual(statuses(server.ask(LAST)), [200])
            self.assertGreaterEqual(server.stats.connections_accepted, 3)
            for client in resting:
                client.connection.close()

    def test_is_made_by_the_oldest_unfinished_request(self) -> None:
        for unfinished in (b"", GET[:-2], post("/echo", b"abc")[:-1]):
            with self.subTest(unfinished):
                self.claim_oldest_gives_way(unfinished)

    def claim_oldest_gives_way(self, unfinished: bytes) -> None:
        patient = LIMITS._replace(idle_full=60.0, head_full=60.0, body_full=60.0)
        crowded = LiveServer(max_connections=3, limits=patient, clock=Clock(1000.0))
        with crowded as server, contextlib.ExitStack() as stack:
            clients = []
            for number in range(1, 4):
                clients.append(stack.enter_context(server.connect()))
                clients[-1].send(unfinished)
                self.assertTrue(wait_until(lambda: server.stats.connections_open == len(clients)))
                octets = number * len(unfinished)
                self.assertTrue(wait_until(lambda octets=octets: arrived(server) == octets))
                # A turn may take in several: each at a time of its own, so that one is the oldest.
                server.pass_time(0.01)
            self.assertEqual(statuses(server.ask(LAST)), [200])
            self.assertEqual(statuses(clients[0].rest()), [503] if unfinished else [])
            self.assertEqual(server.stats.gave_way, 1)

    def test_is_short_for_unfinished_requests_once_it_is_crowded(self) -> None:
        for unfinished in (GET[:-2], post("/echo", b"abc")[:-1]):
            crowded = LiveServer(max_connections=1, clock=Clock(1000.0))
            with crowded as server, server.connect() as slow:
                slow.send(unfinished)
                octets = len(unfinished)
                self.assertTrue(wait_until(lambda octets=octets: arrived(server) == octets))
                server.pass_time(LIMITS.head_full + 1)
                self.assertEqual(statuses(slow.rest()), [408])

    def test_of_a_proxy_is_that_of_the_clients_that_it_names(self) -> None:
        body = post("/echo", b"abc")[:-1]
        settings: dict[str, object] = {"max_per_client": 1, "handler": Named}
        proxied = LiveServer(is_proxy=lambda peer: True, **settings)
        with proxied as server, contextlib.ExitStack() as stack:
            first, again, other = (stack.enter_context(server.connect()) for _ in range(3))
            first.send(body.replace(b"Host: a", b"Host: bob"))
            self.assertTrue(wait_until(lambda: dict(server._shares.taken) == {"bob": 1}))
            again.send(body.replace(b"Host: a", b"Host: bob"))
            refused = again.answer()
            self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "1"))
            other.send(body.replace(b"Host: a", b"Host: eve"))
            self.assertTrue(wait_until(lambda: len(server._shares.taken) == 2))
            other.send(b"c")
            self.assertEqual(other.answer().body, b"abc")
            first.connection.close()
            self.assertTrue(wait_until(lambda: not server._shares.taken))

    def test_is_never_for_more_than_there_are_places(self) -> None:
        with LiveServer(max_connections=2) as server, contextlib.ExitStack() as stack:
            gate = server.hold()
            for _ in range(2):
                busy = stack.enter_context(server.connect())
                busy.send(post("/later", b""))
            # Both asked: who has only connected so far would give way instead.
            self.assertTrue(wait_until(lambda: len(server.seen) == 2))
            self.assertEqual(statuses(server.ask(LAST)), [503])
            self.assertEqual(server.stats.rejected_full, 1)
            gate.set()  # the server would wait for it


def is_reset(client: Client) -> bool:
    """Whether the connection was reset: by octets that nobody read, or came after the close."""
    try:
        client.send(b"x")
    except OSError:
        return True
    return False


class TurningAway(unittest.TestCase):
    """Who gets no place is told so, whatever else it is sending."""

    def test_reaches_a_client_that_still_sends(self) -> None:
        with LiveServer(max_connections=1) as server, server.connect() as holder:
            gate = server.hold()
            holder.send(post("/later", b""))
            self.assertTrue(wait_until(lambda: server.seen))
            for number in range(1, 30):
                with server.connect() as client:
                    *head, first, last = post("/echo", b"abc")
                    client.send(bytes(head))
                    self.assertTrue(
                        wait_until(lambda number=number: server.stats.rejected_full == number)
                    )
                    for octet in (first, last):  # a closed socket answers the first with a reset
                        client.send(bytes([octet]))
                    self.assertEqual(statuses(client.rest()), [503])
            gate.set()  # the server would wait for it

    def test_reaches_more_clients_than_are_remembered(self) -> None:
        server = LiveServer(max_connections=1)
        gate = server.hold()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(TURNED_AWAY + 10)]
            for client in clients:
                client.send(GET.replace(b"/ ", b"/later "))
            with server:
                refused = [statuses(client.rest()) for client in clients[1:]]
                resets = [client for client in clients[1:] if is_reset(client)]
                gate.set()  # the server would wait for it
        self.assertEqual(refused, [[503]] * (TURNED_AWAY + 9))
        self.assertEqual(resets, [])  # some systems would have dropped the answer

    def test_ends_after_a_while(self) -> None:
        self.claim_end(lambda server: server.pass_time(LIMITS.linger + 1))

    def test_ends_with_the_server(self) -> None:
        self.claim_end(LiveServer.stop)

    def claim_end(self, then: Callable[[LiveServer], object]) -> None:
        clock = Clock(1000.0)
        with LiveServer(max_connections=1, clock=clock) as server, server.connect() as holder:
            gate = server.hold()
            holder.send(post("/later", b""))
            with server.connect() as refused:
                self.assertEqual(statuses(refused.rest()), [503])
                gate.set()
                holder.answer()
                holder.connection.close()
                then(server)
                self.assertTrue(wait_until(lambda: is_reset(refused)))


class Accepting(unittest.TestCase):
    def test_passes_over_a_client_that_has_left_already(self) -> None:
        accept, failures = Listener.accept, [ConnectionAbortedError(103, "gone")]

        def flaky(listener: Listener) -> object:
            if failures:
                raise failures.pop()
            return accept(listener)

        with LiveServer() as server, mock.patch.object(Listener, "accept", flaky):
            self.assertEqual(statuses(server.ask(LAST)), [200])
        self.assertEqual([line for line in server.lines if "error" in line], [])
        self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main()
