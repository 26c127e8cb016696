"""The cheapest attacks known, and what everybody else saw before, during and after each.

    python -m bench.hostile [--seconds 4] [--only ROW ...]

Each attack is a bounded program on loopback against a server that this starts. Meanwhile somebody
else opens a connection every 20 ms and asks for the JWKS; or logs in 14 times a second, with a
password that is remembered, each time from another address. Then the attack begins again, and
SIGTERM must end the server under it. A row of the table is a row of ATTACKS: to add one, write a
function that attacks `target` until `target.over`, and say in a `Bound` what the others must still
get.

Addresses of 127.0.0.0/8 stand for separate clients, so this needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import itertools
import multiprocessing
import re
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.loader import ask, post
from bench.serving import ROOT, Process, serving

JWKS = "GET /.well-known/jwks.json HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HEAD = "POST /auth HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CHUNKED = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode()
COMMAS = f"{JWKS}If-None-Match: {',' * 16_000}\r\n\r\n".encode()
ASK_EVERY = 0.02  # seconds between two requests of the others
LOG_IN_EVERY = 1 / 14  # the same for those who log in
AT_ONCE = 100  # connections in a row; then 20 ms of rest
PATIENCE = 5.0  # seconds after which a request of the others counts as not served
STOP_SECONDS = 8.0  # 6 for what is in flight, 2 for the workers and the disk
PROXY = "127.0.0.9"
PROCESSES = multiprocessing.get_context("fork")
PLACES = 1_000  # of the servers that are crowded: a tenth of the product's, and so the crowds


class Bound(NamedTuple):
    """What the others must still get while the attack lasts."""

    served: float = 1.0  # share of their requests that are answered with 200
    slowest: float = 0.5  # seconds


class Target(NamedTuple):
    """A server under attack."""

    process: Process
    over: Event
    login: bytes = b""  # the request of a login that is remembered

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection from one of the addresses of this machine."""
        address = ("127.0.0.1", self.process.port)
        return socket.create_connection(address, PATIENCE, (source, 0))


class Attack(NamedTuple):
    """A row of the table."""

    row: str  # of the threats that the project keeps; + for one that nobody had tried before
    title: str
    attack: Callable[[Target], None]
    bound: Bound = Bound()
    flags: tuple[str, ...] = ()
    tls: tuple[str, ...] = ()  # what the certificate's key is, for OpenSSL
    source: str = "127.0.0.1"  # of the others
    fields: str = ""  # of their requests
    login: bool = False  # the others log in, with a password that is remembered, not ask for keys


class Seen(NamedTuple):
    """What the others saw."""

    asked: int
    served: int
    slowest: float

    def __str__(self) -> str:
        return f"{self.served} of {self.asked}, {self.slowest * 1000:.0f} ms"


# -- the attacks


def key_updates(target: Target) -> None:
    """One TLS 1.3 connection that sends KeyUpdate records and nothing else; again if it is cut."""
    while not target.over.is_set():
        time.sleep(0.01)
        with contextlib.suppress(OSError), target.connect() as raw:
            records = KeyUpdates(raw)
            while not target.over.is_set():
                raw.sendall(b"".join(next(records) for _ in range(500)))


