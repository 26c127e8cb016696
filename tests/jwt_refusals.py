"""Makes `vectors/refusals.json`: the tokens of flaws.py and more, and the refusal of each.

The table is data, so that any implementation can be tried with it; this file is where its rows come
from. Every signature is made with the published key of RFC 7515 A.2: the same rows come out each
time (a test compares them). Write the table anew with `python -m tests.jwt_refusals`.

A row: `name`; `refusal`, the class of error, or null if the token must be accepted; `token`;
`key`, members laid over the signing key of the JWKS (null removes one); `checks`, the arguments of
`decode` beside `now`. The JWKS has two keys, the other being that of RFC 7520 §4.1; a row with
`jwks` has a key set of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from jwksd import flaws
from jwksd.flaws import Signer
from jwt_minimal import InvalidToken, b64url_decode, b64url_encode, decode

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


def key_rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Keys that may not verify this token: refusal, name, members laid over the key."""
    short = 2**2047 - 1
    for name, value in (("use", "enc"), ("alg", "PS256"), ("alg", "rs256")):
        yield "UnusableKey", f"a key for {name} {value}", {name: value}
    yield "UnusableKey", "key_ops without verify", {"key_ops": ["sign"]}
    yield "UnusableKey", "key_ops that are a string", {"key_ops": "verify"}
    yield "UnusableKey", "a modulus of 2047 bits", {"n": b64url_encode(short.to_bytes(K, "big"))}
    yield "UnusableKey", "an even modulus", {"n": b64url_encode((N - 1).to_bytes(K, "big"))}
    yield "UnusableKey", "a modulus of 16392 bits", {"n": b64url_encode(b"\xff" * 2049)}
    yield "UnusableKey", "a zero octet before n", {"n": b64url_encode(N.to_bytes(K + 1, "big"))}
    yield "UnusableKey", "padding after n", {"n": PRIVATE["n"] + "=="}
    yield "UnusableKey", "no n", {"n": None}
    yield "UnusableKey", "an n that is a number", {"n": 65537}
    yield "UnusableKey", "an e of 1", {"e": "AQ"}
    yield "UnusableKey", "an even e", {"e": "AQAA"}
    yield "UnusableKey", "an e of 65 bits", {"e": b64url_encode((2**64 + 1).to_bytes(9, "big"))}
    yield "UnusableKey", "an empty e", {"e": ""}
    yield "UnknownKey", "a kid that differs in case", {"kid": "A2"}
    yield "UnknownKey", "a key without a kid", {"kid": None}
    yield "UnknownKey", "a kid that is a number in the JWKS", {"kid": 2}
    yield "UnknownKey", "a secret of the same kid", {"kty": "oct", "k": "AAAA"}
    yield "UnknownKey", "two keys of the same kid", {"kid": "bilbo.baggins@hobbiton.example"}


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
    "BadSignature": (flaws.signatures,),
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
    for key_refusal, name, laid_over in key_rows():
        yield {"name": name, "refusal": key_refusal, "token": token(), "key": laid_over}
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
