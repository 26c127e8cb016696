"""HTTP/1.1 as bytes: requests read strictly, responses written once. RFC 9110, RFC 9112.

    bytes --feed--> Parser --next_request--> Request        Response --wire--> bytes
                      |
                      +--raises--> Refused(status, description): answer it, then close

A server and a proxy that read the same bytes differently can be played against each other (request
smuggling). So whatever has two readings is refused here, never repaired: a bare CR or LF, a folded
line, a space before a colon, two lengths, a length beside a coding, `+7` as a number.

The octets stand in one buffer with two cursors. All before `_start` is used up; there the next
request begins or goes on. `_line` is ahead of it only in a head or a trailer, which are taken as a
whole: the lines between the two have passed, one by one.

    GET /a HTTP/1.1 .. GET /b HTTP/1.1 | Host: b | Accept: te
    ^-- used up ------ ^-- passed ---------------- ^-- still arriving ...
                       _start                      _line

Rules of this file:
- No I/O and no clock. The verdict depends on the bytes alone, never on how they were cut into
  pieces: a flaw is judged at the line that has it, in the order in which the lines came.
- Every loop and every buffer has a limit; each limit states its origin in `Limits`.
- Work is bounded like octets: `feed` and `allow` grant a number of steps, and when they are used up
  `next_request` returns None although more could be read (`unfinished`). The rest stays.
- No pattern can backtrack: each repeated class excludes the octet that must follow it.
- Nothing of a client's input is ever written into an answer.

It leaves out: HTTP/0.9 and HTTP/2, transfer codings other than chunked, trailers (read, checked,
dropped), percent-decoding, and everything about meaning: routes and methods are the caller's.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

PRODUCT = "jwks-server"  # without a version: it would only tell an attacker what to try

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # RFC 9110 §5.6.2
VALUE = rb"[\t !-~\x80-\xff]*"  # RFC 9110 §5.5: no control character but the tab
FIELD = TOKEN + rb"+:" + VALUE + rb"\r\n"
START = rb"(" + TOKEN + rb"{1,32}) ([!-~]+) HTTP/"

FIELD_LINE = re.compile(FIELD)
START_LINE = re.compile(START + rb"([0-9])\.[0-9]\r\n")
HEAD_BLOCK = re.compile(START + rb"1\.([0-9])\r\n((?:" + FIELD + rb")*)\r\n")
METHOD = re.compile(TOKEN + rb"{1,32}(?: |\Z)")  # also of a start line that is still arriving
LONG_METHOD = re.compile(TOKEN + rb"{33}")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})([ \t]*;" + VALUE + rb")?\r\n")  # RFC 9112 §7.1
LENGTH = re.compile(r"0|[1-9][0-9]*", re.ASCII)  # one spelling: no sign, no leading zero
HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
ABSOLUTE = re.compile(r"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)  # userinfo: §4.2.4
FIELD_NAME = re.compile(TOKEN.decode() + "+")
UNSAFE = re.compile("[\r\n\0]")
# One member of a list. A search, since a list of sixteen thousand members costs as little as one.
CLOSE = re.compile(r"(?:\A|,)[ \t]*close[ \t]*(?:,|\Z)", re.IGNORECASE)
KEEP_ALIVE = re.compile(r"(?:\A|,)[ \t]*keep-alive[ \t]*(?:,|\Z)", re.IGNORECASE)

# Fields that carry one value: two of them are two readings, so they are never joined.
SINGLETONS = {
    "host", "content-length", "transfer-encoding", "content-type", "content-encoding",
    "authorization", "origin", "expect", "user-agent", "referer", "from", "date",
    "if-modified-since", "if-unmodified-since", "if-range", "max-forwards", "proxy-authorization",
    "sec-fetch-site", "access-control-request-method",
}  # fmt: skip
# What the server itself writes: a second one from the application would be a second reading.
SERVER_FIELDS = {"connection", "content-length", "date", "server", "transfer-encoding"}
BODILESS = (204, 304)  # RFC 9110 §6.4.1 and §8.6: neither a body nor a length
# RFC 9111 §4.2.2: a 414 or 501 without it may be kept by a cache, and given to everybody.
NO_STORE = ("Cache-Control", "no-store")
STEPS = 64  # of work for what one read brings: 16 requests, or 0.14 ms of small chunks
SECRETS = {"authorization", "cookie", "proxy-authorization"}  # fields that are not kept
HEADS = 256  # known at a time: half a megabyte, and more kinds of clients than come in a minute
REQUEST_STEPS = 4  # a request costs about as much as four chunks: some 15 microseconds

WORDS = {
    400: "bad_request",
    408: "request_timeout",
    413: "content_too_large",
    414: "uri_too_long",
    417: "expectation_failed",
    431: "header_fields_too_large",
    501: "not_implemented",
    503: "overloaded",
    505: "http_version_not_supported",
}


IDLE, HEAD, BODY = range(3)  # how far a parser is with a request


class Limits(NamedTuple):
    """What one client may cost: sizes in octets, times in seconds."""

    line: int = 8_256  # request line: a target of 8 KiB (RFC 9112 §3 asks for 8,000), 64 around it
    head: int = 16_384  # as Node; Apache takes 8 KiB a line, browsers with many cookies send 8 KiB
    fields: int = 100  # as Apache and the standard library
    body: int = 8_192  # twenty times the largest login that makes sense
    chunk_line: int = 256  # size and extensions; nobody is known to send extensions
    extensions: int = 4_096  # all chunk extensions of a body together (CVE-2023-39326 had no bound)
    idle: float = 75.0  # between requests, as nginx
    idle_full: float = 5.0  # the same once nine tenths of the places are taken
    head_time: float = 10.0  # from a request's first octet to the end of its head
    head_full: float = 3.0  # the same once nine tenths of the places are taken
    body_time: float = 10.0  # from there to the end of the body: 8 KiB at 6.6 kbit/s
    body_full: float = 3.0  # the same once nine tenths of the places are taken
    send_time: float = 30.0  # for the client to take what was answered
    linger: float = 2.0  # after an early answer: reading on, so that the client can read it
    stop: float = 6.0  # for answers in flight when the server stops, of the 8 that it has


class Refused(Exception):
    """A request that is refused with this status; the connection ends with the answer."""

    def __init__(self, status: int, description: str) -> None:
        super().__init__(description)
        self.status = status
        self.description = description

    @property
    def response(self) -> Response:
        return error(self.status, WORDS[self.status], self.description, (NO_STORE,))


class Request:
    """One request, read completely. `keep_alive` and `version` are about the connection."""

    __slots__ = ("body", "client", "headers", "keep_alive", "method", "path", "query", "version")

    def __init__(
        self,
        method: str,
        path: str,
        query: str = "",
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        client: str = "127.0.0.1",
        keep_alive: bool = True,
        version: str = "1.1",
    ) -> None:
        self.method = method
        self.path = path  # as sent: not percent-decoded, so one spelling reaches one route
        self.query = query
        self.headers = {} if headers is None else headers  # lower-case name -> value, latin-1
        self.body = body
        self.client = client
        self.keep_alive = keep_alive
        self.version = version

    def of(self, client: str) -> Request:
        """A copy of this request, which has no body, for another client; both share the headers."""
        return Request(
            *(self.method, self.path, self.query, self.headers, b"", client),
            keep_alive=self.keep_alive,
            version=self.version,
        )


class Response:
    """One answer; not to be changed once made, since it remembers its own wire form.

    `ValueError` for what could split the answer in two: CR, LF or NUL in a field, a field that the
    server writes itself, or text that latin-1 cannot spell.
    """

    __slots__ = ("_front", "_last", "body", "headers", "status")

    def __init__(
        self, status: int, headers: Iterable[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        self.status = status
        self.headers = tuple(headers)
        self.body = b"" if status in BODILESS else body
        length = b"" if status in BODILESS else b"Content-Length: %d\r\n" % len(body)
        # Everything before the value of `Date`, the one thing that differs between two copies.
        self._front = b"".join((spelled(status, self.headers), length, b"Date: "))
        self._last = (b"", b"")  # a tail, and the octets with it: one tuple, so never two halves

    def wire(self, tail: bytes, head_only: bool = False) -> bytes:
        """The octets to send; `tail` is the value of `Date`, later fields, and the blank line."""
        if head_only:
            return self._front + tail
        last = self._last
        if last[0] is not tail:  # for a constant answer: once a second
            self._last = last = tail, b"".join((self._front, tail, self.body))
        return last[1]


@functools.lru_cache(maxsize=256)  # the answers of a server differ in their bodies; 100 kB at most
def spelled(status: int, fields: tuple[tuple[str, str], ...]) -> bytes:
    """Status line and fields, checked; `ValueError` as `Response` says."""
    for name, value in fields:
        if not FIELD_NAME.fullmatch(name) or name.lower() in SERVER_FIELDS:
            raise ValueError(f"not a response field to set: {name!r}")
        if UNSAFE.search(value):
            raise ValueError(f"CR, LF or NUL in the value of {name}")
    lines = [f"HTTP/1.1 {status} {phrase(status)}", f"Server: {PRODUCT}"]
    lines += [f"{name}: {value}" for name, value in fields]
    lines.append("X-Content-Type-Options: nosniff\r\n")
    return "\r\n".join(lines).encode("latin-1")  # UnicodeEncodeError is a ValueError


def phrase(status: int) -> str:
    """The standard reason phrase, or none: clients are to ignore it anyway (RFC 9112 §4)."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def json_response(status: int, document: Any, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """A compact JSON document; `document` is what `json.dumps` takes."""
    body = json.dumps(document, separators=(",", ":")).encode()
    return Response(status, [("Content-Type", "application/json"), *headers], body)


def error(
    status: int, word: str, description: str, headers: Iterable[tuple[str, str]] = ()
) -> Response:
    """A failure: a stable word for programs, a sentence for people that says what to do."""
    return json_response(status, {"error": word, "error_description": description}, headers)


Heads = dict[bytes, Request]  # requests without a body by their octets, as they came lately


class Parser:
    """The requests in one connection's bytes: `feed` bytes, then ask for `next_request`.

    A head that came before, here or in another parser with the same `heads`, is not read again.
    When `next_request` has returned None and the parser is not `unfinished`, what is buffered is
    one request that is still arriving, never larger than the limits allow. After it raised, the
    connection is of no further use. A request without a body may be the same object as the one
    before it: requests are read, never changed.
    """

    __slots__ = (
        "_blank_line", "_body", "_buffer", "_chunk", "_client", "_extensions", "_fields", "_heads",
        "_last_block", "_last_request", "_length", "_limits", "_line", "_request", "_start",
        "_steps", "_trailer", "expects_continue",
    )  # fmt: skip

    def __init__(self, limits: Limits, client: str, heads: Heads | None = None) -> None:
        self._limits = limits
        self._client = client
        self._heads = {} if heads is None else heads
        self._buffer = b""
        self._start = 0  # the two cursors: see the top of this file
        self._line = 0
        self._steps = STEPS  # of work that are left
        self._blank_line = False  # whether the one that is forgiven before a request has come
        self._fields = 0  # field lines examined so far
        self._request: Request | None = None  # whose head is complete and whose body is not
        self._length: int | None = 0  # of that body; None if it comes in chunks
        self._body = bytearray()
        self._chunk = 0  # octets of the current chunk still to come, with its CRLF
        self._extensions = 0  # octets of chunk extensions so far
        self._trailer = False  # whether the last chunk has come
        self._last_block = b""
        self._last_request: Request | None = None
        self.expects_continue = False  # the client waits for a 100 before it sends the body

    def feed(self, octets: bytes) -> None:
        """Append what arrived, and grant the steps for it."""
        self._steps = STEPS
        if self._buffer:
            self._line -= self._start
            self._buffer = self._buffer[self._start :] + octets
            self._start = 0
        else:
            self._buffer = octets

    def allow(self, steps: int = STEPS) -> None:
        """Grant so many more steps of work: a chunk is one, a request REQUEST_STEPS."""
        self._steps = steps

    @property
    def unfinished(self) -> bool:
        """Whether the steps are used up and there is more to read."""
        return self._steps <= 0 and self._start < len(self._buffer)

    @property
    def head(self) -> Request | None:
        """The request whose head is complete and whose body is still arriving."""
        return self._request

    @property
    def stage(self) -> int:
        """What has begun and is not complete: a HEAD, a BODY, or nothing (IDLE)."""
        if self._request is not None:
            return BODY
        return HEAD if self._start < len(self._buffer) else IDLE

    @property
    def wants_no_body(self) -> bool:
        """Whether an answer to what has begun has only a head: RFC 9110 §9.3.2, of refusals too."""
        if self._request is not None:
            return self._request.method == "HEAD"
        return self._buffer.startswith(b"HEAD ", self._start)

    def next_request(self) -> Request | None:
        """The next complete request; None until more octets come. Raises `Refused`."""
        if self._start == len(self._buffer):
            self._buffer = b""  # a connection at rest keeps nothing, least of all passwords
            self._start = self._line = 0
            return None
        if self._steps <= 0:
            return None
        request = self._request
        if request is None:
            # A client on a kept connection sends the same octets again and again: same verdict.
            if self._last_block and self._buffer.startswith(self._last_block, self._start):
                self._advance(self._start + len(self._last_block))
                self._blank_line = False
                self._steps -= REQUEST_STEPS
                return self._last_request
            request = self._find_head() or self._read_head()
            if request is None:
                return None
        length = self._length
        complete = self._read_chunked() if length is None else self._read_sized(length)
        return self._take_request(request) if complete else None

    def _take_request(self, request: Request) -> Request:
        self._steps -= REQUEST_STEPS
        if self._body:
            request.body = bytes(self._body)
            self._body = bytearray()
        self._request = None
        self.expects_continue = False
        return request

    def _advance(self, position: int) -> None:
        self._start = self._line = position
        self._fields = 0

    # --- the head

    def _find_head(self) -> Request | None:
        """The request if another connection sent the same octets lately: same verdict."""
        end = self._buffer.find(b"\r\n\r\n", self._start) + 4
        block = self._buffer[self._start : end]
        known = self._heads.get(block)
        if known is None:
            return None
        request = known if known.client == self._client else known.of(self._client)
        self._last_block, self._last_request = block, request
        self._length, self._blank_line = 0, False
        self._advance(end)
        return request

    def _read_head(self) -> Request | None:
        """The request whose head is complete; its body may be still to come."""
        if not self._skip_blank_line():
            return None
        match = self._match_head() if self._line == self._start else None
        if match is None:
            if not (self._examine_start() and self._examine_fields()):
                return None
            match = HEAD_BLOCK.fullmatch(self._buffer, self._start, self._line)
        if match is None:  # both readings have one grammar
            raise AssertionError("a head that both passes and fails")
        return self._accept_head(match)

    def _skip_blank_line(self) -> bool:
        # RFC 9112 §2.2: one CRLF before a request is forgiven; old clients end a body with it.
        if not self._blank_line and self._buffer.startswith(b"\r", self._start):
            if self._buffer.startswith(b"\r\n", self._start):
                self._blank_line = True
                self._advance(self._start + 2)
            elif len(self._buffer) == self._start + 1:
                return False
        return True

    def _match_head(self) -> re.Match[bytes] | None:
        """The whole head at once, as it nearly always comes; None to look at it line by line."""
        limits = self._limits
        end = self._buffer.find(b"\r\n\r\n", self._start) + 4
        if end < 4 or end - self._start > limits.head:
            return None
        match = HEAD_BLOCK.fullmatch(self._buffer, self._start, end)
        if match is None or match.start(4) - self._start > limits.line:
            return None
        return match if match[4].count(b"\n") <= limits.fields else None

    def _examine_start(self) -> bool:
        """Judge the request line, or its beginning; False until it is complete."""
        if self._line > self._start:
            return True
        end = self._buffer.find(b"\n", self._start) + 1
        line = self._buffer[self._start : end or len(self._buffer)]
        if not line:
            return False
        if LONG_METHOD.match(line):  # RFC 9112 §3
            raise Refused(501, "No method here is longer than 32 letters.")
        if not METHOD.match(line):
            raise Refused(400, "This is not an HTTP/1.1 request (is it TLS on a plain port?).")
        if len(line) > self._limits.line:
            raise Refused(414, "Send a shorter request target.")
        if not end:
            return False
        match = START_LINE.fullmatch(line)
        if match is None:
            raise Refused(400, "Send a request line of the form: METHOD target HTTP/1.1")
        if match[3] != b"1":
            raise Refused(505, "Speak HTTP/1.1.")
        self._line = end
        return True

    def _examine_fields(self) -> bool:
        """Judge every line up to the blank one; False until that has come."""
        while True:
            end = self._buffer.find(b"\n", self._line) + 1
            if (end or len(self._buffer)) - self._start > self._limits.head:
                raise Refused(431, "Send fewer or shorter header fields.")
            if not end:
                return False
            line = self._buffer[self._line : end]
            self._line = end
            if line == b"\r\n":
                return True
            if not FIELD_LINE.fullmatch(line):
                raise Refused(400, "Send header fields of the form: Name: value, ended by CRLF.")
            self._fields += 1
            if self._fields > self._limits.fields:
                raise Refused(431, f"Send at most {self._limits.fields} header fields.")

    def _accept_head(self, match: re.Match[bytes]) -> Request:
        request, length = read_head(match, self._client, self._limits)
        self._request, self._length = request, length
        self._blank_line = self._trailer = False
        self._chunk = self._extensions = 0
        self._advance(match.end())
        waits = self._start == len(self._buffer)  # otherwise the body is under way
        self.expects_continue = waits and length != 0 and "expect" in request.headers
        self._remember(match[0], request)
        return request

    def _remember(self, block: bytes, request: Request) -> None:
        # At most 1 KiB each, and never credentials: they are not kept longer than needed.
        if self._length == 0 and len(block) <= 1024 and not SECRETS & request.headers.keys():
            self._last_block, self._last_request = block, request
            if len(self._heads) >= HEADS:
                self._heads.clear()
            self._heads[block] = request
        else:
            self._last_block, self._last_request = b"", None

    # --- the body

    def _read_sized(self, length: int) -> bool:
        part = self._buffer[self._start : self._start + length - len(self._body)]
        self._body += part
        self._advance(self._start + len(part))
        return len(self._body) == length

    def _read_chunked(self) -> bool:
        """RFC 9112 §7.1: decode what is there; True at the end of the trailer section."""
        while not self._trailer:
            if self._steps <= 0 or not (self._read_chunk_data() and self._read_chunk_line()):
                return False
            self._steps -= 1
        if not self._examine_fields():
            return False
        self._advance(self._line)  # RFC 9110 §6.5.1: trailers that nobody understands are dropped
        return True

    def _read_chunk_line(self) -> bool:
        end = self._buffer.find(b"\n", self._start) + 1
        line = self._buffer[self._start : end or len(self._buffer)]
        if len(line) > self._limits.chunk_line:
            raise Refused(400, "Send chunk sizes without long extensions.")
        if not end:
            return False
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Refused(400, "Send each chunk as: hexadecimal size CRLF data CRLF.")
        self._advance(end)
        self._extensions += len(match[2] or b"")
        size = int(match[1], 16)
        if len(self._body) + size > self._limits.body or self._extensions > self._limits.extensions:
            raise too_large(self._limits)
        self._chunk = size + 2 if size else 0
        self._trailer = size == 0
        return True

    def _read_chunk_data(self) -> bool:
        """The rest of a chunk and of the CRLF behind it; True if nothing is missing."""
        if not self._chunk:
            return True
        part = self._buffer[self._start : self._start + self._chunk]
        data = part[: max(0, self._chunk - 2)]
        ending = b"\r\n"[-self._chunk :] if self._chunk < 2 else b"\r\n"
        if not ending.startswith(part[len(data) :]):
            raise Refused(400, "End each chunk with CRLF.")
        self._body += data
        self._chunk -= len(part)
        self._advance(self._start + len(part))
        return self._chunk == 0


def read_head(match: re.Match[bytes], client: str, limits: Limits) -> tuple[Request, int | None]:
    """A well-formed head as a request and the length of its body, None for a chunked one.

    Raises `Refused` where the head means nothing, or two things.
    """
    method = match[1].decode("ascii")
    version = "1.0" if match[3] == b"0" else "1.1"  # RFC 9110 §2.5: 1.2 would be read as 1.1
    headers = read_fields(match[4].decode("latin-1"))
    check_host(headers, version)
    path, query = read_target(method, match[2].decode("ascii"), headers)
    length = body_length(headers, version, limits)
    check_expect(headers, version)
    keep_alive = keeps_alive(headers, version)
    return Request(method, path, query, headers, b"", client, keep_alive, version), length


def read_fields(text: str) -> dict[str, str]:
    """Field lines as a mapping; RFC 9110 §5.3: repeated list fields are one field."""
    headers: dict[str, str] = {}
    for line in text.split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in headers:
            if name in SINGLETONS:
                raise Refused(400, f"Send {name} once.")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def read_target(method: str, target: str, headers: dict[str, str]) -> tuple[str, str]:
    """RFC 9112 §3.2: path and query; an absolute target's authority overrides `Host`."""
    if method == "CONNECT":
        raise Refused(501, "This server is not a proxy.")
    if not target.startswith("/") and not (target == "*" and method == "OPTIONS"):
        match = ABSOLUTE.fullmatch(target)
        if match is None or not HOST.fullmatch(match[1]):
            raise Refused(400, "Send a request target that begins with a slash.")
        headers["host"] = match[1]
        target = match[2] or "/"
        if target.startswith("?"):
            target = "/" + target
    if "#" in target:
        raise Refused(400, "A fragment is the client's: send the target without it.")
    path, _, query = target.partition("?")
    return path, query


