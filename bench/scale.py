"""A database of a million users and ten million log rows, beside an empty one.

    python bench/scale.py [USERS] [LOG_ROWS] [ROUNDS]        (1,000,000, 10,000,000 and 9)

Builds the large database, prints how large it is, and then, in turns with a database that holds
nothing but the users who log in:

    start             process start to the ready line
    repeated, first   logins a second, the same credentials again or never remembered
    pruning           the same while the older half of the log is being removed
    prune             what is removed in a second, and how long until all of it is gone
    commands          admin.py log with a filter, its summary, users list, users delete
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import argon2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.loader import Load, post
from bench.serving import ROOT, Process, serving
from jwksd.store import logins
from jwksd.store.sqlite import SQLite

LOGGING_IN = 500  # users whose credentials are sent, spread over all
CONNECTIONS = 32
LOAD_SECONDS = 1.0
DAYS = 180  # that the log covers; the retention is 90
PASSWORD = "the same password for all of them"
COUNT_UP = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < ?)"


def build(path: Path, users: int, rows: int, numbers: range) -> None:
    """A database with `users` accounts, those of `numbers` among them, and `rows` log rows."""
    SQLite(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-500000")
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")  # made again at the end, sorted: much faster
    stored = argon2.PasswordHasher(2, 19_456, 1).hash(PASSWORD)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO users (id, username, password_hash, email) VALUES (?, ?, ?, ?)",
        (
            (n, f"user{n}", stored, f"user{n}@example.org")
            for n in (numbers if users == len(numbers) else range(1, users + 1))
        ),
    )
    connection.execute(
        f"{COUNT_UP} INSERT INTO auth_logs (request_ip, request_timestamp, user_id) "
        "SELECT '10.' || (n % 200) || '.' || (n / 7 % 200) || '.' || (n / 3 % 200), "
        "strftime('%Y-%m-%d %H:%M:%f', julianday('now') - ? * (1.0 - 1.0 * n / ?)), "
        "CASE WHEN n % 10 THEN abs(n * 7919) % ? + 1 END FROM c LIMIT ?",
        (rows, DAYS, max(1, rows), max(1, users), rows),
    )
    connection.execute(
        f"{COUNT_UP} INSERT INTO auth_outcomes (log_id, outcome) "
        "SELECT n, CASE WHEN n % 10 = 0 THEN 'unknown_user' WHEN n % 7 THEN 'success' "
        "ELSE 'bad_password' END FROM c LIMIT ?",
        (rows, rows),
    )
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def credentials(numbers: range) -> list[bytes]:
    return [post("/auth", {"username": f"user{n}", "password": PASSWORD}) for n in numbers]


def in_turns(
    measured: Mapping[str, Callable[[], float]], rounds: int, unit: str, names: tuple[str, str]
) -> None:
    """Measure one after the other, round after round; print medians and their ratio."""
    found: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds):
        for name, measure in measured.items():
            found[name].append(measure())
    large, small = (statistics.median(found[name]) for name in names)
    ratios = [a / b for a, b in zip(found[names[0]], found[names[1]])]
    print(
        f"  large {large:.3f} {unit}, empty {small:.3f} {unit}, "
        f"ratio {large / small:.3f} (median of the rounds' ratios {statistics.median(ratios):.3f})"
    )


def processor_time(process: Process, load: Load) -> float:
    """Microseconds of the server's processor time for a login."""
    before = process.cpu_seconds()
    answers = load.run(LOAD_SECONDS)
    return (process.cpu_seconds() - before) / (len(answers.latencies) + answers.late) * 1e6


def compare_logins(large: Path, empty: Path, requests: list[bytes], rounds: int) -> None:
    kept = ("--log-retention", f"{2 * DAYS}d")
    for name, flags in (
        ("repeated", kept),
        ("first", (*kept, "--verified-cache", "off")),
        ("repeated, pruning", ()),
    ):
        with serving(*flags, db=large) as one, serving(*flags, db=empty) as other:
            processes = {"large": one, "empty": other}
            loads = {
                key: Load(process.port, requests, connections=CONNECTIONS)
                for key, process in processes.items()
            }
            for load in loads.values():
                sent = 0
                while name != "first" and sent < 1.1 * len(requests):
                    sent += len(load.run(LOAD_SECONDS).latencies)
            print(f"{name} login")
            rates = {
                "large": lambda: loads["large"].run(LOAD_SECONDS).rate,  # noqa: B023
                "empty": lambda: loads["empty"].run(LOAD_SECONDS).rate,  # noqa: B023
            }
            in_turns(rates, rounds, "/s", ("large", "empty"))
            spent = {
                "large": lambda: processor_time(processes["large"], loads["large"]),  # noqa: B023
                "empty": lambda: processor_time(processes["empty"], loads["empty"]),  # noqa: B023
            }
            in_turns(spent, rounds, "us of processor time each", ("large", "empty"))


def start(path: Path) -> float:
    with serving(db=path) as process:
        return process.start_seconds


@contextlib.contextmanager
def opened(path: Path) -> Iterator[logins.LoginLog]:
    with contextlib.closing(SQLite(path)) as database:
        yield logins.LoginLog(database, time.time)


def prune(path: Path, seconds: int) -> None:
    """What the server does about old rows in so many seconds, all at once."""
    rows = logins.PRUNED_ROWS * logins.PRUNE_STEPS
    with opened(path) as log:
        times = []
        for _ in range(seconds):
            begin = time.perf_counter()
            log.prune(90 * 86_400)
            times.append(time.perf_counter() - begin)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (old,) = connection.execute(
            "SELECT count(*) FROM auth_logs WHERE request_timestamp < datetime('now', '-90 days')"
        ).fetchone()
    median = statistics.median(times)
    print(
        f"prune: {rows:,} rows a second in {logins.PRUNE_STEPS} commits take "
        f"{median * 1000:.0f} ms of it (worst {max(times) * 1000:.0f}); "
        f"{old:,} old rows are left, which take {old / rows / 60:.0f} min"
    )


def time_commands(path: Path) -> None:
    for words in (
        "log --last 10",
        "log --last 10 --outcome bad_password",
        "log --user user7",
        "log --since 1h",
        "log --summary --since 1h",
        "log --summary",
        "users list",
        "users delete user7",
    ):
        begin = time.perf_counter()
        command = [sys.executable, str(ROOT / "admin.py"), "--db", str(path), *words.split()]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        lines = done.stdout.count(b"\n")
        print(f"  admin.py {words:40} {time.perf_counter() - begin:6.2f} s  {lines:,} lines")


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    users, rows, rounds = [*given, *(1_000_000, 10_000_000, 9)[len(given) :]]
    numbers = range(1, users + 1, max(1, users // LOGGING_IN))
    requests = credentials(numbers)
    with tempfile.TemporaryDirectory(prefix="jwks-scale-") as folder:
        large, empty = Path(folder, "large.db"), Path(folder, "empty.db")
        begin = time.perf_counter()
        build(large, users, rows, numbers)
        print(
            f"{users:,} users and {rows:,} log rows: {os.stat(large).st_size / 1e6:,.0f} MB, "
            f"built in {time.perf_counter() - begin:.0f} s"
        )
        build(empty, len(numbers), 0, numbers)
        print("start")
        in_turns(
            {"large": lambda: start(large), "empty": lambda: start(empty)},
            rounds, "s", ("large", "empty"),
        )  # fmt: skip
        compare_logins(large, empty, requests, rounds)
        prune(large, 50)
        print("commands on the large one")
        time_commands(large)


if __name__ == "__main__":
    main()
