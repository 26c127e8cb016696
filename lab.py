#!/usr/bin/env python3
"""Tries other people's verifiers: `python lab.py run -- COMMAND`.

    a new RSA key --> JWKS, good tokens, and tokens with one flaw each (flaws.py)
                            |                   |
                            v                   v
                  COMMAND {jwks} ...          TOKEN     once for each
                                    |
                        exit status 0 = it accepted, all else = it refused
                        a signal = it crashed, nothing in time = silence

    python lab.py run --url URL       the same of a service: 2xx = it accepted, 5xx = it crashed
    python lab.py serve --key FILE    the JWKS that such a service needs

Rules of this file
  - The verifier is a program, in any language: what it prints does not matter, its status does.
  - A crash is no refusal: the next token may do worse.
  - Good tokens are tried, too: what refuses everything has found nothing.
  - A verifier that says nothing in time has misjudged the token.

Left out: verifiers that are neither; `catalogue` prints the same tokens for your own tests.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable
from urllib.parse import urlsplit

from jwksd import __version__
from jwksd.flaws import (
    CUBE_N,
    GROUPS,
    HOUR,
    Numbers,
    Object,
    Signer,
    b64,
    laid_over,
    new_key,
    numbers_of,
)
from jwksd.grading.asking import Asked, exchange, fresh_address

ISSUER, AUDIENCE = "https://issuer.example", "lab"  # RFC 2606 §2: belongs to nobody
JWKS_PATH = "/.well-known/jwks.json"
BEARER = "Authorization: Bearer {token}"  # RFC 6750 §2.1
AT_ONCE = 4  # requests to a service
PATIENCE = 30  # s for one verdict; the start of a heavy runtime on a busy machine takes a few


def catalogue(key: Numbers, now: int) -> Object:
    """The JWKS and every token, as `python lab.py catalogue` prints them."""
    dates = {"iat": now, "nbf": now, "exp": now + HOUR}
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", **dates}
    by = Signer(key, {"alg": "RS256", "typ": "JWT", "kid": "lab"}, claims, "cube")
    cube = {"kid": "cube", "n": b64(CUBE_N), "e": b64(3)}
    encryption = laid_over(by.jwk(kid="encryption", use="enc"), {"alg": ...})
    return {
        "jwks": {"keys": [by.jwk(), by.jwk(**cube), encryption]},
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "now": now,
        "tokens": [row for group in GROUPS for row in group.rows(by)],
    }


def read_key(path: str) -> Numbers:
    """The RSA private key in a PEM file; OSError, ValueError or TypeError if there is none."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return numbers_of(load_pem_private_key(Path(path).read_bytes(), None))


# ---- trying a verifier ----


def verdict(command: Sequence[str], token: str, environ: dict[str, str]) -> str:
    """What a verifier says by its exit status: accept, refuse, crash, or silence."""
    process = subprocess.Popen(  # noqa: S603 (the command is the user's own)
        [*command, token],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # no pipe: a child that holds it would be waited for
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return "silence"
    finally:
        with contextlib.suppress(OSError):  # with all that it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if status < 0 or 128 < status < 160:  # a signal; as a shell says it, 128 and its number
        return "crash"
    return "refuse" if status else "accept"


def verdict_of_service(url: str, fields: Sequence[str], token: str) -> str:
    """What a service says by its status: accept, refuse, crash, or silence."""
    parts = urlsplit(url)
    named = (field.replace("{token}", token).partition(":") for field in fields)
    headers = {name.strip(): value.strip() for name, _, value in named}
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    request = Asked("GET", path, headers, None, None)
    try:
        origin = f"{parts.scheme}://{parts.netloc}"
        status = exchange(origin, request, fresh_address(), PATIENCE).status
    except ConnectionRefusedError:
        raise
    except (OSError, http.client.HTTPException, ValueError):
        return "silence"
    if status >= 500:
        return "crash"
    return "accept" if 200 <= status < 300 else "refuse"


def can_be_sent(token: str) -> bool:
    """Whether a header field can carry it, and unchanged."""
    return token.isascii() and token.isprintable() and token == token.strip() != ""


def try_service(url: str, fields: Sequence[str], made: Object) -> list[Object]:
    """The rows that a service judged otherwise; those that HTTP cannot carry are left out."""
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"{url} is no URL such as http://127.0.0.1:8080/protected")
    made["tokens"] = [row for row in made["tokens"] if can_be_sent(row["token"])]
    return misjudged(made["tokens"], lambda token: verdict_of_service(url, fields, token), AT_ONCE)


def misjudged(rows: Sequence[Object], ask: Callable[[str], str], at_once: int) -> list[Object]:
    """The rows whose verdict is not what is right."""
    with ThreadPoolExecutor(at_once) as pool:
        said = pool.map(lambda row: ask(row["token"]), rows)
        judged = [{**row, "verdict": word} for row, word in zip(rows, said)]
    return [row for row in judged if row["verdict"] != row["expect"]]