class KeyUpdates(Iterator[bytes]):
    """KeyUpdate records (RFC 8446 §4.6.3, §7.2) of a client that has just shaken hands."""

    def __init__(self, raw: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with tempfile.NamedTemporaryFile("r") as secrets:
            context.keylog_filename = secrets.name
            tls = context.wrap_bio(incoming, outgoing)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    octets = raw.recv(65_536)
                    if not octets:
                        raise ConnectionError("cut in the handshake") from None
                    incoming.write(octets)
            raw.sendall(outgoing.read())
            found = re.search(r"CLIENT_TRAFFIC_SECRET_0 \w+ (\w+)", secrets.read())
        cipher = tls.cipher()
        if found is None or cipher is None or cipher[0] != "TLS_AES_256_GCM_SHA384":
            raise RuntimeError("this needs TLS_AES_256_GCM_SHA384, which is OpenSSL's first choice")
        self._secret = bytes.fromhex(found[1])

    def __next__(self) -> bytes:
        key, nonce = self._derive("key", 32), self._derive("iv", 12)  # the sequence number is 0
        message = b"\x18\x00\x00\x01\x00\x16"  # KeyUpdate, update_not_requested; a handshake record
        head = b"\x17\x03\x03" + (len(message) + 16).to_bytes(2, "big")
        self._secret = self._derive("traffic upd", 48)
        return head + AESGCM(key).encrypt(nonce, message, head)

    def _derive(self, label: str, length: int) -> bytes:
        """HKDF-Expand-Label (RFC 8446 §7.1) of up to one block."""
        name = b"tls13 " + label.encode()
        info = length.to_bytes(2, "big") + bytes([len(name)]) + name + b"\x00\x01"
        return hmac.new(self._secret, info, hashlib.sha384).digest()[:length]


def small_chunks(target: Target) -> None:
    """300 connections of one address with bodies of one-octet chunks, as fast as they go."""
    flood(target, 300, CHUNKED + b"1\r\na\r\n" * 8_000 + b"0\r\n\r\n")


def many_commas(target: Target) -> None:
    """100 connections that ask with If-None-Match lists of 16,000 members."""
    flood(target, 100, COMMAS)


def flood(target: Target, connections: int, octets: bytes) -> None:
    """Send this again and again on so many connections; answers are read and dropped."""
    clients: list[tuple[socket.socket, memoryview]] = []
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):  # the server has ended
        while not target.over.is_set():
            while len(clients) < connections:
                client = stack.enter_context(target.connect("127.0.0.2"))
                client.setblocking(False)
                clients.append((client, memoryview(octets)))
            clients = [(c, left) for c, left in (push(*both, octets) for both in clients) if left]
            time.sleep(0.001)


def push(
    client: socket.socket, left: memoryview, octets: bytes
) -> tuple[socket.socket, memoryview | None]:
    """Send what the server takes, and from the beginning again; None if it has closed."""
    try:
        with contextlib.suppress(BlockingIOError):
            if not client.recv(65_536):
                raise ConnectionError
        left = left[client.send(left) :]
        return client, left or memoryview(octets)
    except BlockingIOError:
        return client, left
    except OSError:
        client.close()
        return client, None


def hold(target: Target, count: int, source: Callable[[int], str], octets: bytes) -> None:
    """Begin so many requests and never finish one; begin another for each that is ended."""
    held: list[socket.socket] = []
    number = 0
    with contextlib.ExitStack() as stack:
        while not target.over.is_set():
            for _ in range(min(AT_ONCE, count - len(held))):
                with contextlib.suppress(OSError):
                    client = stack.enter_context(target.connect(source(number)))
                    client.sendall(octets.replace(b"NUMBER", b"%x" % (number % 65_536)))
                    client.setblocking(False)
                    held.append(client)
                number += 1
            held = [client for client in held if is_open(client)]
            time.sleep(0.02)


def is_open(client: socket.socket) -> bool:
    """Whether the server has neither answered nor closed."""
    try:
        client.recv(65_536)
    except BlockingIOError:
        return True
    except OSError:
        pass
    client.close()
    return False


