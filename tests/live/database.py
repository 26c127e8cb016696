"""The database in a process of its own, which a defect of SQLite's could end."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
import unittest

from jwksd.store.database import Unavailable
from tests.support import ROOT, TemporaryFolder
from tests.test_database import insert


class Closing(TemporaryFolder):
    def test_while_another_thread_reads_ends_its_reading_and_not_the_process(self):
        program = """
import sys, threading
from jwksd.store.database import Unavailable
from jwksd.store.sqlite import SQLite

NUMBERS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000)"

def read(database, begun, ends):
    try:
        while True:
            begun.set()
            database.read(NUMBERS + " SELECT x FROM n")
    except Unavailable as ended:
        ends.append(str(ended))

for _ in range(30):
    database, begun, ends = SQLite(sys.argv[1]), threading.Event(), []
    threads = [threading.Thread(target=read, args=(database, begun, ends)) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    database.close()
    for thread in threads:
        thread.join()
    assert ends == ["the database is closed"] * 4, ends
"""
        run = subprocess.run(
            [sys.executable, "-c", program, str(self.path)],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(run.returncode, 0, run.stderr)


class ALock(TemporaryFolder):
    def test_a_lock_held_on_and_on_is_not_waited_for_by_every_job_in_turn(self):
        db = self.open_database(busy_seconds=1.0)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        start, refused = time.monotonic(), 0
        for _ in range(10):
            try:
                db.write(insert("a"))
            except Unavailable:
                refused += 1
        waited = time.monotonic() - start
        other.execute("COMMIT")
        db.write(insert("b"))
        self.assertEqual(refused, 10)
        self.assertLess(waited, 10 * 1.0, "ten in turn")


if __name__ == "__main__":
    unittest.main()
