"""OAuth 2 at /auth: the grants of RFC 6749, their errors, scope and audience."""

from __future__ import annotations

import base64
import json
import unittest
from urllib.parse import quote, urlencode

import jwt_minimal
from jwksd.api.oauth import narrowed_scope
from jwksd.ops import settings
from tests.support import AppTest, header

FORM = {"content-type": "application/x-www-form-urlencoded"}


def basic(user: str, secret: str) -> dict[str, str]:
    pair = base64.b64encode(f"{user}:{secret}".encode()).decode()
    return {"authorization": f"Basic {pair}"}


class OAuthTest(AppTest):
    settings = {"auth_limit": "off", "audience": "shop, https://api.example"}

    def setUp(self):
        super().setUp()
        self.password = self.register("alice")
        self.jwks = json.loads(self.call("GET", "/.well-known/jwks.json").body)

    def ask(self, *pairs, headers=None, **fields):
        body = urlencode([*pairs, *fields.items()]).encode()
        return self.call("POST", "/auth", raw=body, headers={**FORM, **(headers or {})})

    def as_user(self, *pairs, headers=None, **fields):
        given = {"grant_type": "password", "username": "alice", "password": self.password}
        return self.ask(*pairs, headers=headers, **{**given, **fields})

    def as_client(self, headers=None, **fields):
        return self.ask(headers=headers, **{"grant_type": "client_credentials", **fields})

    def claims(self, response):
        self.assertEqual(response.status, 200, response.body)
        token = json.loads(response.body)["access_token"]
        audience = json.loads(jwt_minimal.b64url_decode(token.split(".")[1]))["aud"]
        one = audience if isinstance(audience, str) else audience[0]
        return jwt_minimal.decode(token, self.jwks, audience=one, now=self.clock.now)

    def assertError(self, response, word, status=400):
        document = json.loads(response.body)
        self.assertEqual((response.status, document["error"]), (status, word), document)
        self.assertEqual(set(document), {"error", "error_description"})
        self.assertEqual(header(response, "Cache-Control"), "no-store")


class ThePasswordGrant(OAuthTest):
    def test_gets_what_section_5_1_says_and_our_member_beside(self):
        document = json.loads(self.as_user().body)
        self.assertEqual(set(document), {"access_token", "token", "token_type", "expires_in"})
        self.assertEqual(document["access_token"], document["token"])
        self.assertEqual((document["token_type"], document["expires_in"]), ("Bearer", 3600))
        self.assertEqual(header(self.as_user(), "Cache-Control"), "no-store")
        self.assertEqual(header(self.as_user(), "Pragma"), "no-cache")

    def test_may_come_as_json(self):
        members = {"grant_type": "password", "username": "alice", "password": self.password}
        self.assertEqual(self.claims(self.call("POST", "/auth", members))["sub"], "alice")

    def test_takes_a_public_client_or_none(self):
        for fields, headers in (
            ({"client_id": "app"}, {}),
            ({"client_id": "app", "client_secret": ""}, {}),
            ({}, basic("app", "")),
            ({"client_id": "app"}, basic("app", "")),
            ({}, {"authorization": "Bearer abc"}),
        ):
            with self.subTest(fields, **headers):
                self.assertEqual(self.as_user(headers=headers, **fields).status, 200)

    def test_refuses_a_secret_that_nobody_issued(self):
        self.assertError(self.as_user(client_id="app", client_secret="x"), "invalid_client")
        response = self.as_user(headers=basic("app", "x"))
        self.assertError(response, "invalid_client", 401)
        self.assertTrue(header(response, "WWW-Authenticate").startswith("Basic "))

    def test_refuses_an_unknown_user_and_a_wrong_password_alike(self):
        wrong, unknown = self.as_user(password="x"), self.as_user(username="nobody")
        self.assertError(wrong, "invalid_grant")
        self.assertEqual((wrong.body, wrong.headers), (unknown.body, unknown.headers))

    def test_logs_wrong_passwords_as_every_form_does(self):
        self.as_user(password="x")
        self.as_client(headers=basic("alice", "x"))
        self.login("alice", "x")
        rows = self.app.database.read("SELECT outcome FROM auth_outcomes")
        self.assertEqual(rows, [("bad_password",)] * 3)

    def test_misses_what_is_missing(self):
        for name in ("username", "password"):
            self.assertError(self.as_user(**{name: ""}), "invalid_request")


