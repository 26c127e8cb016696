"""admin.py as a process: its output is closed, or goes to a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest

import jwt_minimal
from tests.support import ROOT, TemporaryFolder
from tests.test_admin import ENVIRON, KeysTest, LogTest


class TheLog(LogTest):
    shares_database = True

    def test_ends_quietly_when_its_reader_has_read_enough(self):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as output:
            process = subprocess.run(
                [sys.executable, "admin.py", "--db", str(self.path), "log"],
                cwd=ROOT, stdout=output, stderr=subprocess.PIPE, timeout=30,
            )  # fmt: skip
        self.assertEqual((process.returncode, process.stderr), (0, b""))


class ALostAnswer(KeysTest):
    shares_database = True

    def lost(self, target, *words):
        """Exit code and standard error of the real command, whose output cannot be written."""
        with open(target, "w") as output:
            process = subprocess.run(
                [sys.executable, str(ROOT / "admin.py"), "--db", str(self.path), *words],
                cwd=self.folder, stdout=output, stderr=subprocess.PIPE, timeout=30, text=True,
                env={**os.environ, **ENVIRON},
            )  # fmt: skip
        self.assertEqual(process.stderr.count("could not be written"), 1, process.stderr)
        return process.returncode, process.stderr

    @unittest.skipUnless(os.path.exists("/dev/full"), "a disk that is always full")
    def test_on_a_full_disk_says_what_was_done_and_how_to_go_on(self):
        for words, advice in (
            (("users", "add", "carl"), "users reset gives it another"),
            (("users", "reset", "carl"), "run the command again"),
            (("users", "list"), "run the command again"),
            (("keys", "rotate"), "keys list names it"),
        ):
            with self.subTest(words=words):
                code, err = self.lost("/dev/full", *words)
                self.assertEqual(code, 1)
                self.assertIn(advice, err)
        self.assertEqual(self.admin("users", "reset", "carl")[0], 0)
        self.assertEqual(self.states(), ["expired", "signing"])

    def test_that_nobody_reads_is_an_error_where_it_cannot_be_asked_again(self):
        reader, writer = os.pipe()
        os.close(reader)
        code, err = self.lost(writer, "users", "add", "carl")
        self.assertEqual(code, 1)
        self.assertIn("users reset", err)


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class ExportedKeys(KeysTest):
    shares_database = True

    def openssl(self, *words: str) -> str:
        return subprocess.run(
            ["openssl", *words], cwd=self.folder, capture_output=True, text=True, check=True
        ).stdout

    def test_as_pem_verify_a_token_with_openssl(self):
        app = self.open_server()
        self.admin("keys", "rotate")
        token = jwt_minimal.encode({"sub": "alice"}, app.keys.signing_key().private_key, "a kid")
        signed, _, signature = token.rpartition(".")
        (self.folder / "keys.pem").write_text(self.admin("keys", "export", "--pem")[1])
        (self.folder / "signed").write_text(signed)
        (self.folder / "signature").write_bytes(jwt_minimal.b64url_decode(signature))
        # The file has two keys, each behind a comment; openssl takes the first, which signs.
        self.assertIn(
            "2048 bit", self.openssl("pkey", "-pubin", "-in", "keys.pem", "-noout", "-text")
        )
        words = ("-verify", "keys.pem", "-signature", "signature", "signed")
        self.assertEqual(self.openssl("dgst", "-sha256", *words), "Verified OK\n")


class InALocaleThatLacksTheCharacters(TemporaryFolder):
    def test_a_name_is_said_to_be_unreadable_and_the_database_is_left_alone(self):
        environ = {**os.environ, "LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        for command in ("add", "reset"):
            words = ["--db", str(self.folder / "k.db"), "users", command, "j\u00fcrgen"]
            run = subprocess.run(
                [sys.executable, str(ROOT / "admin.py"), *map(str.encode, words)],
                env=environ, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            self.assertEqual(run.returncode, 1)
            self.assertIn("PYTHONUTF8=1", run.stderr)
        self.assertEqual(list(self.folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
