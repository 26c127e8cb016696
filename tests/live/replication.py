"""The clusters that other tests stand on do what is said of them."""

from __future__ import annotations

import signal
import subprocess
import unittest

from tests.live import clusters
from tests.live.clusters import Clusters, processes, wait_until

ROWS = "SELECT count(*) FROM words"


@unittest.skipIf(clusters.why_not(), clusters.why_not())
class Replication(unittest.TestCase):
    def setUp(self) -> None:
        self.clusters = Clusters()
        self.addCleanup(self.clusters.close)
        self.primary = self.clusters.primary()
        self.standby = self.clusters.standby(self.primary, "two")
        self.primary.expect("two")
        self.primary.sql("CREATE TABLE words (word text); INSERT INTO words VALUES ('one')")

    def test_a_row_reaches_the_standby_before_its_commit_returns(self):
        self.primary.configure(synchronous_standby_names="two", synchronous_commit="remote_apply")
        self.primary.sql("INSERT INTO words VALUES ('two')")
        self.assertEqual(self.standby.sql(ROWS), "2")

    def test_a_promoted_standby_has_every_row_and_takes_more(self):
        self.primary.kill()
        self.standby.promote()
        self.assertEqual(self.standby.sql(ROWS), "1")
        self.standby.sql("INSERT INTO words VALUES ('two')")
        self.assertEqual(self.standby.sql(ROWS), "2")

    def test_a_commit_waits_for_a_standby_that_is_gone_and_goes_on_with_its_return(self):
        self.standby.kill()
        where = ("-h", str(self.primary.folder), "-p", str(self.primary.port), "-U", "postgres")
        waiting = subprocess.Popen(
            [clusters.program("psql"), *where, "-qc", "INSERT INTO words VALUES ('two')"]
        )
        self.addCleanup(waiting.wait, 20)
        self.addCleanup(waiting.kill)
        asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        wait_until("the commit waits", lambda: self.primary.sql(asked) == "1")
        self.assertIsNone(waiting.poll())
        self.standby.start()
        self.assertEqual(waiting.wait(20), 0)
        self.assertEqual(self.standby.sql(ROWS), "2")

    def test_the_password_is_asked_for_over_tcp(self):
        url = self.clusters.url(self.primary)
        self.assertNotIn(self.clusters.password, url)
        command = [clusters.program("psql"), "-w", "-XAtc", "SELECT current_user", url]
        for passfile, said in ((self.clusters.passfile, "keys\n"), ("/dev/null", "")):
            environ = {"PGPASSFILE": str(passfile), "LC_ALL": "C"}
            run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)
            self.assertEqual(run.stdout, said, run.stderr)

    def test_what_is_frozen_answers_nobody_until_it_is_thawed(self):
        self.primary.freeze()
        with self.assertRaises(subprocess.TimeoutExpired):
            subprocess.run(
                [clusters.program("psql"), "-c", "SELECT 1", self.clusters.url(self.primary)],
                env={"PGPASSFILE": str(self.clusters.passfile)}, timeout=0.5,
            )  # fmt: skip
        self.primary.thaw()
        self.assertEqual(self.primary.sql(ROWS), "1")


@unittest.skipIf(clusters.why_not(), clusters.why_not())
class TheEnd(unittest.TestCase):
    def test_leaves_neither_a_process_nor_a_file_whatever_state_they_are_in(self):
        many = Clusters()
        running, frozen, killed = (many.primary() for _ in range(3))
        pids = {one.process.pid for one in (running, frozen, killed)}
        pids |= {pid for pid, parent in processes() if parent in pids}
        self.assertGreater(len(pids), 9)
        frozen.freeze()
        killed.kill()
        many.close()
        self.assertFalse(pids & {pid for pid, _ in processes()})
        self.assertFalse(many.folder.exists())

    def test_one_that_ended_by_itself_is_removed_as_well(self):
        with Clusters() as many:
            cluster = many.primary()
            cluster.process.send_signal(signal.SIGQUIT)
            cluster.process.wait(60)
        self.assertFalse(many.folder.exists())


if __name__ == "__main__":
    unittest.main()