class TheClientCredentialsGrant(OAuthTest):
    def test_takes_the_account_as_the_client_in_the_body_or_by_basic(self):
        for response in (
            self.as_client(client_id="alice", client_secret=self.password),
            self.as_client(headers=basic("alice", self.password)),
            self.as_client(headers=basic("alice", self.password), client_id="alice"),
            self.as_client(headers=basic("alice", self.password.replace("-", "%2D"))),
        ):
            self.assertEqual(self.claims(response)["sub"], "alice")

    def test_decodes_names_and_passwords_that_are_no_uuids(self):
        name, password = "jürgen müller", "a+b %41 c&d=é"
        self.app.accounts.add(name, None, password)
        for spell in (quote, lambda text: quote(text, safe="").replace("%20", "+")):
            response = self.as_client(headers=basic(spell(name), spell(password)))
            self.assertEqual(self.claims(response)["sub"], name)

    def test_refuses_two_ways_at_once(self):
        headers = basic("alice", self.password)
        both = self.as_client(headers=headers, client_id="alice", client_secret=self.password)
        self.assertError(both, "invalid_request")
        self.assertError(self.as_client(headers=headers, client_id="bob"), "invalid_request")

    def test_refuses_a_wrong_secret_with_401_only_to_a_client_that_used_basic(self):
        response = self.as_client(headers=basic("alice", "x"))
        self.assertError(response, "invalid_client", 401)
        self.assertTrue(header(response, "WWW-Authenticate").startswith("Basic "))
        unknown = self.as_client(headers=basic("nobody", "x"))
        self.assertEqual((response.body, response.headers), (unknown.body, unknown.headers))
        in_body = self.as_client(client_id="alice", client_secret="x")
        self.assertError(in_body, "invalid_client")
        self.assertIsNone(header(in_body, "WWW-Authenticate"))

    def test_refuses_no_authentication(self):
        for fields in ({}, {"client_id": "alice"}, {"client_secret": "x"},
                       {"username": "alice", "password": self.password}):  # fmt: skip
            self.assertError(self.as_client(**fields), "invalid_client")


class AnyGrant(OAuthTest):
    def test_that_is_unknown_is_refused_with_right_credentials_too(self):
        for grant in ("refresh_token", "authorization_code", "Password", "implicit", "urn:x"):
            self.assertError(self.as_user(grant_type=grant), "unsupported_grant_type")

    def test_that_is_repeated_or_malformed_is_refused(self):
        self.assertError(self.as_user(("grant_type", "password")), "invalid_request")
        self.assertError(self.as_user(("username", "bob")), "invalid_request")
        bad = self.call("POST", "/auth", {"grant_type": 7, "username": "a", "password": "b"})
        self.assertError(bad, "invalid_request")
        self.assertError(self.as_user(headers={"authorization": "Basic ?"}), "invalid_request")

    def test_that_is_empty_counts_as_missing(self):
        self.assertError(self.as_user(grant_type=""), "invalid_request")

    def test_counts_for_the_limiter_as_every_attempt_does(self):
        self.app = self.open_app(auth_limit="2/minute")
        self.as_user(password="x")
        self.as_client(headers=basic("alice", "x"))
        self.assertEqual(self.login("alice", self.password).status, 429)

    def test_of_an_expired_token_is_still_expired(self):
        body = urlencode({"grant_type": "password", "username": "alice",
                          "password": self.password}).encode()  # fmt: skip
        response = self.call("POST", "/auth", raw=body, headers=FORM, query="expired=true")
        self.assertEqual(json.loads(response.body)["expires_in"], 0)

    def test_without_a_grant_the_answer_is_what_it_was(self):
        document = json.loads(self.login("alice", self.password).body)
        self.assertEqual(set(document), {"token", "token_type", "expires_in"})
        members = {"username": "alice", "password": self.password}
        for more in ({"scope": "read"}, {"resource": "https://evil.example"}, {"client_id": "x"}):
            self.assertEqual(self.call("POST", "/auth", {**members, **more}).status, 200)
        twice = urlencode([*members.items(), ("resource", "a"), ("resource", "b")]).encode()
        self.assertEqual(self.call("POST", "/auth", raw=twice, headers=FORM).status, 400)


