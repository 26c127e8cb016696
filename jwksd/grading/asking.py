"""One request to a graded server and its answer: bounded in time and octets, whatever comes.

    Asked --> a connection of its own, from an address of its own --> Answer
                   one deadline for the whole, 1 MiB at most

Rules of this file
  - The server is hostile: all that it sends is read with one deadline and one bound, and JSON
    that is nested deeper than DEEPEST does not count as JSON.
  - Nothing is judged here; OSError, HTTPException or ValueError say that no answer came.

Left out: connections that are kept, redirects, and anything that a browser adds.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import ipaddress
import itertools
import json
import random
import re
import socket
import ssl
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt_minimal

# Addresses of 127.0.0.0/8, each a fresh client for the limiter; another row of them in each run.
ADDRESSES = itertools.count(0x7F000002 + random.randrange(0xFF0000))  # noqa: S311 (no secret)
MOST = 1 << 20  # octets of an answer: a thousand keys with their certificates
DEEPEST = 20  # levels of JSON; ours have four
SHOWN = 160  # characters of an answer that a message quotes
QUIET = 0.2  # s without an octet after which the answer to HEAD has ended


class Answer(NamedTuple):
    """A response: what was asked, status, fields by lower-case name, body."""

    asked: str
    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None if it is not JSON, or nested too deep."""
        return parsed(self.body)

    def member(self, name: str) -> Any:
        """A member of the JSON object in the body; None if it has none of that name."""
        document = self.json()
        return document.get(name) if isinstance(document, dict) else None

    def token(self, names: Iterable[str]) -> str | None:
        """The token, in a member of one of these names, or as the whole body."""
        raw = self.body.decode("ascii", "replace").strip().strip('"')
        for found in (*(self.member(name) for name in names), raw):
            if isinstance(found, str) and re.fullmatch(r"[^.\s{]+\.[^.\s]+\.[^.\s]*", found):
                return found
        return None

    def __str__(self) -> str:
        """As a message quotes it."""
        kind = self.fields.get("content-type", "without Content-Type")
        body = self.body[: 4 * SHOWN].decode("utf-8", "replace")
        return f"{self.status} ({kind[:SHOWN]}) {' '.join(body.split())[:SHOWN]}".rstrip()


class Asked(NamedTuple):
    """A request, so that it can be repeated, and its answer."""

    method: str
    path: str
    fields: dict[str, str]
    body: bytes | None
    answer: Answer | None


# ---- one request and its answer ----


class Wire(io.RawIOBase):
    """What a socket delivers, until the deadline and up to a number of octets."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock, self.deadline, self.room = sock, deadline, MOST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)
        count = self.sock.recv_into(buffer)
        self.room -= count
        if self.room < 0:
            raise OSError(f"more than {MOST} octets")
        return count


class Reader(io.BufferedReader):
    """A reader that stays open when http.client has finished, so that the rest can be read."""

    def close(self) -> None:
        pass

    def makefile(self, mode: str) -> Reader:
        """As http.client asks a socket for it."""
        return self


def exchange(url: str, request: Asked, address: str, patience: float) -> Answer:
    """The answer to one request, on a connection of its own; OSError or HTTPException."""
    deadline = time.monotonic() + patience
    parts = urlsplit(url)
    fields = {"Host": parts.netloc.rpartition("@")[2], "Accept": "*/*", "Connection": "close"}
    if request.body is not None or request.method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = str(len(request.body or b""))
    lines = [f"{request.method} {parts.path.rstrip('/')}{request.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in {**fields, **request.fields}.items()]
    with connect(url, address, deadline) as sock:
        with contextlib.suppress(ConnectionError):  # a server may answer early, and close
            sock.sendall("\r\n".join([*lines, "", ""]).encode() + (request.body or b""))
        reader = Reader(Wire(sock, deadline))
        response = http.client.HTTPResponse(reader, method=request.method)  # type: ignore[arg-type]
        try:
            response.begin()
            body = response.read() if request.method != "HEAD" else rest(reader)
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer("", response.status, found, body)
        finally:
            response.fp = None  # type: ignore[assignment]  # else its end would flush what is closed


def rest(reader: Reader) -> bytes:
    """What comes after the head of an answer to HEAD, which should be nothing."""
    if isinstance(reader.raw, Wire):
        reader.raw.deadline = min(reader.raw.deadline, time.monotonic() + QUIET)
    try:
        return reader.read(1)
    except OSError:
        return b""


def connect(url: str, address: str, deadline: float) -> socket.socket:
    """A connection to the server; on this machine, from that address."""
    parts, errors = urlsplit(url), [OSError("no address")]
    found = socket.getaddrinfo(parts.hostname, port_of(url), type=socket.SOCK_STREAM)
    for family, kind, protocol, _, place in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            if str(place[0]).startswith("127.") and many_addresses():
                sock.bind((address, 0))
            sock.connect(place)
            if parts.scheme != "https":
                return sock
            return ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        except OSError as error:
            sock.close()
            errors.append(error)
    raise errors[-1]


def many_addresses() -> bool:
    """Whether all of 127.0.0.0/8 is ours, as on Linux; macOS has one address."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.2", 0))
        except OSError:
            return False
    return True


