"""SQLite behind the seam: one file, read connections, one writer, the schema.

    any thread    read(sql) --> its own read connection            (WAL: never waits)
    the writer    BEGIN IMMEDIATE, a savepoint for each job, COMMIT (fsync)

Rules of this file:
- A commit is on disk (`synchronous=FULL`) before anything of it is acknowledged.
- Before it is acknowledged, the file that was written must still have its name, and so must its
  write-ahead log: no write is acknowledged into a file that nobody can find any more.
- No SQL about keys or users: those rows belong to keystore.py and accounts.py.

It leaves out: reopening. After the file was deleted or replaced, the server refuses to write until
it is started again. The content of the write-ahead log goes to the old file, once, so that SQLite
does not take it for the log of the new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Callable, TypeVar

import jwksd
from jwksd.store.database import (
    CannotOpen,
    Connection,
    Database,
    Job,
    Unavailable,
    Writer,
    WriteRows,
)
from jwksd.store.dialects import SQLITE

T = TypeVar("T")
Accept = Callable[[sqlite3.Connection], None]
File = tuple[str, os.stat_result]  # a name, and the file that it led to at the start

BUSY_SECONDS = 5.0  # how long another process may hold the write lock before we answer 503
READ_ONLY = "the database was opened for reading only"
BRIEFLY_SECONDS = 0.1  # how long the next write waits, once a process has held the lock that long
SCHEMA = "schema.sql"
SCHEMA_VERSION = 2  # PRAGMA user_version; 2 has account_names and account_claims
# UnicodeError: SQLite's message may quote damaged octets, and Python cannot decode them then.
DAMAGED = (sqlite3.Error, UnicodeError)

# The tables that other programs read, too; a file with other columns in them is not ours.
COLUMNS = {
    "keys": ("kid", "key", "exp"),
    "users": ("id", "username", "password_hash", "email", "date_registered", "last_login"),
    "auth_logs": ("id", "request_ip", "request_timestamp", "user_id"),
}


# Every version has these tables. The others can be made again, or are empty at first.
TABLES = {*COLUMNS, "auth_outcomes"}


class Writing(sqlite3.Connection):
    """The connection of the writer. Nobody else writes within its transactions."""

    sql = SQLITE

    def lock(self, table: str, numbers: Collection[int | None]) -> None:
        """Do nothing: the whole file is locked."""

    def freeze(self, tables: Sequence[str]) -> None:
        """Do nothing: the whole file is locked."""

    def last_number(self, table: str, column: str) -> int:
        """See `database.Connection`."""
        sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
        ((number,),) = self.execute(sql, (table,))
        return int(number)

    def set_last_number(self, table: str, column: str, number: int) -> None:
        """See `database.Connection`."""
        self.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, number))

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """See `database.Connection`."""
        values = ", ".join("?" * len(columns))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"  # noqa: S608
        self.executemany(sql, rows)

    def overwrite(self) -> None:
        """Overwrite in the file what this transaction deletes."""
        self.execute("PRAGMA secure_delete=ON")


class SQLite(Database):
    """One SQLite file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy_seconds: float = BUSY_SECONDS,
        accept: Accept = lambda connection: None,
    ) -> None:
        """Open or create the file (mode 0600), bring its schema up to date.

        `accept(connection)` may raise CannotOpen before anything is written.

        Raises:
            CannotOpen: it is not a database, not ours, from a newer version, or not writable.
        """
        self.path = _absolute(path)
        self.name = str(self.path)
        self._busy_seconds = self._patience = busy_seconds
        self._local = threading.local()
        self._readers: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._lock = threading.Lock()  # guards _readers and _closed
        self._closed = False
        self._log_is_left = False  # whether _leave_no_log is done; of the writer thread alone
        try:
            _create_private(self.path)
            self._connection = _prepared(self._connect(), accept)
            self._files = _files_of(self.path)
        except (OSError, *DAMAGED, CannotOpen) as error:
            raise CannotOpen(_why_not(self.path, error)) from error
        self._writer = Writer(self._commit)

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT, through this thread's own connection.

        Raises:
            Unavailable: SQLite could not read the file, or `close` was called.
        """
        if self._closed:
            raise Unavailable("the database is closed")
        try:
            return self._reader().execute(sql, parameters).fetchall()
        except DAMAGED as error:
            raise Unavailable(f"cannot read {self.path.name}: {error}") from error

    def append(self, write_rows: WriteRows, row: Any, future: Future[T], result: T) -> None:
        """See `database.Database`."""
        self._writer.append(write_rows, row, future, result)

    def expect(self) -> contextlib.AbstractContextManager[None]:
        """See `database.Database`."""
        return self._writer.expect()

    def probe(self) -> None:
        """Write a page that changes nothing, to see whether writing works (again).

        If a file was moved, this also moves what is in the write-ahead log to where it belongs.

        Raises:
            Unavailable: it does not.
        """
        self.write(_rewrite_version)

    def stamp(self) -> object:
        """A value that differs from an earlier one on this thread if the file changed in between.

        Costs a few microseconds: it is asked before the first request of a turn of the loop. It
        says nothing about a file that was deleted or replaced: see `moved`.

        Raises:
            Unavailable: SQLite could not read the file, or `close` was called.
        """
        return self.read("PRAGMA data_version")[0][0]

    def moved(self, *, log: bool = True) -> bool:
        """Whether the database or its write-ahead log is not the file of that name any more."""
        return _moved(self._files if log else self._files[:1]) is not None

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy a consistent state to the new file `target` while others read and write.

        Raises:
            CannotOpen: the target exists or cannot be written.
        """
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise CannotOpen(f"cannot write the backup {os.fspath(target)}: {error}") from error
        try:
            with contextlib.closing(sqlite3.connect(target)) as copy:
                self._reader().backup(copy)
        except sqlite3.Error as error:
            os.unlink(target)  # half a backup would be taken for one
            raise CannotOpen(f"cannot write the backup {os.fspath(target)}: {error}") from error

    def close(self) -> None:
        """Write what is queued, then close the connections. May be called twice.

        The connection of another thread that still runs goes with that thread, or when that calls
        this, too: to close it while it reads would crash the process.
        """
        own: sqlite3.Connection | None = self._local.__dict__.pop("connection", None)
        if own is not None:
            own.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._writer.close()
        if self.moved():
            self._leave_no_log()
        for thread, connection in self._readers:
            if thread is threading.current_thread() or not thread.is_alive():
                connection.close()
        self._readers.clear()
        self._connection.close()

    # -- connections

    def _connect(self) -> Writing:
        # mode=rw: a connection made after the file was deleted must not create an empty one.
        # check_same_thread: a connection is used by one thread; only close() comes from another.
        connection = sqlite3.connect(
            self.path.as_uri() + "?mode=rw",
            uri=True,
            timeout=self._busy_seconds,
            isolation_level=None,  # transactions are ours alone
            check_same_thread=False,
            factory=Writing,
        )
        connection.execute("PRAGMA foreign_keys=ON")
        connection.text_factory = _text
        return connection

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
            with self._lock:
                if self._closed:
                    connection.close()
                    raise Unavailable("the database is closed")
                self._readers.append((threading.current_thread(), connection))
            self._local.connection = connection
        return connection

    def _leave_no_log(self) -> None:
        """Move what is in the write-ahead log to the file it belongs to, wherever that is now.

        SQLite would apply a log that is left to the file that has taken the place, at its opening.
        Once only: whoever opens the new file writes to the same log, and that is not ours to move.
        """
        if not self._log_is_left:
            with contextlib.suppress(sqlite3.Error):
                (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._log_is_left = not busy

    def _require_in_place(self, files: list[File]) -> None:
        moved = _moved(files)
        if moved is not None:
            raise Unavailable(
                f"{moved} was deleted or replaced while the server was running: "
                "put the file back, or stop the server and start it again"
            )

    # -- on the writer thread

    def _commit(self, jobs: list[Job]) -> None:
        try:
            self._require_in_place(self._files)
        except Unavailable:
            self._leave_no_log()
            raise
        self._log_is_left = False
        self._begin()
        try:
            for job in jobs:
                self._run(job, alone=len(jobs) == 1)
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._require_in_place(self._files)

    def _begin(self) -> None:
        """Take the write lock.

        If another process holds it for longer than one wait, the next waits are short: else each
        batch would wait in its turn, and the last in the queue for minutes.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            self._be_patient(min(BRIEFLY_SECONDS, self._busy_seconds))
            raise
        self._be_patient(self._busy_seconds)

    def _be_patient(self, seconds: float) -> None:
        if seconds != self._patience:
            self._patience = seconds
            self._connection.execute(f"PRAGMA busy_timeout={int(seconds * 1000)}")

    def _run(self, job: Job, alone: bool) -> None:
        """Carry out a job; its failure costs no other job."""
        if not alone:
            self._connection.execute("SAVEPOINT job")
        try:
            job.run(self._connection)
        except Exception as error:
            # A full disk or an I/O error ends the whole transaction, not only this savepoint: then
            # nothing of the batch is left to commit, and every job must hear of it.
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK" if alone else "ROLLBACK TO job")
            job.error = _as_unavailable(error)
        if not alone:
            self._connection.execute("RELEASE job")


def _rewrite_version(connection: Connection) -> None:
    """Write the version that the file has: a newer server may have raised it."""
    ((version,),) = connection.execute("PRAGMA user_version")
    connection.execute(f"PRAGMA user_version={int(version)}")


class ReadOnly(Database):
    """The database for a command that only looks: nothing is made, migrated or written, not even
    by SQLite.

    Nothing is opened before the first question, and each has its own connection, so that a server
    may start or stop in between.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path` need not exist.

        Raises:
            CannotOpen: it is relative to a directory that is gone.
        """
        self.path = _absolute(path)
        self.name = str(self.path)

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT.

        Raises:
            Unavailable: SQLite could not read the file.
        """
        try:
            return self._ask(lambda connection: connection.execute(sql, parameters).fetchall())
        except DAMAGED as error:
            raise Unavailable(f"cannot read {self.path.name}: {error}") from error

    def append(self, write_rows: WriteRows, row: Any, future: Future[T], result: T) -> None:
        """Refuse: this database is not for writing."""
        future.set_exception(Unavailable(READ_ONLY))

    def expect(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: no row can come."""
        return contextlib.nullcontext()

    def stamp(self) -> object:
        """Refuse: only a connection that stays open can tell one state from the next."""
        raise Unavailable(READ_ONLY)

    def moved(self, *, log: bool = True) -> bool:
        """Never: the file is opened by its name each time."""
        return False

    def probe(self) -> None:
        """Refuse: this database is not for writing."""
        raise Unavailable(READ_ONLY)

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Refuse, before the target is made."""
        raise CannotOpen(READ_ONLY)

    def require_ours(self, accept: Accept) -> None:
        """Make the checks that `SQLite` makes before it writes.

        Raises:
            CannotOpen: it is not a database, not ours, or from a newer version.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise CannotOpen("it is not a file")
            if not os.access(self.path, os.R_OK):
                raise CannotOpen("this user may not read it")
            self._ask(lambda connection: _require_ours(connection, accept))
        except FileNotFoundError as error:
            raise CannotOpen(f"there is no database {self.path}: name it with --db") from error
        except (OSError, *DAMAGED, CannotOpen) as error:
            raise CannotOpen(_why_not(self.path, error)) from error

    def schema(self) -> tuple[int, list[str]]:
        """The version of the schema, and the tables that are missing.

        Raises:
            Unavailable: SQLite could not read the file.
        """
        names = {name for (name,) in self.read("SELECT name FROM sqlite_master")}
        wanted = re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", jwksd.resource(SCHEMA).decode())
        ((version,),) = self.read("PRAGMA user_version")
        return version, [name for name in wanted if name not in names]

    def damage(self) -> list[str]:
        """The damage that SQLite finds on any page of the file; reads all of it.

        Raises:
            Unavailable: SQLite could not read the file.
        """
        return [line for (line,) in self.read("PRAGMA quick_check") if line != "ok"]

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        if not self._in_use():
            # Any other reader makes the files -wal and -shm of a database at rest, and leaves them.
            try:
                found, failure = self._answer(question, "immutable=1"), None
            except DAMAGED as error:
                found, failure = None, error
            # A server that started meanwhile may have changed pages under an unlocked reader.
            if not self._in_use():
                if failure is not None:
                    raise failure
                return found  # type: ignore[return-value]
        return self._answer(question, "mode=ro")

    def _answer(self, question: Callable[[sqlite3.Connection], T], mode: str) -> T:
        with contextlib.closing(
            sqlite3.connect(f"{self.path.as_uri()}?{mode}", uri=True, timeout=BUSY_SECONDS)
        ) as connection:
            connection.text_factory = _text
            return question(connection)

    def _in_use(self) -> bool:
        """Whether a program has the file open, or was killed: then a reader makes no new file."""
        ends = ("-shm", "-journal")
        real = os.path.realpath(self.path)
        return any(os.path.exists(f"{real}{end}") for end in ends)

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _as_unavailable(error: Exception) -> Exception:
    """A failure of SQLite as `Unavailable`; a broken constraint stays as it is."""
    if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
        return Unavailable(str(error))
    return error


def _absolute(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).absolute()
    except OSError as error:
        raise CannotOpen(f"cannot find {path}: the current directory is gone") from error


def _text(octets: bytes) -> str:
    # What another program wrote need not be UTF-8. Python's module would refuse the whole SELECT,
    # and quote the value in the message: it may be a password's hash.
    return octets.decode("utf-8", "surrogateescape")


def _create_private(path: Path) -> None:
    """Make the file with mode 0600 before SQLite does with 0644; -wal and -shm take its mode."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return


def _files_of(path: Path) -> list[File]:
    # SQLite puts the log beside what a symbolic link leads to.
    names = [str(path), f"{os.path.realpath(path)}-wal"]
    return [(name, os.stat(name)) for name in names]


def _moved(files: list[File]) -> str | None:
    """The first name that leads to another file than at the start."""
    for name, known in files:
        try:
            if not os.path.samestat(os.stat(name), known):
                return name
        except OSError:
            return name
    return None


def _prepared(connection: Writing, accept: Accept) -> Writing:
    """The connection, ready to write; closed if the file cannot be used."""
    try:
        _prepare(connection, accept)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, accept: Accept) -> None:
    """WAL, durability, schema. Nothing is written to a file that turns out not to be ours."""
    version = _require_ours(connection, accept)
    if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        raise CannotOpen("its file system cannot hold a write-ahead log; use a local disk")
    connection.execute("PRAGMA synchronous=FULL")  # an fsync a commit: acknowledged means on disk
    # KiB, of the writer alone: among a million accounts each login has a page of its own, and with
    # SQLite's 2 MiB the pages of a few hundred users would be read again each time.
    connection.execute("PRAGMA cache_size=-16000")
    if version < SCHEMA_VERSION:
        _migrate(connection)
    # Only the small table without which nothing works: a check of everything would make the start
    # as slow as the log is long. `admin.py doctor` reads the whole file.
    damage = connection.execute("PRAGMA quick_check(keys)").fetchone()[0]
    if damage != "ok":
        raise CannotOpen(f"the table keys is damaged ({damage}); restore a backup")


def _require_ours(connection: sqlite3.Connection, accept: Accept) -> int:
    """The version of its schema, unless the file is not ours or from a newer program."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise CannotOpen(f"its schema has version {version}, newer than this program knows")
    _require_our_columns(connection)
    if version:
        _require_our_tables(connection)
    accept(connection)
    return version


def _require_our_tables(connection: sqlite3.Connection) -> None:
    """Refuse a file of ours that lacks a table: a new, empty one would hide the loss."""
    found = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    lost = sorted(TABLES - found)
    if lost:
        raise CannotOpen(f"its table {lost[0]} is missing; restore a backup")


def _require_our_columns(connection: sqlite3.Connection) -> None:
    for table, expected in COLUMNS.items():
        found = tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
        if found and found != expected:
            raise CannotOpen(
                f"its table {table} has the columns {', '.join(found)}; "
                f"{', '.join(expected)} are needed: choose another file with --db"
            )


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Another process may just have done it: every statement may be run again.
        for statement in _statements(jwksd.resource(SCHEMA).decode()):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """The single statements of a script: executescript() would commit."""
    found, statement = [], ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


def _why_not(path: Path, error: Exception) -> str:
    if not path.parent.is_dir():
        return f"cannot open the database {path}: its directory does not exist; make it first"
    reason = str(error) or type(error).__name__
    # Python 3.9 drops a message that it cannot decode, later ones raise a UnicodeError for it.
    if isinstance(error, UnicodeError) or (isinstance(error, sqlite3.Error) and not str(error)):
        reason = "its schema is damaged; restore a backup"
    return f"cannot open the database {path}: {reason}; name another file with --db"
