"""What it costs to keep a login log of ten million rows within its time, and what logins notice.

    python -m bench.growth [--rows 10000000] [--rounds 3] [--only WORD]

The log covers 150 days, and rows older than 90 are to go. For SQLite, and for PostgreSQL where it
is installed, this prints

    logins    repeated logins a second while rows are removed, and while none are, in turns
    months    the first call of `prune` in PostgreSQL, which drops whole months
    rows      all further calls, one after the other: rows a second, and the longest commit

In PostgreSQL the rows of the oldest month lie in the default partition, as those do whose month
nobody made in time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Callable, NamedTuple, TypeVar

from bench.auth import run_load
from bench.loader import Answers, percentile, post
from bench.serving import Process, command, started
from jwksd.store.database import Connection, Database
from jwksd.store.logins import LoginLog, utc_text
from jwksd.store.sqlite import SQLite
from tests.live.clusters import Clusters, why_not

DAY = 86_400
COVERED, KEPT = 150 * DAY, 90 * DAY
KEPT_MEANWHILE = 140 * DAY  # while clients log in: more is due than a run removes
CHUNK = 500_000  # rows written in one transaction
CLIENTS, USERS, LOAD_SECONDS = 16, 16, 5.0
T = TypeVar("T")

FILL_SQLITE = (
    "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
    "INSERT INTO auth_logs SELECT i, '192.0.2.' || i % 250, "
    "strftime('%Y-%m-%d %H:%M:%f', ? + i * ?, 'unixepoch'), NULL FROM n",
    "INSERT INTO auth_outcomes SELECT id, 'success' FROM auth_logs WHERE id BETWEEN ? AND ?",
)
FILL_POSTGRESQL = (
    "INSERT INTO auth_logs SELECT i, '192.0.2.' || i % 250, to_char(to_timestamp(? + i * ?) "
    "AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS'), NULL, 'success' FROM generate_series(?, ?) i"
)


class Timed:
    """A database that notes how long each commit takes, in seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def write(self, job: Callable[[Connection], T]) -> T:
        """As `Database.write`."""
        begin = time.perf_counter()
        try:
            return self._database.write(job)
        finally:
            self.seconds.append(time.perf_counter() - begin)


class Engine(NamedTuple):
    """Where the log is kept."""

    name: str
    db: str  # for --db
    open: Callable[[], Database]
    environ: Mapping[str, str]


def fill(database: Database, rows: int) -> None:
    """Write the log, evenly spread over the time until now."""
    begin, step = time.time() - COVERED, COVERED / rows
    if database.shared:
        for month in range(1, 6):  # not the oldest
            make = "SELECT keep_partitions(?, '')", (utc_text(begin + month * 30 * DAY + DAY),)
            database.write(lambda connection, make=make: connection.execute(*make))  # type: ignore[misc]
    for first in range(1, rows, CHUNK):
        last = min(first + CHUNK - 1, rows)

        def write(connection: Connection, first: int = first, last: int = last) -> None:
            if database.shared:
                connection.execute(FILL_POSTGRESQL, (begin, step, first, last))
            else:
                connection.execute(FILL_SQLITE[0], (first, last, begin, step))
                connection.execute(FILL_SQLITE[1], (first, last))
            connection.set_last_number("auth_logs", "id", last)

        database.write(write)


def count(database: Database) -> int:
    """How many rows the log has."""
    return int(database.read("SELECT count(*) FROM auth_logs")[0][0])


def load(process: Process, requests: list[bytes]) -> Answers:
    """What the clients are answered."""
    answers, _ = run_load(process.port, requests, CLIENTS, LOAD_SECONDS)
    if set(answers.statuses) != {200}:
        print(f"  not every answer was a token: {dict(answers.statuses)}")
    return answers


def logins(engine: Engine, rounds: int) -> None:
    """Logins beside the removal of rows, and without."""
    requests: list[bytes] = []
    found: dict[str, list[Answers]] = {"none": [], "many": []}
    for number in range(rounds):
        for name in sorted(found, reverse=bool(number % 2)):
            retention = {"none": "3650d", "many": f"{KEPT_MEANWHILE}s"}[name]
            words = command("--log-retention", retention, db=engine.db)
            with started(words, environ=engine.environ) as process:
                requests = requests or [
                    post("/auth", {"username": f"u{n}", "password": process.register(f"u{n}")})
                    for n in range(USERS)
                ]
                run_load(process.port, requests, CLIENTS, 1.0)  # it knows the passwords then
                found[name].append(load(process, requests))
    for name, runs in found.items():
        rate = median(answers.rate for answers in runs)
        late = [percentile(answers.latencies, q) * 1000 for q in (0.5, 0.99) for answers in runs]
        print(
            f"{engine.name:10} logins  {rate:6.0f} /s while {name} are removed, "
            f"p50 {median(late[:rounds]):.0f} ms, p99 {median(late[rounds:]):.0f} ms"
        )
    ratios = [one.rate / two.rate for one, two in zip(found["many"], found["none"])]
    print(f"{engine.name:10} logins  {median(ratios):.2f} of the logins without it")


def removal(engine: Engine, database: Database) -> None:
    """The removal alone, until nothing is due."""
    timed = Timed(database)
    log = LoginLog(timed, time.time)  # type: ignore[arg-type]
    before, begin, commits = count(database), time.perf_counter(), -1
    while commits != len(timed.seconds):
        commits = len(timed.seconds)
        log.prune(KEPT)
        if database.shared and not commits:
            after = count(database)
            print(
                f"{engine.name:10} months  dropped in {timed.seconds[0]:.2f} s; the first call "
                f"left {before - after} rows less"
            )
            before, begin, timed.seconds = after, time.perf_counter(), [0.0]
    seconds = time.perf_counter() - begin
    gone = before - count(database)
    print(
        f"{engine.name:10} rows    {gone} rows in {seconds:.1f} s, {gone / seconds:.0f} /s; a "
        f"commit: median {median(timed.seconds) * 1000:.1f} ms, longest "
        f"{max(timed.seconds) * 1000:.0f} ms",
        flush=True,
    )


@contextlib.contextmanager
def engines(only: str) -> Iterator[list[Engine]]:
    """The databases that this machine has: SQLite, and PostgreSQL if it is installed."""
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jwks-growth-")), "db")
        found = [Engine("SQLite", str(path), lambda: SQLite(path), {})]
        reason = why_not()
        if reason is None:
            from jwksd.store.postgres import PostgreSQL

            clusters = stack.enter_context(Clusters())
            url = clusters.url(clusters.primary())
            environ = {"PGPASSFILE": str(clusters.passfile)}
            os.environ.update(environ)
            found.append(Engine("PostgreSQL", url, lambda: PostgreSQL(url, seconds=600.0), environ))
        else:
            print(reason, file=sys.stderr)
        yield [engine for engine in found if only in engine.name]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="growth", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="the engines with this word")
    options = parser.parse_args(arguments)
    print(f"{os.cpu_count()} cores, {options.rows} rows, {CLIENTS} clients")
    with engines(options.only) as found:
        for engine in found:
            with contextlib.closing(engine.open()) as database:
                begin = time.perf_counter()
                fill(database, options.rows)
                print(f"{engine.name:10} filled in {time.perf_counter() - begin:.0f} s", flush=True)
                logins(engine, options.rounds)
                removal(engine, database)
    return 0


if __name__ == "__main__":
    sys.exit(main())
