"""Backup and restore as docs/operations.md says, with a generated secret."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
import urllib.request

import jwt_minimal
from tests.live.process import ProcessTest
from tests.support import ROOT

PAGE = (ROOT / "docs/operations.md").read_text("utf-8")
SECTION = PAGE.split("\n## Backup, restore, another machine\n")[1].split("\n## ")[0]
BACKUP, TRIAL, RESTORE = re.findall(r"(?s)```sh\n(.*?)```", SECTION)


class ABackup(ProcessTest):
    def shell(self, commands: str) -> subprocess.Popen[str]:
        """The commands, in the folder of the database, with the programs of this repository."""
        commands = re.sub(r"\bpython (\w+\.py)", rf"{sys.executable} {ROOT}/\1", commands)
        return subprocess.Popen(
            ["sh", "-ec", commands.replace(f"{sys.executable} ", f"exec {sys.executable} ", 1)],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip

    def done(self, commands: str) -> None:
        process = self.shell(commands)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, err)

    def jwks(self, url: str) -> bytes:
        with urllib.request.urlopen(f"{url}/.well-known/jwks.json", timeout=10) as answer:
            return answer.read()

    def test_is_tried_and_restored_with_the_commands_of_the_page(self):
        server = self.serve(environ={})
        account = {"username": "alice", **server.ask("POST", "/register", {"username": "alice"})[1]}
        token = server.ask("POST", "/auth", account)[1]["token"]
        published = self.jwks(server.url)
        self.done(BACKUP)
        after = server.ask("POST", "/register", {"username": "bob"})
        self.assertEqual(after[0], 201)

        trial = self.shell(TRIAL)
        self.addCleanup(trial.wait)
        self.addCleanup(trial.kill)
        lines = iter(trial.stderr.readline, "")
        url = next(line.split()[1] for line in lines if line.startswith("ready: "))
        self.assertEqual(self.jwks(url), published)
        self.assertEqual(server.ask("POST", "/auth", account)[0], 200)
        trial.terminate()
        trial.communicate(timeout=20)

        server.end(9)  # what is in its log would otherwise be taken for the log of the copy
        self.done(RESTORE)
        restored = self.serve(environ={})
        self.assertEqual(self.jwks(restored.url), published)
        jwt_minimal.decode(token, restored.ask("GET", "/.well-known/jwks.json")[1])
        self.assertEqual(restored.ask("POST", "/auth", account)[0], 200)
        self.assertEqual(restored.ask("POST", "/register", {"username": "bob"})[0], 201)

    def test_without_its_secret_is_refused_and_stays_as_it_is(self):
        self.serve(environ={}).end()
        self.done(BACKUP)
        process = self.shell(TRIAL.replace("NOT_MY_KEY_FILE=keys.db.secret ", ""))
        _, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, err.count("\n")), (2, 1), err)
        self.assertIn("set NOT_MY_KEY", err)


if __name__ == "__main__":
    unittest.main()
