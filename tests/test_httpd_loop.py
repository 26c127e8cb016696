"""The loop: what a client sees of one connection, and what many do to each other."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

from jwksd.httpd import (
    Answer,
    Limits,
    Listener,
    Request,
    Response,
    Server,
    error,
    json_response,
)
from tests.httpd_live import (
    ANSWER,
    GET,
    LAST,
    PATIENCE,
    Client,
    LiveServer,
    Routes,
    settle,
    statuses,
    wait_until,
)
from tests.support import Clock

LIMITS = Limits()


def post(path: str, body: bytes, fields: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    return head.encode() + body


class LiveTest(unittest.TestCase):
    """A server of its own for each test; `settings` go to it."""

    settings: ClassVar[dict[str, object]] = {}

    def setUp(self) -> None:
        self.server = LiveServer(**self.settings, **self.more_settings())
        self.server.__enter__()
        self.addCleanup(self.server.__exit__)

    def more_settings(self) -> dict[str, object]:
        return {}


class TimedTest(LiveTest):
    """Its server's time passes only when the test says so."""

    def more_settings(self) -> dict[str, object]:
        return {"clock": Clock(1000.0)}


class Responses(unittest.TestCase):
    def test_cannot_be_split_by_a_field(self) -> None:
        for value in ("a\r\nX: y", "a\n", "a\r", "a\0", "€"):
            with self.subTest(value), self.assertRaises(ValueError):
                Response(200, [("X", value)])

    def test_leave_the_framing_to_the_server(self) -> None:
        for name in ("Content-Length", "transfer-encoding", "Connection", "a b", ""):
            with self.subTest(name), self.assertRaises(ValueError):
                Response(200, [(name, "1")])

    def test_carry_no_body_where_none_is_allowed(self) -> None:
        for status in (204, 304):
            wire = Response(status, (), b"x").wire(b"\r\n\r\n")
            self.assertTrue(wire.endswith(b"\r\n\r\n"))
            self.assertNotIn(b"Content-Length", wire)

    def test_of_errors_have_a_word_and_a_sentence(self) -> None:
        answer = error(409, "taken", "Choose another.", [("X", "y")])
        self.assertEqual(
            json.loads(answer.body), {"error": "taken", "error_description": "Choose another."}
        )
        self.assertIn(("X", "y"), answer.headers)

    def test_as_json_are_compact(self) -> None:
        self.assertEqual(json_response(200, {"a": [1, 2]}).body, b'{"a":[1,2]}')


