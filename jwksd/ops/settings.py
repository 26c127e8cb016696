"""How the server is set up: every setting in one table.

    --key-lead 12h   else   JWKS_KEY_LEAD=12h   else   the default in the row of `Settings`

Rules of this file:
- A setting is one row of `Settings`: its flag, variable, type, default and help follow from it.
- A value that makes no sense ends the start with one sentence that says what to write instead.
- The environment is an argument: only the command lines know the process's own.

Left out: reading configuration files. Two places to look are enough.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Callable, NoReturn, TypeVar
from urllib.parse import urlsplit

import ratelimit
from jwksd import __version__
from jwksd.httpd import Limits
from jwksd.ops import health
from jwksd.store import accounts, keystore


class ConfigurationError(Exception):
    """The server cannot start like this; the sentence says what to do."""


T = TypeVar("T")
LONGEST = 36_500 * 86_400  # s: a century; dates stay within what SQLite and datetime can write
AT_JWT = "at+jwt"  # RFC 9068 §2.1
DATABASE_URLS = ("postgresql://", "postgres://")
NO_FILE = re.compile(r"://|\b(password|host|dbname)\s*=")  # a URL of something else, libpq's words
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
    return without_controls(text)


def database(text: str) -> str:
    """A file, or a URL of PostgreSQL. What is neither is not quoted: it may hold a password."""
    if not text.startswith(DATABASE_URLS) and NO_FILE.search(text):
        raise ValueError("is neither a file nor postgresql://USER@HOST:PORT/NAME")
    return filled(text)


def without_controls(text: str) -> str:
    """Text in one line: a line end at the end of a variable comes from a file."""
    if not text.isprintable():
        raise ValueError("holds a line end or another control character: write it in one line")
    return text


def audiences(text: str) -> tuple[str, ...]:
    """Values of `aud` (RFC 7519 §4.1.3), separated by commas or spaces."""
    return tuple(dict.fromkeys(filter(None, re.split(r"[, ]+", filled(text)))))


def backdating(text: str) -> float:
    """Whole seconds, an hour at most; 0s for none."""
    seconds = duration(text)
    if seconds != int(seconds) or seconds > 3600:
        raise ValueError("write a duration of whole seconds, 1h at most")
    return seconds


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


def file_mode(text: str) -> int:
    """Permissions as chmod takes them: three octal digits."""
    if not re.fullmatch("[0-7]{3}", text.strip()):
        raise ValueError("write three octal digits such as 660")
    return int(text, 8)


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


def origins(text: str) -> tuple[str, ...]:
    """Origins as a browser writes them (RFC 6454 §6.2), separated by commas or spaces."""
    found = tuple(filter(None, re.split(r"[,\s]+", text)))
    for origin in found:
        if not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", origin):
            raise ValueError("write origins such as https://app.example, in lower case")
        if re.fullmatch(r"http:.*[^:]:80|https:.*[^:]:443", origin):  # else it never matches
            raise ValueError("write origins without the default port, as browsers do")
        issuer_url(origin)  # the port is one
    return found


def issuer_url(text: str) -> str:
    """An http(s) URL without query or fragment (RFC 8414 §2), kept to the letter."""
    wrong = ValueError("write a URL such as https://issuer.example")
    try:
        parts = urlsplit(without_controls(text))
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # a port of 99999, a broken address
        raise wrong from error
    if parts.scheme not in ("http", "https") or not host or port == 0 or not text.isascii():
        raise wrong
    if "@" in parts.netloc or parts.netloc.endswith(":") or set(text) & set('?# \\"<>'):
        raise wrong
    return text


def default_issuer(url: str) -> str:
    """The URL with an address that can be connected to in place of "any", or of a socket file."""
    if url.startswith("unix:"):
        return "http://localhost"
    return url.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]")


def one_of(*words: str) -> Callable[[str], str]:
    """A check for a setting that is one of a few words."""

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
    """Every setting: --some-flag on the command line, or JWKS_SOME_FLAG."""

    host: str = setting("127.0.0.1", filled, "HOST", "address to listen on; :: for both families")
    port: int = setting("8080", port_number, "PORT", "0 takes a free one")
    socket_mode: int = setting(
        "660", file_mode, "MODE", "of the socket file with --host unix:PATH, octal"
    )
    db: str = setting(
        "totally_not_my_privateKeys.db",
        database,
        "FILE",
        "of SQLite, or postgresql://USER@HOST/NAME",
    )
    auth_limit: tuple[ratelimit.Rule, ...] = setting(
        "5/minute", ratelimit.parse_limit, "COUNT/PERIOD", "of POST /auth by address, or off"
    )
    register_limit: tuple[ratelimit.Rule, ...] = setting(
        "60/minute,1000/day", ratelimit.parse_limit, "COUNT/PERIOD", "of POST /register, or off"
    )
    limiter_sources: int = setting(
        "65536", positive, "COUNT", "addresses that each limiter remembers"
    )
    share_limits: str = setting(
        "on",
        one_of("on", "off"),
        "on|off",
        "count attempts at other servers on one database of PostgreSQL",
    )
    registration: str = setting(
        "open", one_of("open", "closed"), "open|closed", "whether POST /register is for anybody"
    )
    issuer: str | None = setting(None, issuer_url, "URL", "`iss` of the tokens; default our URL")
    audience: tuple[str, ...] = setting(
        (), audiences, "TEXT ...", "`aud` of the tokens; default none"
    )
    token_type: str = setting(
        "JWT",
        one_of("JWT", AT_JWT),
        "JWT|at+jwt",
        "`typ` of the tokens; at+jwt is RFC 9068's",
    )
    token_ttl: float = setting("1h", whole_seconds, "DURATION", "how long a token is valid")
    backdate: float = setting(
        "10s", backdating, "DURATION", "`iat` and `nbf` lie so far back: clocks differ"
    )
    key_lifetime: float = setting("30d", whole_seconds, "DURATION", "how long a key exists")
    key_lead: float = setting("24h", duration, "DURATION", "a key is published, then signs")
    key_skew: float = setting("5m", duration, "DURATION", "how far clients' clocks may be off")
    key_retention: float = setting("90d", duration, "DURATION", "how long expired keys are kept")
    trusted_proxy: ratelimit.Networks = setting(
        "", networks, "CIDR ...", "whose X-Forwarded-For is believed"
    )
    allow_origin: tuple[str, ...] = setting(
        "", origins, "ORIGIN ...", "pages elsewhere that may call /auth and /register"
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
    max_body: int = setting("8192", positive, "OCTETS", "of a request's body")
    idle_timeout: float = setting(
        "75s", whole_seconds, "DURATION", "how long a connection may rest; longer than a proxy's"
    )
    access_log: str = setting(
        "text",
        one_of("text", "json", "off"),
        "FORMAT",
        "a line per request: text, json (so is every other line then) or off",
    )

    @property
    def policy(self) -> keystore.Policy:
        """The life of a key."""
        return keystore.Policy(
            self.token_ttl, self.key_skew, self.key_lifetime, self.key_lead, self.key_retention
        )

    @property
    def limits(self) -> Limits:
        """What one client may cost."""
        usual = Limits()
        return usual._replace(
            body=self.max_body,
            idle=self.idle_timeout,
            idle_full=min(self.idle_timeout, usual.idle_full),
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
    if settings.token_type == AT_JWT and not settings.audience:  # RFC 9068 §2.2
        raise ConfigurationError("--token-type at+jwt needs --audience: name who reads the tokens")
    return settings


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error instead of a page."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_settings(parser: argparse.ArgumentParser, names: tuple[str, ...] = ()) -> None:
    """A flag for each setting (or for those named), and --version."""
    parser.add_argument("--version", action="version", version=f"jwks-server {__version__}")
    if not names:
        question = "ask whether the server there is well, and exit 0 or 1"
        parser.add_argument(
            "--check", metavar="URL", action=health.Check, default=argparse.SUPPRESS, help=question
        )
    for row in dataclasses.fields(Settings):
        if names and row.name not in names:
            continue
        details = row.metadata
        several = details["placeholder"].endswith("...")
        default = "" if details["default"] in (None, "", ()) else f" (default {details['default']})"
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
