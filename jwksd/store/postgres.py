"""PostgreSQL behind the seam: any number of servers on one database, which others replicate.

    any thread    read(sql) --> a session from the pool, one statement
    any thread    write(job) -> a transaction of its own, behind the lock of all such jobs
    the writer    rows of many requests, one commit, confirmed by the standby if there is one
    the watcher   LISTEN: another server has changed the keys; asked each half second as well
    the lookout   with several hosts: has one of them been promoted?

Rules of this file:
- Every wait has a bound. A session that did not answer in time is cancelled and given up.
- Acknowledged means confirmed: a COMMIT that ends with a warning (a standby was not waited for) or
  without an answer is a failure, although it may have been carried out.
- No session on a lower timeline than one that was seen: an old primary that was frozen and thawed
  still calls itself writable. Sessions from before a promotion are dropped.
- A batch may be run again on a fresh session as long as no COMMIT was sent.
- No SQL about keys, users or the log: where their form differs, postgres.sql has a function.

It leaves out: making a primary of a standby, and fencing the old one. Operators have tools for
that (docs/scaling.md).
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Callable, NamedTuple, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.types.numeric import Int8Dumper

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
from jwksd.store.dialects import POSTGRESQL

T = TypeVar("T")

SCHEMES = ("postgresql://", "postgres://")
WAIT_SECONDS = 3.0  # for any one answer
LOOK_SECONDS = 0.5  # between two looks at the keys, should a notification be lost
DEAF_SECONDS = WAIT_SECONDS + 2 * LOOK_SECONDS  # without a look that worked: `stamp` says so
RETRY_SECONDS = 0.25  # between two attempts to reach a database that is gone
CLOSING_SECONDS = 1.0
SCHEMA = "postgres.sql"
SCHEMA_VERSION = 1
OLDEST = 130_000  # pg_current_xact_id() came with 13
OWN_WRITES = 4_096  # transactions remembered as ours: some seconds of them
LOCK = 0x6A776B73  # "jwks": the advisory lock of `write`
TABLES = ("keys", "users", "auth_logs", "account_names", "account_claims", "key_policy")
TIMELINE = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint"
# What could not be done on this session, and can on another: it is gone, or no longer writable.
TRANSIENT = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)


class TimedOut(psycopg.OperationalError):
    """There was no answer in time."""


class Unconfirmed(Exception):
    """The COMMIT was sent, and whether it is durable is not known."""


class Link(psycopg.Connection[Any]):
    """A connection that waits for no answer longer than `seconds`."""

    seconds = WAIT_SECONDS
    parameters: dict[str, Any] | None = None  # what to make another with, to cancel this one

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
    """What the generator returns; it yields what it waits for, and is sent what is ready."""
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
    """Which of reading (1) and writing (2) can be done now; 0 if neither could in time."""
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
    """Ask the database to end what it is at: else it would hold its locks, or a place, for long.

    By a statement, because libpq's own request may wait for ever.
    """
    with contextlib.suppress(psycopg.Error), Link.connect(**parameters, autocommit=True) as link:
        link.execute("SELECT pg_cancel_backend(%s::integer)", (process,))


class Session:
    """A connection to the primary, and what a job has to write with."""

    sql = POSTGRESQL

    def __init__(self, link: Link) -> None:
        """Settle what a session needs.

        Raises:
            psycopg.Error: it cannot be used.
        """
        self._link = link
        self._warning: str | None = None
        link.adapters.register_dumper(int, Int8Dumper)  # one type of integer: one plan
        link.add_notice_handler(self._note)
        bound = f"{int(link.seconds * 1000)}ms"
        link.execute(
            "SELECT set_config('statement_timeout', %s, false), "
            "set_config('lock_timeout', %s, false), set_config('synchronous_commit', CASE "
            "WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on' "
            "ELSE current_setting('synchronous_commit') END, false)",
            (bound, bound),
        )
        self.timeline: int = link.execute(TIMELINE).fetchall()[0][0]

    def _note(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warning = notice.message_primary or "a warning"

    @property
    def closed(self) -> bool:
        """Whether it is of no more use."""
        return self._link.closed or self._link.broken

    def close(self) -> None:
        """End it."""
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

    def lock(self, table: str, numbers: Collection[int | None]) -> None:
        """In the order of the numbers: two servers that lock the same rows wait, and no more."""
        wanted = [number for number in numbers if number is not None]
        if wanted:
            self.execute(
                f"SELECT 1 FROM {table} WHERE id = ANY(?) ORDER BY id FOR UPDATE",  # noqa: S608
                (wanted,),
            )

    def overwrite(self) -> None:
        """Nothing: PostgreSQL keeps old versions of a row until it is vacuumed."""

    def begin(self) -> int:
        """Begin a transaction: its number, as `Dialect.writer` gives it."""
        # Before any row has its number: what `horizon` says rests on this order.
        begun = self._link.execute("BEGIN; SELECT pg_current_xact_id()::text::bigint")
        begun.nextset()
        ((number,),) = begun
        return int(number) & 0xFFFFFFFF

    def commit(self) -> None:
        """Commit, and be sure of it.

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
    """Each host of the URL, with all that is needed to reach it.

    Raises:
        CannotOpen: it cannot be read. What it holds is not quoted: a password may be part of it.
    """
    try:
        known = conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        raise CannotOpen(
            "--db is no URL of PostgreSQL: postgresql://USER@HOST:PORT/NAME is one"
        ) from None
    hosts = str(known.pop("host", "") or "").split(",")
    ports = str(known.pop("port", "") or "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise CannotOpen("--db names hosts and ports in different number")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    fixed = {
        "connect_timeout": max(2, round(WAIT_SECONDS)),
        "application_name": "jwks-server",
        **known,
        "client_encoding": "UTF8",
        "target_session_attrs": "read-write",
    }
    return [
        Place(
            ":".join(filter(None, (host, port))),
            {**fixed, **({"host": host} if host else {}), **({"port": port} if port else {})},
        )
        for host, port in zip(hosts, ports)
    ]


