"""What clients see while a server, the primary or its standby is lost, and what is lost with it.

    python -m bench.failover [--seconds 3] [--only WORD]

Two servers on PostgreSQL behind haproxy (deploy/haproxy-two-servers.cfg without TLS), a primary and
a standby, all on the loopback of this machine. Eight clients register accounts and log in with them
through the proxy without a pause. Then something happens, and they go on. At the end every answer
that a client had is looked for in the database that is the primary then: an account that was
acknowledged must be a row of `users`, and each login one of `auth_logs`.

The last row is the control: its standby is asynchronous and was away, so answers must be lost
there. `away` is the longest time in which no login of any client was answered with 200.

At the end keys are revoked while both servers are asked for their key sets as fast as they answer:
printed is the time from the call, its commit included, to the first answer without the key.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest import mock

from bench.serving import ROOT, Process
from jwksd.store.keystore import KeyStore, Policy
from tests.live.clusters import Cluster, Clusters, why_not
from tests.support import free_port

CLIENTS = 8
LOGINS_EACH = 20  # with one account, before the client registers the next
CHEAP = ("--argon2", "t=1,m=8,p=1")  # more answers a second, so that more can be lost
PATIENCE = 60.0
ENVIRONMENT = {"NOT_MY_KEY": "a secret of the benchmark"}


class Answer(NamedTuple):
    """What a client had, and when (time.monotonic)."""

    at: float
    path: str
    status: int  # 0: the connection ended without one
    name: str


class Clients:
    """Each with an address of its own, which the proxy hashes."""

    def __init__(self, port: int) -> None:
        self.answers: list[list[Answer]] = [[] for _ in range(CLIENTS)]
        self._port, self._stopping = port, threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, answers), daemon=True)
            for number, answers in enumerate(self.answers)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> list[Answer]:
        """All that they saw, in order."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        return sorted(answer for answers in self.answers for answer in answers)

    def _run(self, number: int, answers: list[Answer]) -> None:
        count = 0
        while not self._stopping.is_set():
            name = f"user{number}.{count}"
            count += 1
            status, document = self._ask(number, "/register", {"username": name})
            answers.append(Answer(time.monotonic(), "/register", status, name))
            if status != 201:
                time.sleep(0.05)
                continue
            credentials = {"username": name, "password": document["password"]}
            for _ in range(LOGINS_EACH):
                if self._stopping.is_set():
                    break
                status, _ = self._ask(number, "/auth", credentials)
                answers.append(Answer(time.monotonic(), "/auth", status, name))

    def _ask(self, number: int, path: str, document: object) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._port, timeout=30, source_address=(f"127.0.0.{number + 2}", 0)
        )
        with contextlib.closing(connection):
            try:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", path, json.dumps(document), headers)
                response = connection.getresponse()
                return response.status, json.loads(response.read())
            except (OSError, http.client.HTTPException, ValueError):
                return 0, {}


