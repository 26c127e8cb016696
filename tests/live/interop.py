"""Other people's verifiers accept our tokens, and refuse what they must."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import tempfile
import unittest
import urllib.request
import uuid
from pathlib import Path
from shutil import copy

import joserfc.errors
import jwt
from joserfc import jwt as jose_jwt
from joserfc.jwk import KeySet

import server
from tests.support import CHEAPEST, ROOT


class Verifiers(unittest.TestCase):
    issuer: server.Issuer
    jwks_url: str
    name: str
    password: str
    token: str
    expired: str

    @classmethod
    def setUpClass(cls):
        cls.issuer = server.running(auth_limit="off", argon2=CHEAPEST)
        cls.addClassCleanup(cls.issuer.stop)
        cls.jwks_url = cls.issuer.url + "/.well-known/jwks.json"
        cls.name = f"user-{uuid.uuid4()}"
        cls.password = cls.post("/register", {"username": cls.name})["password"]
        cls.token = cls.login()
        cls.expired = cls.login("?expired=true")

    @classmethod
    def post(cls, path, document):
        body = json.dumps(document).encode()
        with urllib.request.urlopen(cls.issuer.url + path, body, timeout=10) as answer:
            return json.load(answer)

    @classmethod
    def login(cls, query=""):
        login = {"username": cls.name, "password": cls.password}
        return cls.post("/auth" + query, login)["token"]

    def test_pyjwt_with_its_jwks_client(self):
        client = jwt.PyJWKClient(self.jwks_url)
        key = client.get_signing_key_from_jwt(self.token)
        claims = jwt.decode(self.token, key, algorithms=["RS256"], issuer=self.issuer.url)
        self.assertEqual(claims["sub"], self.name)
        with self.assertRaises(jwt.PyJWKClientError):
            client.get_signing_key_from_jwt(self.expired)

    def test_joserfc_with_the_published_set(self):
        keys = KeySet.import_key_set(json.loads(json.dumps(self.issuer.jwks())))
        token = jose_jwt.decode(self.token, keys, algorithms=["RS256"])
        self.assertEqual(token.claims["sub"], self.name)
        with self.assertRaises((ValueError, joserfc.errors.JoseError)):
            jose_jwt.decode(self.expired, keys, algorithms=["RS256"])

    def test_our_one_file_alone_in_a_folder_without_any_package(self):
        with tempfile.TemporaryDirectory() as folder:
            copy(ROOT / "jwt_minimal.py", folder)
            for token, code in ((self.token, 0), (self.expired, 1)):
                # -I and -S: no site-packages, no variables, nothing beside the file.
                run = subprocess.run(
                    [sys.executable, "-I", "-S", "jwt_minimal.py", "verify", token,
                     "--jwks", self.jwks_url],
                    cwd=folder, capture_output=True, text=True, timeout=30,
                )  # fmt: skip
                self.assertEqual(run.returncode, code, run.stderr)
            self.assertEqual([file.name for file in Path(folder).glob("*.py")], ["jwt_minimal.py"])


class Embedding(unittest.TestCase):
    def test_gives_tokens_with_any_claims_and_stops(self):
        with server.running(argon2=CHEAPEST, issuer="https://issuer.example") as issuer:
            token = issuer.token(sub="bob", role="admin", nbf=None)
            key = jwt.PyJWKSet.from_dict(issuer.jwks()).keys[0]
            claims = jwt.decode(token, key, algorithms=["RS256"], issuer="https://issuer.example")
            self.assertEqual((claims["sub"], claims["role"]), ("bob", "admin"))
            self.assertNotIn("nbf", claims)
            port = int(issuer.url.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        self.addCleanup(connection.close)
        self.assertRaises(OSError, connection.request, "GET", "/healthz")


if __name__ == "__main__":
    unittest.main()
