"""What every command owes the system: no secret in a core dump, files for its user alone, and no
harm from a standard stream that is closed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import unittest

from tests.support import CHEAPEST, ROOT, TemporaryFolder

LIMITS = """
import json, os, resource, runpy, sys
sys.argv = ["admin.py", *sys.argv[2:]]
try:
    runpy.run_path(os.environ["COMMAND"], run_name="__main__")
except SystemExit:
    pass
mask = os.umask(0)
print(json.dumps({"core": resource.getrlimit(resource.RLIMIT_CORE)[0], "mask": mask}))
"""


@unittest.skipUnless(os.name == "posix", "streams and limits of POSIX")
class EveryCommand(TemporaryFolder):
    def run_admin(self, redirections: str, *words: str) -> subprocess.CompletedProcess[str]:
        """admin.py with some of its streams closed."""
        return subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" "$@" {redirections}', sys.executable,
             str(ROOT / "admin.py"), "--db", str(self.path), "--argon2", CHEAPEST, *words],
            capture_output=True, text=True, timeout=60, cwd=self.folder,
        )  # fmt: skip

    def test_works_with_any_of_its_streams_closed(self):
        for number, redirections in enumerate(("<&-", ">&-", "2>&-", "<&- >&- 2>&-")):
            with self.subTest(redirections):
                run = self.run_admin(redirections, "users", "add", f"user{number}")
                self.assertEqual((run.returncode, run.stderr), (0, ""))
        run = self.run_admin("", "users", "list")
        self.assertEqual(run.stdout.count("\n"), 5)
        with open(self.path, "rb") as file:
            self.assertEqual(file.read(15), b"SQLite format 3")

    def test_makes_its_files_for_its_user_alone(self):
        self.run_admin("", "keys", "rotate")
        for path in self.folder.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode) & 0o077, 0, path)

    def test_leaves_no_core_dump(self):
        run = subprocess.run(
            [sys.executable, "-c", LIMITS, "-", "--db", str(self.path), "users", "list"],
            env={**os.environ, "COMMAND": str(ROOT / "admin.py")},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(json.loads(run.stdout.splitlines()[-1]), {"core": 0, "mask": 0o077})


if __name__ == "__main__":
    unittest.main()
