"""What a request for a token asks: plain credentials, or a grant of OAuth 2 (RFC 6749).

    {"username", "password"} or HTTP Basic      the plain way: no grant_type, nothing of OAuth
    grant_type=password            §4.3         the user in the body; a public client, or none
    grant_type=client_credentials  §4.4         the account is the client: Basic, or in the body

Rules of this file:
- A request without `grant_type` is read as if this file did not exist.
- A grant that fails is answered as §5.2 says: 400, or 401 where a client authenticated with Basic.
- Scope and audience only narrow what the account and the configuration allow.
- A refusal names what is wrong, never what was sent.

It leaves out: authorization codes, refresh tokens and registered clients. A secret that nobody
issued is refused rather than ignored.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jwksd.api import inputs
from jwksd.store.names import Malformed, checked_name, checked_password

PASSWORD, CLIENT_CREDENTIALS = GRANTS = ("password", "client_credentials")
TARGETS = ("resource", "audience")  # RFC 8707 §2, RFC 8693 §2.1; may be repeated
SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+( [\x21\x23-\x5b\x5d-\x7e]+)*")  # RFC 6749 §3.3


class Unauthorized(Exception):
    """Unknown user or wrong password; the argument says whether the client used HTTP Basic."""


class GrantError(Exception):
    """A grant is refused (RFC 6749 §5.2): the error's word, a sentence, and whether with 401."""

    def __init__(self, word: str, description: str, *, challenge: bool = False) -> None:
        super().__init__(description)
        self.word = word
        self.challenge = challenge  # 401: the client authenticated with Basic


class TokenRequest(NamedTuple):
    """Who asks for a token, how, and for what."""

    name: str
    password: str
    basic: bool  # the client used HTTP Basic
    grant: str | None = None  # None: not OAuth
    scope: str | None = None
    targets: tuple[str, ...] = ()

    def wrong_credentials(self) -> Exception:
        """The refusal, the same for an unknown account and a wrong password."""
        if self.grant is None:
            return Unauthorized(self.basic)
        if self.grant == PASSWORD:
            return GrantError("invalid_grant", "unknown user or wrong password")
        return GrantError("invalid_client", "unknown client or wrong secret", challenge=self.basic)


def token_request(headers: Mapping[str, str], body: bytes) -> TokenRequest:
    """Read a request for a token.

    Raises:
        Malformed, UnsupportedMediaType: it cannot be read.
        GrantError: it asks for what is not granted here.
    """
    members = inputs.fields(headers, body, several=TARGETS)
    if "grant_type" in members:
        # RFC 6749 §3.2: a parameter without a value counts as left out.
        return grant_request(headers, {k: v for k, v in members.items() if v not in ("", None)})
    if any(isinstance(members.get(name), inputs.Repeated) for name in TARGETS):
        raise Malformed("a member occurs twice")
    name, password = inputs.name_and_password(headers, members)
    basic = inputs.uses_basic(headers)
    return TokenRequest(checked_name(name), checked_password(password), basic)


def grant_request(headers: Mapping[str, str], members: Mapping[str, object]) -> TokenRequest:
    """Read a request with a `grant_type` (RFC 6749 §4.3.2, §4.4.2); raises as `token_request`."""
    grant = inputs.text(members, "grant_type")
    if grant not in GRANTS:
        raise GrantError("unsupported_grant_type", f"the grants here are {' and '.join(GRANTS)}")
    client, secret, basic = client_authentication(headers, members)
    if grant == PASSWORD:
        name, password = inputs.text(members, "username"), inputs.text(members, "password")
        if secret and (client, secret) != (name, password):
            reason = "no secret was issued to this client: send none"
            raise GrantError("invalid_client", reason, challenge=basic)
    elif not client or not secret:
        reason = "authenticate the client by HTTP Basic, or by client_id and client_secret"
        raise GrantError("invalid_client", reason, challenge=basic)
    else:
        name, password = client, secret
    return TokenRequest(
        checked_name(name),
        checked_password(password),
        basic,
        grant,
        requested_scope(members),
        requested_targets(members),
    )


def client_authentication(
    headers: Mapping[str, str], members: Mapping[str, object]
) -> tuple[str, str, bool]:
    """The client's id and secret, "" for none, and whether they came by Basic (RFC 6749 §2.3.1)."""
    client = inputs.text(members, "client_id") if "client_id" in members else ""
    secret = inputs.text(members, "client_secret") if "client_secret" in members else ""
    given = inputs.basic(headers)
    if given is None:
        return client, secret, False
    # §2.3.1: both parts are form-encoded before they are joined. Generated passwords read the same
    # either way; some clients spell each of their hyphens %2D.
    basic_client, basic_secret = map(form_decoded, given)
    if secret or client not in ("", basic_client):
        raise Malformed("authenticate the client in one way only (RFC 6749 §2.3)")
    return basic_client, basic_secret, True


def form_decoded(text: str) -> str:
    """A text without its form encoding."""
    try:
        return urllib.parse.unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        raise Malformed("Basic credentials must be form-encoded UTF-8") from None


def requested_scope(members: Mapping[str, object]) -> str | None:
    """The scope asked for, None for none (RFC 6749 §3.3)."""
    if "scope" not in members:
        return None
    scope = inputs.text(members, "scope")
    if not SCOPE.fullmatch(scope):
        raise GrantError("invalid_scope", "scope must be names separated by single spaces")
    return scope


def requested_targets(members: Mapping[str, object]) -> tuple[str, ...]:
    """The resources and audiences asked for (RFC 8707 §2)."""
    found: list[str] = []
    for name in TARGETS:
        given = members.get(name, ())
        values: Sequence[object] = given if isinstance(given, (list, tuple)) else (given,)
        found += [inputs.text({name: value}, name) for value in values]
    return tuple(filter(None, found))  # RFC 6749 §3.2 again


def narrowed_audience(asked: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """The audiences of the token: those asked for, or all.

    Raises:
        GrantError: one of them is not in `--audience`.
    """
    if not set(asked) <= set(allowed):
        raise GrantError("invalid_target", "no token is issued for this resource or audience")
    return tuple(audience for audience in allowed if not asked or audience in asked)


def narrowed_scope(
    asked: str | None, claims: Mapping[str, Any]
) -> tuple[Mapping[str, Any], str | None]:
    """The account's claims with its scope narrowed to what was asked, and the scope granted.

    Raises:
        GrantError: the account has none of the scopes asked for.
    """
    stored = claims.get("scope")
    names = stored.split() if isinstance(stored, str) else stored
    has = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    wanted = None if asked is None else {*asked.split(" ")}  # a client may name thousands
    granted = [name for name in has if wanted is None or name in wanted]
    if wanted is not None and not granted:
        raise GrantError("invalid_scope", "the account has none of the scope asked for")
    if wanted is None:
        return claims, " ".join(has) or None
    spelled = " ".join(granted)
    return {**claims, "scope": spelled if isinstance(stored, str) else granted}, spelled
