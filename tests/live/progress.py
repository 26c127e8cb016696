"""Real commands at a terminal: long work shows how far it is; the same in a pipe shows nothing."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import unittest

from tests.live.graded_class import CLASS, Class
from tests.support import ROOT
from tests.test_admin import ENVIRON, KeysTest

MOVED = 300_000  # rows of the log: some seconds
ROWS = 60_000  # of the log: sixty commits and pauses, more than a second


def at_a_terminal(*command: str) -> tuple[int, str, str]:
    """Exit code, standard output, and all that came to the terminal on standard error."""
    master, slave = os.openpty()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=slave, text=True, env={**os.environ, **ENVIRON}
    ) as process:
        os.close(slave)
        seen = b""
        with contextlib.suppress(OSError):  # Linux: the last one has closed it
            while octets := os.read(master, 65_536):
                seen += octets
        os.close(master)
        out, _ = process.communicate(timeout=60)
    return process.returncode, out, seen.decode()


def in_a_pipe(*command: str) -> tuple[int, str, str]:
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **ENVIRON}
    )
    return run.returncode, run.stdout, run.stderr


@unittest.skipUnless(hasattr(os, "openpty"), "no terminals of that kind here")
class AMove(KeysTest):
    shares_database = True

    def setUp(self) -> None:
        super().setUp()
        self.admin("users", "add", "alice")
        self.admin("keys", "rotate")
        self.target = self.folder / "target.db"
        self.fill(self.path)
        self.command = (
            *(sys.executable, str(ROOT / "admin.py"), "migrate"),
            *("--from", str(self.path), "--to", str(self.target)),
        )

    def fill(self, path: object) -> None:
        """A log that takes seconds to move."""
        with contextlib.closing(sqlite3.connect(str(path))) as connection, connection:
            connection.executemany(
                "INSERT INTO auth_logs (request_ip) VALUES (?)", [("192.0.2.1",)] * MOVED
            )

    def test_counts_the_rows_and_goes_on_after_it_was_killed(self) -> None:
        master, slave = os.openpty()
        process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=slave, env={**os.environ, **ENVIRON}
        )
        os.close(slave)
        seen = b""
        while not re.search(rb"auth_logs row [1-9][0-9,]*000 of 300,000", seen):
            seen += os.read(master, 65_536)
        process.kill()
        process.wait(60)
        os.close(master)
        self.assertEqual(self.counts(), (1, 0, 0))  # the keys come last
        code, out, err = in_a_pipe(*self.command)
        self.assertEqual(code, 0, err)
        self.assertIn(f"auth_logs\t{MOVED}\n", out)
        self.assertEqual(self.counts(), (1, MOVED, 2))

    def counts(self) -> tuple[int, ...]:
        with contextlib.closing(sqlite3.connect(self.target)) as connection:
            sql = "SELECT count(*) FROM {}"
            return tuple(
                connection.execute(sql.format(table)).fetchone()[0]
                for table in ("users", "auth_logs", "keys")
            )


@unittest.skipUnless(hasattr(os, "openpty"), "no terminals of that kind here")
class ADeletion(KeysTest):
    shares_database = True

    def setUp(self) -> None:
        super().setUp()
        self.admin("users", "add", "alice")
        with contextlib.closing(self.open_database()) as database:
            database.write(
                lambda connection: connection.executemany(
                    "INSERT INTO auth_logs (request_ip, user_id) VALUES ('192.0.2.1', ?)",
                    [(1,)] * ROWS,
                )
            )
        self.command = (
            *(sys.executable, str(ROOT / "admin.py"), "--db", str(self.path)),
            *("users", "delete", "alice"),
        )

    def test_counts_the_rows_and_wipes_the_line(self) -> None:
        code, out, seen = at_a_terminal(*self.command)
        self.assertEqual((code, out), (0, ""))
        rows = [int(row.replace(",", "")) for row in re.findall(r"row ([\d,]+) of 60,000", seen)]
        self.assertGreater(len(rows), 1, seen)
        self.assertEqual((rows, seen.count("\n")), (sorted(rows), 0))
        self.assertRegex(seen, r"\r *\r$")

    def test_shows_nothing_in_a_pipe(self) -> None:
        self.assertEqual(in_a_pipe(*self.command), (0, "", ""))


@unittest.skipUnless(hasattr(os, "openpty"), "no terminals of that kind here")
class AClass(Class):
    def command(self) -> tuple[str, ...]:
        """Grade two that answer nothing for two seconds."""
        rubric = self.rubric("contract.json", start_seconds=2)
        table = self.folder / "class.csv"
        rows = [f"{name},{CLASS / 'hostile'},sleep 60\n" for name in ("alice", "bob")]
        table.write_text("name,folder,start\n" + "".join(rows), "utf-8")
        out = str(self.folder / "out")
        command = (sys.executable, str(ROOT / "grade.py"), str(table), "--rubric", str(rubric))
        return (*command, "--out", out)

    def test_counts_those_that_are_done_between_the_lines_of_the_table(self) -> None:
        code, out, seen = at_a_terminal(*self.command())
        self.assertEqual((code, out.count("\n")), (0, 2), out + seen)
        self.assertIn("grading: 0 of 2 done, ", seen)
        self.assertIn("grading: 1 of 2 done, ", seen)
        self.assertRegex(seen, r"\r *\r$")

    def test_shows_nothing_in_a_pipe(self) -> None:
        code, out, err = in_a_pipe(*self.command())
        self.assertEqual((code, out.count("\n")), (0, 2), out + err)
        self.assertNotIn("\r", out + err)


if __name__ == "__main__":
    unittest.main()
