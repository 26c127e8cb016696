"""What a JSON Web Token is, by hand: issue, verify and explain RS256 tokens.

    eyJhbGciOiJSUzI1NiJ9 . eyJzdWIiOiJhbGljZSJ9 . NLjWKl0...
    `----- header -----'   `---- payload -----'   `- signature -'      each of them base64url
    `----------- signing input ---------------'                        what the signature covers

    encode    claims -> JSON -> base64url -> signing input -> signature -> token
    decode    token -> verify: one key, one algorithm, the whole signature -> claims, checked
    explain   the same in words: python jwt_minimal.py explain TOKEN --jwks URL

Rules of this file
  - Verifying needs the standard library only: copy this one file and it verifies tokens anywhere.
  - The verifier chooses the algorithm and the key; a header may only fail to match them.
  - One accepted spelling: of base64url, of JSON members, of the padding around the hash.
  - Bytes are believed in order: size, shape, header, key, signature, and only then the claims.
  - Every refusal is an InvalidToken: its class is the check, its text the cause, its doc the fix.

Left out: other algorithms, encryption (JWE), making or storing keys, caching key sets.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import reprlib
import sys
import time
from datetime import datetime, timezone
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

__version__ = "1.0.0"
Object = dict[str, Any]  # a JSON object

# Node, and jwksd/httpd here, accept 16 KiB of request head: a longer token reaches no server.
MAX_TOKEN = 16 * 1024
# Python's JSON reader recurses and gives up near 1000 levels: stay well below.
MAX_BRACKETS = 500
# RFC 7518 §3.3: "A key of size 2048 bits or larger MUST be used"; OpenSSL stops at 16384.
MIN_MODULUS, MAX_MODULUS = 2048, 16384
# OpenSSL's bound for large keys; in practice e is 65537, or 3.
MAX_EXPONENT = 2**64
URLSAFE = bytes.maketrans(b"+/", b"-_")  # RFC 4648 §5: what a URL would misread
# RFC 8017 §9.2 note 1: the DER of DigestInfo{SHA-256, NULL} up to the 32 octets of the hash.
DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")

TEXT, TEXTS = "a string", "a string or a list of strings"
DATE, WHOLE = "a number of seconds since 1970", "a whole number of seconds since 1970"
KINDS = {TEXT: (str,), TEXTS: (str, list), DATE: (int, float), WHOLE: (int,)}
# RFC 7519 §4.1: the registered claims, their types, and what they say.
REGISTERED = {
    "iss": (TEXT, "who issued it"),
    "sub": (TEXT, "whom it is about"),
    "aud": (TEXTS, "whom it is for"),
    "exp": (DATE, "expires"),
    "nbf": (DATE, "valid from"),
    "iat": (DATE, "issued"),
    "jti": (TEXT, "its serial number"),
}
# RFC 7515 §4.1: the header parameters, and what they mean here.
HEADER = {
    "alg": "how it was signed; here: RSA, PKCS#1 v1.5 padding, SHA-256",
    "typ": "what it is",
    "kid": "which key of the JWKS signed it",
    **dict.fromkeys(("jwk", "jku", "x5u", "x5c"), "a key that the token brings along: never used"),
    "crit": "extensions that a verifier must understand: refused",
    "b64": "whether the payload is base64url, as it always is here; only true is accepted",
}
# RFC 8725 §3.11: a logout, event or proof token of the same issuer must not pass for these.
TYPES = ("jwt", "at+jwt")


class InvalidToken(ValueError):
    """Do not use the token."""

    def __init__(self, cause: str, **seen: Object) -> None:
        super().__init__(cause)
        self.fix = type(self).__doc__ or ""  # what to do about it
        self.seen = seen  # what the check looked at, header or claims, for a developer


# A table: each check, and what to do when it fails.
# fmt: off
class MalformedToken(InvalidToken):
    """Copy the token again, whole and without quotes; if it stays so, its issuer is at fault."""
class UnsupportedToken(InvalidToken):
    """Let the issuer sign with RS256, typ JWT or at+jwt, and no header extension."""
class UnknownKey(InvalidToken):
    """Check it with the freshly fetched JWKS of its issuer: without, anyone may have written it."""
class UnusableKey(InvalidToken):
    """Let the issuer publish an RSA signing key of 2048 bits or more, as RFC 7517 spells it."""
class BadSignature(InvalidToken):
    """Reject the token: it was changed after it was signed, or another key signed it."""
class InvalidClaim(InvalidToken):
    """Let the issuer set exp, and give every registered claim the type of RFC 7519 §4.1."""
class ExpiredToken(InvalidClaim):
    """Get a new token; if this one should still be good, compare your clock with the issuer's."""
