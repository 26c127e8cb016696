"""The files of deploy/: each under the real program that reads it."""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
import unittest

from jwksd.ops import settings, startup
from tests.httpd_live import wait_until
from tests.live.process import Server
from tests.support import CHEAPEST, ROOT, TemporaryFolder, free_port
from tests.test_httpd_tls import make_certificate

WORST_EXPOSURE = 1.5
DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")

UNIT = str(DEPLOY / "jwks-server.service")
# The command that follows runs under the filters of the unit.
FILTERED = [sys.executable, str(ROOT / "tests/under_filter.py"), UNIT]


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


@unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
class UnderTheFiltersOfTheUnit(TemporaryFolder):
    """They end the process at a forbidden call; the unit itself has it refused."""

    @classmethod
    def setUpClass(cls) -> None:
        command = [*FILTERED, sys.executable, "-c", ""]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            raise unittest.SkipTest("no filters can be made here")

    def ran(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FILTERED, *command], cwd=self.folder, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip

    def admin(self, *words: str) -> str:
        """What a command prints."""
        run = self.ran(sys.executable, "-I", str(ROOT / "admin.py"), "--db", "k.db", *words)
        self.assertEqual(run.returncode, 0, run.stderr)
        return run.stdout

    def kids(self) -> list[str]:
        _, _, content = ask(self.port, "GET", "/.well-known/jwks.json")
        return [key["kid"] for key in json.loads(content)["keys"]]

    def test_a_server_lives_from_its_first_login_to_its_stop(self):
        command = [sys.executable, "-I", str(ROOT / "server.py"), "--port", "0", "--db", "k.db"]
        short = "--token-ttl 1s --key-skew 0s --key-lead 2s --key-lifetime 6s --auth-limit off"
        run = subprocess.Popen(
            [*FILTERED, *command, *short.split()],
            cwd=self.folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            lines = iter(run.stderr.readline, "")
            ready = next(line for line in lines if line.startswith("ready: "))
            self.port = int(re.search(r":([0-9]+) ", ready)[1])
            for _ in range(2):
                self.assertEqual(log_in(self.port), 200)
            first = self.kids()[0]
            self.assertTrue(wait_until(lambda: self.kids()[0] != first))  # its own rotation
            self.assertIn(self.admin("keys", "rotate", "--now").strip(), self.kids())
            self.admin("backup", "copy.db")
            self.assertEqual(log_in(self.port), 200)
        finally:
            run.terminate()
            self.assertEqual(run.wait(10), 0)
            run.stderr.close()
        self.assertTrue((self.folder / "copy.db").stat().st_size)

    def test_what_the_unit_forbids_is_forbidden(self):
        killed = -signal.SIGSYS
        for code, status in (
            ("import os; os.setpriority(os.PRIO_PROCESS, 0, 5)", killed),  # @resources
            ("import os; os.chroot('/')", killed),  # @privileged
            ("import socket; socket.socket(socket.AF_NETLINK)", 1),
            ("import mmap; mmap.mmap(-1, 4096, prot=7)", 1),
            ("import os; os.mkdir('x'); os.chmod('x', 0o4700)", 1),
            ("import socket; socket.socket().close()", 0),
        ):
            with self.subTest(code):
                self.assertEqual(self.ran(sys.executable, "-c", code).returncode, status)


class AProxy(TemporaryFolder):
    """One configuration of deploy/ before a real server."""

    flags: tuple[str, ...] = ("--auth-limit", "2/minute")
    first = 200  # the status of the key set, through the proxy

    def setUp(self) -> None:
        super().setUp()
        self.server = Server(
            "--db", str(self.folder / "k.db"), "--port", "0", "--trusted-proxy", "127.0.0.1",
            "--argon2", CHEAPEST, *self.place(), *self.flags,
        )  # fmt: skip
        self.addCleanup(self.server.end)
        self.port = free_port()
        self.certificate, self.key = make_certificate(str(self.folder), "issuer")

    def place(self) -> tuple[str, ...]:
        """Where the server listens; on a free port unless it is told otherwise."""
        return ()

    def start(self, command: list[str]) -> None:
        said = self.folder / "proxy.log"
        with open(said, "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self.addCleanup(process.wait, 20)
        self.addCleanup(process.terminate)
        for _ in range(200):
            with contextlib.suppress(OSError):
                if ask(self.port, "GET", "/.well-known/jwks.json", tls=True)[0] == self.first:
                    return
            if process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"the proxy does not serve: {said.read_text('utf-8')[-2000:]}")

    def filled(self, name: str, **changes: str):
        """The file with other places and ports; each of them stands in it."""
        text = (DEPLOY / name).read_text("utf-8")
        at = f"127.0.0.1:{self.server.port}" if self.server.port else self.server.url
        for old, new in {"127.0.0.1:8080": at, **changes}.items():
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
    def serve(self) -> None:
        path = self.filled("nginx.conf", **{
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "/run/nginx.pid": str(self.folder / "pid"),
            "/var/cache/nginx": str(self.folder),
            "/etc/ssl/certs/issuer.pem": str(self.certificate),
            "/etc/ssl/private/issuer.key": str(self.key),
        })  # fmt: skip
        self.folder.chmod(0o755)
        self.start(["nginx", "-c", path, "-p", str(self.folder), "-g", "daemon off;"])

    def test_passes_on_what_it_should_and_keeps_the_keys(self):
        self.serve()
        self.check()
        self.server.end()
        self.assertEqual(ask(self.port, "GET", "/.well-known/jwks.json", tls=True)[0], 200)


def nginx_group() -> int:
    """The group of nginx's workers: that of root's nginx, or ours."""
    return grp.getgrnam("nogroup").gr_gid if os.geteuid() == 0 else os.getegid()


class NginxOverASocketFile(Nginx):
    def place(self) -> tuple[str, ...]:
        folder = self.folder / "run"  # what is made there has the group of the folder
        folder.mkdir()
        os.chown(folder, -1, nginx_group())
        folder.chmod(0o2750)
        return "--host", f"unix:{folder / 'http.sock'}", "--socket-mode", "660"

    @unittest.skipUnless(os.geteuid() == 0, "nginx runs as the server's user")
    def test_has_to_be_in_the_group(self):
        (self.folder / "run/http.sock").chmod(0o600)
        self.first = 502
        self.serve()
        (self.folder / "run/http.sock").chmod(0o660)
        self.assertEqual(ask(self.port, "GET", "/healthz", tls=True)[0], 200)


class BehindHaproxy(AProxy):
    def serve(self) -> None:
        both = self.folder / "both.pem"
        both.write_bytes(self._read(self.certificate) + self._read(self.key))
        path = self.filled("haproxy.cfg", **{
            "bind :443": f"bind 127.0.0.1:{self.port}",
            "/etc/haproxy/issuer.pem": str(both),
        })  # fmt: skip
        self.start(["haproxy", "-db", "-f", path])

    def _read(self, path) -> bytes:
        with open(path, "rb") as file:
            return file.read()


@unittest.skipUnless(shutil.which("haproxy"), "haproxy is not installed")
class Haproxy(BehindHaproxy):
    def test_passes_on_what_it_should(self):
        self.serve()
        self.check()


@unittest.skipUnless(shutil.which("haproxy"), "haproxy is not installed")
class HaproxyAndADatabaseThatFails(BehindHaproxy):
    flags = ("--auth-limit", "off")

    def answer(self, method: str, path: str) -> tuple[int, bool]:
        """The status, and whether the answer is the server's; haproxy's own are no JSON."""
        body = '{"username": "nobody", "password": "x"}' if method == "POST" else None
        status, fields, _ = ask(self.port, method, path, body, tls=True)
        return status, fields["Content-Type"] == "application/json"

    def checks_of_the_keys(self) -> int:
        """How often somebody asked the server for them: haproxy, while nobody else does."""
        return sum("GET /.well-known/jwks.json" in line for line in self.server.lines)

    def logins_are_off(self) -> bool:
        self.assertEqual(self.answer("GET", "/.well-known/jwks.json"), (200, True))
        return self.answer("POST", "/auth") == (503, False)

    def logins_are_on(self) -> bool:
        return self.answer("POST", "/auth") == (401, True)

    def test_takes_logins_off_and_leaves_the_keys(self):
        self.serve()
        database, elsewhere = self.folder / "k.db", self.folder / "elsewhere.db"
        self.assertTrue(wait_until(self.logins_are_on))
        database.rename(elsewhere)
        self.assertTrue(wait_until(self.logins_are_off))
        self.assertEqual(self.answer("POST", "/register"), (503, False))
        self.assertEqual(self.server.ask("GET", "/healthz")[0], 503)
        seen = self.checks_of_the_keys()  # three that fail would take the server off
        self.assertTrue(wait_until(lambda: self.checks_of_the_keys() >= seen + 3))
        self.assertTrue(self.logins_are_off())
        elsewhere.rename(database)
        self.assertTrue(wait_until(self.logins_are_on))
        self.assertEqual(log_in(self.port, tls=True), 200)


if __name__ == "__main__":
    unittest.main()
