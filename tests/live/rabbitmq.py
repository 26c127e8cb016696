"""A real RabbitMQ on the loopback: a token with `scope` opens a connection, one without is refused.

The broker runs as a process of ours, with its files in a temporary folder and an epmd of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import unittest
from pathlib import Path

from tests.live.issuing import (
    ELSEWHERE,
    START_SECONDS,
    STOP_SECONDS,
    AsThePageSays,
    end,
    listens,
    needs,
)
from tests.support import free_port

PROGRAM = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # Debian's, without its change of user
PLUGINS = "[rabbitmq_auth_backend_oauth2]."
# It fetches keys by https alone, and takes no certificate that signs itself.
CONFIG = """
listeners.tcp.1 = 127.0.0.1:{port}
{page}
auth_oauth2.https.peer_verification = verify_none
log.console = true
log.console.level = info
log.file = false
"""
PREFIX, HEADER, END = b"AMQP\x00\x00\x09\x01", ">BHI", b"\xce"  # AMQP 0-9-1 §4.2.2, §4.2.3
START, START_OK, TUNE, TUNE_OK, OPEN, OPEN_OK, CLOSE = (
    (10, 10), (10, 11), (10, 30), (10, 31), (10, 40), (10, 41), (10, 50)
)  # fmt: skip


class Amqp:
    """As much of a client as a connection takes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def send(self, method: tuple[int, int], arguments: bytes) -> None:
        body = struct.pack(">HH", *method) + arguments
        self.socket.sendall(struct.pack(HEADER, 1, 0, len(body)) + body + END)

    def receive(self) -> tuple[tuple[int, int], bytes]:
        """The next method and its arguments; (0, 0) if the broker hangs up."""
        head = b""
        with contextlib.suppress(ConnectionResetError):
            head = self.stream.read(7)
        if len(head) < 7:
            return (0, 0), b""
        body = self.stream.read(struct.unpack(HEADER, head)[2] + 1)
        return struct.unpack(">HH", body[:4]), body[4:-1]

    def open(self, token: str) -> str:
        """ "open", or what the broker says instead."""
        self.socket.sendall(PREFIX)
        self.receive()  # the start
        response = f"\0ignored\0{token}".encode()  # RFC 4616: the token is the password
        self.send(START_OK, b"\0\0\0\0" + short(b"PLAIN") + long(response) + short(b"en_US"))
        method, arguments = self.receive()
        if method == TUNE:
            self.send(TUNE_OK, arguments)
            self.send(OPEN, short(b"/") + b"\0\0")
            method, arguments = self.receive()
        if method == CLOSE:
            code, size = struct.unpack(">HB", arguments[:3])
            return f"{code} {arguments[3 : 3 + size].decode()}"
        return {OPEN_OK: "open", (0, 0): "hung up"}.get(method, f"method {method}")


def short(octets: bytes) -> bytes:
    return struct.pack(">B", len(octets)) + octets


def long(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets


@needs(PROGRAM, "epmd")
class RabbitMQ(AsThePageSays):
    heading, secure = "RabbitMQ", True
    log: Path
    port: int

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.port, names = free_port(), free_port()
        page = cls.page.there(**{ELSEWHERE: cls.issuer_url})
        cls.write("rabbitmq.conf", CONFIG.format(port=cls.port, page=page))
        cls.write("enabled_plugins", PLUGINS)
        epmd = subprocess.Popen(
            ["epmd", "-port", str(names), "-address", "127.0.0.1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        cls.addClassCleanup(end, epmd)
        cls.log = cls.folder / "log.txt"
        with open(cls.log, "wb") as log:
            broker = subprocess.Popen(
                [PROGRAM], cwd=cls.folder, env=cls.environment(names),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        cls.addClassCleanup(end_group, broker)
        if not listens(cls.port, broker, START_SECONDS):
            raise AssertionError(f"RabbitMQ did not start:\n{cls.log.read_text('utf-8')[-3000:]}")

    @classmethod
    def write(cls, name: str, content: str) -> None:
        (cls.folder / name).write_text(content, "utf-8")

    @classmethod
    def environment(cls, names: int) -> dict[str, str]:
        folder = str(cls.folder)
        return {
            **os.environ,
            "HOME": folder,  # of the cookie
            "ERL_EPMD_PORT": str(names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"jwks{cls.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
        }

    def connect(self, token: str) -> str:
        with contextlib.closing(Amqp(self.port)) as client:
            return client.open(token)

    def test_lets_in_whom_the_scope_names_and_nobody_else(self):
        others = {name: token for name, token in self.flawed().items() if "issuer" not in name}
        others["without the scope"] = self.token_without_claims()
        others["of a scope elsewhere"] = self.issuer.token(self.name, scope="shop.read:*/*")
        said = self.connect(self.token())
        self.assertEqual(said, "open", self.log.read_text("utf-8")[-2000:])
        for name, token in others.items():
            with self.subTest(name):
                self.assertNotEqual(self.connect(token), "open")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The same for a process that has made others, which are in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)


if __name__ == "__main__":
    unittest.main()
