"""How the server is set up: every setting in one table, and the secret that seals its keys.

    --key-lead 12h   else   JWKS_KEY_LEAD=12h   else   the default in the row of `Settings`
    NOT_MY_KEY       else   the file NOT_MY_KEY_FILE names   else   <db>.secret, made once
                     and    NOT_MY_KEY_PREVIOUS opens what has not been sealed anew yet

Rules of this file:
- A setting is one row of `Settings`: its flag, variable, type, default and help follow from it.
- A value that cannot be meant ends the start with one sentence that says what to write instead.
- The environment is an argument: only server.py knows the process's own.

Left out: reading configuration files. Two places to look are enough.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import secrets
import sqlite3
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Callable, NoReturn, TypeVar
from urllib.parse import urlsplit

import accounts
import keystore
import ratelimit
from database import Database


class ConfigurationError(Exception):
    """The server cannot start like this; the sentence says what to do."""


T = TypeVar("T")
LONGEST = 36_500 * 86_400  # s: a century; dates stay within what SQLite and datetime can write
MAX_HASH_KIB = 1_048_576  # 1 GiB a hash; more is a slip of the pen


def setting(default: Any, parse: Callable[[str], T], placeholder: str, help_text: str) -> T:
    """A row of `Settings`; the default is written as a user would write it, None for none."""
    value: T = parse(default) if isinstance(default, str) else default
    details = {"parse": parse, "default": default, "placeholder": placeholder, "help": help_text}
    return dataclasses.field(default=value, metadata=details)


def filled(text: str) -> str:
    """Text that is not blank: a variable set to nothing is not the same as one left out."""
    if not text.strip():
        raise ValueError("is blank: write a value, or leave it out")
    return text


def duration(text: str) -> float:
    """`4s`, `90m`, `1h`, `30d`, `500ms`, or plain seconds: in seconds."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d|w)?", text.strip())
    if match is None:
        raise ValueError("write a duration such as 90s, 10m, 1h or 30d")
    units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
    seconds = float(match[1]) * units[match[2] or "s"]
    if seconds > LONGEST:
        raise ValueError("write a duration of at most 36500d")
    return seconds


def whole_seconds(text: str) -> float:
    """A duration that is a whole number of seconds, one at least (RFC 7519 dates have no less)."""
    seconds = duration(text)
    if seconds < 1 or seconds != int(seconds):
        raise ValueError("write a duration of whole seconds, 1s at least")
    return seconds


def duration_or_off(text: str) -> float:
    """A duration; `off` is 0."""
    return 0.0 if text.strip().lower() == "off" else duration(text)


def port_number(text: str) -> int:
    """0 to 65535; 0 takes a free port."""
    return bounded(text, 0, 65_535)


def positive(text: str) -> int:
    """A count of one or more."""
    return bounded(text, 1, 1_000_000)


def bounded(text: str, low: int, high: int) -> int:
    """A decimal number in a range."""
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()) or not low <= int(text) <= high:
        raise ValueError(f"write a number from {low} to {high}")
    return int(text)


def networks(text: str) -> ratelimit.Networks:
    """Addresses and networks, separated by commas or spaces."""
    return ratelimit.parse_networks(re.split(r"[,\s]+", text.strip())) if text.strip() else ()


