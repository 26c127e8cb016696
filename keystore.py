"""The RSA keys: made, sealed at rest, rotated, published. Their whole life is decided by `exp`.

    make          a new RSA-2048 key, its private JWK sealed, one row of the table `keys`
    lead          it is published, but the older key still signs: every cached JWKS learns of it
    sign          it is the key that expires first among those that outlive a new token
    outlive       it signs no longer, but is published until the last of its tokens has expired
    expire        it leaves the JWKS; the newest expired one stays, to sign tokens that must fail

Rules of this file:
- No state but the rows and the clock. Whoever reads the same rows at the same time (another server,
  admin.py, the same server after a crash) comes to the same decision.
- A sealed key is a compact JWE (RFC 7516) with alg=dir, enc=A256CBC-HS512 (RFC 7518 §5.2.5). Its
  protected header holds `kid` and `exp` and is authenticated with the key: who can write the file
  but does not know NOT_MY_KEY cannot forge, exchange or prolong a row.
- Refuse, never repair: a row that does not open is named in the log and skipped; if none of them
  opens, the secret is wrong, and nothing is written.
- Signing never touches the database: `refresh` loads what changed, requests use a snapshot.

SQL on `keys`, AES and the private numbers of a key stay in this file.
"""

from __future__ import annotations

import hmac
import json
import os
import sqlite3
import threading
import time
from typing import Any, Callable, NamedTuple

from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from database import Database
from jwt_minimal import b64url_decode, b64url_encode, public_jwk, thumbprint

RSA_BITS = 2048  # NIST SP 800-57: good to 2030; RFC 7518 §3.3 asks for no less
RSA_EXPONENT = 65537
RSA_NUMBERS = ("n", "e", "d", "p", "q", "dp", "dq", "qi")  # RFC 7518 §6.3
SALT_BYTES = 16  # RFC 9106 §3.1
# The OWASP floor for Argon2id: 17 ms here, once per start, but for each guess of who has the file.
DERIVATION_TIME, DERIVATION_KIB, DERIVATION_LANES = 2, 19_456, 1
CONTENT_KEY_BYTES = 64  # RFC 7518 §5.2.5: 32 for HMAC-SHA-512, then 32 for AES-256
BLOCK_BYTES = 16
TAG_BYTES = 32  # RFC 7518 §5.2.5: the first half of the HMAC
MAX_SALTS = 8  # salts are read before they are authenticated; each new one costs a derivation
JWKS_MAX_AGE = 300  # s: what PyJWT and Spring cache by default


class NoSigningKey(Exception):
    """There is no key that the request could be answered with."""


class WrongSecret(Exception):
    """The database holds sealed keys and the secret opens none of them."""


class SealBroken(ValueError):
    """A sealed key does not open under this secret: changed, exchanged, or sealed with another."""


class Policy(NamedTuple):
    """The settings of the life of a key, all in seconds."""

    token_ttl: float = 3600
    skew: float = 300  # how far a verifier's clock may be off
    lifetime: float = 30 * 86_400
    lead: float = 86_400  # a new key is published this long before it signs
    retention: float = 90 * 86_400  # expired keys are kept this long, the newest for ever

    def problem(self) -> str | None:
        """The inequality that these settings break, or None."""
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


Row = tuple[Any, Any]  # (key, exp) as stored, whoever stored it


class KeySet(NamedTuple):
    """The published keys at one moment (RFC 7517 §5)."""

    keys: tuple[Key, ...]  # the signing key first
    since: float  # seconds since 1970
    until: float  # when another set takes its place, if nobody changes the table before

    def document(self) -> dict[str, list[dict[str, str]]]:
        """The JWKS as a JSON object."""
        return {"keys": [key.jwk for key in self.keys]}


# -- sealing: the content key, seal, open


def derive(secret: bytes, salt: bytes) -> bytes:
    """The content key: Argon2id, so that guessing a weak secret costs what guessing must cost."""
    return hash_secret_raw(
        secret,
        salt,
        DERIVATION_TIME,
        DERIVATION_KIB,
        DERIVATION_LANES,
        CONTENT_KEY_BYTES,
        Type.ID,
    )


