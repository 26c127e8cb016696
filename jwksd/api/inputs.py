"""What a client sent, read strictly: JSON or form fields, and HTTP Basic.

    fields(headers, body)   {"username": "alice", ...}      RFC 8259, or the WHATWG form encoding
    text(fields, name)      one member that must be text
    basic(headers)          ("alice", "secret") or None     RFC 7617
    name_and_password(headers, members)                     whichever of the two was used

Rules of this file:
- One reading of every input, or a refusal: duplicate members, NaN, other encodings than UTF-8 and
  lone surrogates are refused, because two programs could read them differently.
- Bounded before parsed: the nesting is counted in the bytes, the size was bounded by the server.
- A refusal names what is wrong, never what was sent.

It leaves out: what the values mean. names.py says what may be a name, accounts.py who has it.
"""

from __future__ import annotations

import base64
import binascii
import json
import urllib.parse
from collections.abc import Mapping, Sequence

from jwksd.store.claims import no_constant, unique_members
from jwksd.store.names import Malformed

# Counted in the text, brackets inside strings too: a password of 17 braces has to come as a form.
MAX_NESTING = 16  # json.loads recurses: 1,000 levels exhaust the stack of older interpreters
MAX_FIELDS = 16  # of a form; we read three
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


class UnsupportedMediaType(ValueError):
    """The body is of a type or in a coding that is not read here."""


class Repeated(list[object]):
    """The values of a field that a form holds more than once."""


def fields(
    headers: Mapping[str, str], body: bytes, several: Sequence[str] = ()
) -> dict[str, object]:
    """The members of the JSON object, or the fields of the form, in the body; {} if it is empty.

    A form may repeat the fields `several`: their value is then a `Repeated`.

    Raises:
        Malformed: the body is not what its type says, or can be read in two ways.
        UnsupportedMediaType: it is neither JSON nor a form, or not in UTF-8.
    """
    if not body:
        return {}
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")
    media_type = _media_type(headers.get("content-type", ""))
    try:
        content = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("the body must be UTF-8") from error
    # `curl -d '{...}'` calls everything a form; no form of ours begins with a brace.
    if media_type == FORM and not content.lstrip(" \t\r\n").startswith("{"):
        return _form(content, several)
    if media_type in (JSON, FORM, ""):
        return _json_object(content)
    raise UnsupportedMediaType(f"send {JSON} or {FORM}")


def text(members: Mapping[str, object], name: str) -> str:
    """The member `name`, which must be there and be text.

    Raises:
        Malformed: it is missing, not a string, or not Unicode text.
    """
    value = members.get(name)
    if value is None:
        raise Malformed(f"{name} is missing")
    if type(value) is not str:
        raise Malformed(f"{name} must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" in JSON
        raise Malformed(f"{name} must not hold a lone surrogate") from error
    return value


def basic(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password of an `Authorization: Basic` field; None without one (RFC 7617 §2).

    Raises:
        Malformed: the credentials are not base64 of `user:password` in UTF-8.
    """
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(encoded.strip(" ").encode("ascii"), validate=True)
        user, colon, password = decoded.decode("utf-8").partition(":")
    except (binascii.Error, UnicodeError) as error:
        raise Malformed("Basic credentials must be base64 of user:password in UTF-8") from error
    if not colon:
        raise Malformed("Basic credentials must be base64 of user:password in UTF-8")
    return user, password


def uses_basic(headers: Mapping[str, str]) -> bool:
    """Whether the client knows HTTP Basic."""
    return headers.get("authorization", "")[:6].lower() == "basic "


def name_and_password(headers: Mapping[str, str], members: Mapping[str, object]) -> tuple[str, str]:
    """The credentials in the body, in HTTP Basic, or in both if they are the same.

    Raises:
        Malformed: they are missing, not text, or two different ones.
    """
    given = basic(headers)
    if given is not None and not {"username", "password"} & members.keys():
        return given
    found = text(members, "username"), text(members, "password")
    if given is not None and given != found:
        raise Malformed("body and Authorization name different credentials")
    return found


def flag(query: str, name: str) -> bool:
    """Whether the query says `name=true`; saying nothing is false.

    Raises:
        Malformed: it says something else, or says it twice.
    """
    said = [value for key, value in urllib.parse.parse_qsl(query, True) if key == name]
    if len(said) > 1 or not {"true", "false"}.issuperset(said):
        raise Malformed(f"{name} must be true or false, once")
    return said == ["true"]


def _media_type(content_type: str) -> str:
    media_type, *parameters = (part.strip(" \t") for part in content_type.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.lower() == "charset" and value.strip('"').lower() not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("send the body in UTF-8")
    return media_type.lower()


def _form(content: str, several: Sequence[str]) -> dict[str, object]:
    try:
        pairs = urllib.parse.parse_qsl(
            content,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as error:  # UnicodeDecodeError among them
        raise Malformed("the body is not a form in UTF-8") from error
    once: list[tuple[str, object]] = [pair for pair in pairs if pair[0] not in several]
    for name in several:
        values = Repeated(value for key, value in pairs if key == name)
        if values:
            once.append((name, values[0] if len(values) == 1 else values))
    return unique_members(once)


def _json_object(content: str) -> dict[str, object]:
    if content.count("[") + content.count("{") > MAX_NESTING:
        raise Malformed(f"the JSON must not hold more than {MAX_NESTING} objects and arrays")
    try:
        document = json.loads(content, object_pairs_hook=unique_members, parse_constant=no_constant)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of 5,000 digits
        raise Malformed("the body is not JSON") from error
    if not isinstance(document, dict):
        raise Malformed("the JSON must be an object")
    return document
