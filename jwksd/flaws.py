"""Tokens with one flaw each, made by the holder of an RSA key, who signs whatever they like.

    header.payload --> padded hash --> signature        a Signer can go wrong at every step,
       shapes, JSON,      blocks        lengths,         and only where it is told to
       algorithms, claims               forgeries

Rules of this file
  - A flawed token differs from the good one in its flaw alone, and wherever a signature is not the
    flaw, it is right: a verifier that refuses must have seen the flaw.
  - The same Signer makes the same tokens; only `strangers` takes keys of its own.
  - Every group of tokens is one row of `GROUPS`: what is expected, how firmly, where that stands.
  - "must" is what a standard demands; "should" is what it advises, permits, or leaves open.

Left out: keys for other algorithms than RSA, and flaws of a JWKS.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from jwt_minimal import DIGEST_INFO, b64url_decode, b64url_encode, padded_hash

Object = dict[str, Any]
Tokens = Iterator[tuple[str, str]]  # name, token
Numbers = dict[str, int]  # of an RSA key: n, e, p, q, dp, dq, qi (RFC 7518 §6.3)

STANDARD = str.maketrans("-_", "+/")  # RFC 4648 §4
# RFC 8017 §9.2 note 1: the DER of DigestInfo up to the hash, for the longer hashes.
LONGER = {
    "384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
HOUR = 3600  # s; further than any verifier's leeway
# An odd number of 2048 bits: a forgery against e = 3 needs neither factors nor a key.
CUBE_N = 2**2048 - 2**1024 - 1


@dataclass(frozen=True)
class Signer:
    """The holder of an RSA key, who signs whatever they like with it."""

    key: Numbers  # n, e, p, q, dp, dq, qi
    header: Object
    claims: Object
    other_kid: str  # of a key in the same JWKS that is not theirs

    @property
    def octets(self) -> int:
        """The length of the modulus, and so of every signature."""
        return (self.key["n"].bit_length() + 7) // 8

    def jwk(self, **members: Any) -> Object:
        """The public key (RFC 7517 §4)."""
        n, e = b64(self.key["n"]), b64(self.key["e"])
        named = {"use": "sig", "alg": "RS256", "kid": self.header["kid"]}
        return {"kty": "RSA", **named, "n": n, "e": e, **members}

    def rsa(self, block: bytes) -> bytes:
        """The private operation on a padded block, right or wrong (RFC 8017 §5.1.2)."""
        m, p, q = int.from_bytes(block, "big"), self.key["p"], self.key["q"]
        m1, m2 = pow(m, self.key["dp"], p), pow(m, self.key["dq"], q)
        return (m2 + (m1 - m2) * self.key["qi"] % p * q).to_bytes(self.octets, "big")

    def message(self, header: Any = None, claims: Any = None) -> str:
        """A signing input; parts that are not given are those of the good token."""
        header = self.header if header is None else header
        return segment(header) + "." + segment(self.claims if claims is None else claims)

    def token(self, header: Any = None, claims: Any = None, block: bytes | None = None) -> str:
        """A token signed with the key, or with a padded block of one's own in its signature."""
        message = self.message(header, claims)
        return seal(message, self.rsa(block or padded_hash(message.encode(), self.key["n"])))

    def signed(self, message: str) -> str:
        """A token with this signing input, however it is spelled, and a right signature."""
        return seal(message, self.rsa(padded_hash(message.encode(), self.key["n"])))

    def headed(self, **members: Any) -> str:
        """The good token with header members added, changed, or (given as ...) left out."""
        return self.token(header=laid_over(self.header, members))

    def claiming(self, **members: Any) -> str:
        """The good token with claims added, changed, or (given as ...) left out."""
        return self.token(claims=laid_over(self.claims, members))

    def padded(self, tail: bytes) -> bytes:
        """The frame of EMSA-PKCS1-v1_5 around something else than a DigestInfo."""
        return b"\x00\x01" + b"\xff" * (self.octets - 3 - len(tail)) + b"\x00" + tail


def laid_over(members: Object, changes: Object) -> Object:
    """A copy with changes; `...` takes a member out."""
    return {name: value for name, value in {**members, **changes}.items() if value is not ...}


