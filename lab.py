#!/usr/bin/env python3
"""Tries other people's verifiers: `python lab.py run -- COMMAND`.

    a new RSA key --> JWKS, good tokens, and tokens with one flaw each (flaws.py)
                            |                   |
                            v                   v
                  COMMAND {jwks} ...          TOKEN     once for each
                                    |
                        exit status 0 = it accepted, all else = it refused

Rules of this file
  - The verifier is a program, in any language: what it prints does not matter, its status does.
  - Good tokens are tried, too: what refuses everything has found nothing.
  - A verifier that says nothing in time has misjudged the token.

Left out: verifiers that are no programs; `catalogue` prints the same tokens for your own tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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

ISSUER, AUDIENCE = "https://issuer.example", "lab"  # RFC 2606 §2: belongs to nobody
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
    """What a verifier says by its exit status: accept, refuse, or silence."""
    try:
        done = subprocess.run(  # noqa: S603 (the command is the user's own)
            [*command, token],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return "silence"
    return "refuse" if done.returncode else "accept"


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
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            said = pool.map(lambda row: verdict(command, row["token"], environ), made["tokens"])
            judged = [{**row, "verdict": word} for row, word in zip(made["tokens"], said)]
    return [row for row in judged if row["verdict"] != row["expect"]]


def report(missed: Sequence[Object], total: int) -> str:
    """The table for people."""
    lines = [
        f"{row['level']:6}  {row['expect']:6}  {row['verdict']:7}  {row['name']:40}  "
        f"{row['section']}: {row['why']}"
        for row in missed
    ]
    head = [f"{'level':6}  {'right':6}  {'verdict':7}  {'token':40}  section: why"] if lines else []
    return "\n".join([*head, *lines, f"{len(lines)} of {total} tokens were misjudged"])


USAGE = """\
list            name every token
catalogue       print JWKS and all tokens as JSON
make NAME ...   print JWKS and these tokens as JSON
run -- COMMAND  try a verifier: the token is appended, exit status 0 means that it accepted;
                {jwks} (a file), {issuer}, {audience} are put in, or read from LAB_JWKS, ...

exit status of run: 0 if all was judged rightly, 1 if not; 2 if it could not be tried
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; USAGE has its exit statuses."""
    parser = argparse.ArgumentParser(
        prog="lab.py", description=USAGE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("list", "catalogue", "make", "run"))
    parser.add_argument("words", nargs="*", help="the names, or the command")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key", metavar="FILE", help="the issuer's RSA private key, in PEM")
    key.add_argument("--new", action="store_true", help="a new key, the default")
    parser.add_argument("--must", action="store_true", help="only what a standard demands")
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
        if not options.words:
            raise ValueError("which command? python lab.py run -- COMMAND")
        missed = try_verifier(options.words, made)
        print(report(missed, len(made["tokens"])))
        return 1 if missed else 0
    if options.command == "list":
        for row in made["tokens"]:
            print(f"{row['expect']:6}  {row['level']:6}  {row['section']:16}  {row['name']}")
        return 0
    print(json.dumps(made, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
