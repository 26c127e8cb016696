"""Envoy with the filter `jwt_authn`, from the package that requirements-dev.txt names."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import textwrap
import unittest
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from tests.live.issuing import ELSEWHERE, AsThePageSays, begin, needs_module
from tests.support import free_port

# Every request that the filter lets through is answered with the name that it read.
CONFIG = """
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {kind}.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: jwks
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      response_headers_to_add:
                        - header: {{key: x-seen, value: "%REQ(x-user)%"}}
                      routes:
                        - match: {{prefix: /}}
                          direct_response: {{status: 200}}
                http_filters:
{page}
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": {kind}.http.router.v3.Router
  clusters:
    - name: issuer_keys
      load_assignment:
        cluster_name: issuer_keys
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address:
                    socket_address: {{address: 127.0.0.1, port_value: {keys}}}
"""


def program() -> str:
    """Where the package has Envoy."""
    found = importlib.util.find_spec("envoy")
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parent / "_bin/envoy")


@needs_module("envoy")
class Envoy(AsThePageSays):
    heading = "Envoy"
    port: ClassVar[int]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.port = free_port()
        page = cls.page.there("yaml", **{ELSEWHERE: cls.issuer_url})
        config = CONFIG.format(
            port=cls.port,
            keys=urlsplit(cls.issuer_url).port,
            kind="type.googleapis.com/envoy.extensions.filters",
            page=textwrap.indent(page, " " * 18),
        )
        (cls.folder / "envoy.yaml").write_text(config)
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        begin(cls, [program(), "-c", str(cls.folder / "envoy.yaml"), *options], cls.port)

    def ask(self, token: str | None, **fields: str) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request("GET", "/", headers={**headers, **fields})
            answer = connection.getresponse()
            return answer.status, answer.headers["x-seen"]

    def test_opens_to_a_token_for_its_audience_and_reads_the_name(self):
        self.assertEqual(self.ask(self.token(), **{"x-user": "root"}), (200, self.name))

    def test_opens_to_nothing_else(self):
        self.assertEqual(self.ask(None, **{"x-user": "root"})[0], 401)
        for name, token in self.flawed().items():
            with self.subTest(name):
                self.assertIn(self.ask(token)[0], (401, 403))


if __name__ == "__main__":
    unittest.main()
