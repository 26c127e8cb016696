"""What a start opens, and what it refuses: the socket, the database, the limiter's memory.

Rules of this file:
- The socket comes first: if the port is taken, the database of that server stays untouched.
- Nothing is written to a file that turns out not to be ours.
- A failure to count the attempts of the last minute never stops a start.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Callable

from jwksd import httpd
from jwksd.ops import mounts, ownership
from jwksd.ops.settings import DATABASE_URLS, ConfigurationError, Settings, default_issuer
from jwksd.store import accounts, keystore
from jwksd.store.database import CannotOpen, Database, Reading, Unavailable
from jwksd.store.sqlite import SQLite

ANY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104 (compared with, not listened on)


def listen(config: Settings) -> httpd.Listener:
    """The listening socket."""
    tls = (config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    stranger = ownership.strangers(map(Path, tls or ()))
    if stranger is not None:
        raise ConfigurationError(stranger)
    try:
        return httpd.Listener(config.host, config.port, tls, config.socket_mode)
    except ValueError as error:
        raise ConfigurationError(f"--tls-cert, --tls-key: {error}") from error
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"cannot listen on {config.host} port {config.port}: {reason}; "
            "choose another --host or --port"
        ) from error


def unusable_issuer(config: Settings, url: str) -> str | None:
    """Why clients on other machines cannot use our issuer; None if they can.

    `url` is where we listen.
    """
    if config.issuer is not None or config.host not in ANY_ADDRESS:
        return None
    return f"clients elsewhere cannot use the issuer {default_issuer(url)}: set --issuer"


def require_ours(connection: Reading) -> None:
    """Refuse a file of another program that we cannot go on with, before anything is written to it.

    Raises:
        CannotOpen: the sentence says what stands in it.
    """
    keystore.require_ours(connection)
    accounts.require_no_twins(connection)


def is_url(db: str) -> bool:
    """Whether `--db` names a database of PostgreSQL; else it is a file."""
    return db.startswith(DATABASE_URLS)


def open_database(db: str, *, seconds: float | None = None) -> Database:
    """The database, if it is ours: by its owner and by what stands in it.

    `seconds` bounds the wait for any one answer of PostgreSQL, where the usual bound is too short.

    Raises:
        CannotOpen: it is not, or cannot be used; the sentence says why and what to do.
    """
    database = open_postgres(db, seconds=seconds) if is_url(db) else open_file(db)
    try:
        accounts.enter_names(database)
    except Unavailable as trouble:
        database.close()
        raise CannotOpen(str(trouble)) from trouble
    except BaseException:
        database.close()
        raise
    return database


def open_postgres(url: str, *, make: bool = True, seconds: float | None = None) -> Database:
    """The database behind a URL; without `make` it must have its tables.

    Raises:
        CannotOpen: it cannot be used, or its package is not there.
    """
    try:
        from jwksd.store.postgres import PostgreSQL
    except ImportError as missing:
        raise CannotOpen(
            f"--db names a database of PostgreSQL, which needs a package ({missing}): "
            "pip install -r requirements-postgres.txt"
        ) from missing
    return PostgreSQL(url, make=make, seconds=seconds)


def open_file(path: str) -> SQLite:
    """The database in a file.

    Raises:
        CannotOpen: it is not ours, or cannot be used.
    """
    lost = mounts.lost_log(path, mounts.table_of_this_system())
    if lost is not None:
        raise CannotOpen(lost)
    require_own_files(path)
    database = SQLite(path, accept=require_ours)
    try:
        require_own_files(path)  # somebody may have made one of them just before we did
    except BaseException:
        database.close()
        raise
    return database


def require_own_files(path: str) -> None:
    """Refuse a database that belongs to somebody else.

    Raises:
        CannotOpen: it does.
    """
    stranger = ownership.strangers(ownership.database_files(path))
    if stranger is not None:
        raise CannotOpen(stranger)


def warn_of_readers(db: str, log: Callable[[str], None]) -> None:
    """Warn if others may read the file, or if it lies where it may be damaged.

    A new file is for its owner alone; the permissions of an old one are left as they are.
    """
    if is_url(db):
        return
    path = Path(db).absolute()
    far = mounts.network(path, mounts.table_of_this_system())
    if far is not None:
        log(far)
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        files = [Path(f"{path}{end}") for end in ("", "-wal", "-shm")]
        loose = [str(file) for file in files if file.exists() and file.stat().st_mode & 0o077]
        if loose:
            log(f"the database can be read by others: chmod 600 {' '.join(loose)}")