class Stage:
    """Everything that runs, and what may befall it."""

    def __init__(self, clusters: Clusters, folder: Path, synchronous: bool) -> None:
        self.primary = clusters.primary()
        self.standby = clusters.standby(self.primary, "two")
        if synchronous:
            self.primary.expect("two")
        self._url = clusters.url(self.primary, self.standby)
        self._passfile = str(clusters.passfile)
        self.ports = free_port(), free_port()
        self.servers = [self.serve(port) for port in self.ports]
        self.port = free_port()
        self._proxy = self.start_proxy(folder)

    def serve(self, port: int) -> Process:
        """A server on the database."""
        flags = ("--auth-limit", "off", "--register-limit", "off", "--access-log", "off", *CHEAP)
        words = [sys.executable, str(ROOT / "server.py"), "--port", str(port), "--db", self._url]
        return Process(
            [*words, "--trusted-proxy", "127.0.0.1", *flags],
            environ={**ENVIRONMENT, "PGPASSFILE": self._passfile},
        )

    def start_proxy(self, folder: Path) -> subprocess.Popen[bytes]:
        """The proxy, once it passes requests on."""
        text = (ROOT / "deploy" / "haproxy-two-servers.cfg").read_text("utf-8")
        for old, new in {
            "bind :443 ssl crt /etc/haproxy/issuer.pem": f"bind 127.0.0.1:{self.port}",
            "127.0.0.1:8081": f"127.0.0.1:{self.ports[0]}",
            "127.0.0.1:8082": f"127.0.0.1:{self.ports[1]}",
        }.items():
            if old not in text:
                raise RuntimeError(f"deploy/haproxy-two-servers.cfg has no {old!r}")
            text = text.replace(old, new)
        path = folder / f"haproxy-{self.port}.cfg"
        path.write_text(text, "utf-8")
        proxy = subprocess.Popen(
            ["haproxy", "-db", "-f", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self.healthy(proxy))
        return proxy

    def healthy(self, proxy: subprocess.Popen[bytes]) -> bool:
        """Whether requests get through."""
        if proxy.poll() is not None:
            raise RuntimeError("haproxy has ended")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/healthz")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    @contextlib.contextmanager
    def keys(self) -> Iterator[KeyStore]:
        """The keys as an operator's command has them."""
        from jwksd.store.postgres import PostgreSQL

        secret = ENVIRONMENT["NOT_MY_KEY"].encode()
        known = mock.patch.dict(os.environ, PGPASSFILE=self._passfile)
        with known, contextlib.closing(PostgreSQL(self._url)) as database:
            keys = KeyStore(database, secret, Policy(), log=lambda line: None)
            keys.open()
            yield keys

    def end(self) -> None:
        """End what we started; the clusters are ended by whoever made them."""
        self._proxy.kill()
        self._proxy.wait(PATIENCE)
        for server in self.servers:
            server.end()


def wait_until(holds: Callable[[], object]) -> None:
    """Look again and again, for a bounded time."""
    until = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > until:
            raise RuntimeError("it does not happen")
        time.sleep(0.02)


def nothing(stage: Stage, seconds: float) -> Cluster:
    """The clients alone, for comparison."""
    return stage.primary


def kill_a_server(stage: Stage, seconds: float) -> Cluster:
    """One server is killed and started again."""
    stage.servers[0].process.kill()
    stage.servers[0].process.wait(PATIENCE)
    time.sleep(seconds)
    stage.servers[0] = stage.serve(stage.ports[0])
    return stage.primary


def kill_the_primary(stage: Stage, seconds: float) -> Cluster:
    """The primary is killed, its standby promoted at once."""
    stage.primary.kill()
    stage.standby.promote()
    return stage.standby


def freeze_the_primary(stage: Stage, seconds: float) -> Cluster:
    """The primary is frozen, its standby promoted, and the old primary thawed."""
    stage.primary.freeze()
    stage.standby.promote()
    time.sleep(seconds)
    stage.primary.thaw()
    return stage.standby


def thaw_it_soon(stage: Stage, seconds: float) -> Cluster:
    """The frozen primary is thawed after the promotion, before any server has given it up."""
    stage.primary.freeze()
    stage.standby.promote()
    stage.primary.thaw()
    return stage.standby


def kill_the_standby(stage: Stage, seconds: float) -> Cluster:
    """The standby is killed; after a while its name is taken out of the configuration."""
    stage.standby.kill()
    time.sleep(seconds)
    stage.primary.expect("")
    return stage.primary


def lose_what_is_behind(stage: Stage, seconds: float) -> Cluster:
    """The control: the standby is asynchronous, and is away for the primary's last second."""
    stage.standby.stop()
    time.sleep(1)
    stage.primary.kill()
    stage.standby.start()
    stage.standby.promote()
    return stage.standby


EVENTS: dict[str, tuple[Callable[[Stage, float], Cluster], bool]] = {
    "nothing": (nothing, True),
    "server killed": (kill_a_server, True),
    "primary killed": (kill_the_primary, True),
    "primary frozen, thawed later": (freeze_the_primary, True),
    "primary frozen, thawed at once": (thaw_it_soon, True),
    "standby killed": (kill_the_standby, True),
    "asynchronous standby (control)": (lose_what_is_behind, False),
}


@contextlib.contextmanager
def stage_of(synchronous: bool) -> Iterator[Stage]:
    """What one row of the table needs."""
    with Clusters() as clusters, tempfile.TemporaryDirectory(prefix="jwks-failover-") as folder:
        stage = Stage(clusters, Path(folder), synchronous)
        try:
            yield stage
        finally:
            stage.end()


def play(name: str, seconds: float) -> str:
    """One row: what happened to the answers."""
    event, synchronous = EVENTS[name]
    with stage_of(synchronous) as stage:
        clients = Clients(stage.port)
        time.sleep(seconds)
        began = time.monotonic()
        primary = event(stage, seconds)
        time.sleep(seconds)
        answers = [answer for answer in clients.end() if answer.at]
        ended = time.monotonic()
        return row(name, answers, began, ended, lost(answers, primary))


def lost(answers: Sequence[Answer], primary: Cluster) -> tuple[int, int]:
    """How many accounts and logins were acknowledged and are not there."""
    names = {a.name for a in answers if a.path == "/register" and a.status == 201}
    logins = Counter(a.name for a in answers if a.path == "/auth" and a.status == 200)
    rows = primary.sql(
        "SELECT username, (SELECT count(*) FROM auth_logs WHERE user_id = users.id "
        "AND outcome = 'success') FROM users",
        "keys",
    )
    kept = dict(line.split("|") for line in rows.split())
    missing = [max(0, count - int(kept.get(name, 0))) for name, count in logins.items()]
    return len(names - kept.keys()), sum(missing)


def row(
    name: str, answers: Sequence[Answer], began: float, ended: float, gone: tuple[int, int]
) -> str:
    """A line of the table."""
    good = [a.at for a in answers if a.path == "/auth" and a.status == 200]
    after = [began, *(at for at in good if at >= began), ended]
    away = max(later - earlier for earlier, later in zip(after, after[1:]))
    statuses = Counter(a.status for a in answers if a.at >= began)
    failed = {status: n for status, n in statuses.items() if status not in (200, 201)}
    shown = ", ".join(f"{n} x {status or 'none'}" for status, n in sorted(failed.items())) or "-"
    return (
        f"{name:32} {len(good):7} {sum(a.status == 201 for a in answers):9} "
        f"{away:6.2f} s  {gone[0]:5} {gone[1]:7}   {shown}"
    )


def revocations(count: int) -> str:
    """How long a revoked key is served by each of two servers, with a synchronous standby."""
    with stage_of(synchronous=True) as stage, stage.keys() as keys:
        times = []
        for _ in range(count):
            (old, *_) = (key.kid for key in keys.published().keys)
            new, _ = keys.rotate(at_once=True)
            wait_until(partial(all_have, new, stage.ports))
            with ThreadPoolExecutor(len(stage.ports)) as pool:
                gone = [pool.submit(first_without, old, port) for port in stage.ports]
                time.sleep(0.1)  # both are asked by then
                began = time.perf_counter()
                keys.revoke(old, replace=False)
                times += [(future.result(PATIENCE) - began) * 1000 for future in gone]
        return (
            f"{count} revocations, {len(stage.ports)} servers: a key is gone within "
            f"{median(times):.0f} ms (median), {max(times):.0f} ms (longest)"
        )


def first_without(kid: str, port: int) -> float:
    """When (time.perf_counter) a server gave the first key set without a key."""
    until = time.monotonic() + PATIENCE
    while kid in kids(port):
        if time.monotonic() > until:
            raise RuntimeError("it stays")
        time.sleep(0.001)  # the other one and PostgreSQL share the cores
    return time.perf_counter()


def all_have(kid: str, ports: Sequence[int]) -> bool:
    """Whether every server publishes a key."""
    return all(kid in kids(port) for port in ports)


def kids(port: int) -> set[str]:
    """The names of the keys that a server publishes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/.well-known/jwks.json") as answer:
        return {key["kid"] for key in json.load(answer)["keys"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="failover", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="before and after what happens")
    parser.add_argument("--only", default="", help="the rows with this word")
    options = parser.parse_args(arguments)
    reason = why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    print(f"{os.cpu_count()} cores, {CLIENTS} clients; answers with 200 and 201, then what is lost")
    heads = "what happens", "logins", "accounts", "away"
    print("{:32} {:>7} {:>9} {:>8}".format(*heads), " lost: a., logins   other answers")
    for name in EVENTS:
        if options.only in name:
            print(play(name, options.seconds), flush=True)
    if options.only in "a key revoked":
        print(revocations(20))
    return 0


if __name__ == "__main__":
    sys.exit(main())
