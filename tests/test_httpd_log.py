"""The log: a standard error that is slow, full or gone never holds anybody up."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import unittest

from jwksd.httpd import loop
from jwksd.httpd.log import LOG_PATH, LineLog, printable
from tests.httpd_live import GET, LAST, PATIENCE, LiveServer, statuses, wait_until
from tests.support import Clock
from tests.test_httpd_loop import post


def pipe_writer() -> tuple[int, io.TextIOWrapper]:
    """A pipe's reading end, and a stream that writes to the other."""
    reading, writing = os.pipe()
    return reading, os.fdopen(writing, "w")


class Lines(unittest.TestCase):
    def test_arrive_in_order_and_whole(self) -> None:
        reading, stream = pipe_writer()
        log = LineLog(stream)
        for number in range(100):
            log.write(f"line {number}")
        self.assertTrue(log.flush(PATIENCE))
        stream.close()
        with os.fdopen(reading) as text:
            self.assertEqual(text.read().split("\n"), [f"line {n}" for n in range(100)] + [""])

    def test_that_come_together_count_one_by_one(self) -> None:
        reading, stream = pipe_writer()
        log = LineLog(stream, limit=100)
        log.write("x" * 200_000)  # more than a pipe holds
        self.assertTrue(wait_until(lambda: not log._lines))
        for _ in range(20):
            log.write("\n".join(["line"] * 30))
        self.assertEqual((len(log._lines), log.dropped), (90, 17 * 30))
        os.close(reading)
        self.assertTrue(log.flush(PATIENCE))
        with contextlib.suppress(BrokenPipeError):
            stream.close()

    @unittest.skipIf(sys.platform == "win32", "pipes always block there")
    def test_wait_for_a_descriptor_that_does_not_block(self) -> None:
        reading, stream = pipe_writer()
        os.set_blocking(stream.fileno(), False)
        log, lines = LineLog(stream), [f"{number} " + "x" * 1_000 for number in range(500)]
        log.write("\n".join(lines))
        self.assertFalse(log.flush(0.1))
        with os.fdopen(reading) as text:
            self.assertEqual([text.readline().rstrip("\n") for _ in lines], lines)
        self.assertTrue(log.flush(PATIENCE))
        self.assertEqual(log.dropped, 0)
        stream.close()

    def test_of_the_operator_have_room_when_the_access_log_floods(self) -> None:
        reading, stream = pipe_writer()
        log = LineLog(stream, limit=100)
        log.write("x" * 200_000)  # more than a pipe holds
        self.assertTrue(wait_until(lambda: not log._lines))
        for _ in range(200):
            log.write_access("access")
        self.assertEqual((len(log._lines), log.dropped), (90, 110))
        log.write("the disk is full")
        self.assertEqual((log._lines[-1], log.dropped), ("the disk is full", 110))
        os.close(reading)
        self.assertTrue(log.flush(5))
        with contextlib.suppress(BrokenPipeError):
            stream.close()

    def test_go_to_a_stream_in_memory_as_well(self) -> None:
        stream = io.StringIO()
        log = LineLog(stream)
        log.write("one\ntwo")
        self.assertTrue(log.flush(PATIENCE))
        self.assertEqual(stream.getvalue(), "one\ntwo\n")

    def test_have_the_form_that_was_set_but_those_of_the_access_log_have_their_own(self) -> None:
        stream = io.StringIO()
        log = LineLog(stream)
        log.write("before")
        log.form = "<{}>".format
        log.write("after")
        log.write_access("access")
        self.assertTrue(log.flush(PATIENCE))
        self.assertEqual(stream.getvalue(), "before\n<after>\naccess\n")

    def test_are_dropped_and_counted_when_nobody_empties_the_pipe(self) -> None:
        reading, stream = pipe_writer()
        log = LineLog(stream, limit=10)
        for _ in range(100):
            log.write("x" * 70_000)  # more than a pipe holds
        self.assertGreaterEqual(log.dropped, 80)
        self.assertFalse(log.flush(0.05))
        while not log.flush(0.01):
            os.read(reading, 1_000_000)
        os.close(reading)
        stream.close()

    def test_are_counted_when_the_reader_is_gone(self) -> None:
        reading, stream = pipe_writer()
        os.close(reading)
        log = LineLog(stream)
        log.write("one\ntwo")
        self.assertTrue(log.flush(PATIENCE))
        self.assertEqual(log.dropped, 2)
        with self.assertRaises(BrokenPipeError):
            stream.write("x")
            stream.close()

    def test_are_counted_when_the_stream_is_closed(self) -> None:
        stream = io.StringIO()
        stream.close()
        log = LineLog(stream)
        log.write("one")
        self.assertTrue(log.flush(PATIENCE))
        self.assertEqual(log.dropped, 1)


