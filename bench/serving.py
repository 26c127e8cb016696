"""Servers as processes, for all benchmarks: started, watched from outside, ended.

    with serving("--verified-cache", "off") as process: ...      ours, on its own database
    with started(command, port=port) as process: ...             another one, on this port

Rules of this file:
- A server has started when it says so on standard error (ours), or when its port takes connections.
- The environment of whoever runs a benchmark sets nothing of ours.
- `tree` is a folder with another version of this project: two versions are measured in turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(r"ready: http://127\.0\.0\.1:([0-9]+) ")
START_SECONDS = 20.0  # then a server that takes no connection has failed; the slowest needs 2


class Process:
    """A server that takes connections."""

    def __init__(
        self,
        command: list[str],
        *,
        ready: re.Pattern[str] = READY,
        port: int = 0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Without a port, the first group of the line that `ready` finds is its port."""
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if port else subprocess.PIPE,
            text=True,
            env={**environment(), **(environ or {})},
            cwd=ROOT,
        )
        self.port = port
        try:
            if port:
                self._wait_for_port()
            else:
                self._wait_for_line(ready)
        except BaseException:
            self.end()
            raise
        self.start_seconds = time.perf_counter() - start

    def _wait_for_line(self, ready: re.Pattern[str]) -> None:
        with self.process.stderr as lines:  # from the ready line on it writes to nobody
            for line in lines:
                found = ready.search(line)
                if found:
                    self.port = int(found[1])
                    return
        raise RuntimeError(f"{self.process.args!r} did not start")

    def _wait_for_port(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError as error:
                ended = self.process.poll()
                if ended is not None or time.monotonic() > end:
                    how = f"exit code {ended}" if ended is not None else "still running"
                    raise RuntimeError(f"{self.process.args!r} did not start: {how}") from error
                time.sleep(0.002)

    def register(self, name: str) -> str:
        """The password of a new account."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/register",
            json.dumps({"username": name}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            password: str = json.load(answer)["password"]
            return password

    def memory_kib(self) -> int:
        """The memory that it holds; 0 where that cannot be read."""
        found = re.search(r"^VmRSS:\s+([0-9]+)", self._proc("status"), re.MULTILINE)
        return int(found[1]) if found else 0

    def cpu_seconds(self) -> float:
        """The processor time that it and its children have used, the kernel's share included."""
        return cpu_seconds(self.process.pid)

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.process.pid}/{name}").read_text()
        except OSError:
            return ""

    def end(self) -> None:
        """Stop it and wait."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)


def environment() -> dict[str, str]:
    """The environment of a server."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("JWKS_")}
    return {**kept, "NOT_MY_KEY": "a secret of the benchmark"}


def cpu_seconds(process: int) -> float:
    """The processor time of a process and of its children; 0 where that cannot be read."""
    try:
        tasks = Path(f"/proc/{process}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    own = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(child) for child in children)


def command(
    *flags: str, db: Path | str, tree: Path = ROOT, port: int = 0, log: str = "off"
) -> list[str]:
    """What starts our server, without limits."""
    unlimited = ("--auth-limit", "off", "--register-limit", "off")
    common = ("--port", str(port), "--db", str(db), "--access-log", log)
    return [sys.executable, str(tree / "server.py"), *common, *unlimited, *flags]


@contextlib.contextmanager
def started(
    words: list[str],
    *,
    ready: re.Pattern[str] = READY,
    port: int = 0,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Any server, ended afterwards."""
    process = Process(words, ready=ready, port=port, environ=environ)
    try:
        yield process
    finally:
        process.end()


@contextlib.contextmanager
def serving(*flags: str, db: Path | None = None, tree: Path = ROOT) -> Iterator[Process]:
    """Our server on a free port, by default on a database of its own."""
    with tempfile.TemporaryDirectory(prefix="jwks-bench-") as folder:
        words = command(*flags, db=db or Path(folder, "bench.db"), tree=tree)
        with started(words) as process:
            yield process
