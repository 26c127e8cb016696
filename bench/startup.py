"""How long until the first answer: our server beside a Flask app that does the same at its start.

    python bench/startup.py [ROUNDS]

Each round starts, side by side, our server on a new database, our server on an existing one, and a
Flask application (if Flask is installed) that opens the same tables, loads an RSA key from PEM and
answers the JWKS. Measured from the start of the process to the last byte of the first
`GET /.well-known/jwks.json`. Medians; on a shared machine only the ratios mean something.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


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
    environ = {**os.environ, "NOT_MY_KEY": "a secret of the benchmark"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ
    )
    try:
        while not answers(port):
            if time.perf_counter() - start > 20:
                raise TimeoutError(command)
            time.sleep(0.002)
        return time.perf_counter() - start
    finally:
        process.terminate()
        process.wait(10)


def ours(database: Path) -> float:
    port = free_port()
    command = [sys.executable, str(ROOT / "server.py"), "--port", str(port), "--db", str(database)]
    return until_first_answer(command, port)


def flask(database: Path) -> float:
    port = free_port()
    return until_first_answer([sys.executable, "-c", FLASK_APP, str(port), str(database)], port)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    runs: dict[str, list[float]] = {"first start": [], "later start": []}
    if importlib.util.find_spec("flask"):
        runs |= {"Flask, first start": [], "Flask, later start": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            database = Path(folder, f"{number}.db")
            runs["first start"].append(ours(database))
            runs["later start"].append(ours(database))
            if "Flask, first start" in runs:
                database = Path(folder, f"flask-{number}.db")
                runs["Flask, first start"].append(flask(database))
                runs["Flask, later start"].append(flask(database))
    print(
        f"process start to first JWKS, {rounds} interleaved rounds, Python {sys.version.split()[0]}"
    )
    medians = {name: statistics.median(times) for name, times in runs.items()}
    for name, times in runs.items():
        ratio = medians[name] / medians["later start"]
        print(
            f"  {name:20} median {medians[name]:.3f} s  worst {max(times):.3f} s  ({ratio:.2f} x)"
        )


if __name__ == "__main__":
    main()
