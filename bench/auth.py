"""Logins a second, beside the bare cryptography that a login consists of.

    python -m bench.auth [--rounds 9] [--tree DIR]

    repeated login   the same credentials again, beside RSA-2048 signatures and nothing else
    first login      `--verified-cache off`, beside one Argon2id verification and one signature
    Flask            an application of a page that does what a first login does (if Flask is there)

The bare figure is that of as many threads as there are cores, in this process. Server and loader
(one process each; 8, 16 and 64 kept connections) share the same cores, so that what the loader
spends counts against the server. Every round takes a bare figure, then the server's, then a bare
one again; printed are medians of the rounds, and the ratio of each round to its own two bare
figures. With --tree, our server of another folder takes turns with this one.

On a machine that is busy with other things, the ratio to the bare figure says little, because more
processes get a larger share of it. The ratio of processor times still does: how much of what server
and loader spend on a login is cryptography.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import argon2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from bench.loader import Answers, Load, percentile, post
from bench.serving import ROOT, Process, serving, started

CLIENTS = (8, 16, 64)  # DESIGN §4
USERS = 16
BARE_SECONDS = 0.5  # on either side of
LOAD_SECONDS = 1.5
CORES = os.cpu_count() or 1
FLASK_APP = """
import sqlite3, sys, time, uuid
import jwt
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, jsonify, request
path = sys.argv[1]
db = sqlite3.connect(path)
db.execute("CREATE TABLE users(id INTEGER PRIMARY KEY, username TEXT UNIQUE, password_hash TEXT)")
db.execute("CREATE TABLE auth_logs(id INTEGER PRIMARY KEY, request_ip TEXT, "
           "request_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, user_id INTEGER)")
db.commit()
hasher = PasswordHasher(2, 19456, 1)
key = rsa.generate_private_key(65537, 2048)
app = Flask(__name__)
@app.post("/register")
def register():
    password = str(uuid.uuid4())
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO users (username, password_hash) VALUES (?, ?)",
                   (request.json["username"], hasher.hash(password)))
    return jsonify(password=password), 201
@app.post("/auth")
def auth():
    db = sqlite3.connect(path)
    row = db.execute("SELECT id, password_hash FROM users WHERE username = ?",
                     (request.json["username"],)).fetchone()
    try:
        hasher.verify(row[1], request.json["password"])
    except VerifyMismatchError:
        return jsonify(error="no"), 401
    token = jwt.encode({"sub": request.json["username"], "exp": int(time.time()) + 3600}, key,
                       "RS256", headers={"kid": "1"})
    db.execute("INSERT INTO auth_logs (request_ip, user_id) VALUES (?, ?)",
               (request.remote_addr, row[0]))
    db.commit()
    db.close()
    return jsonify(token=token)
import flask.cli
flask.cli.show_server_banner = lambda *ignored: None
app.run("127.0.0.1", 0, threaded=True)
"""
FLASK_READY = re.compile(r"Running on http://127\.0\.0\.1:([0-9]+)")


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


@contextlib.contextmanager
def flask() -> Iterator[Process]:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", FLASK_APP, str(Path(folder, "flask.db"))]
        with started(words, ready=FLASK_READY) as process:
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
    """A server and the logins that it is sent."""

    process: Process
    requests: list[bytes]


def contender(process: Process) -> Contender:
    """A server with accounts, of which it remembers the passwords from here on if it does so."""
    requests = [
        post("/auth", {"username": f"u{n}", "password": process.register(f"u{n}")})
        for n in range(USERS)
    ]
    run_load(process.port, requests, max(CLIENTS), 0.5)  # every thread of the server is there then
    return Contender(process, requests)


def compare(
    title: str, against: Callable[[], object], processes: Mapping[str, Process], rounds: int
) -> None:
    """Print the figures of some rounds, in which numbers of clients and servers take turns."""
    contenders = {name: contender(process) for name, process in processes.items()}
    found: dict[tuple[int, str], list[Figures]] = {}
    for number in range(rounds):
        order = list(contenders) if number % 2 == 0 else list(reversed(list(contenders)))
        for clients in CLIENTS:
            for name in order:
                figures = one_round(against, contenders[name], clients)
                found.setdefault((clients, name), []).append(figures)
    for (clients, name), rows in sorted(found.items()):
        print(f"{title}, {clients:2} clients, {name:10}  {summary(rows)}", flush=True)
    for clients in CLIENTS if len(contenders) == 2 else ():
        ours, other = (found[clients, name] for name in contenders)
        ratios = [one.rate / two.rate for one, two in zip(ours, other)]
        best = max(one.rate for one in ours) / max(two.rate for two in other)
        print(
            f"{title}, {clients:2} clients: this tree is {statistics.median(ratios):.3f} x the "
            f"other (median of the rounds; {min(ratios):.2f} to {max(ratios):.2f}), by the best "
            f"rounds {best:.3f} x"
        )


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
    begin = server.process.cpu_seconds()
    answers, loader_spent = loaded(server.process.port, server.requests, clients)
    spent = server.process.cpu_seconds() - begin + loader_spent
    if set(answers.statuses) != {200}:
        print(f"  not every answer was a token: {dict(answers.statuses)}")
    return Figures(
        rate=answers.rate,
        bare=(before + rate(against, BARE_SECONDS)) / 2,
        p99=percentile(answers.latencies, 0.99),
        spent=spent / (len(answers.latencies) + answers.late),
        bare_spent=bare_spent,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tree", type=Path, metavar="DIR", help="another version of ours")
    options = parser.parse_args()
    trees = {"this tree": ROOT}
    if options.tree:
        trees["other tree"] = options.tree.resolve()
    sign, verify_and_sign = bare()
    print(f"{CORES} cores, Python {sys.version.split()[0]}, medians of {options.rounds} rounds")
    for title, against, flags in (
        ("repeated login", sign, ()),
        ("first login", verify_and_sign, ("--verified-cache", "off")),
    ):
        with contextlib.ExitStack() as stack:
            processes = {
                name: stack.enter_context(serving(*flags, tree=tree))
                for name, tree in trees.items()
            }
            compare(title, against, processes, options.rounds)
    if importlib.util.find_spec("flask") and importlib.util.find_spec("jwt"):
        with flask() as process:
            compare("first login", verify_and_sign, {"Flask": process}, options.rounds)


if __name__ == "__main__":
    main()
