"""What a graded server keeps in its database file: keys, passwords, logins.

    JWKS_TEST_URL=... JWKS_TEST_DATABASE=FILE python -m unittest test_server.AtRest

Rules of this file
  - Tables and columns are other people's: they are looked for by their names, never demanded. What
    is not found is not judged, and the teacher is told to look.
  - The file is hostile too: it is opened to read, within bounds of time, rows and octets.

Left out: databases that are no SQLite file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import re
import sqlite3
import stat
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jwksd.grading.asking import fresh_address, many_addresses, printable
from jwksd.grading.judging import CONTRACT, ServerTest

__unittest = True  # unittest then shows the sentence without the lines of this file around it

ROWS, OCTETS = 1000, 100_000  # of a table, of a value: what the checks themselves cause is less
LARGEST = 256 << 20  # octets of the file
SECONDS = 5  # for all questions of a check
BLOCK = 16  # octets: that of AES
PATIENCE = 2  # s until a login stands in the log: some servers write it after the answer
# Where a password hash says what it is, and its cost: the PHC string format, crypt(3), and what
# Werkzeug and Django write.
HASHES = {
    r"\$argon2(id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+": "Argon2",
    r"\$2[abxy]?\$\d\d\$": "bcrypt",
    r"\$(7|scrypt)\$|scrypt:\d+:\d+:\d+": "scrypt",
    r"\$y\$": "yescrypt",
    r"\$pbkdf2(-sha\d+)?\$|pbkdf2[:_]sha\d+[:$]\d+": "PBKDF2",
}


class Table(NamedTuple):
    """A table, as far as it was read."""

    name: str
    columns: list[str]
    rows: list[tuple[Any, ...]]

    def column(self, pattern: str) -> list[Any] | None:
        """The values of the first column of such a name; None if there is none."""
        for place, name in enumerate(self.columns):
            if re.search(pattern, name, re.IGNORECASE):
                return [row[place] for row in self.rows]
        return None


def tables(path: Path) -> list[Table]:
    """All tables of a SQLite file; OSError or sqlite3.Error."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
        raise OSError(f"{path.name} is no file, or larger than {LARGEST >> 20} MiB")
    end = time.monotonic() + SECONDS
    connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True, timeout=2)
    with contextlib.closing(connection):
        connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        connection.text_factory = bytes
        listed = "SELECT name FROM sqlite_master WHERE type = 'table'"
        names = [name.decode("utf-8", "replace") for (name,) in connection.execute(listed)]
        return [read_table(connection, name) for name in names[:100]]


def read_table(connection: sqlite3.Connection, name: str) -> Table:
    """The newest rows of a table."""
    quoted = '"' + name.replace('"', '""') + '"'
    newest = f"SELECT * FROM {quoted} ORDER BY rowid DESC LIMIT {ROWS}"  # noqa: S608 (quoted)
    try:
        cursor = connection.execute(newest)
    except sqlite3.OperationalError:  # a table without rowid
        cursor = connection.execute(f"SELECT * FROM {quoted} LIMIT {ROWS}")  # noqa: S608
    rows = [tuple(readable(value) for value in row) for row in cursor]
    return Table(name, [column[0] for column in cursor.description], rows)


def readable(value: Any) -> Any:
    """Text as text, cut; octets that are none stay octets."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value[:OCTETS].decode("utf-8")
        return value[:OCTETS]
    return value


def octets(value: Any) -> list[bytes]:
    """A value as it stands, and decoded from hexadecimal and base64 where it may be that."""
    raw = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else b""
    found = [raw]
    packed = b"".join(raw.split())
    with contextlib.suppress(binascii.Error, ValueError):
        found.append(binascii.unhexlify(packed))
    with contextlib.suppress(binascii.Error, ValueError):
        urlsafe = packed.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        found.append(base64.b64decode(urlsafe + b"=" * (-len(urlsafe) % 4), validate=True))
    return found


def private_key_in(raw: bytes) -> str:
    """The form of a private key that lies open; nothing if there is none."""
    if b"PRIVATE KEY-----" in raw:
        return "PEM"
    # RFC 8017 A.1.2, RFC 5958 §2: a SEQUENCE of two octets' length, and version 0.
    if re.match(rb"\x30\x82..\x02\x01\x00[\x02\x30]", raw, re.DOTALL):
        return "DER"
    if re.search(rb'"d"\s*:\s*"[\w-]{80,}', raw) or re.search(rb'"(p|q)"\s*:\s*"[\w-]{80,}', raw):
        return "JWK"
    return ""


def hash_name(value: Any) -> str:
    """The password hash, with its parameters, that a value says it is; else nothing."""
    for pattern, name in HASHES.items():
        match = re.match(pattern, value) if isinstance(value, str) else None
        if match:
            return f"{name} ({match[0]})"
    return ""


def fast_hashes(password: str) -> set[str]:
    """Fast hashes of a password, in hexadecimal: no password should be kept so."""
    raw = password.encode()
    return {hashlib.new(name, raw).hexdigest() for name in ("md5", "sha1", "sha256", "sha512")}


def seconds(value: Any) -> float | None:
    """A date as seconds since 1970, whether it is a number or text."""
    if isinstance(value, (int, float)):
        return float(value)
    for form in ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        with contextlib.suppress(ValueError, OverflowError):
            return time.mktime(time.strptime(str(value)[:19], form)) - time.timezone
    return None


def ciphertext(value: Any) -> bytes:
    """The octets of a sealed key, without the header of a JWE (RFC 7516 §3.1)."""
    if isinstance(value, str) and value.count(".") == 4:
        value = value.split(".")[3]
    return octets(value)[-1]


def equal_blocks(values: list[Any]) -> int:
    """How many blocks two rows' ciphertexts have in common."""
    sets = [
        {raw[at : at + BLOCK] for at in range(0, len(raw) - BLOCK + 1, BLOCK)}
        for raw in map(ciphertext, values)
    ]
    return max((len(a & b) for i, a in enumerate(sets) for b in sets[:i]), default=0)