def text(value: Any) -> bytes:
    """Bytes as they are, all else as JSON (of the lax kind that Python writes)."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def segment(value: Any) -> str:
    return b64url_encode(text(value))


def seal(message: str, signature: bytes) -> str:
    return message + "." + b64url_encode(signature)


def b64(number: int) -> str:
    """A number as JWKs have it: big-endian, no leading zero octet (RFC 7518 §2)."""
    return b64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))


# ---- keys ----


def new_key() -> Numbers:
    """A fresh key: no stranger knows it, so a verifier that trusts it in a trial risks nothing."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    return numbers_of(generate_private_key(65537, 2048))


def numbers_of(key: Any) -> Numbers:
    """The numbers of a private key of the package `cryptography`."""
    private = key.private_numbers()
    public = private.public_numbers
    named = {"n": public.n, "e": public.e, "p": private.p, "q": private.q}
    return {**named, "dp": private.dmp1, "dq": private.dmq1, "qi": private.iqmp}


# ---- the flaws ----


def shapes(by: Signer) -> Tokens:
    good = by.token()
    head, body, signature = good.split(".")
    yield "empty", ""
    yield "no dots", good.replace(".", "")
    yield "two segments", f"{head}.{body}"
    yield "four segments", good + "."
    yield "five segments, as of a JWE", good + ".AA.AA"
    yield "a line end within it", by.signed(f"{head[:40]}\n{head[40:]}.{body}")
    yield "the scheme before it", "Bearer " + good
    yield "padding after the header", by.signed(f"{head}{'=' * (-len(head) % 4) or '='}.{body}")
    yield "padding after the signature", good + "=="
    message, raw = search(by, lambda found: "-" in b64url_encode(found))
    yield "the standard alphabet", f"{message}.{b64url_encode(raw).translate(STANDARD)}"
    claims = text(by.claims)
    whole = b64url_encode(claims + b" " * (-len(claims) % 3))  # no spare bits: four to three
    yield "one character too many", by.signed(f"{head}.{whole}A")
    yield "a letter beyond ASCII", f"{head}.{body}.\u00e9{signature}"
    message, raw = search(by, lambda found: "1" in b64url_encode(found))
    yield "a digit beyond ASCII", f"{message}.{b64url_encode(raw).replace('1', chr(0xFF11), 1)}"


def respellings(by: Signer) -> Tokens:
    good = by.token()
    # 256 octets leave four spare bits in the last character, which is A, Q, g or w.
    yield "spare bits in the last character", good[:-1] + chr(ord(good[-1]) + 1)
    yield "more than 16 KiB", by.claiming(x="y" * 12_300)


def broken_json(by: Signer) -> Tokens:
    claims = text(by.claims)
    name = text(by.claims["sub"])
    yield "an empty header", by.signed("." + segment(by.claims))
    yield "an empty payload", by.token(claims=b"")
    yield "a header that is a list", by.token(header=[by.header])
    yield "a payload that is a list", by.token(claims=[by.claims])
    yield "a payload that is a string", by.token(claims="joe")
    yield "a payload that is null", by.token(claims=b"null")
    yield "text after the object", by.token(claims=claims + b" {}")
    yield "UTF-16", by.token(claims=claims.decode().encode("utf-16"))
    yield "not UTF-8", by.token(claims=claims.replace(name, b'"jo\xff"'))
    yield "NaN", by.claiming(x=float("nan"))
    yield "an exp of Infinity", by.claiming(exp=float("inf"))
    yield "a control character, raw", by.token(claims=claims.replace(name, b'"j\ne"'))
    yield "a kid that is a number", by.headed(kid=2)
    yield "a kid that is null", by.headed(kid=None)


def odd_json(by: Signer) -> Tokens:
    header, claims = text(by.header), text(by.claims)[:-1]
    yield "a typ that is a list", by.headed(typ=["JWT"])
    yield "a byte order mark", by.token(claims=b"\xef\xbb\xbf" + text(by.claims))
    yield "alg twice", by.token(header=b'{"alg":"none",' + header[1:])
    yield "sub twice", by.token(claims=claims + b',"sub":"root"}')
    yield "sub twice, once escaped", by.token(claims=claims + rb',"\u0073ub":"root"}')
    yield "a member twice, deep down", by.token(claims=claims + b',"a":[{"b":1,"b":2}]}')
    yield "a number beyond floats", by.token(claims=claims + b',"x":1e999}')
    yield "half a surrogate pair", by.claiming(sub="\ud800")
    yield "6000 nested lists", by.token(claims=b'{"x":' + b"[" * 6000 + b"]" * 6000 + b"}")