def fresh_address() -> str:
    """A loopback address that the limiter has not seen yet."""
    return str(ipaddress.ip_address(next(ADDRESSES)))


def port_of(url: str) -> int:
    """The port of a URL, or that of its scheme."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def listens(url: str) -> bool:
    """Whether a connection is accepted, or at least not refused."""
    try:
        connect(url, fresh_address(), time.monotonic() + 1).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        pass
    return True


# ---- reading what came ----


def parsed(raw: bytes) -> Any:
    """The JSON value of a text; None if it is not JSON, or nested too deep."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    level = [document]
    for _ in range(DEEPEST):
        inner = [list(it.values()) if isinstance(it, dict) else it for it in level]
        level = [value for it in inner if isinstance(it, list) for value in it]
        if not level:
            return document
    return None


def seconds_of(text: str) -> int | None:
    """Retry-After: seconds, or a date (RFC 9110 §10.2.3); None if it is neither."""
    if text.isascii() and text.isdecimal():
        return int(text[:9])
    try:
        return max(0, round(parsedate_to_datetime(text).timestamp() - time.time()))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def directives(control: str) -> dict[str, str]:
    """The directives of Cache-Control, by lower-case name (RFC 9111 §5.2)."""
    pairs = (part.strip().partition("=") for part in control.split(","))
    return {name.lower(): value.strip('"') for name, _, value in pairs}


def numbers(jwk: dict[str, Any]) -> tuple[int, int]:
    """(n, e), spelled in whatever base64: the spelling is for one check alone to judge."""
    raw = (base64.urlsafe_b64decode(jwk[name].rstrip("=") + "===") for name in ("n", "e"))
    n, e = (int.from_bytes(number, "big") for number in raw)
    return n, e


def signed_by(token: str, jwk: dict[str, Any]) -> bool:
    """Whether a key verifies a token, whatever its other members say."""
    message, _, signature = token.rpartition(".")
    try:
        n, e = numbers(jwk)
        usable = 2**512 < n < 2**jwt_minimal.MAX_MODULUS and 2 < e < jwt_minimal.MAX_EXPONENT
        raw = jwt_minimal.b64url_decode(signature)
        return usable and jwt_minimal.verify_rs256(message.encode(), raw, n, e)
    except ValueError:
        return False


def skeleton(answer: Answer, twin: Answer, name: str) -> tuple[int, set[str], Any]:
    """The parts of a refusal that could tell names apart, without those that always differ."""
    fields = set(answer.fields) & set(twin.fields) if answer is twin else set(answer.fields)
    document, other = answer.json(), twin.json()
    if isinstance(document, dict) and isinstance(other, dict):
        told = {key: str(value).replace(name, "") for key, value in document.items()}
        return answer.status, fields, {k: re.sub(r"\d", "", told[k]) for k in sorted(told)}
    text = answer.body.decode("utf-8", "replace").replace(name, "")
    return answer.status, fields, re.sub(r"\d", "", text)


def thumbprint(jwk: dict[str, Any]) -> str:
    """The RFC 7638 name of a key whose numbers are spelled as they should be."""
    try:
        spelled = {
            name: jwt_minimal.b64url_encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))
            for name, number in zip(("n", "e"), numbers(jwk))
        }
        return jwt_minimal.thumbprint({"kty": "RSA", **spelled})
    except ValueError:
        return "of a sound key"


def printable(text: str) -> str:
    """Visible ASCII, and the sign of the sections that we cite; all else escaped."""
    return "§".join(jwt_minimal.printable(part) for part in text.split("§"))
