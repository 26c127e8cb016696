"""Where the database lies: not every place keeps what SQLite writes.

- A database file that is itself a mount (`-v keys.db:/data/keys.db`): its log `-wal` lies beside
  it, in the container, and ends with the container. So do accounts that were acknowledged.
- A network file system: its locks and its shared memory are not those of one machine, which
  SQLite's write-ahead log relies on (sqlite.org/wal.html).

It leaves out: systems without /proc, where nothing is found.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = re.compile(r"nfs4?|cifs|smb3?|smbfs|9p|afs|ceph|lustre|fuse\.(sshfs|glusterfs)")


def mounted(table: str) -> dict[str, str]:
    """The file systems by mount point (proc(5), mountinfo); of several at one point the last."""
    found = {}
    for line in table.splitlines():
        fields, separator, rest = line.partition(" - ")
        if separator:
            found[unescaped(fields.split(" ")[4])] = rest.split(" ")[0]
    return found


def unescaped(field: str) -> str:
    """A path of the table: blanks and backslashes stand in it as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def table_of_this_system() -> str:
    """The mounts that this process sees; nothing on systems without /proc."""
    try:
        return MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def lost_log(path: str | os.PathLike[str], table: str) -> str | None:
    """Why the log of this file would be lost; None if it would not."""
    real = os.path.realpath(path)
    if real not in mounted(table):
        return None
    return (
        f"{real} is mounted as a single file: SQLite's log beside it would be lost with the "
        f"container; mount the folder {os.path.dirname(real)} instead"
    )


def network(path: str | os.PathLike[str], table: str) -> str | None:
    """Why the file system does not suit; None if it does."""
    points = mounted(table)
    folder = os.path.dirname(os.path.realpath(path))
    while folder not in points and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    kind = points.get(folder, "")
    if not NETWORK.fullmatch(kind):
        return None
    return (
        f"{path} lies on the network file system {kind}: two machines that write there damage the "
        "file, and a crash can lose accounts; use a disk of this machine"
    )
