"""The secret that seals the keys: given by the operator, or generated once.

    NOT_MY_KEY   else   the file that NOT_MY_KEY_FILE names   else   <db>.secret, made once
                 and    NOT_MY_KEY_PREVIOUS opens what is not sealed with the new secret yet

Rules of this file:
- A secret that is blank or cannot be read ends the start, before any file is touched.
- A secret is never replaced: without it the keys that it sealed are lost.
- A variable that held a secret is removed from the environment that was given.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Callable

from jwksd.ops import ownership
from jwksd.ops.settings import ConfigurationError
from jwksd.store import keystore
from jwksd.store.database import Database

SECRET_BYTES = 32  # of a generated secret: 256 bits, nothing to guess
NOT_GENERATED = (
    "the secret must be given, the same to every server on the database: set NOT_MY_KEY or "
    "NOT_MY_KEY_FILE"
)
SHORT_SECRET = 16  # bytes; fewer deserve a warning even behind Argon2id


def load_secret(
    database: Database, environ: MutableMapping[str, str], log: Callable[[str], None]
) -> tuple[bytes, bytes | None]:
    """The secret that seals the keys, and the previous one that may still open some.

    NOT_MY_KEY, else the content of NOT_MY_KEY_FILE, else of the generated `<db>.secret`; and
    NOT_MY_KEY_PREVIOUS, else the content of NOT_MY_KEY_PREVIOUS_FILE, else none. The variables are
    removed from `environ`: what we start later does not inherit them.

    Raises:
        ConfigurationError: a secret is blank, or missing though keys are sealed with it.
    """
    beside = None if database.shared else Path(database.name)
    secret, previous = find_secret(beside, environ, log)
    if secret is not None:
        return secret, previous
    if beside is None:
        raise ConfigurationError(NOT_GENERATED)
    path = generated_secret(beside)
    # Looked for again: another first start may have made both in between.
    if keystore.has_keys(database) and previous is None and not path.is_file():
        raise ConfigurationError(
            f"the keys in {database.name} are sealed and there is no secret to open them: "
            f"set NOT_MY_KEY, or put back {path}"
        )
    create_secret(path)
    log(
        f"NOT_MY_KEY is not set: the keys are sealed with a secret generated in {path}; "
        "who copies both files has the keys"
    )
    return checked_secret(read_secret(path), str(path), log), previous


def find_secret(
    database: Path | None, environ: MutableMapping[str, str], log: Callable[[str], None]
) -> tuple[bytes | None, bytes | None]:
    """The secrets that `load_secret` loads, None for one that is missing: nothing is made.

    `database` is the file that a generated secret would stand beside.

    Raises:
        ConfigurationError: a secret is there that cannot be used.
    """
    secret = given_secret("NOT_MY_KEY", environ, log)
    previous = given_secret("NOT_MY_KEY_PREVIOUS", environ, lambda line: None)
    if secret is not None or database is None:
        return secret, previous
    path = generated_secret(database)
    if path.is_symlink():
        raise ConfigurationError(f"{path} is a link: name its target in NOT_MY_KEY_FILE instead")
    if not path.is_file():
        return None, previous
    if path.stat().st_mode & 0o077 and os.name == "posix":
        log(f"{path} can be read by others: chmod 600 it, then change the secret (admin.py rekey)")
    return checked_secret(read_secret(path), str(path), log), previous


def generated_secret(database: Path) -> Path:
    """The file of the secret that a first start makes."""
    return Path(f"{database}.secret")


def check_given_secrets(environ: Mapping[str, str], *, shared: bool) -> None:
    """Refuse a blank or unreadable secret before any file is touched; none, with a shared database.

    Raises:
        ConfigurationError: a variable is blank, or names a file that cannot be used.
    """
    names = "NOT_MY_KEY", "NOT_MY_KEY_PREVIOUS"
    given = [given_secret(name, dict(environ), lambda line: None) for name in names]
    if shared and given[0] is None:
        raise ConfigurationError(NOT_GENERATED)


def given_secret(
    name: str, environ: MutableMapping[str, str], log: Callable[[str], None]
) -> bytes | None:
    """The secret in the variable, else in the file that the variable `<name>_FILE` names."""
    direct, file = environ.pop(name, None), environ.pop(f"{name}_FILE", None)
    if direct is not None:
        return checked_secret(os.fsencode(direct), name, log)
    if file is not None:
        return checked_secret(read_secret(Path(file)), f"{name}_FILE ({file})", log)
    return None


def checked_secret(secret: bytes, origin: str, log: Callable[[str], None]) -> bytes:
    """The secret, unless it is blank."""
    if not secret.strip():
        raise ConfigurationError(f"{origin} is blank: set a secret, or unset it to have one made")
    if len(secret) < SHORT_SECRET:
        log(f"{origin} has only {len(secret)} bytes: {SHORT_SECRET} or more resist guessing")
    return secret


def read_secret(path: Path) -> bytes:
    """The content of the file without its last line end."""
    stranger = ownership.strangers([path])
    if stranger is not None:
        raise ConfigurationError(stranger)
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the secret: {error}") from error
    return secret.rstrip(b"\r\n")


def create_secret(path: Path) -> None:
    """Write a new random secret to a file that only we can read, whole or not at all."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(SECRET_BYTES) + "\n")
            file.flush()
            # On disk before a key is sealed with it: a power cut must not leave keys without it.
            os.fsync(descriptor)
        try:
            # Unlike a rename this never replaces a file or follows a link of that name.
            os.link(draft, path)
        finally:
            os.unlink(draft)
        sync_directory(path.parent)
    except FileExistsError:
        return  # another process was faster: its secret counts
    except OSError as error:
        raise ConfigurationError(f"cannot write the secret: {error}") from error


def sync_directory(path: Path) -> None:
    """Put the names in a directory on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
