"""The seam between the store and the engine that keeps its rows: the interface, the exceptions,
and the writer that all engines share. No SQL stands here.

    any thread   read(sql) ----------------> rows
    any thread   write(job) ----> queue --+
    any thread   append(row) ---> queue --+--> writer thread: one transaction for all that wait,
    any thread   append(row) ---> queue --+    its commit, then every Future gets its outcome

Rules of this file:
- Acknowledged means durable: a Future of the writer is done after the commit that holds its row, or
  with the exception that says why there is none.
- Forty jobs that wait together share one commit, so a durable log costs a fraction of an fsync.
- An engine's own failures (busy, full, damaged, gone) are one exception, `Unavailable`. They leave
  nothing half done, and the next call tries again.
- A defect in one job costs that job. The writer thread outlives whatever it is given.

It leaves out: cancelling. A caller that no longer wants an outcome ignores its Future.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from queue import Empty, SimpleQueue
from typing import Any, Callable, NamedTuple, Protocol, TypeVar, Union

from jwksd.store.dialects import SQLITE, Dialect

BATCH_JOBS = 256  # jobs in one commit at the most: bounds how long the first of them waits
# A row waits 4 ms at the most for those that are about to come: 64 clients on two cores then have
# 29 logins in a commit instead of 7, and log in 1.3 times as often (docs/decisions.md).
GATHER_SECONDS = 0.004

T = TypeVar("T")
Finding = tuple[str, str, str]  # (the check, ok or note or problem, a sentence)


class CannotOpen(Exception):
    """The database cannot be used; the sentence says why and what to do."""


class Unavailable(Exception):
    """The database could not read or write now (busy, full, damaged, gone). Nothing was changed."""


class Cursor(Protocol):
    """The result of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""

    def fetchall(self) -> list[Any]:
        """The rows that it found."""

    def __iter__(self) -> Iterator[Any]:
        """The rows that it found, one by one."""


class Reading(Protocol):
    """A connection that can read; the parameters of a statement are `?`."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Cursor:
        """Carry out one statement."""


class Connection(Reading, Protocol):
    """The connection that a job of the writer gets."""

    @property
    def sql(self) -> Dialect:
        """The statements that differ between engines."""

    def lock(self, table: str, numbers: Collection[int | None]) -> None:
        """No other transaction changes the rows with these `id`s until this one has ended.

        Rows that others just changed are waited for. What is read afterwards is their last state.
        """

    def freeze(self, tables: Sequence[str]) -> None:
        """No other transaction changes these tables until this one has ended."""

    def last_number(self, table: str, column: str) -> int:
        """The highest number that was ever given to a row; 0 before the first."""

    def set_last_number(self, table: str, column: str, number: int) -> None:
        """Give new rows numbers above this one."""

    def overwrite(self) -> None:
        """Overwrite what this transaction deletes, where the engine can do that."""

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> Cursor:
        """Carry out one statement for each of several sets of parameters."""

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write many rows, the way that the engine does it fastest."""


# Writes the rows of many callers; returns those that it refused, by their place, with the reason.
WriteRows = Callable[[Connection, list[Any]], Union[Mapping[int, Exception], None]]


class Database(ABC):
    """A database as the store sees it."""

    name: str  # how messages and the ready line name it; holds no password
    shared = False  # whether servers on other machines write to it, too
    sql: Dialect = SQLITE  # the statements that differ

    @abstractmethod
    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT. Any thread; never waits for a writer.

        Raises:
            Unavailable: the rows could not be read, or `close` was called.
        """

    def write(self, job: Callable[[Connection], T]) -> T:
        """Run `job(connection)` in a transaction; return its result once it is durable.

        No other job of `write` runs meanwhile, on any server. It must not block, may be run again
        if the connection breaks, and may raise: its changes are then undone and the exception is
        raised here, without harm to what shares the commit.

        Raises:
            Unavailable: it could not be committed. Nothing was changed.
        """
        results: list[T] = []
        written: Future[None] = Future()

        def write_rows(connection: Connection, rows: list[None]) -> None:
            results.append(job(connection))

        self.append(write_rows, None, written, None)
        written.result()
        return results[-1]

    @abstractmethod
    def append(self, write_rows: WriteRows, row: Any, future: Future[T], result: T) -> None:
        """Have `write_rows(connection, rows)` write `row`: one call for all rows that wait.

        Returns at once. Once the row is durable, `future` gives `result`; it raises what
        `write_rows` raised or returned for this row, or `Unavailable` if it could not be written.
        """

    @abstractmethod
    def expect(self) -> contextlib.AbstractContextManager[None]:
        """A context in which a row is about to be appended: a commit waits for it, a few ms."""

    @abstractmethod
    def stamp(self) -> object:
        """A value that differs from an earlier one on this thread if the data changed in between;
        always None where `watch` tells of it instead.

        Costs a few microseconds: it is asked before the first request of a turn of the loop.

        Raises:
            Unavailable: the database could not be read.
        """

    def watch(self, changed: Callable[[], None]) -> None:  # noqa: B027
        """Call `changed` on a thread of the engine's after each change of the keys by any process.

        If it raises, it is called again. An engine whose `stamp` tells of changes never calls it.
        """

    def horizon(self) -> tuple[int, int] | None:
        """The oldest transaction that has not ended, and the next to begin.

        None where rows become visible in the order of their numbers.

        Raises:
            Unavailable: the database cannot be read.
        """
        return None

    def own_writes(self) -> Collection[int]:
        """The transactions of this server, as `sql.writer` gives them: the last few thousand."""
        return ()

    @abstractmethod
    def moved(self, *, log: bool = True) -> bool:
        """Whether what is written now would be lost, because the database was replaced, or, unless
        `log` is False, its write-ahead log.
        """

    @abstractmethod
    def probe(self) -> None:
        """Write something that changes nothing, to see whether writing works (again).

        Raises:
            Unavailable: it does not.
        """

    @abstractmethod
    def backup(self, target: str | os.PathLike[str]) -> None:
        """Copy a consistent state to the new file `target` while others read and write.

        Raises:
            CannotOpen: the target exists or cannot be written.
        """

    def findings(self) -> list[Finding]:
        """What `admin.py doctor` says of the engine; empty where it looks at the file itself.

        Raises:
            Unavailable: the database cannot be read.
        """
        return []

    @abstractmethod
    def close(self) -> None:
        """Write what is queued, then close. May be called twice."""


class Entry(NamedTuple):
    """A row that waits for the next commit, and what its Future then gives."""

    write_rows: WriteRows
    row: Any
    future: Future[Any]
    result: Any


class Job:
    """The rows of one transaction that the same function writes."""

    __slots__ = ("_entries", "error", "refused")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self.error: Exception | None = None  # why none of them was written
        self.refused: Mapping[int, Exception] = {}

    def add(self, entry: Entry) -> None:
        """Add a row to the job."""
        self._entries.append(entry)

    def run(self, connection: Connection) -> None:
        """Write the rows, in the writer's transaction."""
        rows = [entry.row for entry in self._entries]
        self.refused = self._entries[0].write_rows(connection, rows) or {}

    def settle(self) -> None:
        """Let the Futures of all rows have their outcomes: the transaction has ended."""
        for place, entry in enumerate(self._entries):
            settle(entry, self.error or self.refused.get(place))


