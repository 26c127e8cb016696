"""The login log: what is written for each attempt, and what is read of it.

    write_log                attempts -> rows, all of a commit at once       (accounts.py)
    recent                   what the limiter counts after a restart         (limits.py)
    prune                    deletes rows past their time, a few a commit    (upkeep.py)
    newer, others            the rows that a reader was not given yet        (admin.py, upkeep.py)
    rows, summary, extent    what an operator asks                           (admin.py, doctor.py)

Rules of this file:
- The log may have millions of rows and has no index: it is read in the order of its numbers, a page
  at a time, or from its end.
- Other programs write to the table too. Each row is judged by itself, by what it really holds.
- What an unknown user typed as a name is never stored: people type their password there.

It leaves out: waiting for rows to come. A reader asks again (admin.py).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from datetime import datetime, timezone
from functools import partial
from typing import Any, Callable, NamedTuple

from jwksd.store.database import Connection, Database

# Read at a start to prime the limiter: 500 attempts a second for a minute take 50 ms.
RECENT_ROWS = 32_768
# In one commit: some milliseconds for which logins wait, most of them the fsync (bench/growth.py).
PRUNED_ROWS = 1_000
PRUNE_STEPS = 5  # commits a second, and more where more rows come: see LoginLog._steps
CLOCKS_APART = 86_400  # seconds; a row that is dated further ahead was dated by a wrong clock
LOG_PAGE = 1_000  # rows that an operator's command reads at a time: the log may have millions
DISOWN_PAUSE = 0.01  # seconds between two commits of a page: as long as they take, so others write

LAST_SECOND = 253_402_300_799.0  # 9999-12-31 23:59:59, the last that a date has four digits for

LOGGED = ("id", "request_ip", "request_timestamp", "user_id", "outcome")  # of a row, wherever
OUTCOMES = ("success", "bad_password", "unknown_user", "no_key", "invalid_scope")
OF_USER = "user_id = (SELECT id FROM users WHERE username = ?)"
DISOWN = "UPDATE auth_logs SET user_id = NULL"
# The log has no index on time and may be millions long: its newest rows are read.
RECENT = (
    "SELECT request_ip, request_timestamp FROM auth_logs WHERE id > "
    "coalesce((SELECT id FROM auth_logs ORDER BY id DESC LIMIT 1 OFFSET ?), 0) "
    "AND request_timestamp BETWEEN ? AND ?"
)
# 1 for a row that is too old, 0 for one to keep, NULL for one without a date that can be believed.
DUE = (
    "CASE WHEN typeof(request_timestamp) = 'text' AND request_timestamp <= ? "
    "AND substr(request_timestamp, 1, 4) BETWEEN '1000' AND '2999' "
    "AND substr(request_timestamp, 5, 1) = '-' THEN request_timestamp < ? END"
)
# Asked again of each row: with several servers, one to keep may have become visible in between.
PRUNE = f"DELETE FROM auth_logs WHERE id > ? AND id <= ? AND ({DUE}) IS NOT FALSE"  # noqa: S608
CONDITIONS = (  # in the order of `Wanted`
    "coalesce(outcome, '-') = ?",  # so phrased, the log is read in its order, newest first
    "request_ip = ?",
    OF_USER,
    "request_timestamp >= ?",
)


Passed = Callable[[int, int], None]  # is told the number of the row that is reached, and the last


class Attempt(NamedTuple):
    """A row for the log. `proved`: what the account was when its password was verified: its name,
    the stored hash and the claims.
    """

    address: str
    time: str
    user_id: int | None
    outcome: str
    proved: tuple[str, str, str | None] | None = None
    new_hash: str | None = None  # takes the place of that hash


class Logged(NamedTuple):
    """A row of the log as an operator reads it; `user` is None if unknown, or deleted since."""

    number: int
    time: str
    address: str
    outcome: str
    user: str | None


class Wanted(NamedTuple):
    """Which rows of the log: all that agree with every member that is not None."""

    outcome: str | None = None
    address: str | None = None
    user: str | None = None
    since: str | None = None  # UTC text, or the beginning of one

    def where(self) -> tuple[str, tuple[str, ...]]:
        """The condition in SQL, and its parameters."""
        given = [(sql, value) for sql, value in zip(CONDITIONS, self) if value is not None]
        return " AND ".join(["1 = 1", *(sql for sql, _ in given)]), tuple(
            value for _, value in given
        )


def utc_text(seconds: float) -> str:
    """A wall-clock time as the database holds it: `YYYY-MM-DD HH:MM:SS.mmm`, UTC; before 1970 and
    after 9999 the nearest that can be written.
    """
    moment = datetime.fromtimestamp(min(max(0.0, seconds), LAST_SECOND), timezone.utc)
    return moment.isoformat(" ", "milliseconds")[:23]  # without the offset


def write_log(connection: Connection, attempts: Sequence[Attempt]) -> None:
    """The attempts and how they ended."""
    apart = not connection.sql.outcome_in_log
    # A user deleted meanwhile leaves a row without a name.
    row = f"(?, ?, (SELECT id FROM users WHERE id = ?){'' if apart else ', ?'})"  # noqa: S608
    connection.execute(
        "INSERT INTO auth_logs (request_ip, request_timestamp, user_id"  # noqa: S608
        f"{'' if apart else ', outcome'}) VALUES {several(row, attempts)}",
        [value for attempt in attempts for value in attempt[: 3 if apart else 4]],
    )
    if apart:
        write_outcomes(connection, attempts)


def write_outcomes(connection: Connection, attempts: Sequence[Attempt]) -> None:
    """How the attempts that were just written ended."""
    ((last,),) = connection.execute("SELECT last_insert_rowid()")
    # Nobody else writes within the transaction: the numbers of these rows have no gap.
    numbered = list(enumerate(attempts, last - len(attempts) + 1))
    connection.execute(
        "INSERT OR REPLACE INTO auth_outcomes (log_id, outcome) VALUES "  # noqa: S608
        + several("(?, ?)", numbered),
        [value for number, attempt in numbered for value in (number, attempt.outcome)],
    )


def copy_logged(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows of another database's log: the columns of `LOGGED`."""
    if connection.sql.outcome_in_log:
        connection.insert("auth_logs", LOGGED, rows)
        return
    connection.insert("auth_logs", LOGGED[:-1], [row[:-1] for row in rows])
    outcomes = [(row[0], row[-1]) for row in rows if row[-1] is not None]
    connection.insert("auth_outcomes", ("log_id", "outcome"), outcomes)


