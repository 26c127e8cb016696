"""Rate limiting: at most COUNT hits per PERIOD from one source, in memory, exact to the nanosecond.

A source (an address, see `source`) has a log: the times of its last admitted hits, oldest first.

                     |<------- period ------->|
    --x-------x------|---x---------x----x-----+---->  time
                  now - period               now

A hit is admitted if fewer than COUNT times lie after `now - period`: a window that slides, so no
boundary lets twice the count through. The next slot opens when the oldest of those times leaves.

Rules of this file:
- Under one lock a hit takes a slot of every rule, or of none. A refused hit writes no time, so
  asking again never makes the wait longer.
- Inside, times are whole nanoseconds: sums of them are exact, and so is the wait we tell.
- A log holds no more times than the largest count, the table no more logs than `max_sources`. That
  is all the memory there is; bench/ratelimit.py prints it. No timer runs: the sources stand in a
  queue, each newcomer looks at the first two, drops those that expired, and sends a live one to the
  end.
- If the table is full and the first source is live, the newcomer takes its place *and its times*.
  So no flood of addresses, however large, is admitted more often than `max_sources` addresses would
  be. The price, while the flood lasts: a newcomer may be refused for a stranger's hits. A source
  that was pushed out comes back to a stranger's times, which leave it more slots than its own, or
  fewer.

It leaves out: storage (server.py primes it from the login log at start), sharing between processes,
limits per account, HTTP beyond the text of three fields, and RFC 7239 `Forwarded`.
"""

from __future__ import annotations

import re
import threading
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from math import ceil
from typing import NamedTuple, Union

MAX_COUNT = 10_000  # a source's log is then 80 kB at most: 8 octets a time
MIN_PERIOD = 0.001  # seconds; shorter is less than the jitter of any network
MAX_PERIOD = 366 * 86_400  # seconds; a leap year: a longer one is a ban, not a rate
MAX_SOURCES = 65_536  # as OpenSSH's PerSourcePenalties; one IPv6 /48 has as many /64 networks
MAX_HOPS = 16  # proxies in a row; real chains have one to three
NANO = 1_000_000_000  # nanoseconds in a second
MAX_HOP_LENGTH = 64  # characters; the longest address with brackets, scope and port has about 60

UNITS = {
    word: seconds
    for seconds, words in (
        (1, "s sec secs second seconds"),
        (60, "m min mins minute minutes"),
        (3_600, "h hour hours"),
        (86_400, "d day days"),
    )
    for word in words.split()
}
RULE = re.compile(r"([0-9]{1,9}) ?/ ?([0-9]{1,9}(?:\.[0-9]{1,9})?)? ?([a-z]+)")
HOP = re.compile(r"\[([^\[\]]+)\](?::[0-9]{1,5})?|([^:]+):[0-9]{1,5}|([^\[\]]+)")

Address = Union[IPv4Address, IPv6Address]
Networks = tuple[Union[IPv4Network, IPv6Network], ...]


