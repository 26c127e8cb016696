"""Makes `vectors/refusals.json`: the tokens of flaws.py and more, and the refusal of each.

The table is data, so that any implementation can be tried with it; this file is where its rows come
from. Every signature is made with the published key of RFC 7515 A.2: the same rows come out each
time (a test compares them). Write the table again with `python -m tests.jwt_refusals`.

A row: `name`; `refusal`, the class of error, or null if the token must be accepted; `token`;
`key`, members laid over the signing key of the JWKS (null removes one); `checks`, the arguments of
`decode` beside `now`. The JWKS has two keys, the other being that of RFC 7520 §4.1; a row with
`jwks` has a key set of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from jwksd import flaws
from jwksd.flaws import Signer
from jwt_minimal import InvalidToken, b64url_decode, b64url_encode, decode, padded_hash

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

VECTORS = Path(__file__).parent / "vectors"
RFC = json.loads((VECTORS / "rfc.json").read_text("utf-8"))
PRIVATE = RFC["rfc7515_a2"]["private_jwk"]
N, P, Q, DP, DQ, QI = (
    int.from_bytes(b64url_decode(PRIVATE[name]), "big")
    for name in ("n", "p", "q", "dp", "dq", "qi")
)
K = 256  # octets of N
NOW = 1_800_000_000
KEY = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "a2", "n": PRIVATE["n"], "e": "AQAB"}
JWKS = {"keys": [KEY, RFC["rfc7520_4_1"]["public_jwk"]]}
OTHER = "bilbo.baggins@hobbiton.example"  # the kid of the other key
HEADER = {"alg": "RS256", "typ": "JWT", "kid": "a2"}
CLAIMS: dict[str, Any] = {
    "exp": NOW + 60,
    "iat": NOW,
    "iss": "https://issuer.example",
    "nbf": NOW,
    "sub": "joe",
}


def published_key() -> RSAPrivateKey:
    """The private key of RFC 7515 A.2, known to all the world."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateNumbers, RSAPublicNumbers

    d = int.from_bytes(b64url_decode(PRIVATE["d"]), "big")
    return RSAPrivateNumbers(P, Q, d, DP, DQ, QI, RSAPublicNumbers(65537, N)).private_key()


def refusal(token: str, jwks: Any, **checks: Any) -> InvalidToken | None:
    """What `decode` raises, or None."""
    try:
        decode(token, jwks, **checks)
    except InvalidToken as error:
        return error
    return None


SIGNER = Signer(
    {"n": N, "e": 65537, "p": P, "q": Q, "dp": DP, "dq": DQ, "qi": QI},
    HEADER,
    CLAIMS,
    other_kid=JWKS["keys"][1]["kid"],
)
token, rsa = SIGNER.token, SIGNER.rsa


def affixed() -> Iterator[tuple[str, str]]:
    """White space around a token, which programs strip and the function must not."""
    yield "a space before it", " " + token()
    yield "a line end after it", token() + "\n"


def unsigned_examples() -> Iterator[tuple[str, str]]:
    """RFC 7519 §3.1 (its HMAC, RFC 7515 A.1, is right) and §6.1."""
    body = RFC["rfc7515_a2"]["token"].split(".")[1]
    mac = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    yield "RFC 7519 section 3.1", f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{body}.{mac}"
    yield "RFC 7519 section 6.1", f"eyJhbGciOiJub25lIn0.{body}."


Parts = list[tuple[int, int]]  # factors of a modulus that have none in common, each with its order
OURS: Parts = [(P, P - 1), (Q, Q - 1)]


def mersenne(*exponents: int) -> Parts:
    """Mersenne primes: the factors of a key that needs no search."""
    return [(2**exponent - 1, 2**exponent - 2) for exponent in exponents]


STRANGER = mersenne(1279, 607, 127, 31)  # 2044 bits


