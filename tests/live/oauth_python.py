"""Authlib and requests-oauthlib get tokens with both grants and every way of authentication."""

from __future__ import annotations

import json
import time
import unittest
from typing import Any
from unittest import mock
from urllib.parse import urlencode
from urllib.request import urlopen

import jwt_minimal
from tests.live.issuing import NAME, Issuing, needs_module


class Discovery(Issuing):
    def metadata(self) -> dict:
        url = f"{self.issuer.url}/.well-known/oauth-authorization-server"
        with urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def test_names_no_way_that_is_not_tried_here(self):
        document = self.metadata()
        ways = {"none", "client_secret_basic", "client_secret_post"}
        self.assertEqual(set(document["token_endpoint_auth_methods_supported"]), ways)
        self.assertEqual(set(document["grant_types_supported"]), {"password", "client_credentials"})

    @needs_module("authlib")
    def test_passes_authlibs_validation_but_for_https_and_what_is_not_here(self):
        from authlib.oauth2.rfc8414 import AuthorizationServerMetadata

        document = AuthorizationServerMetadata(self.metadata())
        for member in ("jwks_uri", "scopes_supported", "response_modes_supported",
                       "grant_types_supported", "token_endpoint_auth_methods_supported",
                       "service_documentation", "ui_locales_supported"):  # fmt: skip
            getattr(document, f"validate_{member}")()


@needs_module("authlib")
class Authlib(Issuing):
    def session(self, **options):
        from authlib.integrations.requests_client import OAuth2Session

        session = OAuth2Session(**options)
        self.addCleanup(session.close)
        return session

    def test_client_credentials_in_every_way(self):
        for way in ("client_secret_basic", "client_secret_post"):
            session = self.session(
                client_id=NAME, client_secret=self.password, token_endpoint_auth_method=way
            )
            answer = session.fetch_token(self.token_endpoint, grant_type="client_credentials")
            self.assertIssued(answer)

    def test_the_password_grant_with_a_public_client_and_with_none(self):
        for client in ("app", None):
            session = self.session(client_id=client, token_endpoint_auth_method="none")
            answer = session.fetch_token(
                self.token_endpoint, grant_type="password", username=NAME, password=self.password
            )
            self.assertIssued(answer)

    def test_narrows_scope_and_audience(self):
        session = self.session(client_id=NAME, client_secret=self.password, scope="read")
        answer = session.fetch_token(
            self.token_endpoint, grant_type="client_credentials", resource="https://api.example"
        )
        self.assertIssued(answer, "read", "https://api.example")

    def test_hears_the_words_of_a_refusal(self):
        from authlib.integrations.base_client import OAuthError

        for secret, more, word in (
            ("wrong", {}, "invalid_client"),
            (self.password, {"scope": "root"}, "invalid_scope"),
            (self.password, {"resource": "https://x.example"}, "invalid_target"),
        ):
            session = self.session(client_id=NAME, client_secret=secret)
            with self.assertRaises(OAuthError) as refused:
                session.fetch_token(
                    self.token_endpoint, grant_type="client_credentials", **more
                )  # fmt: skip
            self.assertEqual(refused.exception.error, word)


@needs_module("requests_oauthlib")
@mock.patch.dict("os.environ", {"OAUTHLIB_INSECURE_TRANSPORT": "1"})  # loopback has no TLS
class RequestsOAuthlib(Issuing):
    def fetch(self, client, **options):
        from requests_oauthlib import OAuth2Session

        with OAuth2Session(client=client) as session:
            return session.fetch_token(self.token_endpoint, **options)

    def test_client_credentials_in_every_way(self):
        from oauthlib.oauth2 import BackendApplicationClient
        from requests.auth import HTTPBasicAuth

        for options in (
            {"auth": HTTPBasicAuth(NAME, self.password)},
            {"client_secret": self.password, "include_client_id": True},
        ):
            self.assertIssued(self.fetch(BackendApplicationClient(NAME), **options))

    def test_the_password_grant_with_a_public_client(self):
        from oauthlib.oauth2 import LegacyApplicationClient
        from requests.auth import HTTPBasicAuth

        for options in ({"include_client_id": True}, {"auth": HTTPBasicAuth("app", "")}, {}):
            client = LegacyApplicationClient("app")
            answer = self.fetch(client, username=NAME, password=self.password, **options)
            self.assertIssued(answer)

    def test_takes_the_narrower_scope_only_if_it_is_told_of_it(self):
        from oauthlib.oauth2 import BackendApplicationClient

        client = BackendApplicationClient(NAME, scope=["read", "root"])
        options = {"client_secret": self.password, "include_client_id": True}
        with self.assertRaisesRegex(Warning, 'from "(read root|root read)" to "read"'):
            self.fetch(client, **options)
        client = BackendApplicationClient(NAME, scope=["read"])
        self.assertIssued(self.fetch(client, **options), "read")

    def test_hears_the_words_of_a_refusal(self):
        from oauthlib.oauth2 import BackendApplicationClient, LegacyApplicationClient
        from oauthlib.oauth2.rfc6749 import errors

        with self.assertRaises(errors.InvalidClientError):
            client = BackendApplicationClient(NAME)
            self.fetch(client, client_secret="wrong", include_client_id=True)
        with self.assertRaises(errors.InvalidGrantError):
            self.fetch(LegacyApplicationClient("app"), username=NAME, password="wrong")


