"""Logins a second, beside the bare cryptography that a login consists of, and beside other servers.

    python -m bench.auth [--rounds 9] [--tree DIR] [--servers NAME ...]

    repeated login   the same credentials again, beside RSA-2048 signatures and nothing else
    first login      `--verified-cache off`, beside one Argon2id verification and one signature

The others (bench/peers) do all of /register and /auth on a database of their own: Go and Node as
ours does, with remembered passwords and shared commits; `ThreadingHTTPServer` as a student writes
it, who remembers nothing. `--servers ours "ours on PostgreSQL"` compares the two databases: every
commit of PostgreSQL then waits for a synchronous standby on this machine. What is not installed is
left out.

The bare figure is that of as many threads as there are cores, in this process. Server and loader
(one process each; 8, 16 and 64 kept connections) share the same cores, so that what the loader
spends counts against the server. Every round takes a bare figure, then the server's, then a bare
one again; printed are medians of the rounds, and the ratio of each round to its own two bare
figures. Before that, a token of each server is verified against its key set; in each round, its
log on disk must gain a row for each answer. With --tree, our server of another folder takes turns
with this one.

On a machine that is busy with other things, the ratio to the bare figure says little, because more
processes get a larger share of it. The ratio of processor times still does: how much of what server
and loader spend on a login is cryptography.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import NamedTuple

import argon2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

import jwt_minimal
from bench.loader import Answers, Load, percentile, post
from bench.serving import ROOT, Process, command, serving, started
from tests.live.clusters import DATABASE, Clusters, why_not
from tests.support import free_port

CLIENTS = (8, 16, 64)  # DESIGN §4
USERS = 16
BARE_SECONDS = 0.5  # on either side of
LOAD_SECONDS = 1.5
CORES = os.cpu_count() or 1
PEERS = Path(__file__).parent / "peers"
NODE_PACKAGES = ("libsql@0.5.29", "@node-rs/argon2@2.2.1")
GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}  # where Debian has the packages
OTHER_TREE = "the other tree"
GO_SERVER, NODE, STUDENT = "Go", "Node", "ThreadingHTTPServer"
SERVERS = ("ours", OTHER_TREE, GO_SERVER, NODE, STUDENT)
ON_POSTGRESQL = "ours on PostgreSQL"
REPEATED, FIRST = "repeated login", "first login"
COUNT = "SELECT count(*) FROM auth_logs"
Row = dict[str, float]


def rate(function: Callable[[], object], seconds: float) -> float:
    """Calls a second, on as many threads as there are cores."""
    counts = [0] * CORES
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            function()
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CORES)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def bare() -> tuple[Callable[[], object], Callable[[], object]]:
    """A signature, and a verification with a signature; both let other threads run meanwhile."""
    key = rsa.generate_private_key(65537, 2048)
    hasher = argon2.PasswordHasher(2, 19_456, 1)
    stored = hasher.hash("x" * 36)
    rs256 = padding.PKCS1v15(), hashes.SHA256()

    def sign() -> object:
        return key.sign(b"x" * 400, *rs256)  # about what a token has before its signature

    def verify_and_sign() -> object:
        return hasher.verify(stored, "x" * 36), sign()

    return sign, verify_and_sign


def built(folder: Path) -> dict[str, list[str]]:
    """What starts each of the others that can be had here; a port and a database come behind it."""
    found = {STUDENT: [sys.executable, str(PEERS / "student.py")]}
    with left_out(GO_SERVER):
        words = ["go", "build", "-tags", "libsqlite3", "-o", str(folder / "auth")]
        subprocess.run(
            [*words, str(PEERS / "auth.go")], check=True, capture_output=True, text=True,
            env={**os.environ, **GO, "GOCACHE": str(folder / "cache")},
        )  # fmt: skip
        found[GO_SERVER] = [str(folder / "auth")]
    with left_out(NODE):
        (folder / "package.json").write_text("{}")
        subprocess.run(
            ["npm", "install", "--silent", *NODE_PACKAGES], check=True, cwd=folder,
            capture_output=True, text=True,
        )  # fmt: skip
        shutil.copy(PEERS / "auth.mjs", folder)
        found[NODE] = ["node", str(folder / "auth.mjs")]
    return found


@contextlib.contextmanager
def left_out(name: str) -> Iterator[None]:
    """Say why one of the others cannot be had, and go on."""
    try:
        yield
    except OSError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"{name} is left out: {(error.stderr or error.stdout).strip()}", file=sys.stderr)


@contextlib.contextmanager
def peer(words: list[str], database: Path, *, forget: bool) -> Iterator[Process]:
    """One of the others, on a new database."""
    port = free_port()
    words = [*words, str(port), str(database), *(["forget"] if forget else [])]
    with started(words, port=port) as process:
        yield process


def loaded(port: int, requests: list[bytes], clients: int) -> tuple[Answers, float]:
    """What a loader in a process of its own counts, and the processor time that it takes."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(run_load, (port, requests, clients, LOAD_SECONDS))


