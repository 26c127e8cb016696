"""The RSA keys: made, sealed at rest, rotated, published. Their whole life is decided by `exp`.

    make          a new RSA-2048 key, its private JWK sealed, one row of the table `keys`
    lead          it is published, but the older key still signs: every cached JWKS learns of it
    sign          it is the key that expires first among those that outlive a new token
    outlive       it signs no longer, but is published until the last of its tokens has expired
    expire        it leaves the JWKS; the newest expired one stays, to sign tokens that must fail

Rules of this file:
- There is no state but the rows and the clock. Every program that reads the same rows at the same
  time (another server, admin.py, the same server after a crash) comes to the same decision. The
  settings that decide with them stand in the table `key_policy`.
- An operator who rotates early shortens a key's `exp`, but no token outlives the key that signed
  it. Nothing ever extends an `exp`.
- A change is written only if the rows that it was decided on are still there. If another process
  was faster, the decision is made again.
- Refuse, never repair: a row that does not open is named in the log and skipped; if none of them
  opens, the secret is wrong, and nothing is written.
- Signing never touches the database: `refresh` loads what changed, requests use a snapshot.

SQL on `keys` and `key_policy` stays in this file; how a key is sealed is in sealing.py.

Left out: telling clients. They ask for the JWKS when they please; docs/operations.md says when.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Callable, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from jwksd.store.database import CannotOpen, Connection, Database, Reading, Unavailable
from jwksd.store.sealing import SALT_BYTES, SealBroken, derive, open_seal, salt_of, seal
from jwt_minimal import public_jwk

RSA_BITS = 2048  # NIST SP 800-57: good to 2030; RFC 7518 §3.3 asks for no less
RSA_EXPONENT = 65537
MAX_SALTS = 8  # salts are read before they are authenticated; each new one costs a derivation
MAX_TRIES = 5  # of a change: each time that it failed, another process made one
SHORTEST_LEAD = 2  # s: the clock is looked at once a second (1 s), and a disk may be slow (1 s)
PREPARE_SECONDS = 5.0  # the search for primes takes 60 ms, or seconds where others use the cores
MAX_EXPIRED = 100  # kept at most: keys that live for seconds would be a million in some days
JWKS_MAX_AGE = 300  # s: what PyJWT and Spring cache by default

T = TypeVar("T")
REMEMBER = (
    "INSERT INTO key_policy (id, token_ttl, skew, lifetime, lead, retention) "
    "VALUES (1, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET token_ttl = excluded.token_ttl, "
    "skew = excluded.skew, lifetime = excluded.lifetime, lead = excluded.lead, "
    "retention = excluded.retention"
)


class NoSigningKey(Exception):
    """No key can answer the request."""


class WrongSecret(Exception):
    """The database holds sealed keys and the secret opens none of them."""


class UnknownKey(Exception):
    """No key of the table has this `kid`."""


class Policy(NamedTuple):
    """The settings of the life of a key, all in seconds."""

    token_ttl: float = 3600
    skew: float = 300  # how far a verifier's clock may be off
    lifetime: float = 30 * 86_400
    lead: float = 86_400  # a new key is published this long before it signs
    retention: float = 90 * 86_400  # expired keys are kept this long, the newest for ever

    def problem(self) -> str | None:
        """The inequality that these settings break, or None."""
        if self.lead < SHORTEST_LEAD:
            return (
                f"key-lead ({self.lead:g} s) must be at least {SHORTEST_LEAD} s: "
                "publishing a key that is due may take that long"
            )
        if self.lifetime > self.lead + self.token_ttl + self.skew:
            return None
        return (
            f"key-lifetime ({self.lifetime:g} s) must be greater than key-lead + token-ttl + "
            f"key-skew ({self.lead:g} + {self.token_ttl:g} + {self.skew:g} s)"
        )


class Key(NamedTuple):
    """A key of the table, opened."""

    kid: str  # RFC 7638 thumbprint
    exp: int  # seconds since 1970
    jwk: dict[str, str]  # the public JWK
    private_key: rsa.RSAPrivateKey
    stale: bool = False  # still sealed with the previous secret


Row = tuple[int, Any, Any]  # (number, key, exp) as stored, whoever stored it


class KeySet(NamedTuple):
    """The published keys at one moment (RFC 7517 §5)."""

    keys: tuple[Key, ...]  # the signing key first
    since: float  # seconds since 1970
    until: float  # when another set takes its place, if nobody changes the table before

    def document(self) -> dict[str, list[dict[str, str]]]:
        """The JWKS as a JSON object."""
        return {"keys": [key.jwk for key in self.keys]}


# -- the rule: `exp` and the clock decide


def signing_key(keys: tuple[Key, ...], now: float, policy: Policy) -> Key | None:
    """The key that expires first among those that outlive a token made now; else the last."""
    unexpired = [key for key in keys if key.exp > now]
    outliving = [key for key in unexpired if key.exp >= now + policy.token_ttl + policy.skew]
    if outliving:
        return min(outliving, key=_by_exp)
    # No key outlives a full token: a token that ends with its key is better than none.
    return max(unexpired, key=_by_exp, default=None)


def published(keys: tuple[Key, ...], now: float, policy: Policy) -> KeySet:
    """Every unexpired key, the signing key first, and when this set changes next."""
    unexpired = sorted((key for key in keys if key.exp > now), key=_by_exp)
    first = signing_key(keys, now, policy)
    ordered = sorted(unexpired, key=lambda key: key is not first)
    ends = [key.exp - policy.token_ttl - policy.skew for key in unexpired]
    changes = [*(key.exp for key in unexpired), *(end - policy.lead for end in ends[-1:])]
    # A key signs at the second of its end and no longer after it: that set lasts no time.
    coming = [*(t for t in changes if t > now), *(end for end in ends if end >= now)]
    return KeySet(tuple(ordered), now, min(coming, default=math.inf))


def rotation_due(expiries: list[int], policy: Policy) -> float:
    """When the next key must be made: one lead before the last one can no longer sign."""
    return max(expiries, default=0) - policy.token_ttl - policy.skew - policy.lead


def endings(keys: tuple[Key, ...], now: float, wait: float, policy: Policy) -> list[Key]:
    """The keys that an early rotation shortens, with the new `exp`: none signs after `wait`.

    The last token that each can still sign is outlived, skew included, and they keep their order:
    a key that waits to sign must not come first because an older one got the same second.
    """
    end = math.ceil(int(now) + wait + policy.token_ttl + policy.skew)
    unexpired = sorted((key for key in keys if key.exp > now), key=_by_exp)
    limits = range(end, end + len(unexpired))
    return [key._replace(exp=exp) for key, exp in zip(unexpired, limits) if exp < key.exp]


def state(key: Key, signing: Key | None, now: float) -> str:
    """What a key does now: `next` before it signs, `signing`, `outliving` after, or `expired`."""
    if key.exp <= now:
        return "expired"
    if signing is None or key is signing:
        return "signing"
    return "next" if _by_exp(key) > _by_exp(signing) else "outliving"


def _by_exp(key: Key) -> tuple[int, str]:
    return key.exp, key.kid


# -- the store


class KeyStore:
    """The keys of a database, opened once and held as a snapshot.

    `secret` seals; `previous` opens what is not sealed with it yet. `log` gets sentences for
    an operator; `clock` is the wall clock, seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        secret: bytes,
        policy: Policy,
        *,
        previous: bytes | None = None,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self._database = database
        self._secrets = (secret,) if previous is None else (secret, previous)
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows; readers take the snapshot without it
        self._keys: tuple[Key, ...] = ()  # the snapshot, replaced as a whole
        self._published: tuple[tuple[Key, ...], KeySet] = (), KeySet((), 0.0, 0.0)
        self._rows: dict[Row, Key | None] = {}  # every row of the table; None if it does not open
        self._content_keys: dict[tuple[bytes, bytes], bytes] = {}  # (secret, salt) -> content key
        self._salt = os.urandom(SALT_BYTES)  # of this database: that of its keys once it has some
        self._emptied = False  # somebody removed the last usable key while we were running
        self._spare: rsa.RSAPrivateKey | None = None  # the next key, found but not yet made

    # What a request needs

    def signing_key(self) -> Key:
        """The key to sign a token with now.

        Raises:
            NoSigningKey: no unexpired key exists.
        """
        key = signing_key(self._keys, self._clock(), self.policy)
        if key is None:
            raise NoSigningKey("no unexpired key exists")
        return key

    def expired_key(self) -> Key:
        """The key that expired last: what it signs is in no JWKS and must be refused.

        Raises:
            NoSigningKey: no expired key is left.
        """
        now = self._clock()
        key = max((key for key in self._keys if key.exp <= now), key=_by_exp, default=None)
        if key is None:
            raise NoSigningKey("no expired key exists")
        return key

    def published(self) -> KeySet:
        """What the JWKS shows now: the same object until it changes."""
        keys, now = self._keys, self._clock()
        source, key_set = self._published
        if source is not keys or not key_set.since <= now < key_set.until:
            key_set = published(keys, now, self.policy)
            self._published = keys, key_set
        return key_set

    def listing(self) -> list[tuple[str, int, str]]:
        """Every key with its expiry and its state now: signing, next, outliving or expired.

        Rows that do not open come last, with the name that the operator's log gives them.
        """
        now = self._clock()
        signing = signing_key(self._keys, now, self.policy)
        return [
            *((k.kid, k.exp, state(k, signing, now)) for k in sorted(self._keys, key=_by_exp)),
            *((_name(row), row[2], "unreadable") for row, key in self._rows.items() if key is None),
        ]

    def copies(self) -> int:
        """How many rows hold a key that another row holds as well."""
        return sum(key is not None for key in self._rows.values()) - len(self._keys)

    # Reading the table

    def open(self) -> None:
        """Load the keys for the first time. Nothing is written.

        Raises:
            WrongSecret: sealed keys are there and none of them opens.
            Unavailable: the database cannot be read.
        """
        self.refresh()
        if self._is_foreign():
            tried = " or ".join(("NOT_MY_KEY", "NOT_MY_KEY_PREVIOUS")[: len(self._secrets)])
            raise WrongSecret(
                f"{tried} opens none of the {len(self._rows)} keys in {self._database.name}: "
                "start with the secret that sealed them"
            )
        stale = sum(key.stale for key in self._keys)
        if stale:
            self._log(f"{stale} keys are still sealed with the previous secret: admin.py rekey")
        elif len(self._secrets) > 1 and self._keys:
            self._log("the previous secret opens nothing that the new one does not: unset it")

    def refresh(self) -> None:
        """Load the rows of the table; only new ones are opened.

        Raises:
            Unavailable: the database cannot be read; the snapshot stays as it was.
        """
        with self._lock:
            skipped: list[str] = []
            rows = {
                row: self._rows[row] if row in self._rows else self._open_row(row, skipped)
                for row in self._database.read(
                    "SELECT kid, CAST(key AS BLOB), exp FROM keys ORDER BY kid"
                )
            }
            if rows.keys() == self._rows.keys():
                return
            self._rows = rows
            if self._is_foreign():  # one line says so, not one for each row
                if self._keys:
                    self._log(
                        "no stored key opens any more: serving those in memory, making none; "
                        "start again with the secret that seals them now"
                    )
                return
            for line in skipped:
                self._log(line)
            keys = _one_of_each(key for key in rows.values() if key is not None)
            self._note_removed(keys)
            self._keys = keys

    def _is_foreign(self) -> bool:
        """Whether keys are stored and our secrets open none: then no key is added."""
        return bool(self._rows) and not any(self._rows.values())

    def _note_removed(self, keys: tuple[Key, ...]) -> None:
        now = self._clock()
        removed = {key.kid for key in self._keys if key.exp > now} - {key.kid for key in keys}
        if removed:
            self._log(f"unexpired keys are gone from the database: {', '.join(sorted(removed))}")
        if any(key.exp > now for key in keys):
            self._emptied = False
        elif removed and None not in self._rows.values():  # damage is not an order
            self._emptied = True

    def _open_row(self, row: Row, skipped: list[str]) -> Key | None:
        _, blob, exp = row
        try:
            if not isinstance(blob, bytes) or not isinstance(exp, int):
                raise SealBroken("it is not a sealed key")
            return self._open_seal(blob, exp)
        except SealBroken as error:
            skipped.append(f"the stored key {_name(row)} (exp={exp!r:.30}) is skipped: {error}")
            return None

    def _open_seal(self, blob: bytes, exp: int) -> Key:
        salt, failure = salt_of(blob), SealBroken("not a sealed key")
        for secret in self._secrets:
            try:
                kid, private_key = open_seal(blob, exp, self._content_key(secret, salt))
            except SealBroken as error:
                failure = error
                continue
            stale = secret is not self._secrets[0]
            if not stale:
                self._salt = salt
            return Key(kid, exp, public_jwk(private_key.public_key()), private_key, stale)
        raise failure

    def _content_key(self, secret: bytes, salt: bytes) -> bytes:
        if (secret, salt) not in self._content_keys:
            if len(self._content_keys) >= MAX_SALTS * len(self._secrets):
                raise SealBroken("too many different salts")
            self._content_keys[secret, salt] = derive(secret, salt)
        return self._content_keys[secret, salt]

    # Changing the table

    def due_in(self) -> float:
        """Seconds until the next key must be made; 0 if that is past."""
        due = rotation_due([key.exp for key in self._keys], self.policy)
        return max(0.0, due - self._clock())

    def make_due(self) -> bool:
        """Make the keys that are due: the next one, or at a first start a valid and an expired one.

        Keys that somebody removed while the server ran are not replaced: an empty table is an
        order. It ends with the next start, or with a key that somebody adds.

        Raises:
            Unavailable: the database cannot be read or written; the next call tries again.
        """
        self.refresh()  # the loop reads changes only when a request comes
        rows = self._decided_on()
        if self._emptied or self._is_foreign() or self.due_in() > PREPARE_SECONDS:
            return False
        # Found early, so that a busy machine publishes it in time, too.
        self._spare = self._spare or generate()
        if self.due_in():
            return False
        return self._change(rows, add=self._new_exps(rows)) is not None

    def rotate(self, *, at_once: bool = False) -> tuple[str, int]:
        """Make a new key that signs after one lead, or at once: its kid, and when it signs.

        By the rule, this shortens the lives of the older keys. Tokens that they signed
        stay good; `at_once`, clients with an older copy of the JWKS refuse new tokens until they
        ask again.

        Raises:
            Unavailable: the database cannot be written. Nothing was changed.
        """

        def attempt(rows: dict[Row, Key | None]) -> tuple[str, int] | None:
            now = self._clock()
            wait = 0.0 if at_once else self._longest_copy(now)
            ended = {key.kid: key.exp for key in endings(self._keys, now, wait, self.policy)}
            shortened = {
                row: key._replace(exp=ended[key.kid])
                for row, key in rows.items()
                if key is not None and key.exp > ended.get(key.kid, key.exp)
            }
            made = self._change(rows, add=self._new_exps(rows), reseal=shortened)
            if made is None:
                return None
            last = max((key.exp for key in self._keys if key.kid not in made), default=0)
            signs = int(last - self.policy.token_ttl - self.policy.skew)
            return made[-1], max(int(now), signs)

        return self._until_done(attempt)

    def revoke(self, kid: str, *, replace: bool = True) -> str | None:
        """Delete a key at once; if no other can sign, make one: its kid, else None.

        Raises:
            UnknownKey: there is no such key.
            Unavailable: the database cannot be written. Nothing was changed.
        """

        def attempt(rows: dict[Row, Key | None]) -> tuple[str | None] | None:
            doomed = [row for row, key in rows.items() if kid == (key.kid if key else _name(row))]
            if not doomed:
                raise UnknownKey(f"there is no key {kid!r:.60}; keys list names them")
            now = self._clock()
            rest = tuple(key for key in self._keys if key.kid != kid)
            needed = now + self.policy.token_ttl + self.policy.skew
            enough = not replace or any(key.exp >= needed for key in rest)
            made = self._change(rows, add=() if enough else self._new_exps(rows), remove=doomed)
            return None if made is None else (made[-1] if made else None,)

        return self._until_done(attempt)[0]

    def rekey(self, *, dry_run: bool = False) -> int:
        """Seal every key that still has the previous secret with the new one: how many there were.

        Raises:
            WrongSecret: a row opens with neither secret. Nothing was changed.
            Unavailable: the database cannot be written. Nothing was changed.
        """

        def attempt(rows: dict[Row, Key | None]) -> int | None:
            unreadable = [_name(row) for row, key in rows.items() if key is None]
            if unreadable:
                raise WrongSecret(
                    f"neither NOT_MY_KEY nor NOT_MY_KEY_PREVIOUS opens {', '.join(unreadable)}: "
                    "nothing was changed; find the secret, or keys revoke what is beyond hope"
                )
            stale = {row: key for row, key in rows.items() if key is not None and key.stale}
            if not dry_run and stale and self._change(rows, reseal=stale) is None:
                return None
            return len(stale)

        return self._until_done(attempt)

    def prune(self) -> None:
        """Delete the keys that expired longer ago than the retention, but never the newest of them.

        Raises:
            Unavailable: the database cannot be written; the next call tries again.
        """
        rows, now = self._decided_on(), self._clock()
        expired = sorted(key.exp for key in self._keys if key.exp <= now)
        old = {exp for exp in expired[:-1] if exp < now - self.policy.retention}
        old.update(expired[:-MAX_EXPIRED])
        if old and not self._is_foreign():
            self._change(rows, remove=[row for row, key in rows.items() if key and key.exp in old])

    def remember_policy(self) -> None:
        """Store the settings, so that other processes on this database decide alike.

        Raises:
            Unavailable: the database cannot be written.
        """
        if remembered_policy(self._database) != self.policy:
            values = tuple(map(float, self.policy))
            self._database.write(lambda connection: connection.execute(REMEMBER, values))

    def _longest_copy(self, now: float) -> float:
        """How long a new key waits: a lead, and until no HTTP cache holds a JWKS without it."""
        ttl, skew, lifetime, lead, _ = self.policy
        # The last bound: the new key must still expire last.
        return max(
            lead, min(JWKS_MAX_AGE, self.published().until - now, lifetime - lead - ttl - skew)
        )

    def _new_exps(self, rows: dict[Row, Key | None]) -> list[int]:
        """The expiry of the next key; an empty table gets an expired one as well."""
        now = int(self._clock())
        # Expired an hour ago: past the leeway of every verifier.
        return [*(() if rows else (now - 3600,)), now + int(self.policy.lifetime)]

    def _new_key(self) -> rsa.RSAPrivateKey:
        """The key that was found early, else a new one."""
        spare, self._spare = self._spare, None
        return spare or generate()

    def _decided_on(self) -> dict[Row, Key | None]:
        """The rows that a decision is made on: `_change` notices if they have changed since."""
        with self._lock:  # not while `refresh` has replaced the rows and not yet the keys
            return self._rows

    def _until_done(self, attempt: Callable[[dict[Row, Key | None]], T | None]) -> T:
        """Try a change again while other processes are faster, MAX_TRIES times."""
        for _ in range(MAX_TRIES):
            done = attempt(self._decided_on())
            if done is not None:
                return done
        raise Unavailable("other processes keep changing the keys; try again")

    def _change(
        self,
        rows: Iterable[Row],
        *,
        add: Sequence[int] = (),
        remove: Sequence[Row] = (),
        reseal: Mapping[Row, Key] = MappingProxyType({}),
    ) -> list[str] | None:
        """One transaction: the kids of the keys added.

        None, and nothing changed, if the table no longer holds the rows that it was decided on.
        """
        known, content_key = set(rows), self._content_key(self._secrets[0], self._salt)
        made = [(self._new_key(), exp) for exp in add]
        added = [(seal(key, exp, content_key, self._salt), exp) for key, exp in made]
        changed = [
            (seal(key.private_key, key.exp, content_key, self._salt), key.exp, row[0])
            for row, key in reseal.items()
        ]

        def write(connection: Connection) -> bool:
            # Two servers on one database come here at the same time: the second sees the new row.
            if set(connection.execute("SELECT kid, CAST(key AS BLOB), exp FROM keys")) != known:
                return False
            connection.overwrite()
            connection.executemany("DELETE FROM keys WHERE kid = ?", [row[:1] for row in remove])
            connection.executemany("UPDATE keys SET key = ?, exp = ? WHERE kid = ?", changed)
            for row in added:
                connection.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", row)
            return True

        done = self._database.write(write)
        self.refresh()
        return [public_jwk(key.public_key())["kid"] for key, _ in made] if done else None