class Answering(LiveTest):
    def test_has_the_fields_of_every_answer(self) -> None:
        with self.server.connect() as client:
            client.send(GET)
            answer = client.answer()
        self.assertEqual((answer.status, answer.body), (200, b"hello"))
        self.assertEqual(answer.headers["server"], "jwks-server")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertRegex(answer.headers["date"], r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")
        self.assertNotIn("connection", answer.headers)

    def test_keeps_the_connection(self) -> None:
        with self.server.connect() as client:
            for _ in range(3):
                client.send(GET)
                self.assertEqual(client.answer().status, 200)

    def test_has_the_time_of_its_own_second(self) -> None:
        with self.server.connect() as client:
            client.send(GET)
            client.answer()  # accepted: the turn that does so has read the clock already
            dates = []
            for second in (0, 0, 1):
                with mock.patch.object(time, "time", lambda second=second: second + 0.5):
                    client.send(GET)
                    dates.append(client.answer().headers["date"][-12:])
        self.assertEqual(dates, ["00:00:00 GMT", "00:00:00 GMT", "00:00:01 GMT"])

    def test_says_close_and_closes(self) -> None:
        octets = self.server.ask(LAST)
        self.assertEqual(statuses(octets), [200])
        self.assertIn(b"\r\nConnection: close\r\n", octets)

    def test_waits_for_nothing_of_a_client_that_has_said_close(self) -> None:
        with self.server.connect() as client:
            client.send(LAST)
            self.assertTrue(wait_until(lambda: self.server.stats.requests[200]))
            self.assertTrue(wait_until(lambda: self.server.stats.connections_open == 0))
            self.assertEqual(statuses(client.rest()), [200])

    def test_waits_for_a_client_that_has_sent_on_after_it_said_close(self) -> None:
        with self.server.connect() as client:
            client.send(LAST + GET * 3)
            self.assertEqual(statuses(client.rest()), [200])
            self.assertEqual(self.server.stats.connections_open, 1)

    def test_announces_what_http_1_0_asked_for(self) -> None:
        with self.server.connect() as client:
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            self.assertEqual(client.answer().headers["connection"], "keep-alive")
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            self.assertEqual(client.answer().headers["connection"], "close")
            self.assertTrue(client.is_closed())

    def test_of_head_is_that_of_get_without_the_body(self) -> None:
        with self.server.connect() as client:
            client.send(GET + GET.replace(b"GET", b"HEAD") + GET)
            get, head = client.answer(), client.answer(head_only=True)
            self.assertEqual(get.headers, head.headers)
            self.assertEqual(client.answer().body, b"hello")

    def test_of_head_has_no_body_in_a_refusal_either(self) -> None:
        octets = self.server.ask(b"HEAD / HTTP/1.1\r\n\r\n")
        self.assertTrue(octets.startswith(b"HTTP/1.1 400 "))
        self.assertTrue(octets.endswith(b"\r\n\r\n"), octets)

    def test_passes_the_body_and_the_client_on(self) -> None:
        with self.server.connect() as client:
            client.send(post("/echo", b"abc"))
            self.assertEqual(client.answer().body, b"abc")
        self.assertEqual(self.server.seen[0].client, "127.0.0.1")

    def test_invites_a_body_that_waits_for_it(self) -> None:
        with self.server.connect() as client:
            client.send(post("/echo", b"abc", "Expect: 100-continue\r\n")[:-3])
            self.assertEqual(client.answer().status, 100)
            client.send(b"abc")
            self.assertEqual(client.answer().body, b"abc")

    def test_survives_a_defect_without_telling(self) -> None:
        with self.server.connect() as client:
            client.send(GET.replace(b"/ ", b"/defect ") + GET)
            self.assertEqual([client.answer().status, client.answer().status], [500, 200])
        line = next(line for line in self.server.lines if "error" in line)
        self.assertRegex(line, r"GET /defect: ZeroDivisionError at httpd_live\.py:\d+$")

    def test_counts(self) -> None:
        self.server.ask(GET + b"?")
        self.server.ask(LAST)
        self.assertEqual(self.server.stats.requests, {200: 2, 400: 1})
        self.assertEqual(self.server.stats.connections_accepted, 2)
        self.assertTrue(wait_until(lambda: self.server.stats.connections_open == 0))


class Pipelining(LiveTest):
    def test_answers_in_order_also_what_takes_longer(self) -> None:
        paths = ["/echo", "/later", "/", "/later", "/echo"]
        with self.server.connect() as client:
            client.send(b"".join(post(path, b"e") for path in paths))
            bodies = [client.answer().body for _ in paths]
        self.assertEqual(bodies, [b"e", b"worked", b"hello", b"worked", b"e"])

    def test_ends_with_the_first_flaw(self) -> None:
        octets = self.server.ask(GET + post("/later", b"") + b"GET /\r\n\r\n" + GET)
        self.assertEqual(statuses(octets), [200, 200, 400])

    def test_ends_with_the_last_wish(self) -> None:
        self.assertEqual(statuses(self.server.ask(GET + LAST + GET)), [200, 200])

    def test_of_more_than_one_turn_can_answer(self) -> None:
        count = 5_000
        with self.server.connect() as client:
            threading.Thread(target=client.send, args=(GET * count,)).start()
            for _ in range(count):
                self.assertEqual(client.answer().body, b"hello")

    def test_reads_no_further_than_it_answers(self) -> None:
        request, count = GET.replace(b"/ ", b"/medium "), 300
        padded = request[:-2] + b"X: " + b"y" * 1_000 + b"\r\n\r\n"
        with self.server.connect() as client:
            threading.Thread(target=client.send, args=(padded * count,)).start()
            for _ in range(count):
                self.assertEqual(len(client.answer().body), 60_000)
        self.assertLess(self.server.most_unread, 65_536 + Limits().head)

    def test_waits_for_a_client_that_does_not_read(self) -> None:
        request = GET.replace(b"/ ", b"/big ")
        with self.server.connect() as client:
            client.send(request * 20)
            self.assertTrue(wait_until(lambda: self.server.seen))
            time.sleep(0.1)
            self.assertLess(len(self.server.seen), 10)
            self.assertEqual({len(client.answer().body) for _ in range(20)}, {1_000_000})

    def test_goes_on_after_an_answer_that_waited_for_a_reader_and_one_from_a_worker(self) -> None:
        gate = self.server.hold()
        with self.server.connect_narrowly() as client:
            client.send(b"".join(post(path, b"e") for path in ("/medium", "/later", "/echo")))
            self.assertTrue(wait_until(lambda: len(self.server.seen) == 2))
            gate.set()
            self.assertTrue(wait_until(lambda: self.server.workers.queued == 0))
            bodies = [client.answer().body for _ in range(3)]
        self.assertEqual(bodies, [b"x" * 60_000, b"hello", b"e"])


class Taking:
    """A connection that has brought these octets, and whose client takes so many of the answer."""

    def __init__(self, octets: bytes, takes: int) -> None:
        self.octets, self.takes, self.taken = octets, takes, b""
        self.ends = socket.socketpair()  # for the loop, which wants a descriptor

    def fileno(self) -> int:
        return self.ends[0].fileno()

    def recv(self, _: int) -> bytes:
        octets, self.octets = self.octets, b""
        return octets

    def send(self, octets: bytes) -> int:
        self.taken += octets[: self.takes]
        return min(self.takes, len(octets))

    def close(self) -> None:
        for end in self.ends:
            end.close()


class AnswersThatWait(unittest.TestCase):
    def test_for_their_client_do_not_hold_up_what_it_sent_behind_them(self) -> None:
        server = LiveServer()
        self.addCleanup(server.close)
        self.addCleanup(server.workers.stop, PATIENCE)
        octets = b"".join(post(path, b"e") for path in ("/medium", "/later", "/echo"))
        connection: Any = Taking(octets, 1_000)
        self.addCleanup(connection.close)
        handler = Routes(connection, "a", server)
        handler.read(handler.receive)
        self.assertTrue(wait_until(lambda: server._done))
        connection.takes = 1_000_000  # from now on
        handler.complete(server._done[0][1])
        for resume in server.paused.take(9):
            resume()
        self.assertEqual(statuses(connection.taken), [200] * 3)
        handler.close()


class Deadlines(TimedTest):
    def test_end_an_idle_connection_silently(self) -> None:
        with self.server.connect() as client:
            client.send(GET)
            client.answer()
            self.server.pass_time(LIMITS.idle - 2)
            client.send(GET)
            client.answer()  # still there
            self.server.pass_time(LIMITS.idle + 2)
            self.assertTrue(client.is_closed())

    def test_end_a_head_that_drips(self) -> None:
        self.claim_late(GET)

    def test_end_a_body_that_drips(self) -> None:
        self.claim_late(post("/echo", b"a" * 1000)[:60], post("/echo", b"a" * 1000)[60:])

    def claim_late(self, *parts: bytes) -> None:
        """However steadily the octets come, there is an end, and it is said."""
        start = self.server.clock.now
        with self.server.connect() as client:
            *first, slow = parts
            for part in [*first, *(bytes([octet]) for octet in slow)]:
                readings = self.server.readings
                client.send(part)
                self.assertTrue(
                    wait_until(lambda readings=readings: self.server.readings > readings)
                )
                self.server.pass_time(1.0)
                if self.server.stats.timeouts:
                    break
            self.assertEqual(statuses(client.rest()), [408])
        passed = self.server.clock.now - start
        self.assertTrue(LIMITS.head_time <= passed <= LIMITS.head_time + 2, passed)

    def test_end_a_client_that_never_reads(self) -> None:
        with self.server.connect_narrowly() as client:
            client.send(GET.replace(b"/ ", b"/big ") * 20)
            self.assertTrue(wait_until(lambda: self.server.seen))
            self.server.pass_time(LIMITS.send_time - 2)
            self.assertEqual(self.server.stats.connections_open, 1)
            self.server.pass_time(4)
            self.assertTrue(wait_until(lambda: self.server.stats.connections_open == 0))

    def test_end_a_refused_client_that_never_closes(self) -> None:
        with self.server.connect() as client:
            client.send(b"GET /\r\n")
            self.assertEqual(client.answer().status, 400)
            self.server.pass_time(LIMITS.linger + 1)
            self.assertTrue(wait_until(lambda: self.server.stats.connections_open == 0))

    def test_that_end_a_connection_end_it_for_its_worker_too(self) -> None:
        gate = self.server.hold()
        with self.server.connect_narrowly() as client:
            client.send(post("/medium", b"") + post("/later", b""))
            self.assertTrue(wait_until(lambda: len(self.server.seen) == 2))
            self.server.pass_time(LIMITS.send_time + 1)
            self.assertTrue(wait_until(lambda: self.server.stats.timeouts == 1))
            gate.set()
            self.assertEqual(statuses(self.server.ask(LAST)), [200])
            self.assertEqual(statuses(self.server.ask(LAST)), [200])  # the worker's turn is over
        self.assertTrue(wait_until(lambda: self.server.stats.connections_open == 0))
        self.assertEqual([line for line in self.server.lines if "error" in line], [])

    def test_do_not_end_what_the_server_itself_takes_long_for(self) -> None:
        gate = self.server.hold()
        with self.server.connect() as client:
            client.send(post("/later", b""))
            self.assertTrue(self.server.held.wait(PATIENCE))
            self.server.pass_time(10 * max(LIMITS.idle, LIMITS.send_time))
            gate.set()
            self.assertEqual(client.answer().status, 200)


class EarlyAnswers(LiveTest):
    def test_reach_a_client_that_is_still_sending(self) -> None:
        for _ in range(5):
            with self.server.connect() as client:
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n")
                for _ in range(90):
                    client.send(b"a" * 100_000)
                self.assertEqual(statuses(client.rest()), [413])

    def test_reach_a_client_that_sends_on_after_its_last_request(self) -> None:
        for _ in range(20):
            with self.server.connect() as client:
                client.send(LAST)
                self.assertTrue(wait_until(lambda: self.server.stats.requests[200]))
                client.send(GET)
                self.assertEqual(client.answer().status, 200)
                self.server.stats.requests.clear()


class Busy(LiveTest):
    settings: ClassVar[dict[str, object]] = {"workers": 2, "queue_limit": 1}

    def test_refuse_beyond_their_queue_and_leave_the_rest_alone(self) -> None:
        gate = self.server.hold()
        self.addCleanup(gate.set)
        clients = [self.server.connect() for _ in range(5)]
        for client in clients[:3]:
            client.send(post("/later", b""))
        self.assertTrue(wait_until(lambda: self.server.workers.queued == 1))
        clients[3].send(post("/later", b""))
        refused = clients[3].answer()
        self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "1"))
        clients[4].send(GET)
        self.assertEqual(clients[4].answer().body, b"hello")
        gate.set()
        self.assertEqual([client.answer().status for client in clients[:3]], [200] * 3)
        for client in clients:
            client.connection.close()

    def test_outlive_a_client_that_leaves(self) -> None:
        gate = self.server.hold()
        self.addCleanup(gate.set)
        for _ in range(3):
            with self.server.connect() as client:
                client.send(post("/later", b""))
                self.assertTrue(wait_until(lambda: self.server.seen))
        gate.set()
        self.assertTrue(wait_until(lambda: self.server.stats.connections_open == 0))
        self.assertEqual(statuses(self.server.ask(LAST)), [200])

    def test_answer_a_client_that_only_stopped_sending(self) -> None:
        gate = self.server.hold()
        with self.server.connect() as client:
            client.send(post("/later", b""))
            self.assertTrue(self.server.held.wait(PATIENCE))
            client.connection.shutdown(socket.SHUT_WR)
            gate.set()
            self.assertEqual(statuses(client.rest()), [200])

    def test_without_memory_ask_to_come_again(self) -> None:
        def work(request: Request) -> Response:
            raise MemoryError

        self.server.work = work
        with self.server.connect() as client:
            client.send(post("/later", b""))
            answer = client.answer()
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "1"))

    def test_survive_a_defect(self) -> None:
        def work(request: Request) -> Response:
            raise SystemExit("secret")

        self.server.work = work
        with self.server.connect() as client:
            for _ in range(4):
                client.send(post("/later", b""))
                self.assertEqual(client.answer().status, 500)
        self.assertFalse([line for line in self.server.lines if "secret" in line])