def algorithms(by: Signer) -> Tokens:
    for alg in ("none", "None", "HS256", "ES256", "rs256", "RS256 ", None, 256):
        yield f"alg {alg!r}", by.headed(alg=alg)
    for size, prefix in LONGER.items():
        message = by.message(header={**by.header, "alg": f"RS{size}"})
        block = by.padded(prefix + hashlib.new(f"sha{size}", message.encode()).digest())
        yield f"alg 'RS{size}'", seal(message, by.rsa(block))
    message = by.message(header={**by.header, "alg": "PS256"})
    yield "alg 'PS256'", seal(message, by.rsa(pss(message.encode(), by.key["n"])))
    yield "no alg", by.headed(alg=...)
    for alg in ("none", "nOnE"):
        yield f"alg {alg} and no signature", by.message(header={**by.header, "alg": alg}) + "."
    message = by.message(header={**by.header, "alg": "HS256"})
    secrets = {"JWK": text(by.jwk()), "modulus": by.key["n"].to_bytes(by.octets, "big")}
    for name, secret in {**secrets, "PEM": pem(by.key)}.items():
        mac = hmac.new(secret, message.encode(), hashlib.sha256).digest()
        yield f"HS256 keyed with the public {name}", seal(message, mac)


def pss(message: bytes, n: int) -> bytes:
    """EMSA-PSS with SHA-256 (RFC 8017 §9.1.1), with a salt of zeros: tokens come out the same."""
    bits, salt = n.bit_length() - 1, bytes(32)
    length = (bits + 7) // 8
    digest = hashlib.sha256(bytes(8) + hashlib.sha256(message).digest() + salt).digest()
    block = b"\x01".rjust(length - 65, b"\0") + salt
    count = -(-len(block) // 32)
    mask = b"".join(hashlib.sha256(digest + bytes([0, 0, 0, at])).digest() for at in range(count))
    masked = bytearray(one ^ other for one, other in zip(block, mask))
    masked[0] &= 0xFF >> (8 * length - bits)
    return bytes(masked) + digest + b"\xbc"


def pem(key: Numbers) -> bytes:
    """The public key as a file (RFC 5280 §4.1), which a confused verifier takes for a secret."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public_key = RSAPublicNumbers(key["e"], key["n"]).public_key()
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def extensions(by: Signer) -> Tokens:
    yield "crit", by.headed(crit=["exp"], exp=0)
    yield "b64 false and crit", by.headed(b64=False, crit=["b64"])


def odd_headers(by: Signer) -> Tokens:
    yield "crit, empty", by.headed(crit=[])
    yield "b64 false alone", by.headed(b64=False)
    for typ in ("logout+jwt", "dpop+jwt", "JOSE", ""):
        yield f"typ {typ!r}", by.headed(typ=typ)


def signatures(by: Signer) -> Tokens:
    message, good = by.message(), by.token()
    head, body, signature = good.split(".")
    yield "no signature", message + "."
    yield "a signature of zeros", seal(message, bytes(by.octets))
    yield "the number one", seal(message, b"\x01".rjust(by.octets, b"\0"))
    yield "another payload", f"{head}.{segment({**by.claims, 'sub': 'root'})}.{signature}"
    yield "another header", f"{segment(laid_over(by.header, {'typ': ...}))}.{body}.{signature}"
    for name, block in blocks(by, message.encode()):
        yield name, by.token(block=block)
    right = by.rsa(padded_hash(message.encode(), by.key["n"]))
    yield "a zero octet before the signature", seal(message, b"\x00" + right)
    message, short = search(by, lambda found: found[0] == 0)  # one in 256
    yield "a leading zero octet left out", seal(message, short[1:])
    n, end = by.key["n"], 2 ** (8 * by.octets)
    message, small = search(by, lambda found: int.from_bytes(found, "big") + n < end)
    above = int.from_bytes(small, "big") + n
    yield "signature plus modulus", seal(message, above.to_bytes(by.octets, "big"))


def blocks(by: Signer, message: bytes) -> Iterator[tuple[str, bytes]]:
    """Padded hashes that are almost right, for the key itself to sign."""
    digest = hashlib.sha256(message).digest()
    tail = DIGEST_INFO + digest
    right = by.padded(tail)
    bare = bytes.fromhex("302f300b0609608648016503040201") + b"\x04\x20" + digest
    sha1 = bytes.fromhex("3021300906052b0e03021a05000414") + hashlib.sha1(message).digest()  # noqa: S324
    yield "no NULL in DigestInfo", by.padded(bare)
    yield "a BER long length", by.padded(b"\x30\x81" + tail[1:])
    yield "SHA-512's identifier", by.padded(tail.replace(b"\x02\x01\x05", b"\x02\x03\x05"))
    yield "SHA-1", by.padded(sha1)
    yield "the hash of something else", by.padded(DIGEST_INFO + bytes(32))
    yield "no DigestInfo", by.padded(digest)
    yield "block type 2", b"\x00\x02" + right[2:]
    yield "block type 0", b"\x00\x00" + right[2:]
    yield "a zero in the padding", right[:20] + b"\x00" + right[21:]
    few = b"\x00\x01" + b"\xff" * 8 + b"\x00" + tail
    yield "eight octets of padding, then rubbish", few.ljust(by.octets, b"\x55")
    yield "padding cut short by leading zeros", b"\x00" * 10 + right[:2] + right[12:]
    yield "no zero after the padding", right.replace(b"\x00" + tail, b"\xff" + tail)
    yield "rubbish behind the hash", by.padded(tail + b"\x00")


def search(by: Signer, fits: Callable[[bytes], bool]) -> tuple[str, bytes]:
    """A signing input whose signature fits; a claim that nobody reads is counted up for it."""
    for count in range(10_000):
        message, _, signature = by.claiming(jti=str(count)).rpartition(".")
        if fits(raw := b64url_decode(signature)):
            return message, raw
    raise ValueError("the modulus fills its octets: take another key")


def forgeries(by: Signer) -> Tokens:
    """Bleichenbacher 2006: no private key at all, e = 3, and a reader who skips over padding."""
    message = by.message()
    tail = DIGEST_INFO + hashlib.sha256(message.encode()).digest()
    for count in (8, 1, 0):
        block = b"\x00\x01" + b"\xff" * count + b"\x00" + tail
        root = nearest_root(block.ljust(by.octets, b"\x00")).to_bytes(by.octets, "big")
        yield f"a cube root, {count} octets of padding", seal(message, root)


def nearest_root(block: bytes) -> int:
    """The smallest integer whose cube is at least the block."""
    target, low, high = int.from_bytes(block, "big"), 0, 1 << 700
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle**3 >= target else (middle + 1, high)
    return low


def cube_root_forgeries(by: Signer) -> Tokens:
    return forgeries(Signer({"n": CUBE_N, "e": 3}, {**by.header, "kid": "cube"}, by.claims, ""))


def strangers(by: Signer) -> Tokens:
    """Signed by a key that is not in the JWKS, and that the token brings along."""
    stranger = Signer(new_key(), by.header, by.claims, "")
    jwk, url = stranger.jwk(kid="stranger"), "https://evil.example/jwks.json"
    yield "a stranger's key", stranger.token()
    yield "a stranger's key, a kid of its own", stranger.headed(kid="stranger")
    yield "a stranger's key, no kid", stranger.headed(kid=...)
    yield "a stranger's key in jwk", stranger.headed(jwk=jwk)
    yield "a stranger's key in jwk, its kid", stranger.headed(jwk=jwk, kid="stranger")
    yield "a stranger's key at jku", stranger.headed(jku=url, kid="stranger")
    yield "a stranger's key at x5u", stranger.headed(x5u=url, kid="stranger")
    yield "a kid that is a path", stranger.headed(kid="../../../../dev/null")
    yield "a kid that is SQL", stranger.headed(kid="' UNION SELECT 'key' --")


def unnamed_keys(by: Signer) -> Tokens:
    yield "a kid that nobody has", by.headed(kid="nobody")
    yield "a kid that differs in case", by.headed(kid=by.header["kid"].upper())
    yield "the kid of an encryption key", by.headed(kid="encryption")


def other_keys(by: Signer) -> Tokens:
    yield "the kid of the other key", by.headed(kid=by.other_kid)


def wrong_claims(by: Signer) -> Tokens:
    now, iss = by.claims["iat"], by.claims["iss"]
    value: Any
    yield "expired", by.claiming(exp=now - HOUR)
    yield "expired in 1970", by.claiming(exp=0)
    yield "not valid yet", by.claiming(nbf=now + HOUR)
    yield "another issuer", by.claiming(iss="https://evil.example")
    for name, value in (("slash more", iss + "/"), ("name longer", iss + ".evil.example")):
        yield f"an issuer one {name}", by.claiming(iss=value)
    for value in ("them", ["them"], [], by.claims["aud"][:-1], by.claims["aud"].upper()):
        yield f"aud {value!r}", by.claiming(aud=value)
    for name, value in (("exp", str(now + HOUR)), ("exp", None), ("exp", True), ("nbf", str(now))):
        kind = "a string" if isinstance(value, str) else repr(value)
        yield f"{name} {kind}", by.claiming(**{name: value})


def lax_claims(by: Signer) -> Tokens:
    yield "no exp", by.claiming(exp=...)
    yield "no aud", by.claiming(aud=...)
    yield "no issuer", by.claiming(iss=...)
    yield "sub 7", by.claiming(sub=7)
    yield "issued in the future", by.claiming(iat=by.claims["iat"] + HOUR)


def good_tokens(by: Signer) -> Tokens:
    yield "good", by.token()
    yield "good, no typ", by.headed(typ=...)
    yield "good, us among other audiences", by.claiming(aud=["them", by.claims["aud"]])
    yield "good, spaces in the JSON", by.token(claims=json.dumps(by.claims, indent=1).encode())
    yield (
        "good, header members and claims of others",
        by.token({**by.header, "x": [1]}, {**by.claims, "x": {"y": None}}),
    )


class Group(NamedTuple):
    """Tokens of one kind of flaw."""

    tokens: Callable[[Signer], Tokens]
    expect: str  # accept, refuse
    level: str  # must, should
    section: str
    why: str

    def rows(self, by: Signer) -> Iterator[dict[str, str]]:
        """The rows of the catalogue for this group's tokens."""
        shared = {name: value for name, value in self._asdict().items() if name != "tokens"}
        for name, token in self.tokens(by):
            yield {"name": name, "token": token, **shared, **OWN_SECTIONS.get(name, {})}


# Where another section decides than for the rest of the group.
OWN_SECTIONS = {
    "crit, empty": {"section": "RFC 7515 §4.1.11", "why": "a list of extensions has one at least"},
    "b64 false alone": {"section": "RFC 7797 §6", "why": "an extension that crit should name"},
    "more than 16 KiB": {"section": "RFC 9110 §5.4", "why": "larger than a server need take"},
    "no exp": {"section": "RFC 7519 §4.1.4", "why": "optional; but then it is valid for ever"},
    "no issuer": {"section": "RFC 8725 §3.8", "why": "nobody says that they issued it"},
    "sub 7": {"section": "RFC 7519 §4.1.2", "why": "a sub is text"},
    "issued in the future": {"section": "RFC 7519 §4.1.6", "why": "made later than now"},
}
GROUPS = tuple(
    Group(*row)
    for row in (
        (good_tokens, "accept", "must", "RFC 7519 §7.2", "nothing is wrong with it"),
        (shapes, "refuse", "must", "RFC 7515 §5.2", "three base64url segments, nothing besides"),
        (respellings, "refuse", "should", "RFC 4648 §3.5", "one token, one spelling, of fair size"),
        (broken_json, "refuse", "must", "RFC 7519 §7.2", "JSON objects in UTF-8, typed members"),
        (odd_json, "refuse", "should", "RFC 7515 §4", "two readers could see two tokens"),
        (algorithms, "refuse", "must", "RFC 8725 §3.1", "the verifier chooses the algorithm"),
        (extensions, "refuse", "must", "RFC 7515 §4.1.11", "an extension must be understood"),
        (odd_headers, "refuse", "should", "RFC 8725 §3.11", "it could be another kind of token"),
        (signatures, "refuse", "must", "RFC 8017 §8.2.2", "the padded hash is compared whole"),
        (cube_root_forgeries, "refuse", "must", "RFC 8017 §8.2.2", "made without a private key"),
        (strangers, "refuse", "must", "RFC 8725 §3.10", "keys come from the JWKS, not the token"),
        (unnamed_keys, "refuse", "should", "RFC 7515 §4.1.4", "its kid names no signing key"),
        (other_keys, "refuse", "should", "RFC 7515 §4.1.4", "its kid names another key"),
        (wrong_claims, "refuse", "must", "RFC 7519 §4.1", "a claim does not hold"),
        (lax_claims, "refuse", "should", "RFC 8725 §3.9", "valid at any place"),
    )
)
