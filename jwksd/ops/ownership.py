"""Whose files these are: a stranger's database, secret or key is not served from.

In a folder where others may make files, somebody else can make ours first: a root's server would
seal its keys with a secret that the stranger knows. So a file must belong to the server's user or
to root. A folder that only its owner may write is trusted with the files of that owner: root may
then look after the database of the server's user.

It leaves out: Windows, which has other owners; and folders above the one that holds the file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

DATABASE_FILES = ("", "-wal", "-shm", "-journal")  # SQLite reads each of them that it finds


def database_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of a SQLite database, where they are; a link's log stands beside its target."""
    real = os.path.realpath(path)
    names = [os.path.abspath(path), *(real + end for end in DATABASE_FILES)]
    return [Path(name) for name in dict.fromkeys(names)]


def strangers(paths: Iterable[Path]) -> str | None:
    """Why one of these files cannot be trusted, and what to do; None if all can, or are absent."""
    if os.name != "posix":
        return None
    return next(filter(None, map(_why_not, paths)), None)


def _why_not(path: Path) -> str | None:
    try:
        entry, file, folder = os.lstat(path), os.stat(path), os.stat(path.parent)
    except OSError:  # absent, or unreadable: opening it will say so
        return None
    open_folder = bool(folder.st_mode & (stat.S_IWOTH | stat.S_IWGRP))
    trusted = {0, os.geteuid()} | (set() if open_folder else {folder.st_uid})
    for owner in (entry.st_uid, file.st_uid):
        if owner not in trusted:
            return (
                f"{path} belongs to another user (uid {owner}), who could read or replace what is "
                "in it: remove it, or chown it to the server's user if it is yours"
            )
    if open_folder and file.st_mode & stat.S_IWOTH:
        return f"{path} can be written by anybody, in a folder that others may write: chmod 600 it"
    return None