class ATimeBeyondAllDates(unittest.TestCase):
    def test_stops_nobody(self) -> None:
        with mock.patch("time.time", lambda: 1e12), LiveServer(access_log="json") as server:
            answer = server.ask(LAST)
        self.assertEqual(statuses(answer), [200])
        self.assertIn(b"Date: Fri, 31 Dec 9999 23:59:59 GMT", answer)


class ASlowQueue(TimedTest):
    settings: ClassVar[dict[str, object]] = {"workers": 1, "queue_seconds": 2.0}

    def test_is_left_with_503_by_whoever_has_waited_for_too_long(self) -> None:
        gate = self.server.hold()
        with self.server.connect() as first, self.server.connect() as second:
            first.send(post("/later", b""))
            self.assertTrue(self.server.held.wait(PATIENCE))
            second.send(post("/later", b""))
            self.assertTrue(wait_until(lambda: self.server.workers.queued == 1))
            self.server.pass_time(3.0)
            gate.set()
            self.assertEqual(first.answer().status, 200)
            refused = second.answer()
            self.assertEqual((refused.status, refused.headers["retry-after"]), (503, "1"))
            second.send(post("/later", b""))
            self.assertEqual(second.answer().status, 200)
        self.assertEqual(self.server.workers.refused, 1)


