"""A small server of somebody else's, for the rubric project-3: `python submission.py PORT FAULT`.

FAULT is one of those that the code asks for, or `none`. PYTHONPATH leads to the project, of which
only jwt_minimal is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import threading
import time
import uuid
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import jwt_minimal

PORT, FAULT = int(sys.argv[1]), sys.argv[2]
LOCK = threading.Lock()
SEEN: dict[str, list[float]] = defaultdict(list)
KEYS = [(rsa.generate_private_key(65537, 2048), int(time.time()) + 3600 * at) for at in (-1, 1)]
TABLES = """
CREATE TABLE IF NOT EXISTS keys (kid INTEGER PRIMARY KEY, key BLOB, exp NUMERIC);
CREATE TABLE IF NOT EXISTS users (username TEXT UNIQUE, email TEXT, password_hash TEXT);
CREATE TABLE IF NOT EXISTS auth_logs (request_ip TEXT, request_timestamp TEXT);
"""


def stored(key: rsa.RSAPrivateKey) -> bytes:
    """A private key as the table has it: sealed by a stream of hashes, as nobody should."""
    form = Encoding.DER if FAULT == "keys in DER" else Encoding.PEM
    raw = key.private_bytes(form, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    if FAULT in ("keys in DER", "keys in PEM"):
        return raw
    secret, blocks = os.urandom(32), range(0, len(raw), 32)
    stream = b"".join(hashlib.sha256(secret + at.to_bytes(4, "big")).digest() for at in blocks)
    return bytes(one ^ other for one, other in zip(raw, stream))


def hashed(password: str) -> str:
    if FAULT == "plain passwords":
        return password
    if FAULT == "fast hashes":
        return hashlib.sha256(password.encode()).hexdigest()
    salt = os.urandom(8).hex()
    digest = hashlib.scrypt(password.encode(), salt=salt.encode(), n=1024, r=8, p=1).hex()
    return f"scrypt:1024:8:1${salt}${digest}"


def fits(password: str, kept: str) -> bool:
    if not kept.startswith("scrypt:"):
        return hashed(password) == kept
    _, salt, digest = kept.split("$")
    found = hashlib.scrypt(password.encode(), salt=salt.encode(), n=1024, r=8, p=1).hex()
    return found == digest


def token(name: str, expired: bool) -> str:
    key, exp = KEYS[0] if expired else KEYS[1]
    signer = KEYS[1][0] if FAULT == "one key for all" else key
    if FAULT == "another key signs":
        signer = rsa.generate_private_key(65537, 2048)
    claims = {"sub": name, "iat": int(time.time()), "exp": exp}
    return jwt_minimal.encode(claims, signer, jwt_minimal.public_jwk(key.public_key())["kid"])


class Handler(BaseHTTPRequestHandler):
    wbufsize = -1

    def log_message(self, *words):
        pass

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        jwk = jwt_minimal.public_jwk(KEYS[1][0].public_key())
        if FAULT == "d among the keys":
            jwk["d"] = "AQAB"
        self.answer(200 if FAULT != "keys answer 500" else 500, {"keys": [jwk]})

    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK, sqlite3.connect("app.db", timeout=10) as database:
            getattr(self, self.path.split("?")[0].strip("/"))(database, said)

    def register(self, database, said):
        password = "0" * 8 if FAULT == "one password for all" else str(uuid.uuid4())
        if FAULT == "passwords of letters":
            password = uuid.uuid4().hex[:20]
        row = (said["username"], said["email"], hashed(password))
        database.execute("INSERT INTO users VALUES (?, ?, ?)", row)
        self.answer(201, {"password": password})

    def auth(self, database, said):
        now, address = time.monotonic(), self.client_address[0]
        SEEN[address] = [at for at in SEEN[address] if at > now - 1]
        if len(SEEN[address]) >= 10 and FAULT != "no limit":
            self.answer(429, {"error": "too many"})
            return
        SEEN[address].append(now)
        found = database.execute(
            "SELECT password_hash FROM users WHERE username = ?", (said["username"],)
        ).fetchone()
        right = found and (FAULT == "any password" or fits(said["password"], found[0]))
        if not right:
            self.answer(401, {"error": "no"})
            return
        if FAULT != "no log":
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            database.execute("INSERT INTO auth_logs VALUES (?, ?)", (address, when))
        self.answer(200, {"token": token(said["username"], "expired" in self.path)})


if __name__ == "__main__":
    with sqlite3.connect("app.db") as made:
        made.executescript(TABLES)
        for private, exp in KEYS if FAULT != "no expired key" else KEYS[1:]:
            kept = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(exp))
            row = (stored(private), kept if FAULT == "exp as text" else exp)
            made.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", row)
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
