"""The release: the same twice, and one file that is the server, admin, lab, grade and explain."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import unittest
import urllib.request

import argon2

from tests.support import ROOT, TemporaryFolder, free_port

LARGEST = 500_000  # octets of the one file


def release(folder) -> dict[str, bytes]:
    subprocess.run(
        [sys.executable, str(ROOT / "tools/release.py"), "--out", str(folder)],
        check=True, timeout=120,
    )  # fmt: skip
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class ARelease(TemporaryFolder):
    def setUp(self) -> None:
        super().setUp()
        self.files = release(self.folder / "out")
        (self.one,) = (self.folder / "out").glob("*.pyz")
        self.work = self.folder / "work"
        self.work.mkdir()

    def run_one(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(self.one), *words],
            cwd=self.work, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def test_made_again_is_the_same(self):
        self.assertEqual(release(self.folder / "again"), self.files)

    def test_has_sums_that_are_true(self):
        lines = self.files["SHA256SUMS"].decode().splitlines()
        self.assertEqual(len(lines), 2)
        for line in lines:
            digest, name = line.split("  ")
            self.assertEqual(hashlib.sha256(self.files[name]).hexdigest(), digest)

    def test_has_every_file_of_the_commit(self):
        (path,) = (self.folder / "out").glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
        listed = subprocess.run(
            ["git", "ls-tree", "-r", "--name-only", "HEAD"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        self.assertEqual(names, set(listed.stdout.split()))

    def test_is_one_small_file_without_tests(self):
        self.assertLess(len(self.files[self.one.name]), LARGEST)
        self.assertNotIn(b"tests/", self.files[self.one.name])

    def test_serves_from_one_file(self):
        server = subprocess.Popen(
            [sys.executable, str(self.one), "--port", "0", "--db", "k.db"],
            cwd=self.work, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            lines = iter(server.stderr.readline, "")
            url = next(line.split()[1] for line in lines if line.startswith("ready: "))
            for path in ("/", "/inspector.js", "/healthz", "/.well-known/jwks.json"):
                with urllib.request.urlopen(url + path) as answer:
                    body = answer.read()
            self.assertEqual(len(json.loads(body)["keys"]), 1)
        finally:
            server.terminate()
            self.assertEqual(server.wait(10), 0)
            server.stderr.close()
        listing = self.run_one("admin", "--db", "k.db", "keys", "list")
        self.assertEqual(listing.returncode, 0, listing.stderr)
        self.assertEqual(len(listing.stdout.splitlines()), 3)

    def test_grades_a_class(self):
        shutil.copytree(ROOT / "tests/live/class/small", self.work / "small")
        start = f"exec {sys.executable} submission.py {{port}} '{{}}'"
        rows = [
            f"{name},small,{start.replace('{}', fault)},{free_port()},PYTHONPATH={ROOT},app.db"
            for name, fault in (("sound", "none"), ("faulty", "any password"))
        ]
        table = "\n".join(["name,folder,start,port,env,database", *rows])
        (self.work / "class.csv").write_text(table, "utf-8")
        unpack = [sys.executable, "-m", "zipfile", "-e", str(self.one), "unpacked"]
        subprocess.run(unpack, cwd=self.work, check=True)
        rubric = "unpacked/docs/rubrics/project-3.json"
        done = self.run_one("grade", "class.csv", "--rubric", rubric, "--out", "out", "--jobs", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        with (self.work / "out/grades.csv").open(encoding="utf-8", newline="") as file:
            points = {row["name"]: float(row["points"]) for row in csv.DictReader(file)}
        self.assertEqual(points["sound"], 100, done.stdout)
        self.assertLess(points["faulty"], 100)

    def test_explains_a_token_and_tries_a_verifier(self):
        explained = self.run_one("explain", "a.b.c")
        self.assertEqual(explained.returncode, 1, explained.stderr)
        self.assertIn("REFUSED", explained.stdout)
        tried = self.run_one("lab", "run", "--", sys.executable, "-c", "raise SystemExit(1)")
        self.assertEqual(tried.returncode, 1, tried.stderr)  # it refuses the good ones, too
        self.assertTrue(tried.stdout)


@unittest.skipUnless(os.environ.get("JWKS_TEST_NETWORK"), "set JWKS_TEST_NETWORK=1: it downloads")
class Packages(TemporaryFolder):
    def test_are_installed_offline_with_their_hashes(self):
        platform = "linux-x86_64"
        command = [sys.executable, str(ROOT / "tools/release.py"), "--out", str(self.folder)]
        subprocess.run([*command, "--wheels", platform], check=True, timeout=600)
        wheels = self.folder / f"wheels-{platform}"
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        python = str(self.folder / "venv/bin/python")
        install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--require-hashes"]
        install += ["--find-links", str(wheels), "-r", str(wheels / "requirements.lock")]
        subprocess.run(install, check=True, timeout=300)
        subprocess.run([python, "-c", "import argon2, cryptography"], check=True)

    def test_are_built_for_the_processor_as_the_page_says(self):
        page = (ROOT / "docs/install.md").read_text("utf-8")
        (block,) = (it for it in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "native" in it)
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        python = str(self.folder / "venv/bin/python")
        install = [python, "-m", "pip", "install", "--quiet", "-r", str(ROOT / "requirements.txt")]
        subprocess.run(install, check=True, timeout=300)

        def library() -> bytes:
            (path,) = self.folder.glob("venv/lib/*/site-packages/_argon2_cffi_bindings/_ffi*")
            return path.read_bytes()

        of_the_wheel = library()
        subprocess.run(["bash", "-ec", block], check=True, cwd=self.folder, timeout=300)
        self.assertNotEqual(library(), of_the_wheel)
        stored = argon2.PasswordHasher().hash("password")  # by the wheel that the tests run with
        verify = f"import argon2; argon2.PasswordHasher().verify({stored!r}, 'password')"
        subprocess.run([python, "-c", verify], check=True)


if __name__ == "__main__":
    unittest.main()
