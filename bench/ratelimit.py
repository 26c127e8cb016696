"""Decisions per second and octets per source, beside the moving window of the `limits` library.

    python -m bench.ratelimit [SOURCES ...]        (1, 10,000, 65,536 and 1,000,000 if not given)

Both limiters decide `5/minute` for the same hits on one thread, and a bare `dict` counts them, for
the part of the time that is the machine's memory. Each has processes of its own (a thread of
`limits` sweeps its memory and would slow its neighbour), three processes each, in turn:

    newcomer   every source hits for the first time
    admitted   sources drawn evenly at random hit again: nothing about the next one is in the
               processor's caches, which is the worst case
    refused    one source that has no slot left hits for ever

Each hit carries a string of its own, as a request would. Time is processor time of the deciding
thread (the sweeping of `limits` is not counted). The figure of a process is the median of its turns
of 5,000 hits; printed is the best of the three processes, in microseconds, and the ratio of the
bests of both limiters. Octets per source are what resident memory grew by (Linux), the string of
the address included.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ratelimit import Limiter, client_address, parse_limit, parse_networks, source

LIMIT = "5/minute"
TURN = 5_000  # hits; some milliseconds, long beside the clock's own cost
TURNS = 40  # the median of 40 turns shrugs off the few that something else disturbed
PROCESSES = 3  # of each contender; enough to see one that ran alone

Hit = Callable[[str], object]


def ours(sources: int) -> Hit:
    """The limiter of ratelimit.py, with room for all sources."""
    return Limiter(parse_limit(LIMIT), max_sources=sources).hit


def theirs(_: int) -> Hit:
    """The moving window of `limits` over its memory storage."""
    rule = import_module("limits").parse(LIMIT)
    storage = import_module("limits.storage").MemoryStorage()
    limiter = import_module("limits.strategies").MovingWindowRateLimiter(storage)
    return lambda name: limiter.hit(rule, name)


def floor(_: int) -> Hit:
    """A count per source in a dict: no window, no lock, no clock; nothing in Python does less."""
    counts: dict[str, int] = {}

    def hit(name: str) -> None:
        counts[name] = counts.get(name, 0) + 1

    return hit


CONTENDERS = {"ours": ours, "limits": theirs, "dict": floor}


def address(number: int) -> str:
    """An IPv4 address of its own for every number below 2**24."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def microseconds(hit: Hit, numbers: Sequence[int]) -> float:
    """How long one hit takes: the median turn; every turn makes new strings."""
    turns = []
    for first in range(0, len(numbers), TURN):
        names = [address(number) for number in numbers[first : first + TURN]]
        start = time.thread_time_ns()
        for name in names:
            hit(name)
        turns.append((time.thread_time_ns() - start) / len(names) / 1e3)
    return statistics.median(turns)


def resident() -> int:
    """Octets of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(who: str, sources: int) -> dict[str, float]:
    """All figures of one contender, in this process."""
    hit = CONTENDERS[who](sources)
    figures = {}
    before = resident()
    if sources > 1:
        figures["newcomer"] = microseconds(hit, range(sources))
        figures["octets"] = (resident() - before) / sources
        drawn = random.Random(1).choices(range(sources), k=min(TURN * TURNS, sources))
        figures["admitted"] = microseconds(hit, drawn)
    figures["refused"] = microseconds(hit, [0] * TURN * TURNS)
    return figures


def measured_apart(who: str, sources: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "bench.ratelimit", "--measure", who, str(sources)]
    answer: dict[str, float] = json.loads(subprocess.check_output(command))
    return answer


def compare(sources: int) -> None:
    """Print one line per figure."""
    runs = [{who: measured_apart(who, sources) for who in CONTENDERS} for _ in range(PROCESSES)]
    for figure in runs[0]["ours"]:
        best = {who: min(run[who][figure] for run in runs) for who in CONTENDERS}
        columns = "".join(f"{who:>8} {value:7.2f}" for who, value in best.items())
        ratio = best["limits"] / best["ours"]
        rate = "" if figure == "octets" else f"{1e6 / best['ours']:>11,.0f}/s"
        print(f"{sources:>9,} {figure:<9}{columns}  limits/ours {ratio:4.1f}{rate}", flush=True)


def addresses() -> None:
    """Print what it costs to know whose hit it is."""
    trusted = parse_networks(["10.0.0.0/8"])
    works: dict[str, Hit] = {
        "source, IPv4": lambda _: source("192.0.2.7"),
        "source, IPv6, seen lately": lambda _: source("2001:db8::7"),
        "source, IPv6, new": lambda _: source.__wrapped__("2001:db8::7"),
        "client_address, one proxy": lambda _: client_address("10.0.0.1", "192.0.2.7", trusted),
    }
    for label, work in works.items():
        print(f"{label:<26} {microseconds(work, [0] * TURN * TURNS):6.2f} us")


def main() -> None:
    """Print all of it."""
    print(f"{LIMIT}, Python {sys.version.split()[0]}; microseconds a hit, octets a source")
    for text in sys.argv[1:] or ["1", "10,000", "65,536", "1,000,000"]:
        compare(int(text.replace(",", "")))
    addresses()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        main()
