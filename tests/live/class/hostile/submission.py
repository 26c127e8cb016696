"""Servers that harm whoever runs them: `python submission.py PORT KIND`. Every loop is bounded."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

PORT, KIND = int(sys.argv[1]), sys.argv[2]
LONG = 120  # s after which even what nobody stopped has ended


def answer(sock: socket.socket) -> None:
    """What each does with a connection."""
    if KIND == "escapes":
        sock.sendall(b"HTTP/1.1 200 \x1b[2J\r\nX: \x1b[31m\r\n\r\n\x1b[2J\x07100 of 100")
    elif KIND == "endless":
        for _ in range(100_000):
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536)
    elif KIND == "drip":
        for octet in b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + bytes(9999):
            sock.sendall(bytes([octet]))
            time.sleep(0.5)
    elif KIND == "hang":
        time.sleep(LONG)
    else:
        sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        after()


def after() -> None:
    """What some do once they have answered."""
    if KIND == "dies":
        print("Segmentation fault, or so", flush=True)
        os._exit(3)
    if KIND == "kills":
        os.kill(-1, signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)
    if KIND == "forks":
        for _ in range(400):
            if os.fork() == 0:
                time.sleep(LONG)
                os._exit(0)
    if KIND == "children":
        for _ in range(5):
            subprocess.Popen(["sleep", str(LONG)], start_new_session=True)
    if KIND == "memory":
        kept = [bytearray(b"x" * (1 << 20)) for _ in range(2000)]
        time.sleep(LONG if kept else 0)
    if KIND == "disk":
        for number in range(2000):
            with open(f"file-{number}", "wb") as file:
                file.write(b"x" * (1 << 20))


if __name__ == "__main__":
    if KIND == "nothing":
        time.sleep(LONG)
    if KIND == "flood":
        for _ in range(20_000):
            os.write(1, b"\x1b[31m flood " * 500)
    neighbours = []
    if KIND == "neighbour":  # the ports of everybody else
        neighbours = [socket.create_server(("0.0.0.0", port)) for port in (8080, 8081)]
    with socket.create_server(("127.0.0.1", PORT), backlog=64) as listener:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            connection, _ = listener.accept()
            with connection:
                try:
                    connection.recv(65536)
                    answer(connection)
                except OSError:
                    pass
