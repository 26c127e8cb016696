"""What a JSON Web Token is, by hand: issue, verify and explain RS256 tokens.

    eyJhbGciOiJSUzI1NiJ9 . eyJzdWIiOiJhbGljZSJ9 . NLjWKl0...
    `----- header -----'   `---- payload -----'   `- signature -'      each of them base64url
    `----------- signing input ---------------'                        what the signature covers

    encode   claims -> JSON -> base64url -> signing input -> sign -> token
    decode   token -> verify (one key, one algorithm, whole signature) -> JSON -> claims, checked

Rules of this file
  - Verifying needs the standard library only: copy this one file and it verifies tokens anywhere.
  - The verifier chooses the algorithm and the key; a header may only fail to match them.
  - One accepted spelling: of base64url, of JSON members, of the padding around the hash.
  - Bytes are believed in order: size, shape, header, key, signature, and only then the claims.
  - Every refusal is an InvalidToken whose class names the check and whose text names the cause.

Left out: other algorithms, encryption (JWE), keys made or stored, sets of keys fetched or cached.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA256

# No longer token reaches a server: Node, and httpd.py here, accept 16 KiB of request head.
MAX_TOKEN = 16 * 1024
# Python's JSON reader recurses, and gives up at 1000 levels; a token this busy is an attack.
MAX_BRACKETS = 500
# RFC 7518 §3.3: "A key of size 2048 bits or larger MUST be used"; 16384 is where OpenSSL stops.
MIN_MODULUS, MAX_MODULUS = 2048, 16384
# OpenSSL's bound for large keys; 3 and 65537 are what one meets.
MAX_EXPONENT = 2**64
# RFC 8017 §9.2 note 1: the DER of DigestInfo{SHA-256, NULL} up to where the 32 bytes of hash begin.
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


# ---- refusals: the class is the check that failed, its docstring the way out ----


class InvalidToken(ValueError):
    """Refuse the token; its cause stands in the text of the error."""

    def __init__(self, cause: str, **seen: Any) -> None:
        super().__init__(cause)
        self.seen = seen  # what the check saw, for a developer or a log

    @property
    def fix(self) -> str:
        """What to do about it: the docstring of the class."""
        return type(self).__doc__ or ""


class MalformedToken(InvalidToken):
    """Copy the token again, whole and without quotes; if it stays so, its issuer is at fault."""


class UnsupportedToken(InvalidToken):
    """Let the issuer sign with RS256, type JWT or at+jwt, and no critical header extension."""


class UnknownKey(InvalidToken):
    """Fetch the JWKS of this token's issuer again: keys rotate, and every issuer has its own."""


class UnusableKey(InvalidToken):
    """Let the issuer publish an RSA signing key of 2048 bits or more, as RFC 7517 spells it."""


class BadSignature(InvalidToken):
    """Reject the token: it was changed after it was signed, or another key signed it."""


class InvalidClaim(InvalidToken):
    """Let the issuer give each registered claim the type that RFC 7519 §4.1 asks for."""


class MissingClaim(InvalidClaim):
    """Let the issuer set the claim: without it, this token cannot be checked."""


class ExpiredToken(InvalidClaim):
    """Get a new token; if it should still be valid, compare this clock with the issuer's."""


class ImmatureToken(InvalidClaim):
    """Wait, or allow some leeway: the issuer's clock is ahead of this one."""


class WrongIssuer(InvalidClaim):
    """Accept tokens of this issuer only if you mean to trust it: compare character by character."""


class WrongAudience(InvalidClaim):
    """Name yourself as the audience if this token is meant for you; otherwise reject it."""


# ---- base64url and JSON: one accepted spelling ----


def b64url_encode(raw: bytes) -> str:
    """Bytes as base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """The bytes of `text`; MalformedToken unless it is exactly what `b64url_encode` would write."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise MalformedToken(f"not base64url: {error}") from None
    # The library skips foreign characters and ignores spare bits, so "QQ", "QR" and "Q Q" all give
    # "A": without this line a signed token could be respelled at will (RFC 4648 §3.5).
    if b64url_encode(raw) != text:
        raise MalformedToken("not base64url: padding, foreign characters or spare bits")
    return raw


