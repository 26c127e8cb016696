"""jwt_minimal beside PyJWT, joserfc and cryptography, and under tokens nobody would write.

Two claims carry this file. Of signatures: we and `cryptography` agree on every one, right or
malformed. Of tokens: whatever we accept, the others accept with the same content; whatever we
refuse and another accepts is refused for its form, never because we found a signature bad.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import unittest
from datetime import datetime, tzinfo
from functools import cache
from typing import Any
from unittest import mock

import joserfc.errors
import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet, RSAKey
from jwt import PyJWK

import jwt_minimal
from jwksd import flaws
from jwksd.flaws import segment
from jwt_minimal import DIGEST_INFO, b64url_decode, b64url_encode, padded_hash
from tests import jwt_refusals as vectors
from tests.test_jwt import JWK, JWKS, NOW, PRIVATE_KEY

PUBLIC_KEY = PRIVATE_KEY.public_key()
JOSERFC_KEY = RSAKey.import_key(dict(JWK))
# RFC 7515 §4: header parameters that are not understood are ignored; joserfc would refuse them.
JOSERFC = jws.JWSRegistry(algorithms=["RS256"], strict_check_header=False)
WIDE = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
HEADER = {"alg": "RS256", "typ": "JWT", "kid": JWK["kid"]}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def signed(header: Any = HEADER, claims: Any = vectors.CLAIMS) -> str:
    """What `vectors.token` makes, sooner: OpenSSL does the same arithmetic in C."""
    message = segment(header) + "." + segment(claims)
    seal = PRIVATE_KEY.sign(message.encode(), padding.PKCS1v15(), SHA256())
    return message + "." + b64url_encode(seal)


class Clock(datetime):
    """The clock that PyJWT reads, stopped at NOW."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Clock:
        return cls.fromtimestamp(NOW, tz)


def ours(token: str) -> tuple[Any, bytes] | jwt_minimal.InvalidToken:
    try:
        return jwt_minimal.verify(token, JWKS)
    except jwt_minimal.InvalidToken as error:
        return error


def pyjwt(token: str) -> tuple[Any, bytes] | None:
    try:
        found = jwt.PyJWS().decode_complete(token, PUBLIC_KEY, algorithms=["RS256"])
    except (jwt.InvalidTokenError, ValueError, TypeError):
        return None
    return found["header"], found["payload"]


def joserfc_(token: str) -> tuple[Any, bytes] | None:
    try:
        found = jws.deserialize_compact(token, JOSERFC_KEY, registry=JOSERFC)
    except (joserfc.errors.JoseError, ValueError, TypeError, RecursionError):
        return None
    return found.headers(), found.payload


@st.composite
def mutated_tokens(draw: st.DrawFn) -> str:
    """A good token after up to three small accidents, or with one segment made again."""
    token = signed()
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(token)))
        piece = draw(st.text(ALPHABET + ".=+/ \n\u00e9", max_size=2))
        token = token[:at] + piece + token[at + draw(st.integers(0, 2)) :]
    segments = token.split(".")
    if draw(st.booleans()):
        at = draw(st.integers(0, len(segments) - 1))
        segments[at] = b64url_encode(draw(st.binary(max_size=40)))
    return ".".join(segments)


# Members that we do not read have the type they should have: joserfc insists on it, we do not.
ODD_MEMBERS: dict[str, list[Any]] = {
    "alg": ["RS256", "none", "HS256", "rs256", None, 1],
    "typ": ["JWT", "", None, 1, {}],
    "kid": [JWK["kid"], "", None, 1, {}],
    "crit": [["exp"], ["b64"], [], None, "exp"],
    "b64": [True, False, None, 1],
    "jwk": [dict(JWK)],
    "jku": ["https://evil.example/"],
    "x5c": [["AA"]],
    "cty": ["JWT"],
    "x": [None, 1, True, {}, ["exp"]],
}


