"""The README's first session works when it is pasted, and so do its commands for the operator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unittest
from shutil import copy, copytree

import server
from tests.support import CHEAPEST, ROOT, TemporaryFolder

README = (ROOT / "README.md").read_text(encoding="utf-8")
GRADING = (ROOT / "docs/grading.md").read_text(encoding="utf-8")


def shell(heading: str, page: str = README) -> str:
    """The first block of shell commands under a heading."""
    found = re.search(rf"## {heading}\n.*?```sh\n(.*?)```", page, re.DOTALL)
    assert found is not None, heading
    return found[1]


class Pasting(TemporaryFolder):
    def run_shell(self, script: str) -> str:
        bin_folder = self.folder / "bin"
        bin_folder.mkdir()
        for name in ("python", "python3"):
            os.symlink(sys.executable, bin_folder / name)
        for file in ROOT.glob("*.py"):
            copy(file, self.folder)
        copy(ROOT / "schema.sql", self.folder)
        environ = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
        environ["PYTHONPATH"] = ":".join(sys.path)
        run = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=self.folder, env=environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        return run.stdout

    def test_the_first_session(self):
        with server.running(argon2=CHEAPEST) as issuer:
            script = shell("A first session").replace("http://127.0.0.1:8080", issuer.url)
            output = self.run_shell(script)
        for part in ('{"password":"', '{"token":"', '{"keys":[', "alice"):
            self.assertIn(part, output)

    def test_the_operators_commands(self):
        output = self.run_shell(shell("The operator's commands"))
        self.assertIn("kid\texpires\tstate\n", output)
        self.assertIn("check\tstate\tfinding\n", output)

    def test_the_graders_commands(self):
        with server.running(argon2=CHEAPEST) as issuer:
            script = shell("Grade any server by its URL", GRADING)
            self.run_shell(script.replace("http://127.0.0.1:8080", issuer.url))

    def test_grading_with_two_files_and_a_folder_and_without_a_package(self):
        copytree(ROOT / "jwksd" / "grading", self.folder / "jwksd" / "grading")
        copy(ROOT / "jwksd" / "__init__.py", self.folder / "jwksd")
        copy(ROOT / "test_server.py", self.folder)
        copy(ROOT / "jwt_minimal.py", self.folder)
        with server.running(argon2=CHEAPEST) as issuer:
            run = subprocess.run(
                [sys.executable, "-S", "-m", "unittest", "test_server"],
                cwd=self.folder, env={"JWKS_TEST_URL": issuer.url},
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_trying_a_verifier(self):
        output = self.run_shell(shell("Grade a verifier", GRADING))
        self.assertRegex(output, r"^0 of \d+ tokens were misjudged\n$")


if __name__ == "__main__":
    unittest.main()
