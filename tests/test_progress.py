"""How far a long command is: on a terminal one line that goes again, in a pipe nothing."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import unittest
from collections.abc import Iterator
from typing import Any
from unittest import mock

import admin
from jwksd import progress
from jwksd.store import keystore, logins, sqlite
from tests.httpd_live import wait_until
from tests.test_admin import ENVIRON, KeysTest


class Terminal(io.StringIO):
    """A stream that says it is one, and remembers all that was written."""

    def isatty(self) -> bool:
        return True

    def waits_for(self, text: str) -> bool:
        return wait_until(lambda: text in self.getvalue())

    def screen(self) -> list[str]:
        """The lines as they stand in the end, without the blanks behind them."""
        lines = []
        for line in self.getvalue().split("\n"):
            seen = ""
            for part in line.split("\r"):
                seen = part + seen[len(part) :]
            lines.append(seen.rstrip())
        return lines


def at_once() -> Any:
    """The line appears without a wait, and is looked at often."""
    return mock.patch.multiple(progress, FIRST_SECONDS=0.0, EVERY_SECONDS=0.005)


class ALine(unittest.TestCase):
    def setUp(self) -> None:
        soon = at_once()
        soon.start()
        self.addCleanup(soon.stop)

    def test_says_how_far_it_is_and_is_gone_at_the_end(self) -> None:
        terminal, far = Terminal(), ["a long way to go"]
        with progress.shown("work", lambda: far[0], terminal):
            self.assertTrue(terminal.waits_for("\rwork: a long way to go, 0 s"))
            far[0] = "near"
            self.assertTrue(terminal.waits_for("\rwork: near, 0 s" + " " * 12))  # over the rest
        self.assertEqual(terminal.screen(), [""])

    def test_counts_the_seconds_where_nothing_else_can_be_said(self) -> None:
        terminal = Terminal()
        with progress.shown("work", stream=terminal):
            self.assertTrue(terminal.waits_for("\rwork: 0 s"))

    def test_gives_way_to_what_else_is_written(self) -> None:
        terminal = Terminal()
        with progress.shown("work", stream=terminal) as line:
            self.assertTrue(terminal.waits_for("work"))
            with line.hidden():
                terminal.write("a sentence\n")
            self.assertTrue(wait_until(lambda: "work" in terminal.getvalue().split("\n")[1]))
        self.assertEqual(terminal.screen(), ["a sentence", ""])

    def test_costs_the_work_nothing_when_it_fails(self) -> None:
        closed, gone = Terminal(), Terminal()
        with progress.shown("work", lambda: str(1 / 0), gone):
            self.assertTrue(gone.waits_for("work: 0 s"))
        with progress.shown("work", stream=closed):
            closed.close()
        done, no_more = False, mock.patch("threading.Thread.start", side_effect=RuntimeError)
        with no_more, progress.shown("work", stream=Terminal()):
            done = True
        self.assertTrue(done)

    def test_ends_with_the_work_also_with_one_that_fails(self) -> None:
        terminal = Terminal()
        with self.assertRaises(ZeroDivisionError), progress.shown("work", stream=terminal):
            self.assertTrue(terminal.waits_for("work"))
            print(1 / 0)
        self.assertEqual(terminal.screen(), [""])
        self.assertNotIn("progress", [thread.name for thread in threading.enumerate()])

    def test_is_not_there_for_a_pipe_nor_for_a_stream_that_is_closed(self) -> None:
        pipe, closed = io.StringIO(), io.StringIO()
        closed.close()
        for stream in (pipe, closed, None):
            never = mock.patch.object(progress.Line, "start", side_effect=AssertionError)
            with mock.patch("sys.stderr", stream), never, progress.shown("work"):
                pass
        self.assertEqual(pipe.getvalue(), "")

    def test_is_not_there_for_work_that_is_soon_done(self) -> None:
        terminal = Terminal()
        late = mock.patch.object(progress, "FIRST_SECONDS", 60.0)
        with late, progress.shown("work", stream=terminal):
            pass
        self.assertEqual(terminal.getvalue(), "")

    @unittest.skipUnless(hasattr(os, "openpty"), "no terminals of that kind here")
    def test_is_shorter_than_the_terminal_is_wide(self) -> None:
        import fcntl  # which Windows lacks, as it lacks these terminals
        import termios

        master, slave = os.openpty()
        self.addCleanup(os.close, master)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 20, 0, 0))
        with os.fdopen(slave, "w") as stream, progress.shown("w" * 50, stream=stream):
            _, *lines = os.read(master, 100).split(b"\r")  # one, or more on a busy machine
        self.assertEqual(set(lines), {b"w" * 19})


class ACommand(KeysTest):
    """Each waits in the middle of its work, where it is looked at."""

    COMMANDS = (
        (("backup", "copy.db"), sqlite.SQLite, "backup", "\rbackup: "),
        (("rekey",), keystore.KeyStore, "rekey", "\rrekey: 0 s"),
        (("doctor",), sqlite.ReadOnly, "damage", "\rdoctor: integrity: 0 s"),
        (("users", "delete", "alice"), logins.LoginLog, "disown", "\rusers delete: row 0 of 0 of"),
    )

    def setUp(self) -> None:
        super().setUp()
        self.open_server().database.close()
        self.admin("users", "add", "alice")

    @contextlib.contextmanager
    def waiting(self, owner: type, name: str, terminal: Terminal, text: str) -> Iterator[None]:
        """The method waits until the terminal shows the text."""
        original = getattr(owner, name)

        def wait(*arguments, **named):
            assert terminal.waits_for(text), terminal.getvalue()
            return original(*arguments, **named)

        with mock.patch.object(owner, name, wait):
            yield

    def words(self, words: tuple[str, ...]) -> list[str]:
        named = [str(self.folder / word) if word.endswith(".db") else word for word in words]
        return ["--db", str(self.path), *named]

    def test_that_takes_long_shows_it_on_a_terminal(self) -> None:
        for words, owner, name, text in self.COMMANDS:
            terminal = Terminal()
            with self.subTest(words), contextlib.ExitStack() as stack:
                stack.enter_context(at_once())
                stack.enter_context(self.waiting(owner, name, terminal, text))
                stack.enter_context(mock.patch("sys.stderr", terminal))
                stack.enter_context(mock.patch("sys.stdout", io.StringIO()))
                stack.enter_context(mock.patch.object(os, "environ", dict(ENVIRON)))
                self.assertEqual(admin.main(self.words(words)), 0)
                self.assertNotIn(text.strip(), "\n".join(terminal.screen()))

    def test_that_takes_long_shows_nothing_in_a_pipe(self) -> None:
        for words, _, _, _ in self.COMMANDS:
            with at_once(), mock.patch.object(progress.Line, "start", side_effect=AssertionError):
                code, _, err = self.admin(*self.words(words)[2:])
            self.assertEqual((code, "\r" in err), (0, False))

    def test_tells_how_much_of_a_backup_is_there(self) -> None:
        terminal = Terminal()

        def copy(database: sqlite.SQLite, target: str) -> None:
            with open(target, "wb") as file:
                file.truncate(3 << 20)
            assert terminal.waits_for("\rbackup: 3 of 0 MiB, 0 s"), terminal.getvalue()

        looks = mock.patch("sys.stderr", terminal)
        with at_once(), looks, mock.patch.object(sqlite.SQLite, "backup", copy):
            self.assertEqual(admin.main(self.words(("backup", "copy.db"))), 0)

    def test_tells_how_far_a_deletion_has_come(self) -> None:
        terminal = Terminal()

        def disown(log: logins.LoginLog, name: str, passed: logins.Passed) -> int:
            passed(1_000, 2_500)
            assert terminal.waits_for("row 1,000 of 2,500 of the log"), terminal.getvalue()
            return 0

        looks = mock.patch("sys.stderr", terminal)
        with at_once(), looks, mock.patch.object(logins.LoginLog, "disown", disown):
            self.assertEqual(admin.main(self.words(("users", "delete", "alice"))), 0)


if __name__ == "__main__":
    unittest.main()
