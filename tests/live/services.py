"""The services of docs/services.md that cannot be had here: a token holds what their settings name.

The other services are run, by the modules that the page names.
"""

from __future__ import annotations

import json
import re
import unittest
from typing import Any
from urllib.request import urlopen

import jwt_minimal
from tests.live.issuing import ELSEWHERE, AsThePageSays


def fetched(url: str) -> Any:
    with urlopen(url, timeout=30) as answer:
        return json.load(answer)


class Spring(AsThePageSays):
    heading = "Spring"

    def test_finds_keys_audience_and_scope(self):
        page = self.page.there("yaml", **{ELSEWHERE: self.issuer_url})
        wanted = dict(re.findall(r"(?m)^  (\S+): (\S+)$", page))
        metadata = fetched(f"{wanted['issuer-uri']}/.well-known/openid-configuration")
        claims = jwt_minimal.decode(
            self.token(), fetched(metadata["jwks_uri"]),
            issuer=wanted["issuer-uri"], audience=wanted["audiences"],
        )  # fmt: skip
        self.assertEqual(claims["scope"].split(), re.findall("`SCOPE_(.*?)`", self.page.text))


class PostgREST(AsThePageSays):
    heading = "PostgREST"

    def test_finds_audience_and_role(self):
        wanted = dict(re.findall(r'(?m)^(\S+) = "(.*)"$', self.page.there()))
        self.assertEqual(set(wanted), {"jwt-secret", "jwt-aud", "jwt-role-claim-key"})
        claims = jwt_minimal.decode(self.token(), self.issuer.jwks(), audience=wanted["jwt-aud"])
        self.assertEqual(claims[wanted["jwt-role-claim-key"].lstrip(".")], "web_user")


class Hasura(AsThePageSays):
    heading = "Hasura"

    def test_finds_keys_audience_and_roles(self):
        page = self.page.there(**{ELSEWHERE: self.issuer_url})
        wanted = json.loads(page.split("=", 1)[1])
        claims = jwt_minimal.decode(
            self.token(), fetched(wanted["jwk_url"]),
            issuer=wanted["issuer"], audience=wanted["audience"],
        )  # fmt: skip
        found = claims["https://hasura.io/jwt/claims"]
        self.assertIn(found["x-hasura-default-role"], found["x-hasura-allowed-roles"])


if __name__ == "__main__":
    unittest.main()
