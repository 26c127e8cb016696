"""Users, their Argon2id hashes, and the log of who tried to log in.

    register       name, e-mail -> a generated password, shown once
    authenticate   name, password -> the account; exactly one hashing step, whoever asks
    record         what came of it, on disk before the answer leaves

Rules of this file:
- Unknown user and wrong password cost the same and look the same: one Argon2 verification, against
  the stored hash or against a dummy made with the same parameters.
- No more hashing at once than there are cores: each takes 19 MiB, and more would only queue.
- What an unknown user typed as a name is never stored: people type their password there.
- Names are compared after Unicode NFC; what could be mistaken for another name (control and format
  characters, odd spaces, a difference in ASCII case only) is not a name.

SQL on `users`, `auth_logs` and `auth_outcomes`, and argon2, stay in this file.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import hmac
import os
import re
import sqlite3
import threading
import time
import unicodedata
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from typing import Callable, NamedTuple, TypeVar

import argon2

from database import Database

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
HASH = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,8}),t=([0-9]{1,4}),p=([0-9]{1,3})\$[A-Za-z0-9+/$]+"
)
MAX_COST_FACTOR = 4  # a stored hash may cost this many times: an edited row is no lever
COMMON_COST = 3 * 65_536  # passes x KiB of RFC 9106's second choice, argon2-cffi's default
MAX_LANES = 16
HASH_WAIT_SECONDS = 2.0  # for a hashing thread; longer means overload, and the answer is 503
RECENT_ROWS = 65_536  # read at a start to prime the limiter: as many as it has sources
PRUNED_ROWS = 100  # in one commit: some milliseconds for which logins wait, on a log of millions
PRUNE_STEPS = 10  # commits a second: 86 million rows a day, twice what 500 logins a second leave
LOG_PAGE = 1_000  # rows that an operator's command reads at a time: the log may have millions
VERIFIED_ENTRIES = 65_536  # remembered verifications; about 20 MB when full


OUTCOMES = ("success", "bad_password", "unknown_user", "no_key")
CONDITIONS = (  # in the order of `Wanted`
    "coalesce(outcome, '-') = ?",  # so phrased, the log is read in its order, newest first
    "request_ip = ?",
    "user_id = (SELECT id FROM users WHERE username = ?)",
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
    """A row for the log; a `new_hash` takes the place of the `old_hash` that was verified."""

    address: str
    time: str
    user_id: int | None
    outcome: str
    new_hash: str | None = None
    old_hash: str | None = None


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


class Busy(Exception):
    """No core was free to hash in time."""


# -- what is a name, an e-mail address, a password


def checked_name(text: str) -> str:
    """The name in NFC.

    Raises:
        Malformed: not 1 to 64 printable characters, or with spaces or a colon where none may be.
    """
    # Bounded before it is normalised: NFC takes a second for 16,000 pairs of combining marks.
    name = unicodedata.normalize("NFC", text) if len(text) <= NFC_GROWTH * MAX_NAME else ""
    if not 1 <= len(name) <= MAX_NAME:
        raise Malformed(f"username must have 1 to {MAX_NAME} characters")
    # isprintable() is False for control, format, private and unassigned characters, lone
    # surrogates, and every space but U+0020.
    if not name.isprintable() or ":" in name:
        raise Malformed("username must consist of printable characters, without a colon")
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


def write_attempts(connection: sqlite3.Connection, attempts: Sequence[Attempt]) -> None:
    """Write rows of the log: a statement a table for all that share a commit."""
    connection.executemany(
        # A user deleted meanwhile leaves a row without a name.
        "INSERT INTO auth_logs (request_ip, request_timestamp, user_id) "
        "VALUES (?, ?, (SELECT id FROM users WHERE id = ?))",
        [attempt[:3] for attempt in attempts],
    )
    ((last,),) = connection.execute("SELECT last_insert_rowid()")
    # Nobody else writes within the transaction: the numbers of its rows have no gap.
    first = last - len(attempts) + 1
    connection.executemany(
        "INSERT OR REPLACE INTO auth_outcomes (log_id, outcome) VALUES (?, ?)",
        [(number, attempt.outcome) for number, attempt in enumerate(attempts, first)],
    )
    logins = {a.user_id: a.time for a in attempts if a.outcome == "success"}
    connection.executemany(
        "UPDATE users SET last_login = ? WHERE id = ?",
        [(time, user_id) for user_id, time in logins.items()],
    )
    connection.executemany(
        # Only over the hash that was verified: a reset in between must win.
        "UPDATE users SET password_hash = ? WHERE id = ? AND password_hash = ?",
        [(a.new_hash, a.user_id, a.old_hash) for a in attempts if a.new_hash],
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
        cores: int = os.cpu_count() or 1,
        verified_seconds: float = 0.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`verified_seconds`: how long a verified password is remembered; 0 for not at all."""
        self._database = database
        self._clock = clock
        self._cost = cost
        self._hasher = argon2.PasswordHasher(cost.time, cost.memory_kib, cost.lanes)
        # Threads of their own, and not only a semaphore: the C library keeps the memory of each
        # thread that ever hashed.
        self._hashers = concurrent.futures.ThreadPoolExecutor(cores, "hasher")
        self._dummy = dummy_hash(cost)
        self._verified = Verified(verified_seconds, clock=monotonic)

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
        """The account of this name, if this is its password.

        Raises:
            InvalidCredentials: unknown name or wrong password, at the same cost.
            Busy, Unavailable: not now.
        """
        rows = self._database.read(
            "SELECT id, username, password_hash FROM users WHERE username = ?", (name,)
        )
        if not rows:
            self._matches(self._dummy, password)
            raise InvalidCredentials("unknown_user", None)
        user = User(*rows[0])
        if self._verified.knows(user, password):
            return user
        stored_hash = user.password_hash if self._affordable(user.password_hash) else self._dummy
        if not self._matches(stored_hash, password) or stored_hash is self._dummy:
            raise InvalidCredentials("bad_password", user.id)
        if self._hasher.check_needs_rehash(stored_hash):
            return user._replace(new_hash=self._hash(password))
        self._verified.remember(user, password)
        return user

    def record(
        self,
        address: str,
        outcome: str,
        user: User | int | None,
        written: Callable[[Exception | None], None],
    ) -> None:
        """Log an attempt, and with a success the time of the login. Returns at once.

        `written(None)` is called once it is on disk, by the writer thread; with an exception if it
        could not be written: then no token may leave either.
        """
        now = utc_text(self._clock())
        if isinstance(user, User):
            attempt = Attempt(address, now, user.id, outcome, user.new_hash, user.password_hash)
        else:
            attempt = Attempt(address, now, user, outcome)
        self._database.append(write_attempts, attempt, written)

    # -- the operator's commands

    def add(self, name: str, email: str | None, password: str) -> None:
        """Create an account with a given password. Raises as `register` does."""
        # Asked before the hash is paid for, so that taken names are refused cheaply; the unique
        # indexes decide if two come at the same time.
        if self._database.read(
            "SELECT 1 FROM users WHERE username = ? COLLATE NOCASE OR email = ? COLLATE NOCASE",
            (name, email),
        ):
            raise NameTaken
        row = (name, self._hash(password), email, utc_text(self._clock()))

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO users (username, password_hash, email, date_registered) "
                "VALUES (?, ?, ?, ?)",
                row,
            )

        try:
            self._database.write(insert)
        except sqlite3.IntegrityError as error:
            raise NameTaken from error

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

        Raises:
            UnknownUser: there is no such account.
        """
        self._change_user("DELETE FROM users WHERE username = ?", (name,), forget=name)

    def _change_user(self, sql: str, values: tuple[str, ...], forget: str | None = None) -> None:
        def change(connection: sqlite3.Connection) -> int:
            if forget is not None:
                connection.execute(
                    "UPDATE auth_logs SET user_id = NULL "
                    "WHERE user_id = (SELECT id FROM users WHERE username = ?)",
                    (forget,),
                )
            return connection.execute(sql, values).rowcount

        if not self._database.write(change):
            raise UnknownUser(f"there is no user {values[-1]!r}")

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

    def recent_attempts(self, seconds: float) -> list[tuple[str, float]]:
        """Address and age in seconds of the logged attempts of the last `seconds`."""
        now = self._clock()
        since, until = utc_text(now - seconds), utc_text(now)
        # The log has no index on time and may be millions long: back from its newest row to the
        # first that is older.
        ((bound,),) = self._database.read(
            "SELECT coalesce(max(id), 0) - ? FROM auth_logs", (RECENT_ROWS,)
        )
        older = self._database.read(
            "SELECT id FROM auth_logs WHERE id > ? AND request_timestamp < ? "
            "ORDER BY id DESC LIMIT 1",
            (bound, since),
        )
        return [
            (address, max(0.0, round(age, 3)))
            for address, age in self._database.read(
                "SELECT request_ip, (julianday(?) - julianday(request_timestamp)) * 86400.0 "
                "FROM auth_logs WHERE id > ? AND request_timestamp BETWEEN ? AND ? "
                "AND typeof(request_ip) = 'text' AND julianday(request_timestamp) IS NOT NULL "
                "ORDER BY id",
                (until, older[0][0] if older else bound, since, until),
            )
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

        Raises:
            Unavailable: the database cannot be written; the next call tries again.
        """
        before = utc_text(self._clock() - seconds)
        # A row whose time another program left out or spelled as a number goes with its neighbours.
        oldest = (
            "FROM auth_logs WHERE id <= (SELECT max(id) FROM (SELECT id, request_timestamp AS time "
            "FROM auth_logs ORDER BY id LIMIT ?) WHERE typeof(time) = 'text' AND time < ?)"
        )
        values = (PRUNED_ROWS, before)

        def prune(connection: sqlite3.Connection) -> int:
            return connection.execute(f"DELETE {oldest}", values).rowcount

        if not self._database.read(f"SELECT 1 {oldest} LIMIT 1", values):
            return
        for _ in range(PRUNE_STEPS):
            if self._database.write(prune) < PRUNED_ROWS:
                return

    # -- hashing

    def _matches(self, stored_hash: str, password: str) -> bool:
        try:
            return self._on_a_core(self._hasher.verify, stored_hash, password)
        except (argon2.exceptions.VerifyMismatchError, argon2.exceptions.InvalidHashError):
            return False
        except argon2.exceptions.VerificationError as error:
            raise Busy("no memory to hash with") from error

    def _hash(self, password: str) -> str:
        return self._on_a_core(self._hasher.hash, password)

    def _on_a_core(self, function: Callable[..., T], *arguments: object) -> T:
        """What the function returns or raises, run by one of the hashing threads.

        Raises:
            Busy: every one of them was busy with others for too long.
        """
        future = self._hashers.submit(function, *arguments)
        try:
            return future.result(HASH_WAIT_SECONDS)
        except concurrent.futures.TimeoutError:
            if future.cancel():  # it had not begun
                raise Busy("every core is hashing") from None
            return future.result()

    def _affordable(self, stored_hash: object) -> bool:
        """Whether this is an Argon2id hash that we can pay for; anything else matches nothing."""
        parts = HASH.fullmatch(stored_hash) if isinstance(stored_hash, str) else None
        if parts is None:
            return False
        memory, passes, lanes = map(int, parts.groups())
        sound = passes >= 1 and 1 <= lanes <= MAX_LANES and memory >= 8 * lanes  # RFC 9106 §3.1
        dearest = max(self._cost.time * self._cost.memory_kib, COMMON_COST)
        return sound and memory * passes <= MAX_COST_FACTOR * dearest


