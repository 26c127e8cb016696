"""jwt_minimal.py and the exercises as commands: alone in a folder, on a terminal, from a shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import jwt_minimal
from tests.test_jwt import CommandLineTest, issue
from tests.test_jwt_docs import DOCS


class CommandLine(CommandLineTest):
    def test_the_file_alone_verifies_from_a_url_without_any_package(self) -> None:
        with tempfile.TemporaryDirectory() as empty:
            shutil.copy(jwt_minimal.__file__, empty)
            done = subprocess.run(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "jwt_minimal.py",
                    "decode",
                    "--jwks",
                    f"{self.url}/jwks",
                ],
                input=self.fresh().encode(),
                cwd=empty,
                capture_output=True,
                timeout=20,
                check=False,
            )
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(json.loads(done.stdout), {"exp": 4_000_000_000, "sub": "joe"})

    def test_explain_has_the_status_of_its_verdict_without_docstrings_too(self) -> None:
        for token, expected in ((self.fresh(), 0), (issue(exp=7), 1)):
            command = [sys.executable, "-OO", jwt_minimal.__file__, "explain", token]
            done = subprocess.run(
                [*command, "--jwks", str(self.jwks)], capture_output=True, timeout=20, check=False
            )
            self.assertEqual(done.returncode, expected, done)

    @unittest.skipUnless(hasattr(os, "openpty"), "needs a terminal")
    def test_colours_appear_on_a_terminal_unless_no_color_is_set(self) -> None:
        for setting, coloured in (("", True), ("1", False)):
            with self.subTest(setting):
                self.assertEqual(b"\x1b[31m" in self.on_a_terminal(setting), coloured)

    def on_a_terminal(self, no_color: str) -> bytes:
        ours, theirs = os.openpty()
        command = [sys.executable, jwt_minimal.__file__, "explain", "a.b.c"]
        environment = {**os.environ, "NO_COLOR": no_color}
        subprocess.run(command, stdout=theirs, env=environment, timeout=20, check=False)
        os.close(theirs)
        with open(ours, "rb", buffering=0) as screen:
            return screen.read(4096)


class Exercises(unittest.TestCase):
    def test_runs_from_a_shell_by_step_and_file(self) -> None:
        command = [sys.executable, str(DOCS / "exercises" / "check.py")]
        for arguments, status in ((["1", jwt_minimal.__file__], 0), (["1", __file__], 1), ([], 1)):
            done = subprocess.run(command + arguments, capture_output=True, timeout=60, check=False)
            self.assertEqual(done.returncode, status, done.stderr)


if __name__ == "__main__":
    unittest.main()
