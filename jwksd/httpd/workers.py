"""Threads beside the loop for what takes long, and bounded lanes before them.

    submit --> lane 0, cheap calls      source a: . .      source b: .   --+
           --> lane 1, dearer calls     source c: . . . .                --+--> the next free thread
           --> lane 2, the dearest      source a: .        source d: .   --+

    thread: function(future, *arguments)      future: the one that `submit` returned

Rules of this file:
- A thread takes from the first lane that has a call: cheap calls never wait behind dear ones. While
  cheap calls never end, the lanes below still get a tenth of the time.
- Within a lane sources take turns, so that one source with many calls delays only itself.
- A call is accepted only if it could be run. When a lane is full, the source with the most calls in
  it gives way. A call that waited too long is refused: its client has most likely left. A refusal
  says after how many seconds there will be room.
- Threads are made when they are first needed, and stay. They are daemons: one that hangs does not
  hold up the end of the process.
- A function settles the Future that it is given, or hands it to the writer, which settles it after
  the commit: the thread does not wait for that. What a function raises is the
  exception of its Future. A thread never dies of one.
- Where the system ranks threads (Linux), workers rank below the loop: cheap answers go first.

It leaves out: cancelling. A caller that no longer wants an outcome ignores it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from math import ceil
from queue import SimpleQueue
from typing import Any, NamedTuple

# Cores that this process may use.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STEP_BACK = 5  # levels of niceness: a third of the loop's weight when both want the same core
LANES = 3  # in the order of what a call costs: from some 0.3 ms to 20 ms and a row on disk for ever
QUEUE_LIMIT = 256  # calls in a lane: in QUEUE_SECONDS two cores hash 200, one core 100
QUEUE_SECONDS = 2.0  # a call that waits longer for a thread is refused
SHARE = 0.1  # of the time that the lanes above take, for a lane that waits: it is never starved
LATEST = 0.1  # the weight of the last call in the running mean of what a call takes


class Overloaded(Exception):
    """There is no room for more work now; `retry_after` says when there will be, in seconds."""

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__("the workers are busy")
        self.retry_after = retry_after


class Work(NamedTuple):
    """A call, its Future, and the time from which it is refused."""

    call: Callable[[], Any]
    future: Future[Any]
    until: float


class Lane:
    """Calls of like cost that wait for a thread; their sources take turns."""

    def __init__(self) -> None:
        # By source, in the order of their turns. A plain dict would be slow to give its first key.
        self._waiting: OrderedDict[str, deque[Work]] = OrderedDict()
        self.size = 0
        self.seconds = 0.0  # what a call took in the mean, lately
        self.owed = 0.0  # seconds of a thread: its share of the time of the lanes above

    def put(self, source: str, work: Work) -> None:
        """Add a call behind the others of its source."""
        self._waiting.setdefault(source, deque()).append(work)
        self.size += 1

    def expire(self, now: float) -> list[Work]:
        """Take out the calls that have waited too long."""
        late: list[Work] = []
        for source, calls in list(self._waiting.items()):
            while calls and calls[0].until < now:
                late.append(calls.popleft())
            if not calls:
                del self._waiting[source]
        self.size -= len(late)
        return late

    def take(self) -> Work:
        """The call whose turn it is; its source goes to the end."""
        source, calls = self._waiting.popitem(last=False)
        work = calls.popleft()
        if calls:
            self._waiting[source] = calls
        self.size -= 1
        return work

    def make_room(self, source: str) -> Work | None:
        """Take out the newest call of the source with the most, if that has more than this one."""
        most = max(self._waiting, key=lambda other: len(self._waiting[other]))
        if len(self._waiting[most]) <= len(self._waiting.get(source, ())) + 1:
            return None
        self.size -= 1
        return self._waiting[most].pop()

    def took(self, seconds: float) -> None:
        """Learn what a call took."""
        self.seconds += LATEST * (seconds - self.seconds)


class Workers:
    """`threads` of them at most, and in each lane room for `queue_limit` calls that wait.

    A call that has waited for more than `queue_seconds` is refused, and not made.
    """

    def __init__(
        self,
        threads: int,
        *,
        queue_limit: int = QUEUE_LIMIT,
        queue_seconds: float = QUEUE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._most = threads
        self._limit = queue_limit
        self._patience = queue_seconds
        self._lanes = [Lane() for _ in range(LANES)]
        self._turns: SimpleQueue[bool] = SimpleQueue()  # one for each call; False ends a thread
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # guards the lanes and the threads
        # Calls that wait, run, or are being written. No lock: each change of a set is atomic.
        self._unfinished: set[Future[Any]] = set()
        self.refused = 0  # calls: the lane was full, or too slow

    @property
    def queued(self) -> int:
        """How many calls wait, for a thread or for the disk."""
        return max(0, len(self._unfinished) - len(self._threads))

    def submit(
        self, function: Callable[..., Any], *arguments: Any, lane: int = 0, source: str = ""
    ) -> Future[Any]:
        """Call `function(future, *arguments)` as soon as it is its turn; from any thread.

        Returns the Future at once. The function sets its result, and an exception of the function
        becomes its own. It raises Overloaded if the call waited too long or gave way to another.

        Raises:
            Overloaded: there is no room for it.
        """
        future: Future[Any] = Future()
        future.add_done_callback(self._unfinished.discard)
        until = self._clock() + self._patience
        with self._lock:
            displaced = self._admit(self._lanes[lane], source)
            self._unfinished.add(future)
            self._lanes[lane].put(
                source, Work(partial(function, future, *arguments), future, until)
            )
        if displaced is None:
            self._turns.put(True)
        else:
            settle(displaced.future, self._overloaded(self._lanes[lane]))
        return future

    def expire(self) -> None:
        """Refuse what has waited too long in any lane; to be called every second or so.

        A thread looks at a call only when its turn comes, which in the lower lanes may be late.
        """
        now = self._clock()
        for lane in self._lanes:
            with self._lock:
                late = lane.expire(now)
                self.refused += len(late)
                refusal = self._overloaded(lane)
            for work in late:
                settle(work.future, refusal)

    def stop(self, seconds: float) -> None:
        """Let the threads finish their calls, and wait for them for so many seconds."""
        until = time.monotonic() + seconds
        for _ in self._threads:
            self._turns.put(False)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads = []

    def _admit(self, lane: Lane, source: str) -> Work | None:
        """Make sure that there is a thread, and room in the lane; the call that had to give way."""
        unfinished = len(self._unfinished)
        if unfinished >= len(self._threads):
            self._add_thread()
        cheap, dear, dearest = self._lanes
        begun = unfinished - cheap.size - dear.size - dearest.size
        waits = lane.size - max(0, len(self._threads) - begun)  # beyond what is taken at once
        displaced = lane.make_room(source) if waits >= self._limit and lane.size else None
        stuck = unfinished >= self._most + LANES * self._limit  # the disk does not keep up
        if not self._threads or stuck or (waits >= self._limit and displaced is None):
            self.refused += 1
            raise self._overloaded(lane)
        if displaced is not None:
            self.refused += 1
        return displaced

    def _overloaded(self, lane: Lane) -> Overloaded:
        """A refusal that says when the calls that go first will have been made."""
        above = self._lanes[: self._lanes.index(lane) + 1]
        seconds = sum(each.size * each.seconds for each in above)
        return Overloaded(max(1, ceil(seconds / max(1, len(self._threads)))))

    def _add_thread(self) -> None:
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run, name="worker", daemon=True)
            with suppress(RuntimeError):  # the system has no more threads; those that run go on
                thread.start()
                self._threads.append(thread)

    def _run(self) -> None:
        step_back()
        while self._turns.get():
            with self._lock:
                lane = self._choose()
                work = lane.take() if lane is not None else None  # it has expired meanwhile
            if lane is not None and work is not None:
                self._carry_out(lane, work)

    def _choose(self) -> Lane | None:
        """The lane whose turn it is: the first that has a call, or one that is owed its share."""
        for lane in reversed(self._lanes):
            if lane.size and lane.owed > lane.seconds:
                lane.owed -= lane.seconds
                return lane
        return next((lane for lane in self._lanes if lane.size), None)

    def _carry_out(self, lane: Lane, work: Work) -> None:
        start = self._clock()
        try:
            if start > work.until:
                raise self._late(lane)
            work.call()
        except Exception as failure:
            settle(work.future, failure)
        except BaseException as failure:  # of a library: it must end neither a thread nor the loop
            settle(work.future, RuntimeError(type(failure).__name__))
        else:
            self._count(lane, self._clock() - start)

    def _count(self, lane: Lane, seconds: float) -> None:
        """Learn what a call took; the lanes below that wait are owed a share of it."""
        with self._lock:
            lane.took(seconds)
            for below in self._lanes[self._lanes.index(lane) + 1 :]:
                below.owed = below.owed + SHARE * seconds if below.size else 0.0

    def _late(self, lane: Lane) -> Overloaded:
        with self._lock:
            self.refused += 1
            return self._overloaded(lane)


def finish(future: Future[Any], function: Callable[[], Any]) -> None:
    """Set the Future to what the function returns; a function for `submit`."""
    future.set_result(function())


def settle(future: Future[Any], failure: Exception) -> None:
    """Set the exception of a Future, unless it has an outcome already."""
    with suppress(InvalidStateError):
        future.set_exception(failure)


def then(future: Future[Any], function: Callable[[Any], Any]) -> Future[Any]:
    """A Future of `function(result)` for the result of another Future."""
    made: Future[Any] = Future()

    def apply(done: Future[Any]) -> None:
        try:
            made.set_result(function(done.result()))
        except Exception as failure:
            settle(made, failure)

    future.add_done_callback(apply)
    return made


def step_back() -> None:
    """Rank the calling thread below the others of this process."""
    # Elsewhere than on Linux the number would name a process.
    if sys.platform == "linux" and not _may_be_killed_for_asking():
        with suppress(OSError):
            rank = os.getpriority(os.PRIO_PROCESS, 0) + STEP_BACK
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), rank)


def _may_be_killed_for_asking() -> bool:
    """Whether a filter of system calls may end the process for what it forbids.

    A hardened unit's filter does that unless told otherwise, and no call asks a filter what it
    would do. Such a unit also forbids new privileges, which the filters of container engines, that
    only refuse, do not do by default.
    """
    try:
        with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
            lines = {line.strip() for line in status}
    except OSError:
        return True
    return {"Seccomp:\t2", "NoNewPrivs:\t1"} <= lines
