"""What a client sees of the JWKS while every core hashes.

    python -m bench.beside_hashing [ROUNDS]        (3 if not given)

16 clients log in as fast as they can, each with a full Argon2id verification; another one asks for
the JWKS every 2 ms. In turns with that, the same without the logins. Loader and server share the
machine's cores, so this is the worst case: nobody leaves a core to the loop.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
import time

from bench.loader import Load, ask, percentile, post
from bench.serving import serving

CLIENTS = 16
SECONDS = 3.0
WARM_UP = 0.5  # until every worker hashes
EVERY = 0.002  # seconds between two requests
REQUEST = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def log_in(port: int, requests: list[bytes]) -> float:
    return Load(port, requests, connections=CLIENTS).run(SECONDS + 2 * WARM_UP).rate


def latencies(port: int) -> list[float]:
    found = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            found.append(ask(connection, REQUEST)[0])
            time.sleep(EVERY)
    return found


def show(name: str, found: list[float], rest: str = "") -> None:
    p50, p99 = (percentile(found, share) * 1000 for share in (0.5, 0.99))
    print(f"{name:14} p50 {p50:.2f} ms, p99 {p99:.2f} ms, slowest {max(found) * 1000:.1f} ms{rest}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with serving("--verified-cache", "off") as process:
        users = {f"u{n}": process.register(f"u{n}") for n in range(CLIENTS)}
        requests = [post("/auth", {"username": n, "password": p}) for n, p in users.items()]
        with multiprocessing.get_context("fork").Pool(1) as pool:
            for _ in range(rounds):
                logins = pool.apply_async(log_in, (process.port, requests))
                time.sleep(WARM_UP)
                found = latencies(process.port)
                show("beside hashing", found, f", {logins.get():.0f} logins/s")
                show("alone", latencies(process.port))


if __name__ == "__main__":
    main()
