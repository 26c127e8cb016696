#!/usr/bin/env python3
"""The operator's commands: keys and users, while the server runs or before it ever did.

    python admin.py [--db FILE] keys list | rotate [--now] | revoke KID | export [--pem]
    python admin.py [--db FILE] rekey [--dry-run] | backup FILE
    python admin.py [--db FILE] [--argon2 COST] users list | add NAME | reset NAME | delete NAME
    python admin.py [--db FILE] log [--follow] [--summary] [--outcome WORD] [--since 1h] ...
    python admin.py [--db FILE] doctor
    python admin.py migrate --from DB --to DB

Rules of this file:
- A command is one row of `COMMANDS` and one function: parsed arguments and the opened database in,
  lines for standard output out. A running server notices the change with its next request.
- Lists are lines of fields separated by tabs, a heading first, so that cut and grep can read them.
- Exit codes: 0 done, 1 refused (the sentence says why) or, of doctor, a problem was found, 2 the
  command line, the configuration, or a database that cannot be opened.
- Names and kids are taken as they stand, with a hyphen in front too: strangers chose them.
- A password is never an argument, which every user of the machine could read: it comes from
  standard input, or is made here and printed once.

Left out: what the HTTP routes do. The commands are for users who may write the database file.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Callable, NamedTuple, TextIO

# Our modules stand beside this file, also if it is reached through a link or by `python -I`.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from jwksd import progress
from jwksd.ops import packages

try:
    from jwksd.store import accounts, claims, keystore, logins, moving, names
except ModuleNotFoundError as missing:
    packages.refuse_without(missing)

from jwksd.ops import doctor, process, secret, settings, startup
from jwksd.ops.installation import Installation
from jwksd.store.database import CannotOpen, Database, Unavailable
from jwksd.store.sqlite import ReadOnly

sys.path.pop(0)

Lines = Iterable[str]
MOVING = 3600.0  # seconds that one statement of a move may take
FOLLOW_SECONDS = 0.5  # between two looks; one costs some microseconds


class Refused(Exception):
    """The command cannot be carried out; the sentence says why."""


def opened_keys(place: Installation, log: Callable[[str], None] | None = None) -> keystore.KeyStore:
    """The keys, opened with the secret that the server would use."""
    return place.keys(*secret.load_secret(place.database, place.environ, tell), log or tell)


def keys_list(place: Installation, options: argparse.Namespace) -> Lines:
    """Every key: kid, expiry and what it is for now."""
    yield "kid\texpires\tstate"
    if keystore.has_keys(place.database):
        for kid, exp, state in opened_keys(place).listing():
            yield f"{kid}\t{shown_time(exp)}\t{state}"


def keys_rotate(place: Installation, options: argparse.Namespace) -> Lines:
    """Make a new key and end the older ones early; prints its kid."""
    kid, signs = opened_keys(place).rotate(at_once=options.now)
    tell(f"it signs from {shown_time(signs)} UTC on; tokens that older keys signed stay good")
    if options.now:
        tell("clients with an older copy of the JWKS refuse new tokens until they fetch it again")
    return [kid]


def keys_revoke(place: Installation, options: argparse.Namespace) -> Lines:
    """Delete a key at once, with every token it signed; prints the kid of one made instead."""
    said: list[str] = []
    keys = opened_keys(place, said.append)
    for line in said:  # no later line: the operator knows that the key is gone
        tell(line)
    try:
        made = keys.revoke(options.kid, replace=not options.no_replacement)
    except keystore.UnknownKey as error:
        raise Refused(str(error)) from None
    tell(
        "it is out of the JWKS; clients that fetched it before trust it until they fetch again: "
        f"caches for up to {keystore.JWKS_MAX_AGE} s, some clients for hours (docs/operations.md)"
    )
    if not keys.published().keys:
        tell("no key is left: /auth answers 404 until keys rotate, or a start, makes one")
    return [] if made is None else [made]


def keys_export(place: Installation, options: argparse.Namespace) -> Lines:
    """Print the JWKS that the server publishes now, or its keys as PEM, the signing key first."""
    known = keystore.has_keys(place.database)
    found = opened_keys(place).published() if known else keystore.KeySet((), 0, 0)
    if not options.pem:
        return [json.dumps(found.document())]
    # Readers of PEM skip what stands before a block (RFC 7468 §2).
    return [f"# kid {key.kid}\n{keystore.public_pem(key).rstrip()}" for key in found.keys]


def rekey(place: Installation, options: argparse.Namespace) -> Lines:
    """Seal every key that NOT_MY_KEY_PREVIOUS opens with NOT_MY_KEY; prints how many."""
    if not keystore.has_keys(place.database):
        raise Refused("there are no keys to seal with another secret")
    keys = opened_keys(place)
    with progress.shown("rekey"):
        count = keys.rekey(dry_run=options.dry_run)
    if options.dry_run:
        tell("no key was changed")
    elif count:
        tell("unset NOT_MY_KEY_PREVIOUS; old copies of the file still open with the old secret")
    return [str(count)]


def backup(place: Installation, options: argparse.Namespace) -> Lines:
    """Copy the database to a new file while the server runs."""

    # By the sizes of the files: SQLite's own progress wants a copy in steps, and such a copy begins
    # again whenever somebody writes between two of them. Beside a busy server it never ends.
    def copied() -> str:
        """How much is copied; the write-ahead log comes on top."""
        sizes = (os.path.getsize(file) / 1_048_576 for file in (options.file, place.config.db))
        return "{:.0f} of {:.0f} MiB".format(*sizes)

    try:
        with progress.shown("backup", copied):
            place.database.backup(options.file)
    except CannotOpen as error:
        raise Refused(str(error)) from None
    tell("the secret is not in it: keep a copy of that as well, and somewhere else")
    return []


def users_list(place: Installation, options: argparse.Namespace) -> Lines:
    """Every account, by name."""
    yield "username\temail\tregistered\tlast login"
    for name, email, registered, last_login in place.accounts().users():
        yield listed(name, email or "-", registered, last_login or "never")


def users_add(place: Installation, options: argparse.Namespace) -> Lines:
    """Create an account; its password is read from standard input, or generated and printed."""
    name = names.checked_new_name(options.name)
    email = None if options.email is None else names.checked_email(options.email)
    try:
        if not options.password_stdin:
            return [place.accounts().register(name, email)]
        if sys.stdin is None:
            raise Refused("standard input is closed: there is no password to read")
        password = given_password(sys.stdin)
        place.accounts().add(name, email, names.checked_password(password))
    except accounts.NameTaken:
        raise Refused("the name or the e-mail address is taken") from None
    return []


def given_password(stdin: TextIO) -> str:
    """The content of standard input, without the line end of a terminal."""
    try:
        password = stdin.read(names.MAX_PASSWORD + 2)
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"the password could not be read: {error}") from None
    return password[:-1] if password.endswith("\n") else password


def users_reset(place: Installation, options: argparse.Namespace) -> Lines:
    """Give an account a new generated password and print it; the old one ends at once."""
    users = place.accounts()
    return [users.reset(users.stored_name(options.name))]


def users_delete(place: Installation, options: argparse.Namespace) -> Lines:
    """Delete an account and retire its name. Tokens it holds stay valid until they expire."""
    users = place.accounts()
    name = users.stored_name(options.name)
    reached = (0, 0)

    def passed(*rows: int) -> None:
        nonlocal reached
        reached = rows[0], rows[1]

    try:
        with progress.shown("users delete", lambda: "row {:,} of {:,} of the log".format(*reached)):
            users.delete(name, free=options.free, passed=passed)
    except accounts.UnknownUser:
        if not options.free:
            raise
        users.free(name)
    if options.free:
        tell("a new account may have the name: tokens that the old one holds then speak for it")
    return []


def users_claims(place: Installation, options: argparse.Namespace) -> Lines:
    """Show the claims of an account's tokens, after the changes given: CLAIM=TEXT, CLAIM:=JSON."""
    users = place.accounts()
    name = users.stored_name(options.name)
    found = users.set_claims(name, options.changes) if options.changes else users.claims(name)
    yield "claim\tvalue"
    for claim, value in found.items():
        yield listed(claim, json.dumps(value, ensure_ascii=False))


