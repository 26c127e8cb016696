"""The database in a process of its own, which a defect of SQLite's could end."""

from __future__ import annotations

import subprocess
import sys
import unittest

from tests.support import ROOT, TemporaryFolder


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


if __name__ == "__main__":
    unittest.main()
