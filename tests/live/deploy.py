"""The files of deploy/: each under the real program that reads it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
import unittest

from jwksd.ops import settings, startup
from tests.live.process import Server
from tests.support import CHEAPEST, ROOT, TemporaryFolder
from tests.test_httpd_tls import make_certificate

WORST_EXPOSURE = 1.5
DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")

# Installs a filter that kills at setpriority (x86-64's number 141), then becomes the command.
# BPF: load the number of the call; is it this one? then KILL_PROCESS, else ALLOW.
UNDER_A_FILTER = """
import ctypes, os, struct, sys
code = b"".join(struct.pack("HBBI", *row) for row in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 141), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)])
kept = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execv(sys.argv[1], sys.argv[1:])
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def ask(port: int, method: str, path: str, body: str | None = None, tls: bool = False, **fields):
    """Status, headers and body of one request."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if tls:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def log_in(port: int, tls: bool = False) -> int:
    """Register somebody new and log in; the status of the login."""
    name = f"user{time.monotonic_ns()}"
    json_type = {"Content_Type": "application/json"}
    body = json.dumps({"username": name})
    _, _, content = ask(port, "POST", "/register", body, tls, **json_type)
    body = json.dumps({"username": name, "password": json.loads(content)["password"]})
    return ask(port, "POST", "/auth", body, tls, **json_type)[0]


class Supervised(TemporaryFolder):
    """What the unit asks for: datagrams to the socket of NOTIFY_SOCKET."""

    def setUp(self) -> None:
        super().setUp()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.bind(str(self.folder / "notify"))
        self.socket.settimeout(20)

    def until(self, word: str) -> list[str]:
        """The messages up to one that begins with a word."""
        heard: list[str] = []
        while not heard or not heard[-1].startswith(word):
            heard.append(self.socket.recv(4096).decode())
        return heard

    def test_hears_ready_watchdog_reloading_and_stopping(self):
        certificate = make_certificate(str(self.folder), "issuer")
        environ = {"NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "200000"}
        server = Server(
            "--db", str(self.folder / "k.db"), "--port", "0",
            "--tls-cert", str(certificate[0]), "--tls-key", str(certificate[1]),
            environ=environ,
        )  # fmt: skip
        try:
            self.assertEqual(self.until("READY=1"), ["READY=1"])
            self.until("WATCHDOG=1")
            server.process.send_signal(1)  # SIGHUP
            self.until("RELOADING=1")
            self.until("READY=1")
        finally:
            server.process.terminate()
            self.until("STOPPING=1")
            self.assertEqual(server.process.wait(10), 0)
            server.reader.join(10)
            server.process.stderr.close()


@unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
class TheUnit(unittest.TestCase):
    def test_is_hardened(self):
        run = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", str(DEPLOY / "jwks-server.service")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = re.search(r"exposure level for \S+: ([0-9.]+)", run.stdout)
        self.assertLessEqual(float(found[1]), WORST_EXPOSURE)


@unittest.skipUnless(sys.platform == "linux" and os.uname().machine == "x86_64", "not this machine")
class UnderAFilterThatKills(TemporaryFolder):
    def test_somebody_can_log_in(self):
        command = [sys.executable, str(ROOT / "server.py"), "--port", "0"]
        command += ["--db", str(self.folder / "k.db"), "--argon2", CHEAPEST]
        run = subprocess.Popen(
            [sys.executable, "-c", UNDER_A_FILTER, *command], stderr=subprocess.PIPE, text=True
        )
        try:
            port = next(
                int(re.search(r":([0-9]+) ", line)[1])
                for line in iter(run.stderr.readline, "")
                if line.startswith("ready: ")
            )
            self.assertEqual(log_in(port), 200)
        finally:
            run.terminate()
            self.assertEqual(run.wait(10), 0)
            run.stderr.close()

    def test_the_filter_kills_whoever_sets_a_priority(self):
        call = "import os; os.setpriority(os.PRIO_PROCESS, 0, 5)"
        command = [sys.executable, "-c", UNDER_A_FILTER, sys.executable, "-c", call]
        self.assertEqual(subprocess.run(command, check=False).returncode, -31)  # SIGSYS


class AProxy(TemporaryFolder):
    """One configuration of deploy/ before a real server."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Server(
            "--db", str(self.folder / "k.db"), "--port", "0", "--auth-limit", "2/minute",
            "--trusted-proxy", "127.0.0.1", "--argon2", CHEAPEST,
        )  # fmt: skip
        self.addCleanup(self.server.end)
        self.port = free_port()
        self.certificate, self.key = make_certificate(str(self.folder), "issuer")

    def start(self, command: list[str]) -> None:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait, 20)
        self.addCleanup(process.terminate)
        for _ in range(200):
            if process.poll() is not None:
                raise AssertionError(process.stderr.read().decode())
            with contextlib.suppress(OSError):
                if ask(self.port, "GET", "/.well-known/jwks.json", tls=True)[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the proxy does not serve")

    def filled(self, name: str, **changes: str):
        """The file with other places and ports; each of them stands in it."""
        text = (DEPLOY / name).read_text("utf-8")
        for old, new in {"127.0.0.1:8080": f"127.0.0.1:{self.server.port}", **changes}.items():
            self.assertIn(old, text)
            text = text.replace(old, new)
        path = self.folder / name
        path.write_text(text, "utf-8")
        return str(path)

    def check(self) -> None:
        self.assertEqual(ask(self.port, "GET", "/metrics", tls=True)[0], 404)
        self.assertEqual(ask(self.port, "POST", "/auth", "x" * 9000, tls=True)[0], 413)
        self.assertEqual(log_in(self.port, tls=True), 200)
        # Forged addresses free no places: the address that counts is the one that the proxy saw.
        statuses = [
            ask(
                self.port, "POST", "/auth", '{"username": "x", "password": "y"}', True,
                X_Forwarded_For=f"192.0.2.{number}", Forwarded=f"for=192.0.2.{number}",
            )[0]
            for number in range(3)
        ]  # fmt: skip
        self.assertEqual(statuses, [401, 429, 429])


class ASocketFile(TemporaryFolder):
    def test_has_the_permissions_that_were_asked_for(self):
        path = self.folder / "http.sock"
        for mode in (0o660, 0o600):
            with self.subTest(oct(mode)):
                config = settings.make_settings(
                    {"host": f"unix:{path}", "socket_mode": f"{mode:o}"}
                )
                listener = startup.listen(config)
                self.addCleanup(listener.close)
                self.assertEqual(stat.S_IMODE(path.stat().st_mode), mode)
                listener.close()


class TheContainer(TemporaryFolder):
    def test_asks_for_health_without_another_program(self):
        command = re.search(r"HEALTHCHECK .* CMD (\[.*\])", CONTAINERFILE)[1]
        _, _, *words, url = json.loads(command)
        server = Server("--db", str(self.folder / "k.db"), "--port", "0")
        check = [sys.executable, str(ROOT / "server.py"), *words]
        try:
            healthy = url.replace("8080", str(server.port))
            self.assertEqual(subprocess.run([*check, healthy], check=False).returncode, 0)
        finally:
            server.end()
        gone = subprocess.run([*check, healthy], capture_output=True, text=True, check=False)
        self.assertEqual((gone.returncode, len(gone.stderr.splitlines())), (1, 1))

    def test_copies_all_that_the_server_reads(self):
        app = self.folder / "app"
        app.mkdir()
        for sources, target in re.findall(
            r"(?m)^COPY ((?!--|requirements).*) (\S+)$", CONTAINERFILE
        ):
            for source in map(ROOT.__truediv__, sources.split()):
                whole = self.folder / target.lstrip("/")
                if source.is_dir():
                    shutil.copytree(source, whole)
                else:
                    shutil.copy(source, whole)
        for folder in (app, *app.rglob("*")):
            folder.chmod(0o555 if folder.is_dir() else 0o444)
        start = "import server; it = server.running(); print(len(it.jwks()['keys'])); it.stop()"
        run = subprocess.run(
            [sys.executable, "-c", start], cwd=app, capture_output=True, text=True, check=False
        )
        app.chmod(0o755)
        self.assertEqual(run.stdout, "1\n", run.stderr)


@unittest.skipUnless(shutil.which("nginx"), "nginx is not installed")
class Nginx(AProxy):
    def test_passes_on_what_it_should_and_keeps_the_keys(self):
        path = self.filled("nginx.conf", **{
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "/run/nginx.pid": str(self.folder / "pid"),
            "/var/cache/nginx": str(self.folder),
            "/etc/ssl/certs/issuer.pem": str(self.certificate),
            "/etc/ssl/private/issuer.key": str(self.key),
        })  # fmt: skip
        self.folder.chmod(0o755)
        self.start(["nginx", "-c", path, "-p", str(self.folder), "-g", "daemon off;"])
        self.check()
        self.server.end()
        self.assertEqual(ask(self.port, "GET", "/.well-known/jwks.json", tls=True)[0], 200)


@unittest.skipUnless(shutil.which("haproxy"), "haproxy is not installed")
class Haproxy(AProxy):
    def test_passes_on_what_it_should(self):
        both = self.folder / "both.pem"
        both.write_bytes(self._read(self.certificate) + self._read(self.key))
        path = self.filled("haproxy.cfg", **{
            "bind :443": f"bind 127.0.0.1:{self.port}",
            "/etc/haproxy/issuer.pem": str(both),
        })  # fmt: skip
        self.start(["haproxy", "-db", "-f", path])
        self.check()

    def _read(self, path) -> bytes:
        with open(path, "rb") as file:
            return file.read()


if __name__ == "__main__":
    unittest.main()