def log(place: Installation, options: argparse.Namespace) -> Lines:
    """Show the attempts to log in, oldest first; with --summary their number by address."""
    user = None if options.user is None else place.accounts().stored_name(options.user)
    wanted = logins.Wanted(options.outcome, options.address, user, options.since)
    if options.summary and (options.follow or options.last):
        raise Refused("--summary counts what is there: leave out --follow and --last")
    if options.summary:
        return log_summary(place.logins(), wanted)
    return log_rows(place, wanted, options.last, options.follow)


def log_summary(kept: logins.LoginLog, wanted: logins.Wanted) -> Lines:
    """How many attempts there were by address and outcome, the most first."""
    yield "address\toutcome\tattempts\tfirst\tlast"
    for row in kept.summary(wanted):
        yield listed(*row)


def log_rows(place: Installation, wanted: logins.Wanted, last: int | None, follow: bool) -> Lines:
    """The attempts of the log; with --follow also new ones, until Ctrl-C."""
    yield "time\taddress\toutcome\tuser"
    kept, stamp = place.logins(), object()
    reached = logins.Progress(0 if last is None else kept.before_last(wanted, last))
    while True:
        # Looked at before the rows are: what is added meanwhile changes the next stamp.
        seen, stamp = stamp, place.database.stamp()
        if stamp is None or stamp != seen:
            for row in kept.newer(wanted, reached):
                yield listed(row.time, row.address, row.outcome, row.user)
        if not follow:
            return
        if place.database.moved():
            raise Refused("the database was deleted or replaced: start again to follow the new one")
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def diagnose(place: Installation, options: argparse.Namespace) -> Lines:
    """Say whether this installation is sound, and what to do where it is not; changes nothing."""
    problems = 0
    yield "check\tstate\tfinding"
    for finding in doctor.examine(place):
        problems += finding.state == doctor.PROBLEM
        yield listed(*finding)
    if problems:
        raise Refused(f"not sound in {problems} of these: what to do stands beside each problem")