class Verified:
    """Passwords that Argon2 verified a while ago, so that the same login need not pay again.

    Holds no password: a keyed BLAKE2b under a key that dies with the process, over the password and
    the stored hash it matched. A reset or a deletion, by whichever process, changes the stored hash
    and so ends the entry. A wrong password is never found here and always pays for Argon2.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float]) -> None:
        """`seconds`: how long an entry counts; 0 remembers nothing."""
        self._seconds = seconds
        self._clock = clock
        self._key = os.urandom(64)
        self._lock = threading.Lock()  # guards _entries
        self._entries: OrderedDict[int, tuple[bytes, float]] = OrderedDict()

    def knows(self, user: User, password: str) -> bool:
        """Whether exactly this password was verified against the hash the user has now."""
        if not self._seconds:
            return False
        entry = self._entries.get(user.id)
        if entry is None or self._clock() >= entry[1]:
            return False
        return hmac.compare_digest(entry[0], self._digest(user, password))

    def remember(self, user: User, password: str) -> None:
        """Note that Argon2 has just verified it; the oldest entry makes room."""
        if not self._seconds:
            return
        with self._lock:
            self._entries.pop(user.id, None)
            self._entries[user.id] = self._digest(user, password), self._clock() + self._seconds
            if len(self._entries) > VERIFIED_ENTRIES:
                self._entries.popitem(last=False)

    def _digest(self, user: User, password: str) -> bytes:
        # A stored hash holds no NUL and is hashed first: no other pair gives the same bytes.
        bound = f"{user.password_hash}\0{password}".encode()
        return hashlib.blake2b(bound, key=self._key, digest_size=32).digest()
