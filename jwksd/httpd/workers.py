"""Answers that take long: threads beside the loop, and a bounded queue before them.

    loop --submit--> queue --> thread: later.run() --finished--> whoever collects, on the loop

Rules of this file:
- Threads are made when they are first needed, and stay. They are daemons: one that hangs does not
  hold up the end of the process.
- Nothing is accepted that could not be run: a full queue says so at once, and who has waited in it
  for too long is told so instead of being served when nobody waits any more.
- Whatever a `Later` raises becomes its outcome. A thread never dies of one.
- Where the system ranks threads (Linux), workers rank below the loop: cheap answers go first.
- A thread need not wait for what follows its part (a commit on disk): `Eventually` has the outcome
  delivered by whoever has it then.

It leaves out: cancelling. Who no longer wants an outcome ignores it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Union

from http1 import Response

STEP_BACK = 5  # levels of niceness: a third of the loop's weight when both want the same core

Outcome = Union[Response, "Later", BaseException]
Deliver = Callable[[Outcome], None]
Eventually = Callable[[Callable[[Union[Response, "Later"]], None]], None]


class Later:
    """An answer that takes time, for a worker: its function returns the `Response`, or a function
    that is given `deliver` and calls it once, from any thread, when there is a `Response`; or with
    another `Later`, if it has to be asked again.
    """

    __slots__ = ("_arguments", "_function")

    def __init__(self, function: Callable[..., Response | Eventually], *arguments: Any) -> None:
        self._function = function
        self._arguments = arguments

    def run(self, deliver: Callable[[Response | Later], None]) -> None:
        """Have `deliver` called with the answer, now or later."""
        outcome = self._function(*self._arguments)
        if isinstance(outcome, Response):
            deliver(outcome)
        else:
            outcome(deliver)

    def __call__(self) -> Response:
        """Wait for the answer: for callers without a loop."""
        answers: SimpleQueue[Response | Later] = SimpleQueue()
        self.run(answers.put)
        answer = answers.get()
        return answer() if isinstance(answer, Later) else answer


class Workers:
    """`threads` of them at most, and room for `queue_limit` more that wait.

    Who has waited for more than `patience` seconds gets `too_late`, and is not run.

    Every method is for one thread alone, the loop's; `finished` is called by the workers, with what
    `submit` got and what came of it.
    """

    def __init__(
        self,
        threads: int,
        queue_limit: int,
        finished: Callable[[Deliver, Outcome], None],
        *,
        patience: float,
        too_late: Response,
    ) -> None:
        self._most = threads
        self._limit = threads + queue_limit
        self._finished = finished
        self._patience = patience
        self._too_late = too_late
        self._queue: SimpleQueue[tuple[Later, Deliver, float] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0

    @property
    def queued(self) -> int:
        """How many wait for a thread."""
        return max(0, self._unfinished - len(self._threads))

    def submit(self, later: Later, deliver: Deliver) -> bool:
        """Run it as soon as a thread is free; False if there is no room for it."""
        if self._unfinished >= self._limit:
            return False
        if self._unfinished >= len(self._threads) < self._most:
            self._add_thread()
        if not self._threads:
            return False
        self._unfinished += 1
        self._queue.put((later, deliver, time.monotonic() + self._patience))
        return True

    def collect(self) -> None:
        """To be called once for each call of `finished`."""
        self._unfinished -= 1

    def stop(self, timeout: float) -> None:
        """Let the threads end what they are at, and wait for that so long."""
        until = time.monotonic() + timeout
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads = []

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._run, name="worker", daemon=True)
        with suppress(RuntimeError):  # the system has no more; those that we have go on
            thread.start()
            self._threads.append(thread)

    def _run(self) -> None:
        step_back()
        for later, deliver, until in iter(self._queue.get, None):
            finished = partial(self._finished, deliver)
            try:
                if time.monotonic() > until:
                    finished(self._too_late)
                else:
                    later.run(finished)
            except BaseException as failure:
                finished(failure)


def step_back() -> None:
    """Rank the calling thread below the others of this process."""
    if sys.platform == "linux":  # elsewhere the number would name a process
        with suppress(OSError):
            rank = os.getpriority(os.PRIO_PROCESS, 0) + STEP_BACK
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), rank)
