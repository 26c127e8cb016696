"""Requests a second and latency of the JWKS route, beside other servers.

    python -m bench.throughput [--seconds 2] [--rounds 6] [--only SCENARIO ...] [--tree DIR]
                               [--servers NAME ...]

Every server runs on core 0, the load generator on core 1: `wrk`, which resumes sessions of TLS, or
`ab`, which never does; both must be installed. Within a scenario the servers take turns, round by
round. A figure is that of a server's best round: what disturbs a measurement on a shared machine
only ever slows it. Ratios compare figures of one run.
Servers that are not installed are left out: `go` and `nginx`, and in the Python that runs this
uvicorn, uvloop, httptools, FastAPI, Flask, gunicorn and bjoern.

With --tree, our server of another folder (an older commit, checked out there) takes part as well.

Ours is the whole product: `server.py` with its database, routing, ETag, deadlines and counters. The
others only answer this one route (see bench/others.py).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import others, serving
from bench.loader import ask
from tests.support import free_port

Row = dict[str, float]
SERVERS = [
    "ours",
    others.OTHER_TREE,
    "ours, access log on",
    "Go net/http",
    "nginx",
    "bjoern",
    "bare ASGI on uvicorn, uvloop",
    "FastAPI on uvicorn, uvloop",
    "Flask on gunicorn",
    "http.server, a thread each",
]
EVENT_LOOPS = SERVERS[:6]  # those for which thousands of connections are a fair question
TLS = ("ours", others.OTHER_TREE, "Go net/http", "nginx")  # those that are set up for it here
PIPELINE = """
init = function(args)
  local one = wrk.format("GET", wrk.path)
  pipelined = string.rep(one, 16)
