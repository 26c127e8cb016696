"""PostgreSQL on the loopback: a primary, its standbys, and whatever can befall them.

    with Clusters() as clusters:
        primary = clusters.primary()
        standby = clusters.standby(primary, "two")
        primary.expect("two")                  # a commit waits for it from here on
        psycopg.connect(clusters.url(primary, standby), passfile=str(clusters.passfile))

The programs are those of Debian's package `postgresql`, the newest there are. A cluster lives in a
temporary folder, as the user postgres where we are root. A role with a password owns one database.
Nothing is left: neither a process nor a file nor shared memory, however the block is left.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support import free_port

INSTALLED = Path("/usr/lib/postgresql")
ROLE = DATABASE = "keys"
SECONDS = 60  # for a start, a stop, a copy; each takes one or two on an idle machine
SETTINGS = """
listen_addresses = '127.0.0.1'
dynamic_shared_memory_type = mmap  # in the folder, which goes
shared_buffers = 32MB
wal_keep_size = 512MB  # a standby that was gone finds what it missed
wal_retrieve_retry_interval = 200ms
"""
AS_USER: dict[str, Any] = {}
if os.geteuid() == 0:  # whom PostgreSQL refuses
    AS_USER = {"user": "postgres", "group": "postgres", "extra_groups": []}


def why_not() -> str | None:
    """The reason why there can be no cluster here; None where there can."""
    if not list(INSTALLED.glob("*/bin/initdb")):
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if AS_USER and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return "root cannot run PostgreSQL, and there is no user postgres"
    return None if sys.platform == "linux" else "processes are found in Linux's /proc"


def program(name: str) -> str:
    """The path of a program of the newest version installed."""
    newest = max(INSTALLED.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return str(newest.with_name(name))


def wait_until(what: str, holds: Callable[[], object]) -> None:
    """Look again and again, for a bounded time."""
    until = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(f"not within {SECONDS} s: {what}")
        time.sleep(0.01)


def processes() -> Iterator[tuple[int, int]]:
    """Every process that has not ended, and its parent."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(path.parent.name), int(parent)


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to each of them that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Cluster:
    """One server of PostgreSQL and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.port = folder, folder / "data", free_port()
        self.process: subprocess.Popen[bytes] | None = None
        if AS_USER:
            shutil.chown(folder, "postgres", "postgres")

    def run(self, name: str, *words: object, text: str = "") -> str:
        """What one of PostgreSQL's programs prints; its failure is ours."""
        done = subprocess.run(
            [program(name), *map(str, words)], input=text, cwd=self.folder, timeout=SECONDS,
            capture_output=True, text=True, env={"LC_ALL": "C"}, **AS_USER,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{name}: {done.stderr[-3000:]}")
        return done.stdout.strip()

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What a statement of the superuser's returns; columns are parted by `|`."""
        where = ("-h", self.folder, "-p", self.port, "-U", "postgres", "-d", database)
        return self.run("psql", *where, "-XAtq", "-v", "ON_ERROR_STOP=1", text=statement)

    def configure(self, **settings: object) -> None:
        """Set these and no others beside SETTINGS; whoever connects afterwards has them."""
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        (self.folder / "settings.conf").write_text(SETTINGS + "".join(lines), "utf-8")
        if self.process is not None:
            before = self.sql("SELECT pg_conf_load_time()")
            self.process.send_signal(signal.SIGHUP)
            wait_until("new settings", lambda: self.sql("SELECT pg_conf_load_time()") != before)

    def expect(self, standby: str) -> None:
        """Have every commit wait for a standby, by its name; for none with an empty one."""
        self.configure(synchronous_standby_names=standby)
        if standby:
            self.wait_for(standby, "sync_state = 'sync'")

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        command = [program("postgres"), "-D", str(self.data), "-k", str(self.folder)]
        command += ["-p", str(self.port), "-c", f"config_file={self.folder}/settings.conf"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"LC_ALL": "C"}, start_new_session=True, text=False, **AS_USER,
            )  # fmt: skip
        wait_until("PostgreSQL takes connections", self._takes_connections)

    def _takes_connections(self) -> bool:
        assert self.process
        if self.process.poll() is not None:
            raise AssertionError((self.folder / "log").read_text("utf-8")[-3000:])
        noted = self._noted()
        return noted[:1] == [str(self.process.pid)] and noted[7:] in (["ready"], ["standby"])

    def _noted(self) -> list[str]:
        """The lines that a running server keeps about itself: first its number, last its state."""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text("utf-8").splitlines()
        return [line.strip() for line in lines]

    def stop(self) -> None:
        """End it in order, without waiting for clients."""
        assert self.process
        self.process.send_signal(signal.SIGINT)
        self.process.wait(SECONDS)
        self.process = None

    def freeze(self) -> list[int]:
        """SIGSTOP for all of its processes, the parent first, which makes no more of them then."""
        assert self.process
        signal_all([self.process.pid], signal.SIGSTOP)
        pids = [pid for pid, parent in processes() if parent == self.process.pid]
        signal_all(pids, signal.SIGSTOP)
        return [*pids, self.process.pid]

    def thaw(self) -> None:
        """SIGCONT for all of its processes."""
        signal_all(self.freeze(), signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL for all of its processes, while none of them runs."""
        pids = self.freeze()
        signal_all(pids, signal.SIGKILL)
        assert self.process
        self.process.wait(SECONDS)
        self.process = None
        wait_until("all have ended", lambda: not {pid for pid, _ in processes()} & {*pids})

    def promote(self) -> None:
        """Make a standby the primary; it takes writes at return, and waits for nobody."""
        self.run("pg_ctl", "promote", "-D", self.data, "-w", "-t", SECONDS)
        wait_until("the end of recovery", lambda: self.sql("SELECT pg_is_in_recovery()") == "f")

    def wait_for(self, standby: str, condition: str = "true") -> None:
        """Wait until a standby of this name receives all that is written here."""
        find = f"application_name = '{standby}' AND state = 'streaming' AND {condition}"
        query = f"SELECT count(*) FROM pg_stat_replication WHERE {find}"
        wait_until(f"{standby} streams", lambda: self.sql(query) != "0")

    def remove(self) -> None:
        """Remove what there is of it, whatever state it is in."""
        if self.process is not None:
            self.kill()
        for line in self._noted()[6:7]:  # key and number of the shared memory, which outlives it
            subprocess.run(["ipcrm", "-m", line.split()[1]], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


class Clusters:
    """Clusters that go with the block; each in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="jwks-pg-"))
        self.folder.chmod(0o711)
        self.password = secrets.token_hex(16)
        self.passfile = self.folder / "passfile"  # for libpq, by PGPASSFILE
        self.passfile.touch(mode=0o600)
        self.passfile.write_text(f"127.0.0.1:*:*:{ROLE}:{self.password}\n", "utf-8")
        self._all: list[Cluster] = []
        atexit.register(self.close)

    def __enter__(self) -> Clusters:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all and remove all."""
        atexit.unregister(self.close)
        for cluster in self._all:
            cluster.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _new(self) -> Cluster:
        self._all.append(Cluster(Path(tempfile.mkdtemp(dir=self.folder))))
        return self._all[-1]

    def primary(self) -> Cluster:
        """A new cluster that runs, with an empty database of the role."""
        cluster = self._new()
        options = ("-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
        access = ("--auth-local=trust", "--auth-host=scram-sha-256")
        cluster.run("initdb", "-D", cluster.data, *options, *access)
        cluster.configure()
        cluster.start()
        cluster.sql(
            f"CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{self.password}';\n"
            f"CREATE DATABASE {DATABASE} OWNER {ROLE};"
        )
        return cluster

    def standby(self, primary: Cluster, name: str) -> Cluster:
        """A copy that runs and follows a primary over TCP; the primary knows it by this name."""
        cluster = self._new()
        source = f"host=127.0.0.1 port={primary.port} user={ROLE} password={self.password}"
        source += f" application_name={name}"
        cluster.run("pg_basebackup", "-D", cluster.data, "-R", "-c", "fast", "-N", "-d", source)
        cluster.configure()
        cluster.start()
        primary.wait_for(name)
        return cluster

    def url(self, *clusters: Cluster) -> str:
        """A URL of the database for these, in this order; its password is in the passfile."""
        hosts = ",".join(f"127.0.0.1:{cluster.port}" for cluster in clusters)
        return f"postgresql://{ROLE}@{hosts}/{DATABASE}"