@needs_module("authlib")
class AuthlibsResourceServer(Issuing):
    """It holds tokens to RFC 9068."""

    settings = {**Issuing.settings, "token_type": "at+jwt"}

    def accepted(self, token, *scopes):
        """The claims; or an error of Authlib's."""
        from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
        from joserfc.jwk import KeySet

        found: Any = self.issuer.jwks()
        validator = JWTBearerTokenValidator(issuer=self.issuer_url, resource_server="shop")
        validator.get_jwks = lambda: KeySet.import_key_set(found)
        claims = validator.authenticate_token(token)
        validator.validate_token(claims, scopes, None)
        return claims

    def test_takes_an_access_token_and_its_scope(self):
        from authlib.oauth2.rfc6750.errors import InsufficientScopeError

        fields = {"grant_type": "client_credentials", "client_id": NAME,
                  "client_secret": self.password}  # fmt: skip
        with urlopen(self.token_endpoint, urlencode(fields).encode(), timeout=30) as answer:
            token = json.load(answer)["access_token"]
        claims = self.accepted(token, "read")
        self.assertEqual((claims["sub"], claims["client_id"]), (NAME, NAME))
        with self.assertRaises(InsufficientScopeError):
            self.accepted(token, "root")

    def test_refuses_one_of_another_type_or_without_a_claim(self):
        from authlib.oauth2.rfc6750.errors import InvalidTokenError

        key = self.issuer._service.app.keys.signing_key()
        claims = self.issuer._service.app.claims(NAME, key, audience=("shop",))
        wrong = [jwt_minimal.encode(claims, key.private_key, key.kid)]
        wrong += [self.issuer.token(NAME, **{name: None}) for name in ("client_id", "jti")]
        wrong.append(self.issuer.token(NAME, aud="bank"))
        for token in wrong:
            with self.subTest(token), self.assertRaises(InvalidTokenError):
                self.accepted(token)
        self.accepted(self.issuer.token(NAME))


class AVerifierTwoSecondsBehind(Issuing):
    @needs_module("jwt")
    def test_takes_a_new_token_in_pyjwt(self):
        import jwt

        token, behind = self.issuer.token(NAME), time.time() - 2
        key = jwt.PyJWKSet.from_dict(self.issuer.jwks()).keys[0]
        with mock.patch("jwt.api_jwt.datetime") as clock:
            clock.now.return_value.timestamp.return_value = behind
            self.assertEqual(jwt.decode(token, key, ["RS256"], audience="shop")["sub"], NAME)
            clock.now.return_value.timestamp.return_value = behind - 10  # more than --backdate
            with self.assertRaises(jwt.ImmatureSignatureError):
                jwt.decode(token, key, ["RS256"], audience="shop")

    @needs_module("joserfc")
    def test_takes_a_new_token_in_joserfc(self):
        from joserfc import jwk, jwt
        from joserfc.errors import InvalidTokenError

        token, behind = self.issuer.token(NAME), int(time.time()) - 2
        published: Any = self.issuer.jwks()
        keys = jwk.KeySet.import_key_set(published)
        claims = jwt.decode(token, keys, ["RS256"]).claims
        jwt.JWTClaimsRegistry(now=behind, leeway=0).validate(claims)
        with self.assertRaises(InvalidTokenError):
            jwt.JWTClaimsRegistry(now=behind - 10, leeway=0).validate(claims)


if __name__ == "__main__":
    unittest.main()
