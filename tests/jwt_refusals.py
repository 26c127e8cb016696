"""Makes `vectors/refusals.json`: tokens with one flaw each, and the refusal each must meet.

The table is data, so that any implementation can be tried with it; this file is where its rows come
from. Every signature is made with the published key of RFC 7515 A.2: the same rows come out each
time (a test compares them). Write the table anew with `python -m tests.jwt_refusals`.

A row: `name`; `refusal`, the class of error, or null if the token must be accepted; `token`;
`key`, members laid over the signing key of the JWKS (null removes one); `checks`, the arguments of
`decode` beside `now`. The JWKS has two keys, the other being that of RFC 7520 §4.1.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jwt_minimal import (
    DIGEST_INFO,
    InvalidToken,
    b64url_decode,
    b64url_encode,
    decode,
    padded_hash,
)

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
# An odd number of 2048 bits, for whoever forges with e = 3 needs no factors.
FORGED_N = 2**2048 - 2**1024 - 1


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


def text(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def signing_input(header: Any = HEADER, claims: Any = CLAIMS) -> str:
    return b64url_encode(text(header)) + "." + b64url_encode(text(claims))


def rsa(block: bytes) -> bytes:
    """The private operation on a padded block, right or wrong."""
    m = int.from_bytes(block, "big")
    m1, m2 = pow(m, DP, P), pow(m, DQ, Q)  # RFC 8017 §5.1.2: the short way
    return (m2 + (m1 - m2) * QI % P * Q).to_bytes(K, "big")


def token(header: Any = HEADER, claims: Any = CLAIMS, block: bytes | None = None) -> str:
    message = signing_input(header, claims)
    return message + "." + b64url_encode(rsa(block or padded_hash(message.encode(), N)))


def without(members: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key != name}


def padded(tail: bytes) -> bytes:
    return b"\x00\x01" + b"\xff" * (K - 3 - len(tail)) + b"\x00" + tail


def nearest_root(block: bytes) -> int:
    """The smallest integer whose cube is at least the block."""
    target, low, high = int.from_bytes(block, "big"), 0, 1 << 700
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**3 >= target else (middle + 1, high)
    return low


def shape() -> Iterator[tuple[str, str]]:
    """Tokens that are no tokens."""
    good = token()
    head, body, seal = good.split(".")
    yield "empty", ""
    yield "no dots", good.replace(".", "")
    yield "two segments", f"{head}.{body}"
    yield "four segments", good + "."
    yield "five segments, as of a JWE", good + ".AA.AA"
    yield "a space before it", " " + good
    yield "a line end after it", good + "\n"
    yield "a line end within it", good[:40] + "\n" + good[40:]
    yield "the scheme before it", "Bearer " + good
    yield "padding after the header", f"{head}=.{body}.{seal}"
    yield "padding after the signature", good + "=="
    yield "spare bits in the last character", good[:-1] + chr(ord(good[-1]) + 1)
    yield "the standard alphabet", f"{head}.{body}.+/{seal[2:]}"
    yield "one character too many", f"{head}.{body}.{seal}AAA"
    yield "a letter beyond ASCII", f"{head}.{body}.\u00e9{seal[1:]}"
    yield "a digit beyond ASCII", f"{head}.{body}.\uff11{seal[1:]}"
    yield "more than 16 KiB", token(claims={**CLAIMS, "x": "y" * 12_300})


def json_rows() -> Iterator[tuple[str, str]]:
    """Headers and payloads that are not the JSON we accept, well signed."""
    yield "an empty header", "." + signing_input().split(".")[1] + "." + b64url_encode(bytes(K))
    yield "an empty payload", token(claims=b"")
    yield "a header that is a list", token(header=[HEADER])
    yield "a payload that is a list", token(claims=[CLAIMS])
    yield "a payload that is a string", token(claims="joe")
    yield "a payload that is null", token(claims=b"null")
    yield "text after the object", token(claims=text(CLAIMS) + b" {}")
    yield "a byte order mark", token(claims=b"\xef\xbb\xbf" + text(CLAIMS))
    yield "UTF-16", token(claims=json.dumps(CLAIMS).encode("utf-16"))
    yield "not UTF-8", token(claims=text(CLAIMS).replace(b"joe", b"jo\xff"))
    yield "alg twice", token(header=b'{"alg":"none","alg":"RS256","kid":"a2"}')
    yield "sub twice", token(claims=text(CLAIMS)[:-1] + b',"sub":"root"}')
    yield "sub twice, once escaped", token(claims=text(CLAIMS)[:-1] + rb',"\u0073ub":"root"}')
    yield "a member twice, deep down", token(claims=text(CLAIMS)[:-1] + b',"a":[{"b":1,"b":2}]}')
    yield "NaN", token(claims={**CLAIMS, "x": float("nan")})
    yield "an exp of Infinity", token(claims={**CLAIMS, "exp": float("inf")})
    yield "an exp beyond floats", token(claims=text(CLAIMS)[:-1] + b',"x":1e999}')
    yield "half a surrogate pair", token(claims={**CLAIMS, "sub": "\ud800"})
    yield "a control character, raw", token(claims=text(CLAIMS).replace(b"joe", b"j\ne"))
    yield "6000 nested lists", token(claims=b'{"x":' + b"[" * 6000 + b"]" * 6000 + b"}")
    yield "a kid that is a number", token(header={**HEADER, "kid": 2})
    yield "a kid that is null", token(header={**HEADER, "kid": None})
    yield "a typ that is a list", token(header={**HEADER, "typ": ["JWT"]})


def unsupported() -> Iterator[tuple[str, str]]:
    """Headers that ask for something else than RS256."""
    for alg in ("none", "None", "HS256", "RS512", "PS256", "ES256", "rs256", "RS256 ", None, 256):
        yield f"alg {alg!r}", token(header={**HEADER, "alg": alg})
    yield "no alg", token(header=without(HEADER, "alg"))
    unsigned = signing_input(header={"alg": "none"})
    yield "alg none and no signature", unsigned + "."
    for secret, name in ((text(KEY), "JWK"), (b64url_decode(PRIVATE["n"]), "modulus")):
        message = signing_input(header={**HEADER, "alg": "HS256"})
        mac = b64url_encode(hmac.new(secret, message.encode(), hashlib.sha256).digest())
        yield f"HS256 keyed with the public {name}", f"{message}.{mac}"
    yield "crit", token(header={**HEADER, "crit": ["exp"], "exp": 0})
    yield "crit, empty", token(header={**HEADER, "crit": []})
    yield "b64 false and crit", token(header={**HEADER, "b64": False, "crit": ["b64"]})
    yield "b64 false alone", token(header={**HEADER, "b64": False})
    for typ in ("logout+jwt", "dpop+jwt", "JOSE", ""):
        yield f"typ {typ!r}", token(header={**HEADER, "typ": typ})
    # RFC 7519 §3.1 (its HMAC, RFC 7515 A.1, is right) and §6.1
    body = RFC["rfc7515_a2"]["token"].split(".")[1]
    mac = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    yield "RFC 7519 section 3.1", f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{body}.{mac}"
    yield "RFC 7519 section 6.1", f"eyJhbGciOiJub25lIn0.{body}."


def bad_signatures() -> Iterator[tuple[str, str]]:
    """Signatures that are wrong, most of them made with the right private key."""
    message = signing_input()
    digest = hashlib.sha256(message.encode()).digest()
    tail = DIGEST_INFO + digest
    head, body, seal = token().split(".")
    yield "no signature", message + "."
    yield "a signature of zeros", message + "." + b64url_encode(bytes(K))
    yield "the number one", message + "." + b64url_encode(b"\x01".rjust(K, b"\0"))
    yield "another payload", f"{head}.{b64url_encode(text({**CLAIMS, 'sub': 'root'}))}.{seal}"
    yield "another header", f"{b64url_encode(text(without(HEADER, 'typ')))}.{body}.{seal}"
    yield "the kid of the other key", token(header={**HEADER, "kid": JWKS["keys"][1]["kid"]})
    blocks = {
        "no NULL in DigestInfo": padded(
            bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + digest
        ),
        "a BER long length": padded(b"\x30\x81" + tail[1:]),
        "SHA-512's identifier": padded(tail.replace(b"\x02\x01\x05", b"\x02\x03\x05")),
        "SHA-1": padded(
            bytes.fromhex("3021300906052b0e03021a05000414")
            + hashlib.sha1(message.encode()).digest()
        ),
        "the hash of something else": padded(DIGEST_INFO + bytes(32)),
        "no DigestInfo": padded(digest),
        "block type 2": b"\x00\x02" + padded(tail)[2:],
        "block type 0": b"\x00\x00" + padded(tail)[2:],
        "a zero in the padding": padded(tail)[:20] + b"\x00" + padded(tail)[21:],
        "eight octets of padding, then rubbish": (b"\x00\x01" + b"\xff" * 8 + b"\x00" + tail).ljust(
            K, b"\x55"
        ),
        "padding cut short by leading zeros": b"\x00" * 10 + padded(tail)[:2] + padded(tail)[12:],
        "no zero after the padding": padded(tail).replace(b"\x00" + tail, b"\xff" + tail),
        "rubbish behind the hash": padded(tail + b"\x00"),
    }
    for name, block in blocks.items():
        yield name, token(block=block)
    yield (
        "a zero octet before the signature",
        message + "." + b64url_encode(bytes(1) + rsa(padded(tail))),
    )
    short, small = leading_zero_signature(), signature_below(2 ** (8 * K) - N)
    yield "a leading zero octet left out", short
    yield "signature plus modulus", small


def leading_zero_signature() -> str:
    for count in range(10_000):
        signed = token(claims={**CLAIMS, "jti": str(count)})
        message, _, seal = signed.rpartition(".")
        if (raw := b64url_decode(seal))[0] == 0:
            return message + "." + b64url_encode(raw[1:])
    raise AssertionError("one in 256 begins with a zero octet")


def signature_below(limit: int) -> str:
    for count in range(10_000):
        message, _, seal = token(claims={**CLAIMS, "jti": str(count)}).rpartition(".")
        if (s := int.from_bytes(b64url_decode(seal), "big")) < limit:
            return message + "." + b64url_encode((s + N).to_bytes(K, "big"))
    raise AssertionError("one in three is below")


def forgeries() -> Iterator[tuple[str, str]]:
    """Bleichenbacher 2006: no private key at all, e = 3, and a reader who skips over padding."""
    message = signing_input()
    tail = DIGEST_INFO + hashlib.sha256(message.encode()).digest()
    for octets in (8, 1, 0):
        block = (b"\x00\x01" + b"\xff" * octets + b"\x00" + tail).ljust(K, b"\x00")
        seal = nearest_root(block).to_bytes(K, "big")
        yield f"a cube root, {octets} octets of padding", message + "." + b64url_encode(seal)


def claims_of(**changes: Any) -> str:
    return token(claims={k: v for k, v in {**CLAIMS, **changes}.items() if v is not ...})


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


def claim_rows() -> Iterator[tuple[str | None, str, str, dict[str, Any]]]:
    """Claims: refusal, name, token, checks."""
    us = {"audience": "us"}
    value: Any
    yield "InvalidClaim", "no exp", claims_of(exp=...), {}
    for name in ("exp", "nbf", "iat"):
        for value in ("1900000000", True, None, [NOW]):
            yield "InvalidClaim", f"{name} {value!r}", claims_of(**{name: value}), {}
    for name in ("iss", "sub", "jti"):
        for value in (7, None, ["joe"]):
            yield "InvalidClaim", f"{name} {value!r}", claims_of(**{name: value}), {}
    for value in (7, None, {"us": 1}, ["us", 7]):
        yield "InvalidClaim", f"aud {value!r}", claims_of(aud=value), us
    yield "ExpiredToken", "exp now", claims_of(exp=NOW), {}
    yield "ExpiredToken", "exp in 1970", claims_of(exp=0), {}
    yield "ExpiredToken", "exp before the epoch", claims_of(exp=-1e300), {}
    yield "ExpiredToken", "exp further ago than the leeway", claims_of(exp=NOW - 10), {"leeway": 10}
    yield "ImmatureToken", "nbf in a second", claims_of(nbf=NOW + 1), {}
    yield "ImmatureToken", "nbf in ages", claims_of(nbf=10**300), {}
    yield "ImmatureToken", "iat in a second", claims_of(iat=NOW + 1), {}
    yield "ImmatureToken", "nbf beyond the leeway", claims_of(nbf=NOW + 11), {"leeway": 10}
    for name, value in (("no iss", ...), ("iss with a slash more", CLAIMS["iss"] + "/")):
        yield "WrongIssuer", name, claims_of(iss=value), {"issuer": CLAIMS["iss"]}
    yield "WrongAudience", "no aud", claims_of(), us
    yield "WrongAudience", "aud, and we have no name", claims_of(aud="us"), {}
    for value in ("they", "use", ["u", "s"], [], ["US"]):
        yield "WrongAudience", f"aud {value!r}, we are us", claims_of(aud=value), us
    yield None, "the plain token", token(), {}
    yield None, "no typ", token(header=without(HEADER, "typ")), {}
    yield None, "typ jwt", token(header={**HEADER, "typ": "jwt"}), {}
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
    yield None, "exp in half a second", claims_of(exp=NOW + 0.5), {}
    yield None, "exp in ages", claims_of(exp=10**300), {}
    yield None, "exp within the leeway", claims_of(exp=NOW - 9), {"leeway": 10}
    yield None, "nbf at the edge of the leeway", claims_of(nbf=NOW + 10), {"leeway": 10}
    yield None, "iss as we want it", claims_of(), {"issuer": CLAIMS["iss"]}
    yield None, "aud us", claims_of(aud="us"), us
    yield None, "aud us among others", claims_of(aud=["they", "us"]), us


def rows() -> Iterator[dict[str, Any]]:
    sources = (
        ("MalformedToken", shape),
        ("MalformedToken", json_rows),
        ("UnsupportedToken", unsupported),
        ("BadSignature", bad_signatures),
    )
    for refusal, source in sources:
        for name, made in source():
            yield {"name": name, "refusal": refusal, "token": made}
    cube = {"n": b64url_encode(FORGED_N.to_bytes(K, "big")), "e": "Aw"}
    for name, made in forgeries():
        yield {"name": name, "refusal": "BadSignature", "token": made, "key": cube}
    yield {
        "name": "no kid, two keys",
        "refusal": "UnknownKey",
        "token": token(without(HEADER, "kid")),
    }
    yield {"name": "no such kid", "refusal": "UnknownKey", "token": token({**HEADER, "kid": "a3"})}
    for key_refusal, name, laid_over in key_rows():
        yield {"name": name, "refusal": key_refusal, "token": token(), "key": laid_over}
    for claim_refusal, name, made, checks in claim_rows():
        yield {"name": name, "refusal": claim_refusal, "token": made, "checks": checks}


def jwks_of(row: dict[str, Any]) -> dict[str, Any]:
    """The JWKS of a row: ours, with the row's members laid over the signing key."""
    members = {**KEY, **row.get("key", {})}
    laid_over = {name: value for name, value in members.items() if value is not None}
    return {"keys": [laid_over, JWKS["keys"][1]]}


def table() -> str:
    """The text of the file: one row a line, so that a change shows as one."""
    lines = ",\n".join(json.dumps(row) for row in rows())
    return f'{{"now": {NOW},\n"jwks": {json.dumps(JWKS)},\n"rows": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    (VECTORS / "refusals.json").write_text(table(), "utf-8")
