"""Grades a JWKS server from outside: over HTTP, with nothing but the standard library.

    python -m unittest test_server                                    our server, started here
    JWKS_TEST_URL=http://127.0.0.1:8080 python -m unittest test_server    any server, by its URL

Each test is one claim of the contract. A server of somebody else's is asked only for what the
contract says; it needs a fresh window of its limiter, so wait a minute between two runs.

Left out: what cannot be seen from outside (the tables, the sealed keys); tests/ looks at those.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import unittest
import uuid
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt_minimal

URL = os.environ.get("JWKS_TEST_URL", "")
JWKS = "/.well-known/jwks.json"
ADDRESSES = itertools.count(2)  # 127.0.0.2, 127.0.0.3, ...: a fresh client for the limiter


class Answer(NamedTuple):
    """A response: status, fields by lower-case name, body."""

    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class ServerTest(unittest.TestCase):
    """A test with a server to ask."""

    url: str

    @classmethod
    def setUpClass(cls) -> None:
        """Take the server of JWKS_TEST_URL, or start ours."""
        if URL:
            cls.url = URL
            return
        import server

        issuer = server.running(register_limit="off")
        cls.addClassCleanup(issuer.stop)
        cls.url = issuer.url

    def ask(
        self,
        method: str,
        path: str,
        document: object = None,
        *,
        fields: dict[str, str] | None = None,
        body: bytes | None = None,
        address: str | None = None,
    ) -> Answer:
        """Send one request, from an address of its own unless one is given."""
        target = urlsplit(self.url)
        local = target.hostname in ("127.0.0.1", "localhost") and target.scheme == "http"
        address = address or fresh_address()
        connection = http.client.HTTPConnection(
            target.hostname or "",
            target.port or 80,
            timeout=10,
            source_address=(address, 0) if local else None,
        )
        self.addCleanup(connection.close)
        headers = dict(fields or {})
        if document is not None:
            body = json.dumps(document).encode()
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())

    def register(self, **members: str) -> tuple[str, str]:
        """A new user: name and password."""
        name = members.pop("username", f"user-{uuid.uuid4()}")
        answer = self.ask("POST", "/register", {"username": name, **members})
        self.assertEqual(answer.status, 201, answer.body)
        return name, answer.json()["password"]

    def login(self, name: str, password: str, **options: Any) -> Answer:
        """POST /auth with JSON."""
        path = options.pop("path", "/auth")
        return self.ask("POST", path, {"username": name, "password": password}, **options)

    def jwks(self) -> dict[str, Any]:
        """The published key set."""
        document = self.ask("GET", JWKS).json()
        assert isinstance(document, dict)
        return document


def fresh_address() -> str:
    """A loopback address that the limiter has not seen yet."""
    number = next(ADDRESSES)
    return f"127.0.{number // 250}.{number % 250 + 2}"


class Register(ServerTest):
    """POST /register."""

    def test_answers_201_with_a_uuid4_and_nothing_else(self) -> None:
        """The password is generated, and valid as UUID version 4."""
        answer = self.ask("POST", "/register", {"username": str(uuid.uuid4()), "email": None})
        self.assertEqual(answer.status, 201)
        self.assertEqual(list(answer.json()), ["password"])
        self.assertEqual(uuid.UUID(answer.json()["password"]).version, 4)
        self.assertTrue(answer.fields["content-type"].startswith("application/json"))

    def test_gives_every_user_another_password(self) -> None:
        """Passwords are random."""
        self.assertNotEqual(self.register()[1], self.register()[1])

    def test_refuses_a_taken_name_and_a_taken_address_with_409(self) -> None:
        """Names and e-mail addresses are unique."""
        email = f"{uuid.uuid4()}@example.org"
        name, _ = self.register(email=email)
        self.assertEqual(self.ask("POST", "/register", {"username": name}).status, 409)
        again = self.ask("POST", "/register", {"username": name + "x", "email": email})
        self.assertEqual(again.status, 409)

    def test_refuses_a_request_without_a_name_with_400(self) -> None:
        """A name is needed, and must be text."""
        bad: list[object] = [{}, {"username": ""}, {"username": 1}, {"email": "a@example.org"}, []]
        for document in bad:
            with self.subTest(document=document):
                self.assertEqual(self.ask("POST", "/register", document).status, 400)


class Auth(ServerTest):
    """POST /auth."""

    def test_answers_a_token_that_the_jwks_verifies(self) -> None:
        """The claims are those of the user who asked, the signature that of a published key."""
        name, password = self.register()
        answer = self.login(name, password)
        self.assertEqual(answer.status, 200, answer.body)
        claims = jwt_minimal.decode(answer.json()["token"], self.jwks(), leeway=5)
        self.assertEqual(claims["sub"], name)
        self.assertEqual(answer.json()["token_type"], "Bearer")
        self.assertEqual(answer.json()["expires_in"], claims["exp"] - claims["iat"])
        self.assertEqual(answer.fields["cache-control"], "no-store")

    def test_takes_a_form_and_http_basic_as_well(self) -> None:
        """JSON is not the only way to say who one is."""
        name, password = self.register()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        body = f"username={name}&password={password}".encode()
        self.assertEqual(self.ask("POST", "/auth", body=body, fields=form).status, 200)
        basic = base64.b64encode(f"{name}:{password}".encode()).decode()
        answer = self.ask("POST", "/auth", fields={"Authorization": f"Basic {basic}"})
        self.assertEqual(answer.status, 200)

    def test_refuses_a_wrong_password_and_an_unknown_user_alike_with_401(self) -> None:
        """Nobody learns which names exist."""
        name, _ = self.register()
        wrong, unknown = self.login(name, "wrong"), self.login(str(uuid.uuid4()), "wrong")
        self.assertEqual((wrong.status, unknown.status), (401, 401))
        self.assertEqual(wrong.body, unknown.body)
        self.assertEqual(sorted(wrong.fields), sorted(unknown.fields))
        self.assertIn("www-authenticate", wrong.fields)

    def test_allows_five_attempts_a_minute_and_address(self) -> None:
        """The sixth is refused with the time to wait; another address is not concerned."""
        name, password = self.register()
        address = fresh_address()
        statuses = [self.login(name, password, address=address).status for _ in range(6)]
        self.assertEqual(statuses, [200] * 5 + [429])
        refused = self.login(name, password, address=address)
        self.assertTrue(1 <= int(refused.fields["retry-after"]) <= 60)
        self.assertEqual(self.login(name, password).status, 200)

    def test_gives_an_expired_token_on_request(self) -> None:
        """It has expired, and its key is not published."""
        name, password = self.register()
        answer = self.login(name, password, path="/auth?expired=true")
        self.assertEqual(answer.status, 200)
        token = answer.json()["token"]
        with self.assertRaises(jwt_minimal.UnknownKey):
            jwt_minimal.decode(token, self.jwks())
        payload = json.loads(jwt_minimal.b64url_decode(token.split(".")[1]))
        self.assertLess(payload["exp"], payload["iat"] + 86_400 * 366)
        self.assertNotIn(
            json.loads(jwt_minimal.b64url_decode(token.split(".")[0]))["kid"],
            [jwk["kid"] for jwk in self.jwks()["keys"]],
        )


class KeySet(ServerTest):
    """GET /.well-known/jwks.json."""

    def test_has_rsa_keys_with_exactly_the_public_members(self) -> None:
        """No private number is published, and no member that some client stumbles over."""
        keys = self.jwks()["keys"]
        self.assertTrue(keys)
        for jwk in keys:
            self.assertEqual(sorted(jwk), ["alg", "e", "kid", "kty", "n", "use"])
            self.assertEqual(jwk["kid"], jwt_minimal.thumbprint(jwk))
            self.assertNotIn("=", jwk["n"])

    def test_can_be_cached_and_asked_for_again(self) -> None:
        """An ETag, a max-age, and 304 for whoever has it already."""
        first = self.ask("GET", JWKS)
        self.assertIn("max-age", first.fields["cache-control"])
        self.assertEqual(first.fields["access-control-allow-origin"], "*")
        again = self.ask("GET", JWKS, fields={"If-None-Match": first.fields["etag"]})
        self.assertEqual((again.status, again.body), (304, b""))

    def test_is_never_limited(self) -> None:
        """Verifiers may ask as often as they like."""
        address = fresh_address()
        statuses = {self.ask("GET", JWKS, address=address).status for _ in range(30)}
        self.assertEqual(statuses, {200})


class Everything(ServerTest):
    """What holds for every route."""

    METHODS = ("PUT", "DELETE", "PATCH")

    def test_refuses_other_methods_with_405_and_names_those_it_has(self) -> None:
        """The field Allow is not optional."""
        for path, allowed in (("/auth", "POST"), ("/register", "POST"), (JWKS, "GET")):
            for method in (*self.METHODS, "GET" if allowed == "POST" else "POST"):
                with self.subTest(path=path, method=method):
                    answer = self.ask(method, path)
                    self.assertEqual(answer.status, 405)
                    self.assertIn(allowed, answer.fields["allow"])

    def test_answers_head_like_get_without_a_body(self) -> None:
        """RFC 9110 §9.3.2."""
        get, head = self.ask("GET", JWKS), self.ask("HEAD", JWKS)
        self.assertEqual((head.status, head.body), (200, b""))
        self.assertEqual(head.fields["content-length"], get.fields["content-length"])

    def test_knows_nothing_at_other_paths(self) -> None:
        """404, in JSON."""
        answer = self.ask("GET", "/nothing/here")
        self.assertEqual(answer.status, 404)
        self.assertIn("error", answer.json())

    def test_names_its_issuer_and_its_keys_for_discovery(self) -> None:
        """RFC 8414: the issuer there is the issuer in the tokens."""
        name, password = self.register()
        token = self.login(name, password).json()["token"]
        for document in ("openid-configuration", "oauth-authorization-server"):
            metadata = self.ask("GET", f"/.well-known/{document}").json()
            claims = jwt_minimal.decode(token, self.jwks(), issuer=metadata["issuer"], leeway=5)
            self.assertEqual(claims["sub"], name)
            self.assertTrue(metadata["jwks_uri"].endswith(JWKS))

    def test_refuses_nonsense_with_400_and_never_with_a_5xx(self) -> None:
        """Bad input is the client's fault, and is told so in JSON."""
        for path in ("/register", "/auth"):
            for body in (b"{", b"[]", b"\xff", b'{"username": "a", "username": "b"}', b"null"):
                with self.subTest(path=path, body=body):
                    json_type = {"Content-Type": "application/json"}
                    answer = self.ask("POST", path, body=body, fields=json_type)
                    self.assertEqual(answer.status, 400)
                    self.assertEqual(sorted(answer.json()), ["error", "error_description"])


if __name__ == "__main__":
    unittest.main()
