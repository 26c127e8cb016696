"""How often an address may ask one route: the limiter of ratelimit.py, and the refusals of it.

It leaves out: who the client is. server.py knows the proxies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Callable

import ratelimit
from jwksd import httpd
from jwksd.httpd import Response


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
        self.refused = 0
        self._name = name
        self._policy = ratelimit.policy_header(rules, name)
        # As many as there are waits within a minute or two, by rule.
        self.refusal = functools.lru_cache(maxsize=256)(self._refusal)

    def admit(self, client: str) -> None:
        """Take a slot for the client, or raise Limited."""
        verdict = self.limiter.hit(ratelimit.source(client))
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

    def prime(self, attempts: Iterable[tuple[str, list[float]]]) -> None:
        """Count what came before the start: addresses, and how many seconds ago each attempt was.

        A restart frees no slot.
        """
        ages: dict[str, list[float]] = {}
        for address, seconds_ago in attempts:
            ages.setdefault(ratelimit.source(address), []).extend(seconds_ago)
        for source, seconds_ago in ages.items():
            self.limiter.prime(source, seconds_ago)
