"""How long until the first answer: our server beside a Flask app that does the same at its start.

    python -m bench.startup [--rounds 9] [--tree DIR]

Each round starts, side by side, our server on a new database, our server on an existing one, and a
Flask application (if Flask is installed) that opens the same tables, loads an RSA key from PEM and
answers the JWKS. With --tree, our server of another folder takes part as well. Measured from the
start of the process to the last byte of the first `GET /.well-known/jwks.json`. Medians; on a
shared machine only the ratios mean something.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import serving
from tests.support import free_port

FLASK_APP = """
import json, sqlite3, sys, time, uuid
from argon2 import PasswordHasher
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from flask import Flask, jsonify
import base64
db = sqlite3.connect(sys.argv[2])
db.execute("CREATE TABLE IF NOT EXISTS keys(kid INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL, exp INTEGER NOT NULL)")
if not db.execute("SELECT 1 FROM keys").fetchone():
    for exp in (0, 2**31):
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        db.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", (pem, exp))
    db.commit()
key = serialization.load_pem_private_key(db.execute("SELECT key FROM keys WHERE exp > 1").fetchone()[0], None)
numbers = key.public_key().public_numbers()
n = base64.urlsafe_b64encode(numbers.n.to_bytes(256, "big")).rstrip(b"=").decode()
hasher = PasswordHasher(2, 19456, 1)
app = Flask(__name__)
@app.get("/.well-known/jwks.json")
def jwks():
    return jsonify(keys=[{"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": n, "e": "AQAB"}])
app.run("127.0.0.1", int(sys.argv[1]))
"""  # noqa: E501


def answers(port: int) -> bool:
    """Whether the JWKS is served."""
    try:
        url = f"http://127.0.0.1:{port}/.well-known/jwks.json"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.read())
    except OSError:
        return False


def until_first_answer(command: list[str], port: int) -> float:
    """Seconds from the start of the process to its first JWKS; the process is then ended."""
    start = time.perf_counter()
    with serving.started(command, port=port):
        while not answers(port):
            if time.perf_counter() - start > serving.START_SECONDS:
                raise TimeoutError(command)
            time.sleep(0.002)
        return time.perf_counter() - start


def ours(tree: Path, database: Path) -> float:
    port = free_port()
    return until_first_answer(serving.command(db=database, tree=tree, port=port), port)


def flask(database: Path) -> float:
    port = free_port()
    return until_first_answer([sys.executable, "-c", FLASK_APP, str(port), str(database)], port)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tree", type=Path, metavar="DIR", help="another version of ours")
    options = parser.parse_args()
    rounds = options.rounds
    contenders: dict[str, Callable[[Path], float]] = {"": partial(ours, serving.ROOT)}
    if options.tree:
        contenders["other tree, "] = partial(ours, options.tree.resolve())
    if importlib.util.find_spec("flask"):
        contenders["Flask, "] = flask
    runs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for place, (name, start) in enumerate(contenders.items()):
                database = Path(folder, f"{number}-{place}.db")
                runs.setdefault(f"{name}first start", []).append(start(database))
                runs.setdefault(f"{name}later start", []).append(start(database))
    print(
        f"process start to first JWKS, {rounds} interleaved rounds, Python {sys.version.split()[0]}"
    )
    medians = {name: statistics.median(times) for name, times in runs.items()}
    for name, times in runs.items():
        ratio = medians[name] / medians["later start"]
        span = f"best {min(times):.3f} s  worst {max(times):.3f} s"
        print(f"  {name:24} median {medians[name]:.3f} s  {span}  ({ratio:.2f} x)")


if __name__ == "__main__":
    main()