def migrate(place: Installation, options: argparse.Namespace) -> Lines:
    """Copy everything from one database to another; prints how many rows each table has."""
    for flag, db in (("--from", options.source), ("--to", options.target)):
        try:
            settings.database(db)
        except ValueError as error:
            raise Refused(f"{flag}: {error}") from error
    if not startup.is_url(options.source) and not os.path.exists(options.source):
        raise Refused(f"there is no database {options.source}")
    shared = any(map(startup.is_url, (options.source, options.target)))
    secret.check_given_secrets(place.environ, shared=shared)
    rows: dict[str, tuple[int, int]] = {}

    def moved(table: str, number: int, of: int) -> None:
        rows[table] = number, of

    def measure() -> str:
        table, (number, of) = [*rows.items()][-1]
        return f"{table} row {number:,} of {of:,}"

    with opened(options.source) as source, opened(options.target) as target:
        if source.name == target.name:
            raise Refused("a database cannot be moved to itself")
        with progress.shown("migrate", measure):
            moving.move(source, target, moved)
        require_same_keys(place, source, target)
    yield "table\trows"
    for name, (_, count) in rows.items():
        yield listed(name, count)
    tell("every key opens; start the servers with the new --db, and none with the old one")


def opened(db: str) -> contextlib.closing[Database]:
    """A database to move from or to."""
    return contextlib.closing(startup.open_database(db, seconds=MOVING))


def require_same_keys(place: Installation, source: Database, target: Database) -> None:
    """Open every key of both, and compare."""
    listings = []
    for database in (source, target):
        given = secret.load_secret(database, dict(place.environ), lambda line: None)
        listings.append(replace(place, database=database).keys(*given, tell).listing())
    if listings[0] != listings[1]:
        raise Refused("the keys are not the same: start no server on the new database")


def address(text: str) -> str:
    """An address as the log spells it."""
    return str(ipaddress.ip_address(text))


def moment(text: str) -> str:
    """`1h` ago, or a UTC time such as `2026-11-23 18:00`, as the log spells it."""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2})?)?", text):
        return text.replace("T", " ")
    return logins.utc_text(time.time() - settings.duration(text))


class Argument(NamedTuple):
    """An argument of a command, as argparse takes it."""

    name: str
    options: dict[str, object]


NOW = Argument("--now", {"action": "store_true", "help": "sign with it at once, not after a lead"})
KID = Argument("kid", {"metavar": "KID", "help": "the key, as keys list names it"})
PEM = Argument("--pem", {"action": "store_true", "help": "as PEM, for verifiers that want a file"})
NO_REPLACEMENT = Argument(
    "--no-replacement",
    {"action": "store_true", "help": "make no key even if none is left to sign with"},
)
DRY_RUN = Argument("--dry-run", {"action": "store_true", "help": "only count them"})
FILE = Argument("file", {"metavar": "FILE", "help": "must not exist yet"})
NAME = Argument("name", {"metavar": "NAME", "help": "the user"})
FREE = Argument(
    "--free", {"action": "store_true", "help": "let a new account have the name, which is retired"}
)
CHANGES = Argument(
    "changes",
    {
        "metavar": "CLAIM=TEXT",
        "nargs": "*",
        "help": "or CLAIM:=JSON for any JSON value, or CLAIM= for no such claim",
    },
)
EMAIL = Argument("--email", {"metavar": "ADDRESS", "help": "the e-mail address"})
PASSWORD_STDIN = Argument(
    "--password-stdin", {"action": "store_true", "help": "read the password from standard input"}
)

