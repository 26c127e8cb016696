"""What happens beside the requests: keys are made and removed, old rows of the login log deleted,
changes by other processes noticed, and the operator is told once of each trouble.

    loop      notice_changes     before the first request of a turn: was the database changed?
    thread    tick               every second: the keys that are due, and what is too old
    thread    learn              each half second: the attempts that other servers logged

Rules of this file:
- One task's failure neither ends the others nor the thread; the next tick tries again.
- A trouble is reported when it begins and when it is over, not each time that it is met.
- What the loop calls costs microseconds and never waits.
"""

from __future__ import annotations

import threading
from typing import Callable

from jwksd.httpd import where
from jwksd.store.database import Database, Unavailable
from jwksd.store.keystore import KeyStore
from jwksd.store.logins import LoginLog, Progress

TICK_SECONDS = 1.0  # between looks at the clock for keys that are due, unless one is due sooner
LEARN_SECONDS = 0.5
LEARNING = "reading the attempts at other servers"
WRITING = "reading and writing the database"  # the name of the trouble behind a 503


class Upkeep:
    """The chores of one server. `log` takes a line for the operator."""

    def __init__(
        self,
        database: Database,
        keys: KeyStore,
        logins: LoginLog,
        *,
        log_retention: float,
        log: Callable[[str], None],
    ) -> None:
        """`log_retention`: seconds that rows of the login log are kept.

        Raises:
            Unavailable: a shared database cannot be read.
        """
        self._database = database
        self._keys = keys
        self._logins = logins
        self._log_retention = log_retention
        self._log = log
        # Before the limiter counts the log: a row in between counts twice, and none is missed.
        self._learnt = Progress(logins.newest_number() if database.shared else 0)
        self._stamp: object = None
        self._troubles: dict[str, str | None] = {}

    def run(self, stopping: threading.Event, also: Callable[[], None]) -> None:
        """Tick until `stopping` is set, and call `also` after each tick."""
        self._database.watch(self._keys.refresh)
        wait = min(TICK_SECONDS, self._keys.due_in())
        while not stopping.wait(wait):
            was_due = not self._keys.due_in()
            self.tick()
            also()
            left = self._keys.due_in()
            # A key that is still due could not be made: wait. One that became due is made at once.
            wait = TICK_SECONDS if was_due and not left else min(TICK_SECONDS, left)

    def tick(self) -> None:
        """Make the keys that are due, delete what is too old."""
        # Asked here as well as at a commit: a server without requests would leave the log of a file
        # that was replaced where SQLite applies it to the new one.
        if self._troubles.get(WRITING) or self._database.moved():
            self._attempt(WRITING, self._database.probe)
        self._attempt("rotation", self._make_due)
        self._attempt("retention of keys", self._keys.prune)
        self._attempt("retention of the log", lambda: self._logins.prune(self._log_retention))

    def learn(
        self, stopping: threading.Event, prime: Callable[[list[tuple[str, list[float]]]], None]
    ) -> None:
        """Have `prime` count the attempts at other servers on the database until `stopping` is set.

        So a client has as many attempts as at one server, but for half a second.
        """
        while not stopping.wait(LEARN_SECONDS):
            try:
                prime(self._logins.others(self._learnt))
                self.report(LEARNING, None)
            except Unavailable as trouble:
                self.report(LEARNING, str(trouble))

    def notice_changes(self) -> None:
        """Load the keys if another process has changed the database since the last call."""
        try:
            stamp = self._database.stamp()
            if stamp != self._stamp:
                self._keys.refresh()
                self._stamp = stamp
            self.report("database", None)
        except Unavailable as trouble:
            self.report("database", str(trouble))

    def report(self, subject: str, trouble: str | None) -> None:
        """Tell the operator once that something is wrong, and once that it works again."""
        before = self._troubles.get(subject)
        if trouble != before:
            self._troubles[subject] = trouble
            self._log(f"{subject}: {trouble or 'works again'}")

    def in_trouble(self) -> bool:
        """Whether a reported trouble goes on, or the database file was replaced."""
        # A deleted write-ahead log is no trouble before `tick` has saved what is in it: an operator
        # who is told of a trouble may end the process.
        return any(self._troubles.values()) or self._database.moved(log=False)

    def _make_due(self) -> None:
        if self._keys.make_due():
            self._log("a new key was made")

    def _attempt(self, subject: str, task: Callable[[], object]) -> None:
        try:
            task()
            self.report(subject, None)
        except Unavailable as trouble:
            self.report(subject, str(trouble))
        except Exception as failure:  # one task's defect must not end the others
            self.report(subject, where(failure))
