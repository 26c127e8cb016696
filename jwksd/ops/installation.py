"""An installation as an operator's command sees it: the settings, the database, the environment.

It leaves out: the running server. A command and a server meet in the database alone.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Callable

from jwksd.ops.settings import Settings
from jwksd.store.accounts import Accounts
from jwksd.store.database import Database
from jwksd.store.keystore import KeyStore, remembered_policy
from jwksd.store.logins import LoginLog


@dataclass(frozen=True)
class Installation:
    """What a command works with. `clock` is the wall clock."""

    config: Settings
    database: Database
    environ: MutableMapping[str, str]
    clock: Callable[[], float]

    def accounts(self) -> Accounts:
        """The accounts of the database."""
        return Accounts(self.database, cost=self.config.argon2)

    def logins(self) -> LoginLog:
        """The login log."""
        return LoginLog(self.database, self.clock)

    def keys(self, secret: bytes, previous: bytes | None, log: Callable[[str], None]) -> KeyStore:
        """The keys, opened with these secrets.

        The settings of the server decide about them, and not those of this command: the server may
        have been started with other flags.

        Raises:
            WrongSecret: keys are there and none of them opens.
            Unavailable: the database cannot be read.
        """
        policy = remembered_policy(self.database) or self.config.policy
        keys = KeyStore(self.database, secret, policy, previous=previous, log=log, clock=self.clock)
        keys.open()
        return keys