class ImmatureToken(InvalidClaim):
    """Wait, or allow some leeway: the issuer's clock is ahead of yours."""
class WrongIssuer(InvalidClaim):
    """Compare the two character by character; if they differ on purpose, reject the token."""
class WrongAudience(InvalidClaim):
    """Name yourself as audience if the token is meant for you; if it is not, reject it."""
# fmt: on

# Errors quote what they refuse, escaped and cut: it may be hostile, deep and long.
_quote = reprlib.Repr()
_quote.maxstring = _quote.maxother = 100  # enough for any kid, URL or name
quote = _quote.repr


# ---- base64url and JSON: one accepted spelling ----
def b64url_encode(raw: bytes) -> str:
    """Bytes as base64url without padding (RFC 7515 §2)."""
    return base64.b64encode(raw).translate(URLSAFE, b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """The bytes of `text`; MalformedToken unless it is exactly what `b64url_encode` writes."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise MalformedToken(f"not base64url: {error}") from None
    # The library skips foreign characters and ignores spare bits: "QQ", "QR" and "Q Q" are all "A".
    # Without this line, anybody could spell a signed token in a second way (RFC 4648 §3.5).
    if b64url_encode(raw) != text:
        raise MalformedToken("not base64url: padding, foreign characters or spare bits")
    return raw


_writer = partial(json.JSONEncoder, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_compact_json = _writer().encode
_sorted_json = _writer(sort_keys=True).encode


def parse_object(raw: bytes) -> Object:
    """The JSON object in `raw`: UTF-8, no member twice, no NaN; MalformedToken if it is not."""
    try:
        if raw.count(b"{") + raw.count(b"[") > MAX_BRACKETS:
            raise ValueError("too many brackets")
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
        # Refuses NaN, 1e999 (an exp that never comes) and half a surrogate pair: no text has one.
        _compact_json(value).encode("utf-8")
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise MalformedToken(f"not acceptable JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    if len(members := dict(pairs)) != len(pairs):  # RFC 7515 §4: two programs could read two values
        raise ValueError("a member occurs twice")
    return members


# ---- issuing ----
def sign(header: Object, payload: bytes, private_key: RSAPrivateKey) -> str:
    """A compact JWS (RFC 7515 §3.1): the header as given, any payload, signed with RS256."""
    return _signed(b64url_encode(_compact_json(header).encode("utf-8")), payload, private_key)


def encode(claims: Object, private_key: RSAPrivateKey, kid: str, *, typ: str = "JWT") -> str:
    """A JWT for `claims`; equal claims give equal bytes. InvalidClaim if a type is wrong."""
    _check_types(claims, WHOLE)  # RFC 7519 §2 allows fractions; many a client does not
    try:
        payload = _sorted_json(claims).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidClaim(f"not expressible in JSON: {error}") from None
    return _signed(_header_segment(kid, typ), payload, private_key)


@lru_cache(maxsize=16)  # few keys sign at a time, and all tokens of a key have the same header
def _header_segment(kid: str, typ: str) -> str:
    return b64url_encode(_compact_json({"alg": "RS256", "typ": typ, "kid": kid}).encode("utf-8"))


def _signed(header_segment: str, payload: bytes, private_key: RSAPrivateKey) -> str:
    signing_input = header_segment + "." + b64url_encode(payload)
    signature = private_key.sign(signing_input.encode("ascii"), *_rs256())
    return signing_input + "." + b64url_encode(signature)


@cache
def _rs256() -> tuple[Any, Any]:
    # Imported when a key of that package first signs: verifying needs no package.
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256

    return PKCS1v15(), SHA256()


def _check_types(claims: Object, date: str = DATE) -> None:
    for name, (kind, _) in REGISTERED.items():
        if name in claims:
            value, expected = claims[name], date if kind == DATE else kind
            fits = isinstance(value, KINDS[expected]) and not isinstance(value, bool)
            if isinstance(value, list):
                fits = fits and all(isinstance(item, str) for item in value)
            if not fits:
                raise InvalidClaim(f"{name} is {quote(value)}, not {expected}", claims=claims)


# ---- keys ----
def public_jwk(public_key: RSAPublicKey) -> dict[str, str]:
    """The JWK (RFC 7517 §4) to publish for a key; its `kid` is its thumbprint."""
    numbers = public_key.public_numbers()
    jwk = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": ""}  # in the order to be published
    for name, number in (("n", numbers.n), ("e", numbers.e)):
        # RFC 7518 §2: big-endian, without a leading zero octet.
        jwk[name] = b64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
    return {**jwk, "kid": thumbprint(jwk)}


def thumbprint(jwk: Object) -> str:
    """The RFC 7638 name of an RSA key: a hash of its required members, sorted, without spaces."""
    required = {name: jwk.get(name) for name in ("e", "kty", "n")}
    if required["kty"] != "RSA" or not all(isinstance(value, str) for value in required.values()):
        raise UnusableKey("not an RSA key in the form of a JWK")
    return b64url_encode(hashlib.sha256(_compact_json(required).encode("utf-8")).digest())


def rsa_keys(jwks: Object) -> list[Object]:
    """The RSA keys of a JWKS; what it holds beside them is ignored (RFC 7517 §5)."""
    keys = jwks.get("keys") if isinstance(jwks, dict) else None
    if not isinstance(keys, list):
        raise UnusableKey('not a JWKS: expected {"keys": [...]}')
    return [jwk for jwk in keys if isinstance(jwk, dict) and jwk.get("kty") == "RSA"]


def find_key(header: Object, jwks: Object) -> Object:
    """The one key of the JWKS for RS256 that `kid` names; without a `kid`, its only such key.

    A key that is declared for another purpose does not count: an issuer may list one key for RS256
    and for RS512 under one kid. UnusableKey if `kid` names keys of other purposes only.
    """
    keys = rsa_keys(jwks)
    named = [jwk for jwk in keys if "kid" not in header or jwk.get("kid") == header["kid"]]
    found = [jwk for jwk in named if not _other_purpose(jwk)]
    if named and not found:
        raise UnusableKey(_other_purpose(named[0]), header=header)
    if len(found) != 1:
        name = f"kid {quote(header['kid'])}" if "kid" in header else "no kid"
        cause = f"the token has {name}: of {len(keys)} RSA keys, {len(found)} fit"
        raise UnknownKey(cause, header=header)
    return found[0]


def _other_purpose(jwk: Object) -> str:
    """The member by which a key says that it does not verify RS256; empty if there is none."""
    for name, right in (("use", "sig"), ("alg", "RS256")):  # RFC 7517 §4.2, §4.4
        if jwk.get(name, right) != right:
            return f"the key's {name} is {quote(jwk[name])}, not {right}"
    operations = jwk.get("key_ops", ["verify"])  # RFC 7517 §4.3
    if not isinstance(operations, list) or "verify" not in operations:
        return f"the key's key_ops are {quote(operations)}, without verify"
    return ""


def rsa_numbers(jwk: Object) -> tuple[int, int]:
    """(n, e) of an RSA key that may verify RS256; UnusableKey says why it may not."""
    if cause := _other_purpose(jwk):
        raise UnusableKey(cause)
    n, e = _number(jwk, "n"), _number(jwk, "e")
    if n.bit_length() < MIN_MODULUS or n % 2 == 0:
        raise UnusableKey(f"a modulus of {n.bit_length()} bits: too small or even")
    if not 3 <= e < MAX_EXPONENT or e % 2 == 0:  # e = 1 would make every padded hash a signature
        raise UnusableKey(f"a public exponent of {quote(e)}: too small, too large or even")
    return n, e


def _number(jwk: Object, name: str) -> int:
    text = jwk.get(name)
    if not isinstance(text, str) or len(text) > MAX_MODULUS // 6 + 1:  # 6 bits to a character
        raise UnusableKey(f"the key's {name} is missing, not a string, or too long")
    try:
        raw = b64url_decode(text)
    except MalformedToken as error:
        raise UnusableKey(f"the key's {name} is {error}") from None
    if raw[:1] in (b"", b"\0"):  # RFC 7518 §6.3.1.1
        raise UnusableKey(f"the key's {name} is empty or starts with a zero octet")
    return int.from_bytes(raw, "big")


# ---- verifying: the signature ----
def padded_hash(message: bytes, n: int) -> bytes:
    """EMSA-PKCS1-v1_5 (RFC 8017 §9.2): 00 01 ff...ff 00 DigestInfo hash, as long as n."""
    tail = b"\x00" + DIGEST_INFO + hashlib.sha256(message).digest()
    return b"\x00\x01" + b"\xff" * ((n.bit_length() + 7) // 8 - 2 - len(tail)) + tail


def open_signature(signature: bytes, n: int, e: int) -> bytes:
    """The block that was signed: signature^e mod n, as long as n; empty if it is out of range."""
    k, s = (n.bit_length() + 7) // 8, int.from_bytes(signature, "big")
    if len(signature) != k or s >= n:  # or s + n would be a second signature
        return b""
    return pow(s, e, n).to_bytes(k, "big")


def verify_rs256(message: bytes, signature: bytes, n: int, e: int) -> bool:
    """Whether `signature` is right for `message` (RFC 8017 §8.2.2); `rsa_numbers` vets n and e."""
    # Compared whole and never parsed: readers that skipped over the padding to find the hash were
    # forged against (Bleichenbacher 2006, BERserk 2014). All of it is public, so == will do.
    return open_signature(signature, n, e) == padded_hash(message, n)


def take_apart(token: str) -> tuple[Object, bytes, bytes]:
    """Header, payload and signature of a compact JWS; nothing is checked but the form."""
    if not isinstance(token, str) or len(token) > MAX_TOKEN:
        raise MalformedToken(f"not a string, or longer than {MAX_TOKEN} characters")
    segments = token.split(".")
    if len(segments) != 3:  # five would be JWE, an encrypted token
        raise MalformedToken(f"segments between dots: {len(segments)}, not 3")
    header, payload, signature = (b64url_decode(segment) for segment in segments)
    return parse_object(header), payload, signature


def verify(token: str, jwks: Object) -> tuple[Object, bytes]:
    """Header and payload of a JWS that a key of `jwks` signed with RS256 (RFC 7515 §5.2)."""
    header, payload, signature = take_apart(token)
    _check_header(header)
    n, e = rsa_numbers(find_key(header, jwks))
    if not verify_rs256(token.rpartition(".")[0].encode("ascii"), signature, n, e):
        cause = "the signature is not this key's over this header and payload"
        raise BadSignature(cause, header=header)
    return header, payload


def _check_header(header: Object) -> None:
    """Refuse what would change the meaning; keys in the token (jwk, jku, x5c...) are not read."""
    if header.get("alg") != "RS256":  # RFC 8725 §3.1: none, HS256 keyed with the public key, ...
        raise UnsupportedToken(f"alg is {quote(header.get('alg'))}, not RS256", header=header)
    if "crit" in header:  # RFC 7515 §4.1.11: understood, or refused
        raise UnsupportedToken("the header has crit, an extension", header=header)
    if header.get("b64", True) is not True:  # RFC 7797 §3: false changes the signing input
        raise UnsupportedToken(f"b64 is {quote(header['b64'])}, not true", header=header)
    for name in ("kid", "typ"):
        if not isinstance(header.get(name, ""), str):
            raise MalformedToken(f"{name} is {quote(header[name])}, not a string", header=header)


# ---- verifying: the claims ----
def decode(
    token: str,
    jwks: Object,
    *,
    issuer: str | None = None,
    audience: str | None = None,
    now: float | None = None,
    leeway: float = 0,
) -> Object:
    """The claims of a token that is valid now and for us (RFC 7519 §7.2), or InvalidToken.

    `iss` must equal `issuer` if that is given; `aud`, if there is one, must hold `audience`.
    `now` (the clock, unless given) and `leeway` are seconds.
    """
    header, payload = verify(token, jwks)
    if header.get("typ", "JWT").lower().removeprefix("application/") not in TYPES:
        raise UnsupportedToken(f"typ is {quote(header['typ'])}, another kind", header=header)
    claims = parse_object(payload)
    _check_types(claims)
    _check_dates(claims, time.time() if now is None else now, leeway)
    if issuer is not None and claims.get("iss") != issuer:
        raise WrongIssuer(f"iss is {quote(claims.get('iss'))}, not {issuer!r}", claims=claims)
    audiences = claims.get("aud", [])  # RFC 7519 §4.1.3: not named in it, we must refuse it
    named = audience in ([audiences] if isinstance(audiences, str) else audiences)
    if not named and ("aud" in claims or audience is not None):
        raise WrongAudience(f"aud is {quote(audiences)}, without {audience!r}", claims=claims)
    return claims


def _check_dates(claims: Object, now: float, leeway: float) -> None:
    if "exp" not in claims:
        raise InvalidClaim("there is no exp: the token would be valid for ever", claims=claims)
    # Written so that a clock or leeway that is not a number refuses, too.
    if not now - leeway < claims["exp"]:  # RFC 7519 §4.1.4: "on or after" is too late
        raise ExpiredToken(f"exp is {when(claims['exp'], now)}", claims=claims)
    for name in ("nbf", "iat"):
        if name in claims and not claims[name] <= now + leeway:
            raise ImmatureToken(f"{name} is {when(claims[name], now)}", claims=claims)


def when(seconds: float, now: float) -> str:
    """A date and how far away it is: 2026-09-21 14:13:20 UTC (in 59 min)."""
    try:
        date = f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{quote(seconds)}, beyond the calendar"
    distance, unit = abs(seconds - now), (1, "s")
    for larger in ((60, "min"), (3600, "h"), (86400, "d")):
        if distance >= 2 * larger[0]:
            unit = larger
    amount = f"{distance // unit[0]:.0f} {unit[1]}"
    return f"{date} (in {amount})" if seconds > now else f"{date} ({amount} ago)"


# ---- explaining ----
RED, MAGENTA, CYAN, BOLD = "31", "35", "36", "1"  # ECMA-48 §8.3.117
Rows = list[tuple[str, str]]  # lines of a page, each with its colour


def explain(token: str, jwks: Object | None = None, *, colour: bool = False, **checks: Any) -> str:
    """A page about one token, for people: its parts, its signature opened, and the verdict.

    `checks` are the keyword arguments of `decode`. A hostile token cannot disturb a terminal.
    """
    if checks.get("now") is None:
        checks["now"] = time.time()
    jwks = {"keys": []} if jwks is None else jwks
    header, payload, signature = (*token[:MAX_TOKEN].split(".", 2), "", "")[:3]
    rows = [(header, RED), ("." + payload, MAGENTA), ("." + signature, CYAN)]
    rows += [("", ""), ("HEADER", RED), *_members(header, HEADER, checks["now"])]
    claims = {name: says for name, (_, says) in REGISTERED.items()}
    rows += [("", ""), ("PAYLOAD", MAGENTA), *_members(payload, claims, checks["now"])]
    rows += [("", ""), ("SIGNATURE", CYAN), *_opened(token, jwks)]
    verdict, advice = "VALID", "Signed with a key of this JWKS, and every claim holds."
    if error := refusal(token, jwks, **checks):
        verdict, advice = f"REFUSED ({type(error).__name__}): {error}", error.fix
    rows += [("", ""), (verdict, BOLD), (advice, "")]
    line = "\x1b[{1}m{0}\x1b[0m" if colour else "{0}"
    return "\n".join(line.format(printable(text), tint) for text, tint in rows)


def refusal(token: str, jwks: Object, **checks: Any) -> InvalidToken | None:
    """The error that `decode` raises with these arguments; None if it accepts the token."""
    try:
        decode(token, jwks, **checks)
    except InvalidToken as error:
        return error
    return None


def printable(text: str) -> str:
    """Visible ASCII, all else escaped: nothing moves the cursor or looks like what it is not."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


def _members(segment: str, words: dict[str, str], now: float) -> Rows:
    try:
        members = parse_object(b64url_decode(segment))
    except MalformedToken as error:
        return [(f"  {error}", "")]
    rows = []
    for name, value in members.items():
        says = words.get(name, "")
        if says and name in ("exp", "nbf", "iat") and type(value) in KINDS[DATE]:
            says += " " + when(value, now)
        rows.append((f"  {name:4} {json.dumps(value):45}  {says}".rstrip(), ""))
    return rows


def _opened(token: str, jwks: Object) -> Rows:
    """The padded hash in the signature, part by part, beside the one that this token needs."""
    message = token.rpartition(".")[0].encode("utf-8", "replace")
    rows = [(f"  signing input: the {len(message)} characters before the last dot", "")]
    rows += [(f"  its SHA-256  {hashlib.sha256(message).hexdigest()}", "")]
    try:
        header, _, signature = take_apart(token)
        n, e = rsa_numbers(find_key(header, jwks))
    except InvalidToken:
        return rows  # the verdict says why
    opened, needed = open_signature(signature, n, e), padded_hash(message, n)
    rows += [(f"  opened: signature^{e} mod n, {len(opened)} octets", "")]
    parts = {"start": 2, "padding": len(needed) - 54, "end": 1, "DigestInfo": 19, "SHA-256": 32}
    for name, size in parts.items():
        digits, fits = opened[:size].hex(), opened[:size] == needed[:size]
        opened, needed = opened[size:], needed[size:]
        rows += [(f"  {name:11}  {digits[:64]}{'' if fits else '  <- differs'}", CYAN)]
        rows += [(" " * 15 + digits[at : at + 64], CYAN) for at in range(64, len(digits), 64)]
    return rows


# ---- the command ----
MAX_JWKS = 1024 * 1024  # a thousand keys with their certificates
PATIENCE = 10  # seconds without a byte, after which a server is given up
USAGE = """\
explain     show the token in words
decode      print its claims, if the signature and every claim holds
verify      print its payload, if the signature holds: dates and audience are not looked at
jwk         print the JWK of an RSA public key in PEM (needs the package cryptography)
thumbprint  print the RFC 7638 thumbprint of a JWK, or of every RSA key of a JWKS

exit status: 0 valid or done; 1 refused; 2 wrong usage or unreadable input
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; USAGE has its exit statuses."""
    from http.client import HTTPException  # slow to import, and only for a command

    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("jwt_minimal.py", description=USAGE, formatter_class=layout)
    add = parser.add_argument
    add("command", choices=("explain", "decode", "verify", "jwk", "thumbprint"))
    add("source", nargs="?", default="-", help="token, or file or URL of a key; else stdin")
    add("--jwks", metavar="SOURCE", help="file or URL of the issuer's keys")
    add("--issuer", help="what iss must be")
    add("--audience", help="what aud must hold")
    add("--leeway", type=int, default=0, help="seconds that clocks may differ")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_intermixed_args(arguments)  # the token before or after options
    try:
        page, status = run(options)
    except InvalidToken as error:
        print(printable(f"{type(error).__name__}: {error}. {error.fix}"), file=sys.stderr)
        return 1
    except (OSError, ValueError, HTTPException, ImportError) as error:
        print(printable(f"{options.command} could not read its input: {error}"), file=sys.stderr)
        return 2
    print(page)
    return status


def run(options: argparse.Namespace) -> tuple[str, int]:
    """What one command prints, and its exit status; InvalidToken, OSError, ValueError or
    ImportError if it fails.
    """
    if options.command == "jwk":
        return json.dumps(_pem_to_jwk(read(options.source)), indent=2), 0
    if options.command == "thumbprint":
        found = read_object(options.source)
        return "\n".join(map(thumbprint, rsa_keys(found) if "keys" in found else [found])), 0
    token = options.source if options.source != "-" else read("-").decode("ascii", "replace")
    token = token.strip()
    jwks = read_object(options.jwks) if options.jwks else {"keys": []}
    if options.command == "verify":
        return printable(verify(token, jwks)[1].decode("utf-8", "backslashreplace")), 0
    checks = {name: getattr(options, name) for name in ("issuer", "audience", "leeway")}
    if options.command == "decode":
        return json.dumps(decode(token, jwks, **checks), indent=2), 0
    checks["now"] = time.time()  # one clock reading, so that page and exit status agree
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    page = explain(token, jwks, colour=colour, **checks)
    return page, 1 if refusal(token, jwks, **checks) else 0


def _pem_to_jwk(pem: bytes) -> dict[str, str]:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not isinstance(key := load_pem_public_key(pem), RSAPublicKey):
        raise ValueError("not an RSA key")
    return public_jwk(key)


def read_object(source: str) -> Object:
    """The JSON object at `source`; OSError or ValueError."""
    try:
        return parse_object(read(source))
    except MalformedToken as error:  # a key set was refused, not a token
        raise ValueError(str(error)) from None


def read(source: str) -> bytes:
    """The bytes of an http(s) URL, a file, or standard input ("-"); OSError or ValueError."""
    if source.startswith(("http://", "https://")):
        from urllib import request  # slow to import, and only for a command

        # Named one by one, so that file:, ftp: and redirects to anywhere are absent.
        opener = request.OpenerDirector()
        for handler in ("Proxy", "HTTP", "HTTPS", "HTTPDefaultError"):
            opener.add_handler(getattr(request, handler + "Handler")())
        opener.add_handler(request.HTTPErrorProcessor())
        stream = opener.open(source, timeout=PATIENCE)
    else:
        stream = sys.stdin.buffer if source == "-" else open(source, "rb")  # noqa: SIM115
    with stream:
        raw: bytes = stream.read(MAX_JWKS + 1)
    if len(raw) > MAX_JWKS:
        raise ValueError(f"more than {MAX_JWKS} bytes")
    return raw


if __name__ == "__main__":
    sys.exit(main())