def run_load(
    port: int, requests: list[bytes], clients: int, seconds: float
) -> tuple[Answers, float]:
    begin = time.process_time()
    answers = Load(port, requests, connections=clients).run(seconds)
    return answers, time.process_time() - begin


class Contender(NamedTuple):
    """A server, what counts the attempts in its log, and the logins that it is sent."""

    process: Process
    logged: Callable[[], int]
    requests: list[bytes]


def rows_in(database: Path) -> int:
    """The attempts in the log of a file of SQLite."""
    with contextlib.closing(
        sqlite3.connect(f"file:{database}?mode=ro", timeout=30, uri=True)
    ) as reader:
        return int(reader.execute(COUNT).fetchone()[0])


@contextlib.contextmanager
def on_postgresql(*flags: str) -> Iterator[Contender]:
    """Ours on a database of PostgreSQL with a standby that every commit waits for."""
    with Clusters() as clusters:
        primary = clusters.primary()
        clusters.standby(primary, "standby")
        primary.expect("standby")
        environ = {"PGPASSFILE": str(clusters.passfile)}
        with started(command(*flags, db=clusters.url(primary)), environ=environ) as process:
            yield contender(process, lambda: int(primary.sql(COUNT, DATABASE)))


def contender(process: Process, logged: Callable[[], int]) -> Contender:
    """A server with accounts, of which it remembers the passwords from here on if it does so."""
    accounts = [{"username": f"u{n}", "password": process.register(f"u{n}")} for n in range(USERS)]
    check_token(process.port, accounts[0])
    requests = [post("/auth", account) for account in accounts]
    run_load(process.port, requests, max(CLIENTS), 0.5)  # every thread of the server is there then
    return Contender(process, logged, requests)


