"""The claims that an operator gives to an account: what its tokens say beyond who it is.

    changed(claims, ["role=editor", "groups:=[\\"a\\"]", "scope="])      the claims afterwards

    CLAIM=TEXT     a string          CLAIM:=JSON    any JSON value          CLAIM=    no such claim

Rules of this file:
- An account never has a claim that this server sets or that is a promise of the issuer, nor one
  whose name a reader could take for such a claim: Go's encoding/json matches members in any case.
- One reading of the JSON, or a refusal: duplicate members, NaN and lone surrogates are refused.
- What is stored is bounded, because every token of the account carries it in every request.

It leaves out: what a claim means. That is between the operator and the services.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from jwksd.store.names import Malformed, fold

# RFC 7519 §4.1, and what issuers state: RFC 8693 §4 (act, may_act, client_id), RFC 7800 (cnf),
# RFC 8417 (events, txn), OpenID Connect Core §2 and §3.3 (the rest).
RESERVED = frozenset(
    (
        *("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf", "act", "may_act", "azp"),
        *("client_id", "nonce", "acr", "amr", "auth_time", "sid", "at_hash", "c_hash"),
        *("events", "txn"),
    )
)
MAX_OCTETS = 2048  # of the JSON: with base64url and a signature a token stays below 4 KiB
MAX_CLAIMS = 32
MAX_DEPTH = 8  # objects and arrays within each other
MAX_NAME = 256  # characters of a claim's name: URLs are names, too


class BadClaim(ValueError):
    """The claim cannot be set; the sentence says why."""


def changed(claims: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The claims after these changes, each spelled as a user of the command line spells it.

    Raises:
        BadClaim: a change cannot be read, or the result is too large.
    """
    result = dict(claims)
    for change in changes:
        name, value = parse(change)
        if value is None:
            result.pop(name, None)
        else:
            result[name] = value
    require_small(result)
    return result


def parse(change: str) -> tuple[str, Any]:
    """`role=editor`, `level:=3` or `role=`: the name and the value, None for none.

    A URL may be a name: the first equals sign ends it, with the colon before that if there is one.

    Raises:
        BadClaim: it is none of these, or the claim is not an account's to have.
    """
    name, equals, text = change.partition("=")
    is_json = name.endswith(":")
    name = name[:-1] if is_json else name
    if not equals:
        raise BadClaim(f"{shown(change)} is no change: write CLAIM=TEXT, CLAIM:=JSON or CLAIM=")
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise BadClaim(f"a claim's name has 1 to {MAX_NAME} printable characters")
    if is_reserved(name):
        raise BadClaim(f"the claim {shown(name)} is the server's to set")
    if is_json:
        return name, parse_json(name, text)
    require_text(name, text)
    return name, text or None


def parse_json(name: str, text: str) -> Any:
    """A JSON value (RFC 8259), read in one way only.

    Raises:
        BadClaim: it is not JSON, or could be read in two ways.
    """
    if depth(text) > MAX_DEPTH:
        raise BadClaim(f"{shown(name)} must not be nested deeper than {MAX_DEPTH}")
    try:
        value = strict_json(text)
    except (ValueError, RecursionError) as error:
        reason = f": {error}" if isinstance(error, Malformed) else ""
        raise BadClaim(f"the value of {shown(name)} is not JSON{reason}") from None
    if value is None:
        raise BadClaim(f"null is no value: write {shown(name)}= to remove the claim")
    return value


def strict_json(text: str) -> Any:
    """A JSON value that any token can carry.

    Raises:
        ValueError, RecursionError: it is not JSON, is read in two ways, or cannot be written again.
    """
    value = json.loads(
        text, object_pairs_hook=unique_members, parse_constant=no_constant, parse_float=_finite
    )
    json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate
    return value


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of a JSON object; Malformed if a name occurs twice (RFC 8259 §4)."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("a member occurs twice")
    return members


def no_constant(_: str) -> NoReturn:
    """Malformed: the library reads NaN and Infinity, RFC 8259 §6 does not."""
    raise Malformed("NaN and Infinity are not JSON")


def is_reserved(name: str) -> bool:
    """Whether an account must not have this claim, in whatever case it is spelled."""
    if name.isascii() and name.islower():  # most names are, and each login asks about each claim
        return name in RESERVED
    # Upper case first: only there a dotless i and an i are equal (UAX #44).
    return fold(name.upper()) in RESERVED


def depth(text: str) -> int:
    """How deep brackets are nested in a JSON text; those within strings count, too."""
    deepest = level = 0
    for char in text:
        level += (char in "[{") - (char in "]}")
        deepest = max(deepest, level)
    return deepest


def require_text(name: str, text: str) -> None:
    """Refuse what is not Unicode text.

    Raises:
        BadClaim: it holds a lone surrogate, as an argument that is not UTF-8 does.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadClaim(f"the value of {shown(name)} is not UTF-8") from None


def require_small(claims: Mapping[str, Any]) -> None:
    """Refuse more than a token should carry.

    Raises:
        BadClaim: there are too many claims, or they are too long.
    """
    if len(claims) > MAX_CLAIMS:
        raise BadClaim(f"an account has at most {MAX_CLAIMS} claims")
    if len(spelled(claims).encode()) > MAX_OCTETS:
        raise BadClaim(f"the claims of an account have at most {MAX_OCTETS} octets as JSON")


def spelled(claims: Mapping[str, Any]) -> str:
    """The claims as they are stored."""
    return json.dumps(claims, separators=(",", ":"), ensure_ascii=False)


def read(stored: str | None) -> dict[str, Any]:
    """The claims as they were stored; what another program made unreadable counts as none."""
    try:
        found = strict_json(stored) if isinstance(stored, str) else {}
    except (ValueError, RecursionError):
        return {}
    kept = found if isinstance(found, dict) else {}
    return {name: value for name, value in kept.items() if not is_reserved(name)}


def shown(text: str) -> str:
    """A text for a sentence: printable, and not long."""
    return ascii(text[:60])


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # 1e400 would be written as Infinity
        raise Malformed("a number is too large")
    return number