def issuer_url(text: str) -> str:
    """An http(s) URL without query or fragment (RFC 8414 §2), kept to the letter."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or set(text) & set("?# "):
        raise ValueError("write a URL such as https://issuer.example")
    return text


def default_issuer(url: str) -> str:
    """The URL with an address that can be connected to in place of "any", or of a socket file."""
    if url.startswith("unix:"):
        return "http://localhost"
    return url.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")


def one_of(*words: str) -> Callable[[str], str]:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"write {' or '.join(words)}")
        return text

    return parse


def hash_cost(text: str) -> accounts.HashCost:
    """Argon2id's parameters: passes, KiB of memory, lanes."""
    match = re.fullmatch(r"t=([0-9]{1,3}),m=([0-9]{1,7}),p=([0-9]{1,2})", text)
    cost = accounts.HashCost(*map(int, match.groups())) if match else None
    # RFC 9106 §3.1: at least one pass, one lane, and 8 KiB a lane.
    sound = cost is not None and min(cost) >= 1 and cost.memory_kib >= 8 * cost.lanes
    if cost is None or not sound or cost.memory_kib > MAX_HASH_KIB or cost.lanes > 16:
        raise ValueError("write t=PASSES,m=KIB,p=LANES such as t=2,m=19456,p=1")
    return cost


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that can be set: --some-flag on the command line, or JWKS_SOME_FLAG."""

    host: str = setting("127.0.0.1", filled, "HOST", "address to listen on; :: for both families")
    port: int = setting("8080", port_number, "PORT", "0 takes a free one")
    db: str = setting("totally_not_my_privateKeys.db", filled, "FILE", "the SQLite database")
    auth_limit: tuple[ratelimit.Rule, ...] = setting(
        "5/minute", ratelimit.parse_limit, "COUNT/PERIOD", "of POST /auth by address, or off"
    )
    register_limit: tuple[ratelimit.Rule, ...] = setting(
        "60/minute", ratelimit.parse_limit, "COUNT/PERIOD", "of POST /register, or off"
    )
    limiter_sources: int = setting(
        "65536", positive, "COUNT", "addresses that each limiter remembers"
    )
    registration: str = setting(
        "open", one_of("open", "closed"), "open|closed", "whether POST /register is for anybody"
    )
    issuer: str | None = setting(None, issuer_url, "URL", "`iss` of the tokens; default our URL")
    audience: str | None = setting(None, filled, "TEXT", "`aud` of the tokens; default none")
    token_ttl: float = setting("1h", whole_seconds, "DURATION", "how long a token is valid")
    key_lifetime: float = setting("30d", whole_seconds, "DURATION", "how long a key exists")
    key_lead: float = setting("24h", duration, "DURATION", "a key is published, then signs")
    key_skew: float = setting("5m", duration, "DURATION", "how far clients' clocks may be off")
    key_retention: float = setting("90d", duration, "DURATION", "how long expired keys are kept")
    trusted_proxy: ratelimit.Networks = setting(
        "", networks, "CIDR ...", "whose X-Forwarded-For is believed"
    )
    metrics_from: ratelimit.Networks = setting(
        "", networks, "CIDR ...", "who may read /metrics beside this machine"
    )
    argon2: accounts.HashCost = setting(
        "t=2,m=19456,p=1", hash_cost, "t=,m=,p=", "cost of a password hash"
    )
    verified_cache: float = setting(
        "1h", duration_or_off, "DURATION", "how long a verified password is remembered, or off"
    )
    log_retention: float = setting("90d", duration, "DURATION", "how long logins are kept")
    tls_cert: str | None = setting(None, filled, "FILE", "certificate chain (PEM); turns on TLS")
    tls_key: str | None = setting(None, filled, "FILE", "its private key (PEM)")
    max_connections: int = setting("10000", positive, "COUNT", "open at once")
    max_per_client: int = setting("2000", positive, "COUNT", "open at once from one address")
    access_log: str = setting(
        "text", one_of("text", "json", "off"), "FORMAT", "a line per request: text, json or off"
    )

    @property
    def policy(self) -> keystore.Policy:
        """The life of a key."""
        return keystore.Policy(
            self.token_ttl, self.key_skew, self.key_lifetime, self.key_lead, self.key_retention
        )


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return "JWKS_" + name.upper()


def make_settings(values: Mapping[str, object]) -> Settings:
    """Settings from texts (or values that read as such), by name.

    Raises:
        ConfigurationError: a value is not acceptable; the message names the flag.
    """
    parsed: dict[str, Any] = {}
    for row in dataclasses.fields(Settings):
        value = values.get(row.name)
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            try:
                parsed[row.name] = row.metadata["parse"](text)
            except ValueError as error:
                flag = row.name.replace("_", "-")
                raise ConfigurationError(f"--{flag} ({variable(row.name)}): {error}") from error
    unknown = values.keys() - {row.name for row in dataclasses.fields(Settings)}
    if unknown:
        raise ConfigurationError(f"there is no setting {', '.join(sorted(unknown))}")
    settings = Settings(**parsed)
    problem = settings.policy.problem()
    if problem is not None:
        raise ConfigurationError(problem)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key are needed together")
    return settings


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error instead of a page."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_settings(parser: argparse.ArgumentParser, names: tuple[str, ...] = ()) -> None:
    """A flag for each setting (or for those named)."""
    for row in dataclasses.fields(Settings):
        if names and row.name not in names:
            continue
        details = row.metadata
        several = details["placeholder"].endswith("...")
        default = "" if details["default"] in (None, "") else f" (default {details['default']})"
        parser.add_argument(
            "--" + row.name.replace("_", "-"),
            metavar=details["placeholder"].replace(" ...", ""),
            default=argparse.SUPPRESS,
            help=(details["help"] + default).replace("%", "%%"),
            action="extend" if several else "store",
            nargs="+" if several else None,
        )


def configure(arguments: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The flags given, else the environment, else the defaults."""
    values: dict[str, object] = {
        row.name: environ[variable(row.name)]
        for row in dataclasses.fields(Settings)
        if variable(row.name) in environ
    }
    values.update(arguments)
    return make_settings(values)


# -- the file


def require_ours(connection: sqlite3.Connection) -> None:
    """Refuse a file of another program that we cannot go on with, before anything is written to it.

    Raises:
        CannotOpen: the sentence says what stands in it.
    """
    keystore.require_ours(connection)
    accounts.require_no_twins(connection)