def check_token(port: int, account: dict[str, str]) -> None:
    """`InvalidToken` unless a login's token is that account's and the key set verifies it."""
    base, body = f"http://127.0.0.1:{port}", json.dumps(account).encode()
    login = urllib.request.Request(f"{base}/auth", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(login, timeout=30) as answer:
        token = json.load(answer)["token"]
    with urllib.request.urlopen(f"{base}/.well-known/jwks.json", timeout=30) as answer:
        claims = jwt_minimal.decode(token, json.load(answer), leeway=1)
    if claims["sub"] != account["username"]:
        raise jwt_minimal.InvalidToken(f"sub is {claims['sub']!r}")


def compare(
    against: Callable[[], object], contenders: Mapping[str, Contender], rounds: int
) -> dict[str, dict[str, list[Figures]]]:
    """By clients and server, the figures of rounds in which both take turns."""
    found: dict[str, dict[str, list[Figures]]] = {
        f"{clients}": {name: [] for name in contenders} for clients in CLIENTS
    }
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(reversed(list(contenders)))
        for clients in CLIENTS:
            for name in order:
                figures = one_round(against, contenders[name], clients)
                found[f"{clients}"][name].append(figures)
    return found


def report(title: str, found: Mapping[str, Mapping[str, list[Figures]]]) -> None:
    for clients, by_name in found.items():
        ours = by_name["ours"]
        for name, rows in by_name.items():
            ratios = [one.rate / two.rate for one, two in zip(ours, rows)]
            print(
                f"{title}, {clients:>2} clients, {name:19} {summary(rows)}, ours is "
                f"{statistics.median(ratios):.3f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def rows_of(found: Mapping[str, list[Figures]]) -> dict[str, Row]:
    """Medians: logins a second, ratios, p99 in ms, processor in us; by server."""
    return {
        name: {
            "rate": round(statistics.median(row.rate for row in rows)),
            "ratio": round(statistics.median(row.rate / row.bare for row in rows), 2),
            "ours": round(
                statistics.median(one.rate / two.rate for one, two in zip(found["ours"], rows)), 2
            ),
            "p99": round(statistics.median(row.p99 for row in rows) * 1000, 1),
            "processor": round(statistics.median(row.spent for row in rows) * 1e6),
            "bare": round(statistics.median(row.bare_spent for row in rows) * 1e6),
        }
        for name, rows in found.items()
    }


class Figures(NamedTuple):
    """One round; times in seconds, of processor time for a login and for a bare call."""

    rate: float
    bare: float
    p99: float
    spent: float
    bare_spent: float


def summary(found: list[Figures]) -> str:
    rate, bare, p99, spent, bare_spent = (statistics.median(values) for values in zip(*found))
    ratios = [figures.rate / figures.bare for figures in found]
    return (
        f"{rate:6.0f} /s (best {max(figures.rate for figures in found):.0f})  bare {bare:6.0f} /s  "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
        f"p99 {p99 * 1000:.0f} ms  processor {spent * 1e6:.0f} us a login, "
        f"{bare_spent / spent:.2f} of it bare"
    )


def one_round(against: Callable[[], object], server: Contender, clients: int) -> Figures:
    """A bare figure, the server's, and a bare one again."""
    begin = time.process_time()
    before = rate(against, BARE_SECONDS)
    bare_spent = (time.process_time() - begin) / (before * BARE_SECONDS)
    rows = server.logged()
    begin = server.process.cpu_seconds()
    answers, loader_spent = loaded(server.process.port, server.requests, clients)
    spent = server.process.cpu_seconds() - begin + loader_spent
    if set(answers.statuses) != {200}:
        print(f"  not every answer was a token: {dict(answers.statuses)}")
    if server.logged() - rows != len(answers.latencies) + answers.late:
        print(f"  not every login is in the log: {server.logged() - rows}, {answers.statuses}")
    return Figures(
        rate=answers.rate,
        bare=(before + rate(against, BARE_SECONDS)) / 2,
        p99=percentile(answers.latencies or [inf], 0.99),
        spent=spent / (len(answers.latencies) + answers.late),
        bare_spent=bare_spent,
    )


def measure(
    wanted: Sequence[str],
    rounds: int,
    other: Path | None = None,
    kinds: Sequence[str] = (REPEATED, FIRST),
) -> Iterator[tuple[str, dict[str, dict[str, list[Figures]]]]]:
    """Title and figures of these kinds of logins."""
    sign, verify_and_sign = bare()
    with tempfile.TemporaryDirectory(prefix="jwks-bench-") as name:
        folder = Path(name)
        peers = built(folder) if set(wanted) & {GO_SERVER, NODE, STUDENT} else {}
        trees = {"ours": ROOT, **({OTHER_TREE: other} if other else {})}
        for title, against, flags in (
            (REPEATED, sign, ()),
            (FIRST, verify_and_sign, ("--verified-cache", "off")),
        ):
            if title not in kinds:
                continue
            with contextlib.ExitStack() as stack:
                running = {}
                for name in (*trees, *(name for name in wanted if name in peers)):
                    if name == STUDENT and not flags:
                        continue  # a server that remembers nothing has no repeated login
                    database = Path(tempfile.mkdtemp(dir=folder), "bench.db")
                    process = stack.enter_context(
                        serving(*flags, db=database, tree=trees[name])
                        if name in trees
                        else peer(peers[name], database, forget=bool(flags))
                    )
                    running[name] = contender(process, partial(rows_in, database))
                if ON_POSTGRESQL in wanted:
                    if reason := why_not():
                        print(f"{ON_POSTGRESQL} is left out: {reason}", file=sys.stderr)
                    else:
                        running[ON_POSTGRESQL] = stack.enter_context(on_postgresql(*flags))
                yield title, compare(against, running, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tree", type=Path, metavar="DIR", help="another version of ours")
    parser.add_argument(
        "--servers", nargs="+", choices=(*SERVERS, ON_POSTGRESQL), default=SERVERS, metavar="NAME"
    )
    options = parser.parse_args()
    print(f"{CORES} cores, Python {sys.version.split()[0]}, medians of {options.rounds} rounds")
    tree = options.tree.resolve() if options.tree else None
    for title, found in measure(options.servers, options.rounds, tree):
        report(title, found)


if __name__ == "__main__":
    main()
