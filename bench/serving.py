"""Our server as a process, for the benchmarks: started, watched from outside, ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(r"ready: http://127\.0\.0\.1:([0-9]+) ")


class Process:
    """A server that says on standard error when it is ready; ours, or another for comparison."""

    def __init__(self, command: list[str], ready: re.Pattern[str] = READY) -> None:
        environ = {**os.environ, "NOT_MY_KEY": "a secret of the benchmark"}
        start = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        self.port = 0
        for line in self.process.stderr or ():
            found = ready.search(line)
            if found:
                self.port = int(found[1])
                break
        else:
            raise RuntimeError(f"{command} did not start")
        self.start_seconds = time.perf_counter() - start
        # From here on it writes to nobody.
        self.process.stderr.close()

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

    def status(self, name: str) -> int:
        """A row of /proc/PID/status as a number (of KiB for sizes); 0 where there is none."""
        found = re.search(rf"^{name}:\s+([0-9]+)", self._proc("status"), re.MULTILINE)
        return int(found[1]) if found else 0

    def cpu_seconds(self) -> float:
        """The processor time it has used; 0 where that cannot be read."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.process.pid}/{name}").read_text()
        except OSError:
            return ""

    def end(self) -> None:
        """Stop it and wait."""
        self.process.terminate()
        self.process.wait(30)


@contextlib.contextmanager
def serving(*flags: str, db: Path | None = None) -> Iterator[Process]:
    """Our server on a free port, by default on a database of its own, without limits and log."""
    with tempfile.TemporaryDirectory(prefix="jwks-bench-") as folder:
        database = str(db or Path(folder, "bench.db"))
        common = ("--port", "0", "--db", database, "--access-log", "off")
        unlimited = ("--auth-limit", "off", "--register-limit", "off")
        process = Process([sys.executable, str(ROOT / "server.py"), *common, *unlimited, *flags])
        try:
            yield process
        finally:
            process.end()