class AccessTokens(OAuthTest):
    """RFC 9068."""

    settings = {**OAuthTest.settings, "token_type": "at+jwt"}

    def shown(self, response):
        """Header and claims."""
        token = json.loads(response.body)["token"]
        header, _ = jwt_minimal.verify(token, self.jwks)
        claims = jwt_minimal.decode(token, self.jwks, audience="shop", now=self.clock.now)
        return header, claims

    def test_have_their_type_and_every_claim_however_they_are_asked_for(self):
        for answer in (
            self.as_user(),
            self.as_user(resource="shop"),
            self.as_client(headers=basic("alice", self.password)),
            self.login("alice", self.password),
        ):
            header, claims = self.shown(answer)
            self.assertEqual(set(header), {"alg", "typ", "kid"})
            self.assertEqual(header["typ"], "at+jwt")
            needed = {"iss", "exp", "aud", "sub", "client_id", "iat", "jti"}  # §2.2
            self.assertEqual(set(claims), {*needed, "nbf"})
            self.assertEqual(claims["client_id"], "alice")

    def test_name_no_client_that_has_not_shown_who_it_is(self):
        self.register("worker")
        self.assertEqual(self.shown(self.as_user(client_id="worker"))[1]["client_id"], "alice")
        answer = self.as_user(headers=basic("worker", ""))
        self.assertEqual(self.shown(answer)[1]["client_id"], "alice")

    def test_need_an_audience(self):
        with self.assertRaisesRegex(settings.ConfigurationError, "needs --audience"):
            settings.make_settings({"token_type": "at+jwt"})

    def test_are_not_the_default(self):
        self.app = self.open_app(audience="shop")
        header, claims = self.shown(self.as_user())
        self.assertEqual(header["typ"], "JWT")
        self.assertNotIn("client_id", claims)


class Tricks(OAuthTest):
    def test_in_the_query_are_no_parameters(self):
        body = urlencode({"username": "alice", "password": self.password}).encode()
        query = "grant_type=refresh_token&scope=root&resource=https://evil.example"
        response = self.call("POST", "/auth", raw=body, headers=FORM, query=query)
        self.assertEqual(set(json.loads(response.body)), {"token", "token_type", "expires_in"})

    def test_of_encoding_spell_one_name_once(self):
        for pair in ("alice\0:x", "alice:%00", "%00:x", "alice%3A:x", "alice:%0a", "alice+:x"):
            response = self.as_client(headers=basic(*pair.split(":", 1)))
            self.assertError(response, "invalid_request")
        response = self.as_client(headers=basic("%2561lice", self.password))  # encoded twice
        self.assertError(response, "invalid_client", 401)
        for body in (b"grant%5Ftype=password&grant_type=password", b"grant_type=password&x=%ff",
                     b"grant_type=password&username=%c1%81lice",
                     b"grant_type=password&&"):  # fmt: skip
            response = self.call("POST", "/auth", raw=body, headers=FORM)
            self.assertError(response, "invalid_request")

    def test_with_a_name_in_nfd_find_it(self):
        password = self.register("zo\u00eb")
        for spelled in ("zo\u00eb", "zoe\u0308"):
            for response in (
                self.as_client(headers=basic(spelled, password)),
                self.as_client(headers=basic(quote(spelled), password)),
                self.as_client(client_id=spelled, client_secret=password),
            ):
                self.assertEqual(self.claims(response)["sub"], "zo\u00eb")