end
request = function() return pipelined end
"""
DESCRIPTORS = 16_384  # for 10,000 connections and what else a process opens
IDLE = 10_000
SLOW_READERS = 100
CONNECTS_A_SECOND = 1000  # at least; wrk counts the time in which it connects
SERVER_CORE, CLIENT_CORE = "0", "1"
REQUEST = f"GET {others.PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class Load(NamedTuple):
    """One scenario: what wrk is told, and who takes part."""

    connections: int
    options: tuple[str, ...] = ()
    servers: tuple[str, ...] = tuple(SERVERS)
    tls: str = ""  # the kind of the certificate's key
    slow_readers: int = 0
    full: bool = False  # a whole handshake for each request


SCENARIOS = {
    "1 connection": Load(1),
    "32 connections": Load(32),
    "256 connections": Load(256),
    "1,000 connections": Load(1000, servers=tuple(EVENT_LOOPS)),
    "a connection per request": Load(32, ("-H", "Connection: close"), tuple(SERVERS[:-1])),
    "pipelined, 16 at once": Load(32, ("-s", "PIPELINE"), tuple(EVENT_LOOPS)),
    "beside 100 clients that never read": Load(
        32, servers=tuple(EVENT_LOOPS), slow_readers=SLOW_READERS
    ),
    "TLS, 32 connections": Load(32, servers=TLS, tls="ecdsa"),
    "TLS, a resumed session per request": Load(32, ("-H", "Connection: close"), TLS, tls="ecdsa"),
    "TLS, a handshake per request, ECDSA": Load(32, servers=TLS, tls="ecdsa", full=True),
    "TLS, a handshake per request, RSA": Load(32, servers=TLS, tls="rsa", full=True),
    **{
        f"{clients:,} clients": Load(clients, servers=("ours", "Go net/http", "nginx"))
        for clients in (1, 4, 16, 64, 256, 1_024, 4_096)
    },
}
IDLE_SCENARIO = "10,000 idle connections"


class Figure(NamedTuple):
    """One round: requests a second, the 99th percentile in milliseconds, failed requests, and
    the microseconds of processor that the server spent on one."""

    rate: float
    p99: float
    failures: int
    processor: float


@contextlib.contextmanager
def started(name: str, folder: Path, tls: str) -> Iterator[serving.Process]:
    """A server that answers. `LookupError` if it is not installed."""
    port = free_port()
    command = others.command(name, port, folder, tls)
    if command is None:
        raise LookupError(name)
    environ = {"BENCH_BODY": str(folder / "body")}
    pinned = ["taskset", "-c", SERVER_CORE, *command]
    with serving.started(pinned, port=port, environ=environ) as process:
        yield process


def load(process: int, port: int, scenario: Load, seconds: int, folder: Path) -> Figure:
    """One round of wrk, or of ab."""
    seconds += scenario.connections // CONNECTS_A_SECOND
    scheme = "https" if scenario.tls else "http"
    url = f"{scheme}://127.0.0.1:{port}{others.PATH}"
    if scenario.full:
        words = ["ab", "-q", "-t", f"{seconds}", "-n", "1000000", "-c", f"{scenario.connections}"]
    else:
        words = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "--timeout", "10s",
                 "--latency"]  # fmt: skip
        words += [str(folder / "pipeline.lua") if o == "PIPELINE" else o for o in scenario.options]
    before = serving.cpu_seconds(process)
    report = subprocess.run(
        ["taskset", "-c", CLIENT_CORE, *words, url], capture_output=True, text=True, check=True
    ).stdout
    spent = serving.cpu_seconds(process) - before
    return figure_of_ab(report, spent) if scenario.full else figure(report, spent)


def wait_until_at_rest(process: int) -> None:
    """Until a server has written all that it can: it uses less than a tenth of its core."""
    for _ in range(100):
        before = serving.cpu_seconds(process)
        time.sleep(0.3)
        if serving.cpu_seconds(process) - before <= 0.03:
            return


def figure(report: str, processor: float) -> Figure:
    count = re.search(r"(\d+) requests in", report)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", report)
    tail = re.search(r"99%\s+([\d.]+)(us|ms|s)", report)
    assert rate and tail and count, report
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", report)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    failures = sum(map(int, errors.groups())) if errors else 0
    unit = {"us": 0.001, "ms": 1.0, "s": 1000.0}[tail[2]]
    return Figure(
        float(rate[1]),
        float(tail[1]) * unit,
        failures + int(wrong[1] if wrong else 0),
        processor * 1e6 / max(1, int(count[1])),
    )


def figure_of_ab(report: str, processor: float) -> Figure:
    found = {
        name: float(re.search(rf"(?m)^ *{name}:? +([\d.]+)", report)[1])
        for name in ("Complete requests", "Failed requests", "Requests per second", "99%")
    }
    complete, failed, rate, p99 = found.values()
    return Figure(rate, p99, int(failed), processor * 1e6 / max(1.0, complete))


@contextlib.contextmanager
def slow_readers(process: int, port: int, count: int) -> Iterator[None]:
    """Clients that ask for thousands of answers and read none."""
    clients = []
    try:
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a small window
            client.connect(("127.0.0.1", port))
            client.setblocking(False)
            client.send(REQUEST * 5_000)  # or as many as are taken
            clients.append(client)
        if count:
            wait_until_at_rest(process)
        yield
    finally:
        for client in clients:
            client.close()


def run(
    scenario: Load, names: Sequence[str], seconds: int, rounds: int, folder: Path
) -> dict[str, Row]:
    """What one scenario came to, by server."""
    figures: dict[str, list[Figure]] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, tuple[int, int]] = {}
        for name in names:
            if name in scenario.servers:
                with contextlib.suppress(LookupError):
                    process = stack.enter_context(started(name, folder, scenario.tls))
                    running[name] = process.process.pid, process.port
        for name, (process_id, port) in running.items():  # warm up
            load(process_id, port, scenario, 1, folder)
            figures[name] = []
        for _ in range(rounds):
            for name, (process_id, port) in list(running.items()):
                try:
                    with slow_readers(process_id, port, scenario.slow_readers):
                        figures[name].append(load(process_id, port, scenario, seconds, folder))
                except (OSError, subprocess.CalledProcessError) as error:
                    why = getattr(error, "stderr", "") or error
                    print(f"{name} is left out: {why}\n", file=sys.stderr)
                    del running[name], figures[name]
    rows = {name: best_of(found) for name, found in figures.items() if found}
    return {name: row for name, row in rows.items() if row["rate"]}  # some answer nobody in time


def best_of(rounds: list[Figure]) -> Row:
    return {
        "rate": round(max(figure.rate for figure in rounds)),
        "p99": round(min(figure.p99 for figure in rounds), 2),
        "processor": round(min(figure.processor for figure in rounds), 1),
        "failed": sum(figure.failures for figure in rounds),
    }


def crowd(names: Sequence[str], folder: Path) -> dict[str, Row]:
    """10,000 connections that say nothing, and one client that asks on."""
    rows = {}
    for name in names:
        if name in EVENT_LOOPS and "log" not in name:
            with contextlib.suppress(LookupError), started(name, folder, "") as process:
                rows[name] = idle_row(process)
    return rows


def idle_row(process: serving.Process) -> Row:
    address = ("127.0.0.1", process.port)
    idle = [socket.create_connection(address, 10) for _ in range(IDLE)]
    try:
        time.sleep(1)
        with socket.create_connection(address, 10) as client:
            taken = sorted(ask(client, REQUEST)[0] * 1000 for _ in range(5_000))
        return {
            "memory": round(process.memory_kib() / 1024),
            "p50": round(taken[len(taken) // 2], 2),
            "p99": round(taken[len(taken) * 99 // 100], 2),
            "slowest": round(taken[-1], 2),
        }
    finally:
        for client in idle:
            client.close()


@contextlib.contextmanager
def prepared() -> Iterator[Path]:
    """A folder with what the servers need; the load generator's core for this process."""
    if not (shutil.which("wrk") and shutil.which("ab")):
        sys.exit("install wrk and ab (apache2-utils): they make the load")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            prepare(Path(name))
            yield Path(name)
    finally:
        os.sched_setaffinity(0, cores)