def disown_newer(connection: Connection, name: str, number: int) -> None:
    """Take a user's name off the rows above a number, in a transaction of the caller's."""
    connection.execute(f"{DISOWN} WHERE id > ? AND {OF_USER}", (number, name))


def ages(rows: Iterable[tuple[Any, Any]], now: float) -> list[tuple[str, list[float]]]:
    """Each address among the rows, and how many seconds ago its attempts were.

    Other programs write to the table, too: a row without an address or a date counts for nothing.
    """
    found: dict[str, list[float]] = {}
    moment = datetime.fromisoformat(utc_text(now))
    for address, text in rows:
        try:
            age = (moment - datetime.fromisoformat(text)).total_seconds()
        except (TypeError, ValueError):
            continue
        if isinstance(address, str):
            found.setdefault(address, []).append(max(0.0, age))
    return [*found.items()]


def execute(sql: str, values: Sequence[Any], connection: Connection) -> None:
    """Carry out one statement, as a job of the writer."""
    connection.execute(sql, values)


def execute_each(sql: str, rows: Sequence[Sequence[Any]], connection: Connection) -> None:
    """Carry out one statement for each row, as a job of the writer."""
    connection.executemany(sql, rows)


def unseen(reached: int, last: int) -> None:
    """A `Passed` for callers that show no progress."""


def several(row: str, of: Sized) -> str:
    """So many rows of parameters for one statement."""
    return ", ".join([row] * len(of))