@st.composite
def odd_headers(draw: st.DrawFn) -> bytes:
    """Headers under a right signature: members added, changed, doubled, spelt with spaces."""
    changed = draw(st.lists(st.sampled_from(list(ODD_MEMBERS)), max_size=3))
    changes = [(name, draw(st.sampled_from(ODD_MEMBERS[name]))) for name in changed]
    members = [*HEADER.items(), *changes]
    if draw(st.booleans()):
        members = list(dict(members).items())
    space = draw(st.sampled_from(["", " ", "\r\n"]))
    inside = ("," + space).join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in members)
    return ("{" + inside + space + "}").encode()


class Tokens(unittest.TestCase):
    def compare(self, token: str) -> None:
        verdict = ours(token)
        for name, other in (("PyJWT", pyjwt(token)), ("joserfc", joserfc_(token))):
            if isinstance(verdict, tuple):
                if name == "joserfc" and "jwk" in verdict[0]:
                    continue  # it refuses a key in the header, which RFC 7515 §4.1.3 permits
                self.assertEqual(other, verdict, f"{name} refuses or reads another content")
            elif other is not None:
                self.assertNotIsInstance(verdict, jwt_minimal.BadSignature, f"{name} accepts")

    @WIDE
    @given(mutated_tokens())
    def test_mutated_tokens(self, token: str) -> None:
        self.compare(token)

    @WIDE
    @given(odd_headers())
    def test_odd_headers_under_a_right_signature(self, header: bytes) -> None:
        self.compare(signed(header))

    @WIDE
    @given(st.binary(max_size=60))
    def test_any_payload_under_a_right_signature(self, payload: bytes) -> None:
        token = signed(claims=payload)
        self.assertEqual(ours(token), (HEADER, payload))
        self.compare(token)

    def test_every_other_spelling_of_the_last_character(self) -> None:
        good = signed()
        accepted = [c for c in ALPHABET if isinstance(ours(good[:-1] + c), tuple)]
        self.assertEqual(accepted, [good[-1]])
        for c in ALPHABET:
            self.compare(good[:-1] + c)

    def test_the_rows_of_the_table_of_refusals(self) -> None:
        keyless = vectors.RFC["rfc7515_a2"]["token"]
        for row in [*vectors.rows(), {"name": "RFC 7515", "token": keyless}]:
            with self.subTest(row["name"]):
                self.compare(row["token"])


class KeySets(unittest.TestCase):
    """One kid for several keys: whatever key we take, PyJWT and joserfc verify with it too."""

    algorithms = st.sampled_from(["RS256", "RS512", "PS256", "RSA-OAEP"])
    uses = st.sampled_from(["sig", "enc"])
    operations = st.sampled_from([["verify"], ["verify", "sign"], ["encrypt"], []])
    # RFC 7517 §4.3: use and key_ops should not stand in one key.
    purposes = st.fixed_dictionaries({}, optional={"alg": algorithms, "use": uses}) | (
        st.fixed_dictionaries({"key_ops": operations}, optional={"alg": algorithms})
    )

    @WIDE
    @given(st.lists(purposes, min_size=1, max_size=3), st.booleans())
    def test_with_keys_for_other_purposes(self, purposes: list[Any], named: bool) -> None:
        bare = {name: JWK[name] for name in ("kty", "kid", "n", "e")}
        keys = [{**bare, **purpose} for purpose in purposes]
        header = HEADER if named else {"alg": "RS256"}
        fits = [
            key
            for key in keys
            if key.get("use", "sig") == "sig"
            and key.get("alg", "RS256") == "RS256"
            and "verify" in key.get("key_ops", ["verify"])
        ]
        token = signed(header)
        try:
            found = jwt_minimal.verify(token, {"keys": keys})
        except (jwt_minimal.UnknownKey, jwt_minimal.UnusableKey):
            self.assertNotEqual(len(fits), 1, keys)
            return
        self.assertEqual(len(fits), 1, keys)
        signing = PyJWK(fits[0]).key
        read = jwt.PyJWS().decode_complete(token, signing, algorithms=["RS256"])
        self.assertEqual((read["header"], read["payload"]), found)
        if not named or any("key_ops" in key for key in keys):
            return  # joserfc guesses no key of several, and chooses none by key_ops
        key_set = KeySet.import_key_set({"keys": keys})
        theirs = jws.deserialize_compact(token, key_set, registry=JOSERFC)
        self.assertEqual((theirs.headers(), theirs.payload), found)


