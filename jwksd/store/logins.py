"""The login log: what is written for each attempt, and what is read of it.

    write_log    attempts -> rows, with those who share their commit      (accounts.py)
    recent       what the limiter has to count after a restart            (server.py)
    prune        rows past their time, a few in a commit                  (server.py)
    rows, summary, extent     for the operator                            (admin.py, doctor.py)

Rules of this file:
- The log may have millions of rows and has no index: it is read in the order of its numbers, a page
  at a time, or from its end.
- Other programs write to the table too. Each row is judged by itself, by what it really holds.
- What an unknown user typed as a name is never stored: people type their password there.

It leaves out: following. Who wants the next rows asks again (admin.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence, Sized
from datetime import datetime, timezone
from typing import Callable, NamedTuple

from jwksd.store.database import Connection, Database

# Read at a start to prime the limiter: 500 attempts a second for a minute take 50 ms.
RECENT_ROWS = 32_768
PRUNED_ROWS = 100  # in one commit: some milliseconds for which logins wait, on a log of millions
PRUNE_STEPS = 10  # commits a second: 86 million rows a day, twice what 500 logins a second leave
CLOCKS_APART = 86_400  # seconds; a row that is dated further ahead was dated by a wrong clock
LOG_PAGE = 1_000  # rows that an operator's command reads at a time: the log may have millions
DISOWN_PAUSE = 0.01  # seconds between two commits of a page: as long as they take, so others write

LAST_SECOND = 253_402_300_799.0  # 9999-12-31 23:59:59, the last that a date has four digits for

OUTCOMES = ("success", "bad_password", "unknown_user", "no_key", "invalid_scope")
OF_USER = "user_id = (SELECT id FROM users WHERE username = ?)"
DISOWN = "UPDATE auth_logs SET user_id = NULL"
# The log has no index on time and may be millions long: its newest rows are read. Each is judged by
# itself, because other programs write to the table too, and grouped here, which halves the time.
RECENT = (
    "SELECT request_ip, group_concat(max(0, "
    "CAST((julianday(?) - julianday(request_timestamp)) * 86400000.0 + 0.5 AS INTEGER))) "
    "FROM auth_logs WHERE id > "
    "coalesce((SELECT id FROM auth_logs ORDER BY id DESC LIMIT 1 OFFSET ?), 0) "
    "AND typeof(request_timestamp) = 'text' AND request_timestamp BETWEEN ? AND ? "
    "AND typeof(request_ip) = 'text' GROUP BY request_ip"
)
# 1 for a row that is too old, 0 for one to keep, NULL for one without a date that can be believed.
DUE = (
    "CASE WHEN typeof(request_timestamp) = 'text' AND request_timestamp <= ? "
    "AND request_timestamp GLOB '[12][0-9][0-9][0-9]-*' THEN request_timestamp < ? END"
)
CONDITIONS = (  # in the order of `Wanted`
    "coalesce(outcome, '-') = ?",  # so phrased, the log is read in its order, newest first
    "request_ip = ?",
    OF_USER,
    "request_timestamp >= ?",
)
LOG = (
    "auth_logs LEFT JOIN auth_outcomes ON log_id = auth_logs.id "
    "LEFT JOIN users ON users.id = user_id"
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
        return " AND ".join(["1", *(sql for sql, _ in given)]), tuple(value for _, value in given)


def utc_text(seconds: float) -> str:
    """A wall-clock time as the database holds it: `YYYY-MM-DD HH:MM:SS.mmm`, UTC; before 1970 and
    after 9999 the nearest that can be written.
    """
    moment = datetime.fromtimestamp(min(max(0.0, seconds), LAST_SECOND), timezone.utc)
    return moment.isoformat(" ", "milliseconds")[:23]  # without the offset


def write_log(connection: Connection, attempts: Sequence[Attempt]) -> None:
    """The attempts and how they ended."""
    # A user deleted meanwhile leaves a row without a name.
    rows = several("(?, ?, (SELECT id FROM users WHERE id = ?))", attempts)
    connection.execute(
        f"INSERT INTO auth_logs (request_ip, request_timestamp, user_id) VALUES {rows}",  # noqa: S608
        [value for attempt in attempts for value in attempt[:3]],
    )
    ((last,),) = connection.execute("SELECT last_insert_rowid()")
    # Nobody else writes within the transaction: the numbers of its rows have no gap.
    numbered = list(enumerate(attempts, last - len(attempts) + 1))
    connection.execute(
        "INSERT OR REPLACE INTO auth_outcomes (log_id, outcome) VALUES "  # noqa: S608
        + several("(?, ?)", numbered),
        [value for number, attempt in numbered for value in (number, attempt.outcome)],
    )


def disown_newer(connection: Connection, name: str, number: int) -> None:
    """Take a user's name off the rows above a number, in a transaction of the caller's."""
    connection.execute(f"{DISOWN} WHERE id > ? AND {OF_USER}", (number, name))


def unseen(reached: int, last: int) -> None:
    """Nobody looks at how far it is."""


def several(row: str, of: Sized) -> str:
    """So many rows of parameters for one statement."""
    return ", ".join([row] * len(of))


class LoginLog:
    """The log of one database. `clock` is the wall clock."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        # Numbers of rows: prune goes on after the first, and found the second to be due.
        self._passed = self._due = 0

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
            RECENT, (utc_text(now), RECENT_ROWS, utc_text(now - seconds), utc_text(now + seconds))
        )
        return [
            (address, [int(age) / 1000 for age in milliseconds.split(",")])
            for address, milliseconds in found
            if milliseconds
        ]

    def rows(self, wanted: Wanted, after: int = 0) -> Iterator[Logged]:
        """The rows with a number above `after`, oldest first, read a page at a time."""
        condition, values = wanted.where()
        while True:
            page = self._database.read(
                "SELECT auth_logs.id, request_timestamp, request_ip, coalesce(outcome, '-'), "  # noqa: S608
                f"username FROM {LOG} WHERE auth_logs.id > ? AND {condition} "
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
            self._write_each(f"{DISOWN} WHERE id = ?", rows)
            passed(rows[-1][0], newest)
            time.sleep(DISOWN_PAUSE)
            rows = self._database.read(page, (rows[-1][0], newest, name))
        return newest

    def before_last(self, wanted: Wanted, count: int) -> int:
        """The number after which `rows` yields the last `count` rows."""
        condition, values = wanted.where()
        found = self._database.read(
            f"SELECT auth_logs.id FROM {LOG} WHERE {condition} "  # noqa: S608
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
                f"max(request_timestamp) FROM {LOG} WHERE {condition} "
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
        dates = utc_text(now + CLOCKS_APART), utc_text(now - seconds)
        for _ in range(PRUNE_STEPS):
            rows = self._database.read(
                f"SELECT id, {DUE} FROM auth_logs WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
                (*dates, self._passed, PRUNED_ROWS),
            )
            old = list(itertools.takewhile(lambda row: row[1] != 0, rows))
            self._due = max([self._due, *(number for number, due in old if due)])
            gone = [(number,) for number, due in old if due or number < self._due]
            self._write_each("DELETE FROM auth_logs WHERE id = ?", gone)
            if len(old) < PRUNED_ROWS:  # a row to be kept, or the end: the next call starts over
                self._passed = 0
                return
            self._passed = old[-1][0]

    def _write_each(self, sql: str, rows: list[tuple[int]]) -> None:
        if rows:
            self._database.write(lambda connection: connection.executemany(sql, rows))
