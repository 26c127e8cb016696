"""What `admin.py doctor` finds: whether this installation is sound, and what to do where it is not.

    machine     python, sqlite, packages            what the server runs on
    address     issuer, balancer, tokens            what clients and a balancer must be told
    files       directory, disk, files, wal         what it runs from; the database is still closed
    database    opened as a reader does             the end, if the server could not open it either
    content     integrity ... clock                 each for itself: one failure hides no other

With PostgreSQL no files are looked at; the engine says what it finds.

Rules of this file:
- A check is one function and one row of a table. It returns a state and a sentence; an exception
  becomes a problem of its own, never a traceback.
- ok: nothing to do. note: it works, and there is something to know. problem: something does not
  work, will cease to, or is exposed; the sentence says what to do.
- The database and its log are never changed, made, or migrated. Where a server runs or was killed,
  SQLite keeps its index `-shm`, and does not shorten the log while it is read.
- What may take long was measured: reading every page of a log of ten million rows (0.7 GB), 2 s
  from memory and 10 s from disk. No answer of a running server waits for it.

Left out: `PRAGMA foreign_key_check`. A log row that names a deleted user is shown without a name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import urlsplit

from jwksd import __version__, progress
from jwksd.ops import mounts, ownership, settings, startup
from jwksd.ops import secret as secret_file
from jwksd.ops.installation import Installation
from jwksd.ops.packages import FLOORS
from jwksd.store import accounts, keystore
from jwksd.store.database import CannotOpen, Unavailable
from jwksd.store.logins import utc_text
from jwksd.store.sqlite import SCHEMA_VERSION, ReadOnly

OK, NOTE, PROBLEM = "ok", "note", "problem"

# sqlite.org's release notes: before it, two connections that write and checkpoint in the same
# moment can, rarely, damage the file.
SQLITE_SOUND = (3, 51, 3)
MIB = 1_048_576
DISK_PROBLEM = 64 * MIB  # a write-ahead log as it usually grows, and some 100,000 attempts
WAL_LARGE = 64 * MIB  # SQLite takes it over at 4 MiB (1,000 pages), if no reader needs it
OVERDUE = 60.0  # s: the server looks every second; a busy disk takes a few
PRUNING = 86_400.0  # s: a row a day past its retention is not about to be removed
AS_THE_SERVER = "run doctor as the server's user"
SKEW = 300.0  # s: two clocks may differ by this much, here as in `--key-skew`

Verdict = tuple[str, str]


class Finding(NamedTuple):
    """A row of the report."""

    check: str
    state: str  # ok, note or problem
    text: str  # what was found, and what to do


@dataclass(frozen=True)
class Shared(Installation):
    """An installation to look at whose database is one of PostgreSQL: read and never written."""

    @property
    def now(self) -> float:
        """The time on its clock."""
        return self.clock()


@dataclass(frozen=True)
class Examined(Shared):
    """An installation whose database is a file of SQLite, which has more to look at."""

    database: ReadOnly

    def beside(self, suffix: str) -> Path:
        """A file that belongs to the database."""
        path = self.database.path
        if suffix.startswith("-"):  # SQLite's own stand beside what a symbolic link leads to
            path = Path(os.path.realpath(path))
        return path.with_name(path.name + suffix)


Check = Callable[[Any], Optional[Verdict]]  # of a Shared or Examined; None: it does not apply


def examine(installation: Installation) -> Iterator[Finding]:
    """Every check in turn. The clock stands still meanwhile.

    Raises:
        CannotOpen: the server could not open the database either; the last finding says why.
    """
    now = installation.clock()
    if startup.is_url(installation.config.db):
        yield from examine_shared(installation, now)
        return
    place = Examined(
        installation.config,
        ReadOnly(installation.config.db),
        installation.environ,
        lambda: now,
    )
    yield from carry_out(OUTSIDE, place)
    try:
        place.database.require_ours(startup.require_ours)
        version, missing = place.database.schema()
    except (CannotOpen, Unavailable) as error:
        yield Finding("database", PROBLEM, str(error))
        raise CannotOpen(str(error)) from error
    yield Finding("database", *schema(version, missing))
    if version == SCHEMA_VERSION:
        yield from carry_out(INSIDE, place)


def examine_shared(installation: Installation, now: float) -> Iterator[Finding]:
    """Every check of an installation on PostgreSQL.

    Raises:
        CannotOpen: the server could not open the database either.
    """
    place = Shared(installation.config, installation.database, installation.environ, lambda: now)
    yield from carry_out({name: OUTSIDE[name] for name in MACHINE}, place)
    try:
        database = startup.open_postgres(place.config.db, make=False)
    except CannotOpen as error:
        yield Finding("database", PROBLEM, str(error))
        raise
    with contextlib.closing(database):
        yield Finding("database", OK, database.name)
        place = replace(place, database=database)
        try:
            yield from map(Finding._make, database.findings())
        except Unavailable as error:
            yield Finding("postgresql", PROBLEM, str(error))
        yield from carry_out({**INSIDE_SHARED, **COMMON}, place)


def carry_out(checks: Mapping[str, Check], place: Shared) -> Iterator[Finding]:
    """The findings of the checks that apply."""
    for name, check in checks.items():
        try:
            with progress.shown(f"doctor: {name}"):
                found = check(place)
        except PermissionError as error:
            found = PROBLEM, f"{error.filename} is closed to this user: {AS_THE_SERVER}"
        except (Unavailable, settings.ConfigurationError, keystore.WrongSecret) as error:
            found = PROBLEM, str(error)
        except Exception as error:  # a damaged file or machine may raise anything
            found = PROBLEM, f"could not be checked: {type(error).__name__}: {error}"
        if found is not None:
            yield Finding(name, *found)


def verdict(problems: list[str], notes: list[str], fine: str) -> Verdict:
    """One line that sums up the findings, the worst first."""
    state = PROBLEM if problems else NOTE if notes else OK
    return state, "; ".join([*problems, *notes]) or fine


# -- the machine


def version_of_ours(place: Shared) -> Verdict:
    """The version of the server."""
    return OK, f"jwks-server {__version__}"


def python(place: Shared) -> Verdict:
    """The version of the interpreter."""
    return OK, f"{platform.python_implementation()} {platform.python_version()}"


def sqlite(place: Shared) -> Verdict:
    """The version of SQLite, and its known error."""
    if sqlite3.sqlite_version_info >= SQLITE_SOUND:
        return OK, sqlite3.sqlite_version
    return NOTE, (
        f"{sqlite3.sqlite_version}: before {'.'.join(map(str, SQLITE_SOUND))} two processes that "
        "write at the same moment can in rare cases damage the file: run one server on it, and "
        "keep backups"
    )


def packages(place: Shared) -> Verdict:
    """The versions of the two packages that the server needs."""
    found = {name: importlib.metadata.version(name) for name in FLOORS}
    old = [
        f"{name} {version} is too old: pip install -r requirements.txt"
        for name, version in found.items()
        if tuple(map(int, re.findall("[0-9]+", version)[:2])) < FLOORS[name]
    ]
    return verdict(old, [], ", ".join(f"{name} {version}" for name, version in found.items()))


# -- the address, as far as the variables tell it: flags of a running server are not seen here

TWINS = {"localhost": "127.0.0.1", "127.0.0.1": "localhost", "::1": "localhost"}


def issuer(place: Shared) -> Verdict:
    """Whether clients find the server under its issuer, which they compare as text."""
    config, url = place.config, url_of(place.config)
    unusable = startup.unusable_issuer(config, url)
    if unusable is not None:
        return NOTE, unusable
    name = config.issuer or settings.default_issuer(url)
    host = urlsplit(name).hostname or ""
    if host not in TWINS:
        return OK, name
    twin = name.replace(f"[{host}]" if ":" in host else host, TWINS[host], 1)
    advice = f"{name}: give clients exactly this; some (openid-client) refuse it from {twin}"
    return (NOTE if config.host == TWINS[host] else OK), advice


def url_of(config: settings.Settings) -> str:
    """Where a server with these settings listens."""
    if config.host.startswith("unix:"):
        return config.host
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.tls_cert else 'http'}://{host}:{config.port}"


def balancer(place: Shared) -> Verdict:
    """What a balancer should ask, so that a database that fails takes no keys off the air."""
    base = urlsplit(place.config.issuer or "").path.rstrip("/")
    return OK, (
        f"its check of the key set is GET {base}/.well-known/jwks.json, that of {base}/auth and "
        f"{base}/register is GET {base}/healthz, which fails with the database"
    )


def tokens(place: Shared) -> Verdict:
    """The type in the header of the tokens, which verifiers may insist on."""
    if place.config.token_type == settings.AT_JWT:
        return NOTE, "typ is at+jwt: for verifiers of RFC 9068; those that insist on JWT refuse it"
    return OK, "typ is JWT; verifiers that insist on RFC 9068 need --token-type at+jwt"


# -- the files, with the database still closed


def directory(place: Examined) -> Verdict:
    """Whether the files that SQLite and the first start make can be made, and by nobody else."""
    folder = place.database.path.parent
    if not folder.is_dir():
        return PROBLEM, f"{folder} does not exist: make it, or name another file with --db"
    mode = folder.stat().st_mode
    problems = []
    if not os.access(folder, os.W_OK | os.X_OK):
        problems.append(f"{folder} is not writable for this user: give it to the server's user")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and os.name == "posix":
        problems.append(f"anybody can replace the files in {folder}: chmod o-w {folder}")
    return verdict(problems, [], str(folder))


def disk(place: Examined) -> Verdict | None:
    """Whether the disk has room for new rows, and for a backup."""
    if not place.database.path.parent.is_dir():
        return None
    free = shutil.disk_usage(place.database.path.parent).free
    size = place.database.path.stat().st_size if place.database.path.exists() else 0
    if free < DISK_PROBLEM:
        return PROBLEM, f"{shown(free)} free: make room, or logins will be answered 503"
    if free < size:
        return NOTE, f"{shown(free)} free: a backup ({shown(size)}) has no room beside the database"
    return OK, f"{shown(free)} free"


def files(place: Examined) -> Verdict | None:
    """Who may read and write the files."""
    ours = [place.beside(suffix) for suffix in ("", "-wal", "-shm", ".secret")]
    existing = [path for path in ours if path.is_file()]
    if not existing or os.name != "posix":
        return None
    # The secret has a check of its own: there is more to do than chmod.
    bare = [path for path in existing if path.suffix != ".secret"]
    readable = names(path for path in bare if path.stat().st_mode & 0o077)
    closed = names(path for path in existing if not os.access(path, os.R_OK | os.W_OK))
    problems = [f"open to others: chmod 600 {readable}"] if readable else []
    if closed:
        problems.append(f"not for this user to write: {closed}; {AS_THE_SERVER}, or chown them")
    return verdict(problems, [], f"{len(existing)}, for their owner alone")


def names(paths: Iterable[Path]) -> str:
    """Files of one directory as a shell takes them."""
    return " ".join(shlex.quote(path.name) for path in paths)


def ownership_of(place: Examined) -> Verdict | None:
    """Whether the files are the server's own, and not made by somebody else before it."""
    ours = [*ownership.database_files(place.database.path), place.beside(".secret")]
    stranger = ownership.strangers(ours)
    if stranger is not None:
        return PROBLEM, stranger
    return (OK, "the server's user, or root") if any(path.exists() for path in ours) else None


