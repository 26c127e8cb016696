"""The few statements that differ between the engines; all others are written once, with `?`.

Where PostgreSQL lacks a word of SQLite (`instr`, `typeof`, the type BLOB),
postgres.sql defines it, so that only what differs in kind is left here.
"""

from __future__ import annotations

from typing import NamedTuple


class Dialect(NamedTuple):
    """What an engine says in its own words."""

    # Whether a new account's name, e-mail address or folded name is in use. The comparison by
    # ASCII case is that of the engine's unique indexes; another would read every account.
    taken: str
    # The login log with outcomes and names, for a FROM.
    log: str
    # Whether the outcome of an attempt is a column of auth_logs; else auth_outcomes holds it.
    outcome_in_log: bool
    # Which transaction wrote a row of the log, as `Database.own_writes` names it.
    writer: str
    # Makes the partitions of the log for the first time given, and drops those that end before the
    # second; None where the log is one table.
    partitions: str | None = None


SQLITE = Dialect(
    taken=(
        "SELECT 1 FROM users WHERE username = ? COLLATE NOCASE OR email = ? COLLATE NOCASE "
        "UNION SELECT 1 FROM account_names WHERE folded = ?"
    ),
    log=(
        "auth_logs LEFT JOIN auth_outcomes ON log_id = auth_logs.id "
        "LEFT JOIN users ON users.id = user_id"
    ),
    outcome_in_log=False,
    writer="0",
)

POSTGRESQL = Dialect(
    taken=(
        'SELECT 1 FROM users WHERE lower(username COLLATE "C") = lower(? COLLATE "C") '
        'OR lower(email COLLATE "C") = lower(? COLLATE "C") '
        "UNION SELECT 1 FROM account_names WHERE folded = ?"
    ),
    log="auth_logs LEFT JOIN users ON users.id = user_id",
    outcome_in_log=True,
    writer="auth_logs.xmin::text::bigint",
    partitions="SELECT keep_partitions(?, ?)",
)
