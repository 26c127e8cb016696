"""Checks your own jwt_minimal, one step at a time: `python docs/exercises/check.py STEP FILE`.

Each class is one step of ../exercises.md. Your file is tried against the published vectors and the
table of refusals that jwt_minimal.py itself is tested with; wherever a refusal is asked for, any
ValueError will do. Steps 4 and 6 sign, and need the package cryptography; the others need nothing.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import jwt_minimal  # only to tell which rows are for which step
from tests import jwt_refusals as vectors

RFC = vectors.RFC
TABLE = json.loads((vectors.VECTORS / "refusals.json").read_text("utf-8"))
# What verify must refuse; the rest of the table is refused, or accepted, by decode.
BY_VERIFY = ("MalformedToken", "UnsupportedToken", "UnknownKey", "UnusableKey", "BadSignature")


class Step(unittest.TestCase):
    """What the steps share: the file under test."""

    mine: Any

    def refuses(self, row: dict[str, Any], call: Any) -> None:
        with self.subTest(row["name"]):
            try:
                found = call()
            except ValueError:
                return
            self.fail(f"accepted, as {found!r:.80}; it should be a {row['refusal']}")


class Step1Base64url(Step):
    def test_writes_the_example_of_rfc_7515_appendix_c(self) -> None:
        self.assertEqual(self.mine.b64url_encode(bytes([3, 236, 255, 224, 193])), "A-z_4ME")

    def test_reads_back_what_it_wrote(self) -> None:
        for length in range(50):
            raw = bytes(range(200, 200 + length))
            self.assertEqual(self.mine.b64url_decode(self.mine.b64url_encode(raw)), raw)

    def test_refuses_padding_foreign_characters_and_spare_bits(self) -> None:
        for text in ("QQ==", "QUI=", "Q", "Q Q", "QQ\n", "+/+/", "QR", "QUJ", "é"):
            with self.subTest(text), self.assertRaises(ValueError):
                self.mine.b64url_decode(text)


class Step2Thumbprint(Step):
    published = RFC["rfc7638_3_1"]

    def test_gives_the_name_that_rfc_7638_gives(self) -> None:
        self.assertEqual(self.mine.thumbprint(self.published["jwk"]), self.published["thumbprint"])

    def test_other_members_and_their_order_do_not_matter(self) -> None:
        turned = dict(reversed([*self.published["jwk"].items(), ("use", "sig")]))
        self.assertEqual(self.mine.thumbprint(turned), self.published["thumbprint"])


class Step3Signature(Step):
    def number(self, text: str) -> int:
        return int.from_bytes(jwt_minimal.b64url_decode(text), "big")

    def verdict(self, token: str, jwk: dict[str, Any]) -> bool:
        message, _, seal = token.rpartition(".")
        n, e = self.number(jwk["n"]), self.number(jwk["e"])
        found = self.mine.verify_rs256(message.encode(), jwt_minimal.b64url_decode(seal), n, e)
        self.assertIsInstance(found, bool)
        return bool(found)

    def test_accepts_the_signatures_of_rfc_7515_and_rfc_7520(self) -> None:
        self.assertTrue(self.verdict(RFC["rfc7515_a2"]["token"], vectors.KEY))
        self.assertTrue(self.verdict(RFC["rfc7520_4_1"]["token"], RFC["rfc7520_4_1"]["public_jwk"]))

    def test_refuses_every_malformed_one(self) -> None:
        for row in TABLE["rows"]:
            if row["refusal"] == "BadSignature" and row["name"] != "the kid of the other key":
                with self.subTest(row["name"]):
                    self.assertFalse(
                        self.verdict(row["token"], {**vectors.KEY, **row.get("key", {})})
                    )


class Step4Sign(Step):
    def test_makes_the_very_token_of_rfc_7515(self) -> None:
        published = RFC["rfc7515_a2"]
        made = self.mine.sign(
            json.loads(published["protected_header"]),
            published["payload"].encode(),
            vectors.published_key(),
        )
        self.assertEqual(made, published["token"])


class Step5Verify(Step):
    def test_reads_the_token_of_rfc_7520(self) -> None:
        published = RFC["rfc7520_4_1"]
        header, payload = self.mine.verify(published["token"], {"keys": [published["public_jwk"]]})
        self.assertEqual(header["kid"], published["public_jwk"]["kid"])
        self.assertTrue(payload.decode().startswith("It’s a dangerous business, Frodo"))

    def test_finds_the_only_key_when_the_token_names_none(self) -> None:
        published = RFC["rfc7515_a2"]
        header, payload = self.mine.verify(published["token"], {"keys": [vectors.KEY]})
        self.assertEqual((header, payload.decode()), ({"alg": "RS256"}, published["payload"]))

    def test_refuses_what_is_malformed_unsupported_or_badly_signed(self) -> None:
        for row in TABLE["rows"]:
            if row["refusal"] in BY_VERIFY and self.without_claims(row):
                self.refuses(
                    row, lambda row=row: self.mine.verify(row["token"], vectors.jwks_of(row))
                )

    def without_claims(self, row: dict[str, Any]) -> bool:
        """Whether the flaw lies outside payload and typ, which are the business of decode."""
        try:
            jwt_minimal.verify(row["token"], vectors.jwks_of(row))
        except ValueError:
            return True
        return False


class Step6Decode(Step):
    def decode(self, row: dict[str, Any]) -> Any:
        checks = row.get("checks", {})
        return self.mine.decode(row["token"], vectors.jwks_of(row), now=TABLE["now"], **checks)

    def test_accepts_every_good_token(self) -> None:
        for row in TABLE["rows"]:
            if row["refusal"] is None:
                with self.subTest(row["name"]):
                    self.assertGreater(self.decode(row)["exp"], TABLE["now"] - 10)

    def test_refuses_every_other_token_of_the_table(self) -> None:
        for row in TABLE["rows"]:
            if row["refusal"]:
                self.refuses(row, lambda row=row: self.decode(row))

    def test_reads_what_encode_wrote(self) -> None:
        claims = {"sub": "joe", "exp": TABLE["now"] + 1}
        token = self.mine.encode(claims, vectors.published_key(), "a2")
        jwks = {"keys": [vectors.KEY]}
        self.assertEqual(self.mine.decode(token, jwks, now=TABLE["now"]), claims)

    def test_decode_takes_the_clock_where_it_is_given_no_time(self) -> None:
        jwks = {"keys": [vectors.KEY]}
        now = int(time.time())
        fresh = self.mine.encode({"exp": now + 600}, vectors.published_key(), "a2")
        self.assertEqual(self.mine.decode(fresh, jwks)["exp"], now + 600)
        with self.assertRaises(ValueError):
            stale = self.mine.encode({"exp": now - 600}, vectors.published_key(), "a2")
            self.mine.decode(stale, jwks)

    def test_encode_names_the_key_and_the_kind(self) -> None:
        token = self.mine.encode({"exp": TABLE["now"] + 1}, vectors.published_key(), "a2")
        header = json.loads(jwt_minimal.b64url_decode(token.split(".")[0]))
        self.assertEqual(header, {"alg": "RS256", "typ": "JWT", "kid": "a2"})

    def test_encode_and_decode_keep_every_other_claim(self) -> None:
        claims = {"exp": TABLE["now"] + 1, "role": "admin", "a": {"b": [1, None, True]}, "é": 1.5}
        token = self.mine.encode(claims, vectors.published_key(), "a2")
        payload = json.loads(jwt_minimal.b64url_decode(token.split(".")[1]))
        self.assertEqual(payload, claims)
        found = self.mine.decode(token, {"keys": [vectors.KEY]}, now=TABLE["now"])
        self.assertEqual(found, claims)

    def test_encode_refuses_registered_claims_of_the_wrong_type(self) -> None:
        texts = [{name: 7} for name in ("iss", "sub", "jti", "aud")]
        dates = [{name: x} for name in ("exp", "nbf", "iat") for x in ("1", 1.5, True, None)]
        for wrong in ({"aud": [7]}, *texts, *dates):
            with self.subTest(wrong), self.assertRaises(ValueError):
                self.mine.encode(wrong, vectors.published_key(), "a2")


STEPS = (Step1Base64url, Step2Thumbprint, Step3Signature, Step4Sign, Step5Verify, Step6Decode)


def check(step: int, mine: ModuleType, stream: Any = None) -> bool:
    """Runs one step against a module; whether it passed."""
    case = type(STEPS[step - 1].__name__, (STEPS[step - 1],), {"mine": mine})
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    return unittest.TextTestRunner(stream).run(suite).wasSuccessful()


def load(path: str) -> ModuleType:
    """The module in a file, wherever that is."""
    spec = importlib.util.spec_from_file_location("mine", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    ours = sys.modules.pop("jwt_minimal")
    sys.modules["jwt_minimal"] = None  # type: ignore[assignment]  # an import of it now fails
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if error.name == "jwt_minimal":
            raise SystemExit(f"{path} imports jwt_minimal: write it yourself") from None
        raise
    finally:
        sys.modules["jwt_minimal"] = ours
    return module


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in "123456":
        raise SystemExit("usage: python docs/exercises/check.py STEP FILE, where STEP is 1 to 6")
    sys.exit(not check(int(sys.argv[1]), load(sys.argv[2])))