def prepare(folder: Path) -> None:
    """The body, as our server gives it, a certificate, and the script for pipelining."""
    (folder / "pipeline.lua").write_text(PIPELINE)
    with started("ours", folder, "") as process:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{process.port}{others.PATH}")
        (folder / "body").write_bytes(answer.read())
    for kind, key in others.TLS.items():
        words = ["openssl", "req", "-x509", "-newkey", *key, "-nodes", "-subj", "/CN=localhost",
                 "-days", "2", "-keyout", str(folder / f"{kind}.key"),
                 "-out", str(folder / f"{kind}.crt")]  # fmt: skip
        subprocess.run(words, check=True, capture_output=True)


def measure(
    title: str, names: Sequence[str], seconds: int, rounds: int, folder: Path
) -> dict[str, Row]:
    """The figures of a scenario, by server; times in milliseconds, the processor's in us."""
    if title == IDLE_SCENARIO:
        return crowd(names, folder)
    return run(SCENARIOS[title], names, seconds, rounds, folder)


def table(rows: Mapping[str, Row]) -> str:
    """The figures of a scenario as text."""
    ours = rows.get("ours", {}).get("rate", 0.0)
    lines = []
    for name, row in rows.items():
        ratio = f"{ours / row['rate']:5.2f} x" if row.get("rate") else ""
        cells = "  ".join(f"{key} {value:,}" for key, value in row.items())
        lines.append(f"{name:30} {ratio:8} {cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=2)  # wrk takes no fractions
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--only", nargs="+", choices=[*SCENARIOS, IDLE_SCENARIO], metavar="SCENARIO"
    )
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS, metavar="NAME")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="another version of ours")
    options = parser.parse_args()
    if options.tree:
        others.TREES[others.OTHER_TREE] = options.tree.resolve()
    with prepared() as folder:
        for title in options.only or [*SCENARIOS, IDLE_SCENARIO]:
            rows = measure(title, options.servers, options.seconds, options.rounds, folder)
            print(f"\n{title}: the first column is what ours is of each\n{table(rows)}", flush=True)


if __name__ == "__main__":
    main()