def settle(entry: Entry, error: Exception | None) -> None:
    """Let the Future of an entry have its outcome."""
    with contextlib.suppress(InvalidStateError):  # it has an outcome: nobody waits for this one
        if error is None:
            entry.future.set_result(entry.result)
        else:
            entry.future.set_exception(error)


class Expected:
    """Rows that are about to be appended. The last of them ends the wait for them."""

    def __init__(self) -> None:
        self._rows: list[None] = []  # one for each; append and pop are atomic
        self._is_waited_for = False
        self._all_here = threading.Lock()  # held; released to end a wait
        self._all_here.acquire()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A context in which a row is about to be appended."""
        self._rows.append(None)
        try:
            yield
        finally:
            self._rows.pop()
            if self._is_waited_for and not self._rows:
                self._is_waited_for = False
                with contextlib.suppress(RuntimeError):  # two were last at the same moment
                    self._all_here.release()

    def wait(self, seconds: float) -> None:
        """Wait until none is expected, but not for longer than this."""
        self._is_waited_for = True  # before the look: no end of `one` is missed
        if self._rows:
            self._all_here.acquire(timeout=seconds)
        self._is_waited_for = False
        self._all_here.acquire(blocking=False)  # it came too late: the next one is not told of it


class Writer:
    """The one thread that writes. `commit(jobs)` carries out a transaction of the engine: `run` of
    each job; what a single job raised goes to its `error`, what ends all of them is raised.
    """

    def __init__(self, commit: Callable[[list[Job]], None]) -> None:
        self._commit = commit
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()  # None is the end
        self._expected = Expected()
        self._lock = threading.Lock()  # guards _closed: nothing is queued behind the end
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def append(self, write_rows: WriteRows, row: Any, future: Future[T], result: T) -> None:
        """As `Database.append`."""
        with self._lock:
            if not self._closed:
                self._queue.put(Entry(write_rows, row, future, result))
                return
        future.set_exception(Unavailable("the database is closed"))

    def expect(self) -> contextlib.AbstractContextManager[None]:
        """As `Database.expect`."""
        return self._expected.one()

    def close(self) -> None:
        """Commit what is queued, then end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    # -- on the thread

    def _run(self) -> None:
        while True:
            batch = self._next_batch()
            entries = [entry for entry in batch if entry is not None]
            try:
                jobs = gather(entries)
            except Exception as error:  # MemoryError: this thread must outlive it
                failure = as_unavailable(error)
                for entry in entries:
                    settle(entry, failure)
            else:
                self._write(jobs)
            if batch[-1] is None:
                return

    def _next_batch(self) -> list[Entry | None]:
        """Wait for entries; take those that are there, BATCH_JOBS at most. None is the end."""
        batch = [self._queue.get()]
        if not self._closed:
            self._expected.wait(GATHER_SECONDS)
        while len(batch) < BATCH_JOBS and batch[-1] is not None:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                break
        return batch

    def _write(self, jobs: list[Job]) -> None:
        try:
            if jobs:
                self._commit(jobs)
        except Exception as error:  # the engine's or any other: all of the batch was undone
            failure = as_unavailable(error)
            for job in jobs:
                job.error = failure
        for job in jobs:
            job.settle()


def gather(entries: list[Entry]) -> list[Job]:
    """The jobs of one commit: rows for the same function become one job."""
    jobs: dict[WriteRows, Job] = {}
    for entry in entries:
        jobs.setdefault(entry.write_rows, Job()).add(entry)
    return list(jobs.values())


def as_unavailable(error: Exception) -> Unavailable:
    """`Unavailable` for the error that kept a transaction from its commit."""
    # MemoryError has no text, and a trouble without a text would be taken for none.
    return error if isinstance(error, Unavailable) else Unavailable(str(error) or repr(error))
