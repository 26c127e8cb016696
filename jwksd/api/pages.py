"""Which pages a browser may speak for: `Origin`, `Host`, and CORS.

    a request without Origin and Sec-Fetch-Site     not from a page in a browser: believed
    Origin is the issuer's, or in --allow-origin    believed
    Host is an address, localhost or the issuer's   believed if Origin agrees with it
    anything else                                   refused: a foreign page, or a rebound name

A page at evil.example whose name first leads to its own server and then to 127.0.0.1 is "same
origin" with us for the browser: Origin and Host agree. Only the name itself tells it apart, so a
Host that its owner could point elsewhere is not believed.

It leaves out: cookies and credentials of the browser. There are none here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from jwksd.httpd import Response

ANY_ORIGIN = (("Access-Control-Allow-Origin", "*"),)  # public documents, read by pages anywhere
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]{0,5})?")  # RFC 9110 §7.2
PREFLIGHT_SECONDS = "600"  # s: Chromium before 76 keeps it no longer


class CrossSite(Exception):
    """A browser sent it on behalf of a foreign page."""


class Pages:
    """The pages that are believed: of the issuer, and of the origins that the operator allows."""

    def __init__(self, issuer: str, allowed: Iterable[str]) -> None:
        self._issuer_origin = origin_of(issuer)
        self._issuer_host = (urlsplit(issuer).hostname or "").lower()
        self._allowed = frozenset(allowed)

    def require_own(self, headers: Mapping[str, str]) -> None:
        """Refuse a post that a browser sent for a foreign page.

        Raises:
            CrossSite: a foreign page sent it (Fetch Metadata; RFC 6454 §7).
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin == self._issuer_origin or origin in self._allowed:
            return
        if origin is None and site is None:
            return
        host = headers.get("host")
        agrees = origin is None or origin in (f"http://{host}", f"https://{host}")
        if site == "cross-site" or not agrees or not self.is_own_host(host):
            raise CrossSite

    def is_own_host(self, host: str | None) -> bool:
        """Whether a Host field has a name that no stranger can point elsewhere."""
        if host is None:  # HTTP/1.0, which no browser speaks
            return True
        match = HOST.fullmatch(host)
        name = match[1].lower() if match else ""
        return name in ("localhost", self._issuer_host) or is_address(name.strip("[]"))

    def shared_with(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """The fields that let the page of an allowed origin read an answer (Fetch §3.2)."""
        origin = headers.get("origin")
        if origin is None or origin not in self._allowed:
            return ()
        return (
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", "Retry-After, WWW-Authenticate"),
            ("Vary", "Origin"),
        )


def preflight(allowed: str, origin_fields: tuple[tuple[str, str], ...]) -> Response:
    """The answer to OPTIONS (RFC 9110 §9.3.7), and to a browser that asks first (Fetch §3.2.2)."""
    if not origin_fields:
        return Response(204, (("Allow", allowed),))
    # A wildcard does not stand for Authorization.
    names = "*" if origin_fields == ANY_ORIGIN else "Authorization, Content-Type"
    return Response(
        204,
        (
            ("Allow", allowed),
            *origin_fields,
            ("Access-Control-Allow-Methods", allowed),
            ("Access-Control-Allow-Headers", names),
            ("Access-Control-Max-Age", PREFLIGHT_SECONDS),
        ),
    )


def is_address(name: str) -> bool:
    """Whether a host is an IP address, which nobody can point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def origin_of(url: str) -> str:
    """Scheme and authority as a browser writes them (RFC 6454 §6.2), without the default port."""
    parts = urlsplit(url)
    authority = parts.netloc.lower()
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{authority.removesuffix(default) if default else authority}"
