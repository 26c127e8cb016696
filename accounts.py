"""Users, their Argon2id hashes, and the log of who tried to log in.

    register       name, e-mail -> a generated password, shown once
    authenticate   name, password -> the account; exactly one hashing step, whoever asks
    record         what came of it, on disk before the answer leaves

Rules of this file:
- Unknown user and wrong password cost the same and look the same: one Argon2 verification, against
  the stored hash or against a dummy made with the same parameters.
- Whoever calls is who hashes: a server has no more threads for that than cores, since each takes
  19 MiB, which the C library keeps, and more would only take turns.
- What an unknown user typed as a name is never stored: people type their password there.
- Names are compared after Unicode NFC; what could be mistaken for another name (control and format
  characters, others that show nothing, odd spaces, a difference in ASCII case only) is not a name.

SQL on `users`, `auth_logs` and `auth_outcomes`, and argon2, stay in this file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import os
import queue
import re
import sqlite3
import threading
import time
import unicodedata
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence, Sized
from datetime import datetime, timezone
from typing import Callable, NamedTuple, TypeVar

import argon2

from database import CannotOpen, Database

T = TypeVar("T")

MAX_NAME = 64  # code points: fits a log line; also what a `sub` may sensibly be
NFC_GROWTH = 4  # code points that one may be decomposed into canonically, at the most (UAX #15)
MAX_EMAIL = 254  # RFC 5321 §4.5.3.1.3, less the two angle brackets
MAX_PASSWORD = 1024  # code points; a generated one has 36
# Local part and domain as RFC 5321 bounds them; quoting and address literals are left out.
EMAIL = re.compile(
    r"[^\s@]{1,64}@(?=.{1,253}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc
# What isprintable() lets through and yet shows nothing: Unicode's Default_Ignorable_Code_Point that
# are marks or letters, and three that fonts draw blank (braille, Khitan filler, null notehead).
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00016fe4\U0001d159\U000e0100-\U000e01ef]"
)
HASH = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,8}),t=([0-9]{1,4}),p=([0-9]{1,3})\$[A-Za-z0-9+/$]+"
)
MAX_COST_FACTOR = 4  # a stored hash may cost this many times: an edited row is no lever
COMMON_MEMORY = 65_536  # KiB of RFC 9106's second choice, argon2-cffi's default
COMMON_COST = 3 * COMMON_MEMORY  # passes x KiB of the same
MAX_LANES = 16
# A lack of memory or threads, in the words of the C library: its error is all that argon2 tells us.
EXHAUSTED = {argon2.low_level.error_to_str(code) for code in (-22, -33)}  # argon2.h
# Read at a start to prime the limiter: 500 attempts a second for a minute take 50 ms.
RECENT_ROWS = 32_768
PRUNED_ROWS = 100  # in one commit: some milliseconds for which logins wait, on a log of millions
PRUNE_STEPS = 10  # commits a second: 86 million rows a day, twice what 500 logins a second leave
CLOCKS_APART = 86_400  # seconds; a row that is dated further ahead was dated by a wrong clock
LOG_PAGE = 1_000  # rows that an operator's command reads at a time: the log may have millions
UNLINK_PAUSE = 0.01  # seconds between two commits of a page: as long as they take, so others write
VERIFIED_ENTRIES = 65_536  # remembered verifications; about 20 MB when full


OUTCOMES = ("success", "bad_password", "unknown_user", "no_key")
OF_USER = "user_id = (SELECT id FROM users WHERE username = ?)"
UNLINK = "UPDATE auth_logs SET user_id = NULL"
# The log has no index on time and may be millions long: its newest rows are read. Each is judged by
# itself, because other programs write to the table too, and grouped here, which halves the time.
RECENT = (
    "SELECT request_ip, group_concat(max(0, "
    "CAST((julianday(?) - julianday(request_timestamp)) * 86400000.0 + 0.5 AS INTEGER))) "
    "FROM auth_logs WHERE id > "
    "coalesce((SELECT id FROM auth_logs ORDER BY id DESC LIMIT 1 OFFSET ?), 0) "
    "AND typeof(request_timestamp) = 'text' AND request_timestamp BETWEEN ? AND ? "
    "AND typeof(request_ip) = 'text' GROUP BY request_ip"
)
# 1 for a row that is too old, 0 for one to keep, NULL for one without a date that can be believed.
DUE = (
    "CASE WHEN typeof(request_timestamp) = 'text' AND request_timestamp <= ? "
    "AND request_timestamp GLOB '[12][0-9][0-9][0-9]-*' THEN request_timestamp < ? END"
)
CONDITIONS = (  # in the order of `Wanted`
    "coalesce(outcome, '-') = ?",  # so phrased, the log is read in its order, newest first
    "request_ip = ?",
    OF_USER,
    "request_timestamp >= ?",
)
LOG = (
    "auth_logs LEFT JOIN auth_outcomes ON log_id = auth_logs.id "
    "LEFT JOIN users ON users.id = user_id"
)


class HashCost(NamedTuple):
    """Argon2id's parameters.

    The default is OWASP's floor. It guards chosen passwords against guessing; ours are generated
    and have 122 random bits, which no hash, however slow, could make harder to guess.
    """

    time: int = 2
    memory_kib: int = 19_456
    lanes: int = 1

    def spelled(self) -> str:
        """As `--argon2` takes it."""
        return f"t={self.time},m={self.memory_kib},p={self.lanes}"


OWASP_FLOOR = HashCost()


class User(NamedTuple):
    """An account that proved its password. `new_hash` replaces one made at another cost."""

    id: int
    name: str
    password_hash: str
    new_hash: str | None = None


class Attempt(NamedTuple):
    """A row for the log. `proved` is the stored hash that the password was verified against."""

    address: str
    time: str
    user_id: int | None
    outcome: str
    proved: str | None = None
    new_hash: str | None = None  # takes its place


class Logged(NamedTuple):
    """A row of the log as an operator reads it; `user` is None if unknown, or deleted since."""

    number: int
    time: str
    address: str
    outcome: str
    user: str | None


class Hashes(NamedTuple):
    """How many of the stored hashes are what."""

    total: int
    other_cost: int  # of another cost than ours: each is renewed at its user's next login
    unusable: int  # foreign, or too expensive: no password matches them
    example: str | None  # the user of one of these


class Wanted(NamedTuple):
    """Which rows of the log: all that agree with every member that is not None."""

    outcome: str | None = None
    address: str | None = None
    user: str | None = None
    since: str | None = None  # UTC text, or the beginning of one

    def where(self) -> tuple[str, tuple[str, ...]]:
        """The condition in SQL, and its parameters."""
        given = [(sql, value) for sql, value in zip(CONDITIONS, self) if value is not None]
        return " AND ".join(["1", *(sql for sql, _ in given)]), tuple(value for _, value in given)


class Malformed(ValueError):
    """This cannot be a name, an e-mail address or a password; the sentence says why."""


class NameTaken(Exception):
    """The name or the e-mail address belongs to an account (which of the two is not said)."""


class UnknownUser(Exception):
    """An operator named an account that does not exist."""


class InvalidCredentials(Exception):
    """No such user, or not its password. `outcome` and `user_id` are for the log only."""

    def __init__(self, outcome: str, user_id: int | None) -> None:
        super().__init__("unknown user or wrong password")
        self.outcome = outcome
        self.user_id = user_id


class Superseded(Exception):
    """The password that was verified is no longer that of the account; ask again."""


class Busy(Exception):
    """There is no memory to hash with."""


# -- what is a name, an e-mail address, a password


def checked_name(text: str) -> str:
    """The name in NFC.

    Raises:
        Malformed: not 1 to 64 visible characters, or with spaces or a colon where none may be.
    """
    # Bounded before it is normalised: NFC takes a second for 16,000 pairs of combining marks.
    name = unicodedata.normalize("NFC", text) if len(text) <= NFC_GROWTH * MAX_NAME else ""
    if not 1 <= len(name) <= MAX_NAME:
        raise Malformed(f"username must have 1 to {MAX_NAME} characters")
    # isprintable() is False for control, format, private and unassigned characters, lone
    # surrogates, and every space but U+0020.
    if not name.isprintable() or ":" in name:
        raise Malformed("username must consist of printable characters, without a colon")
    if INVISIBLE.search(name):
        raise Malformed("username must not hold characters that show nothing")
    if name.strip(" ") != name or "  " in name:
        raise Malformed("username must not begin or end with a space or hold two in a row")
    return name


def checked_email(text: str) -> str:
    """The address as typed.

    Raises:
        Malformed: it is not of the form local@domain.tld.
    """
    if len(text) > MAX_EMAIL or not text.isprintable() or not EMAIL.fullmatch(text):
        raise Malformed("email must be an address like name@example.org, or be left out")
    return text


def checked_password(text: str) -> str:
    """The password, unchanged: it is compared character for character.

    Raises:
        Malformed: it is empty, too long, or not Unicode text, or it holds control characters.
    """
    if not 1 <= len(text) <= MAX_PASSWORD:
        raise Malformed(f"password must have 1 to {MAX_PASSWORD} characters")
    if CONTROL.search(text):
        raise Malformed("password must not hold control characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Malformed("password must not hold a lone surrogate") from error
    return text


def utc_text(seconds: float) -> str:
    """A wall-clock time as the database holds it: `YYYY-MM-DD HH:MM:SS.mmm`, UTC."""
    moment = datetime.fromtimestamp(max(0.0, seconds), timezone.utc)
    return moment.isoformat(" ", "milliseconds")[:23]  # without the offset


def write_attempts(
    connection: sqlite3.Connection, attempts: Sequence[Attempt]
) -> dict[int, Exception]:
    """Write rows of the log; returns the places of those that were superseded, and not written.

    All that share a commit share a statement a table: each step of a statement lets go of the
    interpreter, and under load has to win it back.
    """
    superseded = find_superseded(connection, attempts)
    kept = [attempt for place, attempt in enumerate(attempts) if place not in superseded]
    if kept:
        write_log(connection, kept)
        write_users(connection, kept)
    return superseded


def find_superseded(
    connection: sqlite3.Connection, attempts: Sequence[Attempt]
) -> dict[int, Exception]:
    """Whose password was changed since it was verified, or whose account was deleted.

    Nobody else writes within this transaction: what is true here is true at the commit.
    """
    proved = {attempt.user_id for attempt in attempts if attempt.proved is not None}
    current = dict(
        connection.execute(
            f"SELECT id, password_hash FROM users WHERE id IN ({_several('?', proved)})",  # noqa: S608
            [*proved],
        )
    )
    return {
        place: Superseded()
        for place, attempt in enumerate(attempts)
        if attempt.proved is not None and attempt.proved != current.get(attempt.user_id)
    }


def write_log(connection: sqlite3.Connection, attempts: Sequence[Attempt]) -> None:
    """The attempts and how they ended."""
    # A user deleted meanwhile leaves a row without a name.
    rows = _several("(?, ?, (SELECT id FROM users WHERE id = ?))", attempts)
    connection.execute(
        f"INSERT INTO auth_logs (request_ip, request_timestamp, user_id) VALUES {rows}",  # noqa: S608
        [value for attempt in attempts for value in attempt[:3]],
    )
    ((last,),) = connection.execute("SELECT last_insert_rowid()")
    # Nobody else writes within the transaction: the numbers of its rows have no gap.
    numbered = list(enumerate(attempts, last - len(attempts) + 1))
    connection.execute(
        "INSERT OR REPLACE INTO auth_outcomes (log_id, outcome) VALUES "  # noqa: S608
        + _several("(?, ?)", numbered),
        [value for number, attempt in numbered for value in (number, attempt.outcome)],
    )


def write_users(connection: sqlite3.Connection, attempts: Sequence[Attempt]) -> None:
    """What a login changes about its account."""
    logins = {a.user_id: a.time for a in attempts if a.outcome == "success"}
    if logins:
        connection.execute(
            f"WITH logins(id, time) AS (VALUES {_several('(?, ?)', logins)}) "  # noqa: S608
            "UPDATE users SET last_login = (SELECT time FROM logins WHERE logins.id = users.id) "
            "WHERE id IN (SELECT id FROM logins)",
            [value for login in logins.items() for value in login],
        )
    connection.executemany(
        "UPDATE users SET password_hash = ? WHERE id = ?",
        [(a.new_hash, a.user_id) for a in attempts if a.new_hash],
    )


def write_accounts(
    connection: sqlite3.Connection, accounts: Sequence[tuple[str | None, ...]]
) -> dict[int, Exception]:
    """Write new accounts; returns the places of those whose name or address is taken."""
    taken: dict[int, Exception] = {}
    for place, account in enumerate(accounts):
        try:
            connection.execute(
                "INSERT INTO users (username, password_hash, email, date_registered) "
                "VALUES (?, ?, ?, ?)",
                account,
            )
        except sqlite3.IntegrityError:  # this statement alone is undone
            taken[place] = NameTaken()
    return taken


def _several(row: str, of: Sized) -> str:
    return ", ".join([row] * len(of))


def require_no_twins(connection: sqlite3.Connection) -> None:
    """Refuse a file without our indexes in which two accounts would be one for us.

    Raises:
        CannotOpen: the sentence names them.
    """
    known = {row[0] for row in connection.execute("SELECT lower(name) FROM sqlite_master")}
    for column in ("username", "email") if "users" in known else ():
        if f"users_{column}_nocase" in known:  # it says there are none, at no cost
            continue
        twins = connection.execute(
            f"SELECT min({column}), max({column}) FROM users WHERE {column} IS NOT NULL "  # noqa: S608
            f"GROUP BY {column} COLLATE NOCASE HAVING count(*) > 1"
        ).fetchall()
        if twins:
            more = f", as do {len(twins) - 1} more" if len(twins) > 1 else ""
            raise CannotOpen(
                f"it has users whose {column} differs in case only, {twins[0][0]!r} and "
                f"{twins[0][1]!r}{more}: it can be used once one of them is renamed or deleted"
            )


def dummy_hash(cost: HashCost) -> str:
    """A stored hash that no password matches, and that costs what a real one does to verify.

    Its tag is random instead of computed: 256 bits that nothing hashes to, and nothing to wait for
    at a start.
    """
    salt, tag = (
        base64.b64encode(os.urandom(size)).rstrip(b"=").decode()
        for size in (argon2.DEFAULT_RANDOM_SALT_LENGTH, argon2.DEFAULT_HASH_LENGTH)
    )
    return f"$argon2id$v=19$m={cost.memory_kib},t={cost.time},p={cost.lanes}${salt}${tag}"


class Accounts:
    """The users and the login log of one database. `clock` is the wall clock."""

    def __init__(
        self,
        database: Database,
        *,
        cost: HashCost = OWASP_FLOOR,
        verified_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`verified_seconds`: how long a verified password is remembered; 0 for not at all."""
        self._database = database
        self._clock = clock
        self._cost = cost
        self._hasher = argon2.PasswordHasher(cost.time, cost.memory_kib, cost.lanes)
        self._dummy = dummy_hash(cost)
        self._verified = Verified(verified_seconds, clock=monotonic)
        # Numbers of rows: prune_log goes on after the first, and found the second to be due.
        self._passed = self._due = 0

    # -- the way of a request

    def register(self, name: str, email: str | None) -> str:
        """Create an account with a generated password (a UUIDv4, RFC 9562) and return it.

        Raises:
            NameTaken: the name or the address is in use.
            Busy, Unavailable: not now; nothing was changed.
        """
        password = str(uuid.uuid4())
        self.add(name, email, password)
        return password

    def authenticate(self, name: str, password: str) -> User:
        """The account of this name, if this is its password: at the latest when it is recorded.

        Raises:
            InvalidCredentials: unknown name or wrong password, at the same cost.
            Busy, Unavailable: not now.
        """
        remembered = self._verified.user(name, password)
        if remembered is not None:  # `record` says if it has changed since
            return remembered
        rows = self._database.read(
            "SELECT id, username, password_hash FROM users WHERE username = ?", (name,)
        )
        if not rows:
            self._matches(self._dummy, password)
            raise InvalidCredentials("unknown_user", None)
        user = User(*rows[0])
        stored_hash = user.password_hash if self._affordable(user.password_hash) else self._dummy
        if not self._matches(stored_hash, password) or stored_hash is self._dummy:
            raise InvalidCredentials("bad_password", user.id)
        if self._hasher.check_needs_rehash(stored_hash):
            return user._replace(new_hash=self._hash(password))
        self._verified.remember(user, password)
        return user

    def about_to_record(self) -> contextlib.AbstractContextManager[None]:
        """Inside, an attempt is on its way to `record`: others wait for it to share a commit."""
        return self._database.announced()

    def record(
        self,
        address: str,
        outcome: str,
        user: User | int | None,
        written: Callable[[Exception | None], None],
    ) -> None:
        """Log an attempt, and with a success the time of the login. Returns at once.

        `written(None)` is called once it is on disk, by the writer thread; with an exception if it
        could not be written: then no token may leave either. `Superseded`: authenticate again.
        """
        now = utc_text(self._clock())
        if not isinstance(user, User):
            attempt = Attempt(address, now, user, outcome)
            self._database.append(write_attempts, attempt, written)
            return
        attempt = Attempt(address, now, user.id, outcome, user.password_hash, user.new_hash)

        def told(trouble: Exception | None) -> None:
            if isinstance(trouble, Superseded):
                self._verified.forget(user.name)
            written(trouble)

        self._database.append(write_attempts, attempt, told)

    def new_account(self, name: str, email: str | None, password: str) -> tuple[str | None, ...]:
        """A row for `insert`.

        Raises:
            NameTaken: the name or the address is in use.
            Busy, Unavailable: not now.
        """
        # Asked before the hash is paid for, so that taken names are refused cheaply; the unique
        # indexes decide if two come at the same time.
        if self._database.read(
            "SELECT 1 FROM users WHERE username = ? COLLATE NOCASE OR email = ? COLLATE NOCASE",
            (name, email),
        ):
            raise NameTaken
        return name, self._hash(password), email, utc_text(self._clock())

    def insert(
        self, account: tuple[str | None, ...], written: Callable[[Exception | None], None]
    ) -> None:
        """Create it. Returns at once; `written` is called as by `record`, or with `NameTaken`."""
        self._database.append(write_accounts, account, written)

    # -- the operator's commands

    def add(self, name: str, email: str | None, password: str) -> None:
        """Create an account with a given password, on disk. Raises as `new_account` does."""
        told: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.insert(self.new_account(name, email, password), told.put)
        trouble = told.get()
        if trouble is not None:
            raise trouble

    def reset(self, name: str) -> str:
        """Give the account a new generated password and return it.

        Raises:
            UnknownUser: there is no such account.
        """
        password = str(uuid.uuid4())
        new_hash = self._hash(password)
        self._change_user("UPDATE users SET password_hash = ? WHERE username = ?", (new_hash, name))
        return password

    def delete(self, name: str) -> None:
        """Delete the account; its rows in the log stay, without a name.

        It ends at once. Its rows may be millions, so they are gone through in small commits before
        the row of the account leaves; interrupted, it goes on when it is called again.

        Raises:
            UnknownUser: there is no such account.
        """
        self._change_user("UPDATE users SET password_hash = '' WHERE username = ?", (name,))
        newest = self._take_off_the_log(name)

        def delete(connection: sqlite3.Connection) -> None:
            # Those that came meanwhile; and no row names an account that does not exist.
            connection.execute(f"{UNLINK} WHERE id > ? AND {OF_USER}", (newest, name))
            connection.execute("DELETE FROM users WHERE username = ?", (name,))

        self._database.write(delete)

    def _take_off_the_log(self, name: str) -> int:
        """Unlink the rows that the log holds now; returns the number of the newest one."""
        ((newest,),) = self._database.read("SELECT coalesce(max(id), 0) FROM auth_logs")
        page = (
            f"SELECT id FROM auth_logs WHERE id > ? AND id <= ? AND {OF_USER} "  # noqa: S608
            f"ORDER BY id LIMIT {LOG_PAGE}"
        )
        rows = self._database.read(page, (0, newest, name))
        while rows:
            self._unlink(rows)
            time.sleep(UNLINK_PAUSE)
            rows = self._database.read(page, (rows[-1][0], newest, name))
        return int(newest)

    def _unlink(self, rows: list[tuple[int]]) -> None:
        sql = f"{UNLINK} WHERE id = ?"
        self._database.write(lambda connection: connection.executemany(sql, rows))

    def _change_user(self, sql: str, values: tuple[str, ...]) -> None:
        if not self._database.write(lambda connection: connection.execute(sql, values).rowcount):
            raise UnknownUser(f"there is no user {values[-1]!r}")

    def stored_name(self, text: str) -> str:
        """The name of the account that is meant: as it stands if there is one, else checked.

        Another program's account may have a name that is none for us, and an operator must name it.

        Raises:
            Malformed: there is no account of this name, nor can there be.
        """
        with contextlib.suppress(UnicodeEncodeError):  # not a text: no parameter of a statement
            if self._database.read("SELECT 1 FROM users WHERE username = ?", (text,)):
                return text
        return checked_name(text)

    def users(self) -> list[tuple[str, str | None, str, str | None]]:
        """Name, e-mail, registration and last login of every account, by name."""
        return [
            (name, email, registered, last_login)
            for name, email, registered, last_login in self._database.read(
                "SELECT username, email, date_registered, last_login FROM users ORDER BY username"
            )
        ]

    def hashes(self) -> Hashes:
        """What the stored hashes are; reads all of them."""
        # Grouped by algorithm and cost ($argon2id$v=19$m=...,t=...,p=...$), of which there are few.
        # The column may hold anything: other programs write this table, too.
        found = self._database.read(
            "SELECT CASE WHEN hash GLOB '$argon2id$v=19$*' "
            "THEN substr(hash, 1, 15 + instr(substr(hash, 16), '$')) END AS header, "
            "count(*), min(username) "
            "FROM (SELECT CAST(password_hash AS TEXT) AS hash, username FROM users) GROUP BY header"
        )
        usable = [row for row in found if row[0] and self._affordable(row[0] + "0")]
        unusable = [row for row in found if row not in usable]
        ours = f"$argon2id$v=19$m={self._cost.memory_kib},t={self._cost.time},p={self._cost.lanes}$"
        return Hashes(
            sum(count for _, count, _ in found),
            sum(count for header, count, _ in usable if header != ours),
            sum(count for _, count, _ in unusable),
            next((str(name) for _, _, name in unusable), None),
        )

    def log_extent(self) -> tuple[str, str, int]:
        """The times of its first and last row, and about how many there are; reads those two."""
        ends = [
            self._database.read(
                "SELECT id, CAST(coalesce(request_timestamp, '') AS TEXT) FROM auth_logs "  # noqa: S608
                f"ORDER BY id {order} LIMIT 1"
            )
            for order in ("ASC", "DESC")
        ]
        if not all(ends):
            return "", "", 0
        ((first, since),), ((last, until),) = ends
        return since, until, last - first + 1

    def recent_attempts(self, seconds: float) -> list[tuple[str, list[float]]]:
        """Each address of the log, and the ages of its attempts of the last `seconds`, in seconds.

        A row from the future counts as now: its clock was ahead and has been put right since.
        """
        now = self._clock()
        found = self._database.read(
            RECENT, (utc_text(now), RECENT_ROWS, utc_text(now - seconds), utc_text(now + seconds))
        )
        return [
            (address, [int(age) / 1000 for age in milliseconds.split(",")])
            for address, milliseconds in found
            if milliseconds
        ]

    def log(self, wanted: Wanted, after: int = 0) -> Iterator[Logged]:
        """The rows with a number above `after`, oldest first, read a page at a time."""
        condition, values = wanted.where()
        while True:
            page = self._database.read(
                "SELECT auth_logs.id, request_timestamp, request_ip, coalesce(outcome, '-'), "  # noqa: S608
                f"username FROM {LOG} WHERE auth_logs.id > ? AND {condition} "
                f"ORDER BY auth_logs.id LIMIT {LOG_PAGE}",
                (after, *values),
            )
            yield from map(Logged._make, page)
            if len(page) < LOG_PAGE:
                return
            after = page[-1][0]

    def newest_number(self) -> int:
        """The number of the newest row, 0 if there is none."""
        ((newest,),) = self._database.read("SELECT coalesce(max(id), 0) FROM auth_logs")
        return int(newest)

    def before_last(self, wanted: Wanted, count: int) -> int:
        """The number after which `log` yields the last `count` rows."""
        condition, values = wanted.where()
        found = self._database.read(
            f"SELECT auth_logs.id FROM {LOG} WHERE {condition} "  # noqa: S608
            "ORDER BY auth_logs.id DESC LIMIT 1 OFFSET ?",
            (*values, count),
        )
        return found[0][0] if found else 0

    def log_summary(self, wanted: Wanted) -> list[tuple[str, str, int, str, str]]:
        """Address, outcome, how many attempts, the first and the last time; the most first."""
        condition, values = wanted.where()
        return [
            (address, outcome, count, first, last)
            for address, outcome, count, first, last in self._database.read(
                "SELECT request_ip, coalesce(outcome, '-'), count(*), min(request_timestamp), "  # noqa: S608
                f"max(request_timestamp) FROM {LOG} WHERE {condition} "
                "GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
                values,
            )
        ]

    def prune_log(self, seconds: float) -> None:
        """Delete log rows older than `seconds`, a bounded number of the oldest in small commits.

        Rows are gone through in the order in which they were written, up to the first to be kept.
        One without a date, or with a date to come, is passed by; it goes once one behind it is due.

        Raises:
            Unavailable: the database cannot be written; the next call tries again.
        """
        now = self._clock()
        dates = utc_text(now + CLOCKS_APART), utc_text(now - seconds)
        for _ in range(PRUNE_STEPS):
            rows = self._database.read(
                f"SELECT id, {DUE} FROM auth_logs WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608
                (*dates, self._passed, PRUNED_ROWS),
            )
            old = list(itertools.takewhile(lambda row: row[1] != 0, rows))
            self._due = max([self._due, *(number for number, due in old if due)])
            self._delete_rows([(number,) for number, due in old if due or number < self._due])
            if len(old) < PRUNED_ROWS:  # a row to be kept, or the end: the next call starts over
                self._passed = 0
                return
            self._passed = old[-1][0]

    def _delete_rows(self, rows: list[tuple[int]]) -> None:
        sql = "DELETE FROM auth_logs WHERE id = ?"
        if rows:
            self._database.write(lambda connection: connection.executemany(sql, rows))

    # -- hashing

    def _matches(self, stored_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored_hash, password)
        except argon2.exceptions.VerifyMismatchError:
            return False
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError) as error:
            if str(error) in EXHAUSTED:
                raise Busy("no memory to hash with") from error
        # What only looked like a hash was refused before any hashing: it costs a step all the same.
        return stored_hash is not self._dummy and self._matches(self._dummy, password)

    def _hash(self, password: str) -> str:
        try:
            return self._hasher.hash(password)
        except argon2.exceptions.HashingError as error:
            raise Busy("no memory to hash with") from error

    def _affordable(self, stored_hash: object) -> bool:
        """Whether this is an Argon2id hash that we can pay for; anything else matches nothing."""
        parts = HASH.fullmatch(stored_hash) if isinstance(stored_hash, str) else None
        if parts is None:
            return False
        memory, passes, lanes = map(int, parts.groups())
        sound = passes >= 1 and 1 <= lanes <= MAX_LANES and memory >= 8 * lanes  # RFC 9106 §3.1
        dearest = max(self._cost.time * self._cost.memory_kib, COMMON_COST)
        largest = max(self._cost.memory_kib, COMMON_MEMORY)
        affordable = memory * passes <= MAX_COST_FACTOR * dearest
        return sound and affordable and memory <= MAX_COST_FACTOR * largest