SOURCE = Argument(
    "--from", {"dest": "source", "required": True, "metavar": "DB", "help": "a file, or a URL"}
)
TARGET = Argument(
    "--to", {"dest": "target", "required": True, "metavar": "DB", "help": "one that holds nothing"}
)
LOG_OPTIONS = (
    Argument("--follow", {"action": "store_true", "help": "go on with new attempts until Ctrl-C"}),
    Argument("--summary", {"action": "store_true", "help": "count them by address and outcome"}),
    Argument("--last", {"type": settings.positive, "metavar": "COUNT", "help": "the newest only"}),
    Argument("--outcome", {"choices": logins.OUTCOMES, "help": "how it ended"}),
    Argument("--address", {"type": address, "metavar": "ADDRESS", "help": "where it came from"}),
    Argument("--user", {"metavar": "NAME", "help": "whose account it was"}),
    Argument("--since", {"type": moment, "metavar": "WHEN", "help": "1h ago, or a time in UTC"}),
)

Command = Callable[[Installation, argparse.Namespace], Lines]
COMMANDS: dict[str, tuple[Command, tuple[Argument, ...]]] = {
    "keys list": (keys_list, ()),
    "keys rotate": (keys_rotate, (NOW,)),
    "keys revoke": (keys_revoke, (KID, NO_REPLACEMENT)),
    "keys export": (keys_export, (PEM,)),
    "rekey": (rekey, (DRY_RUN,)),
    "backup": (backup, (FILE,)),
    "users list": (users_list, ()),
    "users add": (users_add, (NAME, EMAIL, PASSWORD_STDIN)),
    "users reset": (users_reset, (NAME,)),
    "users delete": (users_delete, (NAME, FREE)),
    "users claims": (users_claims, (NAME, CHANGES)),
    "log": (log, LOG_OPTIONS),
    "doctor": (diagnose, ()),
    "migrate": (migrate, (SOURCE, TARGET)),
}


DONE: dict[Command, str] = {  # what has changed even if the output was lost, and what to do then
    users_add: "the account is made: users reset gives it another password",
    users_reset: "the old password has ended: run the command again",
    keys_rotate: "the key is made: keys list names it",
    keys_revoke: "the key is deleted: keys list names what there is",
}
REFUSALS = (
    Refused,
    names.Malformed,
    claims.BadClaim,
    accounts.UnknownUser,
    accounts.Busy,
    Unavailable,
)
FLAGS = ("db", "argon2")  # the settings that it shares with the server
FOUNDERS = (users_add, keys_rotate)  # may make the database; for the others a missing one is a slip
AS_IT_STANDS = {"kid", "name", "--user", "--email"}  # arguments that may begin with a hyphen


class CommandParser(settings.Parser):
    """The parser of one command."""

    arguments: tuple[Argument, ...] = ()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, but take a word that is no option as it stands."""
        words = list(args or ())
        if AS_IT_STANDS & {argument.name for argument in self.arguments}:
            words = told_apart(words, self.arguments)
        return super().parse_known_args(words, namespace)


def told_apart(words: Sequence[str], arguments: tuple[Argument, ...]) -> list[str]:
    """The words in an order that argparse reads rightly: options with joined values come first.

    argparse takes all that begins with a hyphen for an option, and the name `-hello` for `-h`.
    """
    options = {a.name: "action" not in a.options for a in arguments if a.name.startswith("--")}
    options["--help"] = False
    found: list[str] = []
    operands: list[str] = []
    value_due = False
    for place, word in enumerate(words):
        flag = word.partition("=")[0]
        # argparse takes the beginning of an option for the whole of it.
        named = [option for option in options if len(flag) > 2 and option.startswith(flag)]
        if word == "--":
            operands.extend(words[place + 1 :])
            break
        if named or word == "-h":
            found.append(word)
        elif value_due:
            found[-1] += f"={word}"
        else:
            operands.append(word)
        value_due = flag == word and len(named) == 1 and options[named[0]]
    return [*found, "--", *operands] if operands else found


@cache
def make_parser() -> settings.Parser:
    """The command line that the table describes."""
    parser = settings.Parser(prog="admin.py", description=(__doc__ or "").split("\n\n")[0])
    settings.add_settings(parser, FLAGS)
    groups: dict[str, argparse._SubParsersAction[CommandParser]] = {
        "": parser.add_subparsers(
            metavar="COMMAND", required=True, dest="command", parser_class=CommandParser
        )
    }
    for words, (command, arguments) in COMMANDS.items():
        group, _, verb = words.rpartition(" ")
        if group not in groups:
            child = groups[""].add_parser(group, prog=f"admin.py {group}")
            groups[group] = child.add_subparsers(metavar="COMMAND", required=True, dest="verb")
        help_text = (command.__doc__ or "").split("\n", 1)[0]
        leaf = groups[group].add_parser(
            verb, prog=f"admin.py {words}", help=help_text, description=help_text
        )
        leaf.set_defaults(run=command)
        leaf.arguments = arguments
        for argument in arguments:
            leaf.add_argument(argument.name, **argument.options)  # type: ignore[arg-type]
    return parser


def listed(*fields: object) -> str:
    """A line of a list. Other programs write the tables, too: none of its fields may break it."""
    return "\t".join("-" if field is None else escaped(str(field)) for field in fields)


def escaped(text: str) -> str:
    """The text; what a terminal would obey or nobody would see, as a shell's $'...' reads it."""
    if text.isprintable() and not names.INVISIBLE.search(text):
        return text
    return "".join(
        char if char.isprintable() and not names.INVISIBLE.match(char) else code_point(char)
        for char in text
    )