def shown(url: str) -> str:
    """The URL without a password, or whatever else it holds beside where the database is.

    Raises:
        CannotOpen: it cannot be read.
    """
    found = places(url)
    known = found[0].parameters
    user = f"{known['user']}@" if known.get("user") else ""
    hosts = ",".join(place.name for place in found)
    return f"postgresql://{user}{hosts}/{known.get('dbname', '')}"


class PostgreSQL(Database):
    """One database of PostgreSQL, shared with other servers."""

    shared = True
    sql = POSTGRESQL

    def __init__(self, url: str, *, seconds: float = WAIT_SECONDS) -> None:
        """Reach the primary, and make the tables if there are none.

        `seconds` bounds the wait for any one answer.

        Raises:
            CannotOpen: it cannot be reached or used, or holds tables that are not ours.
        """
        self.name = shown(url)
        self._places = places(url)
        self._seconds = seconds
        self._idle: deque[Session] = deque()
        self._lock = threading.Lock()  # guards _timeline and _failure
        self._timeline = 0  # the highest that any session was on
        self._failure: tuple[float, str] = (0.0, "")  # until when nobody tries again, and why
        self._closed = threading.Event()
        self._own: deque[int] = deque(maxlen=OWN_WRITES)
        self._looked: float | None = None  # when a look at the keys last worked; None: no watch
        self._deaf = "no answer"  # why the last look did not work
        self._threads: list[threading.Thread] = []
        try:
            with self._session() as session:
                prepare(session)
        except (psycopg.Error, Unavailable, Unconfirmed, CannotOpen) as error:
            raise CannotOpen(f"cannot open the database {self.name}: {said(error)}") from error
        self._writer = Writer(self._commit)

    # -- the seam

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT.

        Raises:
            Unavailable: the database could not be read in time, or `close` was called.
        """
        return self._twice(lambda session: session.execute(sql, parameters).fetchall())

    def write(self, job: Callable[[Connection], T]) -> T:
        """See `database.Database`: one such job at a time, among all servers."""

        def locked(session: Session) -> T:
            session.execute("SELECT pg_advisory_xact_lock(?)", (LOCK,))
            return job(session)

        return self._transact(locked)

    def append(self, write_rows: WriteRows, row: Any, future: Future[T], result: T) -> None:
        """See `database.Database`."""
        self._writer.append(write_rows, row, future, result)

    def expect(self) -> contextlib.AbstractContextManager[None]:
        """See `database.Database`."""
        return self._writer.expect()

    def stamp(self) -> object:
        """None: `watch` tells of changes.

        Raises:
            Unavailable: it could not for seconds, so that a revoked key may still be served.
        """
        if self._looked is not None and time.monotonic() - self._looked > DEAF_SECONDS:
            raise Unavailable(f"the keys could not be looked at: {self._deaf}")
        return None

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` within milliseconds of a change of the keys, by whatever server."""
        self._looked = time.monotonic()
        self._start("watcher", lambda: self._watch(changed))
        if len(self._places) > 1:
            self._start("lookout", self._look_out)

    def horizon(self) -> tuple[int, int]:
        """See `database.Database`."""
        sql = (
            "SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint "
            "FROM pg_current_snapshot() AS now"
        )
        ((oldest, following),) = self.read(sql)
        return oldest, following

    def own_writes(self) -> Collection[int]:
        """See `database.Database`."""
        return frozenset(self._own.copy())

    def moved(self) -> bool:
        """Never: a session ends with its database."""
        return False

    def probe(self) -> None:
        """Write a row that changes nothing, confirmed as all others are.

        Raises:
            Unavailable: it is not.
        """
        self._transact(lambda session: session.execute("UPDATE schema_version SET version=version"))

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Refuse: PostgreSQL has its own tools.

        Raises:
            CannotOpen: always.
        """
        raise CannotOpen("a database of PostgreSQL is backed up by pg_dump or pg_basebackup")

    def close(self) -> None:
        """Write what is queued, then end the sessions. May be called twice."""
        if self._closed.is_set():
            return
        self._writer.close()
        self._closed.set()
        for thread in self._threads:
            thread.join(CLOSING_SECONDS)
        while self._idle:
            self._idle.pop().close()

    # -- sessions

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        """A session to work with; it goes back to the pool unless it is of no more use."""
        session = self._take()
        try:
            yield session
        except Undone:  # it was rolled back, and is as good as before
            self._give_back(session)
            raise
        except BaseException:
            session.close()
            raise
        self._give_back(session)

    def _give_back(self, session: Session) -> None:
        if session.closed or session.timeline < self._timeline or self._closed.is_set():
            session.close()
        else:
            self._idle.append(session)

    def _take(self) -> Session:
        if self._closed.is_set():
            raise Unavailable("the database is closed")
        while True:
            try:
                session = self._idle.pop()
            except IndexError:
                return self._connect()
            if session.timeline >= self._timeline and not session.closed:
                return session
            session.close()

    def _connect(self) -> Session:
        """A new session, on the first host that is a primary and not an old one."""
        until, why = self._failure
        if time.monotonic() < until:  # the threads of the workers would all wait, one by one
            raise Unavailable(why)
        reasons = []
        for place in self._places:
            try:
                return self._reach(place)
            except psycopg.Error as error:
                reasons.append(f"{place.name}: {said(error)}" if place.name else said(error))
        why = f"cannot reach {self.name}: {'; '.join(reasons)}"
        self._failure = time.monotonic() + RETRY_SECONDS, why
        raise Unavailable(why)

    def _reach(self, place: Place) -> Session:
        link = Link.connect(**place.parameters, autocommit=True)
        link.seconds, link.parameters = self._seconds, place.parameters
        try:
            session = Session(link)
            with self._lock:
                if session.timeline < self._timeline:
                    raise psycopg.OperationalError(
                        f"it is an old primary, on timeline {session.timeline} where "
                        f"{self._timeline} was seen"
                    )
                self._timeline = session.timeline
        except BaseException:
            link.close()
            raise
        return session

    def _twice(self, work: Callable[[Session], T]) -> T:
        """Do it, and once more on a fresh session if the first one turns out to be gone."""
        for last in (False, True):
            try:
                with self._session() as session:
                    return work(session)
            except TRANSIENT as error:
                if last or isinstance(error, TimedOut):
                    raise Unavailable(f"cannot use {self.name}: {said(error)}") from error
                self._drop_idle()
            except psycopg.Error as error:
                raise self._in_our_words(error) from error
        raise AssertionError("unreachable")

    def _drop_idle(self) -> None:
        # What ended one session has most likely ended all: the next is made anew.
        for _ in range(len(self._idle)):
            with contextlib.suppress(IndexError):
                self._idle.pop().close()

    # -- transactions

    def _transact(self, work: Callable[[Session], T]) -> T:
        """Run `work(session)` in a transaction; its result once that is durable."""

        def attempt(session: Session) -> T:
            number = session.begin()
            self._own.append(number)
            try:
                result = work(session)
            except psycopg.OperationalError:
                raise
            except BaseException as error:
                session.roll_back()
                raise Undone(error) from error
            session.commit()
            return result

        try:
            return self._twice(attempt)
        except Undone as undone:
            raise self._in_our_words(undone.reason) from undone.reason
        except Unconfirmed as error:
            raise Unavailable(str(error)) from error

    def _in_our_words(self, reason: BaseException) -> BaseException:
        """PostgreSQL's own trouble as `Unavailable`; a broken constraint stays what it is."""
        if isinstance(reason, psycopg.Error) and not isinstance(reason, psycopg.IntegrityError):
            return Unavailable(f"cannot use {self.name}: {said(reason)}")
        return reason

    def _commit(self, jobs: list[Job]) -> None:
        """On the writer thread: all jobs in one transaction, each in one of its own if one fails.

        A broken constraint or a defect ends the whole transaction in PostgreSQL. A savepoint for
        each job would cost two more round trips, for what almost never happens.
        """

        def run(session: Session) -> None:
            for job in jobs:
                job.run(session)

        try:
            self._transact(run)
        except Unavailable:
            raise
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
                return
            for job in jobs:
                try:
                    self._transact(job.run)
                except Exception as reason:
                    job.error = reason

    # -- threads of its own

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self, changed: Callable[[], None]) -> None:
        while not self._closed.is_set():
            try:
                self._watch_session(changed)
            except Exception as error:  # this thread outlives whatever happens; `stamp` tells
                self._deaf = said(error)
                self._closed.wait(RETRY_SECONDS)

    def _watch_session(self, changed: Callable[[], None]) -> None:
        known: str | None = None
        with contextlib.closing(self._connect()) as session:
            session.execute("LISTEN jwks_keys")
            while not self._closed.is_set() and session.timeline >= self._timeline:
                state = session.keys_state()
                if state != known:
                    changed()
                    known = state
                self._looked = time.monotonic()
                session.listen(LOOK_SECONDS)

    def _look_out(self) -> None:
        """Learn of a promotion although the old primary still answers."""
        while not self._closed.wait(2 * LOOK_SECONDS):
            for place in self._places:
                with contextlib.suppress(psycopg.Error):
                    self._reach(place).close()


