"""The log: a standard error that is slow, full or gone never holds anybody up."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unittest

from linelog import LineLog
from tests.httpd_live import LAST, LiveServer, statuses, wait_until


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
        self.assertTrue(log.flush(5))
        stream.close()
        with os.fdopen(reading) as text:
            self.assertEqual(text.read().split("\n"), [f"line {n}" for n in range(100)] + [""])

    def test_go_to_a_stream_in_memory_as_well(self) -> None:
        stream = io.StringIO()
        log = LineLog(stream)
        log.write("one\ntwo")
        self.assertTrue(log.flush(5))
        self.assertEqual(stream.getvalue(), "one\ntwo\n")

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
        self.assertTrue(log.flush(5))
        self.assertEqual(log.dropped, 2)
        with self.assertRaises(BrokenPipeError):
            stream.write("x")
            stream.close()

    def test_are_counted_when_the_stream_is_closed(self) -> None:
        stream = io.StringIO()
        stream.close()
        log = LineLog(stream)
        log.write("one")
        self.assertTrue(log.flush(5))
        self.assertEqual(log.dropped, 1)

    def test_without_a_standard_error_hurt_nobody(self) -> None:
        program = (
            "from linelog import LineLog; l = LineLog(); l.write('x'); l.flush(5); exit(l.dropped)"
        )
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        run = subprocess.run(
            ["/bin/sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, program], cwd=folder, timeout=20
        )
        self.assertEqual(run.returncode, 1)

    def test_that_nobody_reads_do_not_hold_up_the_end_of_the_process(self) -> None:
        program = "from linelog import LineLog; l = LineLog(); l.write('x' * 200_000)"
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        with subprocess.Popen(
            [sys.executable, "-c", program], stderr=subprocess.PIPE, cwd=folder
        ) as run:
            self.assertEqual(run.wait(20), 0)


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
        self.assertTrue(log.flush(5))
        with self.assertRaises(BrokenPipeError):
            stream.write("x")
            stream.close()


if __name__ == "__main__":
    unittest.main()
