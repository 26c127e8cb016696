"""Users and their Argon2id hashes: who is it, and may they have a token?

    new_account    name, e-mail, password -> a row; `insert` has it written
    authenticate   name, password -> the account; one hashing step, whether it exists or not
    record         how the attempt ended, on disk before the answer leaves

Rules of this file:
- Unknown user and wrong password cost the same and look the same: one Argon2 verification, against
  the stored hash or against a dummy made with the same parameters.
- The calling thread hashes. A server has as many threads for that as cores: each takes 19 MiB,
  which the C library keeps, and more of them would only take turns.
- The transaction that logs an attempt decides: if the name, the password or the claims were changed
  meanwhile, by any process, the login is not acknowledged.

SQL that changes `users` and the tables of names and claims stays in this file, and so does the
hashing of passwords (sealing.py derives keys with the same package). names.py says what a name is,
logins.py keeps the login log.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Callable, NamedTuple, TypeVar

import argon2

from jwksd.store import claims
from jwksd.store.database import CannotOpen, Connection, Database, Reading
from jwksd.store.logins import (
    Attempt,
    LoginLog,
    Passed,
    disown_newer,
    several,
    unseen,
    utc_text,
    write_log,
)
from jwksd.store.names import checked_name, fold

HASH = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,8}),t=([0-9]{1,4}),p=([0-9]{1,3})\$[A-Za-z0-9+/$]+"
)
MAX_COST_FACTOR = 4  # a stored hash may cost this many times: an edited row is no lever
COMMON_MEMORY = 65_536  # KiB of RFC 9106's second choice, argon2-cffi's default
COMMON_COST = 3 * COMMON_MEMORY  # passes x KiB of the same
MAX_LANES = 16
# A lack of memory or threads, in the words of the C library: its error is all that argon2 tells us.
EXHAUSTED = {argon2.low_level.error_to_str(code) for code in (-22, -33)}  # argon2.h
T = TypeVar("T")
MISSING = (  # accounts whose name is not entered
    "SELECT id, CAST(username AS TEXT) FROM users WHERE id NOT IN "
    "(SELECT user_id FROM account_names WHERE user_id IS NOT NULL) ORDER BY id"
)
SELECT_USER = (  # the members of `User`
    "SELECT id, username, password_hash, claims FROM users LEFT JOIN account_claims ON user_id = id"
)
# Of a name: retired by us, or its account was deleted by another program.
UNUSED = "(account_names.user_id IS NULL OR account_names.user_id NOT IN (SELECT id FROM users))"
VERIFIED_ENTRIES = (
    65_536  # remembered verifications; about 40 MB when full, and the claims of their accounts
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
    claims: str | None = None  # of the account, as JSON
    new_hash: str | None = None


class Hashes(NamedTuple):
    """How many of the stored hashes are of each kind."""

    total: int
    other_cost: int  # of another cost than ours: each is renewed at its user's next login
    unusable: int  # foreign, or too expensive: no password matches them
    example: str | None  # a user with such a hash


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
    """The password that was verified is no longer that of the account `name`; ask again."""

    def __init__(self, name: str) -> None:
        super().__init__("the account has changed")
        self.name = name


class Busy(Exception):
    """There is no memory to hash with."""


def write_attempts(connection: Connection, attempts: Sequence[Attempt]) -> dict[int, Exception]:
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


def find_superseded(connection: Connection, attempts: Sequence[Attempt]) -> dict[int, Exception]:
    """The attempts, by place, whose account was changed or deleted since it was verified.

    Nobody else changes these accounts within this transaction: what is true here is true at the
    commit.
    """
    connection.lock("users", {attempt.user_id for attempt in attempts})
    proved = {attempt.user_id for attempt in attempts if attempt.proved is not None}
    current = {
        number: state
        for number, *state in (
            connection.execute(f"{SELECT_USER} WHERE id IN ({several('?', proved)})", [*proved])
            if proved
            else ()
        )
    }
    return {
        place: Superseded(attempt.proved[0])
        for place, attempt in enumerate(attempts)
        if attempt.proved is not None and [*attempt.proved] != current.get(attempt.user_id)
    }


def write_users(connection: Connection, attempts: Sequence[Attempt]) -> None:
    """Write what logins change in the rows of their accounts."""
    logins = {a.user_id: a.time for a in attempts if a.outcome == "success"}
    if logins:
        connection.execute(
            f"WITH logins(id, time) AS (VALUES {several('(?, ?)', logins)}) "  # noqa: S608
            "UPDATE users SET last_login = (SELECT time FROM logins WHERE logins.id = users.id) "
            "WHERE id IN (SELECT id FROM logins)",
            [value for login in logins.items() for value in login],
        )
    connection.executemany(
        "UPDATE users SET password_hash = ? WHERE id = ?",
        [(a.new_hash, a.user_id) for a in attempts if a.new_hash],
    )


def numbers_of(connection: Connection, name: str) -> list[int]:
    """The number of the account of this name, if there is one."""
    return [
        row[0] for row in connection.execute("SELECT id FROM users WHERE username = ?", (name,))
    ]


def write_accounts(
    connection: Connection, accounts: Sequence[tuple[str | None, ...]]
) -> dict[int, Exception]:
    """Write new accounts; returns the places of those whose name or address is taken."""
    taken: dict[int, Exception] = {}
    for place, account in enumerate(accounts):
        if not write_account(connection, account):
            taken[place] = NameTaken()
    return taken


def write_account(connection: Connection, account: tuple[str | None, ...]) -> bool:
    """Write one new account; whether its name and address are free."""
    name = account[0]
    added = connection.execute(
        "INSERT INTO users (username, password_hash, email, date_registered) "
        "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        account,
    )
    if not added.rowcount:
        return False
    entered = connection.execute(
        "INSERT INTO account_names (folded, user_id) SELECT ?, id FROM users WHERE username = ? "
        "ON CONFLICT DO NOTHING",
        (fold(str(name)), name),
    )
    if not entered.rowcount:  # as another account's, or retired
        connection.execute("DELETE FROM users WHERE username = ?", (name,))
    return bool(entered.rowcount)


def enter_names(database: Database) -> None:
    """Enter the names of accounts that an older version or another program has added.

    If two accounts have one name when it is folded, the older one gets the entry; both stay.

    Raises:
        Unavailable: the database cannot be read or written.
    """
    # Counted first: that takes milliseconds where the search among a million takes a second.
    ((missing,),) = database.read(
        "SELECT (SELECT count(*) FROM users) > (SELECT count(user_id) FROM account_names)"
    )
    rows = database.read(MISSING) if missing else []
    entries = [(fold(name), number) for number, name in rows if is_text(name)]
    if not entries:
        return
    sql = "INSERT INTO account_names (folded, user_id) VALUES (?, ?) ON CONFLICT DO NOTHING"
    database.write(lambda connection: connection.executemany(sql, entries))


def is_text(name: object) -> bool:
    """Whether a name can be a parameter of a statement: other programs may store any octets."""
    try:
        return bool(str(name).encode())
    except UnicodeEncodeError:
        return False


def require_no_twins(connection: Reading) -> None:
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
    """The users of one database. `clock` is the wall clock."""

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

    # -- the way of a request

    def remembered(self, name: str, password: str) -> User | None:
        """The account of this name, if exactly this password was verified for it lately.

        Costs microseconds. The account may have changed since: `record` decides, and raises
        Superseded.
        """
        return self._verified.user(name, password)

    def forget(self, name: str) -> None:
        """Do not remember the password of this name: it was superseded."""
        self._verified.forget(name)

    def authenticate(self, name: str, password: str) -> User:
        """The account of this name, if this is its password; costs one Argon2 verification.

        Raises:
            InvalidCredentials: unknown name or wrong password, at the same cost.
            Busy, Unavailable: not now.
        """
        rows = self._database.read(f"{SELECT_USER} WHERE username = ?", (name,))
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

    def record(
        self, address: str, outcome: str, user: User | int | None, future: Future[T], result: T
    ) -> None:
        """Log an attempt, and with a success the time of the login. Returns at once.

        `future` gives `result` once the row is durable. It raises Unavailable if the row could not
        be written, and Superseded if the account has changed since it was authenticated.
        """
        now = utc_text(self._clock())
        if isinstance(user, User):
            proved = user.name, user.password_hash, user.claims
            attempt = Attempt(address, now, user.id, outcome, proved, user.new_hash)
        else:
            attempt = Attempt(address, now, user, outcome)
        self._database.append(write_attempts, attempt, future, result)

    def new_account(self, name: str, email: str | None, password: str) -> tuple[str | None, ...]:
        """A row for `insert`.

        Raises:
            NameTaken: the name or the address is in use.
            Busy, Unavailable: not now.
        """
        # Asked before the hash is paid for, so that taken names are refused cheaply; the unique
        # indexes decide if two come at the same time.
        if self._database.read(self._database.sql.taken, (name, email, fold(name))):
            raise NameTaken
        return name, self._hash(password), email, utc_text(self._clock())

    def insert(self, account: tuple[str | None, ...], future: Future[T], result: T) -> None:
        """Create the account. Returns at once; `future` gives `result`, or raises NameTaken."""
        self._database.append(write_accounts, account, future, result)

    # -- the operator's commands

    def register(self, name: str, email: str | None) -> str:
        """Create an account with a generated password (a UUIDv4, RFC 9562) and return it.

        Raises:
            NameTaken: the name or the address is in use.
            Busy, Unavailable: not now; nothing was changed.
        """
        password = str(uuid.uuid4())
        self.add(name, email, password)
        return password

    def add(self, name: str, email: str | None, password: str) -> None:
        """Create an account with a given password, on disk. Raises as `new_account` does."""
        added: Future[None] = Future()
        self.insert(self.new_account(name, email, password), added, None)
        added.result()

    def reset(self, name: str) -> str:
        """Give the account a new generated password and return it.

        Raises:
            UnknownUser: there is no such account.
        """
        password = str(uuid.uuid4())
        new_hash = self._hash(password)
        self._change_user("UPDATE users SET password_hash = ? WHERE username = ?", (new_hash, name))
        return password

    def delete(self, name: str, *, free: bool = False, passed: Passed = unseen) -> None:
        """Delete the account and retire its name; its rows in the login log stay, without a name.

        `free` lets somebody else have the name: tokens that the account holds then speak for them.

        Logins of the account end at once. Its rows may be millions, so they are gone through in
        small commits before the row of the account leaves; interrupted, it goes on when it is
        called again. `passed` gets the number of the row that is reached, and the last one's.

        Raises:
            UnknownUser: there is no such account.
        """
        self._change_user("UPDATE users SET password_hash = '' WHERE username = ?", (name,))
        newest = LoginLog(self._database, self._clock).disown(name, passed)

        def delete(connection: Connection) -> None:
            # Rows that came meanwhile: no row may name an account that does not exist.
            connection.lock("users", numbers_of(connection, name))
            disown_newer(connection, name, newest)
            connection.execute("DELETE FROM users WHERE username = ?", (name,))
            connection.execute(
                "INSERT INTO account_names (folded, user_id) VALUES (?, NULL) "  # noqa: S608
                f"ON CONFLICT (folded) DO UPDATE SET user_id = NULL WHERE {UNUSED}",
                (fold(name),),
            )

        self._database.write(delete)
        if free:
            self._free(name)  # nothing to free if an older account has it: see enter_names

    def free(self, name: str) -> None:
        """Let a retired name be given to a new account.

        Raises:
            UnknownUser: it is not a retired name.
        """
        if not self._free(name):
            raise UnknownUser(f"there is no user {name!r}, and no retired name")

    def _free(self, name: str) -> int:
        sql = f"DELETE FROM account_names WHERE folded = ? AND {UNUSED}"  # noqa: S608
        values = (fold(name),)
        return self._database.write(lambda connection: connection.execute(sql, values).rowcount)

    def claims(self, name: str) -> dict[str, Any]:
        """The claims that the tokens of the account carry.

        Raises:
            UnknownUser: there is no such account.
        """
        rows = self._database.read(f"{SELECT_USER} WHERE username = ?", (name,))
        if not rows:
            raise UnknownUser(f"there is no user {name!r}")
        return claims.read(User(*rows[0]).claims)

    def set_claims(self, name: str, changes: Sequence[str]) -> dict[str, Any]:
        """Change the claims of the account: those it has then. The next token carries them.

        Raises:
            BadClaim: a change cannot be made.
            UnknownUser: there is no such account.
        """

        def change(connection: Connection) -> dict[str, Any]:
            connection.lock("users", numbers_of(connection, name))
            rows = connection.execute(f"{SELECT_USER} WHERE username = ?", (name,)).fetchall()
            if not rows:
                raise UnknownUser(f"there is no user {name!r}")
            user = User(*rows[0])
            result = claims.changed(claims.read(user.claims), changes)
            connection.execute("DELETE FROM account_claims WHERE user_id = ?", (user.id,))
            if result:
                connection.execute(
                    "INSERT INTO account_claims (user_id, claims) VALUES (?, ?)",
                    (user.id, claims.spelled(result)),
                )
            return result

        return self._database.write(change)

    def twins(self) -> list[tuple[str, str]]:
        """Accounts whose names are one for us, although both exist; reads all names."""
        first: dict[str, str] = {}
        found = []
        for (name,) in self._database.read("SELECT username FROM users ORDER BY id"):
            other = first.setdefault(fold(str(name)), str(name))
            if other != name:
                found.append((other, str(name)))
        return found

    def _change_user(self, sql: str, values: tuple[str, ...]) -> None:
        if not self._database.write(lambda connection: connection.execute(sql, values).rowcount):
            raise UnknownUser(f"there is no user {values[-1]!r}")

    def stored_name(self, text: str) -> str:
        """The name of the account that is meant: as it stands if there is one, else checked.

        Another program may have made an account whose name is not valid here; an operator has to be
        able to name it.

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
        """Count the stored hashes by kind; reads all of them."""
        # Grouped by algorithm and cost ($argon2id$v=19$m=...,t=...,p=...$), of which there are few.
        # The column may hold anything: other programs write this table, too.
        found = self._database.read(
            "SELECT CASE WHEN substr(hash, 1, 15) = '$argon2id$v=19$' "
            "THEN substr(hash, 1, 15 + instr(substr(hash, 16), '$')) END AS header, "
            "count(*), min(username) "
            "FROM (SELECT CAST(password_hash AS TEXT) AS hash, username FROM users) AS stored "
            "GROUP BY header"
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

    # -- hashing

    def _matches(self, stored_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored_hash, password)
        except argon2.exceptions.VerifyMismatchError:
            return False
        # InvalidHashError was InvalidHash before argon2-cffi 23.1; both are ValueErrors.
        except (argon2.exceptions.VerificationError, ValueError) as error:
            if str(error) in EXHAUSTED:
                raise Busy("no memory to hash with") from error
        # What only looks like a hash is refused without hashing: hash once, to cost the same.
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
    reset, a deletion or a new name, by any process, is noticed in the transaction that would
    acknowledge the login.
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
        """Note that Argon2 has just verified this password; the oldest entry makes room."""
        if not self._seconds:
            return
        with self._lock:
            self._entries.pop(user.name, None)
            entry = user, self._digest(user, password), self._clock() + self._seconds
            self._entries[user.name] = entry
            if len(self._entries) > VERIFIED_ENTRIES:
                self._entries.popitem(last=False)

    def forget(self, name: str) -> None:
        """Remove the entry of an account that has changed."""
        with self._lock:
            self._entries.pop(name, None)

    def _digest(self, user: User, password: str) -> bytes:
        # A stored hash holds no NUL and is hashed first: no other pair gives the same bytes.
        bound = f"{user.password_hash}\0{password}".encode()
        return hashlib.blake2b(bound, key=self._key, digest_size=32).digest()


def newest_login(database: Database) -> str | None:
    """When somebody last logged in, as the database holds it; None if nobody has.

    Raises:
        Unavailable: the database cannot be read.
    """
    ((newest,),) = database.read("SELECT max(last_login) FROM users")
    return None if newest is None else str(newest)