def _one_of_each(keys: Iterable[Key]) -> tuple[Key, ...]:
    """The keys, each once: of two rows with one key, the one that expires first counts."""
    found: dict[str, Key] = {}
    for key in keys:
        known = found.get(key.kid)
        if known is None or key.exp < known.exp:
            found[key.kid] = key
    return tuple(found.values())


def _name(row: Row) -> str:
    return f"row-{row[0]}"  # no thumbprint: those have 43 characters


def require_ours(connection: Reading) -> None:
    """Refuse a file whose keys another program stored, before anything is written to it.

    Raises:
        CannotOpen: there are keys and none of them looks like one that we sealed.
    """
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'keys'").fetchall():
        return
    blobs = [row[0] for row in connection.execute("SELECT CAST(key AS BLOB) FROM keys")]
    if blobs and not any(map(is_sealed, blobs)):
        raise CannotOpen(f"it holds {len(blobs)} keys that this program did not seal")


def is_sealed(blob: bytes) -> bool:
    """Whether a blob looks like a key that this program sealed, with whatever secret."""
    try:
        salt_of(blob)
    except SealBroken:
        return False
    return True


def has_keys(database: Database) -> bool:
    """Whether the table holds any key, sealed with whatever secret."""
    return bool(database.read("SELECT 1 FROM keys LIMIT 1"))


def remembered_policy(database: Database) -> Policy | None:
    """The settings of the server that was last started on this database."""
    sql = "SELECT token_ttl, skew, lifetime, lead, retention FROM key_policy"
    return next((Policy(*row) for row in database.read(sql)), None)


def generate() -> rsa.RSAPrivateKey:
    """A new RSA key; takes about 60 ms, without the interpreter's lock."""
    return rsa.generate_private_key(RSA_EXPONENT, RSA_BITS)


def public_pem(key: Key) -> str:
    """The public key as PEM (RFC 7468 §13), for verifiers that read a file."""
    public_key = key.private_key.public_key()
    return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
