"""The real process: start, ready line, signals, kills, and starts that must fail."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import unittest
import urllib.request
from pathlib import Path

from cryptography import x509

import jwt_minimal
from jwksd.httpd import CORES
from tests.httpd_live import wait_until
from tests.support import CHEAPEST, ROOT, TemporaryFolder
from tests.test_httpd_tls import make_certificate

READY = re.compile(r"ready: ((?:http|unix:)\S+) database=(\S+) keys=(\d+)")
SECRET = "a secret of the tests"


class Server:
    """`python server.py` on a free port; waits for its ready line."""

    def __init__(
        self,
        *flags: str,
        environ: dict[str, str] | None = None,
        close_after_ready: bool = False,
    ) -> None:
        self.process = start(*flags, environ=environ)
        self.lines: list[str] = []
        self.port = 0
        for line in self.process.stderr:
            self.lines.append(line)
            ready = READY.search(line)
            if ready:
                self.url, self.keys = ready[1], int(ready[3])
                number = re.search(r":(\d+)$", self.url)  # a socket file has none
                self.port = int(number[1]) if number else 0
                break
        else:
            raise AssertionError("".join(self.lines))
        if close_after_ready:
            self.process.stderr.close()
        # Emptied all along, so that the server never waits for the pipe.
        rest = () if close_after_ready else self.process.stderr
        self.reader = threading.Thread(target=self.lines.extend, args=(rest,))
        self.reader.start()

    def ask(self, method, path, document=None, address="127.0.0.1"):
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=10, source_address=(address, 0)
        )
        with contextlib.closing(connection):
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        except ConnectionResetError:  # the end came in between
            pass
        return True

    def end(self, number=signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(15)
        self.reader.join(5)
        self.process.stderr.close()
        return code


def start(*flags, environ=None) -> subprocess.Popen[str]:
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("JWKS_", "NOT_MY_KEY"))}
    variables.update({"NOT_MY_KEY": SECRET} if environ is None else environ)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "server.py"), *flags],
        env=variables,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


class ProcessTest(TemporaryFolder):
    shares_database = True

    def serve(self, *flags, **options) -> Server:
        given = ("--port", "0", "--db", str(self.path), "--argon2", CHEAPEST, *flags)
        server = Server(*given, **options)
        self.addCleanup(server.end, signal.SIGKILL)
        return server

    def refused(self, *flags, environ=None) -> str:
        """The one line of a start that must fail with exit code 2."""
        process = start("--db", str(self.path), "--port", "0", *flags, environ=environ)
        _, text = process.communicate(timeout=15)
        self.assertEqual(process.returncode, 2, text)
        self.assertEqual(text.count("\n"), 1, text)
        return text


class Starting(ProcessTest):
    def test_says_in_one_line_where_it_is_and_what_it_has(self):
        server = self.serve()
        self.assertEqual(len(server.lines), 1, server.lines)
        self.assertEqual(READY.search(server.lines[0])[2], str(self.path))
        self.assertEqual(server.keys, 1)

    def test_makes_an_expired_and_a_valid_key_once(self):
        for _ in range(2):
            self.serve().end()
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            exps = [row[0] for row in db.execute("SELECT exp FROM keys ORDER BY exp")]
        self.assertEqual([exp > time.time() for exp in exps], [False, True])

    def test_generates_a_secret_with_a_warning_where_none_is_set(self):
        server = self.serve(environ={})
        self.assertIn("NOT_MY_KEY is not set", server.lines[0])
        self.assertTrue((self.folder / "keys.db.secret").exists())

    def test_on_a_port_in_use_is_refused_and_touches_nothing(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            self.assertIn("another --host or --port", self.refused("--port", port))
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_on_a_file_that_is_no_database_is_refused_and_touches_nothing(self):
        self.path.write_text("not a database, but a letter\n" * 50)
        self.assertIn("not a database", self.refused())
        self.assertEqual(self.path.read_text(), "not a database, but a letter\n" * 50)

    def test_in_a_directory_that_does_not_exist_is_refused(self):
        self.path = self.folder / "nowhere" / "keys.db"
        self.assertIn("does not exist", self.refused())

    def test_with_the_wrong_secret_is_refused_and_changes_nothing(self):
        self.serve().end()
        before = self.path.read_bytes()
        self.assertIn("NOT_MY_KEY", self.refused(environ={"NOT_MY_KEY": "another secret, wrong"}))
        self.assertEqual(self.path.read_bytes(), before)

    def test_without_the_secret_of_stored_keys_is_refused(self):
        self.serve().end()
        self.assertIn("set NOT_MY_KEY", self.refused(environ={}))

    def test_with_a_blank_secret_or_a_bad_flag_is_refused(self):
        self.assertIn("blank", self.refused(environ={"NOT_MY_KEY": " "}))
        self.assertIn("--token-ttl", self.refused("--token-ttl", "soon"))
        self.assertIn("--prot", self.refused("--prot", "1"))

    def test_with_a_blank_secret_touches_nothing(self):
        self.refused(environ={"NOT_MY_KEY": ""})
        self.refused(environ={"NOT_MY_KEY_FILE": str(self.folder / "none")})
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_on_keys_of_another_program_is_refused_and_touches_nothing(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other:
            other.execute("CREATE TABLE keys(kid INTEGER PRIMARY KEY, key BLOB, exp INTEGER)")
            other.execute("INSERT INTO keys (key, exp) VALUES (x'2d2d2d', 1)")
            other.commit()
        before = self.path.read_bytes()
        self.assertIn("did not seal", self.refused())
        self.assertEqual(self.path.read_bytes(), before)

    def test_on_accounts_that_would_be_one_is_refused_by_name_and_touches_nothing(self):
        columns = (
            "id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT NOT NULL UNIQUE, "
            "password_hash TEXT NOT NULL, email TEXT UNIQUE, "
            "date_registered TIMESTAMP DEFAULT CURRENT_TIMESTAMP, last_login TIMESTAMP"
        )
        for table, rows, named in (
            ("users", [("Bob", None), ("bob", None), ("al", None)], "'Bob' and 'bob': "),
            ("Users", [("Bob", None), ("bob", None), ("a", None), ("A", None)], ", as do 1 more: "),
            ("users", [("a", "B@c.org"), ("b", "b@c.org")], "email .* 'B@c.org' and 'b@c.org': "),
        ):
            with self.subTest(rows=rows):
                self.path.unlink(missing_ok=True)
                with contextlib.closing(sqlite3.connect(self.path)) as other, other:
                    other.execute(f"CREATE TABLE {table} ({columns})")
                    sql = "INSERT INTO users (username, email, password_hash) VALUES (?, ?, 'x')"
                    other.executemany(sql, rows)
                before = self.path.read_bytes()
                self.assertRegex(self.refused(), named + "it can be used once")
                self.assertEqual(self.path.read_bytes(), before)

    def test_on_accounts_of_another_program_that_differ_goes_on_with_them(self):
        with contextlib.closing(sqlite3.connect(self.path)) as other, other:
            other.execute(
                "CREATE TABLE users(id INTEGER PRIMARY KEY, username, password_hash, email, "
                "date_registered, last_login)"
            )
            other.execute("INSERT INTO users (username) VALUES ('bob'), ('alice')")
        server = self.serve()
        self.assertEqual(server.ask("POST", "/register", {"username": "BOB"})[0], 409)

    @unittest.skipUnless(os.name == "posix", "other systems have other permissions")
    def test_on_a_database_that_others_may_read_says_which_files_to_close(self):
        self.serve().end()
        self.path.chmod(0o644)
        server = self.serve()
        self.assertEqual(len(server.lines), 2, server.lines)
        command = server.lines[0].partition("others: ")[2].split()
        names = [str(self.path), f"{self.path}-wal", f"{self.path}-shm"]
        self.assertEqual(command, ["chmod", "600", *names])
        subprocess.run(command, check=True)
        server.end()
        self.assertEqual(len(self.serve().lines), 1)

    def test_with_a_certificate_that_is_none_is_refused(self):
        line = self.refused("--tls-cert", "/dev/null", "--tls-key", "/dev/null")
        self.assertIn("--tls-cert", line)

    def test_takes_its_settings_from_variables_too(self):
        server = self.serve(environ={"NOT_MY_KEY": SECRET, "JWKS_ISSUER": "https://issuer.example"})
        _, metadata = server.ask("GET", "/.well-known/openid-configuration")
        self.assertEqual(metadata["issuer"], "https://issuer.example")

    def test_without_a_package_says_how_to_install_it(self):
        hidden = "import sys; sys.modules['argon2'] = None; import runpy; "
        process = subprocess.run(
            [sys.executable, "-c", hidden + "runpy.run_path('server.py', run_name='__main__')"],
            cwd=ROOT, capture_output=True, text=True, timeout=15,
        )  # fmt: skip
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("-m pip install", process.stderr)
        self.assertEqual(process.stderr.count("\n"), 1)


class Stopping(ProcessTest):
    def test_sigterm_and_ctrl_c_exit_0(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            self.assertEqual(self.serve().end(number), 0)

    def test_during_the_start_exits_0_and_the_next_start_works(self):
        for delay in (0.15, 0.25, 0.35):
            process = start("--db", str(self.path), "--port", "0")
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=15)
            # Before Python has read the first line of the program, nobody is there to obey.
            self.assertIn(process.returncode, (0, -signal.SIGTERM))
        self.assertEqual(self.serve().end(), 0)

    def test_answers_what_is_in_flight(self):
        server = self.serve("--argon2", "t=6,m=65536,p=1")
        statuses = []
        login = {"username": "nobody", "password": "x"}
        client = threading.Thread(
            target=lambda: statuses.append(server.ask("POST", "/auth", login)[0])
        )
        client.start()
        time.sleep(0.3)
        self.assertEqual(server.end(), 0)
        client.join(5)
        self.assertEqual(statuses, [401])

    def test_twice_ends_at_once(self):
        server = self.serve()
        with self.half_a_request(server):
            server.process.send_signal(signal.SIGTERM)
            self.assertTrue(wait_until(lambda: not server.listens()))
            self.assertEqual(server.end(), 1)

    def test_writes_the_log_to_its_end(self):
        server = self.serve("--access-log", "text")
        with self.half_a_request(server) as client:
            server.process.send_signal(signal.SIGTERM)
            self.assertTrue(wait_until(lambda: not server.listens()))
            client.sendall(b"\r\n")
            self.assertTrue(client.recv(65_536).startswith(b"HTTP/1.1 200 "))
        self.assertEqual(server.process.wait(10), 0)
        server.end()
        self.assertIn('"GET /healthz HTTP/1.1" 200', server.lines[-1])

    def half_a_request(self, server) -> socket.socket:
        """A client of whom only a line end is missing."""
        client = socket.create_connection(("127.0.0.1", server.port), 10)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n")
        return client

    def test_with_standard_error_closed_the_service_goes_on(self):
        server = self.serve("--access-log", "text", close_after_ready=True)
        for _ in range(50):
            self.assertEqual(server.ask("GET", "/.well-known/jwks.json")[0], 200)
        self.assertEqual(server.end(), 0)


class Serving(ProcessTest):
    def test_of_the_key_set_goes_on_while_every_worker_hashes(self):
        server = self.serve("--argon2", "t=20,m=65536,p=1", "--auth-limit", "off")
        answered = []

        def log_in() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):  # it is killed
                answered.append(server.ask("POST", "/auth", {"username": "a", "password": "x"}))

        clients = [threading.Thread(target=log_in) for _ in range(CORES + 4)]
        for client in clients:
            client.start()
            self.addCleanup(client.join)
        self.addCleanup(server.end, signal.SIGKILL)
        self.assertTrue(wait_until(lambda: server.metric("jwks_queue") > 0))
        for _ in range(20):
            self.assertEqual(server.ask("GET", "/.well-known/jwks.json")[0], 200)
        self.assertEqual(answered, [])

    @unittest.skipUnless(os.path.exists("/proc/self/status"), "needs /proc")
    def test_makes_files_for_nobody_else(self):
        with open(f"/proc/{self.serve().process.pid}/status") as status:
            self.assertIn("Umask:\t0077\n", list(status))


@unittest.skipUnless(hasattr(signal, "SIGHUP"), "no SIGHUP here")
class Certificates(ProcessTest):
    """What SIGHUP does."""

    def setUp(self):
        super().setUp()
        self.certificate, self.key = self.make("first")

    def make(self, name):
        return make_certificate(str(self.folder), name)

    def serve_tls(self) -> Server:
        return self.serve("--tls-cert", self.certificate, "--tls-key", self.key)

    def subject(self, server) -> str:
        """Whose certificate a new client is shown."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", server.port), 10)
        with context.wrap_socket(plain) as secure:
            shown = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
        return shown.subject.rfc4514_string()

    def test_are_read_again(self):
        server = self.serve_tls()
        self.assertEqual(self.subject(server), "CN=first")
        self.make("second")
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: self.subject(server) == "CN=second"))

    def test_that_are_broken_change_nothing_until_they_are_whole(self):
        server = self.serve_tls()
        Path(self.key).write_text("no key")
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: "was not read again" in "".join(server.lines)))
        self.assertEqual(self.subject(server), "CN=first")
        self.make("second")
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: self.subject(server) == "CN=second"))

    def test_that_never_end_are_refused_and_hold_up_nothing(self):
        server = self.serve_tls()
        os.unlink(self.key)
        os.mkfifo(self.key)
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: "no regular file" in "".join(server.lines)))
        os.unlink(self.key)
        self.make("second")
        server.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: self.subject(server) == "CN=second"))
        self.assertEqual(server.end(), 0)