class AtRest(ServerTest):
    """The database file, while the server runs."""

    RULE = f"{CONTRACT}, At rest"

    def setUp(self) -> None:
        """Not judged without a file to read."""
        super().setUp()
        self.notes: list[str] = []
        if not self.subject.database:
            self.skipTest("not judged: no database file was named")

    def read(self) -> list[Table]:
        """All tables; not judged if they cannot be read."""
        try:
            return tables(Path(self.subject.database))
        except (OSError, sqlite3.Error, ValueError) as error:
            sentence = f"not judged: the database cannot be read: {error}"
            raise unittest.SkipTest(printable(sentence[:300])) from None

    def expiries(self) -> list[Any]:
        """The values of the column that says when a key expires; not judged without."""
        for table in self.read():
            found = table.column(r"^exp")
            if found:
                return found
        raise unittest.SkipTest("not judged: no table has a row and a column named exp...")

    def test_keeps_no_private_key_in_the_open(self) -> None:
        """Neither PEM, DER nor JWK, nor one of these in hexadecimal or base64."""
        found = self.read()
        for place, value in values(found):
            forms = [form for raw in octets(value) if (form := private_key_in(raw))]
            came = f"one as {forms[0]} in {place}" if forms else ""
            self.demand(not forms, "no private key in the open", came, self.RULE)
        for table in found:
            sealed = table.column(r"^(key|private|pem|cipher|encrypted|sealed|secret|data|blob)")
            if sealed and table.column(r"^exp") and (same := equal_blocks(sealed)):
                self.notes.append(
                    f"{same} blocks of {BLOCK} octets are the same in two sealed keys of "
                    f"{table.name}: the cipher's mode or its initialisation vector repeats"
                )

    def test_keeps_passwords_as_hashes_of_a_password_hash(self) -> None:
        """Slow, salted, and never the password itself."""
        name, password = self.newcomer()
        fast, found = fast_hashes(password), self.read()
        mine = [
            (f"{table.name}.{column}", value)
            for table in found
            for row in table.rows
            if name in row
            for column, value in zip(table.columns, row)
        ]
        for place, value in mine:
            text = str(value)
            self.demand(password not in text, "no password as such", f"one in {place}", self.RULE)
            holds = not any(digest in text.lower() for digest in fast)
            self.demand(holds, "a password hash", f"a fast hash in {place}", "RFC 9106 §1")
        named = [hash_name(value) for _, value in mine if hash_name(value)]
        if not named:
            self.skipTest("not judged: nothing in the user's row names its hash; have a look")
        self.notes.append(f"passwords are kept by {named[0]}")

    def test_logs_each_login_with_address_and_time(self) -> None:
        """A new row, where there was none before."""
        name, password = self.given("account")
        self.given("token")
        before, address = self.logged(), fresh_address()
        self.login(name, password, address)
        end = time.monotonic() + PATIENCE
        while (after := self.logged()) == before and time.monotonic() < end:
            time.sleep(0.1)
        wanted = "a row more in a table with an address and a time after a login"
        self.demand(
            len(after) > len(before), wanted, f"{len(after)} after {len(before)}", self.RULE
        )
        newest = [row for row in after if row not in before] or after
        timed = all(when is not None for _, when in newest)
        self.demand(timed, "a time in that row", newest[0], self.RULE)
        ours = self.subject.direct and many_addresses() and "//127." in self.subject.url
        known = any(address in str(ip) if ours else ip for ip, _ in newest)
        self.demand(
            known,
            f"the address {address if ours else 'of the client'} in that row",
            newest[0],
            self.RULE,
        )

    def logged(self) -> list[tuple[Any, Any]]:
        """Address and time of each row of the table that has such columns."""
        for table in self.read():
            addresses = table.column(r"(^|_)ip($|_)|addr")
            times = table.column(r"time|date|stamp|(^|_)at$|when")
            if addresses is not None and times is not None:
                return list(zip(addresses, times))
        return []

    def test_keeps_exp_as_a_number(self) -> None:
        """Seconds since 1970 can be compared; text cannot."""
        found = self.expiries()
        holds = all(type(value) in (int, float) for value in found)
        self.demand(holds, "numbers in the column exp", found[:3], self.RULE)

    def test_keeps_an_expired_and_a_valid_key(self) -> None:
        """So that both tokens can be had from the first minute on."""
        found = [date for value in self.expiries() if (date := seconds(value)) is not None]
        now = time.time()
        holds = any(date <= now for date in found) and any(date > now for date in found)
        self.demand(holds, "an exp in the past and one in the future", found[:5], self.RULE)


def values(found: list[Table]) -> Iterator[tuple[str, Any]]:
    """Every value, with its place."""
    for table in found:
        for row in table.rows:
            for column, value in zip(table.columns, row):
                yield f"{table.name}.{column}", value
