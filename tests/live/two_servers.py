"""Two servers on one SQLite file: what holds, and what clients see while one stops or is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import rotation_live
from tests.httpd_live import wait_until
from tests.live.deploy import DEPLOY, AProxy, ask
from tests.live.issuing import needs
from tests.live.process import SECRET, ProcessTest, Server
from tests.support import CHEAPEST, ROOT, free_port
from tests.test_httpd_tls import make_certificate

JWKS = "/.well-known/jwks.json"
CLIENTS = [f"127.0.0.{number}" for number in range(2, 10)]  # enough for either server to have some


class OneFile(ProcessTest):
    def kids(self, server: Server) -> list[str]:
        return [key["kid"] for key in server.ask("GET", JWKS)[1]["keys"]]

    def test_has_each_key_once_though_four_servers_start_on_it_at_once(self):
        with ThreadPoolExecutor(4) as pool:
            servers = list(pool.map(lambda _: self.serve(), range(4)))
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            exps = [exp for (exp,) in db.execute("SELECT exp FROM keys ORDER BY exp")]
        self.assertEqual([exp > time.time() for exp in exps], [False, True])
        self.assertEqual(len({tuple(self.kids(server)) for server in servers}), 1)

    def test_has_each_key_once_though_two_servers_rotate_it(self):
        servers = [self.serve(*rotation_live.HASTY) for _ in range(2)]
        count = "SELECT count(*) FROM keys"
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            self.assertTrue(wait_until(lambda: db.execute(count).fetchone()[0] >= 6, 40))
            exps = [exp for (exp,) in db.execute("SELECT exp FROM keys ORDER BY exp")]
        gaps = [later - earlier for earlier, later in zip(exps[1:], exps[2:])]
        self.assertGreaterEqual(min(gaps), 2, exps)  # 5 - 2 - 1 s from one key to the next
        self.assertEqual(self.kids(servers[0]), self.kids(servers[1]))

    def test_has_a_revocation_that_every_server_obeys_with_its_next_answer(self):
        servers = [self.serve() for _ in range(2)]
        (kid,) = self.kids(servers[0])
        subprocess.run(
            [sys.executable, str(ROOT / "admin.py"), "--db", str(self.path), "keys", "revoke", kid],
            env={"NOT_MY_KEY": SECRET}, check=True, capture_output=True,
        )  # fmt: skip
        new = [self.kids(server) for server in servers]
        self.assertNotIn(kid, new[0])
        self.assertEqual(new[0], new[1])

    def test_has_a_limit_of_each_server_and_one_that_starts_knows_what_was_before(self):
        first, second = (self.serve("--auth-limit", "2/minute") for _ in range(2))
        wrong = {"username": "nobody", "password": "wrong"}
        got = [server.ask("POST", "/auth", wrong)[0] for server in (first, first, first, second)]
        self.assertEqual(got, [401, 401, 429, 401])
        third = self.serve("--auth-limit", "2/minute")
        self.assertEqual(third.ask("POST", "/auth", wrong)[0], 429)

    def test_has_an_address_for_each_server(self):
        first = self.serve()
        self.assertIn("another --host or --port", self.refused("--port", str(first.port)))
        path = self.folder / "http.sock"
        server = self.serve_unix(path)
        self.assertIn("in use", self.refused("--host", f"unix:{path}"))
        self.assertIsNone(server.poll())

    def serve_unix(self, path) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "server.py"), "--host", f"unix:{path}"]
        command += ["--db", str(self.path)]
        environ = {"NOT_MY_KEY": SECRET}
        server = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait, 15)
        self.addCleanup(server.kill)
        self.assertTrue(wait_until(path.exists))
        return server


class Clients:
    """One client for each address, which logs in and asks for the keys until it is told to end."""

    def __init__(self, port: int, accounts: list[dict[str, str]]) -> None:
        self.seen: Counter[tuple[str, object]] = Counter()
        self._port, self._ended = port, threading.Event()
        self._tls = ssl._create_unverified_context()
        self._threads = [
            threading.Thread(target=self._run, args=pair) for pair in zip(CLIENTS, accounts)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, address: str, account: dict[str, str]) -> None:
        while not self._ended.is_set():
            for method, path, document in (("POST", "/auth", account), ("GET", JWKS, None)):
                self.seen[path, self._ask(address, method, path, document)] += 1

    def _ask(self, address: str, method: str, path: str, document: object) -> object:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=20, source_address=(address, 0), context=self._tls
        )
        with contextlib.closing(connection):
            try:
                body = None if document is None else json.dumps(document)
                connection.request(method, path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                response.read()
                return response.status
            except (OSError, http.client.HTTPException) as error:
                return type(error).__name__

    def end(self) -> Counter[tuple[str, object]]:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return self.seen


def logins(server: Server) -> float:
    """How many it has let in; before the first, nothing is said of them."""
    try:
        return server.metric('jwks_logins_total{outcome="success"}')
    except StopIteration:
        return 0


@needs("haproxy")
class BehindHaproxy(AProxy):
    """deploy/haproxy-two-servers.cfg before two servers on one file."""

    shares_database = True

    def setUp(self) -> None:
        ProcessTest.setUp(self)
        self.port, self.ports = free_port(), (free_port(), free_port())
        both = self.folder / "both.pem"
        parts = make_certificate(str(self.folder), "issuer")
        both.write_text("".join(Path(part).read_text("utf-8") for part in parts), "utf-8")
        self.places = {
            "bind :443": f"bind 127.0.0.1:{self.port}",
            "/etc/haproxy/issuer.pem": str(both),
            "127.0.0.1:8081": f"127.0.0.1:{self.ports[0]}",
            "127.0.0.1:8082": f"127.0.0.1:{self.ports[1]}",
        }

    def serve(self, number: int, limit: str = "off") -> Server:
        server = Server(
            "--db", str(self.path), "--port", str(self.ports[number]), "--argon2", CHEAPEST,
            "--trusted-proxy", "127.0.0.1", "--auth-limit", limit,
        )  # fmt: skip
        self.addCleanup(server.end, signal.SIGKILL)
        return server

    def proxy(self) -> None:
        """Start it; each place that is filled stands in the file."""
        text = (DEPLOY / "haproxy-two-servers.cfg").read_text("utf-8")
        for old, new in self.places.items():
            self.assertIn(old, text)
            text = text.replace(old, new)
        path = self.folder / "haproxy.cfg"
        path.write_text(text, "utf-8")
        self.start(["haproxy", "-db", "-f", str(path)])

    def clients(self) -> Clients:
        accounts = []
        for name in map("user{}".format, range(len(CLIENTS))):
            body = json.dumps({"username": name})
            _, _, content = ask(self.port, "POST", "/register", body, True)
            accounts.append({"username": name, "password": json.loads(content)["password"]})
        clients = Clients(self.port, accounts)
        self.addCleanup(clients.end)
        return clients

    def wait_for_logins(self, server: Server) -> None:
        """Wait until the proxy has sent some here."""
        self.assertTrue(wait_until(lambda: logins(server) > 20, 30))

    def test_passes_on_what_it_should_and_holds_the_limit_of_an_address(self):
        self.serve(0, "2/minute")
        self.serve(1, "2/minute")
        self.proxy()
        self.check()

    def test_a_restart_of_each_in_turn_costs_no_client_an_answer(self):
        servers = [self.serve(0), self.serve(1)]
        self.proxy()
        clients = self.clients()
        for number in (0, 1):
            self.wait_for_logins(servers[1 - number])
            self.assertEqual(servers[number].end(), 0)
            servers[number] = self.serve(number)
            self.wait_for_logins(servers[number])
        seen = clients.end()
        self.assertEqual({status for _, status in seen}, {200}, seen)

    def test_a_killed_one_costs_each_client_one_login_at_the_most_and_no_key_set(self):
        servers = [self.serve(0), self.serve(1)]
        self.proxy()
        clients = self.clients()
        for server in servers:
            self.wait_for_logins(server)
        servers[0].end(signal.SIGKILL)
        before = logins(servers[1])
        self.assertTrue(wait_until(lambda: logins(servers[1]) > before + 100, 30))
        seen = clients.end()
        failed = {path: 0 for path, _ in seen}
        for (path, status), count in seen.items():
            failed[path] += count * (status != 200)
        self.assertEqual(failed[JWKS], 0, seen)
        self.assertLessEqual(failed["/auth"], len(CLIENTS), seen)

    def test_without_their_database_they_still_give_the_keys_and_say_themselves_what_is_wrong(self):
        servers = [self.serve(0), self.serve(1)]
        self.proxy()
        self.path.rename(self.folder / "gone.db")
        for server in servers:
            self.assertTrue(wait_until(lambda: server.ask("GET", "/healthz")[0] == 503, 30))  # noqa: B023
        body = '{"username": "x", "password": "y"}'
        for _ in range(30):  # whether or not the proxy has found out
            status, fields, content = ask(self.port, "POST", "/auth", body, True)
            self.assertEqual((status, "error" in json.loads(content)), (503, True))
            self.assertIn("Retry-After", fields)
            self.assertEqual(ask(self.port, "GET", JWKS, None, True)[0], 200)
            time.sleep(0.1)


if __name__ == "__main__":
    unittest.main()