def check_host(headers: dict[str, str], version: str) -> None:
    """RFC 9112 §3.2: HTTP/1.1 without `Host`, or with one that is none, is refused."""
    host = headers.get("host")
    if host is None:
        if version != "1.0":
            raise Refused(400, "Send a Host header field.")
    elif not HOST.fullmatch(host):
        raise Refused(400, "Send a Host header field of the form: name or name:port")


def body_length(headers: dict[str, str], version: str, limits: Limits) -> int | None:
    """RFC 9112 §6.3: the length, or None for a chunked body. Anything doubtful is refused."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None:
            raise Refused(400, "Send Content-Length or Transfer-Encoding, not both.")
        if version == "1.0":
            raise Refused(400, "HTTP/1.0 knows no Transfer-Encoding.")
        if coding.lower() != "chunked":
            raise Refused(501, "The only transfer coding here is: chunked")
        return None
    if length is None:
        return 0
    if not LENGTH.fullmatch(length):
        raise Refused(400, "Send Content-Length as a plain decimal number.")
    if len(length) > 9 or int(length) > limits.body:  # 9: so that int() reads no thousand digits
        raise too_large(limits)
    return int(length)


def check_expect(headers: dict[str, str], version: str) -> None:
    """RFC 9110 §10.1.1: one expectation is known; HTTP/1.0 has none."""
    if version == "1.0":
        headers.pop("expect", None)
    elif headers.get("expect", "100-continue").lower() != "100-continue":
        raise Refused(417, "The only expectation here is: 100-continue")


def keeps_alive(headers: dict[str, str], version: str) -> bool:
    """RFC 9112 §9.3: HTTP/1.1 goes on unless it says close, HTTP/1.0 only if it asks to."""
    if "connection" not in headers:
        return version != "1.0"
    options = headers["connection"]
    if CLOSE.search(options):
        return False
    return version != "1.0" or KEEP_ALIVE.search(options) is not None


def too_large(limits: Limits) -> Refused:
    return Refused(413, f"Send a body of at most {limits.body} octets.")
