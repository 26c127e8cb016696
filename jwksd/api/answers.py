"""What the App answers: the refusals as a table, and the documents it publishes.

Rules of this file:
- Every failure is one row of `FAILURES`: its status, a stable word for programs, and a sentence for
  people that says what to do. Nothing of the input is repeated.
- An answer that is always the same is made once; the loop then keeps its bytes.
- The request's header and the clock alone decide between 304 and the document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Callable, NamedTuple

import jwksd
from jwksd import httpd
from jwksd.api import inputs, limits, oauth
from jwksd.api.pages import ANY_ORIGIN, CrossSite
from jwksd.httpd import Response, json_response
from jwksd.store import accounts, keystore, names
from jwksd.store.database import Unavailable

MAX_AGE = keystore.JWKS_MAX_AGE  # s that a client may keep the JWKS
NO_STORE = (("Cache-Control", "no-store"),)  # RFC 6749 §5.1, for answers that hold a secret
NO_CACHE = (("Pragma", "no-cache"),)  # the same section, for caches of HTTP/1.0
# Public documents are read by pages anywhere, which may then ask with If-None-Match.
PUBLIC = (*ANY_ORIGIN, ("Access-Control-Expose-Headers", "ETag"))
RETRY_SOON = (("Retry-After", "1"),)  # s: a full queue empties and a lock is freed in that time
BASIC_CHALLENGE = 'Basic realm="jwks", charset="UTF-8"'  # RFC 7617 §2
PAGE = {  # path -> file in web/, media type
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/readers.js": ("readers.js", "text/javascript; charset=utf-8"),
    "/inspector.js": ("inspector.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/favicon.ico": ("favicon.svg", "image/svg+xml"),  # browsers ask for this name unasked
}
# Content Security Policy Level 3: the page shows hostile tokens, so only its own script runs,
# nothing is fetched from elsewhere or sent there, and no other page frames it.
PAGE_FIELDS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),  # ask each time: after an update, page and script fit together
)


# -- what went wrong


class NotFound(Exception):
    """There is nothing at this path."""


class Forbidden(Exception):
    """This client may not see what is at this path."""


class NotReady(Exception):
    """No token could be issued now."""


class RegistrationClosed(Exception):
    """Accounts are made by the operator alone."""


class MethodNotAllowed(Exception):
    """The path exists, the method does not; the argument is the Allow field."""


def refusal(
    status: int, word: str, description: str, headers: tuple[tuple[str, str], ...] = ()
) -> Response:
    """A failure as JSON. No cache keeps it, also where one would by default (RFC 9111 §4.2.2)."""
    return httpd.error(status, word, description, (*headers, *NO_STORE))


def refuse_unauthorized(failure: BaseException) -> Response:
    """401, the same for an unknown user and a wrong password (RFC 9110 §15.5.2)."""
    # Basic, offered to a client that did not use it, would make browsers open a dialog.
    challenge = BASIC_CHALLENGE if failure.args[0] else 'Body realm="jwks"'
    return refusal(
        401,
        "invalid_credentials",
        "Unknown user or wrong password.",
        (("WWW-Authenticate", challenge),),
    )


def refuse_grant(failure: BaseException) -> Response:
    """The errors of RFC 6749 §5.2: 400, or 401 to a client that authenticated with Basic."""
    word = getattr(failure, "word", "invalid_request")
    if not getattr(failure, "challenge", False):
        return refusal(400, word, sentence(failure))
    fields = (("WWW-Authenticate", BASIC_CHALLENGE),)
    return refusal(401, word, sentence(failure), fields)


def refuse_method(failure: BaseException) -> Response:
    """405 with the methods that exist (RFC 9110 §15.5.6)."""
    allowed = failure.args[0]
    return refusal(405, "method_not_allowed", f"Use {allowed}.", (("Allow", allowed),))


def refuse_malformed(failure: BaseException) -> Response:
    """400; the sentence is one of ours and repeats nothing of the input."""
    return refusal(400, "invalid_request", sentence(failure))


def refuse_media_type(failure: BaseException) -> Response:
    """415 with what is read instead (RFC 9110 §15.5.16)."""
    accepted = (("Accept-Post", f"{inputs.JSON}, {inputs.FORM}"),)
    return refusal(415, "unsupported_media_type", sentence(failure), accepted)


def refuse_overloaded(failure: BaseException) -> Response:
    """503, and when there will be room (RFC 9110 §10.2.3)."""
    seconds = failure.retry_after if isinstance(failure, httpd.Overloaded) else 1
    return refusal(
        503,
        "overloaded",
        f"The server is busy; try again in {seconds} s.",
        (("Retry-After", str(seconds)),),
    )


def sentence(failure: BaseException) -> str:
    """The text of a failure with a capital and a full stop."""
    text = str(failure)
    return f"{text[:1].upper()}{text[1:]}."


def constant(
    status: int, word: str, description: str, headers: tuple[tuple[str, str], ...] = ()
) -> Callable[[BaseException], Response]:
    """A refusal that is always the same, made once."""
    response = refusal(status, word, description, headers)
    return lambda failure: response


FAILURES: dict[type[BaseException], Callable[[BaseException], Response]] = {
    NotFound: constant(404, "not_found", "There is nothing at this path."),
    MethodNotAllowed: refuse_method,
    Forbidden: constant(
        403,
        "forbidden",
        "Only from addresses named in --metrics-from, in a URL with an address, localhost or the "
        "name of the issuer.",
    ),
    CrossSite: constant(
        403,
        "cross_site",
        "A page of another site sent this request: its origin is not that of --issuer, nor one of "
        "--allow-origin.",
    ),
    NotReady: constant(503, "not_ready", "No token can be issued now.", RETRY_SOON),
    RegistrationClosed: constant(
        403, "registration_closed", "Registration is closed; ask the operator for an account."
    ),
    limits.Limited: lambda failure: failure.args[0],
    names.Malformed: refuse_malformed,
    inputs.UnsupportedMediaType: refuse_media_type,
    accounts.NameTaken: constant(409, "already_registered", "The name or e-mail address is taken."),
    httpd.Overloaded: refuse_overloaded,
    accounts.Busy: constant(503, "busy", "There is no memory to hash with; try again.", RETRY_SOON),
    oauth.Unauthorized: refuse_unauthorized,
    oauth.GrantError: refuse_grant,
    keystore.NoSigningKey: constant(404, "no_key", "No usable key exists."),
    Unavailable: constant(
        503, "database_unavailable", "The database cannot be used now; try again.", RETRY_SOON
    ),
}
UNEXPECTED = refusal(503, "internal_error", "Something failed here; try again.", RETRY_SOON)


# -- tokens, keys, metadata


def token_response(
    token: str, expires_in: int, *, grant: str | None = None, scope: str | None = None
) -> Response:
    """The answer of /auth; for a grant with what RFC 6749 §5.1 asks for besides."""
    document: dict[str, object] = {
        "token": token,
        "token_type": "Bearer",
        "expires_in": expires_in,
    }
    if grant is not None:
        document = {"access_token": token, **document}
    if scope is not None:
        document["scope"] = scope
    return json_response(200, document, NO_STORE if grant is None else (*NO_STORE, *NO_CACHE))


class PublishedKeys(NamedTuple):
    """The JWKS as it is answered from `since` until `until`."""

    key_set: keystore.KeySet
    etag: str
    response: Response
    not_modified: Response
    since: float
    until: float


def publish(key_set: keystore.KeySet, now: float) -> PublishedKeys:
    """The answers for this set of keys; their max-age never reaches past its next change."""
    left = int(max(0, key_set.until - now)) if key_set.keys else 0
    document = json_response(200, key_set.document())
    etag = f'"{hashlib.sha256(document.body).hexdigest()[:32]}"'
    shared = (("ETag", etag), cached(min(MAX_AGE, left)), *PUBLIC)
    return PublishedKeys(
        key_set,
        etag,
        Response(200, (*document.headers, *shared), document.body),
        Response(304, shared),
        since=now,
        # max-age counts down in whole seconds once the next change is near.
        until=key_set.until - MAX_AGE if left > MAX_AGE else now + 1,
    )


class PageFile(NamedTuple):
    """A file of the inspector page as it is answered."""

    etag: str
    response: Response
    not_modified: Response


def inspector_page() -> dict[str, PageFile]:
    """The inspector page by path, read once; a file that is missing is left out."""
    files = {}
    for path, (name, media_type) in PAGE.items():
        try:
            body = jwksd.resource(f"web/{name}")
        except OSError:  # server.py copied without web/ still serves tokens
            continue
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        fields = (("ETag", etag), *PAGE_FIELDS)
        response = Response(200, (("Content-Type", media_type), *fields), body)
        files[path] = PageFile(etag, response, Response(304, fields))
    return files


def with_fields(fields: tuple[tuple[str, str], ...], response: Response) -> Response:
    """A copy of the response with more fields."""
    return Response(response.status, (*response.headers, *fields), response.body)


def cached(seconds: int) -> tuple[str, str]:
    """The field that lets anybody keep an answer (RFC 9111 §5.2.2)."""
    return "Cache-Control", f"public, max-age={seconds}"


def conditional(known: PublishedKeys | PageFile | None, headers: Mapping[str, str]) -> Response:
    """The document, 304 to a client that has it (RFC 9110 §13.2.2), NotFound if there is none."""
    if known is None:
        raise NotFound
    if_none_match = headers.get("if-none-match")
    if if_none_match is not None and etag_matches(if_none_match, known.etag):
        return known.not_modified
    return known.response


def etag_matches(field: str, etag: str) -> bool:
    """If-None-Match (RFC 9110 §13.1.2): weak comparison against a list, or `*`.

    A search, not a split: a list of sixteen thousand members costs as little as one.
    """
    if field == etag:
        return True
    if etag not in field:
        return field.strip(" \t") == "*"
    member = rf"(?:\A|,)[ \t]*(?:W/)?{re.escape(etag)}[ \t]*(?:,|\Z)"
    return re.search(member, field) is not None


def places(path: str, base: str) -> list[str]:
    """Where a route is served for an issuer whose URL has the path `base`.

    Its metadata stands below that path, and where RFC 8414 §3.1 looks: there the path comes last.
    """
    if not base:
        return [path]
    well_known = path.startswith("/.well-known/") and path != "/.well-known/jwks.json"
    return [path, base + path, *([path + base] if well_known else [])]


def server_metadata(issuer: str) -> dict[str, object]:
    """RFC 8414 §2, with what OpenID Connect Discovery §3 requires besides."""
    base = issuer.rstrip("/")
    return {
        "issuer": issuer,
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "token_endpoint": f"{base}/auth",
        "token_endpoint_auth_methods_supported": [
            "none",
            "client_secret_basic",
            "client_secret_post",
        ],
        "grant_types_supported": [*oauth.GRANTS],
        # RFC 8414 §2 and every discovery client ask for the member; there is no authorization
        # endpoint that could answer one.
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }
