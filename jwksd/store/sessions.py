"""Sessions with PostgreSQL: every wait has a bound, and a COMMIT is sure or a failure.

    places(url)      the hosts of a URL, one by one
    Link             a connection of psycopg's that gives up after `seconds`
    Session          a link with the settings of a session: the writer's connection

Rules of this file:
- A statement that had no answer in time ends its connection, and is cancelled from another one.
- A COMMIT that ends with a warning was not confirmed by the standby; one without an answer may have
  been carried out. Both are `Unconfirmed`.
- A password in a URL is quoted nowhere.

It leaves out: which session to use, and when again (postgres.py).
"""

from __future__ import annotations

import contextlib
import functools
import re
import select
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

import psycopg
from psycopg import conninfo
from psycopg.types.numeric import Int8Dumper

from jwksd.store.database import CannotOpen
from jwksd.store.dialects import POSTGRESQL

WAIT_SECONDS = 3.0  # for any one answer
BOUND = re.compile("0*[1-9][0-9]*")  # a connect_timeout with a bound: 0 would be for ever
UNBOUND = {"connect_timeout": max(2, round(WAIT_SECONDS))}  # libpq takes 2 at the least
WHERE = ("host", "hostaddr", "port")  # the parameters that say where the database is
UNREADABLE = (
    "--db is no URL of PostgreSQL: postgresql://USER@HOST:PORT/NAME is one; in a user or a "
    "password write @ as %40, / as %2F, ? as %3F, : as %3A and % as %25"
)
BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
TIMELINE = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"


class TimedOut(psycopg.OperationalError):
    """There was no answer in time."""


class Unconfirmed(Exception):
    """The COMMIT was sent, and whether it is durable is not known."""


class Link(psycopg.Connection[Any]):
    """A connection that waits for no answer longer than `seconds`."""

    seconds = WAIT_SECONDS
    parameters: dict[str, Any] | None = None  # for a second connection, which cancels this one

    def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
        """Carry out the generator of a statement; psycopg would wait for ever.

        Raises:
            TimedOut: the connection is closed then.
        """
        try:
            return drive(gen, self.pgconn.socket, self.seconds)
        except TimedOut:
            process = self.pgconn.backend_pid
            self.close()
            if self.parameters is not None:
                threading.Thread(
                    target=cancel, args=(self.parameters, process), name="cancel", daemon=True
                ).start()
            raise


def drive(gen: Any, fileno: int, seconds: float) -> Any:
    """The result of a generator of psycopg; it yields what it waits for, and gets what is ready."""
    end = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            ready = wait_for(fileno, wanted, end - time.monotonic())
            if not ready:
                raise TimedOut(f"no answer within {seconds:g} s")
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value


def wait_for(fileno: int, wanted: int, seconds: float) -> int:
    """Wait until the socket can be read (1) or written (2); 0 if neither came in time."""
    seconds = max(0.0, seconds)
    if not hasattr(select, "poll"):  # Windows
        files = [fileno]
        found = select.select(files if wanted & 1 else [], files if wanted & 2 else [], [], seconds)
        return bool(found[0]) | bool(found[1]) << 1
    poller = select.poll()
    poller.register(
        fileno, (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0)
    )
    events = sum(event for _, event in poller.poll(seconds * 1000))
    # An error or an end is something to read, or nothing can be written any more.
    return wanted & (bool(events & ~select.POLLOUT) | bool(events & ~select.POLLIN) << 1)


def cancel(parameters: dict[str, Any], process: int) -> None:
    """Ask the database to end the statement: else its locks and its connection would stay for long.

    A statement on another connection asks: libpq's own request may wait for ever.
    """
    with contextlib.suppress(psycopg.Error), Link.connect(**parameters, autocommit=True) as link:
        link.execute("SELECT pg_cancel_backend(%s::integer)", (process,))


class Session:
    """A connection to the primary, which the jobs of the writer write with."""

    sql = POSTGRESQL

    def __init__(self, link: Link) -> None:
        """Set what every session needs, whatever the role has.

        Raises:
            psycopg.Error: it cannot be used.
        """
        self._link = link
        self._warning: str | None = None
        link.adapters.register_dumper(int, Int8Dumper)  # one type of integer: one plan
        link.add_notice_handler(self._note)
        bound = f"{int(link.seconds * 1000)}ms"
        link.execute(
            # Only a warning tells that a COMMIT was not confirmed, so warnings are asked for.
            "SELECT set_config('client_min_messages', 'warning', false), "
            "set_config('statement_timeout', %s, false), "
            "set_config('lock_timeout', %s, false), "
            # A server that stops within a transaction holds its locks no longer than this.
            "set_config('idle_in_transaction_session_timeout', %s, false), "
            "set_config('synchronous_commit', CASE "
            "WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' "
            "ELSE current_setting('synchronous_commit') END, false)",
            (bound, bound, bound),
        )
        self.timeline: int = link.execute(TIMELINE).fetchall()[0][0]

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warning = notice.message_primary or "a warning"

    @property
    def closed(self) -> bool:
        """Whether the connection is of no more use."""
        return self._link.closed or self._link.broken

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        """Carry out one statement."""
        if not parameters:
            return self._link.execute(sql)
        return self._link.execute(rebound(sql), parameters)

    def script(self, text: str) -> None:
        """Carry out several statements without parameters."""
        self._link.execute(text)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> psycopg.Cursor[Any]:
        """Carry out one statement for each of several sets of parameters."""
        cursor = self._link.cursor()
        cursor.executemany(rebound(sql), parameters)
        return cursor

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """By COPY: a move takes less than half as long as with statements."""
        sql = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with self._link.cursor() as cursor, cursor.copy(sql) as copy:
            for row in rows:
                copy.write_row(row)

    def lock(self, table: str, numbers: Collection[int | None]) -> None:
        """Lock in the order of the numbers: two servers on the same rows do not deadlock."""
        wanted = [number for number in numbers if number is not None]
        if wanted:
            self.execute(
                f"SELECT 1 FROM {table} WHERE id = ANY(?) ORDER BY id FOR UPDATE",  # noqa: S608
                (wanted,),
            )

    def freeze(self, tables: Sequence[str]) -> None:
        """Readers go on, writers wait."""
        self.execute(f"LOCK TABLE {', '.join(tables)} IN SHARE MODE")

    def last_number(self, table: str, column: str) -> int:
        """See `database.Connection`."""
        sql = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(?, ?)), 0)"
        ((number,),) = self.execute(sql, (table, column))
        return int(number)

    def set_last_number(self, table: str, column: str, number: int) -> None:
        """See `database.Connection`."""
        if number:
            sql = "SELECT setval(pg_get_serial_sequence(?, ?), ?)"
            self.execute(sql, (table, column, number))

    def overwrite(self) -> None:
        """Do nothing: PostgreSQL keeps old versions of a row until it is vacuumed."""

    def begin(self) -> int:
        """Begin a transaction: its number, as `Dialect.writer` gives it."""
        # Before any row has its number: `horizon` relies on this order.
        # Read committed, whatever the default: after a wait for a lock the new state is seen.
        begun = self._link.execute(f"{BEGIN}; SELECT pg_current_xact_id()::text::bigint")
        begun.nextset()
        ((number,),) = begun
        return int(number) & 0xFFFFFFFF

    def commit(self) -> None:
        """Commit, and raise unless it is confirmed.

        Raises:
            Unconfirmed: it is not known to be durable on the standby, or at all.
        """
        self._warning = None
        try:
            status = self._link.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            raise Unconfirmed(f"the commit was not confirmed: {said(error)}") from error
        if self._warning is not None or status != "COMMIT":
            raise Unconfirmed(f"the commit was not confirmed: {self._warning or status}")

    def roll_back(self) -> None:
        """Undo; a session that cannot is closed."""
        try:
            self._link.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def keys_state(self) -> str:
        """A text that changes with the keys."""
        ((state,),) = self._link.execute("SELECT keys_state()")
        return str(state)

    def listen(self, seconds: float) -> None:
        """Wait until something may have changed, `seconds` at the most."""
        if wait_for(self._link.pgconn.socket, 1, seconds):
            self._link.pgconn.consume_input()
            while self._link.pgconn.notifies():
                pass


@functools.lru_cache(maxsize=1024)
def rebound(sql: str) -> str:
    """The statement with `?` for its parameters as psycopg reads it. No `?` stands in a literal."""
    return sql.replace("%", "%%").replace("?", "%s")


def said(error: BaseException) -> str:
    """The first line of what PostgreSQL or its client library says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Place(NamedTuple):
    """One of the hosts of a URL."""

    name: str
    parameters: dict[str, Any]


def places(url: str) -> list[Place]:
    """Each host of the URL, with the parameters to reach it.

    Raises:
        CannotOpen: it cannot be read. What it holds is not quoted: a password may be part of it.
    """
    known = read_url(url)
    columns = [known.pop(name, "").split(",") for name in WHERE]
    count = max(map(len, columns))
    if {len(column) for column in columns} - {1, count}:
        raise CannotOpen("--db names hosts and ports in different number")
    if not all(port.isdecimal() for port in filter(None, columns[-1])):
        raise CannotOpen(UNREADABLE)
    columns = [column * count if len(column) == 1 else column for column in columns]
    fixed = {
        "application_name": "jwks-server",
        **known,
        **({} if BOUND.fullmatch(known.get("connect_timeout", "")) else UNBOUND),
        "client_encoding": "UTF8",
        "target_session_attrs": "read-write",
    }
    return [
        Place(named(*values), {**fixed, **{k: v for k, v in zip(WHERE, values) if v}})
        for values in zip(*columns)
    ]


def read_url(url: str) -> dict[str, str]:
    """The parameters of the URL; without a host in it, those of a service file or the environment.

    Raises:
        CannotOpen: it cannot be read.
    """
    # libpq reads the rest of a password with a bare @ or / in it as the name of a host or database.
    before = url.partition("?")[0].partition("://")[2].rpartition("@")[0]
    if "@" in before or "/" in before:
        raise CannotOpen(UNREADABLE)
    try:
        known = {k: str(v) for k, v in conninfo.conninfo_to_dict(url).items() if v is not None}
        if known.keys() & {"host", "hostaddr"}:
            return known
        started = psycopg.pq.PGconn.connect_start(conninfo.make_conninfo(**known).encode())
    except psycopg.Error:
        raise CannotOpen(UNREADABLE) from None
    found = {option.keyword.decode(): option.val for option in started.info if option.val}
    started.finish()
    return {**{k: found[k].decode() for k in (*WHERE, "user", "dbname") if k in found}, **known}


def named(host: str, address: str, port: str) -> str:
    """A host as it stands in a URL."""
    host = host or address
    host = f"[{host}]" if ":" in host else quote(host, safe="")
    return f"{host}:{port}" if port else host


def shown(url: str) -> str:
    """The URL with nothing but the place of the database: no password, no parameters.

    Raises:
        CannotOpen: it cannot be read.
    """
    found = places(url)
    known = found[0].parameters
    user = f"{quote(known['user'], safe='')}@" if known.get("user") else ""
    hosts = ",".join(place.name for place in found)
    return f"postgresql://{user}{hosts}/{quote(known.get('dbname', ''), safe='')}"
