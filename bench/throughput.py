"""Requests a second and latency of the JWKS route, beside other servers.

    python -m bench.throughput [--seconds 2] [--rounds 6] [--only SCENARIO ...] [--tree DIR]
                               [--servers NAME ...]

Every server runs on core 0, the load generator (`wrk`, which must be installed) on core 1. Within
a scenario the servers take turns, round by round. A figure is that of a server's best round: what
disturbs a measurement on a shared machine only ever slows it. Ratios compare figures of one run.
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
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import others, serving
from bench.loader import ask

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
SERVER_CORE, CLIENT_CORE = "0", "1"
REQUEST = f"GET {others.PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


class Load(NamedTuple):
    """One scenario: what wrk is told, and who takes part."""

    connections: int
    options: tuple[str, ...] = ()
    servers: tuple[str, ...] = tuple(SERVERS)
    tls: bool = False
    slow_readers: int = 0


SCENARIOS = {
    "1 connection": Load(1),
    "32 connections": Load(32),
    "256 connections": Load(256),
    "1,000 connections": Load(1000, servers=tuple(EVENT_LOOPS)),
    "a connection per request": Load(32, ("-H", "Connection: close")),
    "pipelined, 16 at once": Load(32, ("-s", "PIPELINE"), tuple(EVENT_LOOPS)),
    "beside 100 clients that never read": Load(
        32, servers=tuple(EVENT_LOOPS), slow_readers=SLOW_READERS
    ),
    "TLS, 32 connections": Load(32, servers=TLS, tls=True),
    "TLS, a connection per request": Load(32, ("-H", "Connection: close"), TLS, tls=True),
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
def started(name: str, folder: Path, tls: bool) -> Iterator[serving.Process]:
    """A server that answers. `LookupError` if it is not installed."""
    port = serving.free_port()
    command = others.command(name, port, folder, tls)
    if command is None:
        raise LookupError(name)
    environ = {"BENCH_BODY": str(folder / "body")}
    pinned = ["taskset", "-c", SERVER_CORE, *command]
    with serving.started(pinned, port=port, environ=environ) as process:
        yield process


def load(process: int, port: int, scenario: Load, seconds: float, folder: Path) -> Figure:
    """One round of wrk."""
    options = [str(folder / "pipeline.lua") if o == "PIPELINE" else o for o in scenario.options]
    scheme = "https" if scenario.tls else "http"
    command = [
        "taskset", "-c", CLIENT_CORE, "wrk", "-t1", f"-c{scenario.connections}",
        f"-d{seconds:g}s", "--timeout", "10s", "--latency", *options,
        f"{scheme}://127.0.0.1:{port}{others.PATH}",
    ]  # fmt: skip
    before = serving.cpu_seconds(process)
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return figure(report, serving.cpu_seconds(process) - before)


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


def run(scenario: Load, names: list[str], seconds: float, rounds: int, folder: Path) -> str:
    """The table of one scenario."""
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
                except (OSError, subprocess.CalledProcessError):
                    print(f"{name} has crashed; left out\n")
                    del running[name], figures[name]
    return table(figures)


def table(figures: dict[str, list[Figure]]) -> str:
    lines = [
        "| server | requests/s | ours is | p99 | processor per request | failed |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    rates = {name: max(f.rate for f in found) for name, found in figures.items()}
    for name, found in figures.items():
        ratio = f"{rates['ours'] / rates[name]:.2f} x" if "ours" in rates and rates[name] else ""
        p99, processor = min(f.p99 for f in found), min(f.processor for f in found)
        failures = sum(f.failures for f in found)
        lines.append(
            f"| {name} | {rates[name]:,.0f} | {ratio} | {p99:.2f} ms | {processor:.1f} us "
            f"| {failures} |"
        )
    return "\n".join(lines)


def idle_table(names: list[str], folder: Path) -> str:
    """10,000 connections that say nothing, and one client that asks on."""
    lines = ["| server | memory | p50 | p99 | slowest |", "| --- | --: | --: | --: | --: |"]
    for name in names:
        if name in EVENT_LOOPS and "log" not in name:
            with contextlib.suppress(LookupError), started(name, folder, False) as process:
                lines.append(f"| {name} | {idle_row(process)} |")
    return "\n".join(lines)


def idle_row(process: serving.Process) -> str:
    address = ("127.0.0.1", process.port)
    idle = [socket.create_connection(address, 10) for _ in range(IDLE)]
    try:
        time.sleep(1)
        with socket.create_connection(address, 10) as client:
            taken = sorted(ask(client, REQUEST)[0] * 1000 for _ in range(5_000))
        p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
        memory = process.memory_kib() / 1024
        return f"{memory:.0f} MB | {p50:.2f} ms | {p99:.2f} ms | {taken[-1]:.2f} ms"
    finally:
        for client in idle:
            client.close()


def prepare(folder: Path) -> None:
    """The body, as our server gives it, a certificate, and the script for pipelining."""
    (folder / "pipeline.lua").write_text(PIPELINE)
    with started("ours", folder, False) as process:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{process.port}{others.PATH}")
        (folder / "body").write_bytes(answer.read())
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
            "-days", "2", "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--only", nargs="+", choices=[*SCENARIOS, IDLE_SCENARIO], metavar="SCENARIO"
    )
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS, metavar="NAME")
    parser.add_argument("--tree", type=Path, metavar="DIR", help="another version of ours")
    options = parser.parse_args()
    if options.tree:
        others.TREES[others.OTHER_TREE] = options.tree.resolve()
    if not shutil.which("wrk"):
        sys.exit("install wrk: it makes the load")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    os.sched_setaffinity(0, {int(CLIENT_CORE)})
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        prepare(folder)
        for title in options.only or [*SCENARIOS, IDLE_SCENARIO]:
            print(f"\n**{title}**\n", flush=True)
            if title == IDLE_SCENARIO:
                print(idle_table(options.servers, folder), flush=True)
                continue
            scenario = SCENARIOS[title]
            print(
                run(scenario, options.servers, options.seconds, options.rounds, folder), flush=True
            )


if __name__ == "__main__":
    main()
