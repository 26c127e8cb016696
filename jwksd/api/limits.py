"""How often an address may ask one route: the limiter of ratelimit.py, and its 429.

It leaves out: who the client is. server.py knows the proxies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Callable

import ratelimit
from jwksd import httpd
from jwksd.httpd import Response
from jwksd.store.database import Unavailable
from jwksd.store.logins import LoginLog

# An IPv6 /56 has 4 times the count, for some households, and a /48 16 times, for a company. A /48
# then enters at most 16 times COUNT sources in a period, of 65,536 places.
WIDER = (4, 16)


class Limited(Exception):
    """Too many requests; the argument is the answer."""


class Limit:
    """The limit of one route, and its refusals made ready."""

    def __init__(
        self,
        name: str,
        rules: tuple[ratelimit.Rule, ...],
        sources: int,
        monotonic: Callable[[], float],
    ) -> None:
        self.limiter = ratelimit.Limiter(rules, clock=monotonic, max_sources=sources)
        self._wider = [
            ratelimit.Limiter(times(factor, rules), clock=monotonic, max_sources=sources)
            for factor in WIDER
        ]
        self.refused = 0
        self._rules = rules
        self._name = name
        self._policy = ratelimit.policy_header(rules, name)
        # As many as there are waits within a minute or two, by rule.
        self.refusal = functools.lru_cache(maxsize=256)(self._refusal)

    def admit(self, client: str) -> None:
        """Take a slot for the client, or raise Limited.

        The networks around an IPv6 address are asked first: else one customer, who has 65,536 /64
        networks, could fill the table of sources. They give a slot only once the /64 has given one.
        """
        wider = list(zip(self._wider, ratelimit.wider_sources(client)))
        for limiter, network in wider:
            self._require(limiter.check(network))
        self._require(self.limiter.hit(ratelimit.source(client)))
        for limiter, network in wider:
            limiter.hit(network)

    def _require(self, verdict: ratelimit.Verdict) -> None:
        if not verdict.allowed:
            self.refused += 1
            raise Limited(self.refusal(verdict))

    def _refusal(self, verdict: ratelimit.Verdict) -> Response:
        headers = (
            ("Retry-After", str(verdict.retry_after)),
            ("RateLimit-Policy", self._policy),
            ("RateLimit", ratelimit.limit_header(verdict, self._name)),
            ("Cache-Control", "no-store"),
        )
        advice = f"Too many requests; try again in {verdict.retry_after} s."
        return httpd.error(429, "too_many_requests", advice, headers)

    def count_earlier(self, logins: LoginLog, log: Callable[[str], None]) -> None:
        """Count the attempts of the longest period that stand in the login log."""
        longest = max((rule.period for rule in self._rules), default=0.0)
        try:
            self.prime(logins.recent(longest) if longest else ())
        except Unavailable as trouble:  # the server starts without them
            log(f"the limiter starts empty: {trouble}")

    def prime(self, attempts: Iterable[tuple[str, list[float]]]) -> None:
        """Count what came before the start: addresses, and how many seconds ago each attempt was.

        A restart frees no slot.
        """
        ages: dict[str, list[float]] = {}
        for address, seconds_ago in attempts:
            ages.setdefault(ratelimit.source(address), []).extend(seconds_ago)
            for limiter, network in zip(self._wider, ratelimit.wider_sources(address)):
                limiter.prime(network, seconds_ago)
        for source, seconds_ago in ages.items():
            self.limiter.prime(source, seconds_ago)


def times(factor: int, rules: Iterable[ratelimit.Rule]) -> list[ratelimit.Rule]:
    """Rules with so many times the count."""
    return [rule._replace(count=min(ratelimit.MAX_COUNT, factor * rule.count)) for rule in rules]