class Waiting(LiveTest):
    """Whatever a connection waits for, the loop sleeps meanwhile."""

    settings: ClassVar[dict[str, object]] = {"limits": Limits(linger=5.0)}

    def claim_sleep(self, octets: bytes, then: Callable[[Client], object] | None = None) -> None:
        with self.server.connect() as client:
            client.send(octets)
            if then is not None:
                then(client)
            self.assertTrue(wait_until(self.sleeps))

    def sleeps(self) -> bool:
        """Whether the loop hardly turns for a while; one that spins turns thousands of times."""
        turns = self.server.turns
        time.sleep(0.1)
        return self.server.turns - turns < 10

    def test_for_a_request(self) -> None:
        self.claim_sleep(GET)

    def test_for_the_rest_of_a_head_or_body(self) -> None:
        self.claim_sleep(GET[:-1])
        self.claim_sleep(post("/echo", b"abc")[:-1])

    def test_for_a_worker(self) -> None:
        gate = self.server.hold()
        self.addCleanup(gate.set)
        self.claim_sleep(post("/later", b""))

    def test_for_a_worker_while_more_comes(self) -> None:
        gate = self.server.hold()
        self.addCleanup(gate.set)
        self.claim_sleep(post("/later", b""), lambda client: client.send(GET * 100))

    def test_for_a_worker_after_the_last_octet(self) -> None:
        gate = self.server.hold()
        self.addCleanup(gate.set)
        self.claim_sleep(
            post("/later", b""), lambda client: client.connection.shutdown(socket.SHUT_WR)
        )

    def test_for_a_reader(self) -> None:
        self.claim_sleep(GET.replace(b"/ ", b"/big ") * 20)

    def test_for_the_end_of_a_refused_client(self) -> None:
        self.claim_sleep(b"GET /\r\n", lambda client: client.send(b"x" * 1000))


