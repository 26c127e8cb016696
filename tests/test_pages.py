"""Which pages a browser may speak for: own ones, allowed ones, and never a rebound name."""

from __future__ import annotations

import json
import unittest

from jwksd.api.pages import CrossSite, Pages, origin_of
from jwksd.ops import settings
from tests.support import AppTest, header

ALLOWED = "https://app.example"
REBOUND = {"host": "evil.example:8080", "origin": "http://evil.example:8080"}


class Believing(unittest.TestCase):
    pages = Pages("https://issuer.example/tenant", [ALLOWED])

    def is_believed(self, **headers: str) -> bool:
        try:
            self.pages.require_own({k.replace("_", "-"): v for k, v in headers.items()})
        except CrossSite:
            return False
        return True

    def test_a_program_that_is_no_browser(self):
        self.assertTrue(self.is_believed(host="anything.example"))
        self.assertTrue(self.is_believed())

    def test_the_page_of_the_issuer_also_behind_a_proxy_that_rewrites_host(self):
        for host in ("issuer.example", "127.0.0.1:8080", "backend.internal"):
            for site in ("same-origin", "cross-site"):
                self.assertTrue(
                    self.is_believed(
                        host=host, origin="https://issuer.example", sec_fetch_site=site
                    )
                )

    def test_an_allowed_page_elsewhere(self):
        self.assertTrue(
            self.is_believed(host="issuer.example", origin=ALLOWED, sec_fetch_site="cross-site")
        )

    def test_a_page_at_an_address_or_localhost(self):
        for host in ("127.0.0.1:8080", "192.0.2.7", "[::1]:8080", "localhost:8080", "LOCALHOST"):
            with self.subTest(host):
                self.assertTrue(self.is_believed(host=host, origin=f"http://{host}"))
                self.assertTrue(self.is_believed(host=host, sec_fetch_site="same-origin"))

    def test_never_a_name_that_its_owner_could_point_here(self):
        for host in ("evil.example", "evil.example:8080", "localhost.evil.example",
                     "127.0.0.1.evil.example", "xlocalhost", "issuer.example.evil", "[::1].evil",
                     "", "a b", "127.0.0.1:8080:1", "[::1", "localhost.", "127.0.0.1.",
                     "issuer.example.", "user@localhost", "localhost@evil.example",
                     "localhost,evil.example", "[::1%25lo]", "[fe80::1%eth0]", "::1",
                     "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "１２７.0.0.1",
                     "localho\u017ft"):  # fmt: skip
            with self.subTest(host):
                self.assertFalse(self.is_believed(host=host, origin=f"http://{host}"))
                self.assertFalse(self.is_believed(host=host, sec_fetch_site="same-origin"))

    def test_never_a_foreign_page(self):
        for headers in (
            {"sec_fetch_site": "cross-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://other.localhost", "sec_fetch_site": "same-site"},
            {"origin": "https://issuer.example.evil"},
            {"origin": "http://issuer.example"},  # another scheme
            {"origin": f"{ALLOWED}:8443"},
            {"origin": "http://127.0.0.1:8080", "sec_fetch_site": "cross-site"},
        ):
            with self.subTest(headers):
                self.assertFalse(self.is_believed(host="127.0.0.1:8080", **headers))


class Origins(unittest.TestCase):
    def test_are_written_as_browsers_write_them(self):
        for url, origin in (
            ("https://Issuer.Example:443/a", "https://issuer.example"),
            ("http://issuer.example:80", "http://issuer.example"),
            ("http://issuer.example:8080/a/b", "http://issuer.example:8080"),
            ("http://[::1]:80", "http://[::1]"),
        ):
            self.assertEqual(origin_of(url), origin)

    def test_that_no_browser_sends_are_refused_as_a_setting(self):
        for text in ("*", "null", "app.example", "https://app.example/", "https://App.example",
                     "ftp://app.example", "https://app.example#x", "https://a@b"):  # fmt: skip
            with self.subTest(text), self.assertRaises(settings.ConfigurationError):
                settings.make_settings({"allow_origin": text})
        config = settings.make_settings({"allow_origin": [ALLOWED, "http://[::1]:3000"]})
        self.assertEqual(config.allow_origin, (ALLOWED, "http://[::1]:3000"))