def bodies_behind_a_proxy(target: Target) -> None:
    """Unfinished posts of one client through a declared proxy: 2.3 times what it may have."""
    body = f"{HEAD}X-Forwarded-For: 203.0.113.7\r\nContent-Length: 100\r\n\r\n{{".encode()
    hold(target, PLACES * 23 // 100, lambda number: PROXY, body)


def bodies_of_one_network(target: Target) -> None:
    """Unfinished posts from all networks /64 of one /48: they would fill all places."""
    body = f"{HEAD}X-Forwarded-For: 2001:db8:1:NUMBER::1\r\nContent-Length: 100\r\n\r\n{{".encode()
    hold(target, PLACES * 104 // 100, lambda number: PROXY, body)


def half_heads(target: Target) -> None:
    """Half-sent heads from six addresses, four hundredths more than there are places."""
    hold(target, PLACES * 104 // 100, lambda number: f"127.0.0.{11 + number % 6}", JWKS.encode())


def registrations(target: Target) -> None:
    """120 registrations a second from as many addresses: each within its 60 a minute."""
    send_from_many(target, 120, "/register", lambda number: {"username": f"stranger-{number}"})


def wrong_passwords(target: Target) -> None:
    """240 wrong passwords a second from as many addresses."""
    send_from_many(target, 240, "/auth", lambda _: {"username": "known", "password": "wrong"})


def send_from_many(target: Target, rate: int, path: str, document: Callable[[int], object]) -> None:
    """So many posts a second, each from another address; nobody reads the answers."""
    kept: deque[socket.socket] = deque()
    while not target.over.is_set():
        number = time.monotonic_ns()
        source = f"127.{10 + number % 61}.{number // 61 % 251}.{1 + number // 15_311 % 251}"
        with contextlib.suppress(OSError):
            connection = target.connect(source)
            connection.sendall(post(path, document(number)))
            kept.append(connection)
        if len(kept) > 4 * rate:  # twice the time that a request may wait for a worker
            kept.popleft().close()
        time.sleep(1 / rate)


def malformed_posts_of_one_network(target: Target) -> None:
    """Malformed posts from all 65,536 networks /64 of one /48: they would fill the limiter."""
    posts = itertools.cycle(
        f"{HEAD}X-Forwarded-For: 2001:db8:1:{number:x}::1\r\nContent-Length: 1\r\n\r\n{{".encode()
        for number in range(65_536)
    )
    while not target.over.is_set():
        with contextlib.suppress(OSError), target.connect(PROXY) as connection:
            while not target.over.is_set():
                connection.sendall(b"".join(itertools.islice(posts, 64)))
                connection.recv(65_536)


def preflights(target: Target) -> None:
    """100 connections that ask what they may send, 64 times at once, and read the answers."""
    asked = b"OPTIONS /auth HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://a.example\r\n\r\n" * 64
    open_now = [target.connect() for _ in range(100)]
    while not target.over.is_set():
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.sendall(asked)
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.recv(65_536)


def half_handshakes(target: Target) -> None:
    """400 TLS handshakes a second that are begun and left, from as many addresses."""
    begin_handshakes(target, 400, lambda n: f"127.{10 + n % 61}.0.{1 + n // 61 % 251}")


def many_half_handshakes(target: Target) -> None:
    """More of them than two cores can sign with an RSA key, from one address."""
    begin_handshakes(target, 1_500, lambda number: "127.10.0.1")


def begin_handshakes(target: Target, rate: int, source: Callable[[int], str]) -> None:
    """Begin so many a second; the connections are left open for a while."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    hello = outgoing.read()
    kept: deque[socket.socket] = deque()
    start = time.monotonic()
    for number in itertools.count():
        if target.over.is_set():
            return
        with contextlib.suppress(OSError):
            connection = target.connect(source(number))
            connection.sendall(hello)
            kept.append(connection)
        if len(kept) > 400:
            kept.popleft().close()
        time.sleep(max(0.0, start + number / rate - time.monotonic()))


ECDSA, RSA = ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), ("rsa:2048",)
CROWDED = ("--max-connections", str(PLACES), "--max-per-client", str(PLACES // 5))
BEHIND_PROXY = (*CROWDED, "--trusted-proxy", PROXY)
LOGINS = Bound(served=0.98, slowest=2.0)
NAMED = "X-Forwarded-For: 198.51.100.1\r\n"
ATTACKS = (
    Attack("1", "a TLS connection of KeyUpdate records", key_updates, tls=ECDSA),
    Attack("2", "300 connections, one-octet chunks", small_chunks),
    Attack("2", "If-None-Match with 16,000 commas", many_commas),
    Attack("3", "120 registrations a second", registrations, LOGINS, login=True),
    Attack("3", "240 wrong passwords a second", wrong_passwords, LOGINS, login=True),
    Attack("4", "unfinished posts of one client of a proxy", bodies_behind_a_proxy,
           flags=BEHIND_PROXY, source=PROXY, fields=NAMED),
    Attack("5", "unfinished posts of one IPv6 /48", bodies_of_one_network,
           flags=BEHIND_PROXY, source=PROXY, fields=NAMED),
    Attack("5", "malformed posts of one IPv6 /48", malformed_posts_of_one_network, LOGINS,
           flags=("--trusted-proxy", PROXY), login=True),
    Attack("+", "pipelined preflights, 100 connections", preflights),
    Attack("+", "400 half handshakes a second", half_handshakes, tls=ECDSA),
    Attack("+", "1,500 half handshakes a second of one address, RSA", many_half_handshakes,
           tls=RSA),
    Attack("8", "half-sent heads from six addresses", half_heads, Bound(served=0.99),
           flags=CROWDED),
)  # fmt: skip


# -- the others


def watch(target: Target, attack: Attack, seconds: float) -> Seen:
    """What somebody else sees for so long."""
    asked = served = 0
    slowest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        asked += 1
        with contextlib.suppress(OSError):
            status = log_in_once(target, asked) if attack.login else ask_once(target, attack)
            served += status == 200
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(LOG_IN_EVERY if attack.login else ASK_EVERY)
    return Seen(asked, served, slowest)


def ask_once(target: Target, attack: Attack) -> int:
    """The status of a JWKS request on a connection of its own."""
    request = f"{JWKS}{attack.fields}\r\n".encode()
    with target.connect(attack.source) as raw:
        if not attack.tls:
            return ask(raw, request)[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(raw) as secure:
            return ask(secure, request)[1]


def log_in_once(target: Target, number: int) -> int:
    """The status of a login, from an address that has not asked for a while."""
    moment = time.monotonic_ns() // 1_000_000
    with target.connect(
        f"127.{100 + number % 100}.{moment % 251}.{1 + moment // 251 % 251}"
    ) as raw:
        return ask(raw, target.login)[1]


def remembered_login(process: Process) -> bytes:
    """The request of a login whose password the server has verified already."""
    request = post("/auth", {"username": "known", "password": process.register("known")})
    with socket.create_connection(("127.0.0.1", process.port), PATIENCE) as connection:
        ask(connection, request)
    return request


@contextlib.contextmanager
def server_for(attack: Attack) -> Iterator[Process]:
    """A server of the product, over TLS if the attack needs that."""
    if not attack.tls:
        with serving(*attack.flags) as process:
            yield process
        return
    with tempfile.TemporaryDirectory(prefix="jwks-bench-") as folder:
        certificate, key = str(Path(folder, "cert.pem")), str(Path(folder, "key.pem"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", *attack.tls, "-nodes",
             "-subj", "/CN=localhost", "-days", "2", "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        command = [sys.executable, str(ROOT / "server.py"), "--port", "0", "--db",
                   str(Path(folder, "bench.db")), "--access-log", "off", "--tls-cert", certificate,
                   "--tls-key", key, *attack.flags]  # fmt: skip
        process = Process(command, ready=re.compile(r"ready: https://127\.0\.0\.1:([0-9]+) "))
        try:
            yield process
        finally:
            process.end()


@contextlib.contextmanager
def attacking(target: Target, attack: Attack) -> Iterator[None]:
    """An attack that goes on, in a process of its own: the others must not wait for our threads."""
    target.over.clear()
    attacker = PROCESSES.Process(target=attack.attack, args=(target,), daemon=True)
    attacker.start()
    try:
        yield
    finally:
        target.over.set()
        attacker.join(PATIENCE)
        attacker.kill()
        attacker.join()


def row_of(attack: Attack, seconds: float) -> tuple[str, bool]:
    """A row of the table, and whether everything stayed within its bound."""
    with server_for(attack) as process:
        login = remembered_login(process) if attack.login else b""
        target = Target(process, PROCESSES.Event(), login)
        before = watch(target, attack, seconds / 2)
        with attacking(target, attack):
            time.sleep(seconds / 4)  # until it has begun
            during = watch(target, attack, seconds)
        after = watch(target, attack, seconds / 2)
        with attacking(target, attack):
            time.sleep(seconds / 4)
            start = time.perf_counter()
            process.end()
            stopped = time.perf_counter() - start
    bound = attack.bound
    held = (
        during.served >= bound.served * during.asked
        and during.slowest <= bound.slowest
        and stopped <= STOP_SECONDS
    )
    limits = f"{bound.served:.0%}, {bound.slowest * 1000:.0f} ms, {STOP_SECONDS:.0f} s"
    cells = (attack.row, attack.title, before, during, after, f"{stopped:.1f} s", limits,
             "held" if held else "**broken**")  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |", held


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4, help="how long each attack lasts")
    rows = sorted({attack.row for attack in ATTACKS})
    parser.add_argument("--only", nargs="+", choices=rows, default=rows, metavar="ROW")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * PLACES), hard))
    print("| row | attack | before: served, slowest | during | after | SIGTERM | bound | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    all_held = True
    for attack in ATTACKS:
        if attack.row in options.only:
            line, held = row_of(attack, options.seconds)
            print(line, flush=True)
            all_held = all_held and held
    return 0 if all_held else 1


if __name__ == "__main__":
    sys.exit(main())
