"""Where the database may lie, read from a table of mounts."""

from __future__ import annotations

import unittest
from unittest import mock

from jwksd.ops import mounts, startup
from jwksd.store.database import CannotOpen
from tests.support import TemporaryFolder


def row(point: str, kind: str) -> str:
    return f"36 35 98:0 /mnt1 {point} rw,noatime master:1 - {kind} /dev/root rw,errors=continue\n"


ROOT_MOUNT = row("/", "ext4")


class APlace(TemporaryFolder):
    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder.resolve() / "k e y s.db"

    def test_that_is_a_file_mounted_alone_is_refused_before_anything_is_made(self):
        table = ROOT_MOUNT + row(str(self.path).replace(" ", r"\040"), "ext4")
        known = mock.patch.object(mounts, "table_of_this_system", lambda: table)
        with known, self.assertRaisesRegex(CannotOpen, "mount the folder"):
            startup.open_database(str(self.path))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_that_is_a_mounted_folder_is_none_of_that(self):
        table = ROOT_MOUNT + row(str(self.path.parent), "ext4")
        self.assertIsNone(mounts.lost_log(self.path, table))
        self.assertIsNone(mounts.network(self.path, table))

    def test_on_a_network_is_warned_of(self):
        for kind in ("nfs4", "cifs", "9p", "fuse.sshfs"):
            with self.subTest(kind):
                table = ROOT_MOUNT + row(str(self.path.parent), kind)
                self.assertIn(kind, mounts.network(self.path, table) or "")
                said: list[str] = []
                with mock.patch.object(mounts, "table_of_this_system", lambda table=table: table):
                    startup.warn_of_readers(str(self.path), said.append)
                self.assertEqual(len(said), 1)

    def test_above_which_another_file_system_lies_belongs_to_the_nearest(self):
        table = row("/", "nfs4") + row(str(self.path.parent), "ext4")
        self.assertIsNone(mounts.network(self.path, table))

    def test_without_a_table_is_accepted(self):
        self.assertIsNone(mounts.lost_log(self.path, ""))
        self.assertIsNone(mounts.network(self.path, ""))


if __name__ == "__main__":
    unittest.main()