class Signatures(unittest.TestCase):
    """verify_rs256 and OpenSSL, over blocks sealed with the private key."""

    def compare(self, message: bytes, signature: bytes, key: rsa.RSAPublicKey) -> bool:
        numbers = key.public_numbers()
        verdict = jwt_minimal.verify_rs256(message, signature, numbers.n, numbers.e)
        try:
            key.verify(signature, message, padding.PKCS1v15(), SHA256())
            openssl = True
        except InvalidSignature:
            openssl = False
        self.assertEqual(verdict, openssl, signature.hex())
        return verdict

    @WIDE
    @given(st.binary(max_size=99), st.integers(0, 255), st.integers(0, 255))
    def test_one_octet_of_the_block_changed(self, message: bytes, at: int, value: int) -> None:
        block = bytearray(padded_hash(message, vectors.N))
        right = block[at] == value
        block[at] = value
        assume(int.from_bytes(block, "big") < vectors.N)
        self.assertEqual(self.compare(message, vectors.rsa(bytes(block)), PUBLIC_KEY), right)

    @WIDE
    @given(st.integers(0, 202), st.binary(max_size=30), st.binary(max_size=4), st.booleans())
    @example(202, DIGEST_INFO, b"", False)
    @example(8, DIGEST_INFO, b"\x05\x00", False)
    def test_blocks_put_together_wrongly(
        self, octets: int, identifier: bytes, behind: bytes, null: bool
    ) -> None:
        digest = hashlib.sha256(b"message").digest()
        middle = b"\x00" if null else b""
        block = b"\x00\x01" + b"\xff" * octets + b"\x00" + identifier + middle + digest + behind
        block = block[: vectors.K].ljust(vectors.K, b"\x00")
        self.compare(b"message", vectors.rsa(block), PUBLIC_KEY)

    @WIDE
    @given(st.integers(-3, 3), st.binary(max_size=3))
    def test_signatures_of_other_lengths(self, zeros: int, behind: bytes) -> None:
        seal = vectors.rsa(padded_hash(b"message", vectors.N)) + behind
        seal = bytes(zeros) + seal if zeros >= 0 else seal[-zeros:]
        self.compare(b"message", seal, PUBLIC_KEY)

    @WIDE
    @given(st.binary(min_size=256, max_size=256))
    def test_any_256_octets(self, signature: bytes) -> None:
        self.compare(b"message", signature, PUBLIC_KEY)

    def test_signature_plus_modulus(self) -> None:
        for count in range(20):
            message = b"%d" % count
            s = int.from_bytes(vectors.rsa(padded_hash(message, vectors.N)), "big") + vectors.N
            if s < 2 ** (8 * vectors.K):
                self.assertFalse(self.compare(message, s.to_bytes(vectors.K, "big"), PUBLIC_KEY))

    @WIDE
    @given(st.binary(max_size=20), st.integers(0, 150), st.binary(max_size=4))
    def test_bleichenbacher_forgeries_for_e_3(self, message: bytes, octets: int, x: bytes) -> None:
        key = key_with_exponent_3().public_key()
        tail = DIGEST_INFO + hashlib.sha256(message).digest() + x
        block = (b"\x00\x01" + b"\xff" * octets + b"\x00" + tail).ljust(256, b"\x00")
        seal = flaws.nearest_root(block).to_bytes(256, "big")
        self.assertFalse(self.compare(message, seal, key))

    @settings(WIDE, max_examples=30)
    @given(st.binary(max_size=99))
    def test_right_signatures_of_keys_of_several_sizes(self, message: bytes) -> None:
        for size in (2048, 2056, 3072):
            key = key_of(size)
            seal = key.sign(message, padding.PKCS1v15(), SHA256())
            self.assertTrue(self.compare(message, seal, key.public_key()))


@cache
def key_with_exponent_3() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(3, 2048)


@cache
def key_of(size: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, size)