class Addresses(unittest.TestCase):
    def test_free_port_stands_in_the_url(self) -> None:
        with LiveServer() as server:
            self.assertRegex(server.url, r"^http://127\.0\.0\.1:[1-9]\d*$")

    @unittest.skipUnless(socket.has_dualstack_ipv6(), "no IPv6 here")
    def test_of_both_families_serve_both(self) -> None:
        with LiveServer(host="::") as server:
            self.assertRegex(server.url, r"^http://\[::1\]:\d+$")
            port = int(server.url.rpartition(":")[2])
            self.assertEqual(statuses(server.ask(LAST)), [200])
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(LAST)
                self.assertTrue(client.recv(100).startswith(b"HTTP/1.1 200"))
            self.assertEqual({r.client for r in server.seen}, {"::1", "127.0.0.1"})

    @unittest.skipUnless(hasattr(socket, "AF_UNIX"), "no Unix domain sockets here")
    def test_may_be_a_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "s")
            with LiveServer(host=f"unix:{path}", max_per_client=1) as server:
                with server.connect():
                    self.assertEqual(statuses(server.ask(LAST)), [200])
                self.assertEqual(server.seen[0].client, "unix")
                with self.assertRaises(OSError):
                    Listener(f"unix:{path}", 0)
            self.assertFalse(os.path.exists(path))

    @unittest.skipUnless(hasattr(socket, "AF_UNIX"), "no Unix domain sockets here")
    def test_of_a_dead_server_are_taken_over(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "s")
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(path)
            with LiveServer(host=f"unix:{path}") as server:
                self.assertEqual(statuses(server.ask(LAST)), [200])

    def test_that_are_taken_are_an_error_at_once(self) -> None:
        first = Listener("127.0.0.1", 0)
        self.addCleanup(first.close)
        with self.assertRaises(OSError):
            Listener("127.0.0.1", int(first.url.rpartition(":")[2]))

    def test_are_free_after_close(self) -> None:
        listener = Listener("127.0.0.1", 0)
        first = Server(listener, Routes)
        first.close()
        first.close()
        Listener("127.0.0.1", int(listener.url.rpartition(":")[2])).close()