def warn_of_readers(path: Path, log: Callable[[str], None]) -> None:
    """Say so if others may read the file: we make it for ourselves, but leave one as we find it."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        files = [Path(f"{path}{end}") for end in ("", "-wal", "-shm")]
        loose = [str(file) for file in files if file.exists() and file.stat().st_mode & 0o077]
        if loose:
            log(f"the database can be read by others: chmod 600 {' '.join(loose)}")


# -- the secret that seals the keys

SECRET_BYTES = 32  # of a generated secret: 256 bits, nothing to guess
SHORT_SECRET = 16  # bytes; fewer deserve a warning even behind Argon2id


def load_secret(
    database: Database, environ: MutableMapping[str, str], log: Callable[[str], None]
) -> tuple[bytes, bytes | None]:
    """The secret that seals the keys, and the previous one that may still open some.

    NOT_MY_KEY, else the content of NOT_MY_KEY_FILE, else of the generated `<db>.secret`; and
    NOT_MY_KEY_PREVIOUS, else the content of NOT_MY_KEY_PREVIOUS_FILE, else none. The variables are
    removed from `environ`: what we start later does not inherit them.

    Raises:
        ConfigurationError: a secret is blank, or missing though keys are sealed with it.
    """
    secret, previous = find_secret(database.path, environ, log)
    if secret is not None:
        return secret, previous
    path = generated_secret(database.path)
    # Looked for again: another first start may have made both in between.
    if keystore.has_keys(database) and previous is None and not path.is_file():
        raise ConfigurationError(
            f"the keys in {database.path} are sealed and there is no secret to open them: "
            f"set NOT_MY_KEY, or put back {path}"
        )
    create_secret(path)
    log(
        f"NOT_MY_KEY is not set: the keys are sealed with a secret generated in {path}; "
        "who copies both files has the keys"
    )
    return checked_secret(read_secret(path), str(path), log), previous


def find_secret(
    database: Path, environ: MutableMapping[str, str], log: Callable[[str], None]
) -> tuple[bytes | None, bytes | None]:
    """What `load_secret` loads, with None for what there is not: nothing is made.

    Raises:
        ConfigurationError: a secret is there that cannot be used.
    """
    secret = given_secret("NOT_MY_KEY", environ, log)
    previous = given_secret("NOT_MY_KEY_PREVIOUS", environ, lambda line: None)
    path = generated_secret(database)
    if secret is not None:
        return secret, previous
    if path.is_symlink():
        raise ConfigurationError(f"{path} is a link: name its target in NOT_MY_KEY_FILE instead")
    if not path.is_file():
        return None, previous
    if path.stat().st_mode & 0o077 and os.name == "posix":
        log(f"{path} can be read by others: chmod 600 it, then change the secret (admin.py rekey)")
    return checked_secret(read_secret(path), str(path), log), previous


def generated_secret(database: Path) -> Path:
    """The file of the secret that a first start makes."""
    return Path(f"{database}.secret")


def check_given_secrets(environ: Mapping[str, str]) -> None:
    """Refuse a blank or unreadable secret before any file is touched.

    Raises:
        ConfigurationError: a variable is blank, or names a file that cannot be used.
    """
    for name in ("NOT_MY_KEY", "NOT_MY_KEY_PREVIOUS"):
        given_secret(name, dict(environ), lambda line: None)


def given_secret(
    name: str, environ: MutableMapping[str, str], log: Callable[[str], None]
) -> bytes | None:
    """The secret in the variable, else in the file that the variable `<name>_FILE` names."""
    direct, file = environ.pop(name, None), environ.pop(f"{name}_FILE", None)
    if direct is not None:
        return checked_secret(os.fsencode(direct), name, log)
    if file is not None:
        return checked_secret(read_secret(Path(file)), f"{name}_FILE ({file})", log)
    return None


def checked_secret(secret: bytes, origin: str, log: Callable[[str], None]) -> bytes:
    """The secret, unless it is blank."""
    if not secret.strip():
        raise ConfigurationError(f"{origin} is blank: set a secret, or unset it to have one made")
    if len(secret) < SHORT_SECRET:
        log(f"{origin} has only {len(secret)} bytes: {SHORT_SECRET} or more resist guessing")
    return secret


def read_secret(path: Path) -> bytes:
    """The content of the file without its last line end."""
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the secret: {error}") from error
    return secret.rstrip(b"\r\n")


def create_secret(path: Path) -> None:
    """Write a new random secret to a file that only we can read, whole or not at all."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(SECRET_BYTES) + "\n")
            file.flush()
            # On disk before a key is sealed with it: a power cut must not leave keys without it.
            os.fsync(descriptor)
        try:
            # Unlike a rename this never replaces a file or follows a link of that name.
            os.link(draft, path)
        finally:
            os.unlink(draft)
        sync_directory(path.parent)
    except FileExistsError:
        return  # another process was faster: its secret is the one
    except OSError as error:
        raise ConfigurationError(f"cannot write the secret: {error}") from error


def sync_directory(path: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
