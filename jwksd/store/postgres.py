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
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Callable, TypeVar

import psycopg

import jwksd
from jwksd.store.database import (
    CannotOpen,
    Connection,
    Database,
    Finding,
    Job,
    Unavailable,
    Writer,
    WriteRows,
)
from jwksd.store.dialects import POSTGRESQL
from jwksd.store.sessions import (
    WAIT_SECONDS,
    Link,
    Place,
    Session,
    TimedOut,
    Unconfirmed,
    places,
    said,
    shown,
)

T = TypeVar("T")

LOOK_SECONDS = 0.5  # between two looks at the keys, should a notification be lost
DEAF_SECONDS = WAIT_SECONDS + 2 * LOOK_SECONDS  # without a look that worked: `stamp` raises then
RETRY_SECONDS = 0.25  # between two attempts to reach a database that is gone
CLOSING_SECONDS = 1.0
SCHEMA = "postgres.sql"
SCHEMA_VERSION = 1
OLDEST = 130_000  # pg_current_xact_id() came with 13
OWN_WRITES = 4_096  # transactions remembered as ours: some seconds of them
LOCK = 0x6A776B73  # "jwks": the advisory lock of `write`
TABLES = ("keys", "users", "auth_logs", "account_names", "account_claims", "key_policy")
NOT_OURS = "it has a table {} that is not ours: make a database of its own"
# Errors after which another session may do it: this one is gone, or no longer writable.
TRANSIENT = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)


class PostgreSQL(Database):
    """One database of PostgreSQL, shared with other servers."""

    shared = True
    sql = POSTGRESQL

    def __init__(self, url: str, *, seconds: float | None = None, make: bool = True) -> None:
        """Reach the primary, and make the tables if there are none, unless `make` is False.

        `seconds` bounds the wait for any one answer; 3 if it is None.

        Raises:
            CannotOpen: it cannot be reached or used, or holds tables that are not ours.
        """
        self.name = shown(url)
        self._places = places(url)
        self._seconds = WAIT_SECONDS if seconds is None else seconds
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
                prepare(session, make)
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
            Unavailable: the watch has failed for seconds, so a revoked key may still be served.
        """
        if self._looked is not None and time.monotonic() - self._looked > DEAF_SECONDS:
            raise Unavailable(f"the keys could not be looked at: {self._deaf}")
        return None

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` within milliseconds of a change of the keys by any server."""
        self._looked = time.monotonic()
        self._start("watcher", lambda: self._watch(changed))
        if len(self._places) > 1:
            self._start("lookout", self._look_out)

    def horizon(self) -> tuple[int, int]:
        """See `database.Database`."""
        # A snapshot's xmax is the next number after the last that has ended: transactions above it
        # may be under way. Only a number of our own is above all that were given out.
        sql = (
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint, "
            "pg_current_xact_id()::text::bigint"
        )
        ((oldest, following),) = self.read(sql)
        return oldest, following

    def own_writes(self) -> Collection[int]:
        """See `database.Database`."""
        return frozenset(self._own.copy())

    def moved(self, *, log: bool = True) -> bool:
        """Never: a session ends with its database."""
        return False

    def probe(self) -> None:
        """Write a row that changes nothing, confirmed as all others are.

        Raises:
            Unavailable: it could not be written, or was not confirmed.
        """
        self._transact(lambda session: session.execute("UPDATE schema_version SET version=version"))

    def backup(self, target: str | os.PathLike[str]) -> None:
        """Refuse: PostgreSQL has its own tools.

        Raises:
            CannotOpen: always.
        """
        raise CannotOpen("a database of PostgreSQL is backed up by pg_dump or pg_basebackup")

    def findings(self) -> list[Finding]:
        """See `database.Database`."""
        return [finding for check in CHECKS for finding in check(self.read)]

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
        """A session to work with; it goes back to the pool unless it is broken."""
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
        """Call `work`, and once more on a fresh session if the first one turns out to be gone."""
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
        # What ended one session has most likely ended all of them.
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
        """A failure of PostgreSQL as `Unavailable`; a broken constraint stays as it is."""
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
            except Exception as error:  # this thread outlives every failure; `stamp` tells
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


