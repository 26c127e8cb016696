"""prometheus_client reads /metrics in both formats, and finds the same in them."""

from __future__ import annotations

import json
import socket
import unittest
from urllib.request import Request, urlopen

import server
from tests.live.issuing import Issuing, needs_module
from tests.support import CHEAPEST


@needs_module("prometheus_client")
class PrometheusClient(Issuing):
    settings = {"auth_limit": "3/hour"}

    def setUp(self) -> None:
        for _ in range(4):
            self.post("/auth", {"username": "nobody", "password": "x"})

    def post(self, path: str, document: dict) -> None:
        connection = socket.create_connection(self.issuer._service.listener.socket.getsockname())
        with connection, connection.makefile("rwb") as stream:
            body = json.dumps(document).encode()
            stream.write(
                b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
            )
            stream.flush()
            stream.read()

    def scrape(self, accept: str) -> tuple[str, str]:
        request = Request(f"{self.issuer.url}/metrics", headers={"Accept": accept})
        with urlopen(request, timeout=10) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    def test_reads_openmetrics_and_the_text_format_alike(self):
        from prometheus_client import parser
        from prometheus_client.openmetrics import parser as openmetrics

        media_type, text = self.scrape("application/openmetrics-text;version=1.0.0,*/*;q=0.1")
        self.assertTrue(media_type.startswith("application/openmetrics-text; version=1.0.0"))
        new = {f.name: f for f in openmetrics.text_string_to_metric_families(text)}
        media_type, text = self.scrape("*/*")
        self.assertTrue(media_type.startswith("text/plain; version=0.0.4"))
        old = {f.name: f for f in parser.text_string_to_metric_families(text)}
        self.assertEqual(
            {name: family.type for name, family in new.items()},
            {name: family.type for name, family in old.items()},
        )
        for families in (new, old):
            self.check({(s.name, *s.labels.values()): s.value
                        for family in families.values() for s in family.samples})  # fmt: skip

    def check(self, samples: dict) -> None:
        self.assertEqual(samples["jwks_ready",], 1)
        self.assertEqual(samples["jwks_logins_total", "unknown_user"], 3)
        self.assertGreaterEqual(samples["jwks_limited_total", "auth"], 1)
        self.assertEqual(samples["jwks_request_seconds_count", "auth"], 3)
        self.assertEqual(samples["jwks_request_seconds_bucket", "auth", "+Inf"], 3)
        self.assertGreater(samples["jwks_next_key_seconds",], 28 * 86_400)
        self.assertGreaterEqual(samples["jwks_connections_open",], 1)
        self.assertGreaterEqual(samples["jwks_connections_total",], 5)


class IdleTimeout(unittest.TestCase):
    def test_ends_a_connection_that_rests(self):
        with server.running(idle_timeout="1s", argon2=CHEAPEST) as issuer:
            address = issuer._service.listener.socket.getsockname()
            with socket.create_connection(address, timeout=30) as client:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                received = b""
                while octets := client.recv(65_536):
                    received += octets
        self.assertEqual(received.count(b"HTTP/1.1 200"), 1)  # answered, and then the end


if __name__ == "__main__":
    unittest.main()