class Undone(Exception):
    """A job raised `reason`, and its transaction was rolled back."""

    def __init__(self, reason: BaseException) -> None:
        self.reason = reason


# -- the tables


def prepare(session: Session) -> None:
    """Make the tables in a database that has none of ours, or see that they are.

    Raises:
        CannotOpen: it is too old, of another encoding or a newer version, or not ours.
    """
    settings = "SELECT current_setting('server_version_num')::bigint, getdatabaseencoding()"
    ((version, encoding),) = session.execute(settings)
    if version < OLDEST:
        raise CannotOpen(f"PostgreSQL {OLDEST // 10_000} or newer is needed")
    if encoding != "UTF8":
        raise CannotOpen(f"its encoding is {encoding}: make it with ENCODING 'UTF8'")
    if schema_of(session) is None:
        make_tables(session)
    found = schema_of(session)
    if found != SCHEMA_VERSION:
        raise CannotOpen(f"its schema has version {found}, newer than this program knows")


def schema_of(session: Session) -> int | None:
    """The version of our tables; None if there are none."""
    if not tables(session, "schema_version"):
        return None
    ((version,),) = session.execute("SELECT max(version) FROM schema_version")
    return int(version)


def tables(session: Session, *names: str) -> list[str]:
    """Which of these tables there are.

    Asked of the catalogue itself: what `to_regclass` remembers may be older than a lock.
    """
    sql = (
        "SELECT tablename::text FROM pg_tables "
        "WHERE schemaname = current_schema() AND tablename = ANY(?) ORDER BY 1"
    )
    return [name for (name,) in session.execute(sql, ([*names],))]


def make_tables(session: Session) -> None:
    """All of postgres.sql in one transaction, by whoever comes first.

    Raises:
        CannotOpen: another program's tables are there, under our names.
    """
    session.begin()
    session.execute("SELECT pg_advisory_xact_lock(?)", (LOCK,))
    if schema_of(session) is None:
        foreign = tables(session, *TABLES)
        if foreign:
            raise CannotOpen(
                f"it has a table {foreign[0]} that is not ours: make a database of its own"
            )
        session.script(jwksd.resource(SCHEMA).decode())
    session.commit()