def prepare(session: Session, make: bool) -> None:
    """Make the tables in a database that has none of ours, or see that they are there.

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
        if not make:
            raise CannotOpen("it has no tables of ours: the server's first start makes them")
        make_tables(session)
    found = schema_of(session)
    if found != SCHEMA_VERSION:
        raise CannotOpen(f"its schema has version {found}, newer than this program knows")
    lost = {*TABLES} - {*tables(session, *TABLES)}
    if lost:
        raise CannotOpen(f"its table {min(lost)} is missing; restore a backup")


def schema_of(session: Session) -> int | None:
    """The version of our tables; None if there are none.

    Raises:
        CannotOpen: another program's table has that name.
    """
    if not tables(session, "schema_version"):
        return None
    found = session.execute("SELECT to_jsonb(schema_version) -> 'version' FROM schema_version")
    versions = [version for (version,) in found]
    if len(versions) != 1 or not isinstance(versions[0], int):
        raise CannotOpen(NOT_OURS.format("schema_version"))
    return versions[0]


def tables(session: Session, *names: str) -> list[str]:
    """Which of these tables there are.

    The catalogue itself is asked: `to_regclass` may remember a state from before a lock.
    """
    sql = (
        "SELECT tablename::text FROM pg_tables "
        "WHERE schemaname = current_schema() AND tablename = ANY(?) ORDER BY 1"
    )
    return [name for (name,) in session.execute(sql, ([*names],))]


def make_tables(session: Session) -> None:
    """All of postgres.sql in one transaction; a server that comes second makes nothing.

    Raises:
        CannotOpen: another program's tables are there, under our names.
    """
    session.begin()
    session.execute("SELECT pg_advisory_xact_lock(?)", (LOCK,))
    if schema_of(session) is None:
        foreign = tables(session, *TABLES)
        if foreign:
            raise CannotOpen(NOT_OURS.format(foreign[0]))
        session.script(jwksd.resource(SCHEMA).decode())
    session.commit()


# -- the findings of the doctor


Read = Callable[[str], list[tuple[Any, ...]]]
CROWDED = 0.8  # of the connections that PostgreSQL allows
CLOCK_SECONDS = 2.0  # that two clocks may differ: rows are dated by the servers'
BEHIND_SECONDS = 10.0  # of a standby


def find_version(read: Read) -> list[Finding]:
    """The version of PostgreSQL."""
    ((version,),) = read("SHOW server_version")
    return [("postgresql", "ok", str(version))]


def find_durability(read: Read) -> list[Finding]:
    """Whether a commit waits for the disk and for a standby."""
    ((wanted, synced, names),) = read(
        "SELECT current_setting('synchronous_commit'), current_setting('fsync'), "
        "current_setting('synchronous_standby_names')"
    )
    if synced != "on":
        return [("commits", "problem", "fsync is off: a power cut damages the database")]
    if not names:
        note = "no standby is waited for (synchronous_standby_names): with the primary's disk, "
        return [("commits", "note", note + "logins are lost that were answered")]
    return [("commits", "ok", f"synchronous_commit={wanted}, waits for {names}")]


def find_standbys(read: Read) -> list[Finding]:
    """The standbys that follow, and how far behind they are."""
    rows = read(
        "SELECT application_name::text, coalesce(sync_state, '-'), "
        "coalesce(extract(epoch FROM replay_lag), 0)::double precision "
        "FROM pg_stat_replication WHERE application_name <> '' ORDER BY 1"
    )
    ((names,),) = read("SELECT current_setting('synchronous_standby_names')")
    confirming = [name for name, state, _ in rows if state in ("sync", "quorum")]
    listed = ", ".join(f"{name} ({state}, {lag:.1f} s behind)" for name, state, lag in rows)
    if names and not confirming:
        return [("standbys", "problem", f"nobody confirms, so logins are answered 503: {listed}")]
    if any(lag > BEHIND_SECONDS for _, _, lag in rows):
        return [("standbys", "note", listed)]
    return [("standbys", "ok", listed or "none, or this role may not see them (pg_monitor)")]


def find_connections(read: Read) -> list[Finding]:
    """How many connections there are, of those that PostgreSQL allows."""
    ((used, allowed),) = read(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
        "current_setting('max_connections')::bigint"
    )
    state = "problem" if used > CROWDED * allowed else "ok"
    return [("connections", state, f"{used} of {allowed}")]


def find_clock(read: Read) -> list[Finding]:
    """How far the clock of PostgreSQL differs from ours."""
    before = time.time()
    ((theirs,),) = read("SELECT extract(epoch FROM clock_timestamp())::double precision")
    apart = theirs - (before + time.time()) / 2
    state = "note" if abs(apart) > CLOCK_SECONDS else "ok"
    return [("clocks", state, f"PostgreSQL's and this machine's are {abs(apart):.1f} s apart")]


CHECKS = (find_version, find_durability, find_standbys, find_connections, find_clock)