def encrypt(content_key: bytes, iv: bytes, aad: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """A256CBC-HS512 (RFC 7518 §5.2.2.1): the ciphertext and its authentication tag."""
    pkcs7 = padding.PKCS7(BLOCK_BYTES * 8).padder()
    padded = pkcs7.update(plaintext) + pkcs7.finalize()
    aes = Cipher(algorithms.AES(content_key[32:]), modes.CBC(iv)).encryptor()
    ciphertext = aes.update(padded) + aes.finalize()
    return ciphertext, _tag(content_key, iv, aad, ciphertext)


def decrypt(content_key: bytes, iv: bytes, aad: bytes, ciphertext: bytes, tag: bytes) -> bytes:
    """The inverse of `encrypt` (RFC 7518 §5.2.2.2).

    Raises:
        SealBroken: anything is not as it was; one error for all, so that there is no oracle.
    """
    # The tag is compared before AES or the padding is looked at.
    if not hmac.compare_digest(tag, _tag(content_key, iv, aad, ciphertext)):
        raise SealBroken("the authentication tag does not match")
    aes = Cipher(algorithms.AES(content_key[32:]), modes.CBC(iv)).decryptor()
    pkcs7 = padding.PKCS7(BLOCK_BYTES * 8).unpadder()
    return pkcs7.update(aes.update(ciphertext) + aes.finalize()) + pkcs7.finalize()


def _tag(content_key: bytes, iv: bytes, aad: bytes, ciphertext: bytes) -> bytes:
    message = aad + iv + ciphertext + (len(aad) * 8).to_bytes(8, "big")
    return hmac.digest(content_key[:32], message, "sha512")[:TAG_BYTES]


def seal(private_key: rsa.RSAPrivateKey, exp: int, content_key: bytes, salt: bytes) -> bytes:
    """The key as compact JWE; `kid`, `exp` and the salt stand in its authenticated header."""
    jwk = _private_jwk(private_key)
    header = {
        "alg": "dir",
        "enc": "A256CBC-HS512",
        "kid": thumbprint(jwk),
        "exp": exp,
        "p2s": b64url_encode(salt),
    }
    protected = b64url_encode(_json(header))
    iv = os.urandom(BLOCK_BYTES)
    ciphertext, tag = encrypt(content_key, iv, protected.encode(), _json(jwk))
    # RFC 7516 §7.1; the second part, the encrypted content key, is empty with alg=dir.
    parts = (protected, "", *map(b64url_encode, (iv, ciphertext, tag)))
    return ".".join(parts).encode()


def salt_of(blob: object) -> bytes:
    """The salt that a sealed key was derived with. Not authenticated: only `open_seal` tells.

    Raises:
        SealBroken: this is not a key sealed by us.
    """
    try:
        salt = b64url_decode(_header(blob)["p2s"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SealBroken("not a sealed key") from error
    if len(salt) != SALT_BYTES:
        raise SealBroken("not a sealed key")
    return salt


def open_seal(blob: bytes, exp: int, content_key: bytes) -> tuple[str, rsa.RSAPrivateKey]:
    """The inverse of `seal`: the `kid` and the key.

    Raises:
        SealBroken: it does not open, or `exp` is not the one that was sealed.
    """
    try:
        protected, _, iv, ciphertext, tag = blob.decode("ascii").split(".")
        plaintext = decrypt(
            content_key,
            b64url_decode(iv),
            protected.encode(),
            b64url_decode(ciphertext),
            b64url_decode(tag),
        )
        header = _header(blob)
    except SealBroken:
        raise
    except ValueError as error:
        raise SealBroken("not a sealed key") from error
    if header["exp"] != exp:
        raise SealBroken(f"the row says exp={exp}, the sealed header {header['exp']}")
    # Authenticated, hence written by us: validating the primes again would take 50 ms per key.
    return header["kid"], _private_key(json.loads(plaintext))


def _header(blob: object) -> dict[str, Any]:
    if not isinstance(blob, bytes):
        raise SealBroken("not a sealed key")
    header = json.loads(b64url_decode(blob.split(b".", 1)[0].decode("ascii")))
    if not isinstance(header, dict):
        raise SealBroken("not a sealed key")
    return header


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _private_jwk(private_key: rsa.RSAPrivateKey) -> dict[str, str]:
    numbers = private_key.private_numbers()
    public = numbers.public_numbers
    values = (
        *(public.n, public.e, numbers.d, numbers.p, numbers.q),
        *(numbers.dmp1, numbers.dmq1, numbers.iqmp),
    )
    octets = (value.to_bytes((value.bit_length() + 7) // 8, "big") for value in values)
    return {"kty": "RSA", **dict(zip(RSA_NUMBERS, map(b64url_encode, octets)))}


def _private_key(jwk: dict[str, str]) -> rsa.RSAPrivateKey:
    n, e, d, p, q, dp, dq, qi = (
        int.from_bytes(b64url_decode(jwk[name]), "big") for name in RSA_NUMBERS
    )
    numbers = rsa.RSAPrivateNumbers(p, q, d, dp, dq, qi, rsa.RSAPublicNumbers(e, n))
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


# -- the rule: three questions that `exp` and the clock answer


def signing_key(keys: tuple[Key, ...], now: float, policy: Policy) -> Key | None:
    """The key that expires first among those that outlive a token made now; else the last."""
    unexpired = [key for key in keys if key.exp > now]
    outliving = [key for key in unexpired if key.exp >= now + policy.token_ttl + policy.skew]
    if outliving:
        return min(outliving, key=_by_exp)
    # No key outlives a full token: one more that ends with its key is better than none.
    return max(unexpired, key=_by_exp, default=None)


def published(keys: tuple[Key, ...], now: float, policy: Policy) -> KeySet:
    """Every unexpired key, the signing key first, and when that next changes."""
    unexpired = sorted((key for key in keys if key.exp > now), key=_by_exp)
    first = signing_key(keys, now, policy)
    ordered = sorted(unexpired, key=lambda key: key is not first)
    ends = [key.exp - policy.token_ttl - policy.skew for key in unexpired]
    changes = [*ends, *(key.exp for key in unexpired), *(end - policy.lead for end in ends[-1:])]
    return KeySet(tuple(ordered), now, min((t for t in changes if t > now), default=float("inf")))


def rotation_due(expiries: list[int], policy: Policy) -> float:
    """When the next key must be made: one lead before the last one can no longer sign."""
    return max(expiries, default=0) - policy.token_ttl - policy.skew - policy.lead


def state(key: Key, signing: Key | None, now: float) -> str:
    """What a key is for: it is next before it signs, outliving after."""
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

    `log` gets sentences for an operator; `clock` is the wall clock, seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        secret: bytes,
        policy: Policy,
        *,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self._database = database
        self._secret = secret
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows; readers take the snapshot without it
        self._keys: tuple[Key, ...] = ()  # the snapshot, replaced as a whole
        self._published: tuple[tuple[Key, ...], KeySet] = (), KeySet((), 0.0, 0.0)
        self._rows: dict[Row, Key | None] = {}  # every row of the table; None if it does not open
        self._content_keys: dict[bytes, bytes] = {}  # salt -> content key
        self._salt = os.urandom(SALT_BYTES)  # of this database: that of its keys once it has some
        self._emptied = False  # somebody removed the last usable key while we were running

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
        """Every key with its expiry and its state now: signing, next, outliving or expired."""
        now = self._clock()
        signing = signing_key(self._keys, now, self.policy)
        return [
            (key.kid, key.exp, state(key, signing, now)) for key in sorted(self._keys, key=_by_exp)
        ]

    # What follows the table

    def open(self) -> None:
        """Load the keys for the first time. Nothing is written.

        Raises:
            WrongSecret: sealed keys are there and none of them opens.
            Unavailable: the database cannot be read.
        """
        self.refresh()
        if self._rows and not self._keys:
            raise WrongSecret(
                f"NOT_MY_KEY opens none of the {len(self._rows)} keys in {self._database.path}: "
                "start with the secret that sealed them"
            )

    def refresh(self) -> None:
        """Take over what the table holds now; only rows that are new are opened.

        Raises:
            Unavailable: the database cannot be read; the snapshot stays as it was.
        """
        with self._lock:
            found = self._database.read("SELECT key, exp FROM keys ORDER BY kid")
            skipped: list[str] = []
            rows = {
                row: self._rows[row] if row in self._rows else self._open_row(*row, skipped)
                for row in ((blob, exp) for blob, exp in found)
            }
            keys = tuple(key for key in rows.values() if key is not None)
            if rows == self._rows:
                return
            self._rows = rows
            for line in skipped if keys else ():  # if none opens, that is said once
                self._log(line)
            if rows and not keys and self._keys:
                self._log(
                    "no stored key opens any more: serving those in memory; start again "
                    "with the secret that seals them now"
                )
                return
            self._note_removed(keys)
            self._keys = keys

    def _note_removed(self, keys: tuple[Key, ...]) -> None:
        now = self._clock()
        removed = {key.kid for key in self._keys if key.exp > now} - {key.kid for key in keys}
        if removed:
            self._log(f"unexpired keys were removed from the database: {', '.join(removed)}")
        if any(key.exp > now for key in keys):
            self._emptied = False
        elif removed:
            self._emptied = True

    def _open_row(self, blob: object, exp: object, skipped: list[str]) -> Key | None:
        try:
            if not isinstance(blob, bytes) or not isinstance(exp, int):
                raise SealBroken("it is not a sealed key")
            salt = salt_of(blob)
            kid, private_key = open_seal(blob, exp, self._content_key(salt))
        except SealBroken as error:
            skipped.append(f"a stored key (exp={exp!r:.30}) is skipped: {error}")
            return None
        self._salt = salt
        return Key(kid, exp, public_jwk(private_key.public_key()), private_key)

    def _content_key(self, salt: bytes) -> bytes:
        if salt not in self._content_keys:
            if len(self._content_keys) >= MAX_SALTS:
                raise SealBroken("too many different salts")
            self._content_keys[salt] = derive(self._secret, salt)
        return self._content_keys[salt]

    # What changes the table

    def due_in(self) -> float:
        """Seconds until the next key must be made; 0 if that is past."""
        due = rotation_due([key.exp for key in self._keys], self.policy)
        return max(0.0, due - self._clock())

    def make_due(self) -> bool:
        """Make the keys that are due: the next one, or at a first start a valid and an expired one.

        Keys that somebody removed while we were running are not replaced: who empties the table
        means it. A start, or a key that somebody adds, ends that.

        Raises:
            Unavailable: the database cannot be written; the next call tries again.
        """
        if self._emptied or self.due_in():
            return False
        now = int(self._clock())
        exps = [now + int(self.policy.lifetime)]
        if not self._rows:
            exps.insert(0, now - 1)
        return self._add(exps)

    def _add(self, exps: list[int]) -> bool:
        """Add a key per expiry, unless another process changes the table while they are made."""
        known = set(self._rows)
        content_key = self._content_key(self._salt)
        made = [(seal(generate(), exp, content_key, self._salt), exp) for exp in exps]

        def insert(connection: sqlite3.Connection) -> bool:
            # Two servers on one database come here at the same time: the second sees the new row.
            if set(connection.execute("SELECT key, exp FROM keys")) != known:
                return False
            for row in made:
                connection.execute("INSERT INTO keys (key, exp) VALUES (?, ?)", row)
            return True

        added = self._database.write(insert)
        self.refresh()
        return added

    def prune(self) -> None:
        """Delete the keys that expired longer ago than the retention, but never the newest of them.

        Raises:
            Unavailable: the database cannot be written; the next call tries again.
        """
        now = self._clock()
        expired = sorted(key.exp for key in self._keys if key.exp <= now)
        old = [exp for exp in expired[:-1] if exp < now - self.policy.retention]
        if old:
            self._database.write(lambda c: c.execute("DELETE FROM keys WHERE exp <= ?", old[-1:]))
            self.refresh()


def has_keys(database: Database) -> bool:
    """Whether the table holds any key, sealed with whatever secret."""
    return bool(database.read("SELECT 1 FROM keys LIMIT 1"))


def generate() -> rsa.RSAPrivateKey:
    """A new RSA key; takes about 60 ms, without the interpreter's lock."""
    return rsa.generate_private_key(RSA_EXPONENT, RSA_BITS)