class Progress:
    """How far a reader has come, so that it is given each row once.

    With several servers a smaller number may become visible after a larger one. `after` is the
    number up to which nothing can come any more: every transaction that was there when it was seen
    has ended (`Database.horizon`). Rows above it are read again, and told apart by `_given`.
    """

    def __init__(self, after: int) -> None:
        self.after = after
        self._given: set[int] = set()
        # Numbers that were seen, each with the transaction that was the next to begin then.
        self._seen: list[tuple[int, int]] = []
        self._newest: int | None = None  # of the last reading, until the next one begins

    def restart(self) -> None:
        """The log was emptied, and its numbers may have begun at 1 again."""
        self.after, self._newest = 0, None
        self._seen, self._given = [], set()

    def skip_to(self, number: int) -> None:
        """Rows below this one are too old to matter."""
        self.after = max(self.after, number - 1)

    def is_new(self, number: int) -> bool:
        """Whether a row was not given before; from now on it counts as given."""
        known = number in self._given
        self._given.add(number)
        return not known

    def read(self, newest: int, horizon: tuple[int, int] | None) -> None:
        """All rows up to `newest` that are visible were read, after `horizon` was taken."""
        if horizon is None:
            self.after, self._given = newest, set()
            return
        oldest, following = horizon
        if self._newest is not None:
            self._seen.append((self._newest, following))
        self._newest = newest
        ended = [number for number, limit in self._seen if limit <= oldest]
        self._seen = [(number, limit) for number, limit in self._seen if limit > oldest]
        self.after = max([self.after, *ended])
        self._given = {number for number in self._given if number > self.after}