def mount(place: Examined) -> Verdict:
    """Whether the file system keeps what is written, and locks files as SQLite needs it."""
    table = mounts.table_of_this_system()
    lost = mounts.lost_log(place.database.path, table)
    if lost is not None:
        return PROBLEM, lost
    far = mounts.network(place.database.path, table)
    return verdict([], [far] if far else [], "neither a single file nor a network")


def wal(place: Examined) -> Verdict | None:
    """The write-ahead log: there while a server runs, or after it was killed."""
    log = place.beside("-wal")
    size = log.stat().st_size if log.exists() else None
    if size is None:
        return OK, "none: no server has the database open"
    if size and not place.beside("-shm").exists():
        return NOTE, (
            f"{log.name} ({shown(size)}) waits without its index: it is not looked at here; start "
            "the server, which takes it over"
        )
    if size > WAL_LARGE:
        return NOTE, (
            f"{shown(size)}: a reader that never ended kept it from being taken over; end it, "
            "then restart the server, which shortens the file"
        )
    return OK, f"{shown(size)}: a server has the database open, or was killed"


# -- what the database holds


def schema(version: int, missing: list[str]) -> Verdict:
    """Whether all tables are there."""
    if version < SCHEMA_VERSION:
        return NOTE, "the server's next start brings its tables up to date; then run doctor again"
    lost = [f"the table {name} is missing: restore a backup" for name in missing]
    return verdict(lost, [], f"schema version {version}")