class Changing(ProcessTest):
    def test_keys_deleted_by_another_process_are_gone_with_the_next_request(self):
        server = self.serve()
        _, answer = server.ask("POST", "/register", {"username": "alice"})
        login = {"username": "alice", "password": answer["password"]}
        self.assertEqual(server.ask("POST", "/auth", login)[0], 200)
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            rows = db.execute("SELECT key, exp FROM keys").fetchall()
            db.execute("DELETE FROM keys")
            db.commit()
            self.assertEqual(server.ask("POST", "/auth", login)[0], 404)
            self.assertEqual(server.ask("GET", "/.well-known/jwks.json"), (200, {"keys": []}))
            db.executemany("INSERT INTO keys (key, exp) VALUES (?, ?)", rows)
            db.commit()
        status, answer = server.ask("POST", "/auth", login)
        self.assertEqual(status, 200)
        _, jwks = server.ask("GET", "/.well-known/jwks.json")
        self.assertEqual(jwt_minimal.decode(answer["token"], jwks, leeway=5)["sub"], "alice")

    def test_a_deleted_database_is_never_written_to_and_never_acknowledged(self):
        server = self.serve()
        server.ask("POST", "/register", {"username": "alice"})
        os.unlink(self.path)
        status, answer = server.ask("POST", "/register", {"username": "bob"})
        self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(server.ask("GET", "/.well-known/jwks.json")[0], 200)
        self.assertEqual(server.ask("GET", "/healthz")[0], 503)
        self.assertFalse(self.path.exists())
        self.assertEqual(server.end(), 0)

    def test_the_sixth_attempt_is_refused_while_another_address_is_served(self):
        server = self.serve()
        login = {"username": "a", "password": "x"}
        statuses = [server.ask("POST", "/auth", login, "127.0.0.7")[0] for _ in range(6)]
        self.assertEqual(statuses, [401] * 5 + [429])
        self.assertEqual(server.ask("POST", "/auth", login, "127.0.0.8")[0], 401)

    def test_a_locked_database_is_waited_for(self):
        server = self.serve()
        other = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.5, other.execute, ("COMMIT",)).start()
        self.assertEqual(server.ask("POST", "/register", {"username": "alice"})[0], 201)


if __name__ == "__main__":
    unittest.main()
