"""`admin.py doctor` beside a real server: it runs, was killed, has stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import unittest

from tests.live.process import SECRET, ProcessTest
from tests.support import ROOT
from tests.test_admin import ENVIRON
from tests.test_doctor import Report, parsed


class ARealServer(ProcessTest):
    def doctor(self) -> tuple[int, Report]:
        process = subprocess.run(
            [sys.executable, str(ROOT / "admin.py"), "--db", str(self.path), "doctor"],
            env={**os.environ, "NOT_MY_KEY": SECRET, "JWKS_ARGON2": ENVIRON["JWKS_ARGON2"]},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        self.assertNotIn("Traceback", process.stderr)
        return process.returncode, parsed(process.stdout)

    def test_is_found_sound_while_it_runs_after_a_kill_and_after_a_stop(self):
        server = self.serve()
        self.assertEqual(server.ask("POST", "/register", {"username": "alice"})[0], 201)
        for end in (None, signal.SIGKILL):
            if end:
                server.end(end)
            before = {path: path.read_bytes() for path in self.folder.glob("keys.db*")}
            names = sorted(os.listdir(self.folder))
            code, report = self.doctor()
            self.assertEqual(code, 0, report)
            self.assertEqual(report["users"][1], "1")
            self.assertEqual(sorted(os.listdir(self.folder)), names)
            for path, content in before.items():
                if path.suffix != ".db-shm":
                    self.assertEqual(path.read_bytes(), content)
        self.serve().end()
        self.assertEqual(self.doctor()[0], 0)
        self.assertEqual(os.listdir(self.folder), ["keys.db"])


if __name__ == "__main__":
    unittest.main()