class LoginLog:
    """The log of one database. `clock` is the wall clock."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        # Numbers of rows: prune goes on after the first, and found the second to be due.
        self._passed = self._due = 0
        self._newest: int | None = None  # when it was last called
        self._partitions_kept: float | None = None  # the hour of the last try

    def extent(self) -> tuple[str, str, int]:
        """The times of its first and last row, and about how many there are; reads those two."""
        ends = [
            self._database.read(
                "SELECT id, CAST(coalesce(request_timestamp, '') AS TEXT) FROM auth_logs "  # noqa: S608
                f"ORDER BY id {order} LIMIT 1"
            )
            for order in ("ASC", "DESC")
        ]
        if not all(ends):
            return "", "", 0
        ((first, since),), ((last, until),) = ends
        return since, until, last - first + 1

    def recent(self, seconds: float) -> list[tuple[str, list[float]]]:
        """Each address of the log, and the ages of its attempts of the last `seconds`, in seconds.

        A row from the future counts as now: its clock was ahead and has been put right since.
        """
        now = self._clock()
        found = self._database.read(
            RECENT, (RECENT_ROWS, utc_text(now - seconds), utc_text(now + seconds))
        )
        return ages(found, now)

    def newer(self, wanted: Wanted, progress: Progress) -> Iterator[Logged]:
        """The rows that the reader was not given yet, as `rows` gives them."""
        horizon = self._database.horizon()
        newest = self.newest_number()
        if newest < progress.after:
            progress.restart()
        for row in self.rows(wanted, progress.after):
            newest = max(newest, row.number)
            if progress.is_new(row.number):
                yield row
        progress.read(newest, horizon)

    def others(self, progress: Progress) -> list[tuple[str, list[float]]]:
        """What other servers logged and this reader was not given yet, as `recent` gives it.

        The newest rows only: while any transaction in the cluster does not end, `after` stays where
        it is.
        """
        horizon = self._database.horizon()
        rows = self._database.read(
            f"SELECT id, request_ip, request_timestamp, {self._database.sql.writer} "  # noqa: S608
            "FROM auth_logs WHERE id > ? ORDER BY id DESC LIMIT ?",
            (progress.after, RECENT_ROWS),
        )
        if len(rows) == RECENT_ROWS:
            progress.skip_to(rows[-1][0])
        own = self._database.own_writes()
        new = [
            (address, time)
            for number, address, time, writer in rows
            if progress.is_new(number) and writer not in own
        ]
        progress.read(max((row[0] for row in rows), default=progress.after), horizon)
        return ages(new, self._clock())

    def rows(self, wanted: Wanted, after: int = 0) -> Iterator[Logged]:
        """The rows with a number above `after`, oldest first, read a page at a time."""
        condition, values = wanted.where()
        while True:
            page = self._database.read(
                "SELECT auth_logs.id, request_timestamp, request_ip, coalesce(outcome, '-'), "  # noqa: S608
                f"username FROM {self._database.sql.log} WHERE auth_logs.id > ? AND {condition} "
                f"ORDER BY auth_logs.id LIMIT {LOG_PAGE}",
                (after, *values),
            )
            yield from map(Logged._make, page)
            if len(page) < LOG_PAGE:
                return
            after = page[-1][0]

    def newest_number(self) -> int:
        """The number of the newest row, 0 if there is none."""
        ((newest,),) = self._database.read("SELECT coalesce(max(id), 0) FROM auth_logs")
        return int(newest)

    def disown(self, name: str, passed: Passed = unseen) -> int:
        """Take a user's name off the rows that are there now; the number of the newest of all.

        They may be millions: a page in a commit, with time for others to write in between. After
        each, `passed` gets the number that is reached and the newest.

        Raises:
            Unavailable: the database cannot be written; what is done stays done.
        """
        newest = self.newest_number()
        page = (
            f"SELECT id FROM auth_logs WHERE id > ? AND id <= ? AND {OF_USER} "  # noqa: S608
            f"ORDER BY id LIMIT {LOG_PAGE}"
        )
        rows = self._database.read(page, (0, newest, name))
        while rows:
            self._database.write(partial(execute_each, f"{DISOWN} WHERE id = ?", rows))
            passed(rows[-1][0], newest)
            time.sleep(DISOWN_PAUSE)
            rows = self._database.read(page, (rows[-1][0], newest, name))
        return newest

    def before_last(self, wanted: Wanted, count: int) -> int:
        """The number after which `rows` yields the last `count` rows."""
        condition, values = wanted.where()
        found = self._database.read(
            f"SELECT auth_logs.id FROM {self._database.sql.log} WHERE {condition} "  # noqa: S608
            "ORDER BY auth_logs.id DESC LIMIT 1 OFFSET ?",
            (*values, count),
        )
        return found[0][0] if found else 0

    def summary(self, wanted: Wanted) -> list[tuple[str, str, int, str, str]]:
        """Address, outcome, how many attempts, the first and the last time; the most first."""
        condition, values = wanted.where()
        return [
            (address, outcome, count, first, last)
            for address, outcome, count, first, last in self._database.read(
                "SELECT request_ip, coalesce(outcome, '-'), count(*), min(request_timestamp), "  # noqa: S608
                f"max(request_timestamp) FROM {self._database.sql.log} WHERE {condition} "
                "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
                values,
            )
        ]

    def prune(self, seconds: float) -> None:
        """Delete log rows older than `seconds`, a bounded number of the oldest in small commits.

        Rows are gone through in the order in which they were written, up to the first to be kept.
        One without a date, or with a date to come, is passed by; it goes once one behind it is due.

        Raises:
            Unavailable: the database cannot be written; the next call tries again.
        """
        now = self._clock()
        self._keep_partitions(now, now - seconds)
        dates = utc_text(now + CLOCKS_APART), utc_text(now - seconds)
        for _ in range(self._steps()):
            rows = self._database.read(
                f"SELECT id, {DUE} FROM auth_logs WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
                (*dates, self._passed, PRUNED_ROWS),
            )
            old = list(itertools.takewhile(lambda row: row[1] != 0, rows))
            self._due = max([self._due, *(number for number, due in old if due)])
            gone = [number for number, _ in old if number <= self._due]
            if gone:
                values = (self._passed, gone[-1], *dates)
                self._database.write(partial(execute, PRUNE, values))
            if len(old) < PRUNED_ROWS:  # a row to be kept, or the end: the next call starts over
                self._passed = 0
                return
            self._passed = old[-1][0]

    def _steps(self) -> int:
        """How many commits: enough for twice the rows that came since the last call, so that the
        log does not grow however many logins there are.
        """
        newest = self.newest_number()
        came = newest - self._newest if self._newest is not None else 0
        self._newest = newest
        return max(PRUNE_STEPS, math.ceil(2 * came / PRUNED_ROWS))

    def _keep_partitions(self, now: float, oldest: float) -> None:
        """Make the partitions of this month and the next, and drop old ones; once an hour."""
        sql, hour = self._database.sql.partitions, now // 3600
        if sql is not None and hour != self._partitions_kept:
            # Also if it fails: it locks the log meanwhile, and the pruning goes on without it.
            self._partitions_kept = hour
            times = utc_text(now), utc_text(oldest)
            self._database.write(partial(execute, sql, times))