_compact_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_sorted_json = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True
).encode


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):  # RFC 7515 §4: or two readers could see two tokens
        raise ValueError("a member name occurs twice")
    return members


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):  # NaN and Infinity are not JSON; 1e999 would never expire
        raise ValueError(f"{number} is no finite number")
    return value


_strict_json = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_float=_finite, parse_constant=_finite
).decode


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`: UTF-8, no duplicate members, no NaN; otherwise MalformedToken."""
    try:
        if raw.count(b"{") + raw.count(b"[") > MAX_BRACKETS:
            raise ValueError("nested too deeply")
        value = _strict_json(raw.decode("utf-8"))
        _compact_json(value).encode("utf-8")  # refuses half a surrogate pair: no text has one
    except (ValueError, RecursionError) as error:
        raise MalformedToken(f"not acceptable JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedToken("JSON, but not an object")
    return value


# ---- issuing ----


def sign(header: dict[str, Any], payload: bytes, private_key: RSAPrivateKey) -> str:
    """A compact JWS (RFC 7515 §3.1): the header as given, any payload, signed with RS256."""
    signing_input = b64url_encode(_compact_json(header).encode()) + "." + b64url_encode(payload)
    signature = private_key.sign(signing_input.encode("ascii"), *_rs256())
    return signing_input + "." + b64url_encode(signature)


@cache
def _rs256() -> tuple[PKCS1v15, SHA256]:
    """RS256 in the terms of `cryptography`, imported only when a key of that package signs."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    return PKCS1v15(), SHA256()


def encode(claims: dict[str, Any], private_key: RSAPrivateKey, kid: str) -> str:
    """A JWT for `claims`; equal claims give equal bytes. InvalidClaim if a type is wrong."""
    _check_types(claims)
    for name in DATES:  # RFC 7519 §2 allows fractions, but nine clients stumble over them
        if isinstance(claims.get(name), float):
            raise InvalidClaim(f"{name} must be whole seconds: {claims[name]!r}")
    try:
        payload = _sorted_json(claims).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidClaim(f"not expressible in JSON: {error}") from None
    return sign({"alg": "RS256", "typ": "JWT", "kid": kid}, payload, private_key)


# ---- keys ----


def public_jwk(public_key: RSAPublicKey) -> dict[str, str]:
    """The JWK (RFC 7517 §4) to publish for a key; its `kid` is its thumbprint."""
    numbers = public_key.public_numbers()
    n, e = (b64url_encode(_octets(number)) for number in (numbers.n, numbers.e))
    kid = thumbprint({"kty": "RSA", "n": n, "e": e})
    return {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": n, "e": e}


def _octets(number: int) -> bytes:
    """Big-endian without a leading zero octet: Base64urlUInt before base64url (RFC 7518 §2)."""
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def thumbprint(jwk: dict[str, Any]) -> str:
    """The RFC 7638 name of an RSA key: a hash of its required members, sorted, without spaces."""
    required = {name: jwk[name] for name in ("e", "kty", "n")}
    return b64url_encode(hashlib.sha256(_sorted_json(required).encode("utf-8")).digest())


def find_key(header: dict[str, Any], jwks: dict[str, Any]) -> dict[str, Any]:
    """The one RSA key of the JWKS that `kid` names; without a `kid`, the only RSA key there is."""
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(keys, list):
        raise UnusableKey('not a JWKS: expected {"keys": [...]}')
    rsa = [jwk for jwk in keys if isinstance(jwk, dict) and jwk.get("kty") == "RSA"]
    found = [jwk for jwk in rsa if "kid" not in header or jwk.get("kid") == header["kid"]]
    if len(found) != 1:
        name = f"the kid {header['kid']!r}" if "kid" in header else "no kid"
        kids = [jwk.get("kid") for jwk in rsa]
        raise UnknownKey(f"the token has {name}, and {len(found)} RSA keys match it", kids=kids)
    return found[0]


def rsa_numbers(jwk: dict[str, Any]) -> tuple[int, int]:
    """(n, e) of an RSA key that may verify RS256; UnusableKey says why it may not."""
    if jwk.get("use", "sig") != "sig":
        raise UnusableKey(f"the key is for use {jwk['use']!r}, not sig", jwk=jwk)
    if "key_ops" in jwk and not (isinstance(jwk["key_ops"], list) and "verify" in jwk["key_ops"]):
        raise UnusableKey(f"the key's key_ops {jwk['key_ops']!r} lack verify", jwk=jwk)
    if jwk.get("alg", "RS256") != "RS256":
        raise UnusableKey(f"the key is for alg {jwk['alg']!r}, not RS256", jwk=jwk)
    n, e = _number(jwk, "n"), _number(jwk, "e")
    if not MIN_MODULUS <= n.bit_length() <= MAX_MODULUS or n % 2 == 0:
        raise UnusableKey(f"a modulus of {n.bit_length()} bits is too small, too large or even")
    if not 3 <= e < MAX_EXPONENT or e % 2 == 0:  # e = 1 would make every padded hash a signature
        raise UnusableKey(f"a public exponent of {e} is too small, too large or even")
    return n, e


def _number(jwk: dict[str, Any], name: str) -> int:
    text = jwk.get(name)
    if not isinstance(text, str) or len(text) > MAX_MODULUS // 6 + 1:
        raise UnusableKey(f"the key's {name} is missing, no text or too long", jwk=jwk)
    try:
        raw = b64url_decode(text)
    except MalformedToken as error:
        raise UnusableKey(f"the key's {name} is {error}", jwk=jwk) from None
    if raw[:1] in (b"", b"\0"):  # RFC 7518 §6.3.1.1
        raise UnusableKey(f"the key's {name} is empty or starts with a zero octet", jwk=jwk)
    return int.from_bytes(raw, "big")


# ---- verifying ----


def verify_rs256(message: bytes, signature: bytes, n: int, e: int) -> bool:
    """Whether `signature` is the RSASSA-PKCS1-v1_5 signature of `message` (RFC 8017 §8.2.2)."""
    k = (n.bit_length() + 7) // 8
    s = int.from_bytes(signature, "big")
    if len(signature) != k or s >= n:  # or s + n would be a second signature
        return False
    # Compared whole and never parsed: readers that skipped over the padding to find the hash were
    # forged against (Bleichenbacher 2006, and BERserk 2014). All of it is public, so == will do.
    return pow(s, e, n).to_bytes(k, "big") == _padded_hash(message, k)


def _padded_hash(message: bytes, k: int) -> bytes:
    """EMSA-PKCS1-v1_5 (RFC 8017 §9.2): 00 01 ff...ff 00 DigestInfo hash, k octets in all."""
    tail = DIGEST_INFO + hashlib.sha256(message).digest()
    return b"\x00\x01" + b"\xff" * (k - len(tail) - 3) + b"\x00" + tail


def verify(token: str, jwks: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a JWS that a key of `jwks` signed with RS256 (RFC 7515 §5.2)."""
    if not isinstance(token, str) or len(token) > MAX_TOKEN:
        raise MalformedToken(f"no text, or longer than {MAX_TOKEN} characters")
    segments = token.split(".")
    if len(segments) != 3:
        raise MalformedToken(
            f"a signed token has 3 segments between dots, this has {len(segments)}"
        )
    header, payload, signature = (b64url_decode(segment) for segment in segments)
    fields = parse_object(header)
    _check_header(fields)
    n, e = rsa_numbers(find_key(fields, jwks))
    signing_input = token[: token.rindex(".")].encode("ascii")
    if not verify_rs256(signing_input, signature, n, e):
        raise BadSignature("the signature does not fit header, payload and key", header=fields)
    return fields, payload


def _check_header(header: dict[str, Any]) -> None:
    """Refuse what would change the meaning of the token; jwk, jku, x5u, x5c are never looked at."""
    if header.get("alg") != "RS256":  # RFC 8725 §3.1: none, HS256 with the public key, ...
        raise UnsupportedToken(f"alg is {header.get('alg')!r}, not RS256", header=header)
    for name in ("crit", "b64"):  # RFC 7515 §4.1.11 and RFC 7797 §6: understood, or refused
        if name in header:
            raise UnsupportedToken(f"the header has {name}, an extension", header=header)
    if not isinstance(header.get("kid", ""), str):
        raise MalformedToken(f"kid is {header['kid']!r}, not a string", header=header)


# ---- claims ----


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_date(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_audience(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


# RFC 7519 §4.1: the registered claims, how each type is recognised and what it is called.
REGISTERED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "iss": (_is_text, "a string"),
    "sub": (_is_text, "a string"),
    "aud": (_is_audience, "a string or a list of strings"),
    "exp": (_is_date, "a number of seconds since 1970"),
    "nbf": (_is_date, "a number of seconds since 1970"),
    "iat": (_is_date, "a number of seconds since 1970"),
    "jti": (_is_text, "a string"),
}
DATES = ("exp", "nbf", "iat")
# RFC 8725 §3.11: a logout, event or proof token of the same issuer must not pass for this kind.
TYPES = (None, "jwt", "at+jwt", "application/at+jwt")


def decode(
    token: str,
    jwks: dict[str, Any],
    *,
    issuer: str | None = None,
    audience: str | None = None,
    now: float | None = None,
    leeway: float = 0,
) -> dict[str, Any]:
    """The claims of a token that is valid now, for us (RFC 7519 §7.2); otherwise InvalidToken.

    `now` and `leeway` are seconds; `issuer` and `audience` are what `iss` must be and `aud` hold.
    """
    header, payload = verify(token, jwks)
    kind = header.get("typ")
    if (kind.lower() if isinstance(kind, str) else kind) not in TYPES:
        raise UnsupportedToken(f"typ is {kind!r}, another kind of token", header=header)
    claims = parse_object(payload)
    _check_types(claims)
    _check_dates(claims, time.time() if now is None else now, leeway)
    if issuer is not None and claims.get("iss") != issuer:
        raise WrongIssuer(f"iss is {claims.get('iss')!r}, not {issuer!r}", claims=claims)
    _check_audience(claims, audience)
    return claims


def _check_types(claims: dict[str, Any]) -> None:
    for name, (is_right, kind) in REGISTERED.items():
        if name in claims and not is_right(claims[name]):
            raise InvalidClaim(f"{name} must be {kind}: {claims[name]!r}", claims=claims)


def _check_dates(claims: dict[str, Any], now: float, leeway: float) -> None:
    if "exp" not in claims:
        raise MissingClaim("there is no exp: the token would be valid for ever", claims=claims)
    if now - leeway >= claims["exp"]:  # RFC 7519 §4.1.4: "on or after" is too late
        raise ExpiredToken(f"exp is {claims['exp']}, now is {now:.0f}", claims=claims, now=now)
    for name in ("nbf", "iat"):
        if claims.get(name, 0) > now + leeway:
            raise ImmatureToken(f"{name} is {claims[name]}, now is {now:.0f}", claims=claims)


def _check_audience(claims: dict[str, Any], audience: str | None) -> None:
    """RFC 7519 §4.1.3: a token for somebody is refused by whoever does not find himself there."""
    meant_for = claims.get("aud", [])
    if isinstance(meant_for, str):
        meant_for = [meant_for]
    if audience not in meant_for if "aud" in claims else audience is not None:
        raise WrongAudience(f"aud is {meant_for!r}, we are {audience!r}", claims=claims)
