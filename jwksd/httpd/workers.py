"""Threads beside the loop for what takes long, and a bounded queue before them.

    loop --submit--> queue --> thread: function(*arguments) --> the Future that `submit` returned

Rules of this file:
- Threads are made when they are first needed, and stay. They are daemons: one that hangs does not
  hold up the end of the process.
- Nothing is accepted that could not be run: `submit` refuses when the queue is full, and a request
  that has waited too long is refused instead of being served when nobody waits any more.
- Whatever a function raises is the exception of its Future. A thread never dies of one.
- Where the system ranks threads (Linux), workers rank below the loop: cheap answers go first.
- A thread need not wait for what follows its part (a commit on disk): a function that returns a
  Future hands its own Future over to that one.

It leaves out: cancelling. A caller that no longer wants an outcome ignores it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple

STEP_BACK = 5  # levels of niceness: a third of the loop's weight when both want the same core
QUEUE_LIMIT = 256  # two cores hash 200 in the time that is waited for, one 100
QUEUE_SECONDS = 2.0  # a request that waits longer for a worker is refused


class Overloaded(Exception):
    """There is no room for more work now."""


class Work(NamedTuple):
    """A call to be made, its Future, and until when it is worth making."""

    call: Callable[[], Any]
    future: Future[Any]
    until: float


class Workers:
    """`threads` of them at most, and room for `queue_limit` calls that wait.

    A call that has waited for more than `queue_seconds` is refused, and not made.
    """

    def __init__(
        self,
        threads: int,
        *,
        queue_limit: int = QUEUE_LIMIT,
        queue_seconds: float = QUEUE_SECONDS,
    ) -> None:
        self._most = threads
        self._limit = threads + queue_limit
        self._patience = queue_seconds
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # guards the two counters, and that threads are few
        self._unfinished = 0  # calls whose Future is not done: they wait, run, or are being written
        self.refused = 0  # calls: the queue was full, or too slow

    @property
    def queued(self) -> int:
        """How many calls wait, for a thread or for the disk."""
        return max(0, self._unfinished - len(self._threads))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call the function as soon as a thread is free; from any thread.

        The Future gives what the function returns, or, if that is a Future, what that one gives.

        Raises:
            Overloaded: there is no room for it.
        """
        future: Future[Any] = Future()
        future.add_done_callback(self._done)
        with self._lock:
            if self._unfinished < self._limit and self._unfinished >= len(self._threads):
                self._add_thread()
            if self._unfinished >= self._limit or not self._threads:
                self.refused += 1
                raise Overloaded
            self._unfinished += 1
        until = time.monotonic() + self._patience
        self._queue.put(Work(partial(function, *arguments), future, until))
        return future

    def stop(self, seconds: float) -> None:
        """Let the threads finish what they are at, and wait for that so long."""
        until = time.monotonic() + seconds
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads = []

    def _add_thread(self) -> None:
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run, name="worker", daemon=True)
            with suppress(RuntimeError):  # the system has no more; those that we have go on
                thread.start()
                self._threads.append(thread)

    def _run(self) -> None:
        step_back()
        for work in iter(self._queue.get, None):
            try:
                outcome = self._carry_out(work)
            except BaseException as failure:
                work.future.set_exception(failure)
            else:
                hand_over(work.future, outcome)

    def _carry_out(self, work: Work) -> Any:
        if time.monotonic() > work.until:
            with self._lock:
                self.refused += 1
            raise Overloaded
        return work.call()

    def _done(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished -= 1


def hand_over(future: Future[Any], outcome: Any) -> None:
    """Let a Future give this; or, if it is a Future itself, what it gives."""
    if isinstance(outcome, Future):
        outcome.add_done_callback(partial(pass_on, future))
    else:
        future.set_result(outcome)


def pass_on(future: Future[Any], done: Future[Any]) -> None:
    """Let a Future give what another one, which is done, gave."""
    failure = done.exception()
    if failure is None:
        future.set_result(done.result())
    else:
        future.set_exception(failure)


def step_back() -> None:
    """Rank the calling thread below the others of this process."""
    if sys.platform == "linux":  # elsewhere the number would name a process
        with suppress(OSError):
            rank = os.getpriority(os.PRIO_PROCESS, 0) + STEP_BACK
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), rank)