def integrity(place: Examined) -> Verdict:
    """Whether any page of the file is damaged."""
    try:
        damage = place.database.damage()
    except Unavailable as error:
        damage = [str(error)]
    if not damage:
        return OK, "every page can be read"
    return PROBLEM, (
        f"damaged ({damage[0]}): stop the server, keep a copy of the files, restore a backup; "
        "without one, sqlite3's .recover saves what can be read"
    )


def secret(place: Examined) -> Verdict:
    """Whether there is a secret for the keys, and who can read it."""
    warnings: list[str] = []
    found, _ = find_secret(place, warnings)
    if found is not None:
        beside = f"in {place.beside('.secret').name}: who copies both files has the keys"
        return verdict(warnings, [], "given by NOT_MY_KEY" if is_given(place) else beside)
    if keystore.has_keys(place.database):
        return PROBLEM, (
            f"the keys are sealed and there is no secret to open them: set NOT_MY_KEY as the "
            f"server has it, or put back {place.beside('.secret')}"
        )
    return NOTE, "none yet: the server's start makes one, unless NOT_MY_KEY is set"


def is_given(place: Shared) -> bool:
    """Whether the variables give the secret, so that the generated one is not read."""
    return bool(place.environ.keys() & {"NOT_MY_KEY", "NOT_MY_KEY_FILE"})