def try_verifier(command: Sequence[str], made: Object) -> list[Object]:
    """The rows of the catalogue that the verifier judged otherwise; each with its `verdict`.

    The command finds the JWKS by LAB_JWKS or {jwks}; likewise issuer and audience.
    """
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        jwks = Path(folder, "jwks.json")
        jwks.write_text(json.dumps(made["jwks"]), "utf-8")
        known = {"jwks": str(jwks), "issuer": made["issuer"], "audience": made["audience"]}
        for name, value in known.items():
            command = [word.replace(f"{{{name}}}", value) for word in command]
        environ = {**os.environ, **{f"LAB_{name.upper()}": known[name] for name in known}}
        count = os.cpu_count() or 1
        return misjudged(made["tokens"], lambda token: verdict(command, token, environ), count)


def table(rows: Sequence[Object]) -> str:
    """How many tokens each section decides, in Markdown: docs/lab.md shows it."""
    kinds = Counter((it["level"], it["expect"], it["section"], it["why"]) for it in rows)
    lines = [f"| {' | '.join(kind)} | {count} |" for kind, count in kinds.items()]
    return "\n".join(["| level | right | section | why | tokens |", "| --- " * 5 + "|", *lines])


def report(missed: Sequence[Object], total: int) -> str:
    """The table for people."""
    lines = [
        f"{row['level']:6}  {row['expect']:6}  {row['verdict']:7}  {row['name']:40}  "
        f"{row['section']}: {row['why']}"
        for row in missed
    ]
    head = [f"{'level':6}  {'right':6}  {'verdict':7}  {'token':40}  section: why"] if lines else []
    return "\n".join([*head, *lines, f"{len(lines)} of {total} tokens were misjudged"])


# ---- the JWKS, for a service ----


def serve(jwks: Object, port: int) -> ThreadingHTTPServer:
    """A server of the JWKS on this machine; `serve_forever` is the caller's."""
    document = json.dumps(jwks).encode()

    class Handler(BaseHTTPRequestHandler):
        """The one document."""

        def do_GET(self) -> None:
            """The keys, or 404."""
            found = self.path == JWKS_PATH
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(document) if found else 0))
            self.end_headers()
            self.wfile.write(document if found else b"")

        def log_message(self, *words: object) -> None:
            """Print nothing: the lab prints its table alone."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


USAGE = """\
list            name every token
table           count them by the section that decides
catalogue       print JWKS and all tokens as JSON
make NAME ...   print JWKS and these tokens as JSON
run -- COMMAND  try a verifier: the token is appended, exit status 0 means that it accepted;
                {jwks} (a file), {issuer}, {audience} are put in, or read from LAB_JWKS, ...
run --url URL   try a service: the token is in Authorization: Bearer, or where --header says
serve           publish the JWKS on 127.0.0.1 for such a service; both need the same --key

exit status of run: 0 if all was judged rightly, 1 if not; 2 if it could not be tried
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; USAGE has its exit statuses."""
    parser = argparse.ArgumentParser(
        prog="lab.py", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("list", "catalogue", "make", "run", "serve", "table"))
    parser.add_argument("words", nargs="*", help="the names, or the command")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key", metavar="FILE", help="the issuer's RSA private key, in PEM")
    key.add_argument("--new", action="store_true", help="a new key, the default")
    parser.add_argument("--must", action="store_true", help="only what a standard demands")
    parser.add_argument("--url", help="of a service that lets in good tokens alone")
    parser.add_argument("--header", action="append", help=f"instead of {BEARER!r}; may be repeated")
    parser.add_argument("--port", type=int, default=0, help="of serve; 0 takes a free one")
    parser.add_argument("--version", action="version", version=__version__)
    ours, command = cut(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(ours)
    options.words += command
    try:
        made = catalogue(read_key(options.key) if options.key else new_key(), int(time.time()))
        made["tokens"] = chosen(made["tokens"], options)
        return perform(options, made)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        print(f"lab.py: {error}", file=sys.stderr)
        return 2


def cut(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what behind it: argparse would confuse them."""
    place = words.index("--") if "--" in words else len(words)
    return [*words[:place]], [*words[place + 1 :]]


def chosen(rows: list[Object], options: argparse.Namespace) -> list[Object]:
    """The rows that the options ask for; ValueError for a name that there is not."""
    if options.must:
        rows = [row for row in rows if row["level"] == "must"]
    if options.command != "make":
        return rows
    unknown = set(options.words) - {row["name"] for row in rows}
    if unknown or not options.words:
        raise ValueError(f"no such token: {', '.join(sorted(unknown))}; see python lab.py list")
    return [row for row in rows if row["name"] in options.words]


def perform(options: argparse.Namespace, made: Object) -> int:
    """The chosen command on the chosen rows; its exit status."""
    if options.command == "run":
        if bool(options.words) == bool(options.url):
            raise ValueError("which one? python lab.py run -- COMMAND, or run --url URL")
        if options.url:
            missed = try_service(options.url, options.header or [BEARER], made)
        else:
            missed = try_verifier(options.words, made)
        print(report(missed, len(made["tokens"])))
        return 1 if missed else 0
    if options.command == "table":
        print(table(made["tokens"]))
        return 0
    if options.command == "serve":
        with serve(made["jwks"], options.port) as server, contextlib.suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{server.server_address[1]}{JWKS_PATH}", flush=True)
            server.serve_forever()
        return 0
    if options.command == "list":
        for row in made["tokens"]:
            print(f"{row['expect']:6}  {row['level']:6}  {row['section']:16}  {row['name']}")
        return 0
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