class CountedName(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


class Scope(OAuthTest):
    def setUp(self):
        super().setUp()
        self.app.accounts.set_claims("alice", ["scope=read write admin"])

    def test_is_what_the_account_has_if_none_is_asked_for(self):
        response = self.as_user()
        self.assertEqual(self.claims(response)["scope"], "read write admin")
        self.assertEqual(json.loads(response.body)["scope"], "read write admin")

    def test_is_narrowed_to_what_is_asked_for(self):
        response = self.as_user(scope="write read")
        self.assertEqual(self.claims(response)["scope"], "read write")
        response = self.as_user(scope="read write")
        self.assertNotIn("scope", json.loads(response.body))  # as asked: not repeated
        response = self.as_user(scope="read delete")
        self.assertEqual(self.claims(response)["scope"], "read")
        self.assertEqual(json.loads(response.body)["scope"], "read")

    def test_of_which_nothing_is_left_is_invalid(self):
        self.assertError(self.as_user(scope="delete"), "invalid_scope")
        self.assertError(self.as_user(scope="READ"), "invalid_scope")
        self.app.accounts.set_claims("alice", ["scope="])
        self.assertError(self.as_user(scope="read"), "invalid_scope")
        self.assertEqual(
            self.app.database.read("SELECT DISTINCT outcome FROM auth_outcomes"),
            [("invalid_scope",)],
        )

    def test_that_is_none_is_invalid(self):
        for scope in (" read", "read  write", "read ", 're"ad', "re\\ad", "é", "a\tb"):
            self.assertError(self.as_user(scope=scope), "invalid_scope")

    def test_may_be_a_list(self):
        self.app.accounts.set_claims("alice", ['scope:=["read","write"]'])
        self.assertEqual(self.claims(self.as_user(scope="write"))["scope"], ["write"])

    def test_of_thousands_of_names_costs_no_more_than_it_is_long(self):
        has = [f"{number:x}" for number in range(500)]
        asked = " ".join(f"x{number:x}" for number in range(1000)) + " 1f3"
        counted = [CountedName(name) for name in has]
        claims, granted = narrowed_scope(asked, {"scope": counted})
        self.assertEqual((claims["scope"], granted), (["1f3"], "1f3"))
        self.assertLess(CountedName.compared, 5_000)

    def test_is_not_tried_before_the_password_is(self):
        self.assertError(self.as_user(scope="delete", password="x"), "invalid_grant")


class Audience(OAuthTest):
    def test_is_every_one_that_is_configured_if_none_is_asked_for(self):
        self.assertEqual(self.claims(self.as_user())["aud"], ["shop", "https://api.example"])

    def test_is_chosen_by_resource_or_audience(self):
        for name, value in (("resource", "https://api.example"), ("audience", "shop")):
            self.assertEqual(self.claims(self.as_user(**{name: value}))["aud"], value)
        both = self.as_user(("resource", "https://api.example"), ("resource", "shop"))
        self.assertEqual(self.claims(both)["aud"], ["shop", "https://api.example"])
        members = {"grant_type": "password", "username": "alice", "password": self.password,
                   "resource": ["shop"]}  # fmt: skip
        self.assertEqual(self.claims(self.call("POST", "/auth", members))["aud"], "shop")

    def test_that_is_empty_counts_as_left_out(self):
        for pairs in (
            [("resource", ""), ("resource", "shop")],
            [("audience", ""), ("resource", "shop")],
        ):
            self.assertEqual(self.claims(self.as_user(*pairs))["aud"], "shop")

    def test_that_is_not_ours_to_name_is_invalid(self):
        for value in ("https://evil.example", "SHOP"):
            self.assertError(self.as_user(resource=value), "invalid_target")
        self.assertError(self.as_user(("resource", "shop"), ("resource", "x")), "invalid_target")


class Backdating(AppTest):
    settings = {"auth_limit": "off"}

    def test_sets_iat_and_nbf_back_and_leaves_the_end_honest(self):
        password = self.register("alice")
        document = json.loads(self.login("alice", password).body)
        jwks = json.loads(self.call("GET", "/.well-known/jwks.json").body)
        now = int(self.clock.now)
        claims = jwt_minimal.decode(document["token"], jwks, now=now - 10)  # a clock behind
        self.assertEqual((claims["iat"], claims["nbf"]), (now - 10, now - 10))
        self.assertEqual((claims["exp"], document["expires_in"]), (now + 3600, 3600))

    def test_can_be_turned_off(self):
        self.app = self.open_app(backdate="0s", auth_limit="off")
        password = self.register("bob")
        token = json.loads(self.login("bob", password).body)["token"]
        jwks = json.loads(self.call("GET", "/.well-known/jwks.json").body)
        self.assertEqual(
            jwt_minimal.decode(token, jwks, now=self.clock.now)["iat"], int(self.clock.now)
        )


class Metadata(AppTest):
    def test_says_what_is_true_of_the_token_endpoint(self):
        document = json.loads(self.call("GET", "/.well-known/openid-configuration").body)
        self.assertEqual(document["grant_types_supported"], ["password", "client_credentials"])
        self.assertEqual(
            document["token_endpoint_auth_methods_supported"],
            ["none", "client_secret_basic", "client_secret_post"],
        )
        self.assertEqual(document["response_types_supported"], [])


class AnIssuerWithAPath(AppTest):
    settings = {"issuer": "http://127.0.0.1:8080/tenant", "auth_limit": "off"}

    def test_has_every_route_below_its_path_and_where_it_was(self):
        for base in ("", "/tenant"):
            password = json.loads(
                self.call("POST", f"{base}/register", {"username": f"a{len(base)}"}).body
            )["password"]
            members = {"username": f"a{len(base)}", "password": password}
            self.assertEqual(self.call("POST", f"{base}/auth", members).status, 200)
            for path in ("/.well-known/jwks.json", "/healthz", "/", "/inspector.js"):
                self.assertEqual(self.call("GET", base + path).status, 200, base + path)

    def test_has_its_metadata_where_the_standards_look(self):
        for path in (
            "/.well-known/oauth-authorization-server/tenant",  # RFC 8414 §3.1
            "/.well-known/openid-configuration/tenant",
            "/tenant/.well-known/openid-configuration",
        ):  # OIDC Discovery §4
            document = json.loads(self.call("GET", path).body)
            self.assertEqual(document["issuer"], "http://127.0.0.1:8080/tenant")
            self.assertEqual(
                document["jwks_uri"], "http://127.0.0.1:8080/tenant/.well-known/jwks.json"
            )
            self.assertEqual(document["token_endpoint"], "http://127.0.0.1:8080/tenant/auth")

    def test_has_nothing_below_other_paths(self):
        for path in ("/tenant2/auth", "/tenant", "/tenantauth", "/other/.well-known/jwks.json"):
            self.assertEqual(self.call("GET", path).status, 404)


class SettingsThatCannotBeMeant(unittest.TestCase):
    def test_are_refused(self):
        for name, values in (
            ("issuer", ("https://issuer.example\r", "https://issuer.example\n", "https://a b",
                        "https://user@issuer.example", "https://u:p@issuer.example",
                        "https://issuer.example:99999", "https://issuer.example:", "https://é.example",
                        "https://issuer.example:0", "https://[::1", "https://", "issuer.example",
                        "https://issuer.example\\a", "https://issuer.example/\x7f")),
            ("audience", ("shop\r", "a\tb", " ")),
            ("host", ("127.0.0.1\r",)), ("db", ("keys.db\n",)), ("tls_cert", ("cert.pem\r",)),
            ("backdate", ("-1s", "1.5s", "2h")), ("token_type", ("jwt", "AT+JWT", "at+jwt ")),
        ):  # fmt: skip
            for value in values:
                with self.subTest(name, value=value):
                    with self.assertRaises(settings.ConfigurationError) as refused:
                        settings.make_settings({name: value, "tls_key": "k"})
                    self.assertIn(f"--{name.replace('_', '-')}", str(refused.exception))
                    self.assertTrue(str(refused.exception).isprintable())

    def test_are_not_those_that_can(self):
        for issuer in ("https://issuer.example", "http://127.0.0.1:8080/a/b", "http://[::1]:8080",
                       "https://issuer.example:65535/"):  # fmt: skip
            self.assertEqual(settings.make_settings({"issuer": issuer}).issuer, issuer)
        config = settings.make_settings({"audience": ["shop", "https://api.example"]})
        self.assertEqual(config.audience, ("shop", "https://api.example"))


if __name__ == "__main__":
    unittest.main()
