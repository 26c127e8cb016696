"""`import server` and the commands from anywhere: links, other folders, projects of like names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

from tests.support import ROOT, TemporaryFolder

OURS = ("settings", "database", "names", "answers", "store", "api", "httpd", "process", "ops",
        "inputs", "limits", "sqlite", "workers", "sealing", "keystore", "logins")  # fmt: skip
USE = """
import server
with server.running(argon2="t=1,m=8,p=1") as issuer:
    assert issuer.jwks()["keys"] and issuer.token(sub="a").count(".") == 2
print("served")
"""


class Project(TemporaryFolder):
    """A folder with modules of all the names that we use inside, each of which must not run."""

    def setUp(self):
        super().setUp()
        self.project = self.folder / "a project"
        self.project.mkdir()
        for name in OURS:
            (self.project / f"{name}.py").write_text("raise RuntimeError('not ours')\n")
        (self.project / "accounts").mkdir()
        (self.project / "accounts" / "__init__.py").write_text("raise RuntimeError('not ours')\n")

    def python(self, *arguments: str, path: Path | None = ROOT, **options) -> str:
        """What the program prints; a failure shows all that it said."""
        environ = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
        run = subprocess.run(
            [sys.executable, *arguments], cwd=self.project, env=environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, **options,
        )  # fmt: skip
        self.assertEqual(run.returncode, 0, run.stdout)
        return run.stdout


class ImportingServer(Project):
    def test_works_in_a_project_with_modules_of_every_name_that_we_use(self):
        self.assertEqual(self.python("-c", USE), "served\n")

    def test_leaves_the_path_and_the_projects_modules_as_they_were(self):
        program = "import sys; before = sys.path[:]; import server; assert sys.path == before"
        self.python("-c", program)
        (self.project / "helper.py").write_text("print('theirs')\n")
        self.assertEqual(self.python("-c", "import server, helper"), "theirs\n")

    def test_takes_its_own_limiter_where_the_project_has_one_of_that_name(self):
        (self.project / "ratelimit.py").write_text("raise RuntimeError('not ours')\n")
        self.assertEqual(self.python("-c", USE), "served\n")

    def test_works_from_a_folder_with_spaces_and_through_a_link(self):
        link = self.folder / "a link"
        link.symlink_to(ROOT)
        self.assertEqual(self.python("-c", USE, path=link), "served\n")
        (self.project / "server.py").symlink_to(ROOT / "server.py")
        self.assertEqual(self.python("-c", USE, path=None), "served\n")

    def test_works_under_another_name_in_a_project_with_its_own_server(self):
        (self.project / "server.py").write_text("raise RuntimeError('not ours')\n")
        program = (
            "import importlib.util as u\n"
            f"spec = u.spec_from_file_location('jwks_server', {str(ROOT / 'server.py')!r})\n"
            "server = u.module_from_spec(spec); spec.loader.exec_module(server)\n"
        )
        self.python("-c", program + USE.replace("import server\n", ""), path=None)


class TheCommands(Project):
    def test_run_isolated_and_without_the_folder_on_the_path(self):
        modes = [["-I"]] + ([["-P"]] if sys.version_info >= (3, 11) else [])
        for mode in modes:
            for command in ("server.py", "admin.py"):
                with self.subTest(mode, command=command):
                    said = self.python(*mode, str(ROOT / command), "--version", path=None)
                    self.assertRegex(said, r"^jwks-server \d+\.\d+\.\d+\n$")

    def test_run_through_a_link(self):
        for command in ("server.py", "admin.py"):
            link = self.folder / command
            link.symlink_to(ROOT / command)
            self.assertIn("jwks-server", self.python(str(link), "--version", path=None))

    def test_say_in_one_line_which_package_is_missing(self):
        program = (
            "import runpy, sys; sys.modules['argon2'] = None; sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        for command in ("server.py", "admin.py"):
            run = subprocess.run(
                [sys.executable, "-c", program, str(ROOT / command), "--version"],
                capture_output=True, text=True, timeout=60, cwd=self.project,
            )  # fmt: skip
            self.assertEqual((run.returncode, run.stderr.count("\n")), (2, 1), run.stderr)
            self.assertIn("argon2 is missing", run.stderr)

    @unittest.skipUnless(shutil.which("uv"), "uv is not here")
    def test_run_by_uv(self):
        run = subprocess.run(
            ["uv", "run", "--offline", str(ROOT / "server.py"), "--version"],
            capture_output=True, text=True, timeout=120, cwd=self.project,
        )  # fmt: skip
        if run.returncode != 0 and "offline" in run.stderr.lower():
            self.skipTest("uv has no copy of the packages")
        self.assertIn("jwks-server", run.stdout)


class OneFileAlone(Project):
    def test_verifies_tokens_and_limits_without_anything_of_ours(self):
        for name in ("jwt_minimal.py", "ratelimit.py"):
            shutil.copy(ROOT / name, self.project / name)
        program = (
            "import jwt_minimal, ratelimit\n"
            "limiter = ratelimit.Limiter(ratelimit.parse_limit('1/minute'))\n"
            "print(limiter.hit('a').allowed, limiter.hit('a').allowed)\n"
            "try: jwt_minimal.decode('x', {'keys': []})\n"
            "except jwt_minimal.InvalidToken: print('refused')"
        )
        self.assertEqual(self.python("-S", "-c", program, path=None), "True False\nrefused\n")


if __name__ == "__main__":
    unittest.main()
