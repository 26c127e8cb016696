"""A warm standby by Litestream, as docs/scaling.md sets it up, when the first machine is lost."""

from __future__ import annotations

import subprocess
import sys
import unittest
from pathlib import Path

from bench import standby
from bench.serving import ROOT, Process, command, environment
from tests.support import TemporaryFolder

PROGRAM = standby.find_program()
# s: what may be lost. 144 ms were measured beside other work, a second with Litestream's own
# intervals; a machine on which everything waits for everything is no reason to fail.
MOST = 5.0


@unittest.skipUnless(PROGRAM, "Litestream is not installed (requirements-dev.txt has it for Linux)")
class Litestream(TemporaryFolder):
    shares_database = True
    loss: standby.Loss

    def setUp(self) -> None:
        super().setUp()
        self.configuration = standby.settings_of_the_page()
        self.loss = standby.lose_one(self.folder, PROGRAM, self.configuration, 2.0)

    def test_brings_back_all_but_the_last_moment_and_serves_it_with_the_same_keys(self):
        self.assertGreater(self.loss.acknowledged, 20)
        self.assertLess(len(self.loss.lost), self.loss.acknowledged / 2)
        self.assertLess(max(self.loss.lost, default=0), MOST)
        server = self.serve(self.loss.database)
        self.assertEqual(standby.published(server.port), self.loss.kids)
        found = self.loss.accounts[0]  # of the beginning
        connection = standby.connect(server.port)
        self.addCleanup(connection.close)
        self.assertIn("token", standby.ask(connection, "/auth", found))
        self.assertEqual(self.doctor(self.loss.database), [])

    def test_copies_the_second_machine_to_a_new_place(self):
        second = standby.Primary(
            self.folder / "second", PROGRAM, self.configuration, start_with=self.loss.database
        )
        self.addCleanup(second.end)
        second.server.register("after-the-switch")
        again = self.folder / "again.db"
        second.stop()
        second.restore(again)
        names = standby.rows(again)["users"]
        self.assertIn("after-the-switch", names)
        self.assertIn(self.loss.accounts[0]["username"], names)

    def serve(self, database: Path) -> Process:
        server = Process(command(*standby.CHEAP, db=database))
        self.addCleanup(server.end)
        return server

    def doctor(self, database: Path) -> list[str]:
        """Its lines of problems."""
        words = [sys.executable, str(ROOT / "admin.py"), "--db", str(database), "doctor"]
        run = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60)
        return [line for line in run.stdout.splitlines() if " problem " in line]


if __name__ == "__main__":
    unittest.main()