def code_point(char: str) -> str:
    """The escape of a character that `escaped` does not show."""
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def shown_time(seconds: object) -> str:
    """A time of the table as people read it; one that is none, or past 9999, as it stands."""
    try:
        number = float(str(seconds))
    except ValueError:
        number = -1.0
    if not 0 <= number <= logins.LAST_SECOND:
        return f"{seconds!r:.30}"
    return logins.utc_text(number)[:19]


def tell(line: str) -> None:
    """Print a sentence for the operator on standard error, escaped: it may quote strangers."""
    if sys.stderr is not None:
        print(escaped(line), file=sys.stderr)


def open_for(command: Command, path: str) -> Database:
    """The database as the command needs it.

    Raises:
        CannotOpen: it is not there, or cannot be used.
    """
    if command in (diagnose, migrate):  # they open their databases themselves
        return ReadOnly(path)
    if command not in FOUNDERS and not startup.is_url(path) and not os.path.exists(path):
        raise CannotOpen(f"there is no database {path}: name it with --db")
    return startup.open_database(path)


def is_text(word: str | None) -> bool:
    """Whether an argument is text; octets that are no characters of the locale are not."""
    return word is None or not re.search("[\ud800-\udfff]", word)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = make_parser().parse_args(arguments)
    if options.run is not diagnose:  # the doctor has a row for it
        packages.refuse_old()
    if not all(map(is_text, (vars(options).get(word) for word in ("name", "user", "email")))):
        tell("admin.py: the arguments cannot be read in this locale: set PYTHONUTF8=1")
        return 1
    environ = os.environ
    flags = {name: value for name, value in vars(options).items() if name in FLAGS}
    try:
        config = settings.configure(flags, environ)
        database = open_for(options.run, config.db)
    except (settings.ConfigurationError, CannotOpen) as error:
        tell(f"admin.py: {error}")
        return 2
    with contextlib.suppress(AttributeError):  # not a stream of ours, in a test
        # A name that the terminal cannot spell is escaped rather than an error.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        for line in options.run(Installation(config, database, environ, time.time), options):
            print(line)
        sys.stdout.flush()
    except (settings.ConfigurationError, CannotOpen, keystore.WrongSecret) as error:
        tell(f"admin.py: {error}")
        return 2
    except REFUSALS as error:
        tell(f"admin.py: {error}")
        return 1
    except KeyboardInterrupt:
        discard_output()  # how `log --follow` ends
    except OSError as error:
        discard_output()
        if isinstance(error, BrokenPipeError) and options.run not in DONE:
            return 0  # `head` has read enough
        advice = DONE.get(options.run, "run the command again")
        tell(f"admin.py: the output could not be written: {error}; {advice}")
        return 1
    finally:
        database.close()
    return 0


def discard_output() -> None:
    """Send what is left for standard output, which nobody reads any more, to the null device."""
    with contextlib.suppress(OSError):  # not a file, in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run() -> int:
    """The command as a process: with files for its user alone, and no secret in a core dump."""
    process.occupy_standard_streams()
    process.keep_secrets()
    if sys.stdout is None:  # closed: what would be printed is lost, and nothing else
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return main()


if __name__ == "__main__":
    sys.exit(run())