class Rule(NamedTuple):
    """At most `count` hits in any `period` seconds."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a rule
    period: float


class Verdict(NamedTuple):
    """The answer to one hit; times are whole seconds, rounded up.

    `remaining` and `reset` speak of the rule that is nearest to refusing, number `rule` in the
    order given: the slots left after this hit, and how long until there is one more.
    """

    allowed: bool
    retry_after: int
    remaining: int
    reset: int
    rule: int


_verdict = tuple.__new__  # half the time of a NamedTuple's own constructor
UNLIMITED = Verdict(allowed=True, retry_after=0, remaining=0, reset=0, rule=-1)


def parse_limit(text: str) -> tuple[Rule, ...]:
    """`5/minute`, `3/1.5s`, `5/minute,100/hour`; `off` is no rule at all. ValueError otherwise."""
    if text.strip().lower() == "off":
        return ()
    return tuple(_parse_rule(part.strip().lower()) for part in text.split(","))


def _parse_rule(text: str) -> Rule:
    match = RULE.fullmatch(text)
    if match and match[3] in UNITS:
        rule = Rule(int(match[1]), float(match[2] or 1) * UNITS[match[3]])
        if _sound(rule):
            return rule
    raise ValueError(
        f"{text[:40]!r} is not a limit: write COUNT/PERIOD, such as 5/minute, 10/second or 3/1.5s, "
        f"several joined by commas, or off; COUNT is 1 to {MAX_COUNT:,}, PERIOD a number (1 if "
        "absent) and s, min, hour or day, 1 ms to 366 days"
    )


def _sound(rule: Rule) -> bool:
    return 1 <= rule.count <= MAX_COUNT and MIN_PERIOD <= rule.period <= MAX_PERIOD


class Limiter:
    """Admits hits while every rule has a slot for their source; no rules, no limit."""

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        clock: Callable[[], float] = time.monotonic,
        max_sources: int = MAX_SOURCES,
    ) -> None:
        """`clock` gives seconds and never goes back; the wall clock is not such a clock."""
        if max_sources < 1 or not all(map(_sound, rules)):
            raise ValueError("a limiter needs a place for one source, and rules as parse_limit's")
        self._rules = [(n, rule.count, round(rule.period * NANO)) for n, rule in enumerate(rules)]
        self._most = max((count for _, count, _ in self._rules), default=0)
        self._longest = max((period for _, _, period in self._rules), default=0)
        # the default clock is read in nanoseconds, not by way of a float
        precise = time.monotonic_ns if clock is time.monotonic else None
        self._now: Callable[[], int] = precise or (lambda: round(clock() * NANO))
        self._max_sources = max_sources
        self._lock = threading.Lock()  # guards the two below, every log, and the order of times
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._logs: dict[str, array[int]] = {}
        self._turns: deque[str] = deque()  # the sources of _logs, in the order of their turns

    def __len__(self) -> int:
        """How many sources are remembered."""
        return len(self._logs)

    def hit(self, source: str) -> Verdict:
        """Take a slot of every rule for `source`, or none and say when to come back."""
        if not self._rules:
            return UNLIMITED
        self._acquire()  # twice as fast as `with self._lock` on CPython 3.11
        try:
            now = self._now()
            log = self._logs.get(source)
            return self._decide(self._enter(source, now) if log is None else log, now)
        finally:
            self._release()

    def check(self, source: str) -> Verdict:
        """What `hit` would say, without taking a slot."""
        with self._lock:
            now, log = self._now(), self._logs.get(source)
            if log is None or not self._rules:
                return UNLIMITED
            return self._decide(log, now, take=False)

    def _decide(self, log: array[int], now: int, take: bool = True) -> Verdict:
        """Find the rule nearest to refusing; if even that one has a slot, write the time down."""
        size = len(log)
        free, opens, tightest = MAX_COUNT + 1, 0, 0
        for number, count, period in self._rules:
            since, oldest = now - period, size - count if size > count else 0
            if size and log[oldest] <= since:  # often nothing has left the window: no search
                oldest = bisect_right(log, since, oldest + 1)
            slots = count - size + oldest
            if slots <= free:
                # a slot opens when the oldest time in the window leaves it; in an empty window
                # the oldest is this hit's
                leaves = (log[oldest] if oldest < size else now) + period
                if slots < free or leaves > opens:
                    free, opens, tightest = slots, leaves, number
        wait = (opens - now + NANO - 1) // NANO
        if not free:
            return _verdict(Verdict, (False, wait, 0, wait, tightest))
        if take:
            if size == self._most:
                del log[0]
            log.append(now)
        return _verdict(Verdict, (True, 0, free - 1, wait, tightest))

    def prime(self, source: str, ages: Iterable[float]) -> None:
        """Count hits from before the start, `ages` seconds ago; one in the future counts as now."""
        with self._lock:
            now = self._now()
            spans = (round(max(age, 0.0) * NANO) for age in ages)
            times = [now - span for span in spans if span < self._longest]
            if times:
                log = self._logs.get(source)
                if log is None:
                    log = self._enter(source, now)
                log[:] = array("q", sorted([*log, *times])[-self._most :])

    def _enter(self, source: str, now: int) -> array[int]:
        """Give a newcomer a log: an empty one, or in a full table that of the source next in turn.

        Up to two expired sources leave for each newcomer, so the table of a quiet server shrinks.
        """
        logs, turns = self._logs, self._turns
        for _ in range(min(2, len(turns))):
            if logs[turns[0]][-1] > now - self._longest:
                turns.rotate(-1)
                break
            del logs[turns.popleft()]
        # if the table is still full, the first look found a live source, which now stands last
        log = logs.pop(turns.pop()) if len(logs) >= self._max_sources else array("q")
        logs[source] = log
        turns.append(source)
        return log


def policy_header(rules: Sequence[Rule], name: str) -> str:
    """The RateLimit-Policy field: `"auth";q=5;w=60`, a second rule as `"auth-2"`; "" if none."""
    items = (
        # the draft's w is an Integer: rounded up, it promises no more than is granted
        f'"{_policy(name, number)}";q={rule.count};w={ceil(rule.period)}'
        for number, rule in enumerate(rules)
    )
    return ", ".join(items)


def limit_header(verdict: Verdict, name: str) -> str:
    """The RateLimit field for the tightest rule: `"auth";r=0;t=42`; "" if there is no rule."""
    if verdict.rule < 0:
        return ""
    return f'"{_policy(name, verdict.rule)}";r={verdict.remaining};t={verdict.reset}'


def _policy(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number + 1}"


@lru_cache(maxsize=4_096)  # the clients of a busy minute
def source(address: str) -> str:
    """The source of an address: IPv4 itself, the /64 of IPv6 (a customer has no less)."""
    if ":" not in address:
        return address
    parsed = _parse_address(address)
    if isinstance(parsed, IPv6Address):
        return _network(parsed, 64)
    return address if parsed is None else str(parsed)


def wider_sources(address: str) -> tuple[str, ...]:
    """The IPv6 networks that one customer may have (RFC 6177): its /56 and its /48, as text."""
    parsed = _parse_address(address) if ":" in address else None
    if not isinstance(parsed, IPv6Address):
        return ()
    return _network(parsed, 56), _network(parsed, 48)


def _network(address: IPv6Address, bits: int) -> str:
    free = 128 - bits
    return str(IPv6Network((int(address) >> free << free, bits)))


def parse_networks(texts: Iterable[str]) -> Networks:
    """The trusted proxies: `10.0.0.0/8`, `fd00::/8`, or one address. ValueError otherwise."""
    return tuple(_parse_network(text.strip()) for text in texts)


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(
            f"{text[:60]!r} is not a network: write ADDRESS or NETWORK/BITS with no bit set beyond "
            "BITS, such as 127.0.0.1, 10.0.0.0/8 or fd00::/8"
        ) from None


def is_trusted(address: str, trusted: Networks) -> bool:
    """Whether `address` belongs to a trusted proxy, and may say for whom it speaks."""
    parsed = _parse_address(address) if trusted else None
    return parsed is not None and any(parsed in network for network in trusted)


def client_address(peer: str, forwarded_for: str | None, trusted: Networks) -> str:
    """The nearest address in peer, X-Forwarded-For from right to left, that is not a trusted proxy.

    Only what a trusted proxy wrote is believed. A text that is no address ends the walk at the
    proxy that passed it on. Several X-Forwarded-For fields are one list: join them with commas, in
    order.
    """
    client = peer
    hops = (forwarded_for or "").rsplit(",", MAX_HOPS)[-MAX_HOPS:]
    while hops and is_trusted(client, trusted):
        hop = _parse_hop(hops.pop())
        if hop is None:
            break
        client = str(hop)
    return client


def _parse_hop(text: str) -> Address | None:
    text = text.strip(" \t") if len(text) <= MAX_HOP_LENGTH else ""
    match = HOP.fullmatch(text)
    return _parse_address(match[match.lastindex or 0]) if match else None


@lru_cache(maxsize=4_096)  # proxies speak on every request; with `source` above, about 2 MB
def _parse_address(text: str) -> Address | None:
    """The address without scope, an IPv4-mapped one as the IPv4 it is (RFC 4291 §2.5.5.2)."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