class TheServer(AppTest):
    settings = {"allow_origin": f"{ALLOWED}, http://localhost:3000", "auth_limit": "2/minute"}

    def test_refuses_a_rebound_name_on_every_post_and_takes_no_slot(self):
        for path in ("/auth", "/register"):
            for headers in (REBOUND, {**REBOUND, "sec-fetch-site": "same-origin"}):
                response = self.call("POST", path, {"username": "a"}, headers=headers)
                self.assertEqual(response.status, 403)
                self.assertEqual(json.loads(response.body)["error"], "cross_site")
                self.assertEqual(header(response, "Cache-Control"), "no-store")
        self.assertEqual(self.login("a", "x").status, 401)

    def test_refuses_metrics_by_a_rebound_name_with_or_without_fetch_metadata(self):
        for more in ({}, {"sec-fetch-site": "same-origin"}):
            headers = {"host": "evil.example:8080", **more}
            self.assertEqual(self.call("GET", "/metrics", headers=headers).status, 403)
        for host in ("127.0.0.1:8080", "localhost"):
            self.assertEqual(self.call("GET", "/metrics", headers={"host": host}).status, 200)

    def test_answers_the_preflight_of_an_allowed_page_and_of_no_other(self):
        asked = {"access-control-request-method": "POST", "host": "issuer.example"}
        response = self.call("OPTIONS", "/auth", headers={**asked, "origin": ALLOWED})
        self.assertEqual(response.status, 204)
        self.assertEqual(header(response, "Access-Control-Allow-Origin"), ALLOWED)
        self.assertIn("POST", header(response, "Access-Control-Allow-Methods"))
        self.assertIn("Authorization", header(response, "Access-Control-Allow-Headers"))
        self.assertEqual(header(response, "Vary"), "Origin")
        for origin in ("https://evil.example", "null"):
            refused = self.call("OPTIONS", "/auth", headers={**asked, "origin": origin})
            self.assertIsNone(header(refused, "Access-Control-Allow-Origin"))

    def test_lets_an_allowed_page_read_every_outcome(self):
        headers = {"origin": ALLOWED, "sec-fetch-site": "cross-site"}
        registered = self.call("POST", "/register", {"username": "alice"}, headers=headers)
        password = json.loads(registered.body)["password"]
        outcomes = [registered]
        outcomes += [self.login("alice", given, headers=headers) for given in (password, "x", "x")]
        self.assertEqual([response.status for response in outcomes], [201, 200, 401, 429])
        for response in outcomes:
            self.assertEqual(header(response, "Access-Control-Allow-Origin"), ALLOWED)
        self.assertIn("Retry-After", header(outcomes[-1], "Access-Control-Expose-Headers"))

    def test_does_not_share_what_other_pages_asked_for(self):
        response = self.login("a", "x", headers={"origin": "https://evil.example"})
        self.assertIsNone(header(response, "Access-Control-Allow-Origin"))
        self.assertIsNone(header(self.login("a", "x"), "Access-Control-Allow-Origin"))

    def test_answers_preflights_of_the_public_documents_for_anybody(self):
        for path in ("/.well-known/jwks.json", "/.well-known/openid-configuration"):
            asked = {"origin": "https://any.example", "access-control-request-method": "GET",
                     "access-control-request-headers": "if-none-match,traceparent"}  # fmt: skip
            response = self.call("OPTIONS", path, headers=asked)
            self.assertEqual(header(response, "Access-Control-Allow-Origin"), "*")
            self.assertEqual(header(response, "Access-Control-Allow-Headers"), "*")
            document = self.call("GET", path)
            self.assertEqual(header(document, "Access-Control-Expose-Headers"), "ETag")


if __name__ == "__main__":
    unittest.main()
