"""The real server when things go wrong around it: what is refused, goes on, comes back."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt_minimal
from tests.live.process import SECRET, ProcessTest, Server, start
from tests.live.victim import torture

YEAR = 31_536_000
JWKS = "/.well-known/jwks.json"
UNLIMITED = ("--auth-limit", "off", "--register-limit", "off", "--access-log", "off")
# As much as an unprivileged process may do: root may write where nobody may.
WITHOUT_PRIVILEGES = """
import ctypes, os
if os.geteuid() == 0:
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capset(version_3, (ctypes.c_uint32 * 6)()) == 0
"""
A_CLOCK_THAT_STEPS = f"""
import signal, time
real, shift = time.time, [0]
time.time = lambda: real() + shift[0]
def step(number, frame):
    shift[0] += {YEAR} if number == signal.SIGUSR1 else -{YEAR}
signal.signal(signal.SIGUSR1, step)
signal.signal(signal.SIGUSR2, step)
"""


class FaultTest(ProcessTest):
    def serve_prepared(self, code: str, *flags: str) -> Server:
        """A server whose interpreter ran `code` before anything else."""
        return self.serve(*flags, environ=self.prepared(code))

    def prepared(self, code: str) -> dict[str, str]:
        folder = self.folder / "prepared"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        return {"NOT_MY_KEY": SECRET, "PYTHONPATH": str(folder)}

    def register(self, server: Server, name: str) -> dict[str, str]:
        """The credentials of a new account."""
        status, answer = server.ask("POST", "/register", {"username": name})
        self.assertEqual(status, 201, answer)
        return {"username": name, "password": answer["password"]}

    def statuses(self, server: Server, path: str, *documents: object) -> list[int]:
        """What as many clients at once are answered."""

        def status(document: object) -> int:
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            with contextlib.closing(client):
                client.request("POST", path, json.dumps(document))
                return client.getresponse().status

        with ThreadPoolExecutor(len(documents)) as clients:
            return list(clients.map(status, documents))

    def intact(self) -> bool:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


class ADatabaseLockedByAnotherProcess(FaultTest):
    def test_is_waited_for_while_the_keys_are_served(self):
        server = self.serve(*UNLIMITED)
        alice = self.register(server, "alice")
        with contextlib.closing(
            sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        ) as other:
            other.execute("BEGIN IMMEDIATE")
            free = threading.Timer(1.0, other.execute, ("COMMIT",))
            begin = time.monotonic()
            free.start()
            with ThreadPoolExecutor() as clients:
                login = clients.submit(server.ask, "POST", "/auth", alice)
                newcomer = clients.submit(server.ask, "POST", "/register", {"username": "bob"})
                self.assertEqual(server.ask("GET", JWKS)[0], 200)
                self.assertLess(time.monotonic() - begin, 1.0)
                self.assertEqual((login.result()[0], newcomer.result()[0]), (200, 201))
            self.assertGreater(time.monotonic() - begin, 1.0)
            free.join()


@unittest.skipUnless(sys.platform == "linux", "sets a limit of another process")
class AFullDisk(FaultTest):
    def limit(self, server: Server, octets: int) -> None:
        import resource

        _, most = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (octets, most))

    def test_gives_no_token_and_no_account_but_keys_until_there_is_room_again(self):
        server = self.serve(*UNLIMITED)
        alice = self.register(server, "alice")
        self.limit(server, os.stat(f"{self.path}-wal").st_size + 40_000)
        acknowledged = []
        for number in range(200):
            status, answer = server.ask("POST", "/register", {"username": f"u{number}"})
            if status != 201:
                break
            acknowledged.append({"username": f"u{number}", "password": answer["password"]})
        self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        status, answer = server.ask("POST", "/auth", alice)
        self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(server.ask("GET", JWKS)[0], 200)
        self.limit(server, -1)
        self.assertEqual(server.ask("POST", "/auth", alice)[0], 200)
        self.assertEqual(self.statuses(server, "/auth", *acknowledged), [200] * len(acknowledged))
        self.assertEqual(server.end(), 0)
        self.assertTrue(self.intact())


@unittest.skipUnless(sys.platform == "linux", "gives up privileges the way of Linux")
class AReadOnlyDirectory(FaultTest):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(self.folder.chmod, 0o700)

    def test_refuses_the_start_and_says_why(self):
        environ = self.prepared(WITHOUT_PRIVILEGES)
        self.folder.chmod(0o500)
        self.assertIn("cannot open the database", self.refused(environ=environ))

    def test_refuses_the_start_with_a_database_in_it(self):
        self.serve().end()
        environ = self.prepared(WITHOUT_PRIVILEGES)
        self.folder.chmod(0o500)
        self.path.chmod(0o400)
        self.assertIn("cannot open the database", self.refused(environ=environ))

    def test_does_not_touch_a_server_that_runs_already(self):
        server = self.serve_prepared(WITHOUT_PRIVILEGES, *UNLIMITED)
        self.folder.chmod(0o500)
        self.assertEqual(server.ask("POST", "/auth", self.register(server, "alice"))[0], 200)


class ADatabaseFileThatIsReplaced(FaultTest):
    def test_gets_no_write_acknowledged_until_the_server_is_started_again(self):
        server = self.serve(*UNLIMITED)
        alice = self.register(server, "alice")
        copy = self.folder / "copy.db"
        with contextlib.closing(sqlite3.connect(self.path)) as source:
            source.execute("VACUUM INTO ?", (str(copy),))
        bob = self.register(server, "bob")  # not in the copy
        os.replace(copy, self.path)
        for path, document in (("/auth", alice), ("/auth", bob), ("/register", {"username": "c"})):
            status, answer = server.ask("POST", path, document)
            self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(server.ask("GET", JWKS)[0], 200)
        self.assertEqual(server.ask("GET", "/healthz")[0], 503)
        self.assertEqual(server.end(), 0)
        again = self.serve(*UNLIMITED)
        self.assertEqual(self.statuses(again, "/auth", alice, bob), [200, 401])
        again.end()
        self.assertTrue(self.intact())

    def names(self, path: Path) -> set[str]:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            self.assertEqual(connection.execute("PRAGMA integrity_check").fetchone(), ("ok",))
            return {name for (name,) in connection.execute("SELECT username FROM users")}

    def log_is_empty(self) -> bool:
        """Whether the write-ahead log has been moved, within a few seconds."""
        for _ in range(50):
            if not os.stat(f"{self.path}-wal").st_size:
                return True
            time.sleep(0.1)
        return False

    def test_has_not_the_old_ones_log_applied_to_it_even_if_the_server_is_killed(self):
        server = self.serve(*UNLIMITED)
        first = {f"first{number}" for number in range(20)}
        for name in first:
            self.register(server, name)
        server.end()
        other, old = self.folder / "other.db", self.folder / "old.db"
        shutil.copy(self.path, other)
        with contextlib.closing(sqlite3.connect(other)) as connection:
            connection.executemany(
                "INSERT INTO users (username, password_hash) VALUES (?, 'x')",
                [(f"other{number}",) for number in range(200)],
            )
            connection.commit()
        others = self.names(other)
        server = self.serve(*UNLIMITED)
        second = {f"second{number}" for number in range(20)}
        for name in second:
            self.register(server, name)
        os.rename(self.path, old)
        os.rename(other, self.path)
        self.assertTrue(self.log_is_empty())  # though nobody asks the server anything
        server.end(signal.SIGKILL)
        self.serve(*UNLIMITED).end()
        self.assertEqual(self.names(self.path), others)
        self.assertEqual(self.names(old), first | second)


class AWriteAheadLogThatIsDeleted(FaultTest):
    def test_takes_nothing_acknowledged_with_it(self):
        server = self.serve(*UNLIMITED)
        acknowledged = [self.register(server, f"before{number}") for number in range(5)]
        for ending in ("-wal", "-shm"):
            os.unlink(f"{self.path}{ending}")
        for number in range(5):
            status, answer = server.ask("POST", "/register", {"username": f"after{number}"})
            if status == 201:
                acknowledged.append({"username": f"after{number}", "password": answer["password"]})
            else:
                self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(server.ask("GET", JWKS)[0], 200)
        self.assertEqual(server.ask("GET", "/healthz")[0], 503)
        server.end(signal.SIGKILL)
        again = self.serve(*UNLIMITED)
        self.assertEqual(self.statuses(again, "/auth", *acknowledged), [200] * len(acknowledged))
        again.end()
        self.assertTrue(self.intact())

    def test_is_noticed_though_nobody_writes_and_loses_nothing_if_the_server_is_killed(self):
        server = self.serve(*UNLIMITED)
        alice = self.register(server, "alice")
        for ending in ("-wal", "-shm"):
            os.unlink(f"{self.path}{ending}")
        for _ in range(100):
            if server.ask("GET", "/healthz")[0] == 503:
                break
            time.sleep(0.1)
        server.end(signal.SIGKILL)
        self.assertEqual(self.statuses(self.serve(*UNLIMITED), "/auth", alice), [200])


class ABadPage(FaultTest):
    def test_costs_the_requests_that_need_it_and_no_others(self):
        server = self.serve(*UNLIMITED)
        alice = self.register(server, "alice")
        server.end()
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (page,) = connection.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'users'"
            ).fetchone()
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        server = self.serve(*UNLIMITED)
        with open(self.path, "r+b") as file:  # under the running server
            file.seek((page - 1) * size)
            file.write(b"\xff" * size)
        for path, document in (("/auth", alice), ("/register", {"username": "bob"})):
            status, answer = server.ask("POST", path, document)
            self.assertEqual((status, answer["error"]), (503, "database_unavailable"))
        self.assertEqual(server.ask("GET", JWKS)[0], 200)
        self.assertEqual(server.end(), 0)
        self.assertNotIn("Traceback", "".join(server.lines))


class ManyFirstLogins(FaultTest):
    CLIENTS = 200

    def test_take_the_memory_of_a_hash_a_core_however_many_come_at_once(self):
        server = self.serve(*UNLIMITED, "--argon2", "t=1,m=19456,p=1", "--verified-cache", "off")
        alice = self.register(server, "alice")
        statuses = self.statuses(server, "/auth", *[alice] * self.CLIENTS)
        self.assertLessEqual(set(statuses), {200, 503})
        # Those that are hashed at once never wait; how many more are served depends on the machine.
        self.assertGreaterEqual(statuses.count(200), os.cpu_count() or 1)
        status = Path(f"/proc/{server.process.pid}/status")
        if status.exists():
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            most = int(lines["VmHWM"].split()[0])
            # 19 MiB a core; 64 MiB for the interpreter, its modules and two hundred connections.
            self.assertLess(most, 1024 * (64 + 19 * os.cpu_count()))


class ClientsThatVanish(FaultTest):
    def test_while_their_password_is_hashed_leave_a_row_in_the_log_and_nothing_else(self):
        server = self.serve(*UNLIMITED, "--argon2", "t=1,m=19456,p=1")
        alice = self.register(server, "alice")
        body = json.dumps(alice).encode()
        head = f"POST /auth HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for number in range(20):
            with socket.create_connection(("127.0.0.1", server.port), 5) as client:
                client.sendall(head + body)
                if number % 2:  # reset instead of closed
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" * 2)
        self.assertEqual(server.ask("POST", "/auth", alice)[0], 200)
        self.assertEqual(server.end(), 0)
        self.assertNotIn("error", "".join(server.lines))
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT outcome, count(*) FROM auth_outcomes GROUP BY 1")
            ((outcome, count),) = rows.fetchall()
        # A client that left before its request was read has made no attempt.
        self.assertEqual((outcome, 1 <= count <= 21), ("success", True))


class StandardErrorThatIsClosed(FaultTest):
    def first_answer(self, port: int) -> int:
        """The status of a registration, asked until the server is there."""
        for _ in range(1_000):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                client.request("POST", "/register", '{"username": "alice"}')
                return client.getresponse().status
            except ConnectionError:
                time.sleep(0.02)
            finally:
                client.close()
        return 0

    def test_from_the_start_neither_stops_the_server_nor_spoils_a_file(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = ("--port", str(port), "--db", str(self.path), "--argon2", "t=1,m=8,p=1")
        process = start(*flags, environ=self.prepared("import os\nos.close(2)\n"))
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait, 10)
        self.addCleanup(process.kill)
        self.assertEqual(self.first_answer(port), 201)
        # No file that is opened later may take the place of a standard stream: whatever this
        # process or the interpreter prints would be written into it.
        taken = Path(f"/proc/{process.pid}/fd/2")
        if taken.parent.exists():
            self.assertEqual(os.readlink(taken), os.devnull)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(10), 0)
        self.assertTrue(self.intact())


@unittest.skipUnless(hasattr(signal, "SIGUSR1"), "steps the clock by a signal")
class AClockThatSteps(FaultTest):
    def logins(self, server: Server, alice: dict[str, str]) -> dict[str, Any]:
        """The claims of a token, once there is one: a key that has expired is replaced."""
        for _ in range(100):
            status, answer = server.ask("POST", "/auth", alice)
            if status == 200:
                _, jwks = server.ask("GET", JWKS)
                return jwt_minimal.decode(answer["token"], jwks, now=self.now, leeway=30)
            self.assertEqual(status, 404, answer)
            time.sleep(0.05)
        raise AssertionError("no key was made")

    def test_by_a_year_forward_and_back_issues_tokens_of_the_new_time(self):
        server = self.serve_prepared(A_CLOCK_THAT_STEPS, *UNLIMITED)
        alice = self.register(server, "alice")
        for number, years in ((0, 0), (signal.SIGUSR1, 1), (signal.SIGUSR2, 0),
                              (signal.SIGUSR2, -1), (signal.SIGUSR1, 0)):  # fmt: skip
            if number:
                server.process.send_signal(number)
                time.sleep(0.1)
            self.now = time.time() + years * YEAR
            claims = self.logins(server, alice)
            self.assertLess(abs(claims["iat"] - self.now), 60)
            self.assertGreater(claims["exp"], claims["iat"])

    def test_frees_no_slot_of_the_limiter_and_takes_none(self):
        server = self.serve_prepared(A_CLOCK_THAT_STEPS, "--auth-limit", "5/minute")
        wrong = {"username": "nobody", "password": "x"}
        statuses = []
        for number in (None, signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2, signal.SIGUSR1, None):
            if number:
                server.process.send_signal(number)
                time.sleep(0.05)
            statuses.append(server.ask("POST", "/auth", wrong)[0])
        self.assertEqual(statuses, [401] * 5 + [429])


class Killing(FaultTest):
    KILLS = 20

    def test_loses_nothing_acknowledged(self):
        self.assertGreater(torture(self, self.KILLS, seed=20).acknowledged, 5 * self.KILLS)


class Strangers(FaultTest):
    def raw(self, server: Server, document: object, address: str = "127.0.0.1") -> list[str]:
        """The lines of the answer but for the date."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=10, source_address=(address, 0)
        )
        with contextlib.closing(connection):
            connection.request("POST", "/auth", json.dumps(document))
            answer = connection.getresponse()
            fields = [f"{name}: {value}" for name, value in answer.getheaders() if name != "Date"]
            return [str(answer.status), *fields, answer.read().decode()]

    def test_learn_nothing_from_the_answer_about_who_has_an_account(self):
        server = self.serve(*UNLIMITED)
        alice = self.register(server, "alice")
        gone = self.register(server, "gone")
        self.assertEqual(server.ask("POST", "/auth", gone)[0], 200)
        with contextlib.closing(sqlite3.connect(self.path)) as operator:
            operator.execute("DELETE FROM users WHERE username = 'gone'")
            operator.commit()
        wrong = self.raw(server, {**alice, "password": "wrong"})
        self.assertEqual(wrong[0], "401")
        self.assertEqual(self.raw(server, {"username": "nobody", "password": "wrong"}), wrong)
        self.assertEqual(self.raw(server, gone), wrong)

    def test_and_friends_alike_are_told_what_is_malformed(self):
        server = self.serve(*UNLIMITED)
        self.register(server, "alice")
        for password in ("", None, 5, "x" * 1025):
            answers = [
                self.raw(server, {"username": name, "password": password})
                for name in ("alice", "nobody")
            ]
            self.assertEqual(answers[0], answers[1])
            self.assertEqual(answers[0][0], "400")

    def test_at_twenty_connections_at_once_have_five_attempts(self):
        server = self.serve()
        wrong = {"username": "nobody", "password": "x"}
        statuses = sorted(self.statuses(server, "/auth", *[wrong] * 20))
        self.assertEqual(statuses, [401] * 5 + [429] * 15)
        with contextlib.closing(sqlite3.connect(self.path)) as log:
            self.assertEqual(log.execute("SELECT count(*) FROM auth_logs").fetchone(), (5,))

    def test_get_no_account_where_registration_is_closed(self):
        server = self.serve("--registration", "closed", "--register-limit", "1/day")
        for _ in range(3):
            status, answer = server.ask("POST", "/register", {"username": "alice"})
            self.assertEqual((status, answer["error"]), (403, "registration_closed"))
        with contextlib.closing(sqlite3.connect(self.path)) as users:
            self.assertEqual(users.execute("SELECT count(*) FROM users").fetchone(), (0,))


if __name__ == "__main__":
    unittest.main()
