"""nginx with `auth_request`, and the verifier of docs/services.md, to the letter."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import sys
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote

from tests.live.issuing import ELSEWHERE, AsThePageSays, begin, needs
from tests.support import ROOT, free_port

CONFIG = """
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    server {{
        listen 127.0.0.1:{port};
        {page}
    }}
}}
"""


class Behind(BaseHTTPRequestHandler):
    """What nginx protects: it says who nginx says is there."""

    def do_GET(self):
        body = unquote(self.headers["X-User"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@needs("nginx")
class Nginx(AsThePageSays):
    heading = "nginx"
    port: ClassVar[int]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        behind = ThreadingHTTPServer(("127.0.0.1", 0), Behind)
        cls.addClassCleanup(behind.server_close)
        cls.addClassCleanup(behind.shutdown)
        threading.Thread(target=behind.serve_forever, daemon=True).start()
        cls.port, verifier = free_port(), free_port()
        shutil.copy(ROOT / "jwt_minimal.py", cls.folder)
        script = cls.folder / "verifier.py"
        script.write_text(
            cls.page.there("python", **{ELSEWHERE: cls.issuer_url, "9001": str(verifier)})
        )
        begin(cls, [sys.executable, str(script)], verifier, cwd=cls.folder)
        names = {"127.0.0.1:9000": f"127.0.0.1:{behind.server_port}", "9001": str(verifier)}
        config = cls.folder / "nginx.conf"
        page = cls.page.there("nginx", **names)
        config.write_text(CONFIG.format(folder=cls.folder, port=cls.port, page=page))
        place = ["-p", str(cls.folder), "-c", str(config)]
        begin(cls, ["nginx", *place, "-g", "daemon off;"], cls.port)

    def ask(self, token: str | None, **fields: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/page", headers={**headers, **fields})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def test_opens_to_scope_and_audience_and_says_who_it_is(self):
        self.assertEqual(self.ask(self.token()), (200, self.name))
        self.assertEqual(self.ask(self.token(), **{"X-User": "root"}), (200, self.name))
        token = self.issuer.token("J\u00f6rg\u20ac\r\nX-User: root", scope="read")
        self.assertEqual(self.ask(token), (200, "J\u00f6rg\u20ac\r\nX-User: root"))

    def test_opens_to_nothing_else(self):
        self.assertEqual(self.ask(None, **{"X-User": "root"})[0], 401)
        self.assertEqual(self.ask(self.token_without_claims())[0], 403)
        for name, token in self.flawed().items():
            with self.subTest(name):
                self.assertEqual(self.ask(token)[0], 401)


if __name__ == "__main__":
    unittest.main()
