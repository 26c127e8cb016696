"""Logins a second, beside the bare cryptography that a login consists of.

    python bench/auth.py [ROUNDS]        (9 if not given)

    repeated login   the same credentials again, beside RSA-2048 signatures and nothing else
    first login      `--verified-cache off`, beside one Argon2id verification and one signature
    Flask            an application of a page that does what a first login does (if Flask is there)

The bare figure is that of as many threads as there are cores, in this process. Server and loader
(one process each, 64 keep-alive connections) share the same cores, so that what the loader spends
counts against the server. Every round takes a bare figure, then the server's, then a bare one
again; printed are medians of the rounds, and the ratio of each round to its own two bare figures.
On a machine that is busy with other things, that ratio says little, because more processes get a
larger share of it. The ratio of processor times still does: how much of what server and loader
spend on a login is cryptography.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator
from pathlib import Path

import argon2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from bench.loader import Answers, Load, percentile, post
from bench.serving import Process, serving

CONNECTIONS = 64
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
        command = [sys.executable, "-c", FLASK_APP, str(Path(folder, "flask.db"))]
        process = Process(command, FLASK_READY)
        try:
            yield process
        finally:
            process.end()


def loaded(port: int, requests: list[bytes]) -> tuple[Answers, float]:
    """What a loader in a process of its own counts, and the processor time that it takes."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(run_load, (port, requests, LOAD_SECONDS))


def run_load(port: int, requests: list[bytes], seconds: float) -> tuple[Answers, float]:
    begin = time.process_time()
    answers = Load(port, requests, connections=CONNECTIONS).run(seconds)
    return answers, time.process_time() - begin


def compare(name: str, against: Callable[[], object], process: Process, rounds: int) -> None:
    """Print the medians of some rounds."""
    requests = [
        post("/auth", {"username": f"u{n}", "password": process.register(f"u{n}")})
        for n in range(USERS)
    ]
    run_load(process.port, requests, 0.5)  # remembered from here on, and every thread is there
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for figure, value in one_round(against, process, requests).items():
            found.setdefault(figure, []).append(value)
    median = {figure: statistics.median(values) for figure, values in found.items()}
    print(
        f"{name:15} {median['rate']:6.0f} /s  bare {median['bare']:6.0f} /s  "
        f"ratio {median['ratio']:.2f} ({min(found['ratio']):.2f} to {max(found['ratio']):.2f})  "
        f"p99 {median['p99'] * 1000:.0f} ms  processor {median['spent'] * 1e6:.0f} us a login, "
        f"{median['share']:.2f} of it bare"
    )


def one_round(
    against: Callable[[], object], process: Process, requests: list[bytes]
) -> dict[str, float]:
    """The figures of one comparison; times in seconds, of processor time for a login or a call."""
    begin = time.process_time()
    before = rate(against, BARE_SECONDS)
    bare_spent = (time.process_time() - begin) / (before * BARE_SECONDS)
    begin = process.cpu_seconds()
    answers, loader_spent = loaded(process.port, requests)
    spent = (process.cpu_seconds() - begin + loader_spent) / (len(answers.latencies) + answers.late)
    around = (before + rate(against, BARE_SECONDS)) / 2
    if set(answers.statuses) != {200}:
        print(f"  not every answer was a token: {dict(answers.statuses)}")
    return {
        "rate": answers.rate,
        "bare": around,
        "ratio": answers.rate / around,
        "p99": percentile(answers.latencies, 0.99),
        "spent": spent,
        "share": bare_spent / spent,
    }


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    sign, verify_and_sign = bare()
    print(f"{CORES} cores, Python {sys.version.split()[0]}, medians of {rounds} rounds")
    with serving() as process:
        compare("repeated login", sign, process, rounds)
    with serving("--verified-cache", "off") as process:
        compare("first login", verify_and_sign, process, rounds)
    if importlib.util.find_spec("flask") and importlib.util.find_spec("jwt"):
        with flask() as process:
            compare("Flask", verify_and_sign, process, rounds)


if __name__ == "__main__":
    main()
