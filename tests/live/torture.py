"""What takes too long, or too much of the machine, for every run: kills, syncs, full disks."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.live import faults
from tests.live.victim import torture

SEED = int(os.environ.get("TORTURE_SEED", "1"))


class Killing(faults.FaultTest):
    def test_two_hundred_times_loses_nothing_acknowledged(self):
        victim = torture(self, 200, SEED)
        self.assertGreater(victim.acknowledged, 2_000)
        print(f"\n200 kills (seed {SEED}), {victim.acknowledged:,} acknowledged answers, none lost")


@unittest.skipUnless(shutil.which("strace"), "needs strace")
class SyncingToDisk(faults.FaultTest):
    def syncs(self, server, clients: int, requests: list) -> int:
        """How often the server called fsync or fdatasync while so many clients asked."""
        trace = self.folder / "trace"
        tracer = subprocess.Popen(
            ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(trace),
             "-p", str(server.process.pid)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.addCleanup(tracer.stderr.close)
        line = tracer.stderr.readline()
        if "attached" not in line:
            tracer.wait(10)
            self.skipTest(line.strip())
        with ThreadPoolExecutor(clients) as pool:
            asked = pool.map(lambda document: server.ask("POST", "/auth", document), requests)
            self.assertEqual({status for status, _ in asked}, {200})
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
        return len(re.findall(r"fsync|fdatasync", trace.read_text()))

    def setUp(self):
        super().setUp()
        self.server = self.serve(*faults.UNLIMITED)
        self.alice = self.register(self.server, "alice")

    def test_once_for_a_client_that_asks_alone(self):
        found = self.syncs(self.server, 1, [self.alice] * 20)
        self.assertGreaterEqual(found, 20)
        self.assertLess(found, 25)

    def test_less_than_once_for_each_of_many(self):
        found = self.syncs(self.server, 40, [self.alice] * 400)
        print(f"\n400 logins by 40 clients at once: {found} fsyncs, {found / 400:.2f} an answer")
        self.assertGreater(found, 400 // 256)
        self.assertLess(found, 200)

    def test_once_for_forty_logins_that_wait_together(self):
        with contextlib.closing(
            sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        ) as other:
            other.execute("BEGIN IMMEDIATE")
            # The first is in a commit that waits for the lock, the others in the next one.
            free = threading.Timer(3, other.execute, ("COMMIT",))
            free.start()
            found = self.syncs(self.server, 41, [self.alice] * 41)
            free.join()
        self.assertLessEqual(found, 3)


class ADatabaseLockedForTenSeconds(faults.FaultTest):
    def test_is_refused_after_five_and_works_again_at_once(self):
        server = self.serve(*faults.UNLIMITED)
        alice = self.register(server, "alice")
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            begin = time.monotonic()
            status, answer = server.ask("POST", "/auth", alice)
            waited = time.monotonic() - begin
            self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
            self.assertGreater(waited, 4)
            self.assertLess(waited, 9)
            while time.monotonic() < begin + 10:
                self.assertEqual(server.ask("GET", faults.JWKS)[0], 200)
                time.sleep(0.2)
            other.execute("COMMIT")
        begin = time.monotonic()
        self.assertEqual(server.ask("POST", "/auth", alice)[0], 200)
        self.assertLess(time.monotonic() - begin, 2)


@unittest.skipUnless(os.geteuid() == 0 and shutil.which("mount"), "mounts a file system")
class AFileSystemThatIsFull(faults.FaultTest):
    def setUp(self):
        super().setUp()
        self.small = Path(tempfile.mkdtemp(prefix="jwks-small-"))
        self.addCleanup(self.small.rmdir)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.small)]
        if subprocess.run(mount, capture_output=True).returncode:
            self.skipTest("mounting is not allowed here")
        self.addCleanup(subprocess.run, ["umount", "-l", str(self.small)])
        self.path = self.small / "keys.db"

    def test_refuses_what_needs_room_and_goes_on_once_there_is_some(self):
        server = self.serve(*faults.UNLIMITED)
        alice = self.register(server, "alice")
        ballast = self.small / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        for number in range(300):
            status, answer = server.ask("POST", "/register", {"username": f"u{number}"})
            if status != 201:
                break
        self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(server.ask("POST", "/auth", alice)[0], 503)
        self.assertEqual(server.ask("GET", faults.JWKS)[0], 200)
        ballast.unlink()
        self.assertEqual(server.ask("POST", "/auth", alice)[0], 200)
        self.assertEqual(server.end(), 0)
        self.assertTrue(self.intact())


if __name__ == "__main__":
    unittest.main()
