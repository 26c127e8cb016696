"""From one database to another: SQLite to PostgreSQL, and back.

    move(source, target)      each table in turn, each in one transaction of the target

Rules of this file:
- Nothing writes to the source meanwhile: its lock is held from the first row to the last.
- A table of which the target has as many rows already is passed over: an interrupted move goes on
  where it was. One with other rows is refused, and nothing is overwritten.
- The keys come last: until they are there, no server takes the target for a complete one.
- Numbers of rows stay as they are, and the next number is higher than any that was ever given.

It leaves out: changing the secret. Keys are moved as they are sealed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple

from jwksd.store.database import CannotOpen, Connection, Database
from jwksd.store.logins import LOGGED, copy_logged

PAGE = 1_000  # rows read and written at a time
Row = tuple[Any, ...]
READ_AS = {"key": "CAST(key AS BLOB)"}
# Is told, after each page, the table, how many of its rows were moved, and how many it has.
Moved = Callable[[str, int, int], None]


class Table(NamedTuple):
    """A table, and the column by which its rows are read in order."""

    name: str
    number: str
    columns: tuple[str, ...]
    counted: bool = True  # whether its numbers are given by the engine


TABLES = (
    Table(
        "users",
        "id",
        ("id", "username", "password_hash", "email", "date_registered", "last_login"),
    ),
    Table("account_names", "folded", ("folded", "user_id"), counted=False),
    Table("account_claims", "user_id", ("user_id", "claims"), counted=False),
    Table(
        "key_policy",
        "id",
        ("id", "token_ttl", "skew", "lifetime", "lead", "retention"),
        counted=False,
    ),
    Table("auth_logs", "id", LOGGED),
    Table("keys", "kid", ("kid", "key", "exp")),
)
TEXT = frozenset(
    (
        *("username", "password_hash", "email", "date_registered", "last_login", "folded"),
        *("claims", "request_ip", "request_timestamp", "outcome"),
    )
)
WHOLE = frozenset(("id", "user_id", "kid", "exp"))
LEAST = -(2**63)  # another program may have given numbers below zero


def move(source: Database, target: Database, moved: Moved) -> None:
    """Have `target` hold what `source` holds.

    Raises:
        CannotOpen: the target has rows of its own, or cannot hold one of the source's.
        Unavailable: one of them could not be read or written; a table that was done stays done.
    """

    def all_tables(connection: Connection) -> None:
        connection.freeze([table.name for table in TABLES])
        for table in TABLES:
            move_table(connection, target, table, moved)

    source.write(all_tables)


def move_table(source: Connection, target: Database, table: Table, moved: Moved) -> None:
    """Move the rows of one table."""
    ((count,),) = source.execute(f"SELECT count(*) FROM {table.name}")  # noqa: S608

    def write(connection: Connection) -> None:
        ((there,),) = connection.execute(f"SELECT count(*) FROM {table.name}")  # noqa: S608
        if there not in (0, count):
            raise CannotOpen(
                f"{target.name} has {there} rows in {table.name}, of which there are {count} in "
                "the source: move to a database that holds nothing else"
            )
        if there:
            return
        copied = copy(source, connection, table, lambda number: moved(table.name, number, count))
        if copied != count:
            raise CannotOpen(f"{table.name} has {count} rows, and {copied} could be read")

    target.write(write)
    moved(table.name, count, count)


def copy(
    source: Connection, target: Connection, table: Table, copied: Callable[[int], None]
) -> int:
    """Write all rows of a table to an empty one; how many. `copied` is told page by page."""
    number = 0
    if table.name == "auth_logs":
        make_months(source, target)
    for page in pages(source, table):
        insert(target, table, page)
        number += len(page)
        copied(number)
    if table.counted:
        target.set_last_number(
            table.name, table.number, source.last_number(table.name, table.number)
        )
    return number


def pages(source: Connection, table: Table) -> Iterator[list[Row]]:
    """The rows of a table in the order of their numbers."""
    number = f"{table.name}.{table.number}"
    columns = ", ".join(READ_AS.get(name, name) for name in table.columns[1:])
    rows = source.sql.log if table.name == "auth_logs" else table.name
    sql = (
        f"SELECT {number}, {columns} FROM {rows} WHERE {number} > ? "  # noqa: S608
        f"ORDER BY {number} LIMIT {PAGE}"
    )
    after: int | str = "" if table.number in TEXT else LEAST
    while True:
        page = [checked(table, row) for row in source.execute(sql, (after,))]
        if page:
            yield page
            after = page[-1][0]
        if len(page) < PAGE:
            return


def checked(table: Table, row: Sequence[Any]) -> Row:
    """A row that any engine can hold: another program may have written it.

    Raises:
        CannotOpen: a text is not Unicode, or a number does not fit.
    """
    found = tuple(
        str(value) if name in TEXT and value is not None else value
        for name, value in zip(table.columns, row)
    )
    for name, value in zip(table.columns, found):
        if name in WHOLE and not isinstance(value, (int, type(None))):
            what = f"{name} that is no whole number"
        elif isinstance(value, str) and ("\0" in value or not is_utf8(value)):
            what = "text that PostgreSQL cannot"
        else:
            continue
        raise CannotOpen(
            f"row {row[0]!a:.40} of {table.name} holds a {what}: "
            "another program wrote it; change or delete it first"
        )
    return found


def is_utf8(text: str) -> bool:
    """Whether a text has a UTF-8 form; octets that were not UTF-8 became lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def insert(connection: Connection, table: Table, page: list[Row]) -> None:
    """Write rows with the numbers that they have."""
    if table.name == "auth_logs":
        copy_logged(connection, page)
    else:
        connection.insert(table.name, table.columns, page)


def make_months(source: Connection, target: Connection) -> None:
    """Make partitions for the months of the log, where the target has them."""
    sql = target.sql.partitions
    if sql is not None:
        for (month,) in source.execute(
            "SELECT DISTINCT substr(request_timestamp, 1, 7) FROM auth_logs"
        ).fetchall():
            if re.fullmatch("[12][0-9]{3}-(0[1-9]|1[0-2])", str(month)):
                target.execute(sql, (f"{month}-01 00:00:00", ""))
