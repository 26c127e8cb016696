"""Out of descriptors: the server waits, says so once, burns no processor, and recovers."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import unittest

from tests.httpd_live import ANSWER, GET, LAST, Client, statuses, wait_until
from tests.support import ROOT

FOLDER = str(ROOT)
PROGRAM = """
import os, resource, sys, time
from tests.httpd_live import LiveServer

with LiveServer(access_log="off") as server:
    open_now = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 10, open_now + 10))
    print(*server.address, flush=True)
    for line in sys.stdin:
        print(time.process_time(), server.stats.connections_accepted, len(server.lines), flush=True)
"""


@unittest.skipUnless(os.path.isdir("/dev/fd"), "needs /dev/fd and limits on descriptors")
class Descriptors(unittest.TestCase):
    def setUp(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(self.process.communicate, timeout=20)  # the end of its input ends it
        host, port = self.line()
        self.address = host, int(port)

    def line(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def state(self) -> tuple[float, int, int]:
        """Processor seconds so far, connections accepted, lines logged."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds, accepted, lines = self.line()
        return float(seconds), int(accepted), int(lines)

    def test_that_run_out_cost_neither_processor_nor_those_who_have_one(self) -> None:
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(Client(socket.create_connection(self.address)))
                for _ in range(30)
            ]
            clients[0].send(GET)
            self.assertEqual(clients[0].answer().status, 200)
            busy_before = self.state()[0]
            start = time.monotonic()
            time.sleep(0.5)
            busy, accepted, lines = self.state()
            self.assertLess(busy - busy_before, (time.monotonic() - start) / 2)
            self.assertLess(accepted, 30)
            self.assertEqual(lines, 1)
            clients[0].send(GET)
            self.assertEqual(clients[0].answer().status, 200)
        with Client(socket.create_connection(self.address)) as client:
            client.send(LAST)
            self.assertEqual(statuses(client.rest()), [200])

    def test_that_have_run_out_do_not_disturb_the_end(self) -> None:
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(Client(socket.create_connection(self.address)))
                for _ in range(30)
            ]
            clients[0].send(GET + GET[:-2])
            self.assertEqual(clients[0].answer().status, 200)
            self.assertTrue(wait_until(lambda: self.state()[2] == 1))
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.stdin = None
            self.assertTrue(wait_until(self.refuses))
            clients[0].send(GET[-2:])
            self.assertEqual(clients[0].answer().body, ANSWER.body)
        self.assertEqual(self.process.wait(10), 0)

    def refuses(self) -> bool:
        """Whether nobody listens any more."""
        try:
            socket.create_connection(self.address).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the end came in between
            pass
        return False


@unittest.skipIf(sys.platform == "win32", "no limits on descriptors here")
class Room(unittest.TestCase):
    def room(self, soft: int, hard: int, wanted: int) -> int:
        """What a process with these limits has room for."""
        program = (
            "import resource\nfrom jwksd.httpd import sockets\n"
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
            f"print(sockets.descriptor_room({wanted}))"
        )
        return int(subprocess.check_output([sys.executable, "-c", program], cwd=FOLDER))

    def test_are_asked_for_as_many_as_connections_need(self) -> None:
        self.assertGreaterEqual(self.room(100, 1_000, 500), 500)

    def test_bound_connections_when_the_system_gives_no_more(self) -> None:
        self.assertLess(self.room(100, 300, 500), 300)


if __name__ == "__main__":
    unittest.main()
