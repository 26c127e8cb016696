"""server.running() in tests that set the clock: freezegun, and a clock of the test's own."""

from __future__ import annotations

import base64
import json
import socket
import time
import unittest
from urllib.request import Request, urlopen

import jwt_minimal
import server
from tests.live.issuing import needs_module
from tests.support import CHEAPEST, Clock

NEXT_YEAR = "2027-03-01 12:00:00"
SECONDS = 1_803_902_400  # the same


def claims_of(token: str) -> dict:
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def comes_true(condition) -> bool:
    """Whether it does within a minute; counted in looks, because the clocks stand still."""
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def log_in(issuer: server.Issuer, path: str, members: dict) -> dict:
    with urlopen(Request(issuer.url + path, json.dumps(members).encode()), timeout=30) as answer:
        return json.load(answer)


@needs_module("freezegun")
class Freezegun(unittest.TestCase):
    def test_dates_tokens_and_keys_on_every_thread_and_lets_the_server_stop(self):
        from freezegun import freeze_time

        with freeze_time(NEXT_YEAR) as frozen, server.running(argon2=CHEAPEST) as issuer:
            password = log_in(issuer, "/register", {"username": "alice"})["password"]
            members = {"username": "alice", "password": password}
            answer = log_in(issuer, "/auth", members)
            self.assertEqual(claims_of(answer["token"])["exp"], SECONDS + 3600)
            self.assertEqual(answer["expires_in"], 3600)
            keys = issuer.jwks()
            jwt_minimal.decode(answer["token"], keys, issuer=issuer.url)
            frozen.tick(3601)
            with self.assertRaises(jwt_minimal.ExpiredToken):
                jwt_minimal.decode(answer["token"], keys, issuer=issuer.url)
            late = log_in(issuer, "/auth", members)["token"]
            self.assertEqual(claims_of(late)["exp"], SECONDS + 3601 + 3600)
            frozen.tick(29 * 86_400)
            self.assertTrue(
                comes_true(lambda: len(issuer.jwks()["keys"]) == 2)
            )  # a new one is made
            there = socket.create_connection(issuer._service.listener.socket.getsockname())
            self.addCleanup(there.close)  # a client that stays does not keep the server

    def test_started_before_the_freeze_it_follows(self):
        from freezegun import freeze_time

        with server.running(argon2=CHEAPEST, key_lifetime="1000d") as issuer:
            with freeze_time(NEXT_YEAR):
                self.assertEqual(claims_of(issuer.token("bob"))["exp"], SECONDS + 3600)
            self.assertLess(claims_of(issuer.token("bob"))["exp"], SECONDS)


class AClockOfOnesOwn(unittest.TestCase):
    def test_dates_tokens_and_lets_keys_rotate(self):
        clock = Clock(SECONDS)
        with server.running(argon2=CHEAPEST, clock=clock, audience="shop") as issuer:
            token = issuer.token("bob", role="admin", aud=["a", "b"], jti=None)
            self.assertEqual(
                claims_of(token),
                {"iss": issuer.url, "sub": "bob", "iat": SECONDS - 10, "nbf": SECONDS - 10,
                 "exp": SECONDS + 3600, "aud": ["a", "b"], "role": "admin"},
            )  # fmt: skip
            self.assertEqual(claims_of(issuer.token("bob"))["aud"], "shop")
            before = {key["kid"] for key in issuer.jwks()["keys"]}
            clock.advance(29 * 86_400)
            issuer._service.app.upkeep.tick()  # what the server does each second
            after = {key["kid"] for key in issuer.jwks()["keys"]}
            self.assertEqual((len(before), len(after)), (1, 2))


if __name__ == "__main__":
    unittest.main()