def find_secret(place: Shared, warnings: list[str]) -> tuple[bytes | None, bytes | None]:
    """The secret and the previous one; the variables stay for the next check."""
    file = place.database.path if isinstance(place, Examined) else None
    return secret_file.find_secret(file, dict(place.environ), warnings.append)


def given_secret(place: Shared) -> Verdict:
    """Whether the variables give a secret; with PostgreSQL none is generated."""
    warnings: list[str] = []
    found, _ = find_secret(place, warnings)
    if found is None:
        return PROBLEM, secret_file.NOT_GENERATED
    return verdict(warnings, [], "given by NOT_MY_KEY")


def keys(place: Shared) -> Verdict | None:
    """Whether the keys open."""
    said: list[str] = []
    store = open_keys(place, said)
    if store is None:
        return None
    listing = store.listing()
    damaged = any(state == "unreadable" for _, _, state in listing)
    notes = [] if damaged else said
    if store.copies():
        notes = [
            *notes,
            f"{store.copies()} rows are copies; of each key the first to expire counts",
        ]
    advice = ["find their secret, or keys revoke ROW (docs/operations.md)"] if damaged else []
    return verdict([*said, *advice] if damaged else [], notes, f"{len(listing)}, all of them open")


def open_keys(place: Shared, said: list[str]) -> keystore.KeyStore | None:
    """The keys as the server opens them; None if there is no secret to open any with."""
    found, previous = find_secret(place, [])
    if found is None:
        return None
    try:
        return place.keys(found, previous, said.append)
    except keystore.WrongSecret as error:
        unread = place.beside(".secret") if isinstance(place, Examined) else None
        hint = f"; {unread} is not read while NOT_MY_KEY is set"
        hint = hint if unread is not None and unread.exists() else ""
        raise keystore.WrongSecret(f"{error}{hint if is_given(place) else ''}") from error


