"""With `--access-log json`, every line on standard error of the real process is one object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unittest
import urllib.error
import urllib.request
from typing import Any

from tests.httpd_live import wait_until
from tests.live.process import ProcessTest, start
from tests.support import CHEAPEST, ROOT

# The server, in which a part fails. The chores fail at their first tick, the loop after an answer.
WITH_A_DEFECT = """
import sys
sys.path.insert(0, {root!r})
import server, warnings
def fail(*_):
    raise ValueError("the password")
{defect}
sys.exit(server.main(sys.argv[1:]))
"""
DEFECTS = {
    "the main thread": "server.Service.run = fail",
    "a thread": "server.Upkeep.run = fail",
    "a callback": "server.App.count = fail",
    "a finalizer": "server.Service.run = lambda self: type('X', (), {'__del__': fail})()",
    "a warning": "server.Service.run = lambda self: warnings.warn('two\\nlines', stacklevel=1)",
}


class EveryLine(ProcessTest):
    def objects(self, lines: list[str]) -> list[dict[str, Any]]:
        """The lines, each of which must be an object with the three members in front."""
        found = [json.loads(line) for line in lines]
        for line in found:
            self.assertEqual(list(line)[:3], ["time", "level", "event"])
            self.assertRegex(line["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            self.assertTrue(line["event"] == "request" or list(line)[3:] == ["message"], line)
        return found

    def begun(self, *flags: str, program: str | None = None) -> tuple[Any, list[str], int]:
        """A process that says it is ready: its lines until then, and its port."""
        given = ("--db", str(self.path), "--port", "0", "--argon2", CHEAPEST, *flags)
        if program is None:
            process = start(*given, environ={})
        else:
            process = subprocess.Popen(
                [sys.executable, "-c", program, *given], stderr=subprocess.PIPE, text=True,
                env={**os.environ, "JWKS_ACCESS_LOG": "json"},
            )  # fmt: skip
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if '"ready"' in line:
                return process, lines, int(re.search(r"ready: http://127.0.0.1:(\d+) ", line)[1])
        raise AssertionError("".join(lines))

    def test_from_the_first_warning_to_the_end_is_one(self):
        server = self.serve("--access-log", "json", "--issuer", "http://127.0.0.1", environ={
            "NOT_MY_KEY": "short", "JWKS_ARGON2": CHEAPEST,
        })  # fmt: skip
        status, account = server.ask("POST", "/register", {"username": "alice"})
        self.assertEqual(status, 201)
        self.assertEqual(server.ask("POST", "/auth", {"username": "alice", **account})[0], 200)
        self.path.rename(self.folder / "elsewhere.db")
        server.ask("POST", "/auth", {"username": "alice", **account})
        self.assertTrue(wait_until(lambda: any('"trouble"' in line for line in server.lines)))
        (self.folder / "elsewhere.db").rename(self.path)
        self.assertTrue(wait_until(lambda: any('"recovered"' in line for line in server.lines)))
        self.assertEqual(server.end(), 0)
        events = [(line["event"], line["level"]) for line in self.objects(server.lines)]
        for expected in (
            ("secret_short", "warning"), ("ready", "info"), ("request", "info"),
            ("trouble", "error"), ("recovered", "info"),
        ):  # fmt: skip
            self.assertIn(expected, events)

    def test_of_a_start_that_is_refused_is_one(self):
        self.path.write_text("not a database, but a letter\n" * 50)
        (line,) = self.objects(self.refused("--access-log", "json").splitlines())
        self.assertEqual((line["event"], line["level"]), ("cannot_start", "error"))

    def test_of_a_defect_is_one_without_its_message(self):
        for where, defect in DEFECTS.items():
            with self.subTest(where):
                program = WITH_A_DEFECT.format(root=str(ROOT), defect=defect)
                process, lines, port = self.begun(program=program)
                if where == "a callback":
                    body = b'{"username": "x", "password": "y"}'
                    lines += self.ask_once(process, port, body)
                if where in ("a thread", "a callback"):
                    process.terminate()
                lines += process.stderr.readlines()
                last = self.objects(lines)
                told = [line for line in last if line["event"] in ("internal_error", "warning")]
                self.assertEqual(len(told), 1, lines)
                self.assertNotIn("the password", "".join(lines))
                if where != "a warning":
                    self.assertRegex(told[0]["message"], r"ValueError at <string>:\d+")

    def ask_once(self, process: subprocess.Popen[str], port: int, body: bytes) -> list[str]:
        """Ask for a token; the lines up to the one that tells of the request."""
        with self.assertRaises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/auth", body, timeout=10)
        refused.exception.close()
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if '"request"' in line:
                break
        return lines


if __name__ == "__main__":
    unittest.main()
