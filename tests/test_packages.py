"""The two packages: too old or missing is one line, before anything is touched.

Their versions stand in one place; what else names them agrees with it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unittest

from jwksd.ops import packages
from tests.support import ROOT, TemporaryFolder


class TheFloors(unittest.TestCase):
    def test_stand_in_requirements_txt(self):
        lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
        named = [line for line in lines if line and not line.startswith("#")]
        self.assertEqual([re.split("[,;]", line)[0] for line in named], packages.requirements())

    def test_stand_in_the_head_of_server_py(self):
        source = (ROOT / "server.py").read_text("utf-8")
        found = re.search(r"^# dependencies = (\[.*\])$", source, re.MULTILINE)
        self.assertIsNotNone(found)
        self.assertEqual(json.loads(found[1]), packages.requirements())

    def test_are_those_of_packages_that_both_commands_name_when_one_is_missing(self):
        self.assertEqual(packages.MODULES, {"argon2", "cryptography"})
        another = ModuleNotFoundError("x", name="another")
        self.assertRaises(ModuleNotFoundError, packages.refuse_without, another)


class APackage(TemporaryFolder):
    def run_beside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of ours in an empty folder, before whose packages stand those of `shadow`."""
        start = (
            "import runpy, sys; sys.path[:0] = [sys.argv.pop(1), sys.argv.pop(1)]; "
            "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        shadow = str(self.folder / "shadow")
        return subprocess.run(
            [sys.executable, "-c", start, shadow, str(ROOT), str(ROOT / command[0]), *command[1:]],
            cwd=self.made("work"), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def made(self, name: str):
        path = self.folder / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def assertRefused(self, name: str, wanted: str):
        for command in (("server.py", "--port", "0"), ("admin.py", "keys", "list")):
            with self.subTest(command=command):
                run = self.run_beside(*command)
                self.assertEqual((run.returncode, run.stdout), (2, ""), run.stderr)
                (line,) = run.stderr.splitlines()
                self.assertIn(name, line)
                self.assertIn(wanted, line)
                self.assertEqual(list((self.folder / "work").iterdir()), [])

    def test_that_is_too_old_is_refused_with_one_line(self):
        for name in packages.FLOORS:
            with self.subTest(name):
                folder = self.made(f"shadow/{name.replace('-', '_')}-1.9.dist-info")
                (folder / "METADATA").write_text(
                    f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.9\n"
                )
                self.assertRefused(
                    f"{name} 1.9", packages.requirements()[[*packages.FLOORS].index(name)]
                )
                (folder / "METADATA").unlink()
                folder.rmdir()

    def test_that_is_missing_is_refused_with_one_line(self):
        (self.made("shadow/argon2") / "__init__.py").write_text(
            "raise ModuleNotFoundError('gone', name='argon2')"
        )
        self.assertRefused("argon2", "argon2-cffi>=")


if __name__ == "__main__":
    unittest.main()
