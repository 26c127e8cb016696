"""Our server behind a proxy that spoils its answers: `python submission.py PORT FLAW`.

FLAW is a name of tests.live.grading.FLAWS, or `none`. PYTHONPATH leads to the project.
"""

from __future__ import annotations

import http.client
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import server
from jwksd.grading.asking import Asked
from tests.live.grading import FLAWS, Said
from tests.support import CHEAPEST

KEPT = ("Content-Type", "Authorization", "If-None-Match", "Origin")
PORT, NAME = int(sys.argv[1]), sys.argv[2]
CHANGE = {**{name: flaw for name, _, flaw in FLAWS}, "none": lambda it: it}[NAME]


class Spoiled(BaseHTTPRequestHandler):
    wbufsize = -1  # one segment an answer

    def log_message(self, *arguments):
        pass

    def forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fields = {name: self.headers[name] for name in KEPT if name in self.headers}
        connection = http.client.HTTPConnection(BEHIND, timeout=10)
        address = {"X-Forwarded-For": self.client_address[0]}
        method = "GET" if self.command == "HEAD" else self.command  # what is spoiled has a body
        connection.request(method, self.path, body or None, {**fields, **address})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        request = Asked(self.command, self.path, fields, body or None, None)
        said = CHANGE(Said(request, response.status, found, response.read()))
        connection.close()
        self.send_response_only(said.status)
        fields = {**said.fields, "content-length": str(len(said.answer))}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.answer if self.command != "HEAD" else b"")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = forward


if __name__ == "__main__":
    settings: dict[str, Any] = {
        "register_limit": "off",
        "trusted_proxy": "127.0.0.0/8",
        "argon2": CHEAPEST,
    }
    issuer = server.running(**settings, issuer="https://issuer.example", db="keys.db")
    BEHIND = urlsplit(issuer.url).netloc
    ThreadingHTTPServer(("127.0.0.1", PORT), Spoiled).serve_forever()