class Claims(unittest.TestCase):
    @WIDE
    @given(st.dictionaries(st.text(min_size=4), VALUES, max_size=5))
    def test_what_we_issue_the_others_read_and_the_other_way_round(self, extra: Any) -> None:
        claims = {**extra, "exp": int(time.time()) + 60, "sub": "joe"}
        token = jwt_minimal.encode(claims, PRIVATE_KEY, JWK["kid"])
        assume(len(token) < jwt_minimal.MAX_TOKEN)
        self.assertEqual(jwt.decode(token, PUBLIC_KEY, algorithms=["RS256"]), claims)
        self.assertEqual(joserfc_jwt.decode(token, JOSERFC_KEY, ["RS256"]).claims, claims)
        theirs = jwt.encode(claims, PRIVATE_KEY, "RS256", headers={"kid": JWK["kid"]})
        self.assertEqual(jwt_minimal.decode(theirs, JWKS), claims)

    dates = st.integers(-100, 100).map(lambda seconds: NOW + seconds) | st.sampled_from(
        [0, -1, NOW + 2.5, str(NOW + 9), True, None, 10**20, ...]  # PyJWT rounds fractions down
    )
    texts = st.sampled_from(["us", "they", 7, None, ["us"], ["they", "us"], [], ["us", 1], ...])

    @settings(WIDE, max_examples=800)
    @given(dates, dates, dates, texts, texts, st.sampled_from([None, "us"]), st.integers(0, 50))
    def test_whoever_accepts_claims_that_we_refuse_looked_less_closely(
        self, exp: Any, nbf: Any, iat: Any, iss: Any, aud: Any, audience: Any, leeway: int
    ) -> None:
        chosen = {"exp": exp, "nbf": nbf, "iat": iat, "iss": iss, "aud": aud}
        claims = {name: value for name, value in chosen.items() if value is not ...}
        token = signed(claims=claims)
        checks = {"issuer": "us", "audience": audience, "leeway": leeway}
        refused = vectors.refusal(token, JWKS, now=NOW, **checks)
        with mock.patch("jwt.api_jwt.datetime", Clock):
            try:
                accepted = jwt.decode(token, PUBLIC_KEY, ["RS256"], **checks) == claims
            except jwt.InvalidTokenError:
                accepted = False
        if refused is None:
            self.assertTrue(accepted, claims)
        elif accepted and aud != []:  # an aud that names nobody is none to PyJWT
            self.assertIs(type(refused), jwt_minimal.InvalidClaim, claims)


class Readers(unittest.TestCase):
    @WIDE
    @given(st.text(ALPHABET + "=+/ \n.", max_size=12) | st.text(max_size=6))
    def test_base64url_that_is_read_is_written_back_the_same(self, text: str) -> None:
        try:
            raw = b64url_decode(text)
        except jwt_minimal.MalformedToken:
            return
        self.assertEqual(b64url_encode(raw), text)

    @WIDE
    @given(st.dictionaries(st.text(), VALUES, max_size=5))
    def test_json_is_read_as_python_reads_it(self, value: Any) -> None:
        try:
            raw = json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raw = json.dumps(value).encode()
            self.assertRaises(jwt_minimal.MalformedToken, jwt_minimal.parse_object, raw)
            return
        self.assertEqual(jwt_minimal.parse_object(raw), json.loads(raw))

    @WIDE
    @given(st.binary() | st.text('{}[]":,\\u0d8eE+-1.', max_size=30).map(str.encode))
    @example(b"[" * 100_000)
    @example(b'{"a":' * 499 + b"1" + b"}" * 499)
    def test_bytes_are_an_object_or_malformed_and_nothing_else(self, raw: bytes) -> None:
        with contextlib.suppress(jwt_minimal.MalformedToken):
            self.assertIsInstance(jwt_minimal.parse_object(raw), dict)

    @WIDE
    @given(st.text() | mutated_tokens(), st.none() | st.just(JWKS) | VALUES)
    def test_explain_always_gives_a_page_of_visible_ascii(self, token: str, jwks: Any) -> None:
        self.assertRegex(jwt_minimal.explain(token, jwks, now=NOW), r"\A[ -~\n]+\Z")

    @WIDE
    @given(st.text() | mutated_tokens(), VALUES)
    def test_decode_raises_nothing_but_invalid_token(self, token: str, jwks: Any) -> None:
        self.assertIsNotNone(vectors.refusal(token, jwks, now=NOW + 10**9))


if __name__ == "__main__":
    unittest.main()