class Verified:
    """Passwords that Argon2 verified a while ago, so that the same login need not pay again.

    Holds no password: a keyed BLAKE2b under a key that dies with the process, over the password and
    the stored hash it matched. A wrong password is never found here and always pays for Argon2. A
    reset or a deletion, by whichever process, is noticed where the login is written down: in the
    transaction that would acknowledge it.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float]) -> None:
        """`seconds`: how long an entry counts; 0 remembers nothing."""
        self._seconds = seconds
        self._clock = clock
        self._key = os.urandom(64)
        self._lock = threading.Lock()  # guards the order of _entries and their number
        self._entries: OrderedDict[str, tuple[User, bytes, float]] = OrderedDict()

    def user(self, name: str, password: str) -> User | None:
        """The account as it was when exactly this password was verified, if that is known."""
        entry = self._entries.get(name)
        if entry is None or self._clock() >= entry[2]:
            return None
        user, digest, _ = entry
        return user if hmac.compare_digest(digest, self._digest(user, password)) else None

    def remember(self, user: User, password: str) -> None:
        """Note that Argon2 has just verified it; the oldest entry makes room."""
        if not self._seconds:
            return
        with self._lock:
            self._entries.pop(user.name, None)
            entry = user, self._digest(user, password), self._clock() + self._seconds
            self._entries[user.name] = entry
            if len(self._entries) > VERIFIED_ENTRIES:
                self._entries.popitem(last=False)

    def forget(self, name: str) -> None:
        """The account has changed."""
        with self._lock:
            self._entries.pop(name, None)

    def _digest(self, user: User, password: str) -> bytes:
        # A stored hash holds no NUL and is hashed first: no other pair gives the same bytes.
        bound = f"{user.password_hash}\0{password}".encode()
        return hashlib.blake2b(bound, key=self._key, digest_size=32).digest()