def rotation(place: Shared) -> Verdict | None:
    """Whether a token can be signed, now and later."""
    try:
        store = open_keys(place, [])
    except keystore.WrongSecret:
        return None  # `keys` has said so
    if store is None:
        return None
    expiries = [exp for _, exp, state in store.listing() if state != "unreadable"]
    known = keystore.remembered_policy(place.database)
    if not expiries and known is None:
        return NOTE, "no key yet: the server's start makes two"
    if max(expiries, default=0) <= place.now:
        return PROBLEM, "no unexpired key, so /auth answers 404: start the server, or keys rotate"
    due = keystore.rotation_due(expiries, store.policy)
    if due < place.now - OVERDUE:
        return PROBLEM, (
            f"the next key is overdue since {moment(due)}: start the server; if it runs, its log "
            "says why it cannot write"
        )
    late = place.now + store.policy.lifetime + SKEW
    far = [
        f"a key expires at {moment(exp)}, later than one made now: a longer --key-lifetime or a "
        "clock ahead of time made it, and keys rotate ends it early"
        for exp in sorted(expiries)[-1:]
        if exp > late
    ]
    return verdict([], far, f"the next key is due at {moment(due)}")


def users(place: Shared) -> Verdict:
    """Whether each user can log in, and at which cost."""
    found, twins = place.accounts().hashes(), place.accounts().twins()
    problems, notes = [], []
    if twins:
        notes.append(
            f"{len(twins)} differ from another in case or form only, {twins[0][1]!a:.70} from "
            f"{twins[0][0]!a:.70} for one: people may take one for the other"
        )
    if found.unusable:
        problems.append(
            f"{found.unusable} cannot log in, {found.example!a:.70} for one: their hash is not "
            "ours or costs too much: users reset NAME"
        )
    if found.other_cost:
        notes.append(
            f"{found.other_cost} of {found.total} hashes have another cost than "
            f"--argon2 {place.config.argon2.spelled()}; each is renewed at its user's next login"
        )
    return verdict(problems, notes, str(found.total))


def logins(place: Shared) -> Verdict:
    """When somebody logged in last."""
    newest = accounts.newest_login(place.database)
    return OK, "nobody has logged in" if newest is None else f"the newest at {newest:.19} UTC"


def log(place: Shared) -> Verdict:
    """The size of the login log, and whether its old rows are removed."""
    first, _, rows = place.logins().extent()
    keep = place.config.log_retention
    if not rows:
        return OK, "no attempts"
    found = f"about {rows} attempts since {first:.19}"
    if first < utc_text(place.now - keep - PRUNING):
        return NOTE, (
            f"{found}: a running server removes what is older than its --log-retention "
            f"({keep / 86_400:g} days here)"
        )
    return OK, found


def clock(place: Examined) -> Verdict:
    """Whether something was written later than now."""
    _, last, _ = place.logins().extent()
    newest = max(last, utc_text(place.database.path.stat().st_mtime))
    if newest <= utc_text(place.now + SKEW):
        return OK, moment(place.now)
    return NOTE, (
        f"it is {moment(place.now)}, and something was written at {newest:.19}: if the clock is "
        "behind, set it; if it was ahead then, nothing is to do"
    )


def shown(size: int) -> str:
    """A number of octets as people read it."""
    for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1024:.0f} KiB"


def moment(seconds: float) -> str:
    """A time as people read it."""
    return f"{utc_text(seconds)[:19]} UTC"


OUTSIDE: dict[str, Check] = {
    "version": version_of_ours,
    "python": python,
    "sqlite": sqlite,
    "packages": packages,
    "issuer": issuer,
    "balancer": balancer,
    "tokens": tokens,
    "directory": directory,
    "disk": disk,
    "files": files,
    "owner": ownership_of,
    "mount": mount,
    "wal": wal,
}
COMMON: dict[str, Check] = {
    "keys": keys,
    "rotation": rotation,
    "users": users,
    "logins": logins,
    "log": log,
}
INSIDE: dict[str, Check] = {
    "integrity": integrity,
    "secret": secret,
    **COMMON,
    "clock": clock,
}
MACHINE = (
    "version",
    "python",
    "packages",
    "issuer",
    "balancer",
    "tokens",
)  # wherever the database is
INSIDE_SHARED: dict[str, Check] = {"secret": given_secret}
