"""A page whose name is pointed at this machine, in a real browser: it gets nothing."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import unittest
from typing import Any

import server
from tests.support import CHEAPEST

NAME = "evil.example"  # RFC 2606 §2: belongs to nobody
PAGE = b"""<!doctype html><body>nothing<script>
const asked = [];
async function ask(path, options) {
  try {
    const answer = await fetch(path, options);
    asked.push([path, answer.status, (await answer.text()).includes("password")]);
  } catch (error) { asked.push([path, String(error), false]); }
}
const post = (body) => ({method: "POST", body: JSON.stringify(body),
                         headers: {"Content-Type": "application/json"}});
(async () => {
  await ask("/register", post({username: "eve"}));
  await ask("/auth", post({username: "alice", password: "x"}));
  await ask("/metrics");
  await ask("/.well-known/jwks.json");
  document.body.textContent = JSON.stringify(asked);
})();
</script></body>"""


class Rebound(socketserver.BaseRequestHandler):
    """The page for `GET /`; everything else goes to the server, as after the name was pointed."""

    server: Any

    def handle(self) -> None:
        request = self.request.recv(65_536)
        if request.startswith(b"GET / "):
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
            self.request.sendall(head + b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE)
            return
        with socket.create_connection(self.server.target, timeout=30) as target:
            target.sendall(request.replace(b"Connection: keep-alive", b"Connection: close"))
            while octets := target.recv(65_536):
                self.request.sendall(octets)


class Forwarder(socketserver.ThreadingTCPServer):
    """The machine that the name belongs to, with the port of the server, as the attack needs it."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.2", port), Rebound)
        self.target = ("127.0.0.1", port)


@unittest.skipUnless(shutil.which("chromium"), "chromium is not installed")
class AReboundName(unittest.TestCase):
    def browse(self, url: str) -> list[list[Any]]:
        with tempfile.TemporaryDirectory() as profile:
            run = subprocess.run(
                ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                 "--disable-background-networking", "--no-first-run",
                 f"--host-resolver-rules=MAP {NAME} 127.0.0.2", f"--user-data-dir={profile}",
                 "--virtual-time-budget=10000", url],
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
        found = re.search(r"<body>(.*)</body>", run.stdout)
        self.assertIsNotNone(found, run.stderr)
        answers: list[list[Any]] = json.loads(found[1])
        return answers

    def test_registers_nobody_logs_in_nobody_and_reads_no_counters(self):
        with server.running(argon2=CHEAPEST) as issuer:
            port = int(issuer.url.rpartition(":")[2])
            with Forwarder(port) as forwarder, contextlib.ExitStack() as stack:
                thread = threading.Thread(target=forwarder.serve_forever)
                thread.start()
                stack.callback(thread.join)
                stack.callback(forwarder.shutdown)
                answers = self.browse(f"http://{NAME}:{port}/")
        self.assertEqual([row[1] for row in answers], [403, 403, 403, 200], answers)
        self.assertEqual([row[2] for row in answers], [False] * 4)


if __name__ == "__main__":
    unittest.main()