class AccessLog(unittest.TestCase):
    def lines(self, kind: str, octets: bytes) -> list[str]:
        with LiveServer(access_log=kind) as server:
            server.ask(octets)
        return [line for text in server.lines for line in text.split("\n")]

    def test_as_text_is_the_common_format_and_the_seconds(self) -> None:
        (line,) = self.lines("text", LAST)
        self.assertRegex(
            line,
            r"^127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "
            r'"GET / HTTP/1\.1" 200 5 \d+\.\d{6}$',
        )

    def test_as_json_is_an_object_a_line(self) -> None:
        first, second = (json.loads(line) for line in self.lines("json", GET + LAST))
        self.assertEqual(
            [first[name] for name in ("client", "method", "path", "status", "octets")],
            ["127.0.0.1", "GET", "/", 200, 5],
        )
        self.assertTrue(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", second["time"]))

    def test_has_a_line_for_what_was_no_request(self) -> None:
        (line,) = self.lines("text", b"GET \x1b[2J /\r\n")
        self.assertIn('"- - HTTP/1.1" 400', line)

    def test_has_neither_queries_nor_quotation_marks_nor_endless_paths(self) -> None:
        request = LAST.replace(b"/ ", b'/a"b\\' + b"c" * 3000 + b"?token=secret ")
        (line,) = self.lines("text", request)
        self.assertNotIn("secret", line)
        self.assertEqual(line.count('"'), 2)
        self.assertLess(len(line), 330)

    def test_can_be_off(self) -> None:
        self.assertEqual(self.lines("off", LAST), [""] * 0)

    def test_as_json_has_these_members_and_no_others(self) -> None:
        path = b"/" + b"c" * 3000
        with LiveServer(access_log="json", clock=Clock()) as server, server.connect() as client:
            server.take(3.0)
            client.send(post("/later", b"") + LAST.replace(b"/ ", path + b"?token=secret "))
            client.rest()
        later, long = (json.loads(line) for text in server.lines for line in text.split("\n"))
        self.assertEqual(
            list(later),
            ["time", "level", "event", "client", "method", "path", "status", "octets", "seconds"],
        )
        self.assertEqual((later["level"], later["event"]), ("info", "request"))
        self.assertEqual(later["seconds"], 3.0)
        self.assertNotIn("secret", str(long))
        self.assertEqual(len(long["path"]), LOG_PATH)

    def test_of_one_turn_is_written_at_once(self) -> None:
        with LiveServer() as server, server.connect() as client:
            client.send(GET * 3)
            self.assertEqual([client.answer().status for _ in range(3)], [200] * 3)
        self.assertEqual([text.count("\n") for text in server.lines], [2])

    def test_of_a_long_turn_is_written_in_parts(self) -> None:
        count, server = 3 * loop.LINES, LiveServer()
        per_client = 100
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.connect()) for _ in range(count // per_client)]
            for client in clients:
                client.send(GET * per_client)
            with server:
                for client in clients:
                    for _ in range(per_client):
                        self.assertEqual(client.answer().status, 200)
        lines = [text.count("\n") + 1 for text in server.lines]
        self.assertEqual(sum(lines), count)
        self.assertLessEqual(max(lines), loop.LINES)


class Paths(unittest.TestCase):
    def test_are_ascii_without_control_characters(self) -> None:
        self.assertEqual(printable('a\x1b[2J\n\x9b\u202e"'), r"a\x1b[2J\n\x9b\u202e%22")


class Service(unittest.TestCase):
    def test_goes_on_while_nobody_empties_the_pipe(self) -> None:
        reading, stream = pipe_writer()
        log = LineLog(stream, limit=5)
        log.write("x" * 200_000)
        with LiveServer(log=log.write) as server:
            for _ in range(50):
                self.assertEqual(statuses(server.ask(LAST)), [200])
            self.assertTrue(wait_until(lambda: server.stats.log_lines_dropped > 0))
        os.close(reading)  # the writer gets an error, and the thread its end
        self.assertTrue(log.flush(PATIENCE))
        with self.assertRaises(BrokenPipeError):
            stream.write("x")
            stream.close()


if __name__ == "__main__":
    unittest.main()