class Blocking(Routes):
    """Has the loop itself do the work of /work, so that everything stands still meanwhile."""

    def route(self, request: Request) -> Answer:
        server: Any = self.server
        return server.work(request) if request.path == "/work" else super().route(request)


class Recovering(Routes):
    """Has the work of a Future that failed done again, once."""

    def recover(self, request: Request, failure: BaseException) -> Answer:
        server: Any = self.server
        if isinstance(failure, LookupError):
            return server.workers.submit(settle, server.work, request)
        return super().recover(request, failure)


class AskingAgain(unittest.TestCase):
    def test_a_future_that_failed_may_be_followed_by_another_one(self) -> None:
        rounds: list[str] = []

        def ask(request: Request) -> Response:
            rounds.append(request.path)
            if len(rounds) < 3:
                raise LookupError
            return ANSWER

        with LiveServer(handler=Recovering) as server, server.connect() as client:
            server.work = ask
            client.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
            self.assertEqual([client.answer().body for _ in range(2)], [b"hello"] * 2)
            self.assertEqual(len(rounds), 3)
            self.assertEqual(server.stats.requests[200], 2)
            self.assertTrue(wait_until(lambda: server.workers.queued == 0))


class Turns(unittest.TestCase):
    def test_have_nothing_for_a_connection_that_was_closed_in_them(self) -> None:
        finished = threading.Event()

        def leave(request: Request) -> Response:
            """While the loop stands still, its next turn gets an answer and the client's end."""
            gate.set()
            finished.wait(PATIENCE)
            leaving.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            leaving.connection.close()  # a reset: the answer cannot be sent
            return ANSWER

        with LiveServer(handler=Blocking) as server:
            hand_over = server.hand_over

            def tell(*done: Any) -> None:
                hand_over(*done)
                finished.set()

            server.hand_over = tell  # type: ignore
            gate = server.hold()
            with server.connect() as leaving, server.connect() as other:
                leaving.send(GET)
                leaving.answer()
                leaving.send(post("/later", b""))
                self.assertTrue(wait_until(lambda: len(server.seen) == 2))
                server.work = leave
                other.send(GET.replace(b"/ ", b"/work "))
                self.assertEqual(other.answer().status, 200)
                other.send(GET)
                self.assertEqual(other.answer().status, 200)
        self.assertEqual([line for line in server.lines if "error" in line], [])

    def test_begin_with_the_callers_check_and_survive_its_failure(self) -> None:
        order: list[str] = []

        class Watching(Routes):
            def route(self, request: Request) -> Answer:
                order.append("route")
                return ANSWER

        def check() -> None:
            order.append("check")
            raise OSError(28, "No space left on device")

        with LiveServer(handler=Watching, on_turn=check) as server:
            self.assertEqual(statuses(server.ask(LAST)), [200])
            self.assertEqual(order, ["check", "route"])
            self.assertRegex(server.lines[0], r"^error: OSError \(No space left on device\) at ")

    def test_check_once_for_what_comes_together_and_not_for_what_is_sent(self) -> None:
        checks: list[int] = []
        live = LiveServer(on_turn=lambda: checks.append(1))
        with live as server, server.connect() as client:
            client.send(GET * 3)
            self.assertEqual([client.answer().status for _ in range(3)], [200] * 3)
            self.assertEqual(len(checks), 1)
            client.send(GET.replace(b"/", b"/later", 1))
            client.answer()
            self.assertEqual(len(checks), 2)


if __name__ == "__main__":
    unittest.main()
