"""A stranger's files are refused: a database, a secret or a key that somebody else made first."""

from __future__ import annotations

import contextlib
import io
import os
import unittest
from pathlib import Path
from unittest import mock

import admin
import server
from jwksd import httpd
from jwksd.ops import ownership, settings, startup
from tests.support import Inline, TemporaryFolder

STRANGER = 64_242  # a uid that nobody has


@unittest.skipUnless(os.name == "posix", "other owners there")
class Strangers(TemporaryFolder):
    def setUp(self):
        super().setUp()
        self.folder.chmod(0o1777)  # as /tmp

    def of_a_stranger(self, path: Path, content: bytes = b"") -> Path:
        """A file that belongs to somebody else."""
        path.write_bytes(content)
        if os.geteuid() == 0:
            os.chown(path, STRANGER, -1)
        else:
            for number in (os.geteuid() + 1,):
                patch = mock.patch("os.geteuid", lambda number=number: number)
                patch.start()
                self.addCleanup(patch.stop)
        return path

    def start(self) -> str:
        """Why the server does not start."""
        config = settings.make_settings({"db": str(self.path), "argon2": "t=1,m=8,p=1"})
        with self.assertRaises(settings.ConfigurationError) as refused:
            server.open_app(
                config,
                {},
                "http://127.0.0.1:1",
                Inline(),  # type: ignore[arg-type]
                httpd.Stats(),
                print,
            )
        return str(refused.exception)

    def test_a_database_that_a_stranger_made_first(self):
        self.of_a_stranger(self.path)
        self.assertRegex(self.start(), r"keys\.db belongs to another user \(uid \d+\).*chown")
        self.assertEqual(self.path.read_bytes(), b"")
        self.assertEqual(os.listdir(self.folder), ["keys.db"])

    def test_a_write_ahead_log_that_a_stranger_made_first(self):
        self.of_a_stranger(Path(f"{self.path}-wal"), b"x" * 100)
        self.assertIn("keys.db-wal belongs to another user", self.start())
        self.assertFalse(self.path.exists())

    def test_a_secret_that_a_stranger_made_first_seals_nothing(self):
        secret = self.of_a_stranger(Path(f"{self.path}.secret"), b"known to the stranger\n")
        self.assertIn("keys.db.secret belongs to another user", self.start())
        self.assertEqual(secret.read_bytes(), b"known to the stranger\n")

    def test_a_database_that_anybody_may_write(self):
        self.path.touch()
        self.path.chmod(0o666)
        self.assertIn("can be written by anybody", self.start())

    def test_a_key_of_tls(self):
        key = self.of_a_stranger(self.folder / "key.pem")
        config = settings.make_settings({"tls_cert": str(key), "tls_key": str(key), "port": 0})
        with self.assertRaisesRegex(settings.ConfigurationError, "belongs to another user"):
            startup.listen(config)

    def test_are_refused_by_every_command_and_named_by_the_doctor(self):
        self.of_a_stranger(self.path)
        for words, code in ((["users", "add", "bob"], 2), (["doctor"], 1)):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                self.assertEqual(admin.main(["--db", str(self.path), *words]), code)
            self.assertIn("belongs to another user", out.getvalue() + err.getvalue())


@unittest.skipUnless(os.name == "posix", "other owners there")
class Owners(TemporaryFolder):
    def test_that_are_trusted(self):
        self.path.touch()
        self.assertIsNone(ownership.strangers([self.path, self.folder / "absent"]))

    @unittest.skipUnless(hasattr(os, "geteuid") and os.geteuid() == 0, "only root can chown")
    def test_of_a_folder_that_only_they_may_write_are_trusted_by_root(self):
        self.path.touch()
        for path in (self.folder, self.path):
            os.chown(path, STRANGER, -1)
        self.assertIsNone(ownership.strangers([self.path]))
        os.chmod(self.folder, 0o777)
        self.assertIn("belongs to another user", ownership.strangers([self.path]) or "")

    @unittest.skipUnless(hasattr(os, "geteuid") and os.geteuid() == 0, "only root can chown")
    def test_of_a_link_count_as_those_of_its_target(self):
        target = self.folder / "elsewhere"
        target.touch()
        self.path.symlink_to(target)
        self.folder.chmod(0o1777)
        os.chown(self.path, STRANGER, -1, follow_symlinks=False)
        self.assertIn("keys.db belongs", ownership.strangers([self.path]) or "")


if __name__ == "__main__":
    unittest.main()
