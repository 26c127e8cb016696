"""Each way of docs/embedding.md onto the path of a project leads to the server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import unittest

from tests.support import ROOT, TemporaryFolder

PAGE = (ROOT / "docs/embedding.md").read_text("utf-8")
START = "it = server.running(); print(it.url); it.stop()"


def files() -> dict[str, str]:
    """The snippets that are files of a project, by name."""
    return dict(re.findall(r"<!-- file (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


def shell(word: str) -> str:
    """The shell snippet with a word in it."""
    (found,) = (code for code in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if word in code)
    return found


class AProject(TemporaryFolder):
    """A project beside the server, with modules of the names that we use inside."""

    def setUp(self) -> None:
        super().setUp()
        os.symlink(ROOT, self.folder / "jwks-server")
        for name in ("settings", "database", "accounts", "answers", "httpd", "store", "process"):
            self.write(f"{name}.py", "raise AssertionError('this is a module of the project')\n")

    def write(self, name: str, content: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, "utf-8")

    def run_python(self, *arguments: str, **environ: str) -> None:
        self.check([sys.executable, *arguments], environ)

    def check(self, command: list[str], environ: dict[str, str]) -> None:
        """Run a command in the project; it must print the URL of a server that was started."""
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        run = subprocess.run(
            command, cwd=self.folder, env={**clean, **environ},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.assertIn("http://127.0.0.1:", run.stdout, run.stderr)

    def test_finds_it_by_pythonpath(self):
        variable, path = shell("PYTHONPATH").split()[0].split("=")
        self.run_python("-c", "import server; " + START, **{variable: path})

    def test_finds_it_by_its_tests_package(self):
        self.write("tests/__init__.py", files()["tests/__init__.py"])
        self.run_python("-c", "import tests; " + "import server; " + START)

    def test_finds_it_by_a_pth_file(self):
        folder = self.folder / "site packages"
        folder.mkdir()
        target = re.search(r'"\$\(python.*\)/', shell(".pth"))[0]
        script = shell(".pth").replace(target, f'"{folder}/')
        ask = f"import site; site.addsitedir({str(folder)!r}); " + "import server; " + START
        self.check(["sh", "-c", f"{script}\nexec '{sys.executable}' -c \"{ask}\""], {})

    def test_with_a_server_of_its_own_loads_ours_by_its_path(self):
        self.write("server.py", "raise AssertionError('this is the server of the project')\n")
        self.write("issuer.py", files()["issuer.py"])
        self.run_python("-c", "from issuer import jwks_server as server; " + START)


if __name__ == "__main__":
    unittest.main()