def octets(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def by_key(parts: Parts, e: int = 65537, header: dict[str, Any] | None = None) -> str:
    """A token with a right signature by another key than ours; its hash is odd."""
    n = prod(factor for factor, _ in parts)
    for count in range(100):  # an even modulus can sign odd hashes alone
        message = SIGNER.message(header, {**CLAIMS, "jti": str(count)})
        block = int.from_bytes(padded_hash(message.encode(), n), "big")
        if block % 2:
            break
    s = 0
    for factor, order in parts:  # the Chinese remainder theorem
        rest = n // factor
        s += pow(block, pow(e, -1, order), factor) * rest * pow(rest, -1, factor)
    raw = (s % n).to_bytes((n.bit_length() + 7) // 8, "big")
    return message + "." + b64url_encode(raw)


def modulus(parts: Parts) -> dict[str, Any]:
    return {"n": flaws.b64(prod(factor for factor, _ in parts))}


def by_even_exponent() -> str:
    """A token that verifies with e = 65536: a square of a square, sixteen times."""
    for count in range(1000):  # one block in four is a square modulo both primes
        message = SIGNER.message(claims={**CLAIMS, "jti": str(count)})
        block = int.from_bytes(padded_hash(message.encode(), N), "big")
        if pow(block, (P - 1) // 2, P) == 1 == pow(block, (Q - 1) // 2, Q):
            s1 = pow(block, pow(65536, -1, (P - 1) // 2), P)  # P and Q leave 3 modulo 4
            s2 = pow(block, pow(65536, -1, (Q - 1) // 2), Q)
            return (
                message + "." + b64url_encode(octets(s2 + (s1 - s2) * QI % P * Q).rjust(K, b"\0"))
            )
    raise AssertionError("a quarter of all blocks will do")


def key_rows() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Keys that may not verify a token that they signed: refusal, name, token, members laid over.

    Every signature is right for the key of the row: who accepts it has not looked at the key.
    """
    mine = token()
    for name, value in (("use", "enc"), ("alg", "PS256"), ("alg", "rs256")):
        yield "UnusableKey", f"a key for {name} {value}", mine, {name: value}
    yield "UnusableKey", "key_ops without verify", mine, {"key_ops": ["sign"]}
    yield "UnusableKey", "key_ops that are a string", mine, {"key_ops": "verify"}
    even = [*STRANGER, (16, 8)]
    for name, parts in (
        ("a modulus of 1024 bits", OURS[:1]),
        ("a modulus of 2047 bits", [*STRANGER, (7, 6)]),
        ("an even modulus", even),
        ("a modulus of 16393 bits", mersenne(4423, 4253, 3217, 2281, 2203, 13, 3)),
    ):
        yield "UnusableKey", name, by_key(parts), modulus(parts)
    yield (
        "UnusableKey",
        "a zero octet before n",
        mine,
        {"n": b64url_encode(N.to_bytes(K + 1, "big"))},
    )
    yield "UnusableKey", "padding after n", mine, {"n": PRIVATE["n"] + "=="}
    yield "UnusableKey", "no n", mine, {"n": None}
    yield "UnusableKey", "an n that is a number", mine, {"n": N}
    yield "UnusableKey", "an e of 1", by_key(OURS, 1), {"e": "AQ"}
    yield "UnusableKey", "an even e", by_even_exponent(), {"e": "AQAA"}
    e = 2**64 + 1
    yield "UnusableKey", "an e of 65 bits", by_key(OURS, e), {"e": flaws.b64(e)}
    yield "UnusableKey", "an empty e", mine, {"e": ""}
    stranger = [*STRANGER, (13, 12)]
    header = {**HEADER, "jwk": {**KEY, **modulus(stranger)}}
    yield "BadSignature", "a stranger's key in jwk", by_key(stranger, header=header), {}
    yield "UnknownKey", "a kid that differs in case", mine, {"kid": "A2"}
    yield "UnknownKey", "a key without a kid", mine, {"kid": None}
    yield "UnknownKey", "a kid that is a number in the JWKS", mine, {"kid": 2}
    yield "UnknownKey", "a secret of the same kid", mine, {"kty": "oct", "k": "AAAA"}
    yield "UnknownKey", "two keys of the same kid", named_twice(), {"kid": OTHER}


def named_twice() -> str:
    """A token of ours, under the name that both keys then have."""
    return SIGNER.headed(kid=OTHER)


def set_rows() -> Iterator[tuple[str | None, str, str, dict[str, Any]]]:
    """Key sets with keys for other purposes: refusal, name, token, JWKS."""
    nameless = SIGNER.headed(kid=...)
    bare = {name: value for name, value in KEY.items() if name not in ("use", "alg")}
    others: dict[str, dict[str, Any]] = {
        "alg RS512": {**KEY, "alg": "RS512"},
        "use enc": {**bare, "use": "enc"},
        "key_ops encrypt": {**bare, "key_ops": ["encrypt"]},
    }
    for name, other in others.items():
        for made, asked in ((token(), "kid"), (nameless, "no kid")):
            yield None, f"{asked}, our key twice, first with {name}", made, {"keys": [other, KEY]}
        yield None, f"kid, our key twice, then with {name}", token(), {"keys": [KEY, other]}
    yield "UnknownKey", "our key twice for RS256", token(), {"keys": [KEY, bare]}
    yield "UnknownKey", "no kid, our key twice for RS256", nameless, {"keys": [KEY, bare]}
    yield "UnusableKey", "our key for other purposes only", token(), {"keys": list(others.values())}


def b64_rows() -> Iterator[tuple[str | None, str, str]]:
    """RFC 7797: false changes the signing input, true changes nothing. Refusal, name, token."""
    yield None, "b64 true", SIGNER.headed(b64=True)
    yield "UnsupportedToken", "b64 true and crit", SIGNER.headed(b64=True, crit=["b64"])
    for value in (None, 0, 1, "true", "false"):
        yield "UnsupportedToken", f"b64 {value!r}", SIGNER.headed(b64=value)


def claim_rows() -> Iterator[tuple[str | None, str, str, dict[str, Any]]]:
    """Claims: refusal, name, token, checks."""
    us = {"audience": "us"}
    value: Any
    yield "InvalidClaim", "no exp", SIGNER.claiming(exp=...), {}
    for name in ("exp", "nbf", "iat"):
        for value in ("1900000000", True, None, [NOW]):
            yield "InvalidClaim", f"{name} {value!r}", SIGNER.claiming(**{name: value}), {}
    for name in ("iss", "sub", "jti"):
        for value in (7, None, ["joe"]):
            yield "InvalidClaim", f"{name} {value!r}", SIGNER.claiming(**{name: value}), {}
    for value in (7, None, {"us": 1}, ["us", 7]):
        yield "InvalidClaim", f"aud {value!r}", SIGNER.claiming(aud=value), us
    yield "ExpiredToken", "exp now", SIGNER.claiming(exp=NOW), {}
    yield "ExpiredToken", "exp in 1970", SIGNER.claiming(exp=0), {}
    yield "ExpiredToken", "exp before the epoch", SIGNER.claiming(exp=-1e300), {}
    yield (
        "ExpiredToken",
        "exp further ago than the leeway",
        SIGNER.claiming(exp=NOW - 10),
        {"leeway": 10},
    )
    yield "ImmatureToken", "nbf in a second", SIGNER.claiming(nbf=NOW + 1), {}
    yield "ImmatureToken", "nbf in ages", SIGNER.claiming(nbf=10**300), {}
    yield "ImmatureToken", "iat in a second", SIGNER.claiming(iat=NOW + 1), {}
    yield "ImmatureToken", "nbf beyond the leeway", SIGNER.claiming(nbf=NOW + 11), {"leeway": 10}
    for name, value in (("no iss", ...), ("iss with a slash more", CLAIMS["iss"] + "/")):
        yield "WrongIssuer", name, SIGNER.claiming(iss=value), {"issuer": CLAIMS["iss"]}
    yield "WrongAudience", "no aud", SIGNER.claiming(), us
    yield "WrongAudience", "aud, and we have no name", SIGNER.claiming(aud="us"), {}
    for value in ("they", "use", ["u", "s"], [], ["US"]):
        yield "WrongAudience", f"aud {value!r}, we are us", SIGNER.claiming(aud=value), us
    yield None, "the plain token", token(), {}
    yield None, "no typ", SIGNER.headed(typ=...), {}
    yield None, "typ jwt", SIGNER.headed(typ="jwt"), {}
    yield None, "typ application/jwt", token(header={**HEADER, "typ": "application/jwt"}), {}
    yield None, "typ at+jwt", token(header={**HEADER, "typ": "at+jwt"}), {}
    yield (
        None,
        "spaces and line ends in the JSON",
        token(claims=json.dumps(CLAIMS, indent=1).encode()),
        {},
    )
    stranger = {
        "jwk": RFC["rfc7520_4_1"]["public_jwk"],
        "jku": "https://evil.example/",
        "x5c": ["AA"],
    }
    yield None, "keys in the header, not read", token(header={**HEADER, **stranger}), {}
    yield None, "no registered claim but exp", token(claims={"exp": NOW + 1}), {}
    yield None, "exp in half a second", SIGNER.claiming(exp=NOW + 0.5), {}
    yield None, "exp in ages", SIGNER.claiming(exp=10**300), {}
    yield None, "exp within the leeway", SIGNER.claiming(exp=NOW - 9), {"leeway": 10}
    yield None, "nbf at the edge of the leeway", SIGNER.claiming(nbf=NOW + 10), {"leeway": 10}
    yield None, "iss as we want it", SIGNER.claiming(), {"issuer": CLAIMS["iss"]}
    yield None, "aud us", SIGNER.claiming(aud="us"), us
    yield None, "aud us among others", SIGNER.claiming(aud=["they", "us"]), us


SOURCES: dict[str, tuple[Callable[[Signer], Iterator[tuple[str, str]]], ...]] = {
    "MalformedToken": (flaws.shapes, flaws.respellings, flaws.broken_json, flaws.odd_json),
    "UnsupportedToken": (flaws.algorithms, flaws.extensions, flaws.odd_headers),
    "BadSignature": (flaws.signatures, flaws.other_keys),
}


def rows() -> Iterator[dict[str, Any]]:
    for refusal, sources in SOURCES.items():
        for source in sources:
            for name, made in source(SIGNER):
                yield {"name": name, "refusal": refusal, "token": made}
    for name, made in affixed():
        yield {"name": name, "refusal": "MalformedToken", "token": made}
    for name, made in unsigned_examples():
        yield {"name": name, "refusal": "UnsupportedToken", "token": made}
    cube = {"n": flaws.b64(flaws.CUBE_N), "e": "Aw"}
    for name, made in flaws.forgeries(SIGNER):
        yield {"name": name, "refusal": "BadSignature", "token": made, "key": cube}
    nameless, unknown = SIGNER.headed(kid=...), SIGNER.headed(kid="a3")
    yield {"name": "no kid, two keys", "refusal": "UnknownKey", "token": nameless}
    yield {"name": "no such kid", "refusal": "UnknownKey", "token": unknown}
    for key_refusal, name, made, laid_over in key_rows():
        yield {"name": name, "refusal": key_refusal, "token": made, "key": laid_over}
    for set_refusal, name, made, jwks in set_rows():
        yield {"name": name, "refusal": set_refusal, "token": made, "jwks": jwks}
    for b64_refusal, name, made in b64_rows():
        yield {"name": name, "refusal": b64_refusal, "token": made}
    for claim_refusal, name, made, checks in claim_rows():
        yield {"name": name, "refusal": claim_refusal, "token": made, "checks": checks}


def jwks_of(row: dict[str, Any]) -> dict[str, Any]:
    """The JWKS of a row: its own, or ours with the row's members laid over the signing key."""
    if "jwks" in row:
        return row["jwks"]
    members = {**KEY, **row.get("key", {})}
    laid_over = {name: value for name, value in members.items() if value is not None}
    return {"keys": [laid_over, JWKS["keys"][1]]}


def table() -> str:
    """The text of the file: one row a line, so that a change shows as one."""
    lines = ",\n".join(json.dumps(row) for row in rows())
    return f'{{"now": {NOW},\n"jwks": {json.dumps(JWKS)},\n"rows": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    (VECTORS / "refusals.json").write_text(table(), "utf-8")
