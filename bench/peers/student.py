"""POST /register, POST /auth and the key set as a student writes them, for bench/auth.py.

    python student.py PORT DATABASE

`ThreadingHTTPServer`, with the packages that ours has: each request has a thread, each login an
Argon2id verification, a signature, and a commit of its own.
"""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

SCHEMA = """
CREATE TABLE users(id INTEGER PRIMARY KEY, username TEXT UNIQUE, password_hash TEXT);
CREATE TABLE auth_logs(id INTEGER PRIMARY KEY, request_ip TEXT,
                       request_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, user_id INTEGER);
"""
HASHER = PasswordHasher(2, 19_456, 1)
KEY = rsa.generate_private_key(65_537, 2048)
NUMBERS = KEY.public_key().public_numbers()


def segment(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")


def token_for(name: str) -> str:
    now = int(time.time())
    header = segment(json.dumps({"alg": "RS256", "typ": "JWT", "kid": "1"}).encode())
    claims = {"sub": name, "iat": now, "exp": now + 3600, "jti": str(uuid.uuid4())}
    signed = header + b"." + segment(json.dumps(claims).encode())
    return (signed + b"." + segment(KEY.sign(signed, padding.PKCS1v15(), hashes.SHA256()))).decode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        n, e = (
            segment(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode()
            for value in (NUMBERS.n, NUMBERS.e)
        )
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": n, "e": e}
        self.answer(200, {"keys": [key]})

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(*(self.register(given) if self.path == "/register" else self.auth(given)))

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def register(self, given: Any) -> tuple[int, dict[str, str]]:
        password = str(uuid.uuid4())
        with sqlite3.connect(sys.argv[2], timeout=30) as database:
            row = (given["username"], HASHER.hash(password))
            database.execute("INSERT INTO users (username, password_hash) VALUES (?, ?)", row)
        return 201, {"password": password}

    def auth(self, given: Any) -> tuple[int, dict[str, str]]:
        with sqlite3.connect(sys.argv[2], timeout=30) as database:
            find = "SELECT id, password_hash FROM users WHERE username = ?"
            user = database.execute(find, (given["username"],)).fetchone()
            try:
                HASHER.verify(user[1], given["password"])
            except VerifyMismatchError:
                return 401, {"error": "wrong password"}
            token = token_for(given["username"])
            row = (self.client_address[0], user[0])
            database.execute("INSERT INTO auth_logs (request_ip, user_id) VALUES (?, ?)", row)
        return 200, {"token": token}

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    # Without this option each answer waits for 40 ms.
    def process_request(self, request: Any, client_address: Any) -> None:
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().process_request(request, client_address)


if __name__ == "__main__":
    with sqlite3.connect(sys.argv[2]) as created:
        created.executescript(SCHEMA)
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
